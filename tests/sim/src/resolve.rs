//! What a simulated host must have for a VM, from objects as its daemon sees them: the smallest resolution that has
//! disks, claims, waits, acts and tokens.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use controller_plan::Key;
use node_plan::intent::{
    Intent, Machine, MachineDisk, PendingAct, Policy, StateHome, ValidatedSpec, VmRef, Volume, Wait, Wanted,
};
use serde_json::json;
use vireo_crds::{
    reasons,
    v1alpha1::{Disk, DiskPhase, HostStatus, VirtualMachine, VirtualMachineAction},
};

/// Identity of a VM object.
pub fn vm_ref(vm: &VirtualMachine) -> Option<VmRef> {
    let meta = &vm.metadata;
    Some(VmRef { uid: meta.uid.clone()?, namespace: meta.namespace.clone()?, name: meta.name.clone()? })
}

fn machine() -> Machine {
    static MACHINE: OnceLock<Machine> = OnceLock::new();
    let made = || {
        let document = json!({
            "uuid": "", "hostname": "", "architecture": "x86_64", "accelerator": "kvm", "machineType": "q35",
            "sockets": 1, "cores": 1, "threads": 1, "cpu": {"named": "qemu64"}, "memory": 0, "firmware": "bios",
            "serialConsole": true, "guestAgent": true,
        });
        serde_json::from_value(document).unwrap_or_else(|error| panic!("{error}"))
    };
    MACHINE.get_or_init(made).clone()
}

/// What every host says of itself.
pub fn host_status() -> HostStatus {
    static STATUS: OnceLock<HostStatus> = OnceLock::new();
    let made = || {
        let document = json!({
            "features": ["uefi", "secureBoot", "tpm"],
            "cpu": {"architecture": "x86_64", "usableModels": ["qemu64"]},
            "allocatable": {"cpus": 8, "memory": 17_179_869_184_i64},
        });
        serde_json::from_value(document).unwrap_or_else(|error| panic!("{error}"))
    };
    STATUS.get_or_init(made).clone()
}

/// What this host must have for `vm`.
pub fn intent(
    vm: &VirtualMachine,
    disks: &BTreeMap<Key, Arc<Disk>>,
    acts: &BTreeMap<String, Arc<VirtualMachineAction>>,
    host: &str,
    name_based: bool,
) -> Option<Intent> {
    let vm_ref = vm_ref(vm)?;
    let status = vm.status.as_ref()?;
    let placement = status.placement.as_ref().filter(|p| p.host == host)?;
    let mut waits = Vec::new();
    let mut found = Some(Vec::new());
    for disk in &vm.spec.disks {
        let name = match (&disk.disk, &disk.template) {
            (Some(existing), _) => existing.name.clone(),
            (None, Some(_)) => format!("{}-{}", vm_ref.name, disk.name),
            (None, None) => continue,
        };
        let Some(object) = disks.get(&Key::new(&vm_ref.namespace, &name)) else {
            waits.push(Wait::new(reasons::DISK_NOT_READY, format!("Disk {name} does not exist")));
            found = None;
            continue;
        };
        let disk_status = object.status.clone().unwrap_or_default();
        if disk_status.phase != Some(DiskPhase::Ready) {
            waits.push(Wait::new(reasons::DISK_NOT_READY, format!("Disk {name} is not ready")));
        }
        if !disk_status.attachments.iter().any(|a| a.vm_uid == vm_ref.uid) {
            waits.push(Wait::new(reasons::DISK_NOT_READY, format!("Disk {name} is not claimed for this VM")));
        }
        let uid = object.metadata.uid.clone()?;
        let file = if name_based { name.clone() } else { uid.clone() };
        let made = MachineDisk {
            name: disk.name.clone(),
            cdrom: false,
            overlay: None,
            volume: Some(Volume {
                path: format!("/srv/shared/volumes/{file}.qcow2"),
                token: format!("/srv/shared/volumes/{file}.token"),
                format: object.spec.format,
                disk: name,
                disk_uid: uid,
            }),
            bus: vireo_crds::v1alpha1::DiskBus::Virtio,
            boot_order: None,
            read_only: disk.read_only,
            cache: disk.cache,
            serial: disk.name.clone(),
        };
        if let Some(found) = &mut found {
            found.push(made);
        }
    }
    let spec = ValidatedSpec::new(&vm.spec).ok();
    let wanted = spec.zip(found).map(|(spec, disks)| Wanted {
        generation: placement.generation,
        spec,
        machine: Machine {
            uuid: vm_ref.uid.clone(),
            hostname: vm_ref.name.clone(),
            memory: vm.spec.memory.size.bytes().unwrap_or(0),
            sockets: vm.spec.cpu.sockets,
            cores: vm.spec.cpu.cores,
            threads: vm.spec.cpu.threads,
            disks,
            ..machine()
        },
        seed: None,
        state: Some(StateHome { dir: format!("/srv/shared/vms/{}", vm_ref.uid), local_tpm: None }),
        installation_id: "installation".into(),
    });
    let pending = |act: &Arc<VirtualMachineAction>| {
        let status = act
            .status
            .as_ref()
            .filter(|s| s.host.as_deref() == Some(host) && s.vm_uid.as_ref() == Some(&vm_ref.uid))?;
        if status.phase.is_some_and(|phase| phase.is_final()) {
            return None;
        }
        Some(PendingAct {
            name: act.metadata.name.clone()?,
            uid: act.metadata.uid.clone()?,
            act: status.act.or_else(|| act.spec.act())?,
            grant_id: status.grant_id.clone()?,
        })
    };
    let acts = acts.values().filter_map(pending).collect();
    Some(Intent {
        grant: placement.grant(),
        listed: false,
        generation: vm.metadata.generation.unwrap_or_default(),
        accepted_generation: placement.generation,
        deleting: vm.metadata.deletion_timestamp.is_some(),
        policy: Policy::of(&vm.spec),
        wanted,
        waits,
        faults: Vec::new(),
        acts,
        hardware: status.hardware.clone(),
        reported: status.runtime.clone().filter(|r| r.vm_uid == vm_ref.uid),
        storage_ready: true,
        vm: vm_ref,
    })
}
