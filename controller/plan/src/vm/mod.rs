//! Decides about one VM: its spec, its disks, its host, its end.

pub(crate) mod conditions;
mod delete;
pub(crate) mod fault;
mod grant;
pub(crate) mod references;
mod state;
pub(crate) mod validate;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use vireo_crds::{
    condition::{self, ConditionValue, kind},
    meta, power, reasons,
    v1alpha1::{Disk, DiskSpec, Placement, Resources, VirtualMachine},
};

use crate::{
    capacity,
    evidence::Open,
    plan::{EventType, Plan, WaitFor},
    session,
    step::{FreshRead, Kind, ObjectRef, Step},
    world::World,
};
use conditions::{Pen, Said};
use fault::Fault;
use grant::Ground;
use references::ValidatedVm;
use state::{Held, Over, Standing, standing};

const NO_SESSION: &str = "the controller has not begun a session yet";

/// One VM to decide about.
pub(crate) struct Case<'a> {
    pub world: &'a World,
    pub vm: &'a VirtualMachine,
    pub subject: ObjectRef,
    /// Random id that a new grant takes.
    pub fresh_id: &'a str,
}

/// What this VM is promised on its host, overhead included: for reservations.
pub fn resources_of(vm: &VirtualMachine) -> Resources {
    capacity::promised(&vm.spec)
}

/// What should be done about this VM. `fresh_id` is a random id never used before.
pub fn plan_vm(world: &World, vm: &VirtualMachine, now: Timestamp, fresh_id: &str) -> Plan {
    let _ = now;
    let mut plan = Plan::default();
    let Some(subject) = ObjectRef::of(Kind::VirtualMachine, vm) else { return plan };
    let case = Case { world, vm, subject, fresh_id };
    if vm.metadata.deletion_timestamp.is_some() {
        delete::plan(&case, &mut plan);
        return plan;
    }
    if !vm.metadata.finalizers.iter().flatten().any(|f| f == meta::FINALIZER) {
        plan.steps.push(Step::EnsureFinalizer { object: case.subject.clone() });
    }
    match references::validate(world, vm) {
        Err(faults) => refuse(&case, &faults, &mut plan),
        Ok(valid) => go_on(&case, &valid, &mut plan),
    }
    plan
}

/// Whether a VM that holds no open grant is meant to get one, or holds one: then its host is where its disks are made.
pub(crate) fn decides_for_its_disks(world: &World, vm: &VirtualMachine) -> bool {
    let Some(subject) = ObjectRef::of(Kind::VirtualMachine, vm) else { return false };
    let case = Case { world, vm, subject, fresh_id: "" };
    match standing(world, vm) {
        Standing::Held(_) => true,
        Standing::New => is_wanted(&case, None),
        Standing::Over(over) => is_wanted(&case, Some(&over)),
    }
}

/// Whether nobody runs this VM, by evidence, with the confirmations that rests on; says nothing about what the store may
/// have forgotten.
pub(crate) fn over(world: &World, vm: &VirtualMachine) -> Option<Vec<FreshRead>> {
    match standing(world, vm) {
        Standing::Held(_) => None,
        Standing::New => Some(Vec::new()),
        Standing::Over(over) => {
            Some(over.closed.into_iter().filter_map(|closed| closed.read_first).collect())
        }
    }
}

/// Whether the VM has said that it waits for a host.
pub(crate) fn is_waiting(vm: &VirtualMachine) -> bool {
    let conditions = vm.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    condition::get(conditions, kind::PLACED).is_some_and(|c| c.status == "False")
}

fn is_wanted(case: &Case<'_>, over: Option<&Over<'_>>) -> bool {
    let asked = grant::asking_start(case).is_some();
    case.vm.metadata.deletion_timestamp.is_none()
        && power::wants_new_grant(case.vm.spec.run_strategy, over.and_then(|o| o.last_stop), asked)
}

/// The spec cannot be acted on: says so, leaves everything as it is.
fn refuse(case: &Case<'_>, faults: &[Fault], plan: &mut Plan) {
    for fault in faults {
        plan.refuse(fault.reason, &fault.path, fault.message.clone());
        if let Some(on) = &fault.waits_for {
            plan.wait(on.clone(), format!("{}: {}", fault.path, fault.message));
        }
    }
    let pen = conditions::pen(case.world, case.vm);
    let mut said = Said::refused(case.vm, faults, pen);
    let at = standing(case.world, case.vm);
    let over = match &at {
        Standing::New => None,
        Standing::Over(over) => Some(over),
        Standing::Held(held) => {
            if pen == Pen::Controller {
                said.own = Some(conditions::silent(&held.placement.host));
            }
            None
        }
    };
    if !matches!(at, Standing::Held(_)) && grant::adopt(case, &Ground::of(over), plan) {
        return;
    }
    if let Some(fault) = fault::leading(faults)
        && conditions::stored_reason(case.vm, kind::ACCEPTED) != Some(fault.reason)
    {
        plan.event(&case.subject, EventType::Warning, fault.reason, fault::text(faults));
    }
    conditions::write(plan, &case.subject, case.vm, conditions::stored_placement(case.vm).cloned(), said);
}

