//! Puts the daemon together: the wiring diagram in code. A [`Daemon`] is a value, so that tests run many in one
//! process; `vireo-node run` is one of them with signals and systemd around it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use kube::Client;
use node_plan::{intent::VmRef, orphan};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use vireo_crds::v1alpha1::{HostNetwork, HostStorageDomain};

use crate::{
    backing::{Backing, BackingConfig},
    directories, heartbeat,
    host::{Census, DomainEvent, HostDriver, HostEvent, Lifecycle},
    host_report::{self, HostReport},
    http,
    incarnation::{self, Found, Incarnation},
    ledger::{Ledger, files::FileError},
    metrics::Metrics,
    objects::{Objects, Wake},
    reconcile::entry_of,
    report::Reporter,
    resolve::Local,
    session,
    watch::Watches,
    workers::{Context, Workers},
};

/// Pause before something that failed at the start is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// Changes that ask for a census are gathered this long.
const CENSUS_GATHER: Duration = Duration::from_millis(300);

/// What a daemon is made of.
pub struct Options {
    /// Name of its Host.
    pub host: String,
    /// API server.
    pub client: Client,
    /// The host.
    pub driver: Arc<dyn HostDriver>,
    /// Storage and networks.
    pub backing: BackingConfig,
    /// Directory that survives a boot.
    pub state_dir: PathBuf,
    /// Directory that does not.
    pub run_dir: PathBuf,
    /// Where libvirt keeps TPM state if it is not told.
    pub libvirt_tpm_dir: PathBuf,
    /// The kernel's boot id; none: this machine's.
    pub boot_id: Option<String>,
    /// SHA-256 of the host's public key.
    pub public_key_sha256: String,
    /// Where to serve health and metrics.
    pub http: Option<http::Listen>,
    /// Seconds after which a watch is reopened; [`crate::watch::WATCH_SECONDS`], unless a test is in a hurry.
    pub watch_seconds: u32,
}

/// Why a daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A directory cannot be made.
    #[error("{}: {source}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The boot id cannot be read.
    #[error("the kernel's boot id cannot be read: {0}")]
    BootId(#[source] io::Error),
}

/// A running daemon.
pub struct Daemon {
    stop: CancellationToken,
    task: JoinHandle<()>,
    workers: watch::Receiver<Option<Arc<Workers>>>,
}

impl Daemon {
    /// Starts a daemon. Returns as soon as its directories are there; what it needs it waits for by itself.
    pub fn start(options: Options) -> Result<Self, StartError> {
        directories::prepare(&options.state_dir, &options.run_dir)
            .map_err(|(path, source)| StartError::Directory { path, source })?;
        let boot_id = match &options.boot_id {
            Some(boot_id) => boot_id.clone(),
            None => incarnation::boot_id().map_err(StartError::BootId)?,
        };
        let stop = CancellationToken::new();
        let (started, workers) = watch::channel(None);
        let task = tokio::spawn(run(options, boot_id, stop.clone(), started));
        Ok(Self { stop, task, workers })
    }

    /// Whether the daemon has taken its census and plans for its VMs.
    pub async fn ready(&mut self) {
        let _ = self.workers.wait_for(Option::is_some).await;
    }

    /// Stops at once; guests are not touched.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let _ = (&mut self.task).await;
    }
}

/// Ends the daemon's tasks with it: a test that drops a daemon has killed it.
impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn run(
    options: Options,
    boot_id: String,
    stop: CancellationToken,
    started: watch::Sender<Option<Arc<Workers>>>,
) {
    let ended = stop.clone();
    tokio::select! {
        () = ended.cancelled() => {}
        () = go(options, boot_id, stop.clone(), started) => {}
    }
    stop.cancel();
}

