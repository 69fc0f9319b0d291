//! Reading what is known: each question is answered from an index.

use std::sync::Arc;

use jiff::Timestamp;
use vireo_crds::{
    units::Mac,
    v1alpha1::{
        Attestation, Disk, Host, HostCluster, Network, Resources, StorageDomain, VirtualMachine,
        VirtualMachineAction,
    },
};

use super::{Key, Load, SecretAccess, Undecodable, World};
use crate::{
    host::liveness::{Freshness, HostLiveness},
    session::Session,
    step::Kind,
};

/// Reading what is known.
impl World {
    /// A VM by name.
    pub fn vm(&self, key: &Key) -> Option<&Arc<VirtualMachine>> {
        self.vms.get(key)
    }

    /// A VM by uid.
    pub fn vm_by_uid(&self, uid: &str) -> Option<&Arc<VirtualMachine>> {
        self.vms.get(self.vm_by_uid.get(uid)?)
    }

    /// All VMs.
    pub fn vms(&self) -> impl Iterator<Item = &Arc<VirtualMachine>> {
        self.vms.values()
    }

    /// A Disk by name.
    pub fn disk(&self, key: &Key) -> Option<&Arc<Disk>> {
        self.disks.get(key)
    }

    /// All Disks.
    pub fn disks(&self) -> impl Iterator<Item = &Arc<Disk>> {
        self.disks.values()
    }

    /// An act by name.
    pub fn act(&self, key: &Key) -> Option<&Arc<VirtualMachineAction>> {
        self.acts.get(key)
    }

    /// All acts.
    pub fn acts(&self) -> impl Iterator<Item = &Arc<VirtualMachineAction>> {
        self.acts.values()
    }

    /// A Host by name.
    pub fn host(&self, name: &str) -> Option<&Arc<Host>> {
        self.hosts.get(name)
    }

    /// All Hosts, by name.
    pub fn hosts(&self) -> impl Iterator<Item = (&String, &Arc<Host>)> {
        self.hosts.iter()
    }

