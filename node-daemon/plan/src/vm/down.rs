//! Decides what follows when a guest is certainly down under an open or a new grant: started again, delayed, or
//! released.

use vireo_crds::{
    power::stays_down,
    reasons,
    v1alpha1::{Grant, Hardware, StopCause},
};

use super::{acts, backoff, draft::Draft, exit, orders::Orders, power, release, start};
use crate::{
    guard::{Guard, stands},
    intent::Intent,
    ledger::{Transition, permits_start},
};

/// Records the end of a guest that is not there any more, if the ledger does not know it yet.
pub(super) fn plan_ending(draft: &mut Draft<'_>, orders: &Orders<'_>, closing: bool) {
    let Some(ending) = exit::unrecorded(&draft.entry, draft.facts) else { return };
    let (now, up_since) = (draft.now, draft.entry.power.up_since);
    let crashed = backoff::is_crash(ending.cause);
    // A guest that ran long enough is over its earlier crashes, whether or not that was noted while it ran.
    let recovered = up_since.is_some_and(|since| now.duration_since(since) >= backoff::FORGET_AFTER);
    let before = if recovered { 0 } else { draft.entry.power.crashes };
    let crashes = if crashed { before.saturating_add(1) } else { before };
    let delay = match ending.cause {
        _ if crashed => backoff::after_crashes(crashes, &draft.entry.vm.uid),
        Some(StopCause::ByGuest) => backoff::after_shutdown(up_since, now),
        _ => jiff::SignedDuration::ZERO,
    };
    draft.record_stop(ending.cause, Some(ending.message.clone()));
    draft.entry.power.crashes = crashes;
    draft.entry.power.retry_at = now.checked_add(delay).ok().filter(|at| *at > now);
    let stays = closing || ending.cause.is_some_and(|cause| stays(orders, cause));
    announce(draft, ending.cause, &ending.message, crashes, stays);
}

/// Whether a guest that went down for this cause stays down. If the object cannot be asked, one that went down by its
/// spec does: it may be on its way out.
fn stays(orders: &Orders<'_>, cause: StopCause) -> bool {
    let by_remembered_spec = !orders.fresh && cause == StopCause::BySpec;
    by_remembered_spec || orders.policy.is_some_and(|policy| stays_down(policy.run_strategy, cause))
}

fn announce(draft: &mut Draft<'_>, cause: Option<StopCause>, message: &str, crashes: u32, stays: bool) {
    let next = if stays { "it stays down" } else { "it is started again" };
    match cause {
        None => draft.tell(reasons::RESTARTING, message),
        Some(StopCause::ByGuest) => draft.tell(reasons::STOPPED_BY_GUEST, format!("{message}; {next}")),
        Some(StopCause::BySpec | StopCause::ByAction) => draft.tell(reasons::STOPPED, message),
        Some(StopCause::StartFailed) => {
            draft.warn(reasons::START_FAILED, format!("{message} (failure {crashes} in a row)"))
        }
        Some(StopCause::Crashed | StopCause::HostLost | StopCause::Unknown) => {
            draft.warn(reasons::CRASHED, format!("{message} (crash {crashes} in a row); {next}"));
        }
    }
}

