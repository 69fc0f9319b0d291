//! The formulas of room: what a VM is promised, and what a host may promise. All numbers that placement compares come
//! from here, and `explain` prints them.
//!
//! | Number | Formula |
//! |---|---|
//! | a VM's memory | `memory.size` + overhead |
//! | overhead | 64Mi + 8Mi x vCPUs + `memory.size` / 512 |
//! | a VM's vCPUs | sockets x cores x threads |
//! | a host's memory | `status.allocatable.memory` x `memory.overcommitPercent` of its HostCluster / 100 |
//! | a host's vCPUs | `status.allocatable.cpus` x `cpu.overcommit` of its HostCluster |
//! | free | what the host may promise - the sum of what VMs with an open grant, a target or a reservation there are promised |

use vireo_crds::{
    units::human_bytes,
    v1alpha1::{HostCluster, Resources, VirtualMachineSpec},
};

/// QEMU's own memory: code, heap, the video memory and buffers of its devices.
const FIXED_OVERHEAD: i64 = 64 << 20;
/// Stack and KVM's structures of one vCPU.
const OVERHEAD_PER_VCPU: i64 = 8 << 20;
/// One page table entry of 8 bytes for each page of 4 KiB.
const GUEST_BYTES_PER_TABLE_BYTE: i64 = 512;

/// Memory a VM needs on its host beside the guest's own.
pub(crate) fn overhead(cpus: i64, memory: i64) -> i64 {
    FIXED_OVERHEAD
        .saturating_add(cpus.max(0).saturating_mul(OVERHEAD_PER_VCPU))
        .saturating_add(memory.max(0) / GUEST_BYTES_PER_TABLE_BYTE)
}

/// What a VM is promised on its host; of a size that cannot be read, which is refused elsewhere, only the overhead.
pub(crate) fn promised(spec: &VirtualMachineSpec) -> Resources {
    let cpus = spec.cpu.vcpus().max(0);
    let guest = guest_memory(spec);
    Resources { cpus, memory: guest.saturating_add(overhead(cpus, guest)) }
}

/// The guest's own memory; zero of a size that cannot be read.
pub(crate) fn guest_memory(spec: &VirtualMachineSpec) -> i64 {
    spec.memory.size.bytes().ok().and_then(|b| i64::try_from(b).ok()).unwrap_or(0)
}

/// What a host may promise: all it gives to VMs, times the cluster's overcommit.
pub(crate) fn capacity(allocatable: Resources, cluster: &HostCluster) -> Resources {
    let percent = i128::from(cluster.spec.memory.overcommit_percent);
    let memory = i128::from(allocatable.memory).saturating_mul(percent) / 100;
    Resources {
        cpus: allocatable.cpus.saturating_mul(i64::from(cluster.spec.cpu.overcommit)),
        memory: i64::try_from(memory).unwrap_or(i64::MAX),
    }
}

/// What is left of it; never less than nothing.
pub(crate) fn free(capacity: Resources, promised: Resources) -> Resources {
    Resources {
        cpus: capacity.cpus.saturating_sub(promised.cpus).max(0),
        memory: capacity.memory.saturating_sub(promised.memory).max(0),
    }
}

/// Bytes as people read them; less than nothing is nothing.
pub(crate) fn human(bytes: i64) -> String {
    human_bytes(u64::try_from(bytes).unwrap_or(0))
}

/// Share of `of` promised once `need` is there too, in 1/1000; 1000 of a host that has nothing to give.
pub(crate) fn share(promised: i64, need: i64, of: i64) -> i64 {
    if of <= 0 {
        return 1000;
    }
    let after = i128::from(promised).saturating_add(i128::from(need)).max(0);
    i64::try_from(after.saturating_mul(1000) / i128::from(of)).map_or(1000, |share| share.min(1000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_vm_is_promised_its_memory_and_the_overhead() {
        let spec: VirtualMachineSpec =
            serde_json::from_value(json!({"memory": {"size": "4Gi"}, "cpu": {"cores": 2}})).unwrap();
        let mi = 1 << 20;
        assert_eq!(promised(&spec), Resources { cpus: 2, memory: (4096 + 64 + 2 * 8 + 8) * mi });
    }

    #[test]
    fn nothing_overflows() {
        assert_eq!(overhead(i64::MAX, i64::MAX), i64::MAX);
        assert_eq!(share(i64::MAX, i64::MAX, 1), 1000);
        assert_eq!(share(0, 1, 0), 1000);
        let none = Resources::default();
        assert_eq!(free(none, Resources { cpus: i64::MAX, memory: i64::MAX }), none);
    }
}
