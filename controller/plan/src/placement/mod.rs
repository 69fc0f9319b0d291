//! Decides which host a VM goes to: every host of its cluster passes the filters, the best score wins.

mod filters;
mod refusal;
#[cfg(test)]
mod scale;
mod score;

use vireo_crds::v1alpha1::{HostCluster, Resources, VirtualMachine};

use crate::{vm::references::ValidatedVm, world::World};

pub(crate) use filters::Request;
pub(crate) use refusal::NoHostFits;

/// What a host may promise: all it gives to VMs, times the cluster's overcommit.
pub(crate) fn capacity(allocatable: Resources, cluster: &HostCluster) -> Resources {
    let percent = i128::from(cluster.spec.memory.overcommit_percent);
    let memory = i128::from(allocatable.memory).saturating_mul(percent) / 100;
    Resources {
        cpus: allocatable.cpus.saturating_mul(i64::from(cluster.spec.cpu.overcommit)),
        memory: i64::try_from(memory).unwrap_or(i64::MAX),
    }
}

/// The best host for this VM, or why none fits.
pub(crate) fn choose<'a>(
    world: &'a World,
    vm: &'a VirtualMachine,
    valid: &'a ValidatedVm<'a>,
) -> Result<&'a str, NoHostFits> {
    let request = Request::of(world, vm, valid);
    let mut best: Option<score::Score<'a>> = None;
    let mut refused = Vec::new();
    let mut total = 0;
    for (name, host) in world.hosts_of_cluster(&vm.spec.cluster) {
        total += 1;
        #[cfg(test)]
        scale::count_host();
        match filters::first_lack(world, &request, name, host) {
            Some(lack) => refused.push((name.as_str(), lack)),
            None => {
                let score = score::Score::of(world, &request, name, host);
                if best.as_ref().is_none_or(|held| score < *held) {
                    best = Some(score);
                }
            }
        }
    }
    best.map(|score| score.host).ok_or_else(|| NoHostFits::of(&vm.spec.cluster, total, &refused))
}
