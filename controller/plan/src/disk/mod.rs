//! Decides about one Disk: which host works on it, who may attach it, when its volume is removed.

mod draft;
mod host;
mod validate;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use vireo_crds::{
    condition::{ConditionValue, kind},
    meta, reasons,
    v1alpha1::{Attachment, Disk, DiskPhase, ReclaimPolicy, VirtualMachine},
};

use crate::{
    guard::{Guard, stands},
    host::liveness::Freshness,
    plan::{EventType, Plan, WaitFor},
    session,
    step::{FreshRead, Kind, ObjectRef, Step},
    vm::{self, fault, validate::disk_names},
    world::{Key, World},
};

pub(crate) use draft::Draft;
pub(crate) use validate::spec_faults;

/// The VM that owns this Disk, if one does.
pub(crate) fn owner(disk: &Disk) -> Option<&OwnerReference> {
    disk.metadata
        .owner_references
        .iter()
        .flatten()
        .find(|o| o.kind == Kind::VirtualMachine.as_str() && o.controller == Some(true))
}

/// What should be done about this Disk.
pub fn plan_disk(world: &World, disk: &Disk, now: Timestamp) -> Plan {
    let _ = now;
    let mut plan = Plan::default();
    let Some(subject) = ObjectRef::of(Kind::Disk, disk) else { return plan };
    if disk.metadata.deletion_timestamp.is_some() {
        delete(world, disk, &subject, &mut plan);
        return plan;
    }
    if !disk.metadata.finalizers.iter().flatten().any(|f| f == meta::FINALIZER) {
        plan.steps.push(Step::EnsureFinalizer { object: subject.clone() });
    }
    let mut draft = Draft::of(world, disk);
    let claims = disk.status.as_ref().map(|s| s.attachments.clone()).unwrap_or_default();
    for claim in &claims {
        if let Some(reads) = stale(world, disk, claim) {
            draft.unclaim(&claim.vm_uid, &reads);
        }
    }
    let faults = validate::faults(world, disk);
    if let Some(fault) = fault::leading(&faults) {
        for fault in &faults {
            plan.refuse(fault.reason, &fault.path, fault.message.clone());
            if let Some(on) = &fault.waits_for {
                plan.wait(on.clone(), fault.message.clone());
            }
        }
        if draft.stored_reason(kind::ACCEPTED) != Some(fault.reason) {
            plan.event(&subject, EventType::Warning, fault.reason, fault::text(&faults));
        }
        draft.refused(&faults);
    } else if find_host(world, disk, &mut draft, &mut plan) == Next::TheVm {
        plan.steps.extend(draft.step());
        return plan;
    }
    plan.steps.extend(draft.step_if_different());
    plan
}

/// Who has something to say about a Disk next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// We, if there is anything.
    Us,
    /// The VM's own plan, in a moment: it claims the Disk and names the host in one write, and would collide with ours.
    TheVm,
}

/// Names a working host where there is work and none, or one that is silent.
fn find_host(world: &World, disk: &Disk, draft: &mut Draft<'_>, plan: &mut Plan) -> Next {
    let present = disk.status.as_ref().and_then(|s| s.placement.as_ref()).map(|p| p.host.as_str());
    if let Some(present) = present {
        let is_gone = world.host(present).is_none() || world.freshness(present) == Freshness::Silent;
        if !is_gone || !has_work(disk) {
            return Next::Us;
        }
    } else if let Some(key) = vm_that_decides(world, disk) {
        let message = format!("waits for VirtualMachine {} to get a host", key.name);
        plan.wait(WaitFor::namespaced(Kind::VirtualMachine, &key.namespace, &key.name), message.clone());
        // Said only if that takes time: usually the VM's own plan names the host a moment later.
        if !world.vm(&key).is_some_and(|vm| vm::is_waiting(vm)) {
            return Next::TheVm;
        }
        draft.waits(reasons::WAITING_FOR_HOST, &message);
        return Next::Us;
    }
    match host::choose(world, disk) {
        Ok(host) => draft.work_on(host),
        Err(why) => {
            plan.wait(WaitFor::AnyHost, why.clone());
            plan.wait(WaitFor::cluster_scoped(Kind::StorageDomain, &disk.spec.storage_domain), why.clone());
            if present.is_none() {
                draft.waits(reasons::WAITING_FOR_HOST, &why);
            }
        }
    }
    Next::Us
}

/// Whether anything is left to do for a host.
fn has_work(disk: &Disk) -> bool {
    let Some(status) = &disk.status else { return true };
    status.phase != Some(DiskPhase::Ready) || status.observed_generation != disk.metadata.generation
}

