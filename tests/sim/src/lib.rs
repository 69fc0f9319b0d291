//! A deterministic simulation of the whole: the real planners of controller and node daemon, the reference effects of
//! their steps, an API server with watch delays and conflicts, backups and restores, two controllers, two or three
//! hosts with ledgers, incarnations and guests, people, and faults. One seed is one history.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod check;
mod controller;
pub mod faults;
mod host;
mod peace;
pub mod prelude;
mod resolve;
mod rng;
pub mod shrink;
mod store;

/// The controller's own clock of signs of life.
#[allow(dead_code)]
#[path = "../../../controller/src/liveness.rs"]
mod liveness;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use controller_plan::Kind;
use jiff::Timestamp;
use node_plan::{
    facts::{DiskToken, TokenFact},
    storage::sidecar::Sidecar,
};
use serde_json::json;
use vireo_crds::{meta::FINALIZER, v1alpha1::HostStorageDomain};

use check::Ghost;
use controller::{Controller, InFlight};
use faults::{Fault, MISHAPS};
use host::{Daemon, Machine};
use prelude::Scene;
use rng::Rng;
use store::{Backup, Store};

/// Rules of the executors that a mutation can take away. All false: the product as it is.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Check every plan with the linters.
    pub lints: bool,
    pub session_survives: bool,
    pub replay: bool,
    pub attest_cached: bool,
    pub no_attestation: bool,
    pub suspicion: bool,
    pub lost_ledger_keeps: bool,
    pub no_census: bool,
    pub drop_early: bool,
    pub libvirts_word: bool,
    pub gone_destroys: bool,
    pub name_based_volume: bool,
    pub unconditional: bool,
    pub without_uid: bool,
    /// An administrator confirms the end of hosts that nobody can hear and that live: then only what follows for the
    /// guests is checked.
    pub liar: bool,
    /// What goes wrong more often than anything else, as numbers of [`faults::MISHAPS`]; empty: left to the seed.
    pub favourites: &'static [usize],
    /// What users do more often than anything else, as numbers of [`faults::DEEDS`]; empty: left to chance.
    pub deeds: &'static [usize],
    /// Every VM has a disk of its own, or none has; not given: left to chance.
    pub disks: Option<bool>,
    /// What happens first, before chance takes over.
    pub prelude: &'static [Scene],
    /// Events that do not happen, by number: how a history is shrunk.
    pub dropped: BTreeSet<u64>,
    /// No event after this one; 0: as many as ever.
    pub events: u64,
}

/// What was done.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    pub events: u64,
    pub controller_plans: u64,
    pub node_plans: u64,
    pub writes: u64,
    pub as_wanted: u64,
}

impl Counts {
    /// Adds what another history did.
    pub fn add(&mut self, more: &Self) {
        self.events += more.events;
        self.controller_plans += more.controller_plans;
        self.node_plans += more.node_plans;
        self.writes += more.writes;
        self.as_wanted += more.as_wanted;
    }
}

#[derive(Debug, Clone, Default)]
struct Volume {
    present: bool,
    sidecar: Option<Sidecar>,
    trashed: Option<Sidecar>,
    /// Somebody removed the file by hand; an administrator puts it back in the end.
    lost: Option<Sidecar>,
}

/// One history.
pub struct Sim {
    rng: Rng,
    ms: i64,
    epoch: Instant,
    serial: u64,
    store: Store,
    leader: Option<(usize, i64)>,
    controllers: Vec<Controller>,
    machines: Vec<Machine>,
    flights: Vec<InFlight>,
    tokens: BTreeMap<String, TokenFact>,
    bad_tokens: Vec<(String, DiskToken)>,
    volumes: BTreeMap<String, Volume>,
    backups: Vec<Backup>,
    timeline: u32,
    domain_reports: Vec<HostStorageDomain>,
    lie: Option<String>,
    clones: bool,
    settling: bool,
    /// Nothing has been left to do for some rounds: only what is due at a certain time is looked at.
    still: bool,
    freeze_time: usize,
    /// Faults that come often in this history: what goes wrong together differs from seed to seed.
    favourites: [usize; 3],
    seed: u64,
    /// Writes by this name stay on their way.
    held: Option<&'static str>,
    /// The host that a prelude speaks of.
    marked: Option<String>,
    ghost: Ghost,
    rules: Rules,
    faults: u64,
    trace: Option<Vec<String>>,
    /// Faults by kind.
    pub histogram: BTreeMap<Fault, u64>,
    /// What VMs waited for at the end.
    pub waits: BTreeMap<String, u64>,
    /// What was done.
    pub counts: Counts,
    /// Promises broken: the invariant and how.
    pub violations: Vec<(&'static str, String)>,
}

/// Events of a history before its faults stop.
pub const EVENTS: u64 = 250;

impl Sim {
    /// The beginning of the history of this seed.
    pub fn new(seed: u64, rules: Rules, trace: bool) -> Self {
        let mut rng = Rng::new(seed);
        let hosts = 2 + rng.below(2);
        let clones = rng.one_in(4);
        let favourites = std::array::from_fn(|_| match rules.favourites {
            [] => rng.below(MISHAPS),
            some => some[rng.below(some.len())],
        });
        let mut sim = Self {
            rng,
            ms: 0,
            epoch: Instant::now(),
            serial: 0,
            store: Store::new(),
            leader: None,
            controllers: vec![
                Controller { alive: true, ..Controller::default() },
                Controller { alive: true, ..Controller::default() },
            ],
            machines: Vec::new(),
            flights: Vec::new(),
            tokens: BTreeMap::new(),
            bad_tokens: Vec::new(),
            volumes: BTreeMap::new(),
            backups: Vec::new(),
            timeline: 0,
            domain_reports: Vec::new(),
            lie: None,
            clones,
            settling: false,
            still: false,
            freeze_time: 0,
            favourites,
            seed,
            held: None,
            marked: None,
            ghost: Ghost::default(),
            rules,
            faults: 0,
            trace: trace.then(Vec::new),
            histogram: BTreeMap::new(),
            waits: BTreeMap::new(),
            counts: Counts::default(),
            violations: Vec::new(),
        };
        sim.store.unconditional = sim.rules.unconditional;
        sim.store.without_uid = sim.rules.without_uid;
        let now = sim.now();
        sim.store.create(Kind::HostCluster, json!({"metadata": {"name": "default"}, "spec": {}}), now);
        let domain = sim.store.create(Kind::StorageDomain, json!({"metadata": {"name": "shared"}, "spec": {"directory": {"path": "/srv/shared", "shared": true}}}), now);
        let uid = domain.and_then(|d| d.meta().uid.clone()).unwrap_or_default();
        sim.domain_reports =
            serde_json::from_value(json!([{"name": "shared", "uid": uid, "ready": true, "marked": true}]))
                .unwrap();
        for n in 1..=hosts {
            let name = format!("host{n}");
            sim.store.create(Kind::Host, json!({"metadata": {"name": name, "finalizers": [FINALIZER]}, "spec": {"cluster": "default"}, "status": {"identity": {"publicKeySha256": "", "machineUuid": format!("machine{n}")}}}), now);
            sim.machines.push(Machine::new(&name, &format!("machine{n}")));
        }
        sim.create_vm("vm1");
        if sim.rng.one_in(2) {
            sim.create_vm("vm2");
        }
        sim.store.create(Kind::Disk, json!({"metadata": {"name": "data", "namespace": "default"}, "spec": {"storageDomain": "shared", "size": "1Gi"}}), now);
        sim.backups.push(sim.store.backup());
        sim
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_millisecond(1_767_225_600_000 + self.ms).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    fn say(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let at = format!("{:>8.1}s ", self.ms as f64 / 1000.0);
            trace.push(at + &what());
        }
    }

