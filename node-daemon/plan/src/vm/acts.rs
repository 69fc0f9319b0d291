//! Decides how acts are carried out: each once, one at a time, under the very grant it names.
//!
//! What cannot be repeated (reset, NMI) is recorded as begun before and as done after; an act found begun but not
//! done was interrupted, and says so instead of being tried again.

use vireo_crds::{
    reasons,
    v1alpha1::{Act, ActPhase, Grant, RunStrategy, StopCause},
};

use super::{draft::Draft, orders::Orders, power};
use crate::{
    facts::{DomainState, LiveDomain},
    intent::{Intent, PendingAct},
    ledger::{ActRecord, Entry, PausedBy, StopBy, Transition},
    step::{ActReport, VmStep},
};

/// Records of acts whose objects are gone are kept this long, in case the object shows up again in a stale list.
const KEEP_RECORDS: jiff::SignedDuration = jiff::SignedDuration::from_hours(2);

/// Begins the first act not begun yet, on a running guest.
pub(super) fn plan_acts(draft: &mut Draft<'_>, orders: &Orders<'_>, live: &LiveDomain, grant: &Grant) {
    if settle_interrupted(draft, orders, live) {
        return;
    }
    let Some(act) = next(draft, orders) else { return };
    if let Some(refusal) = grant_fault(act, grant) {
        draft.record_act(&act.uid, ActPhase::Failed, &refusal);
        return;
    }
    let standing = matches!(live.state, DomainState::Paused(_));
    match act.act {
        // The controller's own.
        Act::Start => {}
        Act::Stop if is_always(orders) => draft.record_act(&act.uid, ActPhase::Failed, ALWAYS),
        Act::Stop => {
            draft.record_act(&act.uid, ActPhase::Running, "asked the guest to shut down");
            begin_stop(draft, StopBy::Stop { act: act.uid.clone() }, "an act asks for it");
        }
        Act::Restart => {
            draft.record_act(&act.uid, ActPhase::Running, "asked the guest to shut down, to start it anew");
            begin_stop(draft, StopBy::Restart { act: act.uid.clone() }, "an act asks for a restart");
        }
        Act::Pause if standing => {
            draft.record(|entry| pausing(entry, PausedBy::Act));
            draft.record_act(&act.uid, ActPhase::Succeeded, "was paused already");
        }
        Act::Pause => {
            draft.record(|entry| pausing(entry, PausedBy::Act));
            once(draft, act, VmStep::Pause, "paused");
        }
        Act::Resume if !standing => draft.record_act(&act.uid, ActPhase::Succeeded, "was running already"),
        Act::Resume => {
            once(draft, act, VmStep::Resume, "resumed");
            if draft.entry.power.paused_by.is_some() {
                draft.record(unpaused);
            }
        }
        Act::Reset => once(draft, act, VmStep::Reset, "reset"),
        Act::Nmi => once(draft, act, VmStep::InjectNmi, "NMI injected"),
    }
}

/// Settles acts on a guest that is down. True: something was recorded that must be written first.
pub(super) fn plan_acts_when_down(draft: &mut Draft<'_>, orders: &Orders<'_>, grant: &Grant) {
    for act in orders.acts {
        let begun = draft.entry.acts.get(&act.uid).map(|record| record.phase);
        if begun.is_some_and(ActPhase::is_final) {
            continue;
        }
        if let Some(refusal) = grant_fault(act, grant) {
            draft.record_act(&act.uid, ActPhase::Failed, &refusal);
            continue;
        }
        match act.act {
            Act::Start => {}
            Act::Stop if begun.is_none() && is_always(orders) => {
                draft.record_act(&act.uid, ActPhase::Failed, ALWAYS)
            }
            Act::Stop => {
                rewrite_cause(draft, StopCause::ByAction);
                draft.record_act(&act.uid, ActPhase::Succeeded, "the guest is down");
            }
            Act::Restart if power::is_to_be_down(orders) => {
                draft.record_act(&act.uid, ActPhase::Failed, "not restarted: the VM is to be down")
            }
            // Done once the guest is up; an act made while a start is delayed is a wish not to wait.
            Act::Restart => {
                if begun.is_none() {
                    draft.record_act(&act.uid, ActPhase::Running, "starting it anew");
                    draft.record(|entry| {
                        entry.power.retry_at = None;
                        if let Some(stop) = &mut entry.power.last_stop {
                            stop.cause = None;
                        }
                        Transition::Stopped { cause: None }
                    });
                }
            }
            Act::Reset | Act::Pause | Act::Resume | Act::Nmi => {
                draft.record_act(&act.uid, ActPhase::Failed, "the guest is not running")
            }
        }
    }
}