/// Plans for a guest that is down and whose grant is open or can be accepted.
pub(super) fn plan_down(
    draft: &mut Draft<'_>,
    orders: &Orders<'_>,
    grant: &Grant,
    hardware: Option<&Hardware>,
) {
    let held = draft.entry.open() == Some(grant);
    if held {
        plan_ending(draft, orders, power::is_to_be_down(orders));
        acts::plan_acts_when_down(draft, orders, grant);
    }
    if power::is_to_be_down(orders) {
        if !held {
            let now = draft.now;
            draft.record(|entry| entry.accept(grant, now));
        }
        acts::rewrite_cause(draft, StopCause::BySpec);
        release::plan_release(draft, orders, orders.deleting);
        return;
    }
    if held && grant.incarnation != draft.facts.incarnation {
        // Adopted from an earlier life of the ledger: it could run on, but nothing is started under it.
        release::plan_release(draft, orders, false);
        return;
    }
    let cause = draft.entry.power.last_stop.as_ref().filter(|_| held).and_then(|stop| stop.cause);
    if cause.is_some_and(|cause| stays(orders, cause)) {
        release::plan_release(draft, orders, false);
        return;
    }
    if let Some(at) = draft.entry.power.retry_at.filter(|_| held).map(|at| backoff::sane(at, draft.now))
        && at > draft.now
    {
        draft.wake_at(at);
        let crashes = draft.entry.power.crashes;
        let reason = if crashes >= backoff::CRASH_LOOP { reasons::CRASH_LOOP } else { reasons::RESTARTING };
        draft.wait(reason, format!("the next start is at {at:.0}"));
        return;
    }
    start::plan_start(draft, orders, grant, hardware);
}

/// Closes a grant that is open here although nothing runs and nothing is to run under it.
pub(super) fn plan_close(draft: &mut Draft<'_>, orders: &Orders<'_>) {
    if draft.entry.open().is_some() {
        plan_ending(draft, orders, true);
        release::plan_release(draft, orders, false);
    } else {
        let wanted = draft.entry.wanted.clone();
        release::plan_clean_up(draft, wanted.as_ref());
    }
}

/// Plans for a guest that is down and whose object names a grant that is not the open one.
///
/// One that was in the store when it was listed, and that this host has not accepted, is closed here and now: a backup of
/// a timeline that was given up brings back grants that nobody made in this one, and while only its host could use
/// such a grant, only its host can end it. If it was good after all, the controller makes another.
pub(super) fn plan_new_grant(
    draft: &mut Draft<'_>,
    orders: &Orders<'_>,
    intent: &Intent,
    hardware: Option<&Hardware>,
) {
    let grant = &intent.grant;
    let (host, incarnation) = (draft.facts.host.as_str(), draft.facts.incarnation.as_str());
    if let Some(open) =
        draft.entry.open_in(incarnation).filter(|open| open.epoch < grant.epoch && grant.host == host)
    {
        // The controller has evidence that the older one is over; here is more: nothing runs under it.
        let older = open.clone();
        draft.tell(
            reasons::RELEASED,
            format!("grant {} (number {}) was replaced while nothing ran under it", older.id, older.epoch),
        );
        plan_close(draft, orders);
        return;
    }
    if let Err(refusal) = permits_start(Some(&draft.entry), grant, host, incarnation) {
        draft.wait(reasons::GRANT_REFUSED, refusal.to_string());
        return;
    }
    if intent.listed && stands(Guard::ListedGrant) {
        let now = draft.now;
        draft.record(|entry| entry.accept(grant, now));
        release::plan_release(draft, orders, false);
        return;
    }
    plan_down(draft, orders, grant, hardware);
}

/// Keeps the stop cause of a released VM true to its strategy: halted by spec, so that leaving `Halted` starts it.
pub(super) fn plan_released(draft: &mut Draft<'_>, orders: &Orders<'_>) {
    let halted = power::is_to_be_down(orders);
    let by_other = draft
        .entry
        .power
        .last_stop
        .as_ref()
        .and_then(|stop| stop.cause)
        .is_some_and(|cause| cause != StopCause::BySpec);
    if halted && by_other {
        draft.record(|entry| {
            if let Some(stop) = &mut entry.power.last_stop {
                stop.cause = Some(StopCause::BySpec);
            }
            Transition::CauseRewritten { cause: StopCause::BySpec }
        });
    }
    let wanted = draft.entry.wanted.clone();
    // It was down already when it was deleted, or the daemon was ended between the two.
    if let Some(wanted) = wanted.as_ref().filter(|_| orders.deleting) {
        release::remove_state(draft, wanted);
    }
    release::plan_clean_up(draft, wanted.as_ref());
}
