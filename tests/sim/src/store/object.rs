//! An object of any kind, and a world as a set of them.

use std::sync::Arc;

use controller_plan::{Key, Kind, World};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;
use vireo_crds::v1alpha1::{Disk, Host, HostCluster, StorageDomain, VirtualMachine, VirtualMachineAction};

/// An object of any kind.
#[derive(Debug, Clone)]
pub enum Object {
    Vm(Arc<VirtualMachine>),
    Disk(Arc<Disk>),
    Act(Arc<VirtualMachineAction>),
    Host(Arc<Host>),
    Cluster(Arc<HostCluster>),
    Domain(Arc<StorageDomain>),
}

impl Object {
    /// Its metadata.
    pub fn meta(&self) -> &ObjectMeta {
        match self {
            Self::Vm(o) => &o.metadata,
            Self::Disk(o) => &o.metadata,
            Self::Act(o) => &o.metadata,
            Self::Host(o) => &o.metadata,
            Self::Cluster(o) => &o.metadata,
            Self::Domain(o) => &o.metadata,
        }
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Vm(_) => Kind::VirtualMachine,
            Self::Disk(_) => Kind::Disk,
            Self::Act(_) => Kind::VirtualMachineAction,
            Self::Host(_) => Kind::Host,
            Self::Cluster(_) => Kind::HostCluster,
            Self::Domain(_) => Kind::StorageDomain,
        }
    }

    /// Puts it into a world.
    pub fn put(self, world: &mut World) {
        match self {
            Self::Vm(o) => world.put_vm(o),
            Self::Disk(o) => world.put_disk(o),
            Self::Act(o) => world.put_act(o),
            Self::Host(o) => world.put_host(o),
            Self::Cluster(o) => world.put_cluster(o),
            Self::Domain(o) => world.put_domain(o),
        }
    }
}

/// Takes an object out of a world.
pub fn remove(world: &mut World, kind: Kind, key: &Key) {
    match kind {
        Kind::VirtualMachine => world.remove_vm(key),
        Kind::Disk => world.remove_disk(key),
        Kind::VirtualMachineAction => world.remove_act(key),
        Kind::Host => world.remove_host(&key.name),
        Kind::HostCluster => world.remove_cluster(&key.name),
        Kind::Network => world.remove_network(&key.name),
        Kind::StorageDomain => world.remove_domain(&key.name),
        Kind::AffinityGroup => world.remove_group(key),
    }
}

/// The object of this kind and name.
pub fn get(world: &World, kind: Kind, key: &Key) -> Option<Object> {
    match kind {
        Kind::VirtualMachine => world.vm(key).cloned().map(Object::Vm),
        Kind::Disk => world.disk(key).cloned().map(Object::Disk),
        Kind::VirtualMachineAction => world.act(key).cloned().map(Object::Act),
        Kind::Host => world.host(&key.name).cloned().map(Object::Host),
        Kind::HostCluster => world.cluster(&key.name).cloned().map(Object::Cluster),
        Kind::StorageDomain => world.domain(&key.name).cloned().map(Object::Domain),
        Kind::Network | Kind::AffinityGroup => None,
    }
}

/// Everything in a world, in order.
pub fn all(world: &World) -> Vec<Object> {
    let mut all: Vec<Object> = Vec::new();
    all.extend(world.clusters().map(|(_, o)| Object::Cluster(o.clone())));
    all.extend(world.domains().map(|(_, o)| Object::Domain(o.clone())));
    all.extend(world.hosts().map(|(_, o)| Object::Host(o.clone())));
    all.extend(world.disks().cloned().map(Object::Disk));
    all.extend(world.vms().cloned().map(Object::Vm));
    all.extend(world.acts().cloned().map(Object::Act));
    all
}

pub(super) fn decode(kind: Kind, document: Value) -> Object {
    fn of<K: serde::de::DeserializeOwned>(document: Value) -> Arc<K> {
        Arc::new(
            serde_json::from_value(document.clone()).unwrap_or_else(|error| panic!("{error}: {document}")),
        )
    }
    match kind {
        Kind::VirtualMachine => Object::Vm(of(document)),
        Kind::Disk => Object::Disk(of(document)),
        Kind::VirtualMachineAction => Object::Act(of(document)),
        Kind::Host => Object::Host(of(document)),
        Kind::HostCluster => Object::Cluster(of(document)),
        Kind::StorageDomain | Kind::Network | Kind::AffinityGroup => Object::Domain(of(document)),
    }
}
