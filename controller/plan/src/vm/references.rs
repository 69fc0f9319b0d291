//! Decides whether what a VM refers to is there and free for it: cluster, networks, disks, domains, addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use vireo_crds::{
    reasons,
    units::Mac,
    v1alpha1::{Disk, DiskSpec, Firmware, HostCluster, Resources, VirtualMachine},
};

use super::{
    fault::{Fault, shown},
    validate,
};
use crate::{
    capacity,
    guard::{Guard, stands},
    plan::WaitFor,
    step::Kind,
    world::{Key, World},
};

/// Most claims one Disk may carry, as the schema has it.
const MAX_CLAIMS: usize = 16;

/// A VM whose spec is possible and whose references are there.
#[derive(Debug)]
pub(crate) struct ValidatedVm<'a> {
    /// Its cluster.
    pub cluster: &'a Arc<HostCluster>,
    /// What it is promised on its host.
    pub need: Resources,
    /// How much of that memory is the guest's own.
    pub guest_memory: i64,
    /// Disks it uses.
    pub disks: Vec<DiskUse<'a>>,
    /// Networks its host must carry: name and uid.
    pub networks: BTreeMap<&'a str, &'a str>,
    /// Storage domains its host must reach: name and uid.
    pub domains: BTreeMap<&'a str, &'a str>,
    /// Secrets its host must be able to read, sorted.
    pub secrets: Vec<String>,
    /// Features its daemon must have.
    pub features: Vec<&'static str>,
}

/// One Disk a VM uses.
#[derive(Debug)]
pub(crate) struct DiskUse<'a> {
    /// Name inside the VM.
    pub name: &'a str,
    /// The Disk.
    pub key: Key,
    /// The guest only reads it.
    pub read_only: bool,
    /// The Disk as known; none for a template whose Disk is yet to be made.
    pub disk: Option<&'a Arc<Disk>>,
    /// What to make it from.
    pub template: Option<&'a DiskSpec>,
}

/// Checks everything; answers with all faults at once.
pub(crate) fn validate<'a>(world: &'a World, vm: &'a VirtualMachine) -> Result<ValidatedVm<'a>, Vec<Fault>> {
    let mut faults = validate::spec_faults(vm);
    let cluster = world.cluster(&vm.spec.cluster);
    if cluster.is_none() {
        faults.push(missing(
            reasons::CLUSTER_NOT_FOUND,
            "spec.cluster",
            Kind::HostCluster,
            None,
            &vm.spec.cluster,
        ));
    }
    let mut networks = BTreeMap::new();
    for (index, nic) in vm.spec.interfaces.iter().enumerate() {
        match world.network(&nic.network) {
            Some(network) => {
                networks.insert(nic.network.as_str(), network.metadata.uid.as_deref().unwrap_or_default());
            }
            None => {
                let path = format!("spec.interfaces[{index}].network");
                faults.push(missing(reasons::NETWORK_NOT_FOUND, &path, Kind::Network, None, &nic.network));
            }
        }
    }
    mac_faults(world, vm, &mut faults);
    let disks = disks(world, vm, &mut faults);
    let domains = domains(world, vm, &disks, &mut faults);
    match (cluster, faults.is_empty()) {
        (Some(cluster), true) => Ok(ValidatedVm {
            cluster,
            need: capacity::promised(&vm.spec),
            guest_memory: capacity::guest_memory(&vm.spec),
            disks,
            networks,
            domains,
            secrets: secrets(vm),
            features: features(vm),
        }),
        _ => Err(faults),
    }
}

fn missing(reason: &'static str, path: &str, kind: Kind, namespace: Option<&str>, name: &str) -> Fault {
    let waits_for = WaitFor::Object { kind, namespace: namespace.map(Into::into), name: name.into() };
    Fault::of(reason, path, format!("{kind} {} does not exist; create it or correct the name", shown(name)))
        .until(waits_for)
}

