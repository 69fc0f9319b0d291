//! The real controller and real daemons on hosts in memory, while the API server misbehaves in every way the seed
//! picks and VMs are created, edited, crash and are deleted. No VM ever has two processes; nobody floods the API
//! server; and once the faults stop everything is as wanted, and silent.

mod live;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use controller::run::{Settings, start};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use live::{PATIENT, is_ready, run, show};
use node_daemon::host::memory::MemoryHost;
use node_plan::facts::ExitKind;
use serde_json::json;
use system_tests::{
    apiserver::{User, shared},
    faulty_api::{FaultyApi, Side, door::Door},
    fleet::{
        hollow::{HollowConfig, HollowFleet},
        load::{Load, Observer},
        site::silent,
    },
    wait::until,
};
use tokio_util::sync::CancellationToken;
use vireo_crds::v1alpha1::VirtualMachine;

const HOSTS: usize = 6;
const VMS: usize = 40;
/// How long the API server misbehaves.
const FAULTS: Duration = Duration::from_secs(40);
/// How much longer, should a kind of fault not have come by then: some need a client that does a certain thing.
const OVERTIME: Duration = Duration::from_secs(40);
/// One side hears nothing for this long, after this much of the time.
const ABSENCES: [(Side, u64, u64); 3] =
    [(Side::Daemons, 6, 5), (Side::Controller, 15, 5), (Side::Daemons, 26, 4)];
/// Until everything is as wanted: a watch that stalled at the last moment is noticed, a backoff ends.
const LIMIT: Duration = Duration::from_secs(90);
/// Of production's minute: a stream that stalls is noticed five seconds later.
const WATCH_SECONDS: u32 = 3;
/// Writes within one second, Leases aside: by the controller, and by each daemon.
const STORM: (u64, u64) = (300, 40);

#[test]
fn the_api_server_misbehaves() -> Result<()> {
    run("the_api_server_misbehaves", async {
        let seed = match std::env::var("SEED") {
            Ok(seed) => seed.parse().context("SEED is a number")?,
            Err(_) => fastrand::u64(..),
        };
        misbehaves(seed).await.with_context(|| format!("SEED={seed}"))
    })
}

async fn misbehaves(seed: u64) -> Result<()> {
    let server = shared()?;
    let admin = server.client(User::Admin).await?;
    let faulty = FaultyApi::new(admin.clone(), seed);
    let door = Door::open(Arc::clone(&faulty)).await?;
    let settings = Settings {
        http: ([127, 0, 0, 1], 0).into(),
        timing: PATIENT,
        workers: 8,
        identity: format!("faulty-{seed}"),
        watch_seconds: WATCH_SECONDS,
    };
    let shutdown = CancellationToken::new();
    let config = door.through(server.config(User::Controller).await?)?;
    let controller = start(config, settings, shutdown.clone()).await?;

    let through = Arc::clone(&faulty);
    let config = HollowConfig {
        client: Arc::new(move |host| Ok(through.client(host))),
        watch_seconds: WATCH_SECONDS,
        ..HollowConfig::new(server.config(User::Admin).await?, Duration::from_millis(200))
    };
    let mut fleet = HollowFleet::new(config)?;
    fleet.grow(HOSTS).await?;
    let load = Load::prepare(&admin, "faulty").await?;
    let observer = Observer::start(&admin, "faulty");
    let names: Vec<String> = (0..VMS).map(|number| format!("vm-{number:02}")).collect();
    load.create_disks(&names).await?;
    observer.disks(VMS, LIMIT).await?;

    let watchman = Watchman::start(fleet.hosts.iter().map(|host| Arc::clone(&host.machine)).collect());
    faulty.faults.set(true);
    let wanted = people(&faulty, &load, &names, &fleet, seed).await?;
    faulty.faults.set(false);

    let stopped = Instant::now();
    converges(&load, &wanted, &fleet).await?;
    let converged = stopped.elapsed();
    silent(&admin, Duration::from_secs(4), LIMIT).await?;
    let (looks, doubled) = watchman.stop();
    let counts = faulty.faults.counts();
    let (controllers, daemons) = faulty.peak_writes();
    show(&format!(
        "seed {seed}: {looks} looks at all guests, {} VMs as wanted {:.1} s after the faults stopped\n  faults: {counts:?}\n  most writes in a second: {controllers} by the controller, {daemons} by {HOSTS} daemons\n",
        wanted.len(),
        converged.as_secs_f64(),
    ))?;
    ensure!(doubled.is_empty(), "two processes of one VM: {doubled:?}");
    let never = faulty.faults.never();
    ensure!(never.is_empty(), "these faults never occurred: {never:?}");
    ensure!(controllers <= STORM.0, "the controller sent {controllers} writes in a second");
    ensure!(daemons <= STORM.1 * HOSTS as u64, "the daemons sent {daemons} writes in a second");
    shutdown.cancel();
    controller.stopped().await?;
    Ok(())
}

