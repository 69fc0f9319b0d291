//! Keeps one storage domain of this host looked at: marker, directories, free space, trash. Serial, and patient with
//! a server that does not answer.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use node_plan::storage::{
    disk::DomainFacts,
    domain::{self as decide, DirectoryFact, DomainIntent, DomainPlan},
    trash::plan_trash,
};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use vireo_crds::v1alpha1::{HostStorageDomain, StorageDomain};

use super::{Domains, domain, error::StorageError, layout::Layout, trash, volume::blocking};

/// A domain is looked at this often: nothing tells us that a file system was unmounted.
const LOOK: Duration = Duration::from_secs(15);
/// One that is not ready is looked at more often: somebody is waiting for it.
const LOOK_NOT_READY: Duration = Duration::from_secs(3);
/// A server that takes longer than this is reported.
const PATIENCE: Duration = Duration::from_secs(10);
/// The trash is looked at this often at least.
const TRASH_LOOK: Duration = Duration::from_secs(600);
/// Free space that moved is reported at most this often.
const FIGURES: Duration = Duration::from_secs(300);

/// What a domain should be, and how it is to be used.
#[derive(Debug, Clone, PartialEq)]
pub struct DomainWish {
    /// What decides its readiness.
    pub intent: DomainIntent,
    uid: String,
    shared: bool,
    allowed_urls: Vec<String>,
    block_free: u64,
    retention: Option<jiff::SignedDuration>,
}

impl DomainWish {
    /// What a StorageDomain asks of `host`.
    pub fn of(object: &StorageDomain, host: &str, installation: Option<&str>) -> Option<Self> {
        let status = object.status.clone().unwrap_or_default();
        // A marker decided by another installation's controller, say in a restored store, is not ours to write.
        let marker = status.marker.filter(|marker| Some(marker.installation_id.as_str()) == installation);
        let spec = &object.spec;
        Some(Self {
            intent: DomainIntent {
                name: object.metadata.name.clone()?,
                path: spec.directory.path.clone(),
                may_initialize: status.initialize.iter().any(|name| name == host),
                initialized_by: status
                    .initialize
                    .iter()
                    .find(|name| spec.directory.shared && *name != host)
                    .cloned(),
                marker,
                warn_free_percent: spec.thresholds.warn_free_percent,
            },
            uid: object.metadata.uid.clone()?,
            shared: spec.directory.shared,
            allowed_urls: spec.imports.allowed_urls.clone(),
            // A threshold that cannot be read blocks everything: the schema refuses it, so this is a damaged object.
            block_free: spec.thresholds.block_free_bytes.bytes().unwrap_or(u64::MAX),
            retention: spec.trash.retention(),
        })
    }

    fn layout(&self) -> Layout {
        Layout::new(&self.intent.path)
    }
}

/// How a domain was last found, for the Host's report and for Disks.
#[derive(Debug, Clone, PartialEq)]
pub struct DomainState {
    name: String,
    uid: String,
    /// Its directory.
    pub path: PathBuf,
    /// It is the same directory on every host.
    pub shared: bool,
    /// URL prefixes it lists.
    pub allowed_urls: Vec<String>,
    not_ready: Option<String>,
    warning: Option<String>,
    marked: bool,
    block_free: u64,
    figures: Option<(u64, u64)>,
}

impl DomainState {
    /// What Disks need to know; the free space is looked at anew each time.
    pub fn facts(&self) -> DomainFacts {
        DomainFacts { not_ready: self.not_ready.clone(), available: 0, block_free: self.block_free }
    }

    /// Whether a Disk has reason to look again.
    pub fn matters_like(&self, other: &Self) -> bool {
        self.not_ready == other.not_ready
            && self.allowed_urls == other.allowed_urls
            && self.block_free == other.block_free
            && self.path == other.path
    }

