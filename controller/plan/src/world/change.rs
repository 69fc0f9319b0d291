//! Changing what is known, one object at a time, with all indexes kept true.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use vireo_crds::{
    meta,
    v1alpha1::{
        Disk, Host, HostCluster, Network, Resources, StorageDomain, VirtualMachine, VirtualMachineAction,
    },
};

use super::{Footprint, Key, Reservation, SecretAccess, Undecodable, World};
use crate::{
    capacity, evidence,
    host::liveness::HostLiveness,
    session::{self, Session},
    step::Kind,
    vm::validate,
};

/// Whether `new` is an older version of the same object than `held`: an echo that came late.
pub(super) fn is_older(new: &ObjectMeta, held: &ObjectMeta) -> bool {
    let version = |meta: &ObjectMeta| meta.resource_version.as_deref().and_then(|v| v.parse::<u64>().ok());
    new.uid == held.uid && matches!((version(new), version(held)), (Some(new), Some(held)) if new < held)
}

/// uids of the VMs a host attests something about.
fn claimed_uids(host: &Host) -> impl Iterator<Item = &String> {
    let attestation = host.status.as_ref().and_then(|s| s.attestation.as_ref());
    attestation.into_iter().flat_map(|a| a.claims.iter().chain(&a.conditional)).map(|claim| &claim.vm_uid)
}

fn name_of<K: Resource>(object: &K) -> String {
    object.meta().name.clone().unwrap_or_default()
}

pub(super) fn insert_into<K: Ord + Clone, V: Ord>(index: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: V) {
    index.entry(key.clone()).or_default().insert(value);
}

pub(super) fn remove_from<K: Ord, V: Ord>(index: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(set) = index.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            index.remove(key);
        }
    }
}

/// Changing what is known. `put_*` takes an object from a watch or from the answer to a write and ignores a
/// version older than the one held, so that a late echo never undoes an answer.
impl World {
    /// A VM as read.
    pub fn put_vm(&mut self, vm: Arc<VirtualMachine>) {
        let key = Key::of(vm.as_ref());
        if self.vms.get(&key).is_some_and(|held| is_older(&vm.metadata, &held.metadata)) {
            return;
        }
        self.unindex_vm(&key);
        self.vms.insert(key.clone(), vm);
        self.index_vm(&key);
    }

    /// No VM of this name exists.
    pub fn remove_vm(&mut self, key: &Key) {
        self.unindex_vm(key);
        self.vms.remove(key);
    }

    fn index_vm(&mut self, key: &Key) {
        let Some(vm) = self.vms.get(key).cloned() else { return };
        let cluster = vm.spec.cluster.clone();
        let placement = vm.status.as_ref().and_then(|s| s.placement.as_ref());
        let need = capacity::promised(&vm.spec);
        let mut footprint = Footprint { cluster: cluster.clone(), ..Footprint::default() };
        if let Some(placement) = placement {
            for (grant, open) in evidence::reported_open(&vm, placement) {
                footprint.hosts.push(grant.host.clone());
                if open {
                    footprint.load.push((grant.host, need));
                }
            }
        }
        let prefix = self.clusters.get(&cluster).map(|c| c.spec.mac_prefix.as_str());
        footprint.macs = validate::macs(&vm, prefix).into_iter().map(|mac| (cluster.clone(), mac)).collect();
        footprint.disks =
            validate::disk_names(&vm).into_iter().map(|name| Key::new(&key.namespace, &name)).collect();

        if let Some(uid) = &vm.metadata.uid {
            self.vm_by_uid.insert(uid.clone(), key.clone());
        }
        for (host, need) in &footprint.load {
            let load = self.load.entry(host.clone()).or_default();
            load.promised.cpus = load.promised.cpus.saturating_add(need.cpus);
            load.promised.memory = load.promised.memory.saturating_add(need.memory);
            load.vms += 1;
        }
        for host in &footprint.hosts {
            insert_into(&mut self.vms_by_host, host, key.clone());
        }
        for mac in &footprint.macs {
            insert_into(&mut self.vms_by_mac, mac, key.clone());
        }
        for disk in &footprint.disks {
            insert_into(&mut self.vms_by_disk, disk, key.clone());
        }
        insert_into(&mut self.vms_by_cluster, &cluster, key.clone());
        self.footprints.insert(key.clone(), footprint);
        self.index_groups_of(key, &vm);
        self.note_attested(&vm);
    }

    fn unindex_vm(&mut self, key: &Key) {
        self.unindex_groups_of(key);
        let Some(footprint) = self.footprints.remove(key) else { return };
        for (host, need) in &footprint.load {
            if let Some(load) = self.load.get_mut(host) {
                load.promised.cpus = load.promised.cpus.saturating_sub(need.cpus);
                load.promised.memory = load.promised.memory.saturating_sub(need.memory);
                load.vms -= 1;
            }
        }
        for host in &footprint.hosts {
            remove_from(&mut self.vms_by_host, host, key);
        }
        for mac in &footprint.macs {
            remove_from(&mut self.vms_by_mac, mac, key);
        }
        for disk in &footprint.disks {
            remove_from(&mut self.vms_by_disk, disk, key);
        }
        remove_from(&mut self.vms_by_cluster, &footprint.cluster, key);
        if let Some(uid) = self.vms.get(key).and_then(|vm| vm.metadata.uid.as_ref()) {
            self.vm_by_uid.remove(uid);
        }
    }