/// The VM whose own placement names the working host: the owner, or a user of a volume that lies on one host.
fn vm_that_decides(world: &World, disk: &Disk) -> Option<Key> {
    let own = Key::of(disk);
    let shared = world.domain(&disk.spec.storage_domain).is_some_and(|d| d.spec.directory.shared);
    let owner = owner(disk).map(|o| o.uid.as_str());
    let decides = |vm: &VirtualMachine| {
        let is_owner = vm.metadata.uid.as_deref() == owner && owner.is_some();
        (is_owner || !shared) && vm::decides_for_its_disks(world, vm)
    };
    let mut users = world.vms_using_disk(&own).filter_map(|key| world.vm(key));
    users.find(|vm| decides(vm)).map(|vm| Key::of(vm.as_ref()))
}

/// Whether a claim has outlived its reason, with the confirmations that rests on: its VM no longer names the Disk and no
/// guest can still have it open, or its VM vanished and every host has said that it does not run it.
fn stale(world: &World, disk: &Disk, claim: &Attachment) -> Option<Vec<FreshRead>> {
    let Some(vm) = world.vm_by_uid(&claim.vm_uid) else { return vanished(world, &claim.vm_uid) };
    let name = disk.metadata.name.as_deref().unwrap_or_default();
    if vm.metadata.deletion_timestamp.is_some() || disk_names(vm).iter().any(|used| used == name) {
        return None;
    }
    if guest_lets_go(vm) { Some(Vec::new()) } else { vm::over(world, vm) }
}

/// Whether the running guest was built from the newest spec, so that it has only what that names.
fn guest_lets_go(vm: &VirtualMachine) -> bool {
    let Some(status) = &vm.status else { return true };
    let (Some(placement), Some(runtime)) = (&status.placement, &status.runtime) else { return false };
    runtime.grant.names(&placement.grant())
        && runtime.generation.is_some()
        && runtime.generation == vm.metadata.generation
        && runtime.pending_changes.is_empty()
}

/// Whether a VM that is no longer in the store runs nowhere, as every host attests or somebody confirmed.
fn vanished(world: &World, vm_uid: &str) -> Option<Vec<FreshRead>> {
    let is_orphan = |host: &vireo_crds::v1alpha1::Host| {
        host.status.iter().flat_map(|s| &s.domains).any(|domain| domain.vm_uid == vm_uid)
    };
    let passage = session::all_attested(world).ok()?;
    let nowhere = !world.undecodable(Kind::VirtualMachine).any(|o| o.uid == vm_uid)
        && world.hosts_claiming(vm_uid).next().is_none()
        && !world.hosts().any(|(_, host)| is_orphan(host));
    nowhere.then_some(passage.read_first)
}

fn delete(world: &World, disk: &Disk, subject: &ObjectRef, plan: &mut Plan) {
    if !disk.metadata.finalizers.iter().flatten().any(|f| f == meta::FINALIZER) {
        return;
    }
    if world.is_terminating(Kind::Disk) {
        plan.refuse(
            reasons::DELETING,
            "",
            "the definition of Disks is being deleted: no deletion of one is obeyed",
        );
        return;
    }
    let status = disk.status.clone().unwrap_or_default();
    let mut draft = Draft::of(world, disk);
    let reads = match may_remove(world, disk, &status.attachments) {
        Ok(reads) => reads,
        Err((on, message)) => {
            plan.wait(on, message.clone());
            draft.deleting(&message);
            plan.steps.extend(draft.step_if_different());
            return;
        }
    };
    let domain_gone = world.domain(&disk.spec.storage_domain).is_none();
    let stays = !matches!(disk.spec.reclaim_policy, ReclaimPolicy::Delete);
    if status.placement.is_none() || status.phase == Some(DiskPhase::Removed) || (domain_gone && stays) {
        plan.steps.push(Step::RemoveFinalizer { object: subject.clone(), read_first: reads });
        return;
    }
    for claim in &status.attachments {
        draft.unclaim(&claim.vm_uid, &reads);
    }
    let present = status.placement.as_ref().map(|p| p.host.as_str()).unwrap_or_default();
    let lives = world.host(present).is_some() && world.freshness(present) != Freshness::Silent;
    if !lives {
        match host::choose(world, disk) {
            Ok(host) => draft.work_on(host),
            Err(why) => {
                let message =
                    format!("the volume cannot be removed: {why}; or set reclaimPolicy: Retain to leave it");
                plan.wait(WaitFor::AnyHost, message.clone());
                draft.deleting(&message);
                plan.steps.extend(draft.step_if_different());
                return;
            }
        }
    }
    draft.remove(&reads);
    plan.steps.extend(draft.step_if_different());
}