    /// Hosts of a cluster, by name.
    pub fn hosts_of_cluster<'a>(
        &'a self,
        cluster: &str,
    ) -> impl Iterator<Item = (&'a String, &'a Arc<Host>)> + use<'a> {
        self.hosts_by_cluster.get(cluster).into_iter().flatten()
    }

    /// A cluster by name.
    pub fn cluster(&self, name: &str) -> Option<&Arc<HostCluster>> {
        self.clusters.get(name)
    }

    /// All clusters.
    pub fn clusters(&self) -> impl Iterator<Item = (&String, &Arc<HostCluster>)> {
        self.clusters.iter()
    }

    /// A network by name.
    pub fn network(&self, name: &str) -> Option<&Arc<Network>> {
        self.networks.get(name)
    }

    /// All networks.
    pub fn networks(&self) -> impl Iterator<Item = (&String, &Arc<Network>)> {
        self.networks.iter()
    }

    /// A storage domain by name.
    pub fn domain(&self, name: &str) -> Option<&Arc<StorageDomain>> {
        self.domains.get(name)
    }

    /// All storage domains.
    pub fn domains(&self) -> impl Iterator<Item = (&String, &Arc<StorageDomain>)> {
        self.domains.iter()
    }

    /// Signs of life of a host; nothing known if it was never measured.
    pub fn liveness(&self, host: &str) -> Option<&HostLiveness> {
        self.liveness.get(host)
    }

    /// Whether a host renews its Lease.
    pub fn freshness(&self, host: &str) -> Freshness {
        self.liveness.get(host).map(|l| l.freshness).unwrap_or_default()
    }

    /// The session this process is in.
    pub fn session(&self) -> Option<&Session> {
        self.session.as_ref()
    }

    /// What a host attested in this session; none if it has not, or if its answer may have been cut short.
    pub fn attestation(&self, host: &str) -> Option<&Attestation> {
        let nonce = &self.session.as_ref()?.nonce;
        let attestation = self.hosts.get(host)?.status.as_ref()?.attestation.as_ref()?;
        let complete = attestation.claims.len() < 512
            && attestation.offers.len() < 64
            && attestation.conditional.len() < 64;
        (attestation.session == *nonce && complete).then_some(attestation)
    }

    /// Hosts whose attestation, of whatever session, says something about the VM with this uid.
    pub fn hosts_claiming(&self, vm_uid: &str) -> impl Iterator<Item = &String> {
        self.claimants_by_vm.get(vm_uid).into_iter().flatten()
    }

    /// uid of the namespace kube-system.
    pub fn installation_id(&self) -> Option<&str> {
        self.installation_id.as_deref()
    }

    /// Objects of a kind that exist and cannot be decoded.
    pub fn undecodable(&self, kind: Kind) -> impl Iterator<Item = &Undecodable> {
        self.undecodable.iter().filter(move |o| o.kind == kind)
    }

    /// Whether deletions of objects of this kind are to be ignored.
    pub fn is_terminating(&self, kind: Kind) -> bool {
        self.terminating.contains(&kind)
    }

    /// Whether the host's own ServiceAccount and rights are known to exist.
    pub fn has_host_access(&self, host: &str) -> bool {
        self.host_access.contains(host)
    }

    /// Who may read the Secrets of this VM.
    pub fn secret_access(&self, vm_uid: &str) -> Option<&SecretAccess> {
        self.secret_access.get(vm_uid)
    }

    /// What has been promised on a host, reservations included.
    pub fn load(&self, host: &str) -> Load {
        self.load.get(host).copied().unwrap_or_default()
    }

    /// What the VM itself has been promised, by host: under open grants, and by a reservation.
    pub(crate) fn promised_to(&self, vm: &Key) -> Vec<(String, Resources)> {
        let mut all: Vec<_> = self.footprints.get(vm).map(|f| f.load.clone()).unwrap_or_default();
        let uid = self.vms.get(vm).and_then(|vm| vm.metadata.uid.as_ref());
        let reserved = uid.and_then(|uid| self.reservations.get(uid));
        all.extend(reserved.map(|r| (r.host.clone(), r.need)));
        all
    }

    /// VMs whose placement or target names this host, closed grants included: wake them when it changes.
    pub fn vms_on_host(&self, host: &str) -> impl Iterator<Item = &Key> {
        self.vms_by_host.get(host).into_iter().flatten()
    }

    /// VMs of a cluster.
    pub fn vms_of_cluster(&self, cluster: &str) -> impl Iterator<Item = &Key> {
        self.vms_by_cluster.get(cluster).into_iter().flatten()
    }

    /// VMs of a cluster with this hardware address.
    pub fn vms_with_mac(&self, cluster: &str, mac: Mac) -> impl Iterator<Item = &Key> {
        self.vms_by_mac.get(&(cluster.to_owned(), mac)).into_iter().flatten()
    }

    /// VMs whose spec names this Disk, templates included.
    pub fn vms_using_disk(&self, disk: &Key) -> impl Iterator<Item = &Key> {
        self.vms_by_disk.get(disk).into_iter().flatten()
    }

    /// Disks claimed for the VM with this uid.
    pub fn disks_claimed_by(&self, vm_uid: &str) -> impl Iterator<Item = &Key> {
        self.disks_by_claimant.get(vm_uid).into_iter().flatten()
    }

    /// Acts on the VM of this name.
    pub fn acts_on(&self, vm: &Key) -> impl Iterator<Item = &Arc<VirtualMachineAction>> {
        self.acts_by_vm.get(vm).into_iter().flatten().filter_map(|key| self.acts.get(key))
    }

    /// When the columns of a Host or HostCluster were last written by this process.
    pub fn summary_written(&self, kind: Kind, name: &str) -> Option<Timestamp> {
        self.summary_written.get(&(kind, name.to_owned())).copied()
    }
}
