//! Decides what a running guest needs: being noted, being stopped, acts, resuming, edits, drift put right.

use jiff::SignedDuration;
use vireo_crds::{
    reasons,
    v1alpha1::{Grant, Hardware},
};

use super::{
    acts, backoff,
    diff::{self, Sorted},
    draft::Draft,
    drift,
    orders::Orders,
    power, start,
};
use crate::{
    facts::{DomainState, LiveDomain, OnReboot, PausedReason, StateDirFact},
    guard::{Guard, stands},
    intent::Wanted,
    ledger::{HeldState, PausedBy, Transition},
    step::VmStep,
};

/// Notes a running guest in the ledger and repairs what ties it to Vireo. Holds whatever the object says.
pub(super) fn plan_notice(draft: &mut Draft<'_>, live: &LiveDomain, grant: &Grant) {
    if draft.entry.power.up_since.is_none() {
        let (again, now) =
            (draft.entry.held.as_ref().is_some_and(|held| held.state == HeldState::Activated), draft.now);
        draft.record(|entry| entry.activate(now));
        draft.tell(reasons::STARTED, if again { "the guest is up again" } else { "the guest is up" });
    }
    if live.persistent {
        draft.step(VmStep::Undefine { name: live.name.clone() });
    }
    let remembered = draft.entry.wanted.clone();
    if let Some(wanted) = remembered.filter(|_| live.metadata.is_none()) {
        let metadata = start::metadata(&draft.entry.vm, grant, &wanted);
        draft.step(VmStep::WriteMetadata { metadata: Box::new(metadata) });
    }
    forget_crashes(draft);
}

/// Plans for a guest that runs under `grant` and whose object says so too.
pub(super) fn plan_up(
    draft: &mut Draft<'_>,
    orders: &Orders<'_>,
    live: &LiveDomain,
    grant: &Grant,
    sorted: Option<&Sorted>,
) {
    power::plan_stop_request(draft, orders);
    if !power::is_to_be_down(orders) {
        acts::plan_acts(draft, orders, live, grant);
    }
    if let Some(newer) = orders.newer {
        start::remember(draft, newer);
    }
    if power::is_stopping(draft) {
        power::plan_stop(draft, orders, live, grant);
        return;
    }
    // An act's step changes what the rest would look at: that is for the next plan.
    if !draft.plan.steps.iter().any(|step| matches!(step, VmStep::Pause | VmStep::Resume | VmStep::Reset)) {
        plan_pause(draft, orders, live);
    }
    if let (Some(sorted), Some(wanted)) = (sorted, orders.wanted) {
        plan_edits(draft, live, sorted);
        plan_hardware(draft, live, wanted);
        // Last: a guest that holds on to the wrong medium must not keep anything else from being done.
        drift::repairs(live).into_iter().for_each(|step| draft.step(step));
    }
}

/// A copy that another host's newer grant has replaced stands still until somebody decides.
pub(super) fn plan_superseded(draft: &mut Draft<'_>, live: &LiveDomain, grant: &Grant, order: Option<&str>) {
    if order == Some(grant.id.as_str()) || !stands(Guard::SupersededPauses) {
        draft.step(VmStep::Destroy { grant: grant.clone() });
        return;
    }
    match live.state {
        DomainState::Running | DomainState::Suspended | DomainState::Other => {
            if draft.entry.power.paused_by != Some(PausedBy::Superseded) {
                draft.record(|entry| {
                    entry.power.paused_by = Some(PausedBy::Superseded);
                    Transition::Pausing { by: PausedBy::Superseded }
                });
                draft.warn(
                    reasons::SUPERSEDED,
                    "another host holds a newer grant: this copy is paused and waits for an order",
                );
            }
            draft.step(VmStep::Pause);
        }
        DomainState::Paused(_) | DomainState::ShuttingDown => {}
    }
}