    /// The trace so far.
    pub fn trace(&self) -> &[String] {
        self.trace.as_deref().unwrap_or_default()
    }

    fn pass(&mut self, ms: i64) {
        self.ms += ms;
        self.lead();
        self.renew();
    }

    /// The whole history: events, then peace, then a backup restored in peace.
    pub fn run(&mut self) {
        // Most faults are dull before anything runs.
        if self.rng.below(4) > 0 {
            self.settling = true;
            for _ in 0..2 + self.rng.below(10) {
                self.work_in_peace(2000);
            }
            self.settling = false;
        }
        for scene in self.rules.prelude {
            self.play(*scene);
            if !self.violations.is_empty() {
                return;
            }
        }
        let events = if self.rules.events > 0 { self.rules.events } else { EVENTS };
        while self.counts.events < events && self.violations.is_empty() {
            self.event();
        }
        self.rng = Rng::new(self.seed).derived(u64::MAX);
        if !self.violations.is_empty() {
            return;
        }
        self.settle();
        if self.violations.is_empty() {
            self.check_converged();
        }
        if self.violations.is_empty() && self.rng.one_in(2) {
            self.restore_in_peace();
        }
    }

    fn event(&mut self) {
        self.counts.events += 1;
        // Each event draws from numbers of its own, so that one that is left out changes no other.
        self.rng = Rng::new(self.seed).derived(self.counts.events);
        if self.rules.dropped.contains(&self.counts.events) {
            return;
        }
        if !self.rules.deeds.is_empty() && self.rng.one_in(8) {
            self.user_acts();
        }
        let ms = if self.rng.one_in(20) { self.rng.below(20_000) } else { self.rng.below(1200) };
        let ms = if self.freeze_time > 0 { 1 } else { i64::try_from(ms).unwrap_or(1) };
        self.freeze_time = self.freeze_time.saturating_sub(1);
        self.pass(ms);
        self.heal_a_little();
        match self.rng.below(100) {
            0..=39 => {
                for _ in 0..10 {
                    let c = self.rng.below(self.controllers.len());
                    self.controller_works(c);
                }
            }
            40..=80 => {
                for _ in 0..16 {
                    let m = self.rng.below(self.machines.len());
                    self.daemon_works(m);
                }
            }
            81..=84 => {
                if !self.flights.is_empty() {
                    let at = self.rng.below(self.flights.len());
                    let flight = self.flights.remove(at);
                    self.arrive(flight);
                }
            }
            85..=88 => self.user_acts(),
            89..=92 => self.guest_acts(),
            _ => self.goes_wrong(),
        }
        if self.violations.is_empty() {
            self.check();
        }
    }

    fn heal_a_little(&mut self) {
        if !self.store.up && self.rng.one_in(12) {
            self.store.up = true;
        }
        for c in 0..self.controllers.len() {
            if self.rng.one_in(25) {
                self.controllers[c].alive = true;
                self.controllers[c].frozen = false;
            }
        }
        for m in 0..self.machines.len() {
            if self.rng.one_in(40) {
                self.machines[m].power_on();
                self.machines[m].daemon.get_or_insert_with(Daemon::default);
            }
            if self.rng.one_in(40) {
                self.machines[m].cut = false;
                self.machines[m].libvirt = true;
            }
        }
    }
}
