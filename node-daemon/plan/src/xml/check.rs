//! Decides what cannot be built although every value by itself is well formed: boards, buses, boot orders.

use std::collections::BTreeSet;

use vireo_crds::v1alpha1::{Architecture, DiskBus, DiskCache, DiskFormat, NicModel, WatchdogAction};

use super::build::{DomainInput, SEED_DISK};
use crate::intent::{Fault, MachineDisk, MachineFirmware};

/// What cannot be built, although every value by itself is well formed.
pub(crate) fn faults(input: &DomainInput) -> Vec<Fault> {
    let machine = &input.machine;
    let mut faults = Vec::new();
    let mut refuse = |is: bool, path: &str, message: &str| {
        if is {
            faults.push(Fault::new(path, message));
        }
    };
    let pc = machine.architecture == Architecture::x86_64;
    let of_family =
        |alias: &str, family: &str| machine.machine_type == alias || machine.machine_type.starts_with(family);
    refuse(
        machine.architecture == Architecture::Unknown,
        "spec.architecture",
        "is not known; write x86_64 or aarch64",
    );
    refuse(
        pc && !of_family("q35", "pc-q35-"),
        "spec.machine",
        "is not a PCI Express board; on x86_64 write q35 or a version of it such as pc-q35-10.0",
    );
    refuse(
        machine.architecture == Architecture::aarch64 && !of_family("virt", "virt-"),
        "spec.machine",
        "is not a PCI Express board; on aarch64 write virt or a version of it such as virt-10.0",
    );
    let secure = matches!(machine.firmware, MachineFirmware::Uefi { secure_boot: true, .. });
    refuse(secure && !pc, "spec.firmware.uefi.secureBoot", "is supported on x86_64 only; leave it out");
    refuse(
        machine.firmware == MachineFirmware::Bios && !pc,
        "spec.firmware",
        "aarch64 has no BIOS; write uefi: {}",
    );
    refuse(machine.watchdog == Some(WatchdogAction::Unknown), "spec.watchdog.action", "is not known");
    for disk in &machine.disks {
        for message in disk_faults(disk, pc) {
            refuse(true, &format!("spec.disks[{}]", disk.name), message);
        }
    }
    for nic in &machine.nics {
        refuse(!is_name(&nic.name), &format!("spec.interfaces[{}]", nic.name), NAME_RULE);
        refuse(
            nic.model == NicModel::Unknown,
            &format!("spec.interfaces[{}].model", nic.name),
            "is not known",
        );
    }
    let mut orders = BTreeSet::new();
    let given = machine.disks.iter().map(|disk| ("disks", &disk.name, disk.boot_order));
    let given = given.chain(machine.nics.iter().map(|nic| ("interfaces", &nic.name, nic.boot_order)));
    for (list, name, order) in given {
        let Some(order) = order else { continue };
        let path = format!("spec.{list}[{name}].bootOrder");
        refuse(order < 1, &path, "is below 1");
        refuse(
            !orders.insert(order),
            &path,
            "is used twice; every device has its own place in the boot order",
        );
    }
    faults
}

const NAME_RULE: &str = "a name has lower-case letters, digits and '-' only";

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn disk_faults(disk: &MachineDisk, pc: bool) -> Vec<&'static str> {
    let rules = [
        (!is_name(&disk.name), NAME_RULE),
        (disk.name == SEED_DISK, "the name cloud-init is taken by the seed image; choose another"),
        (
            disk.bus == DiskBus::Unknown || disk.cache == DiskCache::Unknown,
            "has a bus or cache this version does not know",
        ),
        (
            disk.volume.as_ref().is_some_and(|volume| volume.format == DiskFormat::Unknown),
            "has a format this version does not know",
        ),
        (disk.volume.is_none() && !disk.cdrom, "has no volume; only a CD drive can be empty"),
        (
            disk.cdrom && disk.bus == DiskBus::Virtio,
            "a CD drive cannot sit on the virtio bus; write bus: scsi or bus: sata",
        ),
        (disk.bus == DiskBus::Sata && !pc, "aarch64 has no SATA; write bus: virtio or bus: scsi"),
        (
            disk.bus == DiskBus::Sata && disk.read_only && !disk.cdrom,
            "a SATA disk cannot be read-only; write bus: virtio or bus: scsi",
        ),
    ];
    rules.into_iter().filter(|(broken, _)| *broken).map(|(_, message)| message).collect()
}
