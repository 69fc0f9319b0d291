//! Follows the objects this host is concerned with and nothing else. Decides nothing: fills [`Objects`] and wakes.
//!
//! VMs, Disks and acts come by field selector (what is bound to this host), Host and session by name, Networks,
//! StorageDomains and HostClusters whole, being few. A Disk that a VM here refers to but that another host works on is
//! followed by name, only while a VM here refers to it: watching all Disks would make every host pay for the
//! fleet. An object that cannot be decoded is an item, not an error: the others go on.

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::StreamExt;
use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::error_boundary::{DeserializeGuard, InvalidObject},
    runtime::{WatchStreamExt, utils::Backoff, watcher},
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vireo_crds::{
    meta::{SESSION_LEASE, SYSTEM_NAMESPACE},
    v1alpha1::{Disk, Host, HostCluster, Network, StorageDomain, VirtualMachine, VirtualMachineAction},
};

use crate::{
    metrics::Metrics,
    objects::{Key, Objects},
};

/// Seconds after which a watch is reopened, at its last resourceVersion. One that stays silent for five seconds longer
/// is not believed: so a connection that is dead, or a stream that stalls without closing, is noticed.
pub const WATCH_SECONDS: u32 = 60;

/// What a watch says.
pub enum Seen<K> {
    /// Everything there is, read consistently.
    Listed(Vec<Result<K, InvalidObject>>),
    /// One object is new or changed.
    Applied(Result<K, InvalidObject>),
    /// One object is gone, or no longer selected.
    Left(ObjectMeta),
}

impl<K> Seen<K> {
    /// Names the objects that cannot be decoded; their number.
    fn undecodable(&self, what: &str) -> u64 {
        let tell = |invalid: &InvalidObject| {
            let InvalidObject { error, metadata } = invalid;
            tracing::warn!(
                kind = what,
                namespace = metadata.namespace,
                name = metadata.name,
                error,
                "an object cannot be decoded and is left as it was; the others go on"
            );
        };
        match self {
            Self::Listed(list) => {
                list.iter().filter_map(|object| object.as_ref().err()).map(tell).count() as u64
            }
            Self::Applied(Err(invalid)) => {
                tell(invalid);
                1
            }
            Self::Applied(Ok(_)) | Self::Left(_) => 0,
        }
    }
}

/// Starts all watches. They end with `stop`.
pub struct Watches {
    client: Client,
    objects: Arc<Objects>,
    metrics: Arc<Metrics>,
    restart: watch::Sender<u64>,
    seconds: u32,
    stop: CancellationToken,
    disk_refs: Mutex<HashMap<Key, CancellationToken>>,
}

impl Watches {
    /// Starts following everything of `host`.
    pub fn start(
        client: Client,
        objects: Arc<Objects>,
        metrics: Arc<Metrics>,
        seconds: u32,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let host = objects.host_name().to_owned();
        let this = Arc::new(Self {
            client,
            objects,
            metrics,
            restart: watch::Sender::new(0),
            seconds,
            stop,
            disk_refs: Mutex::default(),
        });
        let placed = || this.config().fields(&format!("status.placement.host={host}"));
        let named = |name: &str| this.config().fields(&format!("metadata.name={name}"));
        let c = || this.client.clone();
        let (vms, of_vms) = (Api::all(c()), Arc::clone(&this.objects));
        this.follow_by_generation::<VirtualMachine>(
            "VirtualMachine",
            vms,
            placed(),
            move |seen, generation| of_vms.see_vms(seen, generation),
        );
        this.follow::<Disk>("Disk", Api::all(c()), placed(), Objects::see_disks);
        let acts = this.config().fields(&format!("status.host={host}"));
        this.follow::<VirtualMachineAction>("VirtualMachineAction", Api::all(c()), acts, Objects::see_acts);
        this.follow::<Host>("Host", Api::all(c()), named(&host), Objects::see_host);
        this.follow::<Network>("Network", Api::all(c()), this.config(), Objects::see_networks);
        this.follow::<StorageDomain>("StorageDomain", Api::all(c()), this.config(), Objects::see_domains);
        this.follow::<HostCluster>("HostCluster", Api::all(c()), this.config(), Objects::see_clusters);
        let session = Api::namespaced(c(), SYSTEM_NAMESPACE);
        this.follow::<Lease>("session Lease", session, named(SESSION_LEASE), Objects::see_session);
        this
    }

    fn config(&self) -> watcher::Config {
        watcher::Config::default().timeout(self.seconds)
    }

    /// Drops every connection and lists everything anew: after an outage, and when a new session begins.
    pub fn restart(&self) {
        self.restart.send_modify(|generation| *generation += 1);
    }

    /// As [`Watches::restart`], after forgetting every cached grant: what an older connection still says does not count.
    pub fn begin_anew(&self) {
        self.restart.send_modify(|generation| {
            *generation += 1;
            self.objects.forget_vms(*generation);
        });
    }

