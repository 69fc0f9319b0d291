//! The table of kinds: how each is read, planned, and whom a change of it wakes.

use std::{collections::BTreeSet, fmt, sync::Arc};

use controller_plan::{
    plan::Plan,
    step::Kind,
    world::{Key, World},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::{
    Resource,
    api::{ApiResource, DynamicObject},
};
use serde::de::DeserializeOwned;
use vireo_crds::{
    condition::{self, kind},
    meta::CONTROLLER_MANAGER,
    v1alpha1::{
        AffinityGroup, Disk, Host, HostCluster, Network, StorageDomain, VirtualMachine, VirtualMachineAction,
    },
};

/// Kinds that are watched, kept and planned, in the order in which they are looked at first.
pub const KINDS: [Kind; 8] = [
    Kind::HostCluster,
    Kind::Host,
    Kind::Network,
    Kind::StorageDomain,
    Kind::AffinityGroup,
    Kind::Disk,
    Kind::VirtualMachine,
    Kind::VirtualMachineAction,
];

/// One object, by name: what the queue holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Item {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for a cluster-scoped kind.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Item {
    /// A namespaced object.
    pub fn namespaced(kind: Kind, key: &Key) -> Self {
        Self { kind, namespace: key.namespace.clone(), name: key.name.clone() }
    }

    /// A cluster-scoped object.
    pub fn global(kind: Kind, name: &str) -> Self {
        Self { kind, namespace: String::new(), name: name.to_owned() }
    }

    /// The object of this metadata.
    pub fn of(kind: Kind, meta: &ObjectMeta) -> Self {
        Self {
            kind,
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }

    fn key(&self) -> Key {
        Key::new(&self.namespace, &self.name)
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// How the API serves a kind.
pub fn resource(kind: Kind) -> ApiResource {
    match kind {
        Kind::VirtualMachine => ApiResource::erase::<VirtualMachine>(&()),
        Kind::VirtualMachineAction => ApiResource::erase::<VirtualMachineAction>(&()),
        Kind::Disk => ApiResource::erase::<Disk>(&()),
        Kind::HostCluster => ApiResource::erase::<HostCluster>(&()),
        Kind::Host => ApiResource::erase::<Host>(&()),
        Kind::Network => ApiResource::erase::<Network>(&()),
        Kind::StorageDomain => ApiResource::erase::<StorageDomain>(&()),
        Kind::AffinityGroup => ApiResource::erase::<AffinityGroup>(&()),
    }
}

/// Name of the CustomResourceDefinition of a kind.
pub fn crd_name(kind: Kind) -> String {
    let resource = resource(kind);
    format!("{}.{}", resource.plural, resource.group)
}

/// Puts an object that was read into the world. The error says why it cannot be decoded.
pub fn put(world: &mut World, kind: Kind, object: DynamicObject) -> Result<(), serde_json::Error> {
    match kind {
        Kind::VirtualMachine => world.put_vm(decode(object)?),
        Kind::VirtualMachineAction => world.put_act(decode(object)?),
        Kind::Disk => world.put_disk(decode(object)?),
        Kind::HostCluster => world.put_cluster(decode(object)?),
        Kind::Host => world.put_host(decode(object)?),
        Kind::Network => world.put_network(decode(object)?),
        Kind::StorageDomain => world.put_domain(decode(object)?),
        Kind::AffinityGroup => world.put_group(decode(object)?),
    }
    Ok(())
}

fn decode<K: DeserializeOwned>(mut object: DynamicObject) -> Result<Arc<K>, serde_json::Error> {
    // Half of a small object. Planners read which conditions we still own; nobody reads the rest.
    if let Some(entries) = &mut object.metadata.managed_fields {
        entries.retain(|e| {
            e.manager.as_deref() == Some(CONTROLLER_MANAGER) && e.subresource.as_deref() == Some("status")
        });
    }
    serde_json::from_value(serde_json::to_value(object)?).map(Arc::new)
}

/// Takes an object out of the world.
pub fn remove(world: &mut World, item: &Item) {
    match item.kind {
        Kind::VirtualMachine => world.remove_vm(&item.key()),
        Kind::VirtualMachineAction => world.remove_act(&item.key()),
        Kind::Disk => world.remove_disk(&item.key()),
        Kind::HostCluster => world.remove_cluster(&item.name),
        Kind::Host => world.remove_host(&item.name),
        Kind::Network => world.remove_network(&item.name),
        Kind::StorageDomain => world.remove_domain(&item.name),
        Kind::AffinityGroup => world.remove_group(&item.key()),
    }
}

/// What an executor must know of an object beside what a step says.
#[derive(Debug, Clone, Default)]
pub struct Held {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// Its conditions.
    pub conditions: Vec<Condition>,
}

/// The object as the world holds it.
pub fn held(world: &World, kind: Kind, namespace: &str, name: &str) -> Option<Held> {
    let key = Key::new(namespace, name);
    macro_rules! held {
        ($found:expr) => {
            $found.map(|o| Held {
                metadata: o.meta().clone(),
                conditions: o.status.as_ref().map(|s| s.conditions.clone()).unwrap_or_default(),
            })
        };
    }
    match kind {
        Kind::VirtualMachine => held!(world.vm(&key)),
        Kind::VirtualMachineAction => held!(world.act(&key)),
        Kind::Disk => held!(world.disk(&key)),
        Kind::HostCluster => held!(world.cluster(name)),
        Kind::Host => held!(world.host(name)),
        Kind::Network => held!(world.network(name)),
        Kind::StorageDomain => held!(world.domain(name)),
        Kind::AffinityGroup => held!(world.group(&key)),
    }
}

/// The plan for an object; none if there is no such object.
pub fn plan(world: &World, item: &Item, now: Timestamp) -> Option<Plan> {
    match item.kind {
        Kind::VirtualMachine => world
            .vm(&item.key())
            .map(|vm| controller_plan::plan_vm(world, vm, now, &uuid::Uuid::new_v4().to_string())),
        Kind::VirtualMachineAction => {
            world.act(&item.key()).map(|act| controller_plan::plan_act(world, act, now))
        }
        Kind::Disk => world.disk(&item.key()).map(|disk| controller_plan::plan_disk(world, disk, now)),
        Kind::HostCluster => world.cluster(&item.name).map(|c| controller_plan::plan_cluster(world, c, now)),
        Kind::Host => world.host(&item.name).map(|host| controller_plan::plan_host(world, host, now)),
        Kind::Network => world.network(&item.name).map(|n| controller_plan::plan_network(world, n, now)),
        Kind::StorageDomain => world.domain(&item.name).map(|d| controller_plan::plan_domain(world, d, now)),
        Kind::AffinityGroup => {
            world.group(&item.key()).map(|group| controller_plan::plan_group(world, group, now))
        }
    }
}

/// Every object of the world.
pub fn all(world: &World) -> Vec<Item> {
    let mut items = Vec::new();
    items.extend(world.clusters().map(|(name, _)| Item::global(Kind::HostCluster, name)));
    items.extend(world.hosts().map(|(name, _)| Item::global(Kind::Host, name)));
    items.extend(world.networks().map(|(name, _)| Item::global(Kind::Network, name)));
    items.extend(world.domains().map(|(name, _)| Item::global(Kind::StorageDomain, name)));
    items.extend(world.groups().map(|group| Item::of(Kind::AffinityGroup, &group.metadata)));
    items.extend(world.disks().map(|disk| Item::of(Kind::Disk, &disk.metadata)));
    items.extend(world.vms().map(|vm| Item::of(Kind::VirtualMachine, &vm.metadata)));
    items.extend(world.acts().map(|act| Item::of(Kind::VirtualMachineAction, &act.metadata)));
    items
}

/// The objects whose plan reads this one, itself included. Asked before and after each change, so that both its
/// old and its new neighbours are woken. Whoever waits for more than this says so in its plan.
pub fn neighbours(world: &World, item: &Item) -> BTreeSet<Item> {
    let mut woken = BTreeSet::from([item.clone()]);
    let key = item.key();
    match item.kind {
        Kind::VirtualMachine => {
            let Some(vm) = world.vm(&key) else { return woken };
            woken.insert(Item::global(Kind::HostCluster, &vm.spec.cluster));
            if let Some(placement) = vm.status.as_ref().and_then(|s| s.placement.as_ref()) {
                woken.insert(Item::global(Kind::Host, &placement.host));
                woken.extend(placement.target.iter().map(|t| Item::global(Kind::Host, &t.host)));
            }
            woken.extend(world.acts_on(&key).map(|act| Item::of(Kind::VirtualMachineAction, &act.metadata)));
            let named = vm.spec.disks.iter().flat_map(|disk| {
                let existing = disk.disk.as_ref().map(|d| d.name.clone());
                let template = disk.template.as_ref().map(|_| format!("{}-{}", key.name, disk.name));
                let cdrom = disk.cdrom.as_ref().and_then(|c| c.disk.clone());
                let ephemeral = disk.ephemeral.as_ref().map(|e| e.disk.clone());
                existing.or(template).or(cdrom).or(ephemeral)
            });
            woken.extend(named.map(|name| Item::namespaced(Kind::Disk, &Key::new(&key.namespace, &name))));
            let uid = vm.metadata.uid.as_deref().unwrap_or_default();
            woken.extend(world.disks_claimed_by(uid).map(|disk| Item::namespaced(Kind::Disk, disk)));
            for group in world.groups_of(&key) {
                woken.insert(Item::namespaced(Kind::AffinityGroup, group));
                woken.extend(waiting_members(world, group));
            }
        }
        Kind::Disk => {
            woken.extend(world.vms_using_disk(&key).map(|vm| Item::namespaced(Kind::VirtualMachine, vm)));
            let Some(disk) = world.disk(&key) else { return woken };
            let claimants =
                disk.status.iter().flat_map(|s| &s.attachments).filter_map(|a| world.vm_by_uid(&a.vm_uid));
            woken.extend(claimants.map(|vm| Item::of(Kind::VirtualMachine, &vm.metadata)));
        }
        Kind::VirtualMachineAction => {
            let Some(act) = world.act(&key) else { return woken };
            woken.insert(Item::namespaced(Kind::VirtualMachine, &Key::new(&key.namespace, &act.spec.vm)));
        }
        Kind::Host => {
            woken.extend(
                world.host(&item.name).map(|host| Item::global(Kind::HostCluster, &host.spec.cluster)),
            );
            woken.extend(world.vms_on_host(&item.name).map(|vm| Item::namespaced(Kind::VirtualMachine, vm)));
            woken.extend(world.networks().map(|(name, _)| Item::global(Kind::Network, name)));
            woken.extend(world.domains().map(|(name, _)| Item::global(Kind::StorageDomain, name)));
            let worked_on = world.disks().filter(|disk| {
                disk.status.as_ref().and_then(|s| s.placement.as_ref()).is_some_and(|p| p.host == item.name)
            });
            woken.extend(worked_on.map(|disk| Item::of(Kind::Disk, &disk.metadata)));
        }
        Kind::HostCluster => {
            woken.extend(world.hosts_of_cluster(&item.name).map(|(name, _)| Item::global(Kind::Host, name)));
            woken.extend(
                world.vms_of_cluster(&item.name).map(|vm| Item::namespaced(Kind::VirtualMachine, vm)),
            );
        }
        Kind::Network => {}
        Kind::AffinityGroup => {
            // Whether rules contradict each other is read from all groups of the namespace.
            let beside = world.groups_in(&key.namespace);
            woken.extend(beside.map(|group| Item::namespaced(Kind::AffinityGroup, group)));
            woken.extend(waiting_members(world, &key));
        }
        Kind::StorageDomain => {
            let here = world.disks().filter(|disk| disk.spec.storage_domain == item.name);
            woken.extend(here.map(|disk| Item::of(Kind::Disk, &disk.metadata)));
        }
    }
    woken
}

/// Members of a group that have no host yet: what the rules let them do may have changed.
fn waiting_members<'a>(world: &'a World, group: &'a Key) -> impl Iterator<Item = Item> + 'a {
    let waits = |vm: &&Key| {
        let conditions = world.vm(vm).and_then(|vm| vm.status.as_ref()).map(|status| &status.conditions);
        conditions
            .and_then(|c| condition::get(c, kind::PLACED))
            .is_some_and(|placed| placed.status == "False")
    };
    world.members_of(group).filter(waits).map(|vm| Item::namespaced(Kind::VirtualMachine, vm))
}