/// Secrets named by the spec, sorted and each once.
pub(crate) fn secrets(vm: &VirtualMachine) -> Vec<String> {
    let seed = vm.spec.cloud_init.as_ref();
    let named = seed.into_iter().flat_map(|c| [&c.user_data_secret, &c.network_data_secret]).flatten();
    named.map(|s| s.name.clone()).collect::<BTreeSet<_>>().into_iter().collect()
}

fn features(vm: &VirtualMachine) -> Vec<&'static str> {
    let mut features = Vec::new();
    if let Some(Firmware::Uefi(uefi)) = &vm.spec.firmware {
        features.push("uefi");
        if uefi.secure_boot {
            features.push("secureBoot");
        }
    }
    if vm.spec.tpm.is_some() {
        features.push("tpm");
    }
    features
}

fn mac_faults(world: &World, vm: &VirtualMachine, faults: &mut Vec<Fault>) {
    let prefix = world.cluster(&vm.spec.cluster).and_then(|c| Mac::parse_prefix(&c.spec.mac_prefix).ok());
    let own = Key::of(vm);
    for (index, nic) in vm.spec.interfaces.iter().enumerate() {
        let Some(mac) = validate::mac(vm, nic, prefix) else { continue };
        let others = world
            .vms_with_mac(&vm.spec.cluster, mac)
            .filter(|key| **key != own)
            .filter_map(|key| world.vm(key));
        if let Some(other) = others.into_iter().find(|other| goes_first(other, vm)) {
            let path = format!("spec.interfaces[{index}].macAddress");
            let message = format!(
                "{mac} is the address of VirtualMachine {}; change it on one of the two",
                Key::of(other.as_ref())
            );
            let other = Key::of(other.as_ref());
            let changes = WaitFor::namespaced(Kind::VirtualMachine, &other.namespace, &other.name);
            faults.push(Fault::of(reasons::MAC_CLASH, path, message).unless(changes));
        }
    }
}

/// Which of two VMs that want the same thing keeps it: the one already accepted with it, then the older.
fn goes_first(one: &VirtualMachine, other: &VirtualMachine) -> bool {
    let rank = |vm: &VirtualMachine| {
        let accepted = vm.status.as_ref().and_then(|s| s.placement.as_ref()).map(|p| p.generation);
        let is_accepted = accepted.is_some() && accepted == vm.metadata.generation;
        (!is_accepted, vm.metadata.creation_timestamp.as_ref().map(|t| t.0), vm.metadata.uid.clone())
    };
    rank(one) < rank(other)
}

fn disks<'a>(world: &'a World, vm: &'a VirtualMachine, faults: &mut Vec<Fault>) -> Vec<DiskUse<'a>> {
    let own = Key::of(vm);
    let mut uses: Vec<DiskUse<'a>> = Vec::new();
    for (index, disk) in vm.spec.disks.iter().enumerate() {
        let Some(name) = validate::disk_name(&own.name, disk) else { continue };
        let key = Key::new(&own.namespace, &name);
        let found = world.disk(&key);
        let read_only = validate::is_read_only(disk);
        let path = format!("spec.disks[{index}]");
        if let Some(twice) = uses.iter().find(|u| u.key == key && !(u.read_only && read_only)) {
            let message = format!(
                "Disk {} is already disk {} of this VM; a writer must be the only user",
                shown(&name),
                shown(twice.name)
            );
            faults.push(Fault::of(reasons::DISK_IN_USE, &path, message));
            continue;
        }
        match (found, &disk.template) {
            (Some(found), template) => {
                faults.extend(disk_fault(world, vm, found, &path, template.is_some(), read_only))
            }
            (None, None) => {
                faults.push(missing(reasons::DISK_NOT_FOUND, &path, Kind::Disk, Some(&own.namespace), &name))
            }
            (None, Some(_))
                if world
                    .undecodable(Kind::Disk)
                    .any(|o| o.name == name && o.namespace.as_deref() == Some(&own.namespace)) =>
            {
                faults.push(Fault::of(
                    reasons::DISK_NAME_TAKEN,
                    &path,
                    format!("Disk {} exists but cannot be decoded", shown(&name)),
                ));
            }
            (None, Some(_)) => {}
        }
        uses.push(DiskUse {
            name: &disk.name,
            key,
            read_only,
            disk: found,
            template: disk.template.as_ref(),
        });
    }
    uses
}