    /// Follows by name exactly these Disks.
    pub fn refer(self: &Arc<Self>, disks: &BTreeSet<Key>) {
        let mut refs = self.disk_refs.lock().unwrap_or_else(PoisonError::into_inner);
        refs.retain(|key, stop| {
            let kept = disks.contains(key);
            if !kept {
                stop.cancel();
                self.objects.forget_disk_ref(key);
            }
            kept
        });
        for key in disks {
            if refs.contains_key(key) {
                continue;
            }
            let stop = self.stop.child_token();
            refs.insert(key.clone(), stop.clone());
            let config = self.config().fields(&format!("metadata.name={}", key.1));
            let api = Api::<DeserializeGuard<Disk>>::namespaced(self.client.clone(), &key.0);
            let (objects, key) = (Arc::clone(&self.objects), key.clone());
            let see = move |seen, _| objects.see_disk_ref(&key, seen);
            tokio::spawn(follow("Disk", api, config, self.restart.subscribe(), stop, see));
        }
    }

    fn follow<K>(
        self: &Arc<Self>,
        what: &'static str,
        api: Api<DeserializeGuard<K>>,
        config: watcher::Config,
        see: fn(&Objects, Seen<K>),
    ) where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let objects = Arc::clone(&self.objects);
        self.follow_by_generation(what, api, config, move |seen, _| see(&objects, seen));
    }

    fn follow_by_generation<K>(
        self: &Arc<Self>,
        what: &'static str,
        api: Api<DeserializeGuard<K>>,
        config: watcher::Config,
        see: impl Fn(Seen<K>, u64) + Send + Sync + 'static,
    ) where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let metrics = Arc::clone(&self.metrics);
        let see = move |seen: Seen<K>, generation| {
            metrics.undecodable.inc_by(seen.undecodable(what));
            see(seen, generation);
        };
        tokio::spawn(follow(what, api, config, self.restart.subscribe(), self.stop.clone(), see));
    }
}

/// Follows one selection until `stop`.
async fn follow<K>(
    what: &'static str,
    api: Api<DeserializeGuard<K>>,
    config: watcher::Config,
    mut restart: watch::Receiver<u64>,
    stop: CancellationToken,
    see: impl Fn(Seen<K>, u64),
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let mut failing = false;
    loop {
        let generation = *restart.borrow_and_update();
        let stream = watcher(api.clone(), config.clone()).backoff(Pauses::default());
        let mut stream = std::pin::pin!(stream);
        let mut listing = Vec::new();
        loop {
            let event = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = restart.changed() => break,
                event = stream.next() => event,
            };
            match event {
                None => break,
                Some(Ok(event)) => {
                    // The beginning of a list proves nothing yet.
                    if !matches!(event, watcher::Event::Init) && std::mem::take(&mut failing) {
                        tracing::info!(kind = what, "the watch works again");
                    }
                    match event {
                        watcher::Event::Init => listing.clear(),
                        watcher::Event::InitApply(DeserializeGuard(object)) => listing.push(object),
                        watcher::Event::InitDone => {
                            see(Seen::Listed(std::mem::take(&mut listing)), generation)
                        }
                        watcher::Event::Apply(DeserializeGuard(object)) => {
                            see(Seen::Applied(object), generation)
                        }
                        watcher::Event::Delete(object) => see(Seen::Left(object.meta().clone()), generation),
                    }
                }
                Some(Err(error)) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(kind = what, %error, "the watch fails; guests go on, trying again until it works");
                    }
                }
            }
        }
    }
}

/// Pauses between attempts of a watch: short at first, so that a restarted API server is found at once.
#[derive(Default)]
struct Pauses {
    failures: u32,
    last: Option<Instant>,
}

const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        self.last = Some(Instant::now());
        let pause = Duration::from_millis(100 << self.failures.min(6));
        let spread = u64::from(uuid::Uuid::new_v4().as_bytes().first().copied().unwrap_or(0));
        Some(pause.min(LONGEST_PAUSE) + Duration::from_millis(spread))
    }
}

impl Backoff for Pauses {
    /// Asked for with every item, the announcement of a list that then fails included: only a while without failures
    /// counts.
    fn reset(&mut self) {
        if self.last.is_none_or(|last| last.elapsed() > LONGEST_PAUSE * 2) {
            self.failures = 0;
        }
    }
}

/// Namespace and name.
pub fn key<K: ResourceExt>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_although_each_attempt_begins_well() {
        let mut pauses = Pauses::default();
        let mut last = Duration::ZERO;
        for _ in 0..8 {
            last = pauses.next().unwrap();
            pauses.reset();
        }
        assert!(last >= LONGEST_PAUSE, "{last:?}");
    }
}