fn go_on(case: &Case<'_>, valid: &ValidatedVm<'_>, plan: &mut Plan) {
    let missing: Vec<_> = valid.disks.iter().filter(|used| used.disk.is_none()).collect();
    for used in &missing {
        let Some(template) = used.template else { continue };
        plan.steps.push(Step::CreateDisk {
            disk: Box::new(template_disk(case, used.name, &used.key.name, template)),
        });
        grant::wait_for_disk(case, &used.key.name, plan);
    }
    if !missing.is_empty() {
        return;
    }
    match standing(case.world, case.vm) {
        Standing::New => {
            let ground = Ground::of(None);
            if grant::adopt(case, &ground, plan) {
                return;
            }
            if is_wanted(case, None) {
                return grant::place(case, valid, &ground, plan);
            }
            let mut said =
                Said::accepted(ConditionValue::no(kind::PLACED, reasons::STOPPED, "stopped, as wanted"));
            said.own = Some(conditions::stopped());
            conditions::write(plan, &case.subject, case.vm, None, said);
        }
        Standing::Over(over) => {
            let ground = Ground::of(Some(&over));
            if grant::adopt(case, &ground, plan) {
                return;
            }
            if is_wanted(case, Some(&over)) {
                grant::place(case, valid, &ground, plan)
            } else {
                rest(case, &over, plan)
            }
        }
        Standing::Held(held) => hold(case, valid, &held, plan),
    }
}

/// Nobody runs it and nobody shall: takes note of the newest spec.
fn rest(case: &Case<'_>, over: &Over<'_>, plan: &mut Plan) {
    if case.world.session().is_none() {
        plan.wait(WaitFor::Session, NO_SESSION);
        return;
    }
    grant::revoke_secrets(case, plan);
    let mut said = Said::accepted(conditions::placed_on(&over.placement.host));
    let is_ready = conditions::stored_reason(case.vm, kind::READY) == Some(reasons::STOPPED);
    if conditions::pen(case.world, case.vm) == Pen::Controller && !(is_ready && is_current(case.vm)) {
        said.own = Some(conditions::stopped());
    }
    conditions::write(plan, &case.subject, case.vm, Some(renewed(case, over.placement)), said);
}

fn is_current(vm: &VirtualMachine) -> bool {
    vm.status.as_ref().and_then(|s| s.observed_generation) == vm.metadata.generation
}

/// The same grants, with the newest spec accepted.
fn renewed(case: &Case<'_>, placement: &Placement) -> Placement {
    Placement { generation: case.subject.generation, ..placement.clone() }
}

/// Somebody may be running it: nothing is taken away, only what the newest spec adds is prepared.
fn hold(case: &Case<'_>, valid: &ValidatedVm<'_>, held: &Held<'_>, plan: &mut Plan) {
    let placement = held.placement;
    if case.world.session().is_none() {
        plan.wait(WaitFor::Session, NO_SESSION);
        return;
    }
    grant::claim_disks(case, valid, &placement.host, plan);
    grant::refresh_secrets(case, &placement.host, plan);
    let mut said = Said::accepted(conditions::placed_on(&placement.host));
    let attested = session::attested(case.world, case.vm);
    let other_runs = attested.running.iter().any(|c| c.grant.id != placement.id);
    if other_runs {
        let mut running = attested.running.clone();
        if !running.iter().any(|c| c.grant.id == placement.id) {
            running.push(session::HeldClaim { grant: placement.grant(), running: true });
        }
        grant::alarm(case, &running, plan);
        let hosts: Vec<_> = running.iter().map(|c| c.grant.host.as_str()).collect();
        let message =
            format!("runs on several hosts: {}; find the good copy and stop the other", hosts.join(", "));
        said.placed = ConditionValue::unknown(kind::PLACED, reasons::DOUBLE_RUN, message);
    } else if let Open::Unproven(text) = &held.why {
        wait_for_evidence(case, held, text, &mut said, plan);
    } else {
        let message = match &held.why {
            Open::Settling => {
                format!("{} has rebooted; its old Lease has to stay quiet a little longer", held.host)
            }
            Open::Silent => format!("{} holds the grant and is silent", held.host),
            Open::Held | Open::Unproven(_) => format!("{} holds the grant", held.host),
        };
        plan.wait(WaitFor::cluster_scoped(Kind::Host, &held.host), message);
    }
    if conditions::pen(case.world, case.vm) == Pen::Controller {
        said.own = Some(conditions::silent(&placement.host));
    }
    conditions::write(plan, &case.subject, case.vm, Some(renewed(case, placement)), said);
}

/// Only a person can tell whether the grant is over: says how.
fn wait_for_evidence(case: &Case<'_>, held: &Held<'_>, why: &str, said: &mut Said, plan: &mut Plan) {
    let id = &held.placement.id;
    let message = format!(
        "{why}. If the guest is down for certain, say so: kubectl annotate vvm {} -n {} {}={id}",
        case.subject.name,
        case.subject.namespace.as_deref().unwrap_or_default(),
        meta::CONFIRM_ANNOTATION,
    );
    plan.wait(WaitFor::cluster_scoped(Kind::Host, &held.host), message.clone());
    if conditions::stored_reason(case.vm, kind::PLACED) != Some(reasons::WAITING_FOR_EVIDENCE) {
        plan.event(&case.subject, EventType::Warning, reasons::WAITING_FOR_EVIDENCE, message.clone());
    }
    said.placed = ConditionValue::unknown(kind::PLACED, reasons::WAITING_FOR_EVIDENCE, message);
}

/// The Disk made from a template: owned by the VM, so that it goes when the VM goes.
fn template_disk(case: &Case<'_>, disk: &str, name: &str, spec: &DiskSpec) -> Disk {
    let owner = OwnerReference {
        api_version: format!("{}/{}", meta::GROUP, meta::VERSION),
        kind: Kind::VirtualMachine.as_str().into(),
        name: case.subject.name.clone(),
        uid: case.subject.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    };
    let labels = [(meta::VM_LABEL, case.subject.name.as_str()), (meta::TEMPLATE_DISK_LABEL, disk)];
    Disk {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: case.subject.namespace.clone(),
            finalizers: Some(vec![meta::FINALIZER.into()]),
            labels: Some(labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: spec.clone(),
        status: None,
    }
}
