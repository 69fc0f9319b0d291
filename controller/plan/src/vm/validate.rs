//! Decides whether a VM's spec is possible in itself: what the schema and CEL refuse at the door is refused here
//! again, because objects also come from old versions, restored backups and other servers. All faults at once.

use std::{collections::BTreeSet, str::FromStr};

use vireo_crds::{
    units::Mac,
    v1alpha1::{
        CpuModel, DiskBus, DiskCache, Firmware, Interface, NicModel, VirtualMachine, VirtualMachineSpec,
        VmDisk, WatchdogAction,
    },
};

use super::fault::{Fault, label_fault, path_fault, shown, text_fault};

const MAX_VCPUS: i64 = 710;
const MIN_MEMORY: u64 = 16 << 20;
const MAX_MEMORY: u64 = 64 << 40;
const MAX_INLINE: usize = 65_536;

/// Hardware address of an interface, derived if the spec names none; none if it cannot be known.
pub(crate) fn mac(vm: &VirtualMachine, nic: &Interface, prefix: Option<[u8; 3]>) -> Option<Mac> {
    match (&nic.mac_address, prefix, vm.metadata.uid.as_deref()) {
        (Some(text), _, _) => Mac::from_str(text).ok(),
        (None, Some(prefix), Some(uid)) => Some(Mac::derive(prefix, uid, &nic.name)),
        (None, _, _) => None,
    }
}

/// Hardware addresses of a VM, derived ones included; those that cannot be read are left out.
pub(crate) fn macs(vm: &VirtualMachine, prefix: Option<&str>) -> Vec<Mac> {
    let prefix = prefix.and_then(|p| Mac::parse_prefix(p).ok());
    vm.spec.interfaces.iter().filter_map(|nic| mac(vm, nic, prefix)).collect()
}

/// Names of the Disks a VM uses, those of its templates included.
pub(crate) fn disk_names(vm: &VirtualMachine) -> Vec<String> {
    let name = vm.metadata.name.as_deref().unwrap_or_default();
    vm.spec.disks.iter().filter_map(|d| disk_name(name, d)).collect()
}

/// Name of the Disk behind one disk of a VM; none for an empty CD drive.
pub(crate) fn disk_name(vm: &str, disk: &VmDisk) -> Option<String> {
    if disk.template.is_some() {
        return Some(template_disk_name(vm, &disk.name));
    }
    let named = disk.disk.as_ref().map(|d| &d.name);
    let cd = disk.cdrom.as_ref().and_then(|c| c.disk.as_ref());
    named.or(cd).or(disk.ephemeral.as_ref().map(|e| &e.disk)).cloned()
}

/// Name of the Disk made from a template.
pub(crate) fn template_disk_name(vm: &str, disk: &str) -> String {
    format!("{vm}-{disk}")
}

/// Whether the guest only reads this disk.
pub(crate) fn is_read_only(disk: &VmDisk) -> bool {
    disk.read_only || disk.cdrom.is_some() || disk.ephemeral.is_some()
}

/// Whether firmware variables or TPM state have to be kept somewhere.
pub(crate) fn keeps_state(spec: &VirtualMachineSpec) -> bool {
    spec.tpm.is_some() || matches!(spec.firmware, Some(Firmware::Uefi(_)))
}

/// Everything wrong with the spec in itself.
pub(crate) fn spec_faults(vm: &VirtualMachine) -> Vec<Fault> {
    let mut faults = Vec::new();
    let spec = &vm.spec;
    faults.extend(label_fault("metadata.name", vm.metadata.name.as_deref().unwrap_or_default(), 63));
    machine_faults(spec, &mut faults);
    text_faults(spec, &mut faults);
    disk_faults(spec, &mut faults);
    interface_faults(spec, &mut faults);
    boot_order_faults(spec, &mut faults);
    faults
}

