//! A simulated API server: versions, uids, conditional writes, CEL rule 3 of placements, one log of changes per
//! kind from which every watcher reads at its own pace, backups and restores. Whole objects are kept, and the
//! controller's writes have exactly the reference effect of their steps.

mod apply;
mod object;
mod reported;

use std::{collections::BTreeMap, sync::Arc};

use controller_plan::{Key, Kind, World};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry, ObjectMeta, Time};
use kube::Resource;
use serde_json::{Map, Value, json};
use vireo_crds::meta::CONTROLLER_MANAGER;

pub use apply::set_reference;
use object::decode;
pub use object::{Object, all, get, remove};
pub use reported::Reported;

/// Kinds that are watched.
pub const KINDS: [Kind; 6] = [
    Kind::VirtualMachine,
    Kind::Disk,
    Kind::VirtualMachineAction,
    Kind::Host,
    Kind::HostCluster,
    Kind::StorageDomain,
];

/// What a watch shows.
#[derive(Debug, Clone)]
pub enum Change {
    Put(Object),
    Gone(Key, String),
}

/// Why a write changed nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// Somebody wrote in between, the object is gone, or the like: plan again.
    Stale(String),
    /// Validation refuses it: that is somebody's mistake.
    Invalid(String),
    /// No connection, or it broke.
    Unreachable,
}

/// What a backup holds.
#[derive(Debug, Clone)]
pub struct Backup {
    world: World,
    revision: u64,
    nonce: Option<String>,
    owners: BTreeMap<(String, String), Owner>,
    leases: BTreeMap<String, Renewal>,
}

/// A host's Lease.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Renewal {
    /// Incarnation.
    pub holder: String,
    /// Number of the renewal, for its time.
    pub time: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Controller,
    Node,
}

/// The API server.
pub struct Store {
    /// What is stored.
    pub world: World,
    revision: u64,
    /// Every connection of an older number is broken.
    pub connection: u64,
    /// It answers.
    pub up: bool,
    /// What the watches show, by kind.
    pub logs: [Vec<Change>; KINDS.len()],
    /// The session object.
    pub nonce: Option<String>,
    /// Nonces, as a watch shows them.
    pub nonces: Vec<String>,
    /// Hosts' Leases.
    pub leases: BTreeMap<String, Renewal>,
    /// Renewals of them, ever.
    pub renewals: u64,
    owners: BTreeMap<(String, String), Owner>,
    uids: u64,
    /// Mutation: neither version nor CEL rule is checked.
    pub unconditional: bool,
    /// Mutation: a write is applied to whatever has the name.
    pub without_uid: bool,
    /// Writes done.
    pub writes: u64,
}

fn slot(kind: Kind) -> usize {
    KINDS.iter().position(|k| *k == kind).unwrap_or(0)
}

impl Store {
    /// An empty one.
    pub fn new() -> Self {
        Self {
            world: World::default(),
            revision: 0,
            connection: 1,
            up: true,
            logs: Default::default(),
            nonce: None,
            nonces: Vec::new(),
            leases: BTreeMap::new(),
            renewals: 0,
            owners: BTreeMap::new(),
            uids: 0,
            unconditional: false,
            without_uid: false,
            writes: 0,
        }
    }

    /// Reads the log of a kind from `cursor`.
    pub fn since(&self, kind: Kind, cursor: usize) -> &[Change] {
        self.logs[slot(kind)].get(cursor..).unwrap_or_default()
    }

    /// Ends of all logs.
    pub fn ends(&self) -> [usize; KINDS.len()] {
        std::array::from_fn(|i| self.logs[i].len())
    }

    /// Index of the log of a kind.
    pub fn slot(kind: Kind) -> usize {
        slot(kind)
    }

    fn uid(&mut self, kind: &str) -> String {
        self.uids += 1;
        format!("{kind}-{}", self.uids)
    }

    /// Creates an object from a document; None if the name is taken.
    pub fn create(&mut self, kind: Kind, mut document: Value, now: Timestamp) -> Option<Object> {
        let meta = document["metadata"].clone();
        let key = Key::new(
            meta["namespace"].as_str().unwrap_or_default(),
            meta["name"].as_str().unwrap_or_default(),
        );
        if get(&self.world, kind, &key).is_some() {
            return None;
        }
        document["apiVersion"] = json!("vireo.dev/v1alpha1");
        document["kind"] = json!(kind.as_str());
        document["metadata"]["uid"] = json!(self.uid(&key.name));
        document["metadata"]["generation"] = json!(1);
        document["metadata"]["creationTimestamp"] = json!(now.to_string());
        let object = decode(kind, document);
        Some(self.store(object))
    }

