//! Works on one Disk: looks, decides, runs the steps, looks again, reports. Serial; a removal ordered meanwhile, or
//! another host taking over, ends what is going on.

use std::{sync::Arc, time::Duration};

use node_plan::storage::{
    disk::{DiskFacts, DiskIntent, DiskPlan, DiskStep, DomainFacts, Standing, VolumeFact, plan_disk},
    report::{Teller, disk_report, is_news},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use vireo_crds::v1alpha1::Disk;

use super::{
    Domains,
    disk_steps::Bench,
    domain,
    domain_task::DomainState,
    error::StorageError,
    layout::Layout,
    qemu_img::QemuImg,
    receive::Progress,
    volume::{self, Volumes, blocking},
};
use crate::{
    backoff,
    disk_report::{DiskReportError, DiskReports},
    error::RetryClass,
};

/// Work that takes longer than this is reported while it goes on.
const SLOW: Duration = Duration::from_secs(3);
/// And then this often.
const PROGRESS: Duration = Duration::from_secs(10);
/// Something outside may have changed that nobody tells us: a file was put there, space was freed, a VM stopped.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Domains have been looked at by then for the first time; one that has not is not ours to reach.
const FIRST_LOOKS: Duration = Duration::from_secs(15);
/// An object that changed under a report comes by itself, unless its event was the one before.
const ECHO: Duration = Duration::from_secs(2);

/// Works on one Disk.
pub(super) struct DiskTask {
    pub host: String,
    pub qemu_img: QemuImg,
    pub reports: Arc<dyn DiskReports>,
    pub disk: watch::Receiver<Arc<Disk>>,
    pub domains: watch::Receiver<Domains>,
    pub stop: CancellationToken,
}

/// What a failure depends on: when it changes, the work is tried again at once.
#[derive(Debug, Clone, PartialEq)]
struct Key {
    generation: i64,
    epoch: i64,
    remove: bool,
    deleting: bool,
    domain: Option<(DomainFacts, Vec<String>)>,
}

/// A failure that is not tried again yet.
struct Held {
    key: Key,
    standing: Standing,
    until: Option<Instant>,
    attempt: u32,
}

/// How a run of steps ended.
enum Outcome {
    Done,
    Interrupted,
    Failed(Box<DiskStep>, StorageError),
}

/// The Disk is no longer ours to work on.
struct Over;

impl DiskTask {
    pub async fn run(mut self) {
        let _ = self.work().await;
    }

    async fn work(&mut self) -> Result<Over, Over> {
        let mut latest = self.disk.borrow_and_update().clone();
        let mut held: Option<Held> = None;
        let first_looks = Instant::now() + FIRST_LOOKS;
        loop {
            if self.disk.has_changed().map_err(|_| Over)? {
                latest = self.disk.borrow_and_update().clone();
            }
            let Some(intent) = DiskIntent::of(&latest, &self.host) else {
                self.wait(None, &mut latest, None).await?;
                continue;
            };
            let state = self.domains.borrow_and_update().get(&intent.spec.storage_domain).cloned();
            if state.is_none() && Instant::now() < first_looks {
                self.wait(None, &mut latest, Some(first_looks)).await?;
                continue;
            }
            let key = Key {
                generation: intent.generation,
                epoch: intent.epoch,
                remove: intent.remove,
                deleting: intent.deleting,
                domain: state.as_ref().map(|state| (state.facts(), state.allowed_urls.clone())),
            };
            if let Some(failure) =
                held.as_ref().filter(|h| h.key == key && h.until.is_none_or(|until| Instant::now() < until))
            {
                let (standing, until) = (failure.standing.clone(), failure.until);
                let retry = self.report(&intent, &standing, state.as_ref(), None, &mut latest).await;
                self.wait(state.as_ref(), &mut latest, soonest(until, retry)).await?;
                continue;
            }
            let (plan, facts, bench) = self.plan(&intent, state.as_ref()).await;
            let Some(bench) = bench.filter(|_| !plan.steps.is_empty()) else {
                held = None;
                let retry = self.report(&intent, &plan.standing, state.as_ref(), None, &mut latest).await;
                let look =
                    matches!(plan.standing, Standing::Waiting { .. }).then(|| Instant::now() + LOOK_AGAIN);
                self.wait(state.as_ref(), &mut latest, soonest(look, retry)).await?;
                continue;
            };
            match self.run_steps(&intent, plan, state.as_ref(), &bench, &mut latest).await? {
                Outcome::Done => held = None,
                Outcome::Interrupted => {
                    tracing::info!(
                        disk = intent.name,
                        namespace = intent.namespace,
                        "work on the disk was given up"
                    );
                    held = None;
                    if let Err(error) = bench.remove_partials(&intent.uid).await {
                        tracing::warn!(
                            disk = intent.name,
                            namespace = intent.namespace,
                            "unfinished files are left: {error}"
                        );
                    }
                }
                Outcome::Failed(step, error) => {
                    let attempt =
                        held.as_ref().filter(|h| h.key == key).map_or(1, |h| h.attempt.saturating_add(1));
                    tracing::warn!(
                        disk = intent.name,
                        namespace = intent.namespace,
                        uid = intent.uid,
                        attempt,
                        "{error}"
                    );
                    held = Some(self.hold(key, &step, &error, &facts, attempt, &intent));
                }
            }
        }
    }

    /// Looks and decides. Without a domain there is nothing to look at.
    async fn plan(
        &self,
        intent: &DiskIntent,
        state: Option<&DomainState>,
    ) -> (DiskPlan, DiskFacts, Option<Bench>) {
        let unseen = |why: &str| DiskFacts {
            volume: VolumeFact::Unknown(why.into()),
            sidecar: None,
            trashed: None,
            origin: None,
            partials: false,
        };
        let Some(state) = state else {
            let facts = unseen("no domain");
            let domain = DomainFacts {
                not_ready: Some("this host does not reach it".into()),
                available: 0,
                block_free: 0,
            };
            return (plan_disk(intent, &facts, &domain), facts, None);
        };
        let mut domain = state.facts();
        if domain.not_ready.is_some() {
            let facts = unseen("the domain is not ready");
            return (plan_disk(intent, &facts, &domain), facts, None);
        }
        let layout = Layout::new(&state.path);
        let (target, uid, format, origin) =
            (layout.clone(), intent.uid.clone(), intent.spec.format, intent.origin().map(str::to_owned));
        let looked = blocking(move || {
            let facts = volume::observe(&target, &uid, format, origin.as_deref());
            Ok((facts, domain::available(target.root())?))
        })
        .await;
        let facts = match looked {
            Ok((facts, available)) => {
                domain.available = available;
                facts
            }
            Err(error) => unseen(&error.to_string()),
        };
        let bench = Bench {
            volumes: Volumes { layout, qemu_img: self.qemu_img.clone() },
            epoch: intent.epoch,
            allowed_urls: state.allowed_urls.clone(),
            keep_free: state.facts().block_free,
            progress: Arc::new(Progress::default()),
        };
        (plan_disk(intent, &facts, &domain), facts, Some(bench))
    }

    /// Runs the steps in order; reports while they take long; stops when they are no longer wanted.
    async fn run_steps(
        &mut self,
        intent: &DiskIntent,
        plan: DiskPlan,
        state: Option<&DomainState>,
        bench: &Bench,
        latest: &mut Arc<Disk>,
    ) -> Result<Outcome, Over> {
        for step in plan.steps {
            let running = bench.run(step.clone());
            tokio::pin!(running);
            let mut tell = Instant::now() + SLOW;
            loop {
                tokio::select! {
                    done = &mut running => match done {
                        Ok(()) => break,
                        Err(error) => return Ok(Outcome::Failed(Box::new(step), error)),
                    },
                    () = self.stop.cancelled() => return Err(Over),
                    changed = self.disk.changed() => {
                        changed.map_err(|_| Over)?;
                        *latest = self.disk.borrow_and_update().clone();
                        let same = DiskIntent::of(latest, &self.host).is_some_and(|now| now.epoch == intent.epoch && now.remove == intent.remove);
                        if !same {
                            return Ok(Outcome::Interrupted);
                        }
                    }
                    () = tokio::time::sleep_until(tell) => {
                        tell = Instant::now() + PROGRESS;
                        let progress = bench.progress.shown();
                        self.report(intent, &plan.standing, state, is_import(&step).then_some(progress.as_str()), latest).await;
                    }
                }
            }
        }
        Ok(Outcome::Done)
    }

    /// What to say of a failure, and when to try again.
    fn hold(
        &self,
        key: Key,
        step: &DiskStep,
        error: &StorageError,
        facts: &DiskFacts,
        attempt: u32,
        intent: &DiskIntent,
    ) -> Held {
        let (reason, message) = (error.reason().to_owned(), error.to_string());
        let standing = match (step, &facts.volume, error.class()) {
            // The volume is as good as before; only the rest of its growth is missing.
            (DiskStep::Grow { sidecar, .. }, VolumeFact::Present { capacity, allocated }, _) => {
                Standing::Ready {
                    capacity: *capacity,
                    allocated: *allocated,
                    digest: facts.sidecar.as_ref().and_then(|s| s.digest.clone()),
                    note: Some(format!(
                        "it grows to {} once that works: {message}",
                        vireo_crds::units::human_bytes(sidecar.size)
                    )),
                }
            }
            (_, _, RetryClass::Rejected) => Standing::Refused { reason, message },
            (_, _, RetryClass::Transient | RetryClass::WaitFor | RetryClass::Bug) => {
                Standing::Waiting { reason, message }
            }
        };
        let until = match error.class() {
            RetryClass::Rejected => None,
            RetryClass::WaitFor => Some(Instant::now() + LOOK_AGAIN),
            class @ (RetryClass::Transient | RetryClass::Bug) => {
                Some(Instant::now() + backoff::pause(class, attempt, backoff::seed(&intent.uid)))
            }
        };
        Held { key, standing, until, attempt }
    }

    /// Writes what is news; returns when to try again if it was not taken.
    async fn report(
        &self,
        intent: &DiskIntent,
        standing: &Standing,
        state: Option<&DomainState>,
        progress: Option<&str>,
        latest: &mut Arc<Disk>,
    ) -> Option<Instant> {
        let old = latest.status.clone().unwrap_or_default();
        let teller = Teller { host: &self.host, shared: state.is_none_or(|state| state.shared), progress };
        let report = disk_report(intent, standing, teller, &old, jiff::Timestamp::now());
        if !is_news(&report, &old) {
            return None;
        }
        let phase = report.phase;
        match self.reports.write(latest, report).await {
            Ok(written) => {
                if old.phase != phase {
                    tracing::info!(
                        disk = intent.name,
                        namespace = intent.namespace,
                        uid = intent.uid,
                        ?phase,
                        "disk"
                    );
                }
                *latest = written;
                None
            }
            Err(DiskReportError::Conflict) => Some(Instant::now() + ECHO),
            Err(DiskReportError::Gone) => None,
            Err(error) => {
                tracing::warn!(disk = intent.name, namespace = intent.namespace, "{error}");
                Some(Instant::now() + LOOK_AGAIN)
            }
        }
    }

    /// Until the Disk or what matters of its domain changes, or the time comes.
    async fn wait(
        &mut self,
        seen: Option<&DomainState>,
        latest: &mut Arc<Disk>,
        until: Option<Instant>,
    ) -> Result<(), Over> {
        let name = latest.spec.storage_domain.clone();
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return Err(Over),
                changed = self.disk.changed() => {
                    changed.map_err(|_| Over)?;
                    *latest = self.disk.borrow_and_update().clone();
                    return Ok(());
                }
                changed = self.domains.changed() => {
                    changed.map_err(|_| Over)?;
                    let same = match (self.domains.borrow_and_update().get(&name), seen) {
                        (Some(now), Some(seen)) => now.matters_like(seen),
                        (None, None) => true,
                        (Some(_), None) | (None, Some(_)) => false,
                    };
                    if !same {
                        return Ok(());
                    }
                }
                () = sleep_until(until) => return Ok(()),
            }
        }
    }
}

async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

fn soonest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

fn is_import(step: &DiskStep) -> bool {
    matches!(step, DiskStep::Fetch { .. } | DiskStep::Copy { .. })
}
