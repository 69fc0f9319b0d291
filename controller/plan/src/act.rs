//! Decides about one act: who carries it out, that it is carried out once, and when its record goes.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use vireo_crds::{
    condition::{ConditionValue, kind},
    power, reasons,
    v1alpha1::{
        Act, ActPhase, Placement, Power, RunStrategy, VirtualMachine, VirtualMachineAction,
        VirtualMachineActionStatus,
    },
};

use crate::{
    conditions,
    evidence::{self, Role},
    plan::{Plan, WaitFor},
    step::{ActStatusApply, Kind, ObjectRef, Step},
    world::{Key, World},
};

const BEING_STARTED: &str = "the VM has a host and is being started";

/// What an act comes to.
enum Outcome {
    /// Not yet; the text says what it waits for.
    Waits(String),
    /// A start whose VM has this grant.
    Starting(Placement),
    /// Carried out by this host under this grant from now on.
    GoesTo(Placement),
    /// Nothing is left to do.
    Succeeded(String),
    /// It will not be done.
    Failed(String),
}

/// What should be done about this act.
pub fn plan_act(world: &World, act: &VirtualMachineAction, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(subject) = ObjectRef::of(Kind::VirtualMachineAction, act) else { return plan };
    if act.metadata.deletion_timestamp.is_some() || world.is_terminating(Kind::VirtualMachineAction) {
        return plan;
    }
    let empty = VirtualMachineActionStatus::default();
    let status = act.status.as_ref().unwrap_or(&empty);
    if status.phase.is_some_and(ActPhase::is_final) {
        forget(act, status, &subject, now, &mut plan);
        return plan;
    }
    let key = Key::new(subject.namespace.as_deref().unwrap_or_default(), &act.spec.vm);
    plan.wait(WaitFor::namespaced(Kind::VirtualMachine, &key.namespace, &key.name), "the state of the VM");
    let vm = world.vm(&key).map(AsRef::as_ref);
    let outcome = match (act.spec.act(), vm) {
        (None, _) => Outcome::Failed(
            "an act is exactly one of start, stop, restart, reset, pause, resume and nmi".into(),
        ),
        (Some(_), None) => match status.vm_uid {
            None => Outcome::Waits(format!("VirtualMachine {} does not exist", act.spec.vm)),
            Some(_) => Outcome::Failed(format!("VirtualMachine {} is gone", act.spec.vm)),
        },
        (Some(_), Some(vm)) if is_another(act, status, vm) => Outcome::Failed(format!(
            "VirtualMachine {} is another one than the one this act is for",
            act.spec.vm
        )),
        (Some(Act::Start), Some(vm)) => start(world, status, vm),
        (Some(what), Some(vm)) if status.host.is_none() => hand_over(world, what, vm),
        (Some(what), Some(vm)) => match carried_on(world, what, status, vm) {
            Some(outcome) => outcome,
            None => return plan,
        },
    };
    plan.steps.extend(write(act, status, &subject, vm, outcome, now));
    plan
}

/// The step that says that a start act has got its grant.
pub(crate) fn running(act: &VirtualMachineAction, vm: &VirtualMachine, grant_id: &str) -> Option<Step> {
    let subject = ObjectRef::of(Kind::VirtualMachineAction, act)?;
    let apply = ActStatusApply {
        grant_id: Some(grant_id.into()),
        phase: Some(ActPhase::Running),
        ..pending(act, vm.metadata.uid.clone(), BEING_STARTED)
    };
    Some(Step::SetActStatus { act: subject, status: Box::new(apply) })
}

/// Deletes the record once its time is over.
fn forget(
    act: &VirtualMachineAction,
    status: &VirtualMachineActionStatus,
    subject: &ObjectRef,
    now: Timestamp,
    plan: &mut Plan,
) {
    let ended =
        status.completed_at.as_ref().or(act.metadata.creation_timestamp.as_ref()).map_or(now, |t| t.0);
    let ttl = SignedDuration::from_secs(act.spec.ttl_seconds_after_finished.max(0));
    match ended.checked_add(ttl) {
        Ok(due) if due <= now => plan.steps.push(Step::DeleteAct { act: subject.clone() }),
        Ok(due) => plan.wake_at(due),
        Err(_) => {}
    }
}

fn is_another(act: &VirtualMachineAction, status: &VirtualMachineActionStatus, vm: &VirtualMachine) -> bool {
    let uid = vm.metadata.uid.as_deref();
    [act.spec.vm_uid.as_deref(), status.vm_uid.as_deref()]
        .into_iter()
        .flatten()
        .any(|meant| Some(meant) != uid)
}

fn open_placement<'a>(world: &World, vm: &'a VirtualMachine) -> Option<&'a Placement> {
    let placement = vm.status.as_ref()?.placement.as_ref()?;
    evidence::closed(world, vm, Role::Holder, &placement.grant()).is_err().then_some(placement)
}

fn power_of(vm: &VirtualMachine, placement: &Placement) -> Option<Power> {
    let runtime = vm.status.as_ref()?.runtime.as_ref()?;
    runtime.grant.names(&placement.grant()).then_some(runtime.power)
}

