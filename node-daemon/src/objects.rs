//! What the API server last said, by kind. Decides nothing but one thing: an object that is out of sight is
//! "disappeared", never "gone"; only a read by name can say more.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client, Resource, ResourceExt, core::error_boundary::InvalidObject};
use node_plan::intent::VmRef;
use tokio::sync::mpsc::UnboundedSender;
use vireo_crds::{
    meta::DESTROY_ANNOTATION,
    v1alpha1::{
        Disk, Grant, Host, HostCluster, Network, StorageDomain, VirtualMachine, VirtualMachineAction,
    },
};

use crate::watch::{Seen, key};

/// Namespace and name.
pub type Key = (String, String);

/// Who has to look again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wake {
    /// The worker of one VM, by uid.
    Vm(String),
    /// Every VM that waits for something.
    Waiting,
    /// Every VM.
    All,
    /// Storage domains or Disks changed.
    Storage,
    /// Networks changed.
    Networks,
    /// The Host object changed.
    Host,
    /// The session Lease names this nonce.
    Session(String),
    /// The list of VMs of this host is complete.
    VmsListed,
}

/// What is known of a VM's object.
#[derive(Debug, Clone)]
pub enum Sight {
    /// The watch shows it placed here.
    Here(Arc<VirtualMachine>),
    /// It exists but cannot be decoded.
    Undecodable(String),
    /// Nothing has been listed yet.
    Unseen,
    /// Out of sight, not yet read by name.
    Disappeared,
    /// Read by name: there is no object of this uid.
    Gone,
    /// Read by name: placed elsewhere.
    Elsewhere {
        /// Who holds it.
        holder: Grant,
        /// Grant id in the annotation that orders the end of a copy.
        order: Option<String>,
    },
}

#[derive(Default)]
struct Inner {
    vms: HashMap<String, Sight>,
    vms_listed: bool,
    /// Ids of grants found in the last list or by a read since: they did not arrive as a change on an unbroken watch.
    listed_grants: HashSet<String>,
    /// Watches of VMs older than this do not count.
    generation: u64,
    acts: HashMap<String, Arc<VirtualMachineAction>>,
    acts_listed: bool,
    disks: BTreeMap<Key, Arc<Disk>>,
    disks_listed: bool,
    /// Disks followed by name: none once the read is complete and there is no such Disk.
    disk_refs: BTreeMap<Key, Option<Arc<Disk>>>,
    networks: BTreeMap<String, Arc<Network>>,
    networks_listed: bool,
    domains: BTreeMap<String, Arc<StorageDomain>>,
    domains_listed: bool,
    clusters: BTreeMap<String, Arc<HostCluster>>,
    clusters_listed: bool,
    host: Option<Arc<Host>>,
    session: Option<String>,
}

/// The objects of this host, as last seen.
pub struct Objects {
    host: String,
    inner: Mutex<Inner>,
    wake: UnboundedSender<Wake>,
}

/// All storage domains, and the Disks this host works on.
pub type StoragePicture = (Vec<Arc<StorageDomain>>, Vec<Arc<Disk>>);

/// A Disk as far as it is known.
#[derive(Debug, Clone)]
pub enum DiskSight {
    /// This one.
    Seen(Arc<Disk>),
    /// There is none of this name.
    Absent,
    /// Not read yet.
    Unread,
}

impl Objects {
    /// Nothing is known yet.
    pub fn new(host: impl Into<String>, wake: UnboundedSender<Wake>) -> Self {
        Self { host: host.into(), inner: Mutex::default(), wake }
    }

    /// Name of this host.
    pub fn host_name(&self) -> &str {
        &self.host
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, wake: Wake) {
        // Closed: the daemon is going away.
        let _ = self.wake.send(wake);
    }

    /// What is known of a VM.
    pub fn vm(&self, uid: &str) -> Sight {
        let inner = self.lock();
        if !inner.vms_listed || !inner.acts_listed {
            return Sight::Unseen;
        }
        inner.vms.get(uid).cloned().unwrap_or(Sight::Disappeared)
    }