    /// What the Host says of it.
    pub fn report(&self) -> HostStorageDomain {
        let message = self.not_ready.as_ref().or(self.warning.as_ref());
        let bytes = |value: u64| i64::try_from(value).ok();
        HostStorageDomain {
            name: self.name.clone(),
            uid: self.uid.clone(),
            ready: self.not_ready.is_none(),
            marked: self.marked,
            message: message.map(|text| text.chars().take(500).collect()),
            capacity: self.figures.and_then(|(capacity, _)| bytes(capacity)),
            available: self.figures.and_then(|(_, available)| bytes(available)),
        }
    }
}

/// Looks after one domain.
pub(super) struct DomainTask {
    pub wishes: watch::Receiver<DomainWish>,
    pub domains: Arc<watch::Sender<Domains>>,
    pub stop: CancellationToken,
}

/// A look at a directory that may never end.
struct Look {
    path: String,
    since: Instant,
    handle: JoinHandle<DirectoryFact>,
}

impl DomainTask {
    pub async fn run(mut self) {
        let mut look = None;
        let mut trash_due = Instant::now();
        let mut retention = None;
        let mut figures_since: Option<Instant> = None;
        loop {
            let wish = self.wishes.borrow_and_update().clone();
            let fact = observe(&mut look, &wish.intent.path).await;
            let plan = decide::plan_domain(&wish.intent, &fact);
            let state = match plan {
                DomainPlan::WriteMarker(marker) => {
                    let path = PathBuf::from(&wish.intent.path);
                    match blocking(move || domain::write_marker(&path, &marker)).await {
                        // What was written is judged like what was found.
                        Ok(()) | Err(StorageError::Exists(_)) => {
                            tracing::info!(
                                domain = wish.intent.name,
                                path = wish.intent.path,
                                "marker written"
                            );
                            continue;
                        }
                        Err(error) => state(&wish, Some(error.to_string()), false, None),
                    }
                }
                DomainPlan::NotReady { marked, message } => state(&wish, Some(message), marked, None),
                DomainPlan::Ready { message } => {
                    let path = PathBuf::from(&wish.intent.path);
                    match blocking(move || domain::ensure_directories(&path)).await {
                        Ok(()) => {
                            DomainState { warning: message, ..state(&wish, None, true, figures(&fact)) }
                        }
                        Err(error) => state(&wish, Some(error.to_string()), true, None),
                    }
                }
            };
            let ready = state.not_ready.is_none();
            self.publish(state, &wish, &mut figures_since);
            if retention.replace(wish.retention) != Some(wish.retention) {
                trash_due = Instant::now();
            }
            if ready && trash_due <= Instant::now() {
                trash_due = Instant::now() + empty_trash(&wish).await;
            }
            let pause = if ready {
                LOOK.min(trash_due.saturating_duration_since(Instant::now()))
            } else {
                LOOK_NOT_READY
            };
            tokio::select! {
                () = self.stop.cancelled() => return,
                changed = self.wishes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause.max(Duration::from_millis(100))) => {}
            }
        }
    }

    /// Publishes a state; figures that hardly moved, or moved too lately, stay as they were.
    fn publish(&self, mut state: DomainState, wish: &DomainWish, figures_since: &mut Option<Instant>) {
        self.domains.send_if_modified(|domains| {
            let old = domains.get(&state.name);
            if let (Some((capacity, available)), Some(old_figures)) =
                (state.figures, old.and_then(|old| old.figures))
            {
                let percent = u64::from(wish.intent.warn_free_percent.max(0).unsigned_abs());
                let thresholds = [wish.block_free, capacity / 100 * percent];
                let reported = i64::try_from(old_figures.1).ok();
                let crossed = decide::is_worth_reporting(reported, available, u64::MAX, &thresholds);
                let moved = decide::is_worth_reporting(reported, available, capacity, &[]);
                let lately = figures_since.is_some_and(|since| since.elapsed() < FIGURES);
                if !crossed && (!moved || lately) && old_figures.0 == capacity {
                    state.figures = Some(old_figures);
                }
            }
            if old == Some(&state) {
                return false;
            }
            if old.is_none_or(|old| old.figures != state.figures) {
                *figures_since = Some(Instant::now());
            }
            if old.is_none_or(|old| old.not_ready != state.not_ready) {
                match &state.not_ready {
                    None => tracing::info!(domain = state.name, "storage domain is ready"),
                    Some(why) => tracing::warn!(domain = state.name, "storage domain is not ready: {why}"),
                }
            }
            domains.insert(state.name.clone(), state);
            true
        });
    }
}

