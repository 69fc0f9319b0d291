//! A simulated API server: versions, uids, conditional writes, CEL rule 3 of placements, one log of changes per
//! kind from which every watcher reads at its own pace, backups and restores. Whole objects are kept, and the
//! controller's writes have exactly the reference effect of their steps.

use std::{collections::BTreeMap, sync::Arc};

use controller_plan::{Key, Kind, Plan, Session, Step, World, effect};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry, ObjectMeta, Time};
use kube::Resource;
use serde_json::{Map, Value, json};
use vireo_crds::{
    meta::CONTROLLER_MANAGER,
    v1alpha1::{Disk, Host, HostCluster, Placement, StorageDomain, VirtualMachine, VirtualMachineAction},
};

/// Kinds that are watched.
pub const KINDS: [Kind; 6] = [
    Kind::VirtualMachine,
    Kind::Disk,
    Kind::VirtualMachineAction,
    Kind::Host,
    Kind::HostCluster,
    Kind::StorageDomain,
];

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
        Kind::Network => None,
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

    /// Carries out a step of the controller's.
    pub fn apply(&mut self, step: &Step, now: Timestamp) -> Result<Option<Object>, Refused> {
        if let Step::CreateDisk { disk } = step {
            let document = serde_json::to_value(disk).unwrap_or_default();
            let created = self.create(Kind::Disk, document, now);
            return created.map(Some).ok_or(Refused::Stale("exists".into()));
        }
        let Some(object) = step.object() else { return Ok(None) };
        let key = Key::new(object.namespace.as_deref().unwrap_or_default(), &object.name);
        let kind = object.kind;
        let mut step = step.clone();
        if self.unconditional || self.without_uid {
            self.loosen(&mut step, kind, &key);
        }
        self.check(&step, &key)?;
        if let Step::SetPlacement { session, .. } = &step {
            self.world.set_session(Some(Session { nonce: session.clone(), ..Session::default() }));
        }
        let plan = Plan { steps: vec![step.clone()], ..Plan::default() };
        let done = effect::apply_plan(&mut self.world, &plan, now);
        self.world.set_session(None);
        done.map_err(|error| Refused::Stale(error.to_string()))?;
        if matches!(
            step,
            Step::EnsureHostAccess { .. } | Step::EnsureSecretAccess { .. } | Step::RemoveSecretAccess { .. }
        ) {
            return Ok(None);
        }
        self.own(&step, object.uid.clone());
        match get(&self.world, kind, &key) {
            Some(object) => Ok(Some(self.store(object))),
            None => {
                self.gone(kind, &key, &object.uid.clone(), now);
                Ok(None)
            }
        }
    }

    fn own(&mut self, step: &Step, uid: String) {
        let Some(Ok(body)) = step.status_body(&[], Timestamp::UNIX_EPOCH) else { return };
        let applied: Vec<String> = body["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|c| Some(c["type"].as_str()?.to_owned()))
            .collect();
        self.owners
            .retain(|(of, type_), owner| *of != uid || *owner == Owner::Node || applied.contains(type_));
        for type_ in applied {
            self.owners.insert((uid.clone(), type_), Owner::Controller);
        }
    }

    /// Rule 3, as the type's CEL has it.
    fn check(&self, step: &Step, key: &Key) -> Result<(), Refused> {
        let (Step::SetPlacement { vm, status, .. } | Step::SetVmStatus { vm, status }) = step else {
            return Ok(());
        };
        let stored = self.world.vm(key).filter(|o| o.metadata.uid.as_deref() == Some(&vm.uid));
        let Some(old) = stored.and_then(|o| o.status.as_ref()?.placement.as_ref()) else { return Ok(()) };
        if self.unconditional
            || stored.and_then(|o| o.metadata.resource_version.as_ref()) != Some(&vm.resource_version)
        {
            return Ok(());
        }
        rule3(old, status.placement.as_ref()).map_err(|rule| Refused::Invalid(rule.into()))
    }

    fn loosen(&self, step: &mut Step, kind: Kind, key: &Key) {
        let Some(stored) = get(&self.world, kind, key) else { return };
        let meta = stored.meta().clone();
        let (unconditional, without_uid) = (self.unconditional, self.without_uid);
        set_reference(step, |object| {
            if without_uid {
                object.uid = meta.uid.clone().unwrap_or_default();
                object.resource_version = meta.resource_version.clone().unwrap_or_default();
            }
            if unconditional && meta.uid.as_deref() == Some(&object.uid) {
                object.resource_version = meta.resource_version.clone().unwrap_or_default();
            }
        });
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
        self.revision = if bump { self.revision + 1000 } else { backup.revision };
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

/// CEL rules of a placement, stated again.
pub fn rule3(old: &Placement, new: Option<&Placement>) -> Result<(), &'static str> {
    let Some(new) = new else { return Err("placement is unset") };
    if new.last_epoch < old.last_epoch {
        return Err("lastEpoch falls");
    }
    if new.epoch > new.last_epoch {
        return Err("lastEpoch does not cover the grant");
    }
    if new.id == old.id
        && (&new.host, &new.incarnation, new.epoch) != (&old.host, &old.incarnation, old.epoch)
    {
        return Err("a grant changes in place");
    }
    if new.id != old.id && new.epoch <= old.last_epoch && old.target.as_ref() != Some(&new.grant()) {
        return Err("a new grant takes an old number");
    }
    Ok(())
}

/// Changes the reference to the object a step writes.
pub fn set_reference(step: &mut Step, change: impl FnOnce(&mut controller_plan::ObjectRef)) {
    match step {
        Step::EnsureFinalizer { object } | Step::RemoveFinalizer { object, .. } => change(object),
        Step::SetPlacement { vm, .. }
        | Step::SetVmStatus { vm, .. }
        | Step::EnsureSecretAccess { vm, .. }
        | Step::RemoveSecretAccess { vm } => change(vm),
        Step::SetDiskStatus { disk, .. } => change(disk),
        Step::SetActStatus { act, .. } | Step::DeleteAct { act } => change(act),
        Step::SetHostStatus { host, .. } | Step::EnsureHostAccess { host } => change(host),
        Step::SetClusterStatus { cluster, .. } => change(cluster),
        Step::SetNetworkStatus { network, .. } => change(network),
        Step::SetDomainStatus { domain, .. } => change(domain),
        Step::CreateDisk { .. } => {}
    }
}

fn decode(kind: Kind, document: Value) -> Object {
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
        Kind::StorageDomain | Kind::Network => Object::Domain(of(document)),
    }
}