    /// A Disk as read.
    pub fn put_disk(&mut self, disk: Arc<Disk>) {
        let key = Key::of(disk.as_ref());
        if self.disks.get(&key).is_some_and(|held| is_older(&disk.metadata, &held.metadata)) {
            return;
        }
        self.unindex_disk(&key);
        for claim in disk.status.iter().flat_map(|s| &s.attachments) {
            insert_into(&mut self.disks_by_claimant, &claim.vm_uid, key.clone());
        }
        self.disks.insert(key, disk);
    }

    /// No Disk of this name exists.
    pub fn remove_disk(&mut self, key: &Key) {
        self.unindex_disk(key);
        self.disks.remove(key);
    }

    fn unindex_disk(&mut self, key: &Key) {
        let Some(disk) = self.disks.get(key).cloned() else { return };
        for claim in disk.status.iter().flat_map(|s| &s.attachments) {
            remove_from(&mut self.disks_by_claimant, &claim.vm_uid, key);
        }
    }

    /// An act as read.
    pub fn put_act(&mut self, act: Arc<VirtualMachineAction>) {
        let key = Key::of(act.as_ref());
        if self.acts.get(&key).is_some_and(|held| is_older(&act.metadata, &held.metadata)) {
            return;
        }
        self.remove_act(&key);
        insert_into(&mut self.acts_by_vm, &Key::new(&key.namespace, &act.spec.vm), key.clone());
        self.acts.insert(key, act);
    }

    /// No act of this name exists.
    pub fn remove_act(&mut self, key: &Key) {
        if let Some(act) = self.acts.remove(key) {
            remove_from(&mut self.acts_by_vm, &Key::new(&key.namespace, &act.spec.vm), key);
        }
    }

    /// A Host as read.
    pub fn put_host(&mut self, host: Arc<Host>) {
        let name = name_of(host.as_ref());
        if self.hosts.get(&name).is_some_and(|held| is_older(&host.metadata, &held.metadata)) {
            return;
        }
        self.unindex_host(&name);
        let beside = self.hosts_by_cluster.entry(host.spec.cluster.clone()).or_default();
        beside.insert(name.clone(), host.clone());
        for uid in claimed_uids(&host) {
            insert_into(&mut self.claimants_by_vm, uid, name.clone());
        }
        self.hosts.insert(name.clone(), host);
        let here: Vec<_> = self.vms_on_host(&name).filter_map(|key| self.vms.get(key).cloned()).collect();
        here.iter().for_each(|vm| self.note_attested(vm));
    }

    /// No Host of this name exists.
    pub fn remove_host(&mut self, name: &str) {
        self.unindex_host(name);
        self.hosts.remove(name);
        self.host_access.remove(name);
        self.summary_written.remove(&(Kind::Host, name.into()));
    }

    fn unindex_host(&mut self, name: &str) {
        let Some(host) = self.hosts.get(name).cloned() else { return };
        if let Some(beside) = self.hosts_by_cluster.get_mut(&host.spec.cluster) {
            beside.remove(name);
        }
        for uid in claimed_uids(&host) {
            remove_from(&mut self.claimants_by_vm, uid, &name.to_owned());
        }
    }

    /// A cluster as read.
    pub fn put_cluster(&mut self, cluster: Arc<HostCluster>) {
        let name = name_of(cluster.as_ref());
        let held = self.clusters.get(&name);
        if held.is_some_and(|held| is_older(&cluster.metadata, &held.metadata)) {
            return;
        }
        let same_prefix = held.is_some_and(|held| held.spec.mac_prefix == cluster.spec.mac_prefix);
        self.clusters.insert(name.clone(), cluster);
        if !same_prefix {
            self.index_cluster_again(&name);
        }
    }

    /// No cluster of this name exists.
    pub fn remove_cluster(&mut self, name: &str) {
        self.clusters.remove(name);
        self.index_cluster_again(name);
    }

    fn index_cluster_again(&mut self, name: &str) {
        let keys: Vec<_> = self.vms_by_cluster.get(name).into_iter().flatten().cloned().collect();
        for key in keys {
            self.unindex_vm(&key);
            self.index_vm(&key);
        }
    }

    /// A network as read.
    pub fn put_network(&mut self, network: Arc<Network>) {
        let name = name_of(network.as_ref());
        if !self.networks.get(&name).is_some_and(|held| is_older(&network.metadata, &held.metadata)) {
            self.networks.insert(name, network);
        }
    }

    /// No network of this name exists.
    pub fn remove_network(&mut self, name: &str) {
        self.networks.remove(name);
    }

    /// A storage domain as read.
    pub fn put_domain(&mut self, domain: Arc<StorageDomain>) {
        let name = name_of(domain.as_ref());
        if !self.domains.get(&name).is_some_and(|held| is_older(&domain.metadata, &held.metadata)) {
            self.domains.insert(name, domain);
        }
    }

