//! Decides what the controller says about a VM: `Accepted` and `Placed` always, the rest while it holds the pen.

use vireo_crds::{
    condition::{self, ConditionValue, kind},
    reasons,
    v1alpha1::{Placement, VirtualMachine, VmState, VmSummary},
};

use super::fault::{self, Fault};
use crate::{
    conditions,
    host::liveness::Freshness,
    plan::Plan,
    step::{ObjectRef, Step, VmStatusApply},
    world::World,
};

/// Who writes `Ready`, `state`, `summary` and `observedGeneration`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pen {
    /// The controller: the VM has no host, or its host is silent.
    Controller,
    /// The daemon of the host its placement names.
    Daemon,
}

/// Who holds the pen for this VM.
pub(crate) fn pen(world: &World, vm: &VirtualMachine) -> Pen {
    let Some(placement) = vm.status.as_ref().and_then(|s| s.placement.as_ref()) else {
        return Pen::Controller;
    };
    let controller = match world.freshness(&placement.host) {
        Freshness::Silent => true,
        // A host that lives goes on writing, even if its object was deleted or cannot be decoded.
        Freshness::Fresh => false,
        Freshness::NotYetKnown => world.host(&placement.host).is_none(),
    };
    if controller { Pen::Controller } else { Pen::Daemon }
}

/// What the controller has to say.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    /// Whether the newest spec is being acted on.
    pub accepted: ConditionValue,
    /// Whether the VM has a host.
    pub placed: ConditionValue,
    /// `Stalled`, while a person must act.
    pub stalled: Option<ConditionValue>,
    /// `Reconciling`, while something is waited for and the pen is ours.
    pub reconciling: Option<ConditionValue>,
    /// `Ready` and the state, if the controller speaks for the whole VM.
    pub own: Option<(ConditionValue, VmState)>,
}

impl Said {
    /// The spec is accepted; of the host, this.
    pub fn accepted(placed: ConditionValue) -> Self {
        let accepted = ConditionValue::yes(kind::ACCEPTED, reasons::ACCEPTED, "");
        Self { accepted, placed, stalled: None, reconciling: None, own: None }
    }

    /// The spec cannot be acted on.
    pub fn refused(vm: &VirtualMachine, faults: &[Fault], pen: Pen) -> Self {
        let text = fault::text(faults);
        let reason = fault::leading(faults).map_or(reasons::REFUSED, |f| f.reason);
        let waits = !faults.iter().any(|f| f.stalls);
        let placed = match stored_placement(vm) {
            Some(placement) => placed_on(&placement.host),
            None => ConditionValue::no(kind::PLACED, reason, "waits until the spec is accepted"),
        };
        let accepted = ConditionValue::no(kind::ACCEPTED, reason, text.clone());
        let mut said = Self { accepted, placed, stalled: None, reconciling: None, own: None };
        if waits {
            if pen == Pen::Controller {
                said.reconciling = Some(ConditionValue::yes(kind::RECONCILING, reason, text.clone()));
            }
        } else {
            said.stalled = Some(ConditionValue::yes(kind::STALLED, reason, text.clone()));
        }
        if pen == Pen::Controller && stored_placement(vm).is_none() {
            said.own = Some((ConditionValue::no(kind::READY, reason, text), VmState::Pending));
        }
        said
    }

    /// Something is waited for before the VM can be placed.
    pub fn waiting(reason: &str, message: &str, pen: Pen) -> Self {
        let mut said = Self::accepted(ConditionValue::no(kind::PLACED, reason, message));
        if pen == Pen::Controller {
            said.reconciling = Some(ConditionValue::yes(kind::RECONCILING, reason, message));
            said.own = Some((ConditionValue::no(kind::READY, reason, message), VmState::Pending));
        }
        said
    }
}

/// `Placed` for a VM with this host.
pub(crate) fn placed_on(host: &str) -> ConditionValue {
    ConditionValue::yes(kind::PLACED, reasons::PLACED, format!("on {host}"))
}

