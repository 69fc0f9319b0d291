//! Keeps the world of a session: what the watches say and what our own writes were answered, with the room set
//! aside for placements on their way; and wakes whoever reads what changed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use controller_plan::{
    plan::WaitFor,
    step::{Kind, Step},
    world::{Key, SecretAccess, World},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{ResourceExt, api::DynamicObject};
use vireo_crds::v1alpha1::Resources;

use crate::{
    kinds::{self, Item},
    metrics::{KindLabel, StateLabel},
    session::{Session, Work, lock},
};

/// How long a deletion is remembered, so that a late answer does not bring the object back.
const REMEMBER_GONE: Duration = Duration::from_secs(300);

/// Who waits for what, and what is on its way.
#[derive(Debug, Default)]
pub struct Waiting {
    by_item: HashMap<Item, BTreeSet<WaitFor>>,
    by_wait: BTreeMap<WaitFor, BTreeSet<Item>>,
    /// uids of objects a watch has shown as deleted.
    gone: HashMap<String, Instant>,
    /// Versions written and not yet shown by the watch.
    echoes: HashMap<String, (u64, Instant)>,
}

impl Waiting {
    fn set(&mut self, item: &Item, waits: BTreeSet<WaitFor>) {
        for wait in self.by_item.remove(item).unwrap_or_default() {
            if let Some(items) = self.by_wait.get_mut(&wait) {
                items.remove(item);
                if items.is_empty() {
                    self.by_wait.remove(&wait);
                }
            }
        }
        for wait in &waits {
            self.by_wait.entry(wait.clone()).or_default().insert(item.clone());
        }
        if !waits.is_empty() {
            self.by_item.insert(item.clone(), waits);
        }
    }

    fn remember_gone(&mut self, uid: String, now: Instant) {
        self.gone.retain(|_, at| now.saturating_duration_since(*at) < REMEMBER_GONE);
        self.gone.insert(uid, now);
    }
}

/// What a write left behind.
#[derive(Debug)]
pub enum Outcome {
    /// The object, as the API server answered.
    Put(Kind, Box<DynamicObject>),
    /// The object is gone, or will be.
    Gone(Item),
    /// Nothing the world holds.
    Other,
}