    /// Gives an object the next version, keeps it and shows it to the watches.
    fn store(&mut self, object: Object) -> Object {
        self.revision += 1;
        self.writes += 1;
        let version = self.revision.to_string();
        let fields = self.fields(object.meta().uid.as_deref().unwrap_or_default());
        let set = |meta: &mut ObjectMeta| {
            meta.resource_version = Some(version.clone());
            meta.managed_fields = Some(vec![fields.clone()]);
        };
        macro_rules! with {
            ($variant:ident, $object:expr) => {{
                let mut object = $object.as_ref().clone();
                set(&mut object.metadata);
                Object::$variant(Arc::new(object))
            }};
        }
        let object = match object {
            Object::Vm(o) => with!(Vm, o),
            Object::Disk(o) => with!(Disk, o),
            Object::Act(o) => with!(Act, o),
            Object::Host(o) => with!(Host, o),
            Object::Cluster(o) => with!(Cluster, o),
            Object::Domain(o) => with!(Domain, o),
        };
        object.clone().put(&mut self.world);
        self.logs[slot(object.kind())].push(Change::Put(object.clone()));
        object
    }

    /// What the controller owns among an object's conditions, as the API server records it.
    fn fields(&self, uid: &str) -> ManagedFieldsEntry {
        let range = (uid.to_owned(), String::new())..;
        let owned: Map<String, Value> = self
            .owners
            .range(range)
            .take_while(|((of, _), _)| of == uid)
            .filter(|(_, owner)| **owner == Owner::Controller)
            .map(|((_, type_), _)| (format!("k:{{\"type\":\"{type_}\"}}"), json!({"f:reason": {}})))
            .collect();
        ManagedFieldsEntry {
            manager: Some(CONTROLLER_MANAGER.into()),
            subresource: Some("status".into()),
            fields_v1: Some(FieldsV1(json!({"f:status": {"f:conditions": owned}}))),
            ..ManagedFieldsEntry::default()
        }
    }

    fn gone(&mut self, kind: Kind, key: &Key, uid: &str, now: Timestamp) {
        remove(&mut self.world, kind, key);
        self.writes += 1;
        self.revision += 1;
        self.logs[slot(kind)].push(Change::Gone(key.clone(), uid.to_owned()));
        if kind == Kind::VirtualMachine {
            let owned = self
                .world
                .disks()
                .filter(|d| d.metadata.owner_references.iter().flatten().any(|o| o.uid == uid));
            let owned: Vec<Key> = owned.map(|d| Key::of(d.as_ref())).collect();
            for key in owned {
                self.delete(Kind::Disk, &key, now);
            }
        }
    }

    /// A user deletes an object.
    pub fn delete(&mut self, kind: Kind, key: &Key, now: Timestamp) {
        let Some(object) = get(&self.world, kind, key) else { return };
        let uid = object.meta().uid.clone().unwrap_or_default();
        if object.meta().finalizers.as_ref().is_none_or(Vec::is_empty) {
            return self.gone(kind, key, &uid, now);
        }
        if object.meta().deletion_timestamp.is_none() {
            self.edit_meta(kind, key, |meta| meta.deletion_timestamp = Some(Time(now)));
        }
    }

    /// A user, or the system, edits an object's metadata.
    pub fn edit_meta(&mut self, kind: Kind, key: &Key, edit: impl Fn(&mut ObjectMeta)) {
        macro_rules! with {
            ($variant:ident, $object:expr) => {{
                let mut object = $object.as_ref().clone();
                edit(&mut object.metadata);
                Object::$variant(Arc::new(object))
            }};
        }
        let Some(object) = get(&self.world, kind, key) else { return };
        let object = match object {
            Object::Vm(o) => with!(Vm, o),
            Object::Disk(o) => with!(Disk, o),
            Object::Act(o) => with!(Act, o),
            Object::Host(o) => with!(Host, o),
            Object::Cluster(o) => with!(Cluster, o),
            Object::Domain(o) => with!(Domain, o),
        };
        self.store(object);
    }

