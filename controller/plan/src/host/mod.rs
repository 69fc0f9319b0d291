//! Decides about one Host: its rights, what is said of it, when it may go.

pub mod liveness;

use jiff::{SignedDuration, Timestamp};
use vireo_crds::{
    condition::{self, ConditionValue, kind},
    meta, reasons,
    v1alpha1::{CpuBaseline, Host, HostStatus, HostSummary, Resources},
};

use crate::{
    capacity::{capacity, human},
    conditions, evidence,
    plan::{EventType, Plan, WaitFor},
    step::{HostStatusApply, Kind, ObjectRef, Step},
    world::World,
};
use liveness::{Freshness, HostLiveness};

/// Numbers in columns move at most this often.
pub(crate) const SUMMARY_INTERVAL: SignedDuration = SignedDuration::from_secs(10);

/// The incarnation of this host that somebody confirmed in writing to be over, if one did.
pub(crate) fn confirmed_over(host: &Host) -> Option<&String> {
    host.metadata.annotations.as_ref()?.get(meta::CONFIRM_ANNOTATION)
}

/// What should be done about this Host.
pub fn plan_host(world: &World, host: &Host, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(subject) = ObjectRef::of(Kind::Host, host) else { return plan };
    let has_finalizer = host.metadata.finalizers.iter().flatten().any(|f| f == meta::FINALIZER);
    if host.metadata.deletion_timestamp.is_some() {
        if has_finalizer {
            delete(world, host, &subject, now, &mut plan);
        }
        return plan;
    }
    if !has_finalizer {
        plan.steps.push(Step::EnsureFinalizer { object: subject.clone() });
    }
    if !world.has_host_access(&subject.name) {
        plan.steps.push(Step::EnsureHostAccess { host: subject.clone() });
    }
    say(world, host, &subject, None, now, &mut plan);
    plan
}

/// A Host stays as long as a placement on it is not known to be over: its reports are what could show it.
fn delete(world: &World, host: &Host, subject: &ObjectRef, now: Timestamp, plan: &mut Plan) {
    if world.is_terminating(Kind::Host) {
        plan.refuse(
            reasons::DELETING,
            "",
            "the definition of Hosts is being deleted: no deletion of one is obeyed",
        );
        return;
    }
    let holds = |key: &&crate::world::Key| {
        let vm = world.vm(key);
        vm.is_some_and(|vm| {
            let placement = vm.status.as_ref().and_then(|s| s.placement.as_ref());
            placement.is_some_and(|p| {
                evidence::reported_open(vm, p).iter().any(|(grant, open)| *open && grant.host == subject.name)
            })
        })
    };
    let names: Vec<_> =
        world.vms_on_host(&subject.name).filter(holds).take(6).map(ToString::to_string).collect();
    let claims = world.attestation(&subject.name).map_or(0, |a| a.claims.len());
    let orphans = host.status.as_ref().map_or(0, |s| s.domains.len());
    let message = if !names.is_empty() {
        let shown = names.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
        let more = if names.len() > 5 { " and more" } else { "" };
        format!(
            "deletion waits for VirtualMachines placed here: {shown}{more}; stop them or let them be placed elsewhere"
        )
    } else if claims + orphans > 0 {
        "deletion waits: the host says that it runs VirtualMachines the store does not know".into()
    } else {
        plan.steps.push(Step::RemoveFinalizer { object: subject.clone(), read_first: Vec::new() });
        return;
    };
    plan.wait(WaitFor::AnyHost, message.clone());
    say(world, host, subject, Some(message), now, plan);
}

/// Writes conditions at once and numbers at most every ten seconds.
fn say(
    world: &World,
    host: &Host,
    subject: &ObjectRef,
    deleting: Option<String>,
    now: Timestamp,
    plan: &mut Plan,
) {
    let empty = HostStatus::default();
    let status = host.status.as_ref().unwrap_or(&empty);
    let liveness = world.liveness(&subject.name).cloned().unwrap_or_default();
    let reachable = reachable(&subject.name, status, &liveness);
    let ready = ready(status, &reachable);
    let schedulable = schedulable(world, host, status, &ready, deleting);
    let load = world.load(&subject.name);
    let apply = HostStatusApply {
        conditions: vec![ready.clone(), reachable, schedulable],
        observed_generation: subject.generation,
        allocated: load.promised,
        summary: summary(world, host, status, load.promised, load.vms),
    };
    let news = conditions::differ(&host.metadata, &status.conditions, &apply.conditions)
        || status.observed_generation != Some(apply.observed_generation);
    let numbers =
        status.allocated != Some(apply.allocated) || status.summary.as_ref() != Some(&apply.summary);
    if !news && !numbers {
        return;
    }
    let due =
        world.summary_written(Kind::Host, &subject.name).and_then(|at| at.checked_add(SUMMARY_INTERVAL).ok());
    match due.filter(|due| *due > now) {
        Some(due) if !news => plan.wake_at(due),
        _ => plan.steps.push(Step::SetHostStatus { host: subject.clone(), status: Box::new(apply) }),
    }
    let before = condition::get(&status.conditions, kind::READY).map(|c| c.reason.as_str());
    if ready.status != "True"
        && before != Some(&ready.reason)
        && ready.reason != reasons::NOT_JOINED
        && ready.reason != reasons::PENDING
    {
        plan.event(subject, EventType::Warning, &ready.reason, ready.message);
    }
}

