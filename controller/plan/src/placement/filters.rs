//! Named reasons for which a host cannot take a VM, in the order in which they are looked at.

use vireo_crds::{
    condition::{self, kind},
    v1alpha1::{Architecture, CpuModel, Host, HostStatus, Resources, VirtualMachine},
};

use super::capacity;
use crate::{
    host::{self, liveness::Freshness},
    vm::references::ValidatedVm,
    world::World,
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
}

impl<'a> Request<'a> {
    /// Of this VM.
    pub fn of(world: &World, vm: &'a VirtualMachine, valid: &'a ValidatedVm<'a>) -> Self {
        let pins = valid.disks.iter().filter_map(|used| {
            let disk = used.disk?;
            let shared = world.domain(&disk.spec.storage_domain).is_some_and(|d| d.spec.directory.shared);
            let status = disk.status.as_ref()?;
            let host = status.local_host.as_deref().or(status.placement.as_ref().map(|p| p.host.as_str()))?;
            (!shared).then_some((used.name, host))
        });
        Self { vm, valid, pins: pins.collect() }
    }
}

/// Why a host cannot take a VM.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lack {
    Leaving,
    NotNamed(String),
    NotSelected,
    NotJoined,
    Silent,
    NotHeardYet,
    Duplicate,
    ConfirmedOver,
    Unschedulable,
    Hypervisor(String),
    Architecture(&'static str),
    Feature(&'static str),
    CpuModel(String),
    DiskElsewhere { disk: String, host: String },
    Domain { name: String, why: String },
    Network { name: String, why: String },
    Memory { need: i64, free: i64 },
    Cpus { need: i64, free: i64 },
}

/// The first reason for which this host cannot take the VM; none: it fits.
pub(crate) fn first_lack(world: &World, request: &Request<'_>, name: &str, host: &Host) -> Option<Lack> {
    let empty = HostStatus::default();
    let status = host.status.as_ref().unwrap_or(&empty);
    leaving(host)
        .or_else(|| wishes(request, name, host))
        .or_else(|| alive(world, name, host, status))
        .or_else(|| able(request, status))
        .or_else(|| disks_here(request, name))
        .or_else(|| storage(request, status))
        .or_else(|| networks(request, status))
        .or_else(|| room(world, request, name, status))
}

fn leaving(host: &Host) -> Option<Lack> {
    host.metadata.deletion_timestamp.is_some().then_some(Lack::Leaving)
}

fn wishes(request: &Request<'_>, name: &str, host: &Host) -> Option<Lack> {
    let scheduling = &request.vm.spec.scheduling;
    if let Some(named) = scheduling.host_name.as_ref().filter(|named| *named != name) {
        return Some(Lack::NotNamed(named.clone()));
    }
    let selected = scheduling.host_selector.as_ref().is_none_or(|s| s.matches(host.metadata.labels.as_ref()));
    (!selected).then_some(Lack::NotSelected)
}

fn alive(world: &World, name: &str, host: &Host, status: &HostStatus) -> Option<Lack> {
    let Some(incarnation) = &status.incarnation else { return Some(Lack::NotJoined) };
    let liveness = world.liveness(name);
    if liveness.is_some_and(|l| l.duplicate) {
        return Some(Lack::Duplicate);
    }
    // A grant for it would be over before it began.
    if host::confirmed_over(host) == Some(incarnation) {
        return Some(Lack::ConfirmedOver);
    }
    match world.freshness(name) {
        Freshness::Silent => return Some(Lack::Silent),
        // Its answer to this session is a sign of life, though no renewal has been seen yet.
        Freshness::NotYetKnown if world.attestation(name).is_none() => return Some(Lack::NotHeardYet),
        Freshness::Fresh
            if liveness.and_then(|l| l.holder.as_ref()).is_some_and(|holder| holder != incarnation) =>
        {
            return Some(Lack::NotHeardYet);
        }
        Freshness::NotYetKnown | Freshness::Fresh => {}
    }
    if !host.spec.schedulable {
        return Some(Lack::Unschedulable);
    }
    let hypervisor =
        condition::get(&status.conditions, kind::HYPERVISOR_READY).filter(|c| c.status == "False");
    hypervisor.map(|c| Lack::Hypervisor(c.message.clone()))
}

fn able(request: &Request<'_>, status: &HostStatus) -> Option<Lack> {
    let cpu = status.cpu.as_ref();
    if let Some(wanted) = request.vm.spec.architecture
        && cpu.map(|c| c.architecture) != Some(wanted)
    {
        return Some(Lack::Architecture(match wanted {
            Architecture::x86_64 => "x86_64",
            Architecture::aarch64 => "aarch64",
            Architecture::Unknown => "of a kind this version does not know",
        }));
    }
    if let Some(feature) =
        request.valid.features.iter().find(|f| !status.features.iter().any(|has| has == **f))
    {
        return Some(Lack::Feature(feature));
    }
    let model = match &request.vm.spec.cpu.model {
        CpuModel::Named(model) => Some(model.name.as_str()),
        CpuModel::Cluster(_) => request.valid.cluster.status.as_ref().and_then(|s| s.baseline.as_deref()),
        CpuModel::HostModel(_) | CpuModel::HostPassthrough(_) => None,
    };
    let lacks = |model: &&str| !cpu.is_some_and(|c| c.usable_models.iter().any(|usable| usable == model));
    model.filter(lacks).map(|model| Lack::CpuModel(model.into()))
}

fn disks_here(request: &Request<'_>, name: &str) -> Option<Lack> {
    let (disk, host) = request.pins.iter().find(|(_, host)| *host != name)?;
    Some(Lack::DiskElsewhere { disk: (*disk).into(), host: (*host).into() })
}

fn storage(request: &Request<'_>, status: &HostStatus) -> Option<Lack> {
    request.valid.domains.iter().find_map(|(name, uid)| {
        let here = status.storage_domains.iter().find(|d| d.name == *name && d.uid == *uid);
        let why = here.and_then(|d| d.message.clone()).unwrap_or_default();
        (!here.is_some_and(|d| d.ready)).then(|| Lack::Domain { name: (*name).into(), why })
    })
}

fn networks(request: &Request<'_>, status: &HostStatus) -> Option<Lack> {
    request.valid.networks.iter().find_map(|(name, uid)| {
        let here = status.networks.iter().find(|n| n.name == *name && n.uid == *uid);
        let why = here.and_then(|n| n.message.clone()).unwrap_or_default();
        (!here.is_some_and(|n| n.ready)).then(|| Lack::Network { name: (*name).into(), why })
    })
}

fn room(world: &World, request: &Request<'_>, name: &str, status: &HostStatus) -> Option<Lack> {
    let room = capacity(status.allocatable.unwrap_or_default(), request.valid.cluster);
    let promised = world.load(name).promised;
    let free = Resources {
        cpus: room.cpus.saturating_sub(promised.cpus).max(0),
        memory: room.memory.saturating_sub(promised.memory).max(0),
    };
    let need = request.valid.need;
    if free.memory < need.memory {
        return Some(Lack::Memory { need: need.memory, free: free.memory });
    }
    (free.cpus < need.cpus).then_some(Lack::Cpus { need: need.cpus, free: free.cpus })
}
