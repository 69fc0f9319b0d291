//! What the controller knows, indexed so that deciding about one object looks at that object and its neighbours
//! only. It is changed by one owner, from watches and from the answers to its own writes; planners read it.

mod change;
mod groups;
mod read;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use kube::Resource;
use serde::{Deserialize, Serialize};
use vireo_crds::{
    units::Mac,
    v1alpha1::{
        AffinityGroup, Disk, Host, HostCluster, Network, Resources, StorageDomain, VirtualMachine,
        VirtualMachineAction,
    },
};

use crate::{host::liveness::HostLiveness, session::Session, step::Kind};

/// Namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// Of these two.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// Of an object of a namespaced kind.
    pub fn of<K: Resource>(object: &K) -> Self {
        Self::new(
            object.meta().namespace.as_deref().unwrap_or_default(),
            object.meta().name.as_deref().unwrap_or_default(),
        )
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An object that exists and cannot be decoded: it counts as being there, and in the way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Undecodable {
    /// Kind.
    pub kind: Kind,
    /// Namespace, if the kind has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// uid.
    pub uid: String,
}

/// Which host may read which Secrets of a VM, as its Role says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretAccess {
    /// The host.
    pub host: String,
    /// Names of the Secrets, sorted.
    pub secrets: Vec<String>,
}

/// What has been promised on one host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// vCPUs and bytes.
    pub promised: Resources,
    /// Number of VMs.
    pub vms: i64,
}

/// What one VM adds to the indexes; kept so that it can be taken out again.
#[derive(Debug, Clone, Default)]
struct Footprint {
    load: Vec<(String, Resources)>,
    hosts: Vec<String>,
    macs: Vec<(String, Mac)>,
    disks: Vec<Key>,
    cluster: String,
}

#[derive(Debug, Clone)]
struct Reservation {
    host: String,
    need: Resources,
}

/// What the controller knows.
#[derive(Debug, Clone, Default)]
pub struct World {
    vms: BTreeMap<Key, Arc<VirtualMachine>>,
    disks: BTreeMap<Key, Arc<Disk>>,
    acts: BTreeMap<Key, Arc<VirtualMachineAction>>,
    hosts: BTreeMap<String, Arc<Host>>,
    clusters: BTreeMap<String, Arc<HostCluster>>,
    networks: BTreeMap<String, Arc<Network>>,
    domains: BTreeMap<String, Arc<StorageDomain>>,
    groups: BTreeMap<Key, Arc<AffinityGroup>>,

    liveness: BTreeMap<String, HostLiveness>,
    session: Option<Session>,
    installation_id: Option<String>,
    undecodable: BTreeSet<Undecodable>,
    terminating: BTreeSet<Kind>,
    host_access: BTreeSet<String>,
    secret_access: BTreeMap<String, SecretAccess>,
    reservations: BTreeMap<String, Reservation>,
    summary_written: BTreeMap<(Kind, String), Timestamp>,

    footprints: BTreeMap<Key, Footprint>,
    vm_by_uid: BTreeMap<String, Key>,
    load: BTreeMap<String, Load>,
    vms_by_host: BTreeMap<String, BTreeSet<Key>>,
    vms_by_cluster: BTreeMap<String, BTreeSet<Key>>,
    vms_by_mac: BTreeMap<(String, Mac), BTreeSet<Key>>,
    vms_by_disk: BTreeMap<Key, BTreeSet<Key>>,
    acts_by_vm: BTreeMap<Key, BTreeSet<Key>>,
    disks_by_claimant: BTreeMap<String, BTreeSet<Key>>,
    hosts_by_cluster: BTreeMap<String, BTreeMap<String, Arc<Host>>>,
    claimants_by_vm: BTreeMap<String, BTreeSet<String>>,
    groups_by_vm: BTreeMap<Key, BTreeSet<Key>>,
    members_by_group: BTreeMap<Key, BTreeSet<Key>>,
    /// By group: hosts on which members may be running, with those members.
    seats: BTreeMap<Key, BTreeMap<String, BTreeSet<Key>>>,
}