fn disk_fault(
    world: &World,
    vm: &VirtualMachine,
    disk: &Disk,
    path: &str,
    template: bool,
    read_only: bool,
) -> Option<Fault> {
    let uid = vm.metadata.uid.as_deref().unwrap_or_default();
    let key = Key::of(disk);
    let changes = WaitFor::namespaced(Kind::Disk, &key.namespace, &key.name);
    let name = shown(&key.name);
    if disk.metadata.deletion_timestamp.is_some() {
        return Some(
            Fault::of(
                reasons::DISK_DELETING,
                path,
                format!("Disk {name} is being deleted; wait, or name another"),
            )
            .until(changes),
        );
    }
    let owner = crate::disk::owner(disk);
    if template && owner.map(|o| o.uid.as_str()) != Some(uid) {
        let gone = owner
            .is_some_and(|o| world.vm_by_uid(&o.uid).is_none() && Some(&o.name) == vm.metadata.name.as_ref());
        let message = format!(
            "Disk {name} exists and is not this VM's; rename the disk, or use the existing one with disk: {{name: {}}}",
            key.name
        );
        let fault = Fault::of(reasons::DISK_NAME_TAKEN, path, message);
        // The Disk of a deleted VM of the same name goes by itself.
        return Some(if gone { fault.until(changes) } else { fault.unless(changes) });
    }
    let claims = disk.status.as_ref().map(|s| s.attachments.as_slice()).unwrap_or_default();
    if claims.len() >= MAX_CLAIMS && !claims.iter().any(|claim| claim.vm_uid == uid) {
        let message = format!(
            "Disk {name} is used by {MAX_CLAIMS} VirtualMachines already, the most that may; make a second one"
        );
        return Some(Fault::of(reasons::DISK_IN_USE, path, message).unless(changes));
    }
    let other = claims
        .iter()
        .filter(|_| stands(Guard::DiskClaim))
        .find(|claim| claim.vm_uid != uid && !(claim.read_only && read_only))?;
    let message = format!(
        "Disk {name} is used by VirtualMachine {}; detach it there, or use it read-only in both",
        shown(&other.vm)
    );
    let fault = Fault::of(reasons::DISK_IN_USE, path, message);
    let leaving = world.vm_by_uid(&other.vm_uid).is_none_or(|vm| vm.metadata.deletion_timestamp.is_some());
    Some(if leaving { fault.until(changes) } else { fault.unless(changes) })
}

fn domains<'a>(
    world: &'a World,
    vm: &'a VirtualMachine,
    disks: &[DiskUse<'a>],
    faults: &mut Vec<Fault>,
) -> BTreeMap<&'a str, &'a str> {
    let of_disks = vm.spec.disks.iter().enumerate().filter_map(|(index, disk)| {
        let used = disks.iter().find(|used| used.name == disk.name)?;
        let spec = used.disk.map(|d| &d.spec).or(used.template)?;
        let path = if used.template.is_some() {
            format!("spec.disks[{index}].template.storageDomain")
        } else {
            format!("spec.disks[{index}]")
        };
        Some((path, spec.storage_domain.as_str()))
    });
    let state =
        vm.spec.state.iter().map(|s| ("spec.state.storageDomain".to_owned(), s.storage_domain.as_str()));
    let kernel = vm
        .spec
        .direct_kernel_boot
        .iter()
        .map(|b| ("spec.directKernelBoot.storageDomain".to_owned(), b.storage_domain.as_str()));
    let mut found = BTreeMap::new();
    for (path, name) in of_disks.chain(state).chain(kernel) {
        match world.domain(name) {
            Some(domain) => {
                found.insert(name, domain.metadata.uid.as_deref().unwrap_or_default());
            }
            None => faults.push(missing(reasons::DOMAIN_NOT_FOUND, &path, Kind::StorageDomain, None, name)),
        }
    }
    found
}