    /// uids of all VMs the watch shows here.
    pub fn vms_here(&self) -> Vec<Arc<VirtualMachine>> {
        let here = |sight: &Sight| match sight {
            Sight::Here(vm) => Some(Arc::clone(vm)),
            _ => None,
        };
        self.lock().vms.values().filter_map(here).collect()
    }

    /// Whether this grant was found in a list, or by a read, and did not arrive as a change.
    pub fn is_listed_grant(&self, id: &str) -> bool {
        self.lock().listed_grants.contains(id)
    }

    /// Whether the VMs of this host have been listed completely.
    pub fn vms_listed(&self) -> bool {
        self.lock().vms_listed
    }

    /// Says once more that the list of VMs is complete.
    pub fn announce_list(&self) {
        if self.vms_listed() {
            self.wake(Wake::VmsListed);
        }
    }

    /// Forgets every cached grant until the next complete list of this generation of watches.
    pub fn forget_vms(&self, generation: u64) {
        let mut inner = self.lock();
        inner.generation = generation;
        inner.vms_listed = false;
        inner.vms.clear();
        inner.listed_grants.clear();
    }

    /// Forgets what reads by name said of one VM.
    pub fn forget_vm(&self, uid: &str) {
        let mut inner = self.lock();
        if !matches!(inner.vms.get(uid), Some(Sight::Here(_) | Sight::Undecodable(_))) {
            inner.vms.remove(uid);
        }
    }

