//! How good a host is for a VM: the derived order of the struct is the policy, the lowest is the best.

use vireo_crds::v1alpha1::{Host, SchedulingPolicy};

use super::{Request, capacity};
use crate::world::World;

/// `evenlyDistributed`: the host whose scarcer resource is least promised once the VM is there; then the one with
/// fewer VMs; then by name.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Score<'a> {
    /// Share of memory or vCPUs promised, whichever is larger, in 1/1000.
    pub promised: i64,
    /// Number of VMs.
    pub vms: i64,
    /// Name, so that ties always fall the same way.
    pub host: &'a str,
}

impl<'a> Score<'a> {
    pub fn of(world: &World, request: &Request<'_>, name: &'a str, host: &Host) -> Self {
        let SchedulingPolicy::EvenlyDistributed(_) = &request.valid.cluster.spec.scheduling.policy;
        let room = capacity(
            host.status.as_ref().and_then(|s| s.allocatable).unwrap_or_default(),
            request.valid.cluster,
        );
        let load = world.load(name);
        let share = |promised: i64, need: i64, of: i64| {
            let after = i128::from(promised) + i128::from(need);
            i64::try_from(after * 1000 / i128::from(of.max(1))).unwrap_or(i64::MAX)
        };
        let memory = share(load.promised.memory, request.valid.need.memory, room.memory);
        let cpus = share(load.promised.cpus, request.valid.need.cpus, room.cpus);
        Self { promised: memory.max(cpus), vms: load.vms, host: name }
    }
}
