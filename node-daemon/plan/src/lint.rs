//! What no plan may do, whatever the planner thought: written apart from it, from the protocol alone.

use crate::{
    facts::{DomainFact, Facts, ProcessFact, TokenFact},
    intent::Observation,
    ledger::{Entry, HeldState, LedgerFact, StopBy, Transition},
    step::{Plan, VmStep},
};

/// Every rule the plan breaks.
pub fn lint(observation: &Observation, facts: &Facts, plan: &Plan) -> Vec<String> {
    let mut broken = Vec::new();
    let mut entry = match &facts.ledger {
        LedgerFact::Entry(entry) => Some(entry.as_ref().clone()),
        LedgerFact::None | LedgerFact::Unreadable { .. } => None,
    };
    let locked = matches!(facts.ledger, LedgerFact::Unreadable { .. });
    let mut fail = |text: &str| broken.push(text.to_owned());
    if locked && !plan.steps.is_empty() {
        fail("something is done although the ledger cannot be read");
    }
    if !is_gone(facts) && facts.live().is_none() && !plan.steps.is_empty() {
        fail("something is done although nobody knows whether the guest is here");
    }
    let mut starts = 0;
    for step in &plan.steps {
        match step {
            VmStep::WriteLedger { transitions, entry: next, events: _ } => {
                ledger_write(entry.as_ref(), next, transitions, facts).into_iter().for_each(&mut fail);
                entry = Some(next.as_ref().clone());
            }
            VmStep::StartDomain { metadata, .. } => {
                starts += 1;
                start(observation, facts, entry.as_ref(), &metadata.grant).into_iter().for_each(&mut fail);
            }
            VmStep::Destroy { grant } => {
                stop(observation, facts, entry.as_ref(), grant).into_iter().for_each(&mut fail)
            }
            VmStep::RequestShutdown { .. } => {
                if entry.as_ref().is_none_or(|entry| entry.power.stopping.is_none()) {
                    fail("a guest is asked to shut down although the ledger names no one who wants it");
                }
            }
            VmStep::Pause => {
                if entry.as_ref().is_none_or(|entry| entry.power.paused_by.is_none()) {
                    fail("a guest is paused although the ledger does not say why");
                }
            }
            VmStep::Resume => {
                if entry.as_ref().is_none_or(|entry| entry.open().is_none()) {
                    fail("a guest is resumed under no open grant");
                }
            }
            VmStep::RemoveStateDir { .. } => {
                if !is_deleting(observation) {
                    fail("firmware variables and TPM state are removed although the VM is not being deleted");
                }
            }
            VmStep::WritePermit { grant, .. } => {
                if entry.as_ref().and_then(Entry::open) != Some(grant) {
                    fail("a permit is given for a grant that is not open in the ledger");
                }
            }
            VmStep::WriteDiskToken { path, token, replaces } => {
                if entry.as_ref().and_then(Entry::open).is_none_or(|open| open.id != token.id) {
                    fail("a disk is taken under a grant that is not open in the ledger");
                }
                if matches!(facts.tokens.get(path), Some(TokenFact::Present(found)) if replaces.as_ref() != Some(found))
                {
                    fail("a disk token is overwritten that was not looked at");
                }
                if matches!(facts.tokens.get(path), Some(TokenFact::Present(found)) if found.vm_uid != token.vm_uid || found.epoch > token.epoch)
                {
                    fail("a disk is taken from another VM or a newer grant");
                }
            }
            VmStep::SetOnReboot { action: crate::facts::OnReboot::Destroy } => {
                if entry.as_ref().is_none_or(|entry| !entry.power.reboot_applies) {
                    fail("a reset ends the domain before the ledger says that this is a reboot");
                }
            }
            VmStep::RemovePermit { .. }
            | VmStep::RemoveDiskToken { .. }
            | VmStep::MakeSeed { .. }
            | VmStep::RemoveSeed
            | VmStep::MakeOverlay { .. }
            | VmStep::RemoveOverlay { .. }
            | VmStep::EnsureStateDir { .. }
            | VmStep::CopyTpmIn { .. }
            | VmStep::CopyTpmOut { .. }
            | VmStep::KeepHardware { .. }
            | VmStep::Reset
            | VmStep::InjectNmi
            | VmStep::SetLink { .. }
            | VmStep::SetMedia { .. }
            | VmStep::SetNetwork { .. }
            | VmStep::EndWithGuest
            | VmStep::SetOnReboot { .. }
            | VmStep::WriteMetadata { .. }
            | VmStep::Undefine { .. }
            | VmStep::FlushDisks { .. } => {}
        }
    }
    if starts > 1 {
        fail("a guest is started twice in one plan");
    }
    reported(facts, plan).into_iter().for_each(&mut fail);
    broken
}

/// libvirt answered completely and shows no domain, and no QEMU process carries the uuid.
fn is_gone(facts: &Facts) -> bool {
    matches!((&facts.domain, &facts.process), (DomainFact::Absent { .. }, ProcessFact::None))
}

