//! Which VMs belong to which affinity groups, and on which hosts a group's members are: kept true on every change, so
//! that a decision about one VM never looks through all others.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use vireo_crds::v1alpha1::{AffinityGroup, VirtualMachine};

use super::{
    Key, World,
    change::{insert_into, is_older, remove_from},
};

/// Affinity groups.
impl World {
    /// A group as read.
    pub fn put_group(&mut self, group: Arc<AffinityGroup>) {
        let key = Key::of(group.as_ref());
        if self.groups.get(&key).is_some_and(|held| is_older(&group.metadata, &held.metadata)) {
            return;
        }
        self.remove_group(&key);
        let members: Vec<Key> = self
            .vms
            .range(Key::new(&key.namespace, "")..)
            .take_while(|(vm, _)| vm.namespace == key.namespace)
            .filter(|(_, vm)| is_member(&group, vm))
            .map(|(vm, _)| vm.clone())
            .collect();
        self.groups.insert(key.clone(), group);
        for vm in members {
            self.join_group(&key, &vm);
        }
    }

    /// No group of this name exists.
    pub fn remove_group(&mut self, key: &Key) {
        if self.groups.remove(key).is_none() {
            return;
        }
        self.seats.remove(key);
        for vm in self.members_by_group.remove(key).unwrap_or_default() {
            remove_from(&mut self.groups_by_vm, &vm, key);
        }
    }

    /// Notes of what groups this VM is a member; its footprint is known by now.
    pub(super) fn index_groups_of(&mut self, key: &Key, vm: &VirtualMachine) {
        let of: Vec<Key> = self
            .groups_in(&key.namespace)
            .filter(|group| self.groups.get(group).is_some_and(|group| is_member(group, vm)))
            .cloned()
            .collect();
        for group in of {
            self.join_group(&group, key);
        }
    }

    fn join_group(&mut self, group: &Key, vm: &Key) {
        insert_into(&mut self.members_by_group, group, vm.clone());
        insert_into(&mut self.groups_by_vm, vm, group.clone());
        let hosts = self.footprints.get(vm).into_iter().flat_map(|f| &f.load).map(|(host, _)| host);
        let seats = self.seats.entry(group.clone()).or_default();
        for host in hosts {
            insert_into(seats, host, vm.clone());
        }
    }

    /// Forgets of what groups this VM is a member; its footprint is still known.
    pub(super) fn unindex_groups_of(&mut self, vm: &Key) {
        for group in self.groups_by_vm.remove(vm).unwrap_or_default() {
            remove_from(&mut self.members_by_group, &group, vm);
            let hosts = self.footprints.get(vm).into_iter().flat_map(|f| &f.load).map(|(host, _)| host);
            if let Some(seats) = self.seats.get_mut(&group) {
                for host in hosts {
                    remove_from(seats, host, vm);
                }
            }
        }
    }

    /// A group by name.
    pub fn group(&self, key: &Key) -> Option<&Arc<AffinityGroup>> {
        self.groups.get(key)
    }

    /// All groups.
    pub fn groups(&self) -> impl Iterator<Item = &Arc<AffinityGroup>> {
        self.groups.values()
    }

    /// Groups of a namespace, by name.
    pub fn groups_in<'a, 'n>(&'a self, namespace: &'n str) -> impl Iterator<Item = &'a Key> + use<'a, 'n> {
        self.groups
            .range(Key::new(namespace, "")..)
            .map(|(key, _)| key)
            .take_while(move |key| key.namespace == namespace)
    }

    /// Groups this VM is a member of, by name.
    pub fn groups_of(&self, vm: &Key) -> impl Iterator<Item = &Key> {
        self.groups_by_vm.get(vm).into_iter().flatten()
    }

    /// Members of a group, by name.
    pub fn members_of(&self, group: &Key) -> impl Iterator<Item = &Key> {
        self.members_by_group.get(group).into_iter().flatten()
    }

    /// Hosts on which members of a group may be running, by name, each with those members. Reservations are not
    /// among them: see [`World::reserved_members`].
    pub fn seats_of(&self, group: &Key) -> impl Iterator<Item = (&String, &BTreeSet<Key>)> {
        self.seats.get(group).into_iter().flatten()
    }

    /// The same, for looking up many hosts.
    pub(crate) fn seat_map(&self, group: &Key) -> Option<&BTreeMap<String, BTreeSet<Key>>> {
        self.seats.get(group)
    }

    /// Members of a group whose placement is on its way, with their host. Few are at any time.
    pub(crate) fn reserved_members(&self, group: &Key) -> impl Iterator<Item = (&String, &Key)> {
        self.reservations.iter().filter_map(move |(uid, reservation)| {
            let vm = self.vm_by_uid.get(uid)?;
            self.members_by_group.get(group)?.contains(vm).then_some((&reservation.host, vm))
        })
    }
}

fn is_member(group: &AffinityGroup, vm: &VirtualMachine) -> bool {
    let name = vm.metadata.name.as_deref().unwrap_or_default();
    group.spec.virtual_machines.contains(name, vm.metadata.labels.as_ref())
}