async fn go(
    options: Options,
    boot_id: String,
    stop: CancellationToken,
    started: watch::Sender<Option<Arc<Workers>>>,
) {
    let metrics = Arc::new(Metrics::default());
    let (wake, wakes) = mpsc::unbounded_channel();
    let objects = Arc::new(Objects::new(&options.host, wake));
    let reporter = Arc::new(Reporter::new(options.client.clone(), &options.host, Arc::clone(&metrics)));
    let watches = Watches::start(
        options.client.clone(),
        Arc::clone(&objects),
        Arc::clone(&metrics),
        options.watch_seconds,
        stop.clone(),
    );
    let report = watch::Sender::new(HostReport {
        public_key_sha256: options.public_key_sha256.clone(),
        ..HostReport::default()
    });
    let host_changed = watch::Sender::new(0u64);
    let driver = Arc::clone(&options.driver);
    let ready = started.subscribe();
    if let Some(listen) = options.http.clone() {
        let driver = Arc::clone(&driver);
        let readiness = Arc::new(move || match (ready.borrow().is_some(), driver.is_up()) {
            (false, _) => Err("the census has not been taken yet".to_owned()),
            (true, false) => Err("libvirt does not answer".to_owned()),
            (true, true) => Ok(()),
        });
        tokio::spawn(http::serve(listen, Arc::clone(&metrics), readiness, stop.clone()));
    }
    tokio::spawn(until(
        &stop,
        host_report::run(
            options.client.clone(),
            Arc::clone(&objects),
            Arc::clone(&reporter),
            report.subscribe(),
            host_changed.subscribe(),
        ),
    ));
    let backing = Arc::new(Backing::start(
        options.backing.clone(),
        &options.host,
        options.client.clone(),
        Arc::clone(&reporter),
        stop.clone(),
    ));

    let (incarnation, ledger) = open_ledger(&options, &boot_id, &report).await;
    metrics.ledger_entries.set(i64::try_from(ledger.uids().len()).unwrap_or(i64::MAX));
    tracing::info!(
        host = options.host,
        incarnation = incarnation.id,
        boot = boot_id,
        entries = ledger.uids().len(),
        "the daemon begins"
    );
    report.send_modify(|report| {
        report.ledger_fault = unreadable(&ledger);
        report.incarnation = Some(incarnation.clone());
    });

    let (set_local, local) = watch::channel(None);
    let context = Arc::new(Context {
        host: options.host.clone(),
        incarnation: incarnation.id.clone(),
        client: options.client.clone(),
        objects: Arc::clone(&objects),
        watches: Arc::clone(&watches),
        ledger: Arc::clone(&ledger),
        driver: Arc::clone(&driver),
        reporter,
        local,
        metrics: Arc::clone(&metrics),
    });
    let workers = Workers::new(Arc::clone(&context), stop.clone());
    for uid in ledger.uids() {
        workers.wake(&uid, None);
    }
    let (note, notes) = mpsc::unbounded_channel();
    tokio::spawn(until(
        &stop,
        session::run(Arc::clone(&context), Arc::clone(&workers), notes, report.clone()),
    ));
    tokio::spawn(until(
        &stop,
        heartbeat::run(options.client.clone(), Arc::clone(&objects), incarnation.clone(), watches, metrics),
    ));
    let eyes = Eyes {
        context: Arc::clone(&context),
        workers: Arc::clone(&workers),
        backing: Arc::clone(&backing),
        report,
        local: set_local,
        options: LocalPaths {
            state_dir: options.state_dir.display().to_string(),
            sockets_dir: options.run_dir.join("sockets").display().to_string(),
            libvirt_tpm_dir: options.libvirt_tpm_dir.display().to_string(),
        },
    };
    started.send_replace(Some(Arc::clone(&workers)));
    let routed = route(wakes, objects, Arc::clone(&workers), backing, note, host_changed);
    tokio::join!(eyes.run(), routed);
}

/// Runs a task until `stop`.
fn until<T, F: Future<Output = T> + Send>(
    stop: &CancellationToken,
    task: F,
) -> impl Future<Output = ()> + Send + use<T, F> {
    let stop = stop.clone();
    async move {
        tokio::select! {
            () = stop.cancelled() => {}
            _ = task => {}
        }
    }
}

fn unreadable(ledger: &Ledger) -> Option<String> {
    let uids = ledger.unreadable();
    (!uids.is_empty()).then(|| {
        format!(
            "ledger files of {} VMs cannot be used, nothing of these VMs is started or touched: {}",
            uids.len(),
            uids.join(", ")
        )
    })
}