/// Kinds that daemons report about.
pub trait Reported: Sized {
    /// The stored object.
    fn stored<'a>(world: &'a World, key: &Key) -> Option<&'a Arc<Self>>;
    /// As an object of any kind.
    fn wrap(object: Self) -> Object;
    /// And back.
    fn unwrap(object: Object) -> Option<Arc<Self>>;
    /// Its conditions.
    fn conditions(&mut self) -> &mut Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>;
}

macro_rules! reported {
    ($type:ident, $variant:ident, $get:expr) => {
        impl Reported for $type {
            fn stored<'a>(world: &'a World, key: &Key) -> Option<&'a Arc<Self>> {
                let get: fn(&'a World, &Key) -> Option<&'a Arc<Self>> = $get;
                get(world, key)
            }

            fn wrap(object: Self) -> Object {
                Object::$variant(Arc::new(object))
            }

            fn unwrap(object: Object) -> Option<Arc<Self>> {
                match object {
                    Object::$variant(object) => Some(object),
                    _ => None,
                }
            }

            fn conditions(&mut self) -> &mut Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition> {
                &mut self.status.get_or_insert_default().conditions
            }
        }
    };
}

reported!(VirtualMachine, Vm, |world, key| world.vm(key));
reported!(Disk, Disk, |world, key| world.disk(key));
reported!(VirtualMachineAction, Act, |world, key| world.act(key));
reported!(Host, Host, |world, key| world.host(&key.name));
