//! Decides when a VM that is being deleted may go: its guest is down for certain, and its claims are given back.

use vireo_crds::{condition::kind, meta, reasons};

use super::{
    Case,
    conditions::{self, Said},
    grant::{self, Ground},
    state::{Standing, standing},
};
use crate::{
    disk,
    evidence::Open,
    guard::{Guard, stands},
    plan::{EventType, Plan, WaitFor},
    session,
    step::{Kind, Step},
};

/// What a VM that is being deleted needs next.
pub(crate) fn plan(case: &Case<'_>, plan: &mut Plan) {
    let held_by_us = case.vm.metadata.finalizers.iter().flatten().any(|f| f == meta::FINALIZER);
    if !held_by_us {
        return;
    }
    if case.world.is_terminating(Kind::VirtualMachine) {
        plan.refuse(
            reasons::DELETING,
            "",
            "the definition of VirtualMachines is being deleted: no deletion of one is obeyed",
        );
        return;
    }
    let over = match standing(case.world, case.vm) {
        Standing::New => None,
        Standing::Over(over) => Some(over),
        Standing::Held(_) if !stands(Guard::DeletionWaits) => None,
        Standing::Held(held) => return wait_for_host(case, &held.host, &held.why, held.placement, plan),
    };
    let ground = Ground::of(over.as_ref());
    if grant::adopt(case, &ground, plan) {
        return;
    }
    let passage = match session::barrier(case.world, case.vm) {
        Ok(passage) => passage,
        Err(blocked) => return grant::say_blocked(case, &blocked, &ground, plan),
    };
    let reads = ground.reads(&passage);
    for key in case.world.disks_claimed_by(&case.subject.uid) {
        let Some(found) = case.world.disk(key) else { continue };
        let mut draft = disk::Draft::of(case.world, found);
        draft.unclaim(&case.subject.uid, &reads);
        plan.steps.extend(draft.step());
    }
    plan.steps.push(Step::RemoveFinalizer { object: case.subject.clone(), read_first: reads });
}

fn wait_for_host(
    case: &Case<'_>,
    host: &str,
    why: &Open,
    placement: &vireo_crds::v1alpha1::Placement,
    plan: &mut Plan,
) {
    let confirm = format!(
        "if it is down for certain, say so: kubectl annotate vvm {} -n {} {}={}",
        case.subject.name,
        case.subject.namespace.as_deref().unwrap_or_default(),
        meta::CONFIRM_ANNOTATION,
        placement.id
    );
    let message = match why {
        Open::Held => format!("{host} is stopping the guest"),
        Open::Settling => format!("{host} has rebooted; its old Lease has to stay quiet a little longer"),
        Open::Silent => format!("deletion waits for {host}, which is silent; {confirm}"),
        Open::Unproven(text) => format!("deletion waits: {text}; {confirm}"),
    };
    plan.wait(WaitFor::cluster_scoped(Kind::Host, host), message.clone());
    let mut said = Said::accepted(conditions::placed_on(&placement.host));
    match why {
        Open::Held | Open::Settling => {}
        Open::Silent | Open::Unproven(_) => {
            said.placed = vireo_crds::condition::ConditionValue::unknown(
                kind::PLACED,
                reasons::WAITING_FOR_EVIDENCE,
                message.clone(),
            );
            if conditions::stored_reason(case.vm, kind::PLACED) != Some(reasons::WAITING_FOR_EVIDENCE) {
                plan.event(&case.subject, EventType::Warning, reasons::WAITING_FOR_EVIDENCE, message);
            }
        }
    }
    if conditions::pen(case.world, case.vm) == conditions::Pen::Controller {
        said.own = Some(conditions::silent(&placement.host));
    }
    conditions::write(plan, &case.subject, case.vm, Some(placement.clone()), said);
}