/// A start is the controller's own: the grant is the wish to run.
fn start(world: &World, status: &VirtualMachineActionStatus, vm: &VirtualMachine) -> Outcome {
    if vm.metadata.deletion_timestamp.is_some() {
        return Outcome::Failed("the VirtualMachine is being deleted".into());
    }
    if vm.spec.run_strategy == RunStrategy::Halted {
        return Outcome::Failed(
            "runStrategy is Halted: set it to Manual, RerunOnFailure or Always to start the VM".into(),
        );
    }
    match (open_placement(world, vm), &status.grant_id) {
        (Some(placement), _) if power_of(vm, placement) == Some(Power::On) => {
            Outcome::Succeeded(format!("runs on {}", placement.host))
        }
        (Some(placement), _) => Outcome::Starting(placement.clone()),
        (None, Some(_)) => {
            let why = crate::vm::conditions::stored_reason(vm, kind::RUNNING).unwrap_or_default();
            let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
            Outcome::Failed(format!("the VM went down before it was up{why}: see its Running condition"))
        }
        (None, None) if power::wants_new_grant(vm.spec.run_strategy, None, true) => {
            Outcome::Waits("waits for a host".into())
        }
        (None, None) => Outcome::Failed("the run strategy of the VM forbids it".into()),
    }
}

/// Names the host that carries the act out, or ends it at once.
fn hand_over(world: &World, what: Act, vm: &VirtualMachine) -> Outcome {
    let strategy = vm.spec.run_strategy;
    if what == Act::Stop && strategy == RunStrategy::Always {
        return Outcome::Failed("runStrategy is Always: set it to Halted to stop the VM".into());
    }
    match open_placement(world, vm) {
        Some(placement) => Outcome::GoesTo(placement.clone()),
        None if what == Act::Stop => Outcome::Succeeded("already stopped".into()),
        None => Outcome::Failed("the VM is not running".into()),
    }
}

/// An act in a host's hands is the host's, unless that life of the host is over.
fn carried_on(
    world: &World,
    what: Act,
    status: &VirtualMachineActionStatus,
    vm: &VirtualMachine,
) -> Option<Outcome> {
    let placement = vm.status.as_ref()?.placement.as_ref()?;
    let ended = if status.grant_id.as_deref() == Some(&placement.id) {
        let closed = evidence::closed(world, vm, Role::Holder, &placement.grant()).ok()?;
        !matches!(closed.evidence.kind, vireo_crds::v1alpha1::EvidenceKind::Released)
    } else {
        // Another grant has followed: the one the act was for is over.
        true
    };
    let host = status.host.as_deref().unwrap_or_default();
    ended.then(|| match what {
        Act::Stop => Outcome::Succeeded(format!("down: {host} went down meanwhile")),
        _ => Outcome::Failed(format!("{host} went down before it was done")),
    })
}

fn pending(act: &VirtualMachineAction, vm_uid: Option<String>, message: &str) -> ActStatusApply {
    ActStatusApply {
        act: act.spec.act(),
        host: None,
        vm_uid,
        grant_id: None,
        phase: Some(ActPhase::Pending),
        message: Some(message.into()),
        completed_at: None,
        conditions: vec![ConditionValue::no(kind::READY, reasons::ACT_PENDING, message)],
        observed_generation: act.metadata.generation,
    }
}

fn write(
    act: &VirtualMachineAction,
    status: &VirtualMachineActionStatus,
    subject: &ObjectRef,
    vm: Option<&VirtualMachine>,
    outcome: Outcome,
    now: Timestamp,
) -> Option<Step> {
    let vm_uid = vm.and_then(|vm| vm.metadata.uid.clone()).or_else(|| status.vm_uid.clone());
    let mut apply = match &outcome {
        Outcome::Waits(message) | Outcome::Succeeded(message) | Outcome::Failed(message) => {
            pending(act, vm_uid, message)
        }
        Outcome::Starting(_) => pending(act, vm_uid, BEING_STARTED),
        Outcome::GoesTo(placement) => pending(act, vm_uid, &format!("{} carries it out", placement.host)),
    };
    apply.host = status.host.clone();
    apply.grant_id = status.grant_id.clone();
    match outcome {
        Outcome::Waits(message) => {
            if vm.is_none() {
                apply.conditions = vec![ConditionValue::no(kind::READY, reasons::VM_NOT_FOUND, message)];
            }
        }
        Outcome::Starting(placement) => {
            apply.grant_id = Some(placement.id);
            apply.phase = Some(ActPhase::Running);
        }
        Outcome::GoesTo(placement) => {
            apply.host = Some(placement.host);
            apply.grant_id = Some(placement.id);
        }
        Outcome::Succeeded(message) => end(
            &mut apply,
            ActPhase::Succeeded,
            ConditionValue::yes(kind::READY, reasons::ACT_SUCCEEDED, message),
            now,
        ),
        Outcome::Failed(message) => {
            let stalled = ConditionValue::yes(kind::STALLED, reasons::ACT_FAILED, message.clone());
            end(
                &mut apply,
                ActPhase::Failed,
                ConditionValue::no(kind::READY, reasons::ACT_FAILED, message),
                now,
            );
            apply.conditions.push(stalled);
        }
    }
    let same = status.act == apply.act
        && status.host == apply.host
        && status.vm_uid == apply.vm_uid
        && status.grant_id == apply.grant_id
        && status.phase == apply.phase
        && status.message == apply.message
        && status.observed_generation == apply.observed_generation
        && !conditions::differ(&act.metadata, &status.conditions, &apply.conditions);
    (!same).then(|| Step::SetActStatus { act: subject.clone(), status: Box::new(apply) })
}

fn end(apply: &mut ActStatusApply, phase: ActPhase, ready: ConditionValue, now: Timestamp) {
    apply.phase = Some(phase);
    apply.completed_at = Some(Time(now));
    apply.conditions = vec![ready];
}