/// Finds out which life of the ledger this is. A new one is minted only after a complete census, so that what runs is
/// known before anything is said. What cannot be read is never replaced: it is told, and looked at again.
async fn open_ledger(
    options: &Options,
    boot_id: &str,
    report: &watch::Sender<HostReport>,
) -> (Incarnation, Arc<Ledger>) {
    let dir = options.state_dir.join("ledger");
    loop {
        let opened = Ledger::open(&dir)
            .and_then(|ledger| Ok((incarnation::read(&options.run_dir, &dir, boot_id)?, ledger)));
        let outcome = match opened {
            Ok((Found::Same(incarnation), ledger)) => Ok((incarnation, ledger)),
            Ok((Found::New(past), ledger)) => match begin(options, boot_id, past, &ledger).await {
                Ok(Some(incarnation)) => Ok((incarnation, ledger)),
                Ok(None) => {
                    tokio::time::sleep(RETRY / 10).await;
                    continue;
                }
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        match outcome {
            Ok((incarnation, ledger)) => {
                report.send_if_modified(|report| report.ledger_fault.take().is_some());
                return (incarnation, Arc::new(ledger));
            }
            Err(error) => {
                tracing::error!(%error, "the ledger cannot be used: nothing is started or touched until somebody looks");
                report.send_if_modified(|report| {
                    report.ledger_fault.replace(error.to_string()) != Some(error.to_string())
                });
                // The fault is told only once it is known which machine this is.
                if report.borrow().facts.is_none()
                    && let Ok(facts) = options.driver.describe().await
                {
                    report.send_modify(|report| report.facts = Some(facts));
                }
                tokio::time::sleep(RETRY * 5).await;
            }
        }
    }
}

/// Begins a new incarnation. None: the census is not complete yet.
async fn begin(
    options: &Options,
    boot_id: &str,
    past: Vec<vireo_crds::v1alpha1::PastIncarnation>,
    ledger: &Ledger,
) -> Result<Option<Incarnation>, FileError> {
    if !options.driver.is_up() {
        return Ok(None);
    }
    let census = options.driver.census().await;
    let machine = options.driver.describe().await;
    let (census, machine) = match (census, machine) {
        (Ok(census), Ok(machine)) => (census, machine),
        (Err(error), _) | (_, Err(error)) => {
            tracing::info!(%error, "waiting for the hypervisor: a new incarnation begins with a census");
            return Ok(None);
        }
    };
    let dir = options.state_dir.join("ledger");
    let minted = incarnation::mint(&options.run_dir, &dir, boot_id, &machine.machine_uuid, past)?;
    // A process counts even if libvirt has lost its domain: its entry says what it runs under.
    let has_process = |uuid: &str| census.processes.iter().any(|process| process.uuid == uuid);
    let of_entries = ledger.entries().into_iter().filter(|entry| {
        let uuid = entry.wanted.as_ref().map_or(entry.vm.uid.as_str(), |w| w.machine.uuid.as_str());
        has_process(uuid)
    });
    let running: BTreeSet<String> = census
        .found
        .iter()
        .filter_map(|found| found.metadata.as_ref())
        .map(|metadata| metadata.vm.uid.clone())
        .chain(of_entries.map(|entry| entry.vm.uid))
        .collect();
    ledger.drop_over(&minted.id, &running)?;
    tracing::info!(incarnation = minted.id, running = running.len(), "a new incarnation begins");
    Ok(Some(minted))
}

/// Passes wake-ups on to whom they concern.
async fn route(
    mut wakes: mpsc::UnboundedReceiver<Wake>,
    objects: Arc<Objects>,
    workers: Arc<Workers>,
    backing: Arc<Backing>,
    session: mpsc::UnboundedSender<session::Note>,
    host_changed: watch::Sender<u64>,
) {
    // What came before everything was there.
    backing.update_storage(&objects);
    backing.update_networks(&objects);
    while let Some(wake) = wakes.recv().await {
        match wake {
            Wake::Vm(uid) => workers.wake(&uid, None),
            Wake::Waiting => workers.wake_waiting(),
            Wake::All => workers.wake_all(),
            Wake::Storage => backing.update_storage(&objects),
            Wake::Networks => backing.update_networks(&objects),
            Wake::Host => host_changed.send_modify(|count| *count += 1),
            Wake::Session(nonce) => drop(session.send(session::Note::Session(nonce))),
            Wake::VmsListed => drop(session.send(session::Note::Listed)),
        }
    }
}

struct LocalPaths {
    state_dir: String,
    sockets_dir: String,
    libvirt_tpm_dir: String,
}

/// Watches the host: its events, its readiness, its domains.
struct Eyes {
    context: Arc<Context>,
    workers: Arc<Workers>,
    backing: Arc<Backing>,
    report: watch::Sender<HostReport>,
    local: watch::Sender<Option<Local>>,
    options: LocalPaths,
}

impl Eyes {
    async fn run(self) {
        let Some(mut events) = self.context.driver.take_events() else { return };
        let mut domains = self.backing.domains();
        let mut networks = self.backing.networks();
        let mut unexplained = self.workers.unexplained();
        let mut census_due = false;
        self.readiness(&domains.borrow_and_update().clone(), &networks.borrow_and_update().clone());
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => census_due |= self.event(event).await,
                    None => return,
                },
                Ok(()) = domains.changed() => self.readiness(&domains.borrow_and_update().clone(), &networks.borrow().clone()),
                Ok(()) = networks.changed() => self.readiness(&domains.borrow().clone(), &networks.borrow_and_update().clone()),
                Ok(()) = unexplained.changed() => census_due = true,
                () = tokio::time::sleep(CENSUS_GATHER), if census_due => {
                    census_due = !self.census().await;
                    unexplained.mark_unchanged();
                }
            }
        }
    }

    /// Handles an event; whether the domains have to be counted.
    async fn event(&self, event: HostEvent) -> bool {
        match event {
            HostEvent::Connected => {
                self.context.metrics.libvirt_up.set(1);
                self.describe().await;
                // Counted at once: what runs and nobody knows of gets its worker before anything is planned.
                let counted = self.census().await;
                self.workers.wake_all();
                !counted
            }
            HostEvent::ConnectionClosed { .. } => {
                self.context.metrics.libvirt_up.set(0);
                self.context.metrics.libvirt_lost.inc();
                self.report.send_modify(|report| report.hypervisor_up = false);
                self.workers.wake_all();
                false
            }
            HostEvent::Domain { uuid, event } => {
                let known = self.workers.wake_domain(&uuid);
                let came_or_went = matches!(
                    event,
                    DomainEvent::Lifecycle(Lifecycle::Started | Lifecycle::Stopped(_) | Lifecycle::Defined)
                );
                !known && came_or_went
            }
        }
    }

    async fn describe(&self) {
        match self.context.driver.describe().await {
            Ok(facts) => {
                self.report.send_if_modified(|report| {
                    let changed = report.facts.as_ref() != Some(&facts) || !report.hypervisor_up;
                    report.facts = Some(facts);
                    report.hypervisor_up = true;
                    changed
                });
                let (domains, networks) =
                    (self.backing.domains().borrow().clone(), self.backing.networks().borrow().clone());
                self.readiness(&domains, &networks);
            }
            Err(error) => {
                tracing::warn!(%error, "the host could not be described; trying again with the next connection")
            }
        }
    }

    /// Puts together what this host brings to VMs, and wakes those that wait for it.
    fn readiness(&self, domains: &[HostStorageDomain], networks: &[HostNetwork]) {
        self.report.send_if_modified(|report| {
            let changed = report.domains != domains || report.networks != networks;
            report.domains = domains.to_vec();
            report.networks = networks.to_vec();
            changed
        });
        let Some(facts) = self.report.borrow().facts.clone() else { return };
        let local = Local {
            host: self.context.host.clone(),
            accelerator: facts.accelerator,
            tpm_source: facts.tpm_source,
            // Free space moves all the time and concerns no VM.
            domains: domains
                .iter()
                .map(|domain| HostStorageDomain { capacity: None, available: None, ..domain.clone() })
                .collect(),
            networks: networks.to_vec(),
            state_dir: self.options.state_dir.clone(),
            sockets_dir: self.options.sockets_dir.clone(),
            libvirt_tpm_dir: self.options.libvirt_tpm_dir.clone(),
        };
        let changed = self.local.send_if_modified(|old| {
            let changed = old.as_ref() != Some(&local);
            *old = Some(local);
            changed
        });
        if changed {
            // A domain that went away or came back concerns also guests that run.
            self.workers.wake_all();
        }
    }

    /// Counts the domains: starts a worker for each of ours, lists the others. Whether it was complete.
    async fn census(&self) -> bool {
        let Census { found, .. } = match self.context.driver.census().await {
            Ok(census) => census,
            Err(error) => {
                tracing::debug!(%error, "the domains could not be counted");
                return false;
            }
        };
        let held: BTreeMap<String, String> = self
            .context
            .ledger
            .uids()
            .into_iter()
            .filter_map(|uid| {
                let entry = entry_of(&self.context.ledger.get(&uid))?;
                entry.open()?;
                Some((uid, entry.wanted?.machine.uuid))
            })
            .collect();
        let unexplained = self
            .workers
            .unexplained()
            .borrow()
            .iter()
            .map(|orphan| (orphan.vm_uid.clone(), orphan.reason.clone()))
            .collect();
        let known =
            orphan::Known { installation_id: self.context.objects.installation_id(), held, unexplained };
        let sorted = orphan::sort(&found, &known);
        for uid in &sorted.ours {
            let domain = found
                .iter()
                .find(|found| found.metadata.as_ref().is_some_and(|metadata| metadata.vm.uid == *uid));
            let vm: Option<(VmRef, String)> =
                domain.and_then(|found| Some((found.metadata.as_ref()?.vm.clone(), found.uuid.clone())));
            self.workers.wake(uid, vm);
        }
        self.report.send_if_modified(|report| {
            let changed = report.orphans != sorted.orphans || report.foreign != sorted.foreign;
            report.orphans = sorted.orphans;
            report.foreign = sorted.foreign;
            changed
        });
        true
    }
}