fn reachable(name: &str, status: &HostStatus, liveness: &HostLiveness) -> ConditionValue {
    let type_ = kind::REACHABLE;
    if status.incarnation.is_none() {
        let message = "no daemon has reported yet: run vireo-node join on the machine";
        return ConditionValue::no(type_, reasons::NOT_JOINED, message);
    }
    if liveness.duplicate {
        let message = format!(
            "two machines renew the Lease of {name} in turn; shut the copy down and join it under a name of its own"
        );
        return ConditionValue::no(type_, reasons::DUPLICATE_IDENTITY, message);
    }
    match liveness.freshness {
        Freshness::Fresh => ConditionValue::yes(type_, reasons::HEARTBEAT_FRESH, "renews its Lease"),
        Freshness::Silent => {
            let message = "has not renewed its Lease; nothing is assumed about its guests. Check the host and its network";
            ConditionValue::unknown(type_, reasons::HOST_SILENT, message)
        }
        // Nothing new is known right after a start of the controller: what was said stands.
        Freshness::NotYetKnown => match condition::get(&status.conditions, type_) {
            Some(stored) => conditions::value(stored),
            None => {
                ConditionValue::unknown(type_, reasons::PENDING, "no renewal of its Lease has been seen yet")
            }
        },
    }
}

fn ready(status: &HostStatus, reachable: &ConditionValue) -> ConditionValue {
    if reachable.status != "True" {
        return ConditionValue { type_: kind::READY.into(), ..reachable.clone() };
    }
    let parts = [kind::HYPERVISOR_READY, kind::STORAGE_READY, kind::NETWORK_READY];
    let bad: Vec<_> = parts
        .iter()
        .filter_map(|part| condition::get(&status.conditions, part).filter(|c| c.status != "True"))
        .map(|c| format!("{}: {}", c.type_, c.message))
        .collect();
    if bad.is_empty() {
        ConditionValue::yes(kind::READY, reasons::HOST_READY, "alive, and what it needs is there")
    } else {
        ConditionValue::no(kind::READY, reasons::HOST_NOT_READY, bad.join("; "))
    }
}

fn schedulable(
    world: &World,
    host: &Host,
    status: &HostStatus,
    ready: &ConditionValue,
    deleting: Option<String>,
) -> ConditionValue {
    let no = |message: String| ConditionValue::no(kind::SCHEDULABLE, reasons::UNSCHEDULABLE, message);
    if let Some(message) = deleting {
        return ConditionValue::no(kind::SCHEDULABLE, reasons::DELETING, message);
    }
    if !host.spec.schedulable {
        return no("spec.schedulable is false".into());
    }
    let Some(cluster) = world.cluster(&host.spec.cluster) else {
        let message =
            format!("HostCluster {} does not exist; create it or correct spec.cluster", host.spec.cluster);
        return ConditionValue::no(kind::SCHEDULABLE, reasons::CLUSTER_NOT_FOUND, message);
    };
    let is_up =
        condition::get(&status.conditions, kind::HYPERVISOR_READY).is_none_or(|c| c.status != "False");
    if ready.status == "Unknown"
        || !is_up
        || [reasons::NOT_JOINED, reasons::DUPLICATE_IDENTITY].contains(&ready.reason.as_str())
    {
        return ConditionValue { type_: kind::SCHEDULABLE.into(), status: "False".into(), ..ready.clone() };
    }
    if status.incarnation.is_some() && confirmed_over(host) == status.incarnation.as_ref() {
        return no(format!(
            "its present incarnation is confirmed as stopped; remove the annotation {}",
            meta::CONFIRM_ANNOTATION
        ));
    }
    if let CpuBaseline::Named(model) = &cluster.spec.cpu.baseline
        && !status.cpu.as_ref().is_some_and(|c| c.usable_models.contains(&model.name))
    {
        return no(format!(
            "lacks CPU model {}, the baseline of HostCluster {}",
            model.name, host.spec.cluster
        ));
    }
    ConditionValue::yes(kind::SCHEDULABLE, reasons::HOST_READY, "takes new VMs")
}

fn summary(world: &World, host: &Host, status: &HostStatus, promised: Resources, vms: i64) -> HostSummary {
    let give = status.allocatable.unwrap_or_default();
    let room = world.cluster(&host.spec.cluster).map_or(give, |cluster| capacity(give, cluster));
    HostSummary {
        vms: vms.to_string(),
        cpu: format!("{}/{}", promised.cpus, room.cpus),
        memory: format!("{}/{}", human(promised.memory), human(room.memory)),
    }
}