fn state(
    wish: &DomainWish,
    not_ready: Option<String>,
    marked: bool,
    figures: Option<(u64, u64)>,
) -> DomainState {
    DomainState {
        name: wish.intent.name.clone(),
        uid: wish.uid.clone(),
        path: PathBuf::from(&wish.intent.path),
        shared: wish.shared,
        allowed_urls: wish.allowed_urls.clone(),
        not_ready,
        warning: None,
        marked,
        block_free: wish.block_free,
        figures,
    }
}

fn figures(fact: &DirectoryFact) -> Option<(u64, u64)> {
    match fact {
        DirectoryFact::Marked { capacity, available, .. } => Some((*capacity, *available)),
        DirectoryFact::Missing
        | DirectoryFact::NotADirectory
        | DirectoryFact::Unreadable(_)
        | DirectoryFact::Silent(_)
        | DirectoryFact::Unmarked
        | DirectoryFact::BadMarker(_) => None,
    }
}

/// Looks at the directory on a thread of its own. While one look has not ended there is no second: a dead server
/// costs one thread.
async fn observe(pending: &mut Option<Look>, path: &str) -> DirectoryFact {
    let mut look = match pending.take() {
        Some(look) if look.path == path => look,
        _ => {
            let target = PathBuf::from(path);
            Look {
                path: path.into(),
                since: Instant::now(),
                handle: tokio::task::spawn_blocking(move || domain::observe(&target)),
            }
        }
    };
    match tokio::time::timeout(PATIENCE, &mut look.handle).await {
        Ok(Ok(fact)) => fact,
        Ok(Err(error)) => DirectoryFact::Unreadable(error.to_string()),
        Err(_) => {
            // Rounded, so that waiting on changes nothing on the object.
            let minutes = look.since.elapsed().as_secs() / 60;
            let seconds = if minutes == 0 { PATIENCE.as_secs() } else { 60 };
            *pending = Some(look);
            DirectoryFact::Silent(seconds)
        }
    }
}

/// Removes what is past its time; returns when to look again.
async fn empty_trash(wish: &DomainWish) -> Duration {
    let (layout, retention) = (wish.layout(), wish.retention);
    let now = jiff::Timestamp::now();
    let done = blocking(move || {
        let plan = plan_trash(&trash::list(&layout)?, retention, now);
        for sidecar in &plan.purge {
            match trash::purge(&layout, sidecar) {
                Ok(()) => tracing::info!(
                    volume = sidecar.uid,
                    disk = sidecar.name,
                    namespace = sidecar.namespace,
                    "removed from the trash for good"
                ),
                Err(error) => {
                    tracing::warn!(volume = sidecar.uid, "cannot be removed from the trash: {error}")
                }
            }
        }
        Ok(plan.next)
    })
    .await;
    let due = match done {
        Ok(next) => {
            next.and_then(|next| Duration::try_from(next.duration_since(now)).ok()).unwrap_or(TRASH_LOOK)
        }
        Err(error) => {
            tracing::warn!(domain = wish.intent.name, "cannot look through the trash: {error}");
            TRASH_LOOK
        }
    };
    // A volume that comes later may be due earlier than the next look would be.
    let soonest =
        retention.and_then(|r| Duration::try_from(r).ok()).unwrap_or(TRASH_LOOK).max(Duration::from_secs(1));
    due.min(soonest).min(TRASH_LOOK).max(Duration::from_secs(1))
}