fn machine_faults(spec: &VirtualMachineSpec, faults: &mut Vec<Fault>) {
    for (field, value, max) in [
        ("sockets", spec.cpu.sockets, MAX_VCPUS),
        ("cores", spec.cpu.cores, MAX_VCPUS),
        ("threads", spec.cpu.threads, 8),
    ] {
        if i64::from(value) < 1 || i64::from(value) > max {
            faults.push(Fault::refused(
                format!("spec.cpu.{field}"),
                format!("{value} is not between 1 and {max}"),
            ));
        }
    }
    if spec.cpu.vcpus() > MAX_VCPUS {
        let product = format!(
            "sockets x cores x threads is {}, more than {MAX_VCPUS} vCPUs; lower one of them",
            spec.cpu.vcpus()
        );
        faults.push(Fault::refused("spec.cpu", product));
    }
    if let CpuModel::Named(model) = &spec.cpu.model {
        faults.extend(token_fault("spec.cpu.model.named.name", &model.name));
    }
    match spec.memory.size.bytes() {
        Err(error) => faults.push(Fault::refused("spec.memory.size", error.to_string())),
        Ok(bytes) if !(MIN_MEMORY..=MAX_MEMORY).contains(&bytes) => {
            faults.push(Fault::refused(
                "spec.memory.size",
                format!("{} is not between 16Mi and 64Ti", spec.memory.size),
            ));
        }
        Ok(_) => {}
    }
    if let Some(machine) = &spec.machine {
        faults.extend(token_fault("spec.machine", machine));
    }
    if !(0..=86_400).contains(&spec.grace_period_seconds) {
        let message = format!("{} is not between 0 and 86400", spec.grace_period_seconds);
        faults.push(Fault::refused("spec.gracePeriodSeconds", message));
    }
    if spec.watchdog.as_ref().is_some_and(|w| w.action == WatchdogAction::Unknown) {
        faults.push(Fault::refused(
            "spec.watchdog.action",
            "this version knows reset, poweroff, pause and none",
        ));
    }
    let has_home = spec.state.is_some() || spec.disks.iter().any(|d| !is_read_only(d));
    if keeps_state(spec) && !has_home {
        let message = "needed, because UEFI variables or TPM state must be kept and the VM has no disk whose domain could keep them";
        faults.push(Fault::refused("spec.state.storageDomain", message));
    }
}

fn is_uuid(text: &str) -> bool {
    let lengths = [8, 4, 4, 4, 12];
    let parts: Vec<_> = text.split('-').collect();
    let hexadecimal = |part: &&str| part.chars().all(|c| c.is_ascii_hexdigit());
    parts.iter().map(|p| p.len()).eq(lengths) && parts.iter().all(hexadecimal)
}

/// Refuses a value that is no plain word: letters, digits, '.', '_' and '-'.
fn token_fault(path: &str, value: &str) -> Option<Fault> {
    let plain = !value.is_empty()
        && value.len() <= 64
        && value.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    (!plain).then(|| {
        Fault::refused(
            path,
            format!("{} may only have letters, digits, '.', '_' and '-', at most 64", shown(value)),
        )
    })
}

fn text_faults(spec: &VirtualMachineSpec, faults: &mut Vec<Fault>) {
    if let Some(identity) = &spec.identity {
        if let Some(text) = &identity.uuid
            && !is_uuid(text)
        {
            faults.push(Fault::refused("spec.identity.uuid", format!("{} is no UUID", shown(text))));
        }
        if let Some(serial) = &identity.serial
            && (serial.len() > 64 || serial.chars().any(|c| !(' '..='~').contains(&c)))
        {
            let message = format!("{} may only have printable ASCII characters, at most 64", shown(serial));
            faults.push(Fault::refused("spec.identity.serial", message));
        }
    }
    if let Some(hostname) = &spec.hostname {
        faults.extend(label_fault("spec.hostname", hostname, 63));
    }
    if let vireo_crds::v1alpha1::Clock::Timezone(zone) = &spec.clock {
        let plain = zone.name.chars().all(|c| c.is_ascii_alphanumeric() || "_+/-".contains(c));
        if !plain || zone.name.is_empty() || zone.name.split('/').any(|part| part == ".." || part.is_empty())
        {
            let message = format!("{} is no time zone; write one such as Europe/Berlin", shown(&zone.name));
            faults.push(Fault::refused("spec.clock.timezone.name", message));
        }
    }
    if let Some(boot) = &spec.direct_kernel_boot {
        faults.extend(path_fault("spec.directKernelBoot.kernel", &boot.kernel));
        faults.extend(boot.initrd.as_ref().and_then(|p| path_fault("spec.directKernelBoot.initrd", p)));
        faults.extend(boot.cmdline.as_ref().and_then(|t| text_fault("spec.directKernelBoot.cmdline", t)));
    }
    if let Some(seed) = &spec.cloud_init {
        for (field, inline, secret) in [
            ("userData", &seed.user_data, &seed.user_data_secret),
            ("networkData", &seed.network_data, &seed.network_data_secret),
        ] {
            if inline.is_some() && secret.is_some() {
                faults.push(Fault::refused(
                    format!("spec.cloudInit.{field}"),
                    format!("give {field} or {field}Secret, not both"),
                ));
            }
            if inline.as_ref().is_some_and(|text| text.chars().count() > MAX_INLINE) {
                let message = format!(
                    "longer than {MAX_INLINE} characters; put it into a Secret and name that in {field}Secret"
                );
                faults.push(Fault::refused(format!("spec.cloudInit.{field}"), message));
            }
        }
    }
}