    /// No storage domain of this name exists.
    pub fn remove_domain(&mut self, name: &str) {
        self.domains.remove(name);
    }

    /// Signs of life of a host, measured anew. Returns whether they changed.
    pub fn set_liveness(&mut self, host: &str, liveness: HostLiveness) -> bool {
        self.liveness.insert(host.into(), liveness.clone()) != Some(liveness)
    }

    /// A session begins: call it once everything has been listed consistently and the nonce is written. What is
    /// known now is what existed before.
    pub fn begin_session(&mut self, nonce: &str) {
        let known = self.vms.values().map(|o| &o.metadata).chain(self.disks.values().map(|o| &o.metadata));
        let unread = self.undecodable.iter().map(|o| o.uid.clone());
        let uids = known.filter_map(|m| m.uid.clone()).chain(unread);
        let confirmations = self.hosts.iter().filter_map(|(name, host)| {
            let value = host.metadata.annotations.as_ref()?.get(meta::CONFIRM_ANNOTATION)?;
            Some((name.clone(), value.clone()))
        });
        self.session = Some(Session::new(nonce, uids, confirmations));
    }

    /// The session is over; nothing is placed until the next begins.
    pub fn end_session(&mut self) {
        self.session = None;
    }

    /// Replaces the session by one described in full: for tests and simulations.
    pub fn set_session(&mut self, session: Option<Session>) {
        self.session = session;
        let vms: Vec<_> = self.vms.values().cloned().collect();
        vms.iter().for_each(|vm| self.note_attested(vm));
    }

    /// A grant was written in this session: call it when the write has succeeded.
    pub fn note_granted(&mut self, grant_id: &str) {
        if let Some(session) = &mut self.session {
            session.granted.insert(grant_id.into());
        }
    }

    fn note_attested(&mut self, vm: &VirtualMachine) {
        let Some(session) = &self.session else { return };
        let Some(placement) = vm.status.as_ref().and_then(|s| s.placement.as_ref()) else { return };
        if session.attested.contains(&placement.id) {
            return;
        }
        let attestation = self.attestation(&placement.host);
        if attestation.is_some_and(|a| session::attests_exactly(a, vm, placement))
            && let Some(session) = &mut self.session
        {
            session.attested.insert(placement.id.clone());
        }
    }

    /// uid of the namespace kube-system.
    pub fn set_installation_id(&mut self, id: &str) {
        self.installation_id = Some(id.into());
    }

    /// An object exists that cannot be decoded. Call the matching `remove_*` too, if an older version was known.
    pub fn put_undecodable(&mut self, object: Undecodable) {
        self.undecodable.insert(object);
    }

    /// The object can be decoded again, or is gone.
    pub fn remove_undecodable(&mut self, kind: Kind, namespace: Option<&str>, name: &str) {
        self.undecodable
            .retain(|o| !(o.kind == kind && o.namespace.as_deref() == namespace && o.name == name));
    }

    /// Whether the CRD of this kind is being deleted: no deletion of its objects is obeyed then.
    pub fn set_terminating(&mut self, kind: Kind, terminating: bool) {
        if terminating {
            self.terminating.insert(kind);
        } else {
            self.terminating.remove(&kind);
        }
    }

    /// Whether ServiceAccount, Role and RoleBinding of this host are known to exist.
    pub fn set_host_access(&mut self, host: &str, exists: bool) {
        if exists {
            self.host_access.insert(host.into());
        } else {
            self.host_access.remove(host);
        }
    }

    /// What Role and RoleBinding `vireo-vm-<vm uid>` say; none: they do not exist.
    pub fn set_secret_access(&mut self, vm_uid: &str, access: Option<SecretAccess>) {
        match access {
            Some(access) => self.secret_access.insert(vm_uid.into(), access),
            None => self.secret_access.remove(vm_uid),
        };
    }

    /// Sets room aside for a placement that is on its way: before the write is sent.
    pub fn reserve(&mut self, vm_uid: &str, host: &str, need: Resources) {
        self.unreserve(vm_uid);
        let load = self.load.entry(host.into()).or_default();
        load.promised.cpus = load.promised.cpus.saturating_add(need.cpus);
        load.promised.memory = load.promised.memory.saturating_add(need.memory);
        load.vms += 1;
        self.reservations.insert(vm_uid.into(), Reservation { host: host.into(), need });
    }

    /// Gives the room back: after the answer is in the world, or the write has failed.
    pub fn unreserve(&mut self, vm_uid: &str) {
        let Some(reservation) = self.reservations.remove(vm_uid) else { return };
        if let Some(load) = self.load.get_mut(&reservation.host) {
            load.promised.cpus = load.promised.cpus.saturating_sub(reservation.need.cpus);
            load.promised.memory = load.promised.memory.saturating_sub(reservation.need.memory);
            load.vms -= 1;
        }
    }

    /// Columns of a Host or HostCluster were written now: their numbers wait ten seconds for the next write.
    pub fn note_summary_written(&mut self, kind: Kind, name: &str, now: Timestamp) {
        self.summary_written.insert((kind, name.into()), now);
    }
}