    /// A user edits a VM's spec.
    pub fn edit_vm(&mut self, key: &Key, edit: impl FnOnce(&mut vireo_crds::v1alpha1::VirtualMachineSpec)) {
        let Some(vm) = self.world.vm(key) else { return };
        let mut vm = vm.as_ref().clone();
        let before = serde_json::to_value(&vm.spec).unwrap_or_default();
        edit(&mut vm.spec);
        if serde_json::to_value(&vm.spec).unwrap_or_default() != before {
            vm.metadata.generation = vm.metadata.generation.map(|g| g + 1);
            self.store(Object::Vm(Arc::new(vm)));
        }
    }

    /// A user edits a Host's spec.
    pub fn edit_host(&mut self, name: &str, edit: impl FnOnce(&mut vireo_crds::v1alpha1::HostSpec)) {
        let Some(host) = self.world.host(name) else { return };
        let mut host = host.as_ref().clone();
        edit(&mut host.spec);
        host.metadata.generation = host.metadata.generation.map(|g| g + 1);
        self.store(Object::Host(Arc::new(host)));
    }

    /// An administrator ties a host to no machine, so that the first to report is it.
    pub fn untie_host(&mut self, name: &str) {
        let Some(host) = self.world.host(name) else { return };
        let mut host = host.as_ref().clone();
        if let Some(status) = &mut host.status {
            status.identity = None;
        }
        self.store(Object::Host(Arc::new(host)));
    }

    /// A daemon applies its part of a status, decided from `version` of the object with this `uid`.
    pub fn report<K>(
        &mut self,
        held: &Arc<K>,
        own: &[&str],
        edit: impl FnOnce(&mut K),
    ) -> Result<Arc<K>, Refused>
    where
        K: Resource<DynamicType = ()> + Clone + Reported,
    {
        let key = Key::of(held.as_ref());
        let Some(stored) = K::stored(&self.world, &key) else { return Err(Refused::Stale("gone".into())) };
        let same_uid = stored.meta().uid == held.meta().uid || self.without_uid;
        if !same_uid
            || (stored.meta().resource_version != held.meta().resource_version && !self.unconditional)
        {
            return Err(Refused::Stale("conflict".into()));
        }
        let uid = stored.meta().uid.clone().unwrap_or_default();
        let mut object = stored.as_ref().clone();
        let before = object.conditions().clone();
        edit(&mut object);
        let applied = std::mem::take(object.conditions());
        let kept = before.into_iter().filter(|c| {
            let node = self.owners.get(&(uid.clone(), c.type_.clone())) == Some(&Owner::Node);
            let dropped = node && own.contains(&c.type_.as_str());
            !(dropped || applied.iter().any(|a| a.type_ == c.type_))
        });
        let all: Vec<_> = kept.chain(applied.iter().cloned()).collect();
        for condition in &applied {
            self.owners.insert((uid.clone(), condition.type_.clone()), Owner::Node);
        }
        *object.conditions() = all;
        let stored = self.store(K::wrap(object));
        K::unwrap(stored).ok_or(Refused::Stale("gone".into()))
    }

    /// Whether a condition was applied by a daemon.
    pub fn is_nodes(&self, uid: &str, type_: &str) -> bool {
        self.owners.get(&(uid.to_owned(), type_.to_owned())) == Some(&Owner::Node)
    }

    /// A backup.
    pub fn backup(&self) -> Backup {
        Backup {
            world: self.world.clone(),
            revision: self.revision,
            nonce: self.nonce.clone(),
            owners: self.owners.clone(),
            leases: self.leases.clone(),
        }
    }

    /// Restores a backup: every connection breaks. With `bump` no version ever repeats.
    pub fn restore(&mut self, backup: &Backup, bump: bool) {
        self.world = backup.world.clone();
        self.revision = if bump { self.revision.max(backup.revision) + 1000 } else { backup.revision };
        self.nonce = backup.nonce.clone();
        self.owners = backup.owners.clone();
        self.leases = backup.leases.clone();
        self.restart();
    }

    /// Breaks every connection.
    pub fn restart(&mut self) {
        self.connection += 1;
        self.logs = Default::default();
        self.nonces = self.nonce.iter().cloned().collect();
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}
