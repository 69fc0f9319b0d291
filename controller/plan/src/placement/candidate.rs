//! What a VM asks of a host, and one host as filters and weights see it.

use std::sync::LazyLock;

use vireo_crds::v1alpha1::{Host, HostStatus, Resources, VirtualMachine};

use super::affinity::Ties;
use crate::{
    capacity,
    vm::references::ValidatedVm,
    world::{Key, Load, World},
};

/// What a VM asks of a host.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// The VM.
    pub vm: &'a VirtualMachine,
    /// The same, checked.
    pub valid: &'a ValidatedVm<'a>,
    /// Volumes that lie on one host: name of the disk, and the host.
    pub pins: Vec<(&'a str, &'a str)>,
    /// What the VM itself is promised already, by host: it does not stand in its own way.
    pub own: Vec<(String, Resources)>,
    /// What its affinity groups say.
    pub ties: Ties<'a>,
}

impl<'a> Request<'a> {
    /// Of this VM.
    pub fn of(world: &'a World, vm: &'a VirtualMachine, valid: &'a ValidatedVm<'a>) -> Self {
        let pins = valid.disks.iter().filter_map(|used| {
            let disk = used.disk?;
            let shared = world.domain(&disk.spec.storage_domain).is_some_and(|d| d.spec.directory.shared);
            let status = disk.status.as_ref()?;
            let host = status.local_host.as_deref().or(status.placement.as_ref().map(|p| p.host.as_str()))?;
            (!shared).then_some((used.name, host))
        });
        let key = Key::of(vm);
        Self { vm, valid, pins: pins.collect(), own: world.promised_to(&key), ties: Ties::of(world, &key) }
    }
}

/// One host that may be chosen for a VM.
pub(crate) struct Candidate<'a> {
    /// What is known.
    pub world: &'a World,
    /// What is asked.
    pub request: &'a Request<'a>,
    /// Name of the host.
    pub name: &'a str,
    /// The host.
    pub host: &'a Host,
    /// What it says of itself.
    pub status: &'a HostStatus,
    /// What is promised there to others.
    pub load: Load,
    /// What it may promise.
    pub room: Resources,
}

static NOTHING_SAID: LazyLock<HostStatus> = LazyLock::new(HostStatus::default);

impl<'a> Candidate<'a> {
    /// This host.
    pub fn of(world: &'a World, request: &'a Request<'a>, name: &'a str, host: &'a Host) -> Self {
        let status = host.status.as_ref().unwrap_or(&NOTHING_SAID);
        let mut load = world.load(name);
        for (_, own) in request.own.iter().filter(|(host, _)| host == name) {
            load.promised.cpus = load.promised.cpus.saturating_sub(own.cpus);
            load.promised.memory = load.promised.memory.saturating_sub(own.memory);
            load.vms -= 1;
        }
        let room = capacity::capacity(status.allocatable.unwrap_or_default(), request.valid.cluster);
        Self { world, request, name, host, status, load, room }
    }

    /// What is left there.
    pub fn free(&self) -> Resources {
        capacity::free(self.room, self.load.promised)
    }
}
