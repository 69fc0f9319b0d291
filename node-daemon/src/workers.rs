//! The workers: one per VM that is placed here, runs here, or has an entry in the ledger. Starts and wakes them, and
//! puts together what they show to the rest of the daemon.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kube::Client;
use node_plan::intent::VmRef;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use vireo_crds::v1alpha1::OrphanDomain;

use crate::{
    host::HostDriver,
    ledger::Ledger,
    metrics::Metrics,
    objects::{Key, Objects},
    reconcile::Worker,
    report::Reporter,
    resolve::Local,
    watch::Watches,
};

/// What every worker needs.
pub struct Context {
    /// Name of this host.
    pub host: String,
    /// Present incarnation.
    pub incarnation: String,
    /// API server.
    pub client: Client,
    /// What it last said.
    pub objects: Arc<Objects>,
    /// Follows Disks by name.
    pub watches: Arc<Watches>,
    /// The ledger.
    pub ledger: Arc<Ledger>,
    /// The host.
    pub driver: Arc<dyn HostDriver>,
    /// Writes reports.
    pub reporter: Arc<Reporter>,
    /// What this host brings to the resolution; none until the hypervisor has been seen once.
    pub local: watch::Receiver<Option<Local>>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
}

/// What a worker shows of itself to the rest of the daemon.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shown {
    /// UUID of its domain.
    pub uuid: Option<String>,
    /// It waits for something.
    pub waiting: bool,
    /// Disks to follow by name.
    pub disks: BTreeSet<Key>,
    /// Its domain, if no object explains it.
    pub unexplained: Option<OrphanDomain>,
}

/// How a worker is reached.
pub(crate) struct Handle {
    /// Wakes it.
    pub notify: Arc<Notify>,
    /// What it shows.
    pub shown: Arc<Mutex<Shown>>,
}

/// The workers.
pub struct Workers {
    pub(crate) context: Arc<Context>,
    stop: CancellationToken,
    handles: Mutex<HashMap<String, Handle>>,
    unexplained: watch::Sender<Vec<OrphanDomain>>,
}

impl Workers {
    /// No worker yet.
    pub fn new(context: Arc<Context>, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self { context, stop, handles: Mutex::default(), unexplained: watch::Sender::default() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Handle>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the worker of a VM, starting one if there is none.
    pub fn wake(self: &Arc<Self>, uid: &str, known: Option<(VmRef, String)>) {
        let mut handles = self.lock();
        if let Some(handle) = handles.get(uid) {
            handle.notify.notify_one();
            return;
        }
        let handle = Handle { notify: Arc::new(Notify::new()), shown: Arc::default() };
        handle.notify.notify_one();
        let worker = Worker::new(Arc::clone(self), uid.into(), &handle, known);
        handles.insert(uid.into(), handle);
        drop(handles);
        let stop = self.stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = worker.run() => {}
            }
        });
    }

    /// Wakes every worker there is.
    pub fn wake_all(&self) {
        self.lock().values().for_each(|handle| handle.notify.notify_one());
    }

    /// Wakes the workers that wait for something.
    pub fn wake_waiting(&self) {
        let is_waiting =
            |handle: &&Handle| handle.shown.lock().unwrap_or_else(PoisonError::into_inner).waiting;
        self.lock().values().filter(is_waiting).for_each(|handle| handle.notify.notify_one());
    }

    /// Wakes the worker of the domain with this UUID; false if there is none.
    pub fn wake_domain(&self, uuid: &str) -> bool {
        let handles = self.lock();
        let of_domain = |handle: &&Handle| {
            handle.shown.lock().unwrap_or_else(PoisonError::into_inner).uuid.as_deref() == Some(uuid)
        };
        handles.values().find(of_domain).map(|handle| handle.notify.notify_one()).is_some()
    }

    /// Domains of ours that no object explains.
    pub fn unexplained(&self) -> watch::Receiver<Vec<OrphanDomain>> {
        self.unexplained.subscribe()
    }

    /// Puts together what the workers show.
    pub(crate) fn shown_changed(&self) {
        let mut disks = BTreeSet::new();
        let mut unexplained = Vec::new();
        for handle in self.lock().values() {
            let shown = handle.shown.lock().unwrap_or_else(PoisonError::into_inner);
            disks.extend(shown.disks.iter().cloned());
            unexplained.extend(shown.unexplained.clone());
        }
        unexplained.sort_by(|a, b| a.name.cmp(&b.name));
        self.context.watches.refer(&disks);
        self.unexplained.send_if_modified(|old| {
            let changed = *old != unexplained;
            *old = unexplained;
            changed
        });
    }

    /// The worker of a VM has nothing left to do.
    pub(crate) fn remove(&self, uid: &str) {
        self.lock().remove(uid);
        self.context.reporter.forget(uid);
        self.context.objects.forget_vm(uid);
    }
}