    /// Reads one VM by name, consistently, and keeps what that says.
    pub async fn read_vm(&self, client: &Client, vm: &VmRef) -> Result<(), kube::Error> {
        let api: Api<VirtualMachine> = Api::namespaced(client.clone(), &vm.namespace);
        let read = match api.get_opt(&vm.name).await {
            Ok(found) => found,
            Err(kube::Error::SerdeError(error)) => {
                self.lock().vms.insert(vm.uid.clone(), Sight::Undecodable(error.to_string()));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let sight = match read.filter(|found| found.uid().as_deref() == Some(&vm.uid)) {
            None => Sight::Gone,
            Some(found) => match found.status.as_ref().and_then(|status| status.placement.as_ref()) {
                Some(placement) if placement.host == self.host => Sight::Here(Arc::new(found)),
                Some(placement) => Sight::Elsewhere {
                    holder: placement.grant(),
                    order: found.annotations().get(DESTROY_ANNOTATION).cloned(),
                },
                // The store knows the VM but nobody's grant: it was restored to before the placement. The session's
                // attestation tells the controller; nothing is concluded here.
                None => Sight::Disappeared,
            },
        };
        let mut inner = self.lock();
        inner.listed_grants.extend(grant_of(&sight));
        inner.vms.insert(vm.uid.clone(), sight);
        Ok(())
    }

    /// Takes in a VM that a write returned, so that no echo is waited for.
    pub fn learn_vm(&self, vm: VirtualMachine) {
        let Some(uid) = vm.uid() else { return };
        let mut inner = self.lock();
        if let Some(Sight::Here(known)) = inner.vms.get(&uid)
            && is_newer(known.as_ref(), &vm)
        {
            return;
        }
        inner.vms.insert(uid, Sight::Here(Arc::new(vm)));
    }

    /// Whether another version of this VM is known meanwhile.
    pub fn is_outdated(&self, vm: &VirtualMachine) -> bool {
        let inner = self.lock();
        let known = vm.uid().and_then(|uid| inner.vms.get(&uid));
        matches!(known, Some(Sight::Here(known)) if is_newer(known.as_ref(), vm))
    }

    /// Takes in an act that a write returned.
    pub fn learn_act(&self, act: VirtualMachineAction) {
        if let Some(uid) = act.uid() {
            self.lock().acts.insert(uid, Arc::new(act));
        }
    }

    /// Acts for one VM.
    pub fn acts(&self, vm_uid: &str) -> Vec<Arc<VirtualMachineAction>> {
        let of_vm = |act: &&Arc<VirtualMachineAction>| {
            act.status.as_ref().is_some_and(|status| status.vm_uid.as_deref() == Some(vm_uid))
        };
        self.lock().acts.values().filter(of_vm).cloned().collect()
    }

    /// An act by uid.
    pub fn act(&self, uid: &str) -> Option<Arc<VirtualMachineAction>> {
        self.lock().acts.get(uid).cloned()
    }

    /// A Disk by name: among those worked on here, or those followed by name.
    pub fn disk(&self, key: &Key) -> DiskSight {
        let inner = self.lock();
        if let Some(disk) = inner.disks.get(key) {
            return DiskSight::Seen(Arc::clone(disk));
        }
        match inner.disk_refs.get(key) {
            Some(Some(disk)) => DiskSight::Seen(Arc::clone(disk)),
            Some(None) => DiskSight::Absent,
            None => DiskSight::Unread,
        }
    }

    /// Whether this Disk is among those worked on here.
    pub fn is_worked_on_here(&self, key: &Key) -> bool {
        self.lock().disks.contains_key(key)
    }

    /// The whole picture of storage: none until it is complete.
    pub fn storage(&self) -> Option<StoragePicture> {
        let inner = self.lock();
        (inner.disks_listed && inner.domains_listed)
            .then(|| (inner.domains.values().cloned().collect(), inner.disks.values().cloned().collect()))
    }

    /// All networks: none until they are listed.
    pub fn networks(&self) -> Option<Vec<Arc<Network>>> {
        let inner = self.lock();
        inner.networks_listed.then(|| inner.networks.values().cloned().collect())
    }

    /// A Network by name.
    pub fn network(&self, name: &str) -> Option<Arc<Network>> {
        self.lock().networks.get(name).cloned()
    }

    /// A StorageDomain by name.
    pub fn domain(&self, name: &str) -> Option<Arc<StorageDomain>> {
        self.lock().domains.get(name).cloned()
    }

    /// A HostCluster by name.
    pub fn cluster(&self, name: &str) -> Option<Arc<HostCluster>> {
        self.lock().clusters.get(name).cloned()
    }

    /// Whether everything a VM may refer to, Disks aside, has been listed.
    pub fn references_listed(&self) -> bool {
        let inner = self.lock();
        inner.networks_listed && inner.domains_listed && inner.clusters_listed && inner.disks_listed
    }

    /// This host's object.
    pub fn host(&self) -> Option<Arc<Host>> {
        self.lock().host.clone()
    }

    /// Identity of the installation, as any cluster says.
    pub fn installation_id(&self) -> Option<String> {
        self.lock().clusters.values().find_map(|cluster| cluster.status.as_ref()?.installation_id.clone())
    }

    /// Nonce of the present session.
    pub fn session(&self) -> Option<String> {
        self.lock().session.clone()
    }

    pub(crate) fn see_vms(&self, seen: Seen<VirtualMachine>, generation: u64) {
        let mut changed = Vec::new();
        let mut inner = self.lock();
        if generation < inner.generation {
            return;
        }
        match seen {
            Seen::Listed(list) => {
                let listed: HashMap<String, Sight> = list.into_iter().filter_map(sight_of).collect();
                for (uid, sight) in &mut inner.vms {
                    if matches!(sight, Sight::Here(_) | Sight::Undecodable(_)) && !listed.contains_key(uid) {
                        *sight = Sight::Disappeared;
                        changed.push(uid.clone());
                    }
                }
                changed.extend(listed.keys().cloned());
                inner.listed_grants = listed.values().filter_map(grant_of).collect();
                inner.vms.extend(listed);
                inner.vms_listed = true;
            }
            Seen::Applied(object) => {
                let Some((uid, sight)) = sight_of(object) else { return };
                if let (Some(Sight::Here(known)), Sight::Here(new)) = (inner.vms.get(&uid), &sight)
                    && is_newer(known.as_ref(), new.as_ref())
                {
                    return;
                }
                inner.vms.insert(uid.clone(), sight);
                changed.push(uid);
            }
            Seen::Left(meta) => {
                let Some(uid) = meta.uid else { return };
                inner.vms.insert(uid.clone(), Sight::Disappeared);
                changed.push(uid);
            }
        }
        let listed = inner.vms_listed;
        drop(inner);
        changed.into_iter().for_each(|uid| self.wake(Wake::Vm(uid)));
        if listed {
            self.wake(Wake::VmsListed);
        }
    }

    pub(crate) fn see_acts(&self, seen: Seen<VirtualMachineAction>) {
        let mut inner = self.lock();
        let vm_of = |act: &VirtualMachineAction| act.status.as_ref().and_then(|status| status.vm_uid.clone());
        let mut wakes = Vec::new();
        match seen {
            Seen::Listed(list) => {
                inner.acts = list
                    .into_iter()
                    .filter_map(Result::ok)
                    .filter_map(|act| Some((act.uid()?, Arc::new(act))))
                    .collect();
                if !std::mem::replace(&mut inner.acts_listed, true) {
                    wakes.push(Wake::All);
                    wakes.push(Wake::VmsListed);
                }
                wakes.extend(inner.acts.values().filter_map(|act| vm_of(act)).map(Wake::Vm));
            }
            Seen::Applied(Ok(act)) => {
                wakes.extend(vm_of(&act).map(Wake::Vm));
                if let Some(uid) = act.uid() {
                    inner.acts.insert(uid, Arc::new(act));
                }
            }
            Seen::Applied(Err(_)) => {}
            Seen::Left(meta) => {
                let left = meta.uid.and_then(|uid| inner.acts.remove(&uid));
                wakes.extend(left.and_then(|act| vm_of(&act)).map(Wake::Vm));
            }
        }
        drop(inner);
        wakes.into_iter().for_each(|wake| self.wake(wake));
    }

    pub(crate) fn see_disks(&self, seen: Seen<Disk>) {
        let mut inner = self.lock();
        inner.disks_listed |= matches!(seen, Seen::Listed(_));
        absorb(&mut inner.disks, seen, key);
        drop(inner);
        self.wake(Wake::Storage);
        self.wake(Wake::Waiting);
    }

    pub(crate) fn see_disk_ref(&self, name: &Key, seen: Seen<Disk>) {
        let mut inner = self.lock();
        let now = match seen {
            Seen::Listed(list) => list.into_iter().find_map(Result::ok).map(Arc::new),
            Seen::Applied(Ok(disk)) => Some(Arc::new(disk)),
            Seen::Applied(Err(_)) => return,
            Seen::Left(_) => None,
        };
        inner.disk_refs.insert(name.clone(), now);
        drop(inner);
        self.wake(Wake::Waiting);
    }

    pub(crate) fn forget_disk_ref(&self, name: &Key) {
        self.lock().disk_refs.remove(name);
    }

    pub(crate) fn see_networks(&self, seen: Seen<Network>) {
        let mut inner = self.lock();
        inner.networks_listed |= matches!(seen, Seen::Listed(_));
        absorb(&mut inner.networks, seen, |network| network.name_any());
        drop(inner);
        self.wake(Wake::Networks);
        self.wake(Wake::Waiting);
    }

    pub(crate) fn see_domains(&self, seen: Seen<StorageDomain>) {
        let mut inner = self.lock();
        inner.domains_listed |= matches!(seen, Seen::Listed(_));
        absorb(&mut inner.domains, seen, |domain| domain.name_any());
        drop(inner);
        self.wake(Wake::Storage);
        self.wake(Wake::Waiting);
    }

    pub(crate) fn see_clusters(&self, seen: Seen<HostCluster>) {
        let mut inner = self.lock();
        let first = matches!(seen, Seen::Listed(_)) && !std::mem::replace(&mut inner.clusters_listed, true);
        let baselines = |inner: &Inner| -> Vec<Option<String>> {
            inner.clusters.values().map(|c| c.status.as_ref().and_then(|s| s.baseline.clone())).collect()
        };
        let before = baselines(&inner);
        absorb(&mut inner.clusters, seen, |cluster| cluster.name_any());
        let moved = before != baselines(&inner);
        drop(inner);
        self.wake(Wake::Storage);
        self.wake(Wake::Networks);
        self.wake(if first || moved { Wake::All } else { Wake::Waiting });
    }

    pub(crate) fn see_host(&self, seen: Seen<Host>) {
        let host = match seen {
            Seen::Listed(list) => list.into_iter().find_map(Result::ok),
            Seen::Applied(Ok(host)) => Some(host),
            Seen::Applied(Err(_)) => return,
            Seen::Left(_) => None,
        };
        self.lock().host = host.map(Arc::new);
        self.wake(Wake::Host);
        self.wake(Wake::Storage);
        self.wake(Wake::Networks);
    }

    /// Takes in the Host that a write returned.
    pub fn learn_host(&self, host: Host) {
        self.lock().host = Some(Arc::new(host));
    }

    pub(crate) fn see_session(&self, seen: Seen<Lease>) {
        let lease = match seen {
            Seen::Listed(list) => list.into_iter().find_map(Result::ok),
            Seen::Applied(lease) => lease.ok(),
            Seen::Left(_) => None,
        };
        let Some(nonce) =
            lease.and_then(|lease| lease.spec?.holder_identity).filter(|nonce| !nonce.is_empty())
        else {
            return;
        };
        let before = self.lock().session.replace(nonce.clone());
        if before.as_deref() != Some(nonce.as_str()) {
            self.wake(Wake::Session(nonce));
        }
    }
}

/// Id of the grant by which a VM is placed here.
fn grant_of(sight: &Sight) -> Option<String> {
    match sight {
        Sight::Here(vm) => Some(vm.status.as_ref()?.placement.as_ref()?.id.clone()),
        _ => None,
    }
}

fn sight_of(object: Result<VirtualMachine, InvalidObject>) -> Option<(String, Sight)> {
    match object {
        Ok(vm) => Some((vm.uid()?, Sight::Here(Arc::new(vm)))),
        Err(InvalidObject { error, metadata }) => Some((metadata.uid?, Sight::Undecodable(error))),
    }
}

/// Whether `known` is newer than `new`: a write's answer may overtake the watch. Versions are compared only between two
/// states of one object within one connection's life; a list replaces everything.
fn is_newer<K: Resource>(known: &K, new: &K) -> bool {
    let version = |meta: &ObjectMeta| meta.resource_version.as_ref().and_then(|v| v.parse::<u64>().ok());
    version(known.meta()) > version(new.meta())
}

/// Keeps a map equal to what a watch shows. An object that cannot be decoded keeps its last good state.
fn absorb<I: Ord, K: Resource>(map: &mut BTreeMap<I, Arc<K>>, seen: Seen<K>, id: impl Fn(&K) -> I) {
    match seen {
        Seen::Listed(list) => {
            let undecodable: Vec<String> =
                list.iter().filter_map(|o| o.as_ref().err()?.metadata.uid.clone()).collect();
            map.retain(|_, known| known.meta().uid.as_ref().is_some_and(|uid| undecodable.contains(uid)));
            map.extend(list.into_iter().filter_map(Result::ok).map(|object| (id(&object), Arc::new(object))));
        }
        Seen::Applied(Ok(object)) => {
            map.insert(id(&object), Arc::new(object));
        }
        Seen::Applied(Err(_)) => {}
        Seen::Left(meta) => map.retain(|_, known| known.meta().uid != meta.uid),
    }
}