/// Notes that a stop which outlives its cause is now somebody's doing, unless it already is.
pub(super) fn rewrite_cause(draft: &mut Draft<'_>, cause: StopCause) {
    let known = draft.entry.power.last_stop.as_ref().map(|stop| stop.cause);
    match known {
        Some(Some(old)) if old == cause => {}
        Some(_) => draft.record(|entry| {
            if let Some(stop) = &mut entry.power.last_stop {
                stop.cause = Some(cause);
            }
            Transition::CauseRewritten { cause }
        }),
        None => draft.record_stop(Some(cause), None),
    }
}

/// Drops records of acts long gone; only together with another change, so that it costs no write of its own.
pub(super) fn prune(draft: &mut Draft<'_>, intent: &Intent) {
    let oldest = draft.now - KEEP_RECORDS;
    let is_gone = |uid: &String, record: &ActRecord| {
        record.at < oldest && !intent.acts.iter().any(|act| act.uid == *uid)
    };
    if draft.entry.acts.iter().any(|(uid, record)| is_gone(uid, record)) {
        draft.record(|entry| {
            entry.acts.retain(|uid, record| !is_gone(uid, record));
            Transition::ActsPruned
        });
    }
}

/// What the acts' objects should say, as far as the ledger knows.
pub(super) fn reports(intent: &Intent, entry: &Entry) -> Vec<ActReport> {
    let report = |act: &PendingAct| {
        let record = entry.acts.get(&act.uid)?;
        Some(ActReport {
            name: act.name.clone(),
            uid: act.uid.clone(),
            phase: record.phase,
            message: record.message.clone().unwrap_or_default(),
            completed_at: record.phase.is_final().then_some(record.at),
        })
    };
    intent.acts.iter().filter_map(report).collect()
}

const ALWAYS: &str =
    "runStrategy is Always, which would start it again at once: set spec.runStrategy to Halted instead";

fn is_always(orders: &Orders<'_>) -> bool {
    orders.policy.is_some_and(|policy| policy.run_strategy == RunStrategy::Always)
}

fn grant_fault(act: &PendingAct, grant: &Grant) -> Option<String> {
    (act.grant_id != grant.id).then(|| "the guest it was meant for has ended; make a new act".to_owned())
}

fn next<'a>(draft: &Draft<'_>, orders: &Orders<'a>) -> Option<&'a PendingAct> {
    orders.acts.iter().find(|act| act.act != Act::Start && !draft.entry.acts.contains_key(&act.uid))
}

fn begin_stop(draft: &mut Draft<'_>, by: StopBy, why: &str) {
    if !power::is_stopping(draft) {
        let now = draft.now;
        power::begin(draft, by, now);
        draft.tell(reasons::STOPPING, format!("asking the guest to shut down: {why}"));
    }
}

fn once(draft: &mut Draft<'_>, act: &PendingAct, step: VmStep, done: &str) {
    draft.record_act(&act.uid, ActPhase::Running, "begun");
    draft.step(step);
    draft.record_act(&act.uid, ActPhase::Succeeded, done);
}

fn settle_interrupted(draft: &mut Draft<'_>, orders: &Orders<'_>, live: &LiveDomain) -> bool {
    let mut settled = false;
    for act in orders.acts {
        if draft.entry.acts.get(&act.uid).is_none_or(|record| record.phase.is_final()) {
            continue;
        }
        let outcome = match (act.act, live.state) {
            (Act::Pause, DomainState::Paused(_)) => Some((ActPhase::Succeeded, "paused")),
            (Act::Resume, DomainState::Running) => Some((ActPhase::Succeeded, "resumed")),
            (Act::Pause | Act::Resume | Act::Reset | Act::Nmi, _) => {
                Some((ActPhase::Failed, "failed or was interrupted; see the guest before you try again"))
            }
            // Up and not stopping any more: the restart is done.
            (Act::Restart, _) if draft.entry.power.stopping.is_none() => {
                Some((ActPhase::Succeeded, "started anew"))
            }
            (Act::Stop, _) if draft.entry.power.stopping.is_none() => {
                Some((ActPhase::Failed, "the guest is up again"))
            }
            (Act::Start | Act::Stop | Act::Restart, _) => None,
        };
        if let Some((phase, message)) = outcome {
            draft.record_act(&act.uid, phase, message);
            settled = true;
        }
    }
    settled
}

fn pausing(entry: &mut Entry, by: PausedBy) -> Transition {
    entry.power.paused_by = Some(by);
    Transition::Pausing { by }
}

/// Forgets a pause of ours.
pub(super) fn unpaused(entry: &mut Entry) -> Transition {
    entry.power.paused_by = None;
    Transition::Unpaused
}
