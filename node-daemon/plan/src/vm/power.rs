//! Decides how a running guest is stopped: through its agent, by the ACPI button again and again, and once the grace
//! period is over by cutting its power. The period began when the ledger says, not when this daemon started.

use jiff::{SignedDuration, Timestamp};
use vireo_crds::{
    reasons,
    v1alpha1::{Grant, RunStrategy},
};

use super::{draft::Draft, orders::Orders};
use crate::{
    facts::{AgentState, DomainState, LiveDomain, PausedReason, ShutdownAsked, ShutdownVia},
    ledger::{StopBy, Stopping},
    step::VmStep,
};

/// Pause between two requests: a guest that is still booting, or whose agent hangs, misses the first.
const ASK_AGAIN: SignedDuration = SignedDuration::from_secs(10);

/// Whether the orders want the guest down, whatever acts say.
pub(super) fn is_to_be_down(orders: &Orders<'_>) -> bool {
    orders.deleting || orders.policy.is_some_and(|policy| policy.run_strategy == RunStrategy::Halted)
}

/// Begins, turns or calls off a stop, as the orders now are.
pub(super) fn plan_stop_request(draft: &mut Draft<'_>, orders: &Orders<'_>) {
    let down = is_to_be_down(orders);
    let now = draft.now;
    let stopping = draft.entry.power.stopping.clone();
    match stopping {
        None if down => {
            begin(draft, StopBy::Spec, now);
            let why = if orders.deleting { "the VM is being deleted" } else { "runStrategy is Halted" };
            draft.tell(reasons::STOPPING, format!("asking the guest to shut down: {why}"));
        }
        None => {}
        Some(Stopping { by: StopBy::Spec, .. }) if down => {}
        Some(Stopping { since, .. }) if down => begin(draft, StopBy::Spec, since),
        // What is only remembered does not call off what the object asked for: it may be a deletion.
        Some(Stopping { by: StopBy::Spec, .. }) if !orders.fresh => {}
        Some(Stopping { since, by: StopBy::Spec }) => begin(draft, StopBy::Withdrawn, since),
        Some(Stopping { since, by: StopBy::Withdrawn }) => {
            let end = deadline(since, orders);
            if now >= end {
                draft.record(|entry| {
                    entry.power.stopping = None;
                    crate::ledger::Transition::StopCalledOff
                });
            } else {
                draft.wake_at(end);
            }
        }
        Some(Stopping { by: StopBy::Stop { .. } | StopBy::Restart { .. }, .. }) => {}
    }
}

/// Begins a stop.
pub(super) fn begin(draft: &mut Draft<'_>, by: StopBy, since: Timestamp) {
    draft.record(|entry| {
        entry.power.stopping = Some(Stopping { since, by: by.clone() });
        crate::ledger::Transition::StopBegun { by }
    });
}

/// Whether a stop is under way that must be carried out.
pub(super) fn is_stopping(draft: &Draft<'_>) -> bool {
    match draft.entry.power.stopping.as_ref().map(|stopping| &stopping.by) {
        None | Some(StopBy::Withdrawn) => false,
        Some(StopBy::Spec | StopBy::Stop { .. } | StopBy::Restart { .. }) => true,
    }
}

/// Carries the stop on.
pub(super) fn plan_stop(draft: &mut Draft<'_>, orders: &Orders<'_>, live: &LiveDomain, grant: &Grant) {
    let Some(since) = draft.entry.power.stopping.as_ref().map(|stopping| stopping.since) else { return };
    let end = deadline(since, orders);
    if draft.now >= end {
        draft.step(VmStep::Destroy { grant: grant.clone() });
        return;
    }
    draft.wake_at(end);
    match live.state {
        DomainState::Running | DomainState::Suspended | DomainState::Other => {}
        DomainState::ShuttingDown => return,
        // A guest that stands still hears nothing.
        DomainState::Paused(PausedReason::User | PausedReason::Watchdog | PausedReason::Other) => {
            draft.step(VmStep::Resume)
        }
        DomainState::Paused(PausedReason::IoError | PausedReason::Transient) => return,
    }
    let asked = draft.facts.shutdown_asked.as_ref().filter(|asked| asked.at >= since);
    let (via, at) = next_request(live, asked, draft.now);
    if draft.now >= at {
        draft.step(VmStep::RequestShutdown { via });
    } else {
        draft.wake_at(at);
    }
}

fn next_request(
    live: &LiveDomain,
    asked: Option<&ShutdownAsked>,
    now: Timestamp,
) -> (ShutdownVia, Timestamp) {
    match asked {
        None if live.agent == AgentState::Connected => (ShutdownVia::Agent, now),
        None => (ShutdownVia::Acpi, now),
        Some(asked) => (ShutdownVia::Acpi, asked.at.checked_add(ASK_AGAIN).unwrap_or(now)),
    }
}

fn deadline(since: Timestamp, orders: &Orders<'_>) -> Timestamp {
    let grace = orders.policy.map_or(120, |policy| policy.grace_period_seconds).clamp(0, 86_400);
    since.checked_add(SignedDuration::from_secs(grace)).unwrap_or(since)
}