fn forget_crashes(draft: &mut Draft<'_>) {
    let Some(up_since) = draft.entry.power.up_since.filter(|_| draft.entry.power.crashes > 0) else { return };
    let at = up_since.checked_add(backoff::FORGET_AFTER).unwrap_or(up_since);
    if draft.now >= at {
        draft.record(|entry| {
            entry.power.crashes = 0;
            Transition::CrashesForgotten
        });
    } else {
        draft.wake_at(at);
    }
}

fn plan_pause(draft: &mut Draft<'_>, orders: &Orders<'_>, live: &LiveDomain) {
    let ours = draft.entry.power.paused_by;
    match live.state {
        DomainState::Running if ours.is_some() => draft.record(acts::unpaused),
        DomainState::Paused(PausedReason::IoError) if orders.storage_ready => plan_io_resume(draft),
        DomainState::Paused(PausedReason::User | PausedReason::Other)
            if ours == Some(PausedBy::Superseded) =>
        {
            draft.step(VmStep::Resume);
            draft.record(acts::unpaused);
        }
        DomainState::Running
        | DomainState::Paused(_)
        | DomainState::ShuttingDown
        | DomainState::Suspended
        | DomainState::Other => {}
    }
}

/// The disk may work again: the guest is tried, and if it stops at the same place, tried again later.
fn plan_io_resume(draft: &mut Draft<'_>) {
    let at = match &draft.facts.resume_attempts {
        None => draft.now,
        Some(attempts) => {
            attempts.last.checked_add(backoff::after_resumes(attempts.count)).unwrap_or(draft.now)
        }
    };
    if draft.now >= at {
        draft.step(VmStep::Resume);
    } else {
        draft.wake_at(at.min(draft.now.checked_add(SignedDuration::from_secs(30)).unwrap_or(at)));
    }
}

fn plan_edits(draft: &mut Draft<'_>, live: &LiveDomain, sorted: &Sorted) {
    for diff::LinkChange { nic, mac, link } in &sorted.links {
        draft.step(VmStep::SetLink { nic: nic.clone(), mac: mac.clone(), link: *link });
    }
    // First: libvirt refuses a reset that ends the domain beside a power-off that does not.
    if drift::outlives_guest(live) {
        draft.step(VmStep::EndWithGuest);
    }
    // While edits wait, a reset must end the domain, so that it is started anew with them; and the ledger must know
    // before libvirt does, lest the end is taken for the guest's own shutdown. When nothing waits, a reset must
    // come back without us.
    let applies = sorted.needs_boot();
    let mark = |draft: &mut Draft<'_>| {
        if draft.entry.power.reboot_applies != applies {
            draft.record(|entry| {
                entry.power.reboot_applies = applies;
                Transition::RebootApplies { edits: applies }
            });
            if applies {
                let paths: Vec<_> = sorted.pending.iter().map(|change| change.path.as_str()).collect();
                draft
                    .tell(reasons::EDITS_WAIT, format!("edits wait for the next boot: {}", paths.join(", ")));
            }
        }
    };
    let action = if applies { OnReboot::Destroy } else { OnReboot::Restart };
    if applies {
        mark(draft);
    }
    if live.on_reboot != action {
        draft.step(VmStep::SetOnReboot { action });
    }
    if !applies {
        mark(draft);
    }
}

fn plan_hardware(draft: &mut Draft<'_>, live: &LiveDomain, wanted: &Wanted) {
    let (Some(home), Some(hardware)) = (&wanted.state, &live.hardware) else { return };
    let files = &draft.facts.files;
    if files.state_dir == StateDirFact::Unknown || files.kept_hardware.as_ref() == Some(hardware) {
        return;
    }
    keep_hardware(draft, &home.dir, hardware);
}

fn keep_hardware(draft: &mut Draft<'_>, dir: &str, hardware: &Hardware) {
    draft.step(VmStep::KeepHardware { dir: dir.into(), hardware: hardware.clone() });
}