fn ledger_write<'a>(
    old: Option<&Entry>,
    new: &Entry,
    transitions: &[Transition],
    facts: &Facts,
) -> Vec<&'a str> {
    let mut broken = Vec::new();
    if old.is_some_and(|old| new.highest_epoch < old.highest_epoch) {
        broken.push("the highest epoch falls");
    }
    if new.held.as_ref().is_some_and(|held| held.grant.epoch > new.highest_epoch) {
        broken.push("the highest epoch does not cover the held grant");
    }
    let closed = old.and_then(|old| old.held.as_ref()).filter(|held| held.state == HeldState::Released);
    if closed.is_some_and(|old| {
        new.held
            .as_ref()
            .is_none_or(|held| held.grant.id == old.grant.id && held.state != HeldState::Released)
    }) {
        broken.push("a released grant opens again");
    }
    if transitions.contains(&Transition::Released) && !is_gone(facts) {
        broken.push("a grant is released although the guest is not certainly gone");
    }
    for transition in transitions {
        if let (Transition::Accepted { grant }, Some(old)) = (transition, old)
            && grant.epoch <= old.highest_epoch
        {
            broken.push("a grant is accepted whose number is not above all seen");
        }
    }
    let lost = old
        .and_then(Entry::open)
        .filter(|open| new.held.as_ref().is_none_or(|held| held.grant.id != open.id));
    if lost.is_some_and(|open| open.incarnation == facts.incarnation) {
        broken.push("an open grant of this incarnation is forgotten");
    }
    broken
}

fn start<'a>(
    observation: &Observation,
    facts: &Facts,
    entry: Option<&Entry>,
    grant: &vireo_crds::v1alpha1::Grant,
) -> Vec<&'a str> {
    let mut broken = Vec::new();
    if !is_gone(facts) {
        broken.push("a guest is started although one may be here");
    }
    if grant.incarnation != facts.incarnation || grant.host != facts.host {
        broken.push("a guest is started under a grant of another host or incarnation");
    }
    if entry.and_then(Entry::open) != Some(grant) {
        broken.push("a guest is started under a grant that the ledger does not hold open");
    }
    let unlocked = |fact: &TokenFact| match fact {
        TokenFact::Present(token) => {
            entry.is_some_and(|entry| token.vm_uid == entry.vm.uid) && token.epoch <= grant.epoch
        }
        TokenFact::None => true,
        TokenFact::Unknown { .. } => false,
    };
    let volumes = entry.map(|entry| entry.volumes.as_slice()).unwrap_or_default();
    if !volumes.iter().all(|volume| facts.tokens.get(&volume.token).is_some_and(unlocked)) {
        broken.push("a guest is started although a disk token does not allow it");
    }
    match observation {
        Observation::Granted(intent) if intent.grant != *grant => {
            broken.push("a guest is started under a grant the object does not name")
        }
        Observation::Granted(intent) if intent.deleting => {
            broken.push("a guest is started although its VM is being deleted")
        }
        Observation::Granted(_) | Observation::Unseen => {}
        Observation::Disappeared | Observation::Gone | Observation::Elsewhere { .. } => {
            broken.push("a guest is started for a VM that is not placed here")
        }
    }
    broken
}

/// Only its spec, an act, or an order naming its grant ends a guest.
fn stop<'a>(
    observation: &Observation,
    facts: &Facts,
    entry: Option<&Entry>,
    grant: &vireo_crds::v1alpha1::Grant,
) -> Vec<&'a str> {
    let mut broken = Vec::new();
    let running = facts.live().and_then(|live| live.metadata.as_ref()).map(|metadata| &metadata.grant);
    if running.is_some_and(|running| running != grant) {
        broken.push("a guest is destroyed under another grant than it runs under");
    }
    let ordered = match observation {
        Observation::Elsewhere { holder, destroy_order } => {
            holder.epoch > grant.epoch && destroy_order.as_deref() == Some(grant.id.as_str())
        }
        Observation::Granted(_) | Observation::Unseen => {
            match entry.and_then(|entry| entry.power.stopping.as_ref()).map(|stopping| &stopping.by) {
                Some(StopBy::Spec | StopBy::Stop { .. } | StopBy::Restart { .. }) => true,
                Some(StopBy::Withdrawn) | None => false,
            }
        }
        Observation::Disappeared | Observation::Gone => false,
    };
    if !ordered {
        broken.push("a guest is destroyed although neither spec, act nor order asks for it");
    }
    broken
}

fn is_deleting(observation: &Observation) -> bool {
    match observation {
        Observation::Granted(intent) => intent.deleting,
        Observation::Unseen
        | Observation::Disappeared
        | Observation::Gone
        | Observation::Elsewhere { .. } => false,
    }
}

/// What is reported must have been recorded before.
fn reported<'a>(facts: &Facts, plan: &Plan) -> Vec<&'a str> {
    use vireo_crds::v1alpha1::{Holding, Power};
    let mut broken = Vec::new();
    let Some(runtime) = plan.report.as_ref().and_then(|report| report.runtime.as_ref()) else {
        return broken;
    };
    let released = match &facts.ledger {
        LedgerFact::Entry(entry) => entry
            .held
            .as_ref()
            .is_some_and(|held| held.state == HeldState::Released && held.grant.id == runtime.grant.id),
        LedgerFact::None | LedgerFact::Unreadable { .. } => false,
    };
    if runtime.holding == Holding::Released && !released {
        broken.push("a grant is reported released before the ledger says so");
    }
    if runtime.power == Power::Off
        && !is_gone(facts)
        && facts.live().is_some_and(|live| live.metadata.is_some())
    {
        let foreign = plan.waits.iter().any(|wait| wait.reason == vireo_crds::reasons::DOMAIN_NAME_TAKEN);
        if !foreign {
            broken.push("a guest that is here is reported off");
        }
    }
    broken
}