/// Creates, edits and deletes VMs and makes guests crash, for as long as the faults last; the VMs wanted in the end.
/// People speak to the API server directly: that theirs are refused now and then is no news.
async fn people(
    faulty: &FaultyApi,
    load: &Load,
    names: &[String],
    fleet: &HollowFleet,
    seed: u64,
) -> Result<BTreeSet<String>> {
    let mut random = fastrand::Rng::with_seed(seed ^ 1);
    let api = load.vms();
    let mut wanted = BTreeSet::new();
    let began = Instant::now();
    let mut turns = tokio::time::interval(Duration::from_millis(150));
    let lasts = || {
        let elapsed = began.elapsed();
        elapsed < FAULTS || (elapsed < FAULTS + OVERTIME && !faulty.faults.never().is_empty())
    };
    while lasts() {
        turns.tick().await;
        let second = began.elapsed().as_secs();
        for side in [Side::Controller, Side::Daemons] {
            let absent =
                ABSENCES.iter().any(|(of, from, long)| *of == side && (*from..from + long).contains(&second));
            if absent != faulty.is_absent(side) {
                faulty.set_absent(side, absent);
            }
        }
        let Some(name) = random.choice(names) else { continue };
        match random.u32(0..10) {
            0..6 if !wanted.contains(name) => {
                // One that is still being deleted comes another time.
                let held = api.get_opt(name).await?;
                if held.is_none() {
                    api.create(&PostParams::default(), &Load::vm(name)?).await?;
                    wanted.insert(name.clone());
                }
            }
            6 if wanted.contains(name) => {
                api.delete(name, &DeleteParams::default()).await?;
                wanted.remove(name);
            }
            7 if wanted.contains(name) => {
                let edit = json!({"spec": {"gracePeriodSeconds": random.u32(1..60)}});
                api.patch(name, &PatchParams::default(), &Patch::Merge(edit)).await?;
            }
            8 => {
                let host = random.choice(&fleet.hosts).context("no host")?;
                if let Some(uuid) = host.machine.pids().into_keys().next() {
                    host.machine.end(&uuid, ExitKind::Crashed);
                }
            }
            _ => {}
        }
    }
    for side in [Side::Controller, Side::Daemons] {
        faulty.set_absent(side, false);
    }
    Ok(wanted)
}

/// Every VM wanted is Ready and runs once; no other is there, or runs.
async fn converges(load: &Load, wanted: &BTreeSet<String>, fleet: &HollowFleet) -> Result<()> {
    let api: Api<VirtualMachine> = load.vms();
    until("everything is as wanted", LIMIT, || async {
        let vms = api.list(&ListParams::default()).await?.items;
        let there: BTreeSet<String> = vms.iter().map(ResourceExt::name_any).collect();
        ensure!(there == *wanted, "too many or too few: {:?}", there.symmetric_difference(wanted));
        for vm in &vms {
            ensure!(is_ready(vm), "{}: {}", vm.name_any(), serde_json::to_string(&vm.status)?);
        }
        let running: BTreeSet<String> = fleet.guests().into_keys().collect();
        let uids: BTreeSet<String> = vms.iter().filter_map(ResourceExt::uid).collect();
        ensure!(running == uids, "guests and VMs differ: {:?}", running.symmetric_difference(&uids));
        Ok(())
    })
    .await
}

/// Counts the processes of every VM again and again.
struct Watchman {
    looks: Arc<AtomicU64>,
    doubled: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watchman {
    fn start(machines: Vec<Arc<MemoryHost>>) -> Self {
        let looks = Arc::new(AtomicU64::new(0));
        let (doubled, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (counted, found, ended) = (Arc::clone(&looks), Arc::clone(&doubled), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::SeqCst) {
                let mut seen = BTreeSet::new();
                for machine in &machines {
                    for uuid in machine.pids().into_keys() {
                        if !seen.insert(uuid.clone()) {
                            // A guest may have ended on one host and begun on the next between the two looks.
                            let at = machines.iter().filter(|m| m.pids().contains_key(&uuid)).count();
                            if at > 1 {
                                found.lock().unwrap_or_else(PoisonError::into_inner).push(uuid);
                            }
                        }
                    }
                }
                counted.fetch_add(1, Ordering::SeqCst);
                std::thread::park_timeout(Duration::from_millis(2));
            }
        });
        Self { looks, doubled, stop, thread: Some(thread) }
    }

    fn stop(mut self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
        let doubled = self.doubled.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (self.looks.load(Ordering::SeqCst), doubled)
    }
}
