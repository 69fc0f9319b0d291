//! Decides about one HostCluster: the CPU model its hosts share, what they have to give together.

use jiff::Timestamp;
use vireo_crds::{
    condition::{ConditionValue, kind},
    reasons,
    v1alpha1::{
        Architecture, CpuBaseline, HostCluster, HostClusterStatus, HostClusterSummary, HostStatus, Resources,
    },
};

use crate::{
    conditions,
    host::{SUMMARY_INTERVAL, liveness::Freshness},
    plan::{Plan, WaitFor},
    step::{ClusterStatusApply, Kind, ObjectRef, Step},
    world::World,
};

/// Models by age, oldest first, as QEMU names them; a versioned or unknown name ranks with the longest known one it
/// begins with.
const BY_AGE: &[&str] = &[
    "qemu64",
    "kvm64",
    "core2duo",
    "Conroe",
    "Penryn",
    "Opteron_G1",
    "Opteron_G2",
    "Opteron_G3",
    "Nehalem",
    "Westmere",
    "Opteron_G4",
    "SandyBridge",
    "Opteron_G5",
    "IvyBridge",
    "Haswell",
    "Broadwell",
    "EPYC",
    "Dhyana",
    "Skylake-Client",
    "Skylake-Server",
    "EPYC-IBPB",
    "EPYC-Rome",
    "Cascadelake-Server",
    "Cooperlake",
    "Icelake-Server",
    "EPYC-Milan",
    "Snowridge",
    "Denverton",
    "SapphireRapids",
    "EPYC-Genoa",
    "GraniteRapids",
    "SierraForest",
    "EPYC-Turin",
    "ClearwaterForest",
];

/// What should be done about this cluster.
pub fn plan_cluster(world: &World, cluster: &HostCluster, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(subject) = ObjectRef::of(Kind::HostCluster, cluster) else { return plan };
    if cluster.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    plan.wait(WaitFor::AnyHost, "its hosts");
    if world.installation_id().is_none() {
        plan.wait(WaitFor::Installation, "the installation id");
    }
    let count = Count::of(world, &subject.name);
    let baseline = match &cluster.spec.cpu.baseline {
        CpuBaseline::Named(model) => Some(model.name.clone()),
        CpuBaseline::Auto(_) => common_model(&count.models),
    };
    let empty = HostClusterStatus::default();
    let status = cluster.status.as_ref().unwrap_or(&empty);
    let apply = ClusterStatusApply {
        conditions: vec![ready(&count, baseline.as_deref())],
        observed_generation: subject.generation,
        installation_id: world.installation_id().map(Into::into).or_else(|| status.installation_id.clone()),
        baseline,
        capacity: count.capacity,
        summary: HostClusterSummary {
            hosts: format!("{}/{}", count.alive, count.all),
            vms: count.vms.to_string(),
        },
    };
    let news = conditions::differ(&cluster.metadata, &status.conditions, &apply.conditions)
        || status.observed_generation != Some(apply.observed_generation)
        || status.installation_id != apply.installation_id
        || status.baseline != apply.baseline;
    let numbers = status.capacity != Some(apply.capacity) || status.summary.as_ref() != Some(&apply.summary);
    let due = world
        .summary_written(Kind::HostCluster, &subject.name)
        .and_then(|at| at.checked_add(SUMMARY_INTERVAL).ok());
    match due.filter(|due| *due > now) {
        Some(due) if !news && numbers => plan.wake_at(due),
        _ if news || numbers => {
            plan.steps.push(Step::SetClusterStatus { cluster: subject, status: Box::new(apply) })
        }
        _ => {}
    }
    plan
}

/// What the hosts of a cluster come to.
#[derive(Debug, Default)]
struct Count<'a> {
    all: usize,
    joined: usize,
    alive: usize,
    vms: i64,
    capacity: Resources,
    models: Vec<&'a [String]>,
}

impl<'a> Count<'a> {
    fn of(world: &'a World, cluster: &str) -> Self {
        let mut count = Self::default();
        for (name, host) in world.hosts_of_cluster(cluster) {
            count.all += 1;
            count.vms += world.load(name).vms;
            let Some(status) = host.status.as_ref().filter(|s| s.incarnation.is_some()) else { continue };
            count.joined += 1;
            count.models.extend(models(status));
            if is_alive(world, name) {
                count.alive += 1;
                let give = status.allocatable.unwrap_or_default();
                count.capacity.cpus = count.capacity.cpus.saturating_add(give.cpus);
                count.capacity.memory = count.capacity.memory.saturating_add(give.memory);
            }
        }
        count
    }
}

/// A host that nobody has found silent counts, so that a start of the controller changes no number.
fn is_alive(world: &World, host: &str) -> bool {
    world.freshness(host) != Freshness::Silent && !world.liveness(host).is_some_and(|l| l.duplicate)
}

/// The models of a host; none of a host that knows no named ones, as on aarch64.
fn models(status: &HostStatus) -> Option<&[String]> {
    let cpu = status.cpu.as_ref().filter(|c| c.architecture == Architecture::x86_64)?;
    Some(cpu.usable_models.as_slice())
}

/// The newest model that all of these have. Silent hosts count too: they come back, and a VM that started with a
/// newer model could then not move to them.
fn common_model(hosts: &[&[String]]) -> Option<String> {
    let (first, others) = hosts.split_first()?;
    let everywhere = |model: &&String| others.iter().all(|models| models.contains(model));
    first
        .iter()
        .filter(everywhere)
        .max_by_key(|model| (age(model), std::cmp::Reverse(model.len()), (*model).clone()))
        .cloned()
}

fn age(model: &str) -> usize {
    let known = BY_AGE.iter().enumerate().filter(|(_, name)| model.starts_with(**name));
    known.max_by_key(|(_, name)| name.len()).map_or(0, |(index, _)| index + 1)
}

fn ready(count: &Count<'_>, baseline: Option<&str>) -> ConditionValue {
    if count.joined == 0 {
        return ConditionValue::no(kind::READY, reasons::NO_HOST_SELECTED, "no host has joined it yet");
    }
    if baseline.is_none() && count.models.iter().any(|models| !models.is_empty()) {
        let message = "its hosts share no CPU model; name one in spec.cpu.baseline or split the cluster";
        return ConditionValue::no(kind::READY, reasons::NO_COMMON_MODEL, message);
    }
    if count.alive == 0 {
        return ConditionValue::no(kind::READY, reasons::HOST_SILENT, "none of its hosts is alive");
    }
    ConditionValue::yes(kind::READY, reasons::READY, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_model_wins() {
        let rome: Vec<String> = ["qemu64", "EPYC", "EPYC-Rome", "EPYC-Milan"].map(Into::into).into();
        let old: Vec<String> = ["qemu64", "EPYC", "EPYC-Rome"].map(Into::into).into();
        let intel: Vec<String> = ["kvm64", "Haswell", "Haswell-noTSX"].map(Into::into).into();
        assert_eq!(common_model(&[&rome, &old]).as_deref(), Some("EPYC-Rome"));
        assert_eq!(common_model(&[&intel]).as_deref(), Some("Haswell"));
        assert_eq!(common_model(&[&rome, &intel]), None);
        assert_eq!(common_model(&[]), None);
    }
}