fn disk_faults(spec: &VirtualMachineSpec, faults: &mut Vec<Fault>) {
    let mut names = BTreeSet::new();
    for (index, disk) in spec.disks.iter().enumerate() {
        let at = |field: &str| format!("spec.disks[{index}].{field}");
        faults.extend(label_fault(&at("name"), &disk.name, 32));
        if !names.insert(&disk.name) {
            faults.push(Fault::refused(
                at("name"),
                format!("{} is used twice; give each disk a name of its own", shown(&disk.name)),
            ));
        }
        if spec.cloud_init.is_some() && disk.name == "cloud-init" {
            faults.push(Fault::refused(
                at("name"),
                "\"cloud-init\" is taken by the seed image; choose another",
            ));
        }
        let sources =
            [disk.disk.is_some(), disk.template.is_some(), disk.cdrom.is_some(), disk.ephemeral.is_some()];
        if sources.iter().filter(|given| **given).count() != 1 {
            faults.push(Fault::refused(
                format!("spec.disks[{index}]"),
                "give exactly one of disk, template, cdrom and ephemeral",
            ));
        }
        if disk.bus == Some(DiskBus::Unknown) {
            faults.push(Fault::refused(at("bus"), "this version knows virtio, scsi and sata"));
        }
        if disk.cache == DiskCache::Unknown {
            faults.push(Fault::refused(at("cache"), "this version knows none, writethrough and writeback"));
        }
        if let Some(serial) = &disk.serial
            && (serial.is_empty()
                || serial.len() > 20
                || !serial.chars().all(|c| c.is_ascii_alphanumeric() || "_.+-".contains(c)))
        {
            let message =
                format!("{} may only have letters, digits, '_', '.', '+' and '-', at most 20", shown(serial));
            faults.push(Fault::refused(at("serial"), message));
        }
        if let Some(template) = &disk.template {
            faults.extend(crate::disk::spec_faults(template, &at("template")));
        }
    }
}

fn interface_faults(spec: &VirtualMachineSpec, faults: &mut Vec<Fault>) {
    let mut names = BTreeSet::new();
    let mut macs = BTreeSet::new();
    for (index, nic) in spec.interfaces.iter().enumerate() {
        let at = |field: &str| format!("spec.interfaces[{index}].{field}");
        faults.extend(label_fault(&at("name"), &nic.name, 32));
        if !names.insert(&nic.name) {
            faults.push(Fault::refused(
                at("name"),
                format!("{} is used twice; give each interface a name of its own", shown(&nic.name)),
            ));
        }
        if nic.model == NicModel::Unknown {
            faults.push(Fault::refused(at("model"), "this version knows virtio, e1000e and rtl8139"));
        }
        match nic.mac_address.as_deref().map(Mac::from_str) {
            Some(Err(error)) => faults.push(Fault::refused(at("macAddress"), error.to_string())),
            Some(Ok(mac)) if !macs.insert(mac) => {
                faults.push(Fault::refused(
                    at("macAddress"),
                    format!("{mac} is used twice in this VM; change one"),
                ));
            }
            Some(Ok(_)) | None => {}
        }
    }
}

fn boot_order_faults(spec: &VirtualMachineSpec, faults: &mut Vec<Fault>) {
    let disks =
        spec.disks.iter().enumerate().map(|(i, d)| (format!("spec.disks[{i}].bootOrder"), d.boot_order));
    let nics = spec
        .interfaces
        .iter()
        .enumerate()
        .map(|(i, n)| (format!("spec.interfaces[{i}].bootOrder"), n.boot_order));
    let mut seen = BTreeSet::new();
    for (path, order) in disks.chain(nics).filter_map(|(path, order)| order.map(|order| (path, order))) {
        if order < 1 {
            faults.push(Fault::refused(path, format!("{order} is less than 1")));
        } else if !seen.insert(order) {
            faults.push(Fault::refused(
                path,
                format!("{order} is used twice; give each bootable device a place of its own"),
            ));
        }
    }
}
