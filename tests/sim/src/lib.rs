//! A deterministic simulation of the whole: the real planners of controller and node daemon, the reference effects of
//! their steps, an API server with watch delays and conflicts, backups and restores, two controllers, two or three
//! hosts with ledgers, incarnations and guests, people, and faults. One seed is one history.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod check;
mod controller;
pub mod faults;
mod host;
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
use host::{Daemon, Machine, Worked};
use prelude::Scene;
use rng::Rng;
use store::{Backup, KINDS, Object, Store};

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
            sim.store.create(Kind::Host, json!({"metadata": {"name": name, "finalizers": [FINALIZER]}, "spec": {"cluster": "default"}}), now);
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

    /// Faults stop; everybody works until nothing is left to do.
    fn settle(&mut self) {
        self.settling = true;
        self.say(|| "-- faults stop".into());
        self.store.up = true;
        self.honest();
        for c in &mut self.controllers {
            (c.alive, c.frozen) = (true, false);
        }
        if let Some(at) = self.machines.iter().position(|m| m.machine_uuid.starts_with("clone")) {
            // Which of the two is the good one is for people to say: the one with guests.
            let name = self.machines[at].name.clone();
            let original =
                self.machines.iter().position(|m| m.name == name && !m.machine_uuid.starts_with("clone"));
            let keep_clone = !self.machines[at].guests.is_empty();
            if let (true, Some(original)) = (keep_clone, original) {
                if !self.machines[original].guests.is_empty() {
                    return;
                }
                self.machines.remove(original);
            } else {
                self.machines.remove(at);
            }
        }
        for machine in &mut self.machines {
            machine.power_on();
            machine.cut = false;
            machine.libvirt = true;
            machine.daemon.get_or_insert_with(Daemon::default);
            for guest in machine.guests.values_mut() {
                guest.visible = true;
            }
        }
        for volume in self.volumes.values_mut() {
            if let Some(sidecar) = volume.lost.take() {
                (volume.present, volume.sidecar) = (true, Some(sidecar));
            }
        }
        for (path, token) in std::mem::take(&mut self.bad_tokens) {
            self.tokens.insert(path, TokenFact::Present(token));
        }
        for flight in std::mem::take(&mut self.flights) {
            self.arrive(flight);
        }
        self.come_to_rest();
    }

    fn come_to_rest(&mut self) {
        let mut quiet = 0;
        let confirms = self.rng.one_in(2);
        for round in 0..400 {
            if !self.violations.is_empty() {
                return;
            }
            let writes = self.store.writes;
            // The last round looks at everything once more.
            self.still = (4..19).contains(&quiet);
            // While nothing is left to do, only what is due at a certain time can come: that is passed more quickly.
            let did = self.work_in_peace(match (round, quiet) {
                (0..30, 0..4) => 2000,
                (_, 0..4) => 9000,
                _ => 19_000,
            });
            if confirms && round % 20 == 19 && quiet == 0 {
                self.confirm_truth();
            }
            quiet = if did || self.store.writes != writes { 0 } else { quiet + 1 };
            if quiet >= 20 {
                return;
            }
        }
        self.still = false;
        let last: Vec<String> =
            self.trace.as_deref().unwrap_or_default().iter().rev().take(6).cloned().collect();
        let left: Vec<String> = self
            .store
            .world
            .vms()
            .map(|vm| serde_json::to_string(&vm.status.as_ref().map(|s| &s.conditions)).unwrap_or_default())
            .collect();
        self.violation("11", format!("it does not come to rest; last: {last:#?}; {left:#?}"));
    }

    /// One round in which everybody does all there is to do.
    fn work_in_peace(&mut self, ms: i64) -> bool {
        // Never more at once than a leader may miss.
        let mut left = ms;
        while left > 0 {
            self.pass(left.min(9000));
            left -= 9000;
        }
        let mut did = false;
        for c in 0..self.controllers.len() {
            did |= self.controller_settles(c);
        }
        for m in 0..self.machines.len() {
            did |= self.daemon_settles(m);
        }
        self.check();
        did
    }

    fn controller_settles(&mut self, c: usize) -> bool {
        self.notice(c);
        if self.controllers[c].session.as_ref().is_none_or(|s| !s.begun) {
            self.controller_works(c);
            if self.controllers[c].session.as_ref().is_none_or(|s| !s.begun) {
                return false;
            }
        }
        for kind in KINDS {
            self.deliver_kind(c, kind, usize::MAX);
        }
        let moved = self.measure(c);
        let Some(session) = &self.controllers[c].session else { return false };
        let mut objects: Vec<Object> = store::all(&session.world);
        let whole = !(self.still && session.rested) || moved;
        if !whole {
            // Plans of these do not depend on the time.
            objects.retain(|o| !matches!(o, Object::Vm(_) | Object::Disk(_)));
        }
        let mut did = false;
        for object in objects {
            did |= self.plan_one(c, &object);
            while self.controllers[c].session.as_ref().is_some_and(|s| !s.jobs.is_empty()) {
                self.carry_on(c);
                if !self.violations.is_empty() {
                    return true;
                }
            }
        }
        if let Some(session) = &mut self.controllers[c].session {
            session.rested = !did && (whole || session.rested);
        }
        did
    }

    /// A daemon follows its watches, answers and reports, and nothing else.
    fn daemon_talks(&mut self, m: usize) -> bool {
        self.daemon_listens(m);
        let did = self.answer(m);
        self.report_host(m) || did
    }

    fn daemon_listens(&mut self, m: usize) {
        if self.machines[m].daemon.as_ref().is_some_and(|d| d.life.is_none()) {
            self.open_ledger(m);
        }
        for _ in 0..4 {
            if self.is_caught_up(m) {
                break;
            }
            self.watch(m);
            for kind in [Kind::VirtualMachine, Kind::Disk, Kind::VirtualMachineAction, Kind::Host] {
                self.watch_kind(m, kind, usize::MAX);
            }
        }
    }

    fn daemon_settles(&mut self, m: usize) -> bool {
        let still = self.still && self.is_caught_up(m);
        self.daemon_listens(m);
        let mut did = false;
        let uids: BTreeSet<String> = self.worker_uids(m).into_iter().collect();
        for uid in &uids {
            if still && !self.is_due(m, uid) {
                continue;
            }
            // A worker that only reads its object again, and again, is at rest.
            did |= self.work(m, uid) == Worked::Did;
            did |= self.post(m, uid);
        }
        did |= self.answer(m);
        did |= self.report_host(m);
        did |= self.work_on_disks(m);
        let now = self.now();
        let asked: Vec<String> =
            self.machines[m].guests.iter().filter(|(_, g)| g.asked).map(|(uid, _)| uid.clone()).collect();
        for uid in asked {
            did = true;
            self.machines[m].end_guest(&uid, node_plan::facts::ExitKind::Shutdown, now);
        }
        did
    }

    /// With unchanged ledgers, any restore reaches the placement from before it without stopping a guest.
    fn restore_in_peace(&mut self) {
        let at = self.rng.below(self.backups.len());
        let backup = self.backups[at].clone();
        let running: BTreeMap<String, (String, u64, String)> = self
            .machines
            .iter()
            .flat_map(|m| {
                m.guests.iter().map(move |(uid, g)| {
                    (
                        uid.clone(),
                        (m.name.clone(), g.serial, g.grant().map(|g| g.id.clone()).unwrap_or_default()),
                    )
                })
            })
            .collect();
        self.say(|| format!("-- backup {at} is restored in peace; running {running:?}"));
        let bump = self.rng.one_in(2);
        self.store.restore(&backup, bump);
        self.ghost.last_epochs.clear();
        self.ghost.made.clear();
        self.scrub();
        self.come_to_rest();
        if !self.violations.is_empty() {
            return;
        }
        for (uid, (host, serial, grant)) in running {
            let Some(vm) = self.store.world.vm_by_uid(&uid).cloned() else {
                let still =
                    self.machines.iter().any(|m| m.guests.get(&uid).is_some_and(|g| g.serial == serial));
                if !still {
                    self.violation("12", format!("{uid} is not in the backup, and its guest is gone"));
                }
                continue;
            };
            let wants = |s: vireo_crds::v1alpha1::RunStrategy| s != vireo_crds::v1alpha1::RunStrategy::Halted;
            if !wants(vm.spec.run_strategy) || vm.metadata.deletion_timestamp.is_some() {
                continue;
            }
            let acted = self.store.world.acts().any(|a| Some(&a.spec.vm) == vm.metadata.name.as_ref());
            let still = self
                .machines
                .iter()
                .any(|m| m.name == host && m.guests.get(&uid).is_some_and(|g| g.serial == serial));
            if !still && !acted {
                self.violation("12", format!("the guest of {uid} on {host} was stopped by a restore"));
            }
            let placement = vm.status.as_ref().and_then(|s| s.placement.as_ref());
            if still && placement.is_none_or(|p| p.id != grant) {
                let says = vm.status.as_ref().map(|s| {
                    s.conditions.iter().map(|c| (c.type_.clone(), c.reason.clone())).collect::<Vec<_>>()
                });
                let named = says.iter().flatten().any(|(_, reason)| {
                    ["WaitingForEvidence", "ClaimConflict", "AttestationPending", "DoubleRun"]
                        .contains(&reason.as_str())
                });
                if !named {
                    self.violation(
                        "12",
                        format!(
                            "{uid} runs on {host} under {grant}, but the store says {placement:?} {says:?}"
                        ),
                    );
                }
            }
        }
    }

    /// Confirmations in a restored store that are not true now are taken back by their author.
    fn scrub(&mut self) {
        let hosts: Vec<(String, String)> = self
            .store
            .world
            .hosts()
            .filter_map(|(name, h)| {
                Some((
                    name.clone(),
                    h.metadata.annotations.as_ref()?.get(vireo_crds::meta::CONFIRM_ANNOTATION)?.clone(),
                ))
            })
            .collect();
        for (name, incarnation) in hosts {
            if !self.is_over(&incarnation) {
                self.lie = Some(name);
                self.honest();
            }
        }
    }
}
