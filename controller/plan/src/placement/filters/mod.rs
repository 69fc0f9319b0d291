//! Filters: named reasons for which a host cannot take a VM, in the order in which they are looked at. Each is a pure
//! function of one candidate; a host fits if none of them answers.

mod affinity;
mod cluster_policy;
mod host_state;
mod networks;
mod pinning;
mod processor;
mod room;
mod storage;

use super::{candidate::Candidate, lack::Lack};

/// One filter.
pub(crate) struct Filter {
    /// Its name, as `explain` prints it.
    pub name: &'static str,
    /// Why the host cannot take the VM, if so.
    pub lack: fn(&Candidate<'_>) -> Option<Lack>,
}

/// All filters, in order: the first that answers is what a condition says of the host.
pub(crate) const FILTERS: [Filter; 15] = [
    Filter { name: "clusterPolicy", lack: cluster_policy::lack },
    Filter { name: "hostDeletion", lack: host_state::deletion },
    Filter { name: "hostName", lack: pinning::host_name },
    Filter { name: "hostSelector", lack: pinning::host_selector },
    Filter { name: "hostState", lack: host_state::state },
    Filter { name: "architecture", lack: processor::architecture },
    Filter { name: "features", lack: processor::features },
    Filter { name: "cpuModel", lack: processor::model },
    Filter { name: "localDisks", lack: storage::local_disks },
    Filter { name: "storage", lack: storage::domains },
    Filter { name: "networks", lack: networks::lack },
    Filter { name: "vmAffinity", lack: affinity::vms },
    Filter { name: "hostAffinity", lack: affinity::hosts },
    Filter { name: "memory", lack: room::memory },
    Filter { name: "cpus", lack: room::cpus },
];

/// The first reason for which this host cannot take the VM; none: it fits.
pub(crate) fn first_lack(candidate: &Candidate<'_>) -> Option<Lack> {
    FILTERS.iter().find_map(|filter| (filter.lack)(candidate))
}

/// Every reason for which this host cannot take the VM, each with the name of its filter.
pub(crate) fn all_lacks(candidate: &Candidate<'_>) -> Vec<(&'static str, Lack)> {
    FILTERS.iter().filter_map(|filter| Some((filter.name, (filter.lack)(candidate)?))).collect()
}