/// Whether nothing can use the volume any more, with the confirmations that rests on; else what that waits for.
fn may_remove(
    world: &World,
    disk: &Disk,
    claims: &[Attachment],
) -> Result<Vec<FreshRead>, (WaitFor, String)> {
    let mut reads = Vec::new();
    if !stands(Guard::DiskRelease) {
        return Ok(reads);
    }
    for claim in claims {
        let on = || WaitFor::Object {
            kind: Kind::VirtualMachine,
            namespace: disk.metadata.namespace.clone(),
            name: claim.vm.clone(),
        };
        let Some(vm) = world.vm_by_uid(&claim.vm_uid) else {
            let message = || {
                format!(
                    "VirtualMachine {} is gone, but not every host has said that it does not run it",
                    claim.vm
                )
            };
            let rests_on = vanished(world, &claim.vm_uid).ok_or_else(|| (WaitFor::AnyHost, message()))?;
            reads.extend(rests_on);
            continue;
        };
        let Some(rests_on) = vm::over(world, vm) else {
            return Err((on(), format!("VirtualMachine {} still uses it", claim.vm)));
        };
        let passage = session::barrier(world, vm).map_err(|blocked| (WaitFor::AnyHost, blocked.message()))?;
        reads.extend(rests_on);
        reads.extend(passage.read_first);
    }
    let is_young = world
        .session()
        .is_some_and(|s| disk.metadata.uid.as_deref().is_some_and(|uid| s.is_younger_than(uid)));
    if is_young {
        return Ok(reads);
    }
    if claims.is_empty() {
        let passage = session::all_attested(world).map_err(|blocked| {
            let on = if blocked == session::Blocked::NoSession { WaitFor::Session } else { WaitFor::AnyHost };
            (on, blocked.message())
        })?;
        reads.extend(passage.read_first);
    }
    match forgotten_user(world, disk, claims, &mut reads) {
        Some(user) => Err(user),
        None => Ok(reads),
    }
}

/// Who may have the volume open although the store names no claim of his: a restored store may have forgotten the claim
/// together with the grant, or with the edit that asked for it. `reads` takes the confirmations that "nobody" rests on.
fn forgotten_user(
    world: &World,
    disk: &Disk,
    claims: &[Attachment],
    reads: &mut Vec<FreshRead>,
) -> Option<(WaitFor, String)> {
    let namespace = disk.metadata.namespace.as_deref().unwrap_or_default();
    let is_claimed = |uid: &str| claims.iter().any(|claim| claim.vm_uid == uid);
    let on = |vm: &VirtualMachine| {
        let key = Key::of(vm);
        WaitFor::namespaced(Kind::VirtualMachine, &key.namespace, &key.name)
    };
    let vms = world.vms().filter(|vm| vm.metadata.namespace.as_deref() == Some(namespace));
    for vm in vms.filter(|vm| vm.metadata.uid.as_deref().is_some_and(|uid| !is_claimed(uid))) {
        let name = vm.metadata.name.as_deref().unwrap_or_default();
        if let Some(held) = session::attested(world, vm).unexplained.first() {
            let host = &held.grant.host;
            let message =
                format!("VirtualMachine {name} runs on {host} under a grant that the store does not know");
            return Some((on(vm), message));
        }
        let names =
            disk.metadata.name.as_ref().is_some_and(|disk| disk_names(vm).iter().any(|used| used == disk));
        match vm::over(world, vm) {
            Some(rests_on) => reads.extend(rests_on),
            None if names || !has_only_its_own(vm) => {
                return Some((on(vm), format!("VirtualMachine {name} runs and may still use it")));
            }
            None => {}
        }
    }
    let unknown = |uid: &str| world.vm_by_uid(uid).is_none() && !is_claimed(uid);
    world.hosts().find_map(|(host, _)| {
        let claims = &world.attestation(host)?.claims;
        let claim = claims.iter().find(|claim| {
            session::is_open(claim)
                && (claim.namespace == namespace || claim.namespace.is_empty())
                && unknown(&claim.vm_uid)
        })?;
        let message =
            format!("a guest that no VirtualMachine explains (uid {}) runs on {host}", claim.vm_uid);
        Some((WaitFor::cluster_scoped(Kind::Host, host), message))
    })
}

/// Whether the running guest says, in this very report, that it has no disk but those its newest spec names.
fn has_only_its_own(vm: &VirtualMachine) -> bool {
    let Some(status) = &vm.status else { return false };
    let (Some(placement), Some(runtime)) = (&status.placement, &status.runtime) else { return false };
    runtime.grant.names(&placement.grant())
        && runtime.generation.is_some()
        && runtime.generation == vm.metadata.generation
        && !runtime.pending_changes.iter().any(|change| change.path.starts_with("spec.disks"))
}

/// `Ready` for a Disk that a host has just been named for.
fn to_be_made(host: &str) -> ConditionValue {
    ConditionValue::no(kind::READY, reasons::PLACED, format!("{host} is about to work on it"))
}