fn version(meta: &ObjectMeta) -> u64 {
    meta.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

impl Session {
    /// Changes the world at one object, and wakes those who read it, before or after.
    pub fn change(&self, item: &Item, change: impl FnOnce(&mut World)) {
        if !self.has_begun() {
            change(&mut lock(&self.world));
            return;
        }
        let mut woken;
        let freed;
        {
            let mut world = lock(&self.world);
            woken = kinds::neighbours(&world, item);
            let hosts: Vec<String> =
                woken.iter().filter(|i| i.kind == Kind::Host).map(|i| i.name.clone()).collect();
            let loads: Vec<Resources> = hosts.iter().map(|host| world.load(host).promised).collect();
            change(&mut world);
            woken.extend(kinds::neighbours(&world, item));
            freed = hosts.iter().zip(loads).any(|(host, before)| {
                let after = world.load(host).promised;
                after.cpus < before.cpus || after.memory < before.memory
            });
        }
        if item.kind == Kind::Host {
            self.refresh_liveness(Some(&item.name));
        }
        self.wake_all(woken);
        let namespace = (!item.namespace.is_empty()).then(|| item.namespace.clone());
        self.wake_waiting(&WaitFor::Object { kind: item.kind, namespace, name: item.name.clone() });
        if freed || item.kind == Kind::Host {
            self.wake_waiting(&WaitFor::AnyHost);
        }
    }

    /// A watch shows an object; false if the world has exactly this version already.
    pub fn is_news(&self, kind: Kind, meta: &ObjectMeta) -> bool {
        let mut waiting = lock(&self.waiting);
        if let Some(uid) = &meta.uid
            && let Some((written, at)) = waiting.echoes.get(uid)
            && *written <= version(meta)
        {
            self.context().metrics.watch_lag.observe(at.elapsed().as_secs_f64());
            waiting.echoes.remove(uid);
        }
        drop(waiting);
        let world = lock(&self.world);
        let held = kinds::held(
            &world,
            kind,
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        );
        held.is_none_or(|held| {
            held.metadata.uid != meta.uid || held.metadata.resource_version != meta.resource_version
        })
    }

    /// A watch shows an object as deleted.
    pub fn note_gone(&self, meta: &ObjectMeta) {
        if let Some(uid) = meta.uid.clone() {
            let mut waiting = lock(&self.waiting);
            waiting.echoes.remove(&uid);
            waiting.remember_gone(uid, Instant::now());
        }
    }

    /// The CustomResourceDefinition of a kind is being deleted, or is there again.
    pub fn set_terminating(&self, kind: Kind, terminating: bool) {
        let items = {
            let mut world = lock(&self.world);
            if world.is_terminating(kind) == terminating {
                return;
            }
            world.set_terminating(kind, terminating);
            kinds::all(&world)
        };
        if terminating {
            tracing::warn!(%kind, "its CustomResourceDefinition is being deleted: no deletion of its objects is obeyed");
        }
        if self.has_begun() {
            self.wake_all(items.into_iter().filter(|item| item.kind == kind));
        }
    }

    /// Takes in what a step left behind.
    pub fn settle(&self, step: &Step, outcome: Outcome) {
        match outcome {
            Outcome::Put(kind, object) => self.put_answer(kind, *object),
            Outcome::Gone(item) => self.change(&item, |world| kinds::remove(world, &item)),
            Outcome::Other => {}
        }
        let mut world = lock(&self.world);
        match step {
            Step::SetPlacement { vm, status, .. } => {
                world.unreserve(&vm.uid);
                if let Some(placement) = &status.placement {
                    world.note_granted(&placement.id);
                    if let Some(target) = &placement.target {
                        world.note_granted(&target.id);
                    }
                }
            }
            Step::SetHostStatus { host, .. } => {
                world.note_summary_written(Kind::Host, &host.name, jiff::Timestamp::now())
            }
            Step::SetClusterStatus { cluster, .. } => {
                world.note_summary_written(Kind::HostCluster, &cluster.name, jiff::Timestamp::now());
            }
            Step::EnsureHostAccess { host } => world.set_host_access(&host.name, true),
            Step::EnsureSecretAccess { vm, host, secrets } => {
                let mut secrets = secrets.clone();
                secrets.sort();
                world.set_secret_access(&vm.uid, Some(SecretAccess { host: host.clone(), secrets }));
            }
            Step::RemoveSecretAccess { vm } => world.set_secret_access(&vm.uid, None),
            Step::EnsureFinalizer { .. }
            | Step::RemoveFinalizer { .. }
            | Step::SetVmStatus { .. }
            | Step::CreateDisk { .. }
            | Step::SetDiskStatus { .. }
            | Step::SetActStatus { .. }
            | Step::DeleteAct { .. }
            | Step::SetNetworkStatus { .. }
            | Step::SetGroupStatus { .. }
            | Step::SetDomainStatus { .. } => {}
        }
    }

    fn put_answer(&self, kind: Kind, object: DynamicObject) {
        let item = Item::of(kind, &object.metadata);
        {
            let mut waiting = lock(&self.waiting);
            let uid = object.uid().unwrap_or_default();
            if waiting.gone.contains_key(&uid) {
                return;
            }
            waiting.echoes.insert(uid, (version(&object.metadata), Instant::now()));
        }
        self.change(&item, |world| {
            if let Err(error) = kinds::put(world, kind, object) {
                tracing::warn!(object = %item, %error, "the answer to a write cannot be decoded");
            }
        });
    }

    /// Sets aside room for the placements among these steps. Called under the lock the plan was made under, so that
    /// no other plan can count on the same room.
    pub fn reserve(world: &mut World, steps: &[Step]) {
        for step in steps {
            let Step::SetPlacement { vm, status, .. } = step else { continue };
            let Some(placement) = &status.placement else { continue };
            let key = Key::new(vm.namespace.as_deref().unwrap_or_default(), &vm.name);
            let Some(object) = world.vm(&key).cloned() else { continue };
            let held = object.status.as_ref().and_then(|s| s.placement.as_ref());
            // A grant that is listed already has its room.
            if held.is_none_or(|held| held.id != placement.id) {
                world.reserve(&vm.uid, &placement.host, controller_plan::resources_of(&object));
            }
        }
    }

    /// Gives back the room of placements that were not written.
    pub fn unreserve(&self, steps: &[Step]) {
        let mut world = lock(&self.world);
        for step in steps {
            if let Step::SetPlacement { vm, .. } = step {
                world.unreserve(&vm.uid);
            }
        }
    }

    /// Remembers what a plan waits for.
    pub fn set_waits(&self, item: &Item, waits: BTreeSet<WaitFor>) {
        lock(&self.waiting).set(item, waits);
    }

    /// Wakes these objects.
    pub fn wake_all(&self, items: impl IntoIterator<Item = Item>) {
        if self.has_begun() {
            items.into_iter().for_each(|item| self.queue.wake(Work::Object(item)));
        }
    }

    /// Wakes who waits for this.
    pub fn wake_waiting(&self, wait: &WaitFor) {
        let items: Vec<Item> = lock(&self.waiting).by_wait.get(wait).into_iter().flatten().cloned().collect();
        self.wake_all(items);
    }

    /// Counts VMs, Hosts and undecodable objects for the metrics.
    pub fn count_states(&self) {
        let metrics = &self.context().metrics;
        metrics.vms.clear();
        metrics.hosts.clear();
        let world = lock(&self.world);
        for vm in world.vms() {
            let state = vm
                .status
                .as_ref()
                .and_then(|s| s.state)
                .map_or_else(|| "Pending".to_owned(), |s| format!("{s:?}"));
            metrics.vms.get_or_create(&StateLabel { state }).inc();
        }
        for (name, _) in world.hosts() {
            metrics.hosts.get_or_create(&StateLabel { state: format!("{:?}", world.freshness(name)) }).inc();
        }
        for kind in kinds::KINDS {
            let count = i64::try_from(world.undecodable(kind).count()).unwrap_or(i64::MAX);
            metrics.undecodable.get_or_create(&KindLabel { kind: kind.as_str() }).set(count);
        }
    }
}
