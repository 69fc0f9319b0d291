//! Decides on grants: a new one for a VM that nobody runs and that is meant to run, or the adoption of one that a
//! host holds and the store has forgotten.

use vireo_crds::{
    condition::{ConditionValue, kind},
    reasons,
    v1alpha1::{Act, ActPhase, Evidence, Grant, Placement, VirtualMachineAction, VmState},
};

use super::{
    Case,
    conditions::{self, Pen, Said},
    references::{ValidatedVm, secrets},
    state::Over,
};
use crate::{
    act, disk, placement,
    plan::{EventType, Plan, WaitFor},
    session::{self, Blocked, Passage},
    step::{FreshRead, Kind, ObjectRef, Step},
};

/// What a new grant stands on.
pub(crate) struct Ground<'a> {
    /// The placement before it.
    pub before: Option<&'a Placement>,
    evidence: Vec<Evidence>,
    read_first: Vec<FreshRead>,
}

impl<'a> Ground<'a> {
    /// Of a VM that never had a grant, or whose grants are all over.
    pub fn of(over: Option<&Over<'a>>) -> Self {
        let closed = over.map(|o| o.closed.as_slice()).unwrap_or_default();
        Self {
            before: over.map(|o| o.placement),
            evidence: closed.iter().map(|c| c.evidence.clone()).collect(),
            read_first: closed.iter().filter_map(|c| c.read_first.clone()).collect(),
        }
    }

    /// What has to be read once more: the confirmations it stands on and those that let us pass.
    pub fn reads(&self, passage: &Passage<'_>) -> Vec<FreshRead> {
        let mut reads = self.read_first.clone();
        reads.extend(passage.read_first.iter().filter(|read| !self.read_first.contains(read)).cloned());
        reads
    }

    /// A placement of `grant` on this ground.
    fn placement(&self, grant: Grant, generation: i64, highest_epoch: i64) -> Placement {
        Placement {
            last_epoch: grant.epoch.max(highest_epoch).max(self.before.map_or(0, |p| p.last_epoch)),
            host: grant.host,
            incarnation: grant.incarnation,
            epoch: grant.epoch,
            id: grant.id,
            generation,
            evidence: self.evidence.clone(),
            target: None,
        }
    }
}

/// Gives the VM a host: claims its disks, lets the host read its Secrets, then writes the grant.
pub(crate) fn place(case: &Case<'_>, valid: &ValidatedVm<'_>, ground: &Ground<'_>, plan: &mut Plan) {
    let passage = match session::barrier(case.world, case.vm) {
        Ok(passage) => passage,
        Err(blocked) => return say_blocked(case, &blocked, ground, plan),
    };
    let host = match placement::choose(case.world, case.vm, valid) {
        Ok(host) => host,
        Err(none) => {
            plan.wait(WaitFor::AnyHost, none.message.clone());
            say_waiting(case, reasons::NO_HOST_FITS, &none.message, ground, plan);
            return;
        }
    };
    let incarnation = case.world.host(host).and_then(|h| h.status.as_ref()?.incarnation.clone());
    let Some(incarnation) = incarnation else { return };

    claim_disks(case, valid, host, plan);
    grant_secrets(case, &valid.secrets, host, plan);
    let attested = session::attested(case.world, case.vm).highest_epoch;
    let last = ground.before.map_or(0, |p| p.last_epoch).max(attested);
    let grant =
        Grant { host: host.into(), incarnation, epoch: last.saturating_add(1), id: case.fresh_id.into() };
    let placement = ground.placement(grant, case.subject.generation, attested);

    let mut said = Said::accepted(conditions::placed_on(host));
    let ready = ConditionValue::no(kind::READY, reasons::PLACED, format!("{host} is about to start it"));
    said.own = Some((ready, VmState::Starting));
    let status = conditions::status(case.vm, Some(placement), said);
    plan.steps.push(Step::SetPlacement {
        vm: case.subject.clone(),
        session: passage.nonce.into(),
        read_first: ground.reads(&passage),
        status: Box::new(status),
    });
    if let Some(start) = asking_start(case) {
        plan.steps.extend(act::running(&start, case.vm, case.fresh_id));
    }
    // The first place is told by the host's own Event of the start: two would double what a boot storm writes.
    if let Some(last) = ground.before.filter(|last| last.host != host) {
        plan.event(
            &case.subject,
            EventType::Normal,
            reasons::PLACED,
            format!("placed on {host}, last on {}", last.host),
        );
    }
}

/// Claims every Disk of the VM, and names `host` as working host of those that have none.
pub(crate) fn claim_disks(case: &Case<'_>, valid: &ValidatedVm<'_>, host: &str, plan: &mut Plan) {
    for used in &valid.disks {
        let Some(found) = used.disk else { continue };
        let mut draft = disk::Draft::of(case.world, found);
        // One Disk may stand in the spec twice if both uses only read; one claim covers them.
        draft.claim(&case.subject.uid, &case.subject.name, used.read_only);
        draft.work_on_if_free(host);
        let step = draft.step();
        if !plan.steps.iter().any(|planned| Some(planned) == step.as_ref()) {
            plan.steps.extend(step);
        }
    }
}

/// Lets this host, and no other, read the Secrets the VM names.
pub(crate) fn grant_secrets(case: &Case<'_>, secrets: &[String], host: &str, plan: &mut Plan) {
    let held = case.world.secret_access(&case.subject.uid);
    if secrets.is_empty() {
        revoke_secrets(case, plan);
    } else if held.is_none_or(|held| held.host != host || held.secrets != secrets) {
        plan.steps.push(Step::EnsureSecretAccess {
            vm: case.subject.clone(),
            host: host.into(),
            secrets: secrets.to_vec(),
        });
    }
}