/// `Ready` for a VM whose host is silent.
pub(crate) fn silent(host: &str) -> (ConditionValue, VmState) {
    let message = format!(
        "{host} has not been heard of; whether the guest runs is not known. Check the host and its network"
    );
    (ConditionValue::unknown(kind::READY, reasons::HOST_SILENT, message), VmState::Unknown)
}

/// `Ready` for a VM that is down as wanted.
pub(crate) fn stopped() -> (ConditionValue, VmState) {
    (ConditionValue::yes(kind::READY, reasons::STOPPED, "stopped, as wanted"), VmState::Stopped)
}

pub(crate) fn stored_placement(vm: &VirtualMachine) -> Option<&Placement> {
    vm.status.as_ref()?.placement.as_ref()
}

/// The complete apply for what is said, with this placement.
pub(crate) fn status(vm: &VirtualMachine, placement: Option<Placement>, said: Said) -> VmStatusApply {
    let stored = vm.status.as_ref();
    let old = stored.map(|s| s.conditions.as_slice()).unwrap_or_default();
    let mut apply = VmStatusApply {
        placement,
        conditions: vec![said.accepted, said.placed],
        state: None,
        summary: None,
        observed_generation: None,
    };
    if let Some((ready, state)) = said.own {
        apply.conditions.push(ready);
        apply.state = Some(state);
        apply.summary = Some(
            stored
                .and_then(|s| s.summary.clone())
                .map_or_else(|| summary(vm), |s| VmSummary { cpu: cpu(vm), memory: memory(vm), ..s }),
        );
        apply.observed_generation = vm.metadata.generation;
    } else if let Some(ready) = conditions::carried_ready(&vm.metadata, old) {
        // Until the daemon has taken them over, leaving them out would delete them.
        apply.conditions.push(ready);
        apply.state = stored.and_then(|s| s.state);
        apply.summary = stored.and_then(|s| s.summary.clone());
        apply.observed_generation = stored.and_then(|s| s.observed_generation);
    }
    apply.conditions.extend(said.reconciling);
    // A Stalled of the host's own stays the host's: both may have something to say, and only one can stand there.
    let others = condition::get(old, kind::STALLED).is_some_and(|c| !conditions::is_ours(&vm.metadata, c));
    apply.conditions.extend(said.stalled.filter(|_| !others));
    apply
}

fn cpu(vm: &VirtualMachine) -> String {
    vm.spec.cpu.vcpus().to_string()
}

fn memory(vm: &VirtualMachine) -> String {
    vm.spec.memory.size.0.chars().take(32).collect()
}

/// Columns as the spec has them.
fn summary(vm: &VirtualMachine) -> VmSummary {
    VmSummary { cpu: cpu(vm), memory: memory(vm), ip: None, guest_os: None }
}

/// Whether applying this would change what is stored.
pub(crate) fn differs(vm: &VirtualMachine, apply: &VmStatusApply) -> bool {
    let empty = Default::default();
    let stored = vm.status.as_ref().unwrap_or(&empty);
    apply.placement != stored.placement
        || conditions::differ(&vm.metadata, &stored.conditions, &apply.conditions)
        || (apply.state.is_some() && apply.state != stored.state)
        || (apply.summary.is_some() && apply.summary != stored.summary)
        || (apply.observed_generation.is_some() && apply.observed_generation != stored.observed_generation)
}

/// Plans a write of what is said if it changes anything; the grants stay as they are.
pub(crate) fn write(
    plan: &mut Plan,
    subject: &ObjectRef,
    vm: &VirtualMachine,
    placement: Option<Placement>,
    said: Said,
) {
    let apply = status(vm, placement, said);
    if differs(vm, &apply) {
        plan.steps.push(Step::SetVmStatus { vm: subject.clone(), status: Box::new(apply) });
    }
}

/// Reason of a stored condition, to tell news from repetition.
pub(crate) fn stored_reason<'a>(vm: &'a VirtualMachine, type_: &str) -> Option<&'a str> {
    condition::get(vm.status.as_ref().map(|s| s.conditions.as_slice())?, type_).map(|c| c.reason.as_str())
}