/// Takes the Secrets away again.
pub(crate) fn revoke_secrets(case: &Case<'_>, plan: &mut Plan) {
    if case.world.secret_access(&case.subject.uid).is_some() {
        plan.steps.push(Step::RemoveSecretAccess { vm: case.subject.clone() });
    }
}

/// The start act that asks for this VM, if one is pending.
pub(crate) fn asking_start(case: &Case<'_>) -> Option<std::sync::Arc<VirtualMachineAction>> {
    let key = crate::world::Key::of(case.vm);
    case.world.acts_on(&key).find(|act| asks_for_start(act, &case.subject)).cloned()
}

fn asks_for_start(act: &VirtualMachineAction, vm: &ObjectRef) -> bool {
    let status = act.status.as_ref();
    let is_final = status.and_then(|s| s.phase).is_some_and(ActPhase::is_final);
    let is_granted = status.is_some_and(|s| s.grant_id.is_some());
    let meant = |uid: &Option<String>| uid.as_ref().is_none_or(|uid| *uid == vm.uid);
    act.spec.act() == Some(Act::Start)
        && !is_final
        && !is_granted
        && meant(&act.spec.vm_uid)
        && meant(&status.and_then(|s| s.vm_uid.clone()))
        && act.metadata.deletion_timestamp.is_none()
}

/// Makes a grant that a host holds the placement again, once every host has been heard and the stored one is over.
/// Answers whether claims stand in the way of everything else.
pub(crate) fn adopt(case: &Case<'_>, ground: &Ground<'_>, plan: &mut Plan) -> bool {
    let attested = session::attested(case.world, case.vm);
    let Some(best) = attested.unexplained.first() else { return false };
    let passage = match session::all_attested(case.world) {
        Ok(passage) => passage,
        Err(blocked) => {
            say_blocked(case, &blocked, ground, plan);
            return true;
        }
    };
    let last = ground.before.map_or(0, |p| p.last_epoch);
    let rival =
        attested.unexplained.iter().any(|c| c.grant.epoch == best.grant.epoch && c.grant.id != best.grant.id);
    if best.grant.epoch <= last || rival {
        say_blocked(case, &Blocked::Claims(attested.unexplained), ground, plan);
        return true;
    }
    if attested.running.iter().any(|c| c.grant.id != best.grant.id) {
        alarm(case, &attested.running, plan);
    }
    let host = best.grant.host.clone();
    let generation = ground.before.map_or(0, |p| p.generation);
    let placement = ground.placement(best.grant.clone(), generation, attested.highest_epoch);
    let status = conditions::status(case.vm, Some(placement), Said::accepted(conditions::placed_on(&host)));
    plan.steps.push(Step::SetPlacement {
        vm: case.subject.clone(),
        session: passage.nonce.into(),
        read_first: ground.reads(&passage),
        status: Box::new(status),
    });
    let message = format!(
        "{host} holds grant {} (number {}), which the store had forgotten",
        best.grant.id, best.grant.epoch
    );
    plan.event(&case.subject, EventType::Warning, reasons::ADOPTED, message);
    true
}

/// Tells everybody that two hosts say they run this VM; stops nothing.
pub(crate) fn alarm(case: &Case<'_>, running: &[session::HeldClaim], plan: &mut Plan) {
    let each: Vec<_> =
        running.iter().map(|c| format!("{} (number {})", c.grant.host, c.grant.epoch)).collect();
    let message = format!(
        "runs on several hosts: {}. Nothing is stopped by itself: find the good copy and stop the other",
        each.join(", ")
    );
    plan.refuse(reasons::DOUBLE_RUN, "", message.clone());
    if conditions::stored_reason(case.vm, kind::PLACED) != Some(reasons::DOUBLE_RUN) {
        plan.event(&case.subject, EventType::Warning, reasons::DOUBLE_RUN, message);
    }
}

/// Says that the session barrier stands in the way.
pub(crate) fn say_blocked(case: &Case<'_>, blocked: &Blocked, ground: &Ground<'_>, plan: &mut Plan) {
    blocked.wait(plan);
    match blocked {
        // It begins in a moment; a write for that would be noise.
        Blocked::NoSession => {}
        Blocked::Hosts(_) => {
            say_waiting(case, reasons::ATTESTATION_PENDING, &blocked.message(), ground, plan)
        }
        Blocked::Claims(_) => say_waiting(case, reasons::CLAIM_CONFLICT, &blocked.message(), ground, plan),
    }
}

/// Says what the VM waits for, with an Event if that is news.
pub(crate) fn say_waiting(
    case: &Case<'_>,
    reason: &'static str,
    message: &str,
    ground: &Ground<'_>,
    plan: &mut Plan,
) {
    let pen: Pen = conditions::pen(case.world, case.vm);
    let said = Said::waiting(reason, message, pen);
    conditions::write(plan, &case.subject, case.vm, ground.before.cloned(), said);
    if conditions::stored_reason(case.vm, kind::PLACED) != Some(reason) {
        plan.event(&case.subject, EventType::Warning, reason, message);
    }
}

/// Whether the Secrets readable for the VM are those its spec names, for its host.
pub(crate) fn refresh_secrets(case: &Case<'_>, host: &str, plan: &mut Plan) {
    grant_secrets(case, &secrets(case.vm), host, plan);
}

/// What a waiting VM waits for, if that is an object.
pub(crate) fn wait_for_disk(case: &Case<'_>, name: &str, plan: &mut Plan) {
    let namespace = case.subject.namespace.as_deref().unwrap_or_default();
    plan.wait(WaitFor::namespaced(Kind::Disk, namespace, name), format!("Disk {name} is being made"));
}
