//! A machine, its hypervisor and its daemon as the executor runs it: an incarnation kept twice, a ledger that
//! survives power, watches that forget nothing by themselves, one worker per VM. Every decision is the real planner's.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use controller_plan::{Key, Kind};
use node_plan::{
    attest::{Known, Stored, attest},
    effect,
    facts::{
        Attempts, DomainFact, Exit, ExitKind, Facts, HostFiles, LiveDomain, OnReboot, ProcessFact,
        ShutdownAsked, StartFailure, TokenFact,
    },
    intent::{Observation, VmRef},
    ledger::{Entry, LedgerFact},
    lint::lint,
    step::{Plan, VmStep},
    vm::plan_vm,
};
use vireo_crds::{
    condition::{self, kind},
    meta::DESTROY_ANNOTATION,
    v1alpha1::{
        Attestation, Disk, Grant, Holding, Host, HostIdentity, OrphanDomain, PastIncarnation, VirtualMachine,
        VirtualMachineAction,
    },
};

use super::{
    Sim,
    faults::Fault,
    resolve,
    store::{Change, KINDS, Object, Refused, Renewal, Store},
};

/// Conditions of a VM that are the daemon's.
pub const VM_CONDITIONS: [&str; 8] = [
    kind::PROVISIONED,
    kind::RUNNING,
    kind::AGENT_CONNECTED,
    kind::RESTART_REQUIRED,
    kind::LIVE_MIGRATABLE,
    kind::READY,
    kind::RECONCILING,
    kind::STALLED,
];
const DISK_CONDITIONS: [&str; 4] = [kind::READY, kind::PROVISIONED, kind::RECONCILING, kind::STALLED];
const HOST_CONDITIONS: [&str; 3] = [kind::HYPERVISOR_READY, kind::STORAGE_READY, kind::NETWORK_READY];

/// One life of a ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    pub id: String,
    pub boot_id: String,
    pub machine_uuid: String,
    pub past: Vec<PastIncarnation>,
}

/// A QEMU process.
#[derive(Debug, Clone)]
pub struct Guest {
    pub live: LiveDomain,
    /// libvirt shows it.
    pub visible: bool,
    /// Number of the process.
    pub serial: u64,
    /// It has been asked to shut down.
    pub asked: bool,
}

impl Guest {
    /// Whether its vCPUs may run.
    pub fn runs(&self) -> bool {
        !matches!(self.live.state, node_plan::facts::DomainState::Paused(_))
    }

    /// Grant it was started under.
    pub fn grant(&self) -> Option<&Grant> {
        self.live.metadata.as_ref().map(|m| &m.grant)
    }
}

/// A machine.
pub struct Machine {
    pub name: String,
    pub machine_uuid: String,
    pub boots: u64,
    pub powered: bool,
    pub ledger: BTreeMap<String, Entry>,
    pub life_on_disk: Option<Life>,
    pub life_in_run: Option<Life>,
    pub guests: BTreeMap<String, Guest>,
    pub files: BTreeMap<String, HostFiles>,
    pub exits: BTreeMap<String, Exit>,
    pub libvirt: bool,
    /// It does not reach the API server.
    pub cut: bool,
    pub daemon: Option<Daemon>,
}

/// What is known of a VM's object.
#[derive(Debug, Clone)]
pub enum Sight {
    Here(Arc<VirtualMachine>),
    Disappeared,
    Gone,
    Elsewhere { holder: Grant, order: Option<String> },
}

/// A daemon process.
#[derive(Default)]
pub struct Daemon {
    pub life: Option<Life>,
    connection: u64,
    cursors: [usize; KINDS.len()],
    listed: bool,
    vms: BTreeMap<String, Sight>,
    disks: BTreeMap<Key, Arc<Disk>>,
    acts: BTreeMap<String, Arc<VirtualMachineAction>>,
    host: Option<Arc<Host>>,
    nonce: Option<String>,
    listing: Option<String>,
    answered: Option<String>,
    attestation: Option<Attestation>,
    workers: BTreeMap<String, Worker>,
    renewed: i64,
    attested_at: i64,
}

#[derive(Default)]
struct Worker {
    vm: Option<VmRef>,
    start_failure: Option<StartFailure>,
    shutdown_asked: Option<ShutdownAsked>,
    resume_attempts: Option<Attempts>,
    steps: VecDeque<VmStep>,
    post: Option<Post>,
    unexplained: Option<String>,
}

struct Post {
    object: Arc<VirtualMachine>,
    plan: Plan,
    now: jiff::Timestamp,
}

impl Machine {
    pub fn new(name: &str, machine_uuid: &str) -> Self {
        Self {
            name: name.into(),
            machine_uuid: machine_uuid.into(),
            boots: 1,
            powered: true,
            ledger: BTreeMap::new(),
            life_on_disk: None,
            life_in_run: None,
            guests: BTreeMap::new(),
            files: BTreeMap::new(),
            exits: BTreeMap::new(),
            libvirt: true,
            cut: false,
            daemon: Some(Daemon::default()),
        }
    }

    pub fn boot_id(&self) -> String {
        format!("{}-boot{}", self.machine_uuid, self.boots)
    }

    /// Whether this very life may still act: its two copies agree in this boot.
    pub fn lives_as(&self, incarnation: &str) -> bool {
        let is = |life: &Option<Life>| {
            life.as_ref().is_some_and(|l| l.id == incarnation && l.boot_id == self.boot_id())
        };
        self.powered && is(&self.life_in_run) && is(&self.life_on_disk)
    }

    pub fn power_off(&mut self) {
        self.powered = false;
        self.guests.clear();
        self.exits.clear();
        self.life_in_run = None;
        self.daemon = None;
        for files in self.files.values_mut() {
            files.permit = None;
        }
    }

    pub fn power_on(&mut self) {
        if !self.powered {
            self.powered = true;
            self.boots += 1;
            self.libvirt = true;
            self.daemon = Some(Daemon::default());
        }
    }

    /// A guest ends in this way.
    pub fn end_guest(&mut self, uid: &str, how: ExitKind, now: jiff::Timestamp) {
        if self.guests.remove(uid).is_some() {
            self.exits.insert(uid.into(), Exit { at: now, how, detail: None });
        }
    }
}

impl Sim {
    fn reaches(&self, m: usize) -> bool {
        self.store.up && !self.machines[m].cut
    }

    /// Renews Leases; called whenever time passes.
    pub fn renew(&mut self) {
        for m in 0..self.machines.len() {
            let reaches = self.reaches(m);
            let machine = &mut self.machines[m];
            let name = machine.name.clone();
            let Some(daemon) = machine.daemon.as_mut().filter(|_| machine.powered) else { continue };
            let Some(life) = &daemon.life else { continue };
            if reaches && self.ms - daemon.renewed >= 10_000 {
                daemon.renewed = self.ms;
                self.store.leases.insert(name.clone(), Renewal { holder: life.id.clone(), time: self.ms });
                self.show_lease(&name);
            }
        }
    }

    /// One piece of work of a daemon.
    pub fn daemon_works(&mut self, m: usize) {
        if !self.machines[m].powered {
            return;
        }
        let Some(daemon) = &self.machines[m].daemon else { return };
        if daemon.life.is_none() {
            return self.open_ledger(m);
        }
        match self.rng.below(16) {
            0 | 1 => self.watch(m),
            2 | 3 => drop(self.answer(m)),
            4 | 5 => drop(self.report_host(m)),
            6 | 7 => drop(self.work_on_disks(m)),
            8 | 9 => {
                if let Some(uid) = self.some_worker(m) {
                    let _ = self.post(m, &uid);
                }
            }
            _ => {
                if let Some(uid) = self.some_worker(m) {
                    self.work(m, &uid);
                }
            }
        }
    }

    fn some_worker(&mut self, m: usize) -> Option<String> {
        let uids: Vec<String> = self.worker_uids(m);
        self.rng.pick(&uids).cloned()
    }

    /// VMs a daemon plans for: known by watch, ledger or census.
    pub fn worker_uids(&self, m: usize) -> Vec<String> {
        let machine = &self.machines[m];
        let Some(daemon) = &machine.daemon else { return Vec::new() };
        let uids: BTreeSet<String> =
            daemon.vms.keys().chain(machine.ledger.keys()).chain(machine.guests.keys()).cloned().collect();
        uids.into_iter().collect()
    }

    /// Finds out which life of the ledger this is; a new one begins with a census.
    pub fn open_ledger(&mut self, m: usize) {
        self.serial += 1;
        let id = format!("inc{}", self.serial);
        let (keeps, no_census, early) =
            (self.rules.lost_ledger_keeps, self.rules.no_census, self.rules.drop_early);
        let machine = &mut self.machines[m];
        let boot = machine.boot_id();
        let same = match (&machine.life_on_disk, &machine.life_in_run) {
            (Some(disk), Some(run)) => {
                disk.boot_id == boot && run.id == disk.id && run.boot_id == disk.boot_id
            }
            _ => false,
        };
        let life = if same {
            machine.life_on_disk.clone()
        } else if keeps && machine.life_on_disk.is_none() && machine.life_in_run.is_some() {
            machine.life_in_run.clone()
        } else {
            if !machine.libvirt && !no_census {
                return;
            }
            let mut past = machine.life_on_disk.as_ref().map(|l| l.past.clone()).unwrap_or_default();
            past.extend(machine.life_on_disk.as_ref().map(|l| PastIncarnation {
                incarnation: l.id.clone(),
                boot_id: l.boot_id.clone(),
                machine_uuid: l.machine_uuid.clone(),
            }));
            let running: BTreeSet<String> = machine
                .guests
                .iter()
                .filter(|(_, g)| g.visible && !no_census)
                .map(|(uid, _)| uid.clone())
                .collect();
            machine.ledger.retain(|uid, entry| {
                running.contains(uid) || entry.held.as_ref().is_some_and(|held| held.grant.incarnation == id)
            });
            Some(Life { id, boot_id: boot, machine_uuid: machine.machine_uuid.clone(), past })
        };
        if early {
            machine.ledger.clear();
        }
        machine.life_on_disk.clone_from(&life);
        machine.life_in_run.clone_from(&life);
        let name = machine.name.clone();
        if let Some(daemon) = &mut machine.daemon {
            daemon.life.clone_from(&life);
        }
        self.say(|| format!("{name} lives as {:?}", life.map(|l| l.id)));
    }

    /// Follows the watches; lists anew where a connection broke.
    pub fn watch(&mut self, m: usize) {
        if !self.reaches(m) {
            return;
        }
        let most = 1 + self.rng.below(8);
        let nonce = self.store.nonce.clone();
        let keeps = self.rules.attest_cached;
        let name = self.machines[m].name.clone();
        let Some(daemon) = &mut self.machines[m].daemon else { return };
        if nonce.is_some() && daemon.nonce != nonce {
            daemon.nonce.clone_from(&nonce);
            (daemon.listing, daemon.answered) = (nonce, None);
            if !keeps {
                daemon.vms.clear();
                daemon.listed = false;
                daemon.connection = 0;
            }
            return;
        }
        if daemon.connection != self.store.connection {
            if keeps && daemon.listed {
                return;
            }
            daemon.connection = self.store.connection;
            daemon.cursors = self.store.ends();
            let here = |vm: &&Arc<VirtualMachine>| placed_on(vm) == Some(name.as_str());
            let listed: BTreeMap<String, Sight> = self
                .store
                .world
                .vms()
                .filter(here)
                .map(|vm| (vm.metadata.uid.clone().unwrap_or_default(), Sight::Here(vm.clone())))
                .collect();
            for (uid, sight) in &mut daemon.vms {
                if matches!(sight, Sight::Here(_)) && !listed.contains_key(uid) {
                    *sight = Sight::Disappeared;
                }
            }
            daemon.vms.extend(listed);
            daemon.disks = self.store.world.disks().map(|d| (Key::of(d.as_ref()), d.clone())).collect();
            daemon.acts = self
                .store
                .world
                .acts()
                .map(|a| (a.metadata.uid.clone().unwrap_or_default(), a.clone()))
                .collect();
            daemon.host = self.store.world.host(&name).cloned();
            daemon.listed = true;
            return self.say(|| format!("{name} lists"));
        }
        let kind =
            [Kind::VirtualMachine, Kind::Disk, Kind::VirtualMachineAction, Kind::Host][self.rng.below(4)];
        self.watch_kind(m, kind, most);
    }

    pub fn watch_kind(&mut self, m: usize, kind: Kind, most: usize) {
        let name = self.machines[m].name.clone();
        let Some(daemon) = &mut self.machines[m].daemon else { return };
        if daemon.connection != self.store.connection {
            return;
        }
        let cursor = &mut daemon.cursors[Store::slot(kind)];
        for change in self.store.since(kind, *cursor).iter().take(most) {
            *cursor += 1;
            match change {
                Change::Put(Object::Vm(vm)) => {
                    let uid = vm.metadata.uid.clone().unwrap_or_default();
                    let known = daemon.vms.get(&uid);
                    if placed_on(vm) == Some(name.as_str()) {
                        if !matches!(known, Some(Sight::Here(known)) if version(known.as_ref()) > version(vm.as_ref()))
                        {
                            daemon.vms.insert(uid, Sight::Here(vm.clone()));
                        }
                    } else if matches!(known, Some(Sight::Here(_))) {
                        daemon.vms.insert(uid, Sight::Disappeared);
                    }
                }
                Change::Put(Object::Disk(disk)) => {
                    let key = Key::of(disk.as_ref());
                    let newer = daemon.disks.get(&key).is_some_and(|k| {
                        k.metadata.uid == disk.metadata.uid && version(k.as_ref()) > version(disk.as_ref())
                    });
                    if !newer {
                        daemon.disks.insert(key, disk.clone());
                    }
                }
                Change::Put(Object::Act(act)) => {
                    let uid = act.metadata.uid.clone().unwrap_or_default();
                    let newer =
                        daemon.acts.get(&uid).is_some_and(|k| version(k.as_ref()) > version(act.as_ref()));
                    if !newer {
                        daemon.acts.insert(uid, act.clone());
                    }
                }
                Change::Put(Object::Host(host)) if host.metadata.name.as_deref() == Some(&name) => {
                    if daemon.host.as_ref().is_none_or(|k| version(k.as_ref()) <= version(host.as_ref())) {
                        daemon.host = Some(host.clone());
                    }
                }
                Change::Put(_) => {}
                Change::Gone(key, uid) => match kind {
                    Kind::VirtualMachine => {
                        if daemon.vms.contains_key(uid) {
                            daemon.vms.insert(uid.clone(), Sight::Disappeared);
                        }
                    }
                    Kind::Disk => {
                        if daemon.disks.get(key).is_some_and(|d| d.metadata.uid.as_deref() == Some(uid)) {
                            daemon.disks.remove(key);
                        }
                    }
                    _ => {
                        daemon.acts.remove(uid);
                    }
                },
            }
        }
    }

    fn observation(&self, m: usize, uid: &str) -> (Observation, Option<Arc<VirtualMachine>>) {
        let machine = &self.machines[m];
        let Some(daemon) = &machine.daemon else { return (Observation::Unseen, None) };
        if !daemon.listed {
            return (Observation::Unseen, None);
        }
        match daemon.vms.get(uid) {
            None | Some(Sight::Disappeared) => (Observation::Disappeared, None),
            Some(Sight::Gone) => (Observation::Gone, None),
            Some(Sight::Elsewhere { holder, order }) => {
                (Observation::Elsewhere { holder: holder.clone(), destroy_order: order.clone() }, None)
            }
            Some(Sight::Here(vm)) => {
                let intent = resolve::intent(
                    vm,
                    &daemon.disks,
                    &daemon.acts,
                    &machine.name,
                    self.rules.name_based_volume,
                );
                let observation =
                    intent.map_or(Observation::Disappeared, |intent| Observation::Granted(Box::new(intent)));
                (observation, Some(vm.clone()))
            }
        }
    }

    fn facts(&self, m: usize, uid: &str, observation: &Observation) -> Facts {
        let machine = &self.machines[m];
        let worker = machine.daemon.as_ref().and_then(|d| d.workers.get(uid));
        let entry = machine.ledger.get(uid);
        let wanted = match observation {
            Observation::Granted(intent) => intent.wanted.clone(),
            _ => None,
        };
        let wanted = wanted.or_else(|| entry.and_then(|e| e.wanted.clone()));
        let of_wanted = wanted
            .iter()
            .flat_map(|w| &w.machine.disks)
            .filter_map(|d| Some(d.written_volume()?.token.clone()));
        let of_entry = entry.into_iter().flat_map(|e| &e.volumes).map(|v| v.token.clone());
        let tokens = of_wanted.chain(of_entry).map(|path| {
            let fact = self.tokens.get(&path).cloned().unwrap_or(TokenFact::None);
            (path, fact)
        });
        let guest = machine.guests.get(uid);
        let domain = match guest {
            _ if !machine.libvirt => DomainFact::Unknown { why: "libvirt does not answer".into() },
            Some(guest) if guest.visible => DomainFact::Present(Box::new(guest.live.clone())),
            _ => DomainFact::Absent { defined: false },
        };
        let process = match guest {
            Some(guest) if !self.rules.libvirts_word => {
                ProcessFact::Present { pids: vec![u32::try_from(guest.serial).unwrap_or(1)] }
            }
            _ => ProcessFact::None,
        };
        Facts {
            host: machine.name.clone(),
            incarnation: machine
                .daemon
                .as_ref()
                .and_then(|d| d.life.as_ref())
                .map(|l| l.id.clone())
                .unwrap_or_default(),
            ledger: entry.map_or(LedgerFact::None, |e| LedgerFact::Entry(Box::new(e.clone()))),
            domain,
            process,
            exit: machine.exits.get(uid).cloned().filter(|_| guest.is_none()),
            start_failure: worker.and_then(|w| w.start_failure.clone()),
            shutdown_asked: worker.and_then(|w| w.shutdown_asked.clone()),
            resume_attempts: worker.and_then(|w| w.resume_attempts.clone()),
            files: machine.files.get(uid).cloned().unwrap_or_default(),
            tokens: tokens.collect(),
            guest: None,
            addresses: BTreeMap::new(),
        }
    }

    /// What a daemon would do for a VM now, if it knew everything at once.
    pub fn peek(&self, m: usize, uid: &str) -> Option<(Plan, Option<Arc<VirtualMachine>>)> {
        let (observation, object) = self.observation(m, uid);
        let facts = self.facts(m, uid, &observation);
        let vm = self.vm_ref(m, uid, object.as_deref())?;
        Some((plan_vm(&vm, &observation, &facts, self.now()), object))
    }

    fn vm_ref(&self, m: usize, uid: &str, object: Option<&VirtualMachine>) -> Option<VmRef> {
        let machine = &self.machines[m];
        object
            .and_then(resolve::vm_ref)
            .or_else(|| machine.daemon.as_ref()?.workers.get(uid)?.vm.clone())
            .or_else(|| machine.ledger.get(uid).map(|e| e.vm.clone()))
            .or_else(|| machine.guests.get(uid)?.live.metadata.as_ref().map(|m| m.vm.clone()))
    }

    /// One round of a worker: carries on, or plans anew. True if it did anything.
    pub fn work(&mut self, m: usize, uid: &str) -> bool {
        let pending = self.machines[m]
            .daemon
            .as_ref()
            .and_then(|d| d.workers.get(uid))
            .is_some_and(|w| !w.steps.is_empty());
        if pending {
            self.run_steps(m, uid);
            return true;
        }
        let (observation, object) = self.observation(m, uid);
        let facts = self.facts(m, uid, &observation);
        let Some(vm) = self.vm_ref(m, uid, object.as_deref()) else { return false };
        let now = self.now();
        let plan = plan_vm(&vm, &observation, &facts, now);
        self.counts.node_plans += 1;
        if self.rules.lints {
            let broken = lint(&observation, &facts, &plan);
            if !broken.is_empty() {
                let host = self.machines[m].name.clone();
                self.violation("lint", format!("{host}'s plan for {uid} breaks a rule: {broken:?}"));
                return true;
            }
        }
        let reaches = self.reaches(m);
        let host = self.machines[m].name.clone();
        let Some(daemon) = &mut self.machines[m].daemon else { return false };
        let worker = daemon.workers.entry(uid.into()).or_default();
        worker.vm = Some(vm.clone());
        worker.unexplained.clone_from(&plan.unexplained);
        if !matches!(facts.domain, DomainFact::Present(_) | DomainFact::Unknown { .. }) {
            worker.shutdown_asked = None;
        }
        if let Some(object) = object {
            worker.post = Some(Post { object, plan: plan.clone(), now });
        }
        if plan.needs_get && reaches {
            self.read_by_name(m, uid, &vm);
            return true;
        }
        if plan.steps.is_empty() {
            return false;
        }
        worker.steps = plan.steps.into();
        let names: Vec<_> = worker.steps.iter().map(step_name).collect();
        self.say(|| format!("{host} plans {uid}: {names:?}"));
        self.run_steps(m, uid);
        true
    }

    fn read_by_name(&mut self, m: usize, uid: &str, vm: &VmRef) {
        let key = Key::new(&vm.namespace, &vm.name);
        let found = self.store.world.vm(&key).filter(|o| o.metadata.uid.as_deref() == Some(uid)).cloned();
        let name = self.machines[m].name.clone();
        let gone_destroys = self.rules.gone_destroys;
        let sight = match &found {
            None => Sight::Gone,
            Some(found) => match found.status.as_ref().and_then(|s| s.placement.as_ref()) {
                Some(placement) if placement.host == name => Sight::Here(found.clone()),
                Some(placement) => Sight::Elsewhere {
                    holder: placement.grant(),
                    order: found
                        .metadata
                        .annotations
                        .as_ref()
                        .and_then(|a| a.get(DESTROY_ANNOTATION))
                        .cloned(),
                },
                None => Sight::Disappeared,
            },
        };
        if gone_destroys && matches!(sight, Sight::Gone) {
            self.stopping(m, uid, "a missing object");
            let now = self.now();
            self.machines[m].end_guest(uid, ExitKind::Destroyed, now);
        }
        self.say(|| {
            format!(
                "{name} reads {uid} by name: {}",
                match &sight {
                    Sight::Here(_) => "here".into(),
                    Sight::Elsewhere { holder, .. } => format!("on {} number {}", holder.host, holder.epoch),
                    Sight::Disappeared => "placed nowhere".into(),
                    Sight::Gone => "gone".to_owned(),
                }
            )
        });
        if let Some(daemon) = &mut self.machines[m].daemon {
            daemon.vms.insert(uid.into(), sight);
        }
    }

    /// Carries out some of the steps left; a crash may come between any two.
    fn run_steps(&mut self, m: usize, uid: &str) {
        let most = if self.settling { usize::MAX } else { 1 + self.rng.below(5) };
        for _ in 0..most {
            let Some(step) =
                self.machines[m].daemon.as_mut().and_then(|d| d.workers.get_mut(uid)?.steps.pop_front())
            else {
                return;
            };
            if !self.run_step(m, uid, &step) {
                let name = self.machines[m].name.clone();
                self.say(|| format!("{name}: {} for {uid} failed", step_name(&step)));
                if let Some(worker) = self.machines[m].daemon.as_mut().and_then(|d| d.workers.get_mut(uid)) {
                    worker.steps.clear();
                }
                return;
            }
            if !self.violations.is_empty() {
                return;
            }
        }
    }

    /// Carries out one step; false if it failed.
    fn run_step(&mut self, m: usize, uid: &str, step: &VmStep) -> bool {
        let now = self.now();
        let host = self.machines[m].name.clone();
        if !self.machines[m].libvirt && needs_libvirt(step) {
            return false;
        }
        match step {
            VmStep::WriteLedger { entry, .. } => {
                self.ledger_written(m, uid, entry);
                self.machines[m].ledger.insert(uid.into(), entry.as_ref().clone());
                true
            }
            VmStep::WriteDiskToken { path, token, replaces } => {
                let ok = match self.tokens.get(path) {
                    None | Some(TokenFact::None) => true,
                    Some(TokenFact::Present(found)) => found == token || Some(found) == replaces.as_ref(),
                    Some(TokenFact::Unknown { .. }) => false,
                };
                if ok {
                    self.tokens.insert(path.clone(), TokenFact::Present(token.clone()));
                }
                ok
            }
            VmStep::RemoveDiskToken { path, token } => {
                if self.tokens.get(path) == Some(&TokenFact::Present(token.clone())) {
                    self.tokens.insert(path.clone(), TokenFact::None);
                }
                true
            }
            VmStep::StartDomain { metadata, .. } => {
                if self.machines[m].guests.get(uid).is_some_and(|g| g.visible) {
                    return true;
                }
                let permit = self.machines[m].files.get(uid).and_then(|f| f.permit.clone());
                let fails = !self.settling && self.rng.one_in(9);
                if fails || permit.as_deref() != Some(metadata.grant.id.as_str()) {
                    self.fault(Fault::StartFails);
                    if let Some(worker) =
                        self.machines[m].daemon.as_mut().and_then(|d| d.workers.get_mut(uid))
                    {
                        worker.start_failure =
                            Some(StartFailure { at: now, message: "it does not start".into() });
                    }
                    return false;
                }
                let mut facts = self.facts(m, uid, &Observation::Unseen);
                facts.domain = DomainFact::Absent { defined: false };
                effect::apply(step, &mut facts, now);
                let DomainFact::Present(live) = facts.domain else { return false };
                self.serial += 1;
                let guest = Guest { live: *live, visible: true, serial: self.serial, asked: false };
                self.started(m, uid, &guest);
                self.machines[m].guests.insert(uid.into(), guest);
                self.machines[m].exits.remove(uid);
                if let Some(worker) = self.machines[m].daemon.as_mut().and_then(|d| d.workers.get_mut(uid)) {
                    worker.start_failure = None;
                    worker.resume_attempts = None;
                }
                self.say(|| {
                    format!("{host} starts {uid} under {} number {}", metadata.grant.id, metadata.grant.epoch)
                });
                true
            }
            VmStep::Destroy { grant } => {
                if self.machines[m].guests.get(uid).and_then(Guest::grant).is_some_and(|g| g != grant) {
                    return false;
                }
                self.stopping(m, uid, "Destroy");
                self.say(|| format!("{host} destroys {uid}"));
                self.machines[m].end_guest(uid, ExitKind::Destroyed, now);
                true
            }
            VmStep::RequestShutdown { via } => {
                self.stopping(m, uid, "RequestShutdown");
                if let Some(guest) = self.machines[m].guests.get_mut(uid) {
                    guest.asked = true;
                }
                if let Some(worker) = self.machines[m].daemon.as_mut().and_then(|d| d.workers.get_mut(uid)) {
                    worker.shutdown_asked = Some(ShutdownAsked { at: now, via: *via });
                }
                true
            }
            step => {
                if matches!(step, VmStep::Pause) {
                    self.pausing(m, uid);
                }
                let mut facts = self.facts(m, uid, &Observation::Unseen);
                effect::apply(step, &mut facts, now);
                let machine = &mut self.machines[m];
                if let (DomainFact::Present(live), Some(guest)) = (facts.domain, machine.guests.get_mut(uid))
                {
                    guest.live = *live;
                }
                machine.files.insert(uid.into(), facts.files);
                if let (VmStep::Resume, Some(worker)) =
                    (step, machine.daemon.as_mut().and_then(|d| d.workers.get_mut(uid)))
                {
                    let count = worker.resume_attempts.as_ref().map_or(0, |a| a.count) + 1;
                    worker.resume_attempts = Some(Attempts { count, last: now });
                }
                true
            }
        }
    }

    /// Writes what a worker has to report, if it is due. True if it was.
    pub fn post(&mut self, m: usize, uid: &str) -> bool {
        if !self.reaches(m) {
            return false;
        }
        let name = self.machines[m].name.clone();
        let Some(daemon) = self.machines[m].daemon.as_mut() else { return false };
        let Some(post) = daemon.workers.get_mut(uid).and_then(|w| w.post.take()) else { return false };
        let mut wrote = false;
        if let Some(report) = &post.plan.report
            && is_due(&self.store, &post.object, report)
        {
            let key = Key::of(post.object.as_ref());
            let stored =
                self.store.world.vm(&key).and_then(|o| o.status.as_ref()?.placement.as_ref()).cloned();
            // Admission: only the host that placement names.
            if stored.as_ref().is_none_or(|p| p.host != name) {
                return false;
            }
            let written = self.store.report(&post.object, &VM_CONDITIONS, |vm| {
                let status = vm.status.get_or_insert_default();
                status.conditions = condition::merge(
                    &status.conditions,
                    &report.conditions,
                    report.observed_generation,
                    post.now,
                );
                status.observed_generation = Some(report.observed_generation);
                status.state = Some(report.state);
                status.summary = Some(report.summary.clone());
                status.runtime.clone_from(&report.runtime);
                status.hardware.clone_from(&report.hardware);
            });
            match written {
                Ok(vm) => {
                    wrote = true;
                    self.counts.writes += 1;
                    self.say(|| {
                        format!(
                            "{name} reports {uid}: {:?}",
                            report.runtime.as_ref().map(|r| (r.holding, r.power, r.stop_cause, &r.grant.id))
                        )
                    });
                    if let Some(daemon) = &mut self.machines[m].daemon {
                        let newer = matches!(daemon.vms.get(uid), Some(Sight::Here(k)) if version(k.as_ref()) > version(vm.as_ref()));
                        if !newer {
                            daemon.vms.insert(uid.into(), Sight::Here(vm));
                        }
                    }
                }
                Err(Refused::Stale(_)) => {
                    self.fault(Fault::Conflict);
                    return false;
                }
                Err(_) => return false,
            }
        }
        for outcome in &post.plan.acts {
            let Some(act) = self.machines[m].daemon.as_ref().and_then(|d| d.acts.get(&outcome.uid)).cloned()
            else {
                continue;
            };
            let status = act.status.clone().unwrap_or_default();
            if status.phase == Some(outcome.phase) && status.message.as_deref() == Some(&outcome.message) {
                continue;
            }
            let written = self.store.report(&act, &[kind::READY], |act| {
                let generation = act.metadata.generation.unwrap_or_default();
                let status = act.status.get_or_insert_default();
                let ready = if outcome.phase == vireo_crds::v1alpha1::ActPhase::Succeeded {
                    condition::ConditionValue::yes(kind::READY, "Succeeded", outcome.message.as_str())
                } else {
                    condition::ConditionValue::no(kind::READY, "Running", outcome.message.as_str())
                };
                status.conditions = condition::merge(&status.conditions, &[ready], generation, post.now);
                status.observed_generation = Some(generation);
                status.phase = Some(outcome.phase);
                status.message = Some(outcome.message.clone());
                status.completed_at =
                    outcome.completed_at.map(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time);
            });
            if let Ok(act) = written
                && let Some(daemon) = &mut self.machines[m].daemon
            {
                wrote = true;
                daemon.acts.insert(outcome.uid.clone(), act);
                self.say(|| format!("{name}: act {} is {:?}", outcome.name, outcome.phase));
            }
        }
        wrote
    }

    /// Answers a new session, and again while the answer is not empty.
    pub fn answer(&mut self, m: usize) -> bool {
        if !self.reaches(m) || !self.machines[m].libvirt || self.rules.no_attestation {
            return false;
        }
        let machine = &self.machines[m];
        let Some(daemon) = &machine.daemon else { return false };
        let (Some(session), Some(life), true) = (daemon.listing.clone(), daemon.life.clone(), daemon.listed)
        else {
            return false;
        };
        let empty = daemon.attestation.as_ref().is_none_or(|a| a.claims.is_empty());
        if daemon.answered.is_some() && (empty || self.ms - daemon.attested_at < 10_000) {
            return false;
        }
        let says = |vm: &VirtualMachine| {
            let status = vm.status.as_ref();
            let placement = status.and_then(|s| s.placement.clone());
            let runtime = status.and_then(|s| s.runtime.as_ref());
            let released = placement
                .as_ref()
                .zip(runtime)
                .is_some_and(|(p, r)| r.grant.names(&p.grant()) && r.holding == Holding::Released);
            Stored { placement, released }
        };
        let uids: BTreeSet<String> = machine
            .ledger
            .keys()
            .cloned()
            .chain(machine.guests.iter().filter(|(_, g)| g.visible).map(|(u, _)| u.clone()))
            .collect();
        let mut known = BTreeMap::new();
        let mut stored = BTreeMap::new();
        for uid in uids {
            let entry = machine.ledger.get(&uid).cloned();
            let running =
                machine.guests.get(&uid).filter(|g| g.visible).and_then(|g| g.live.metadata.clone());
            let here = match daemon.vms.get(&uid) {
                Some(Sight::Here(vm)) => Some(vm.clone()),
                _ => {
                    let vm = entry.as_ref().map(|e| &e.vm).or(running.as_ref().map(|r| &r.vm));
                    vm.and_then(|vm| self.store.world.vm(&Key::new(&vm.namespace, &vm.name)).cloned())
                        .filter(|o| o.metadata.uid.as_deref() == Some(&uid))
                }
            };
            stored.extend(here.map(|vm| says(&vm)).map(|s| (uid.clone(), s)));
            known.insert(uid, Known { entry, running });
        }
        if self.store.nonce.as_deref() != Some(&session) && daemon.nonce.as_deref() != Some(&session) {
            return false;
        }
        let attestation = attest(&session, &life.id, known.values(), &stored);
        let name = machine.name.clone();
        self.say(|| {
            format!(
                "{name} attests {session}: {:?}",
                attestation
                    .claims
                    .iter()
                    .map(|c| (&c.vm_uid, &c.grant.id, c.holding, c.running))
                    .collect::<Vec<_>>()
            )
        });
        let ms = self.ms;
        let Some(daemon) = &mut self.machines[m].daemon else { return false };
        let news = daemon.attestation.as_ref() != Some(&attestation);
        daemon.answered = Some(session);
        daemon.attested_at = ms;
        daemon.attestation = Some(attestation);
        news
    }

    /// Writes Host.status if it differs. True if it did.
    pub fn report_host(&mut self, m: usize) -> bool {
        if !self.reaches(m) {
            return false;
        }
        let machine = &self.machines[m];
        let Some(daemon) = &machine.daemon else { return false };
        let (Some(host), Some(life)) = (daemon.host.clone(), daemon.life.clone()) else { return false };
        let orphans: Vec<OrphanDomain> = machine
            .guests
            .iter()
            .filter(|(_, g)| g.visible)
            .filter_map(|(uid, g)| {
                let reason = daemon.workers.get(uid)?.unexplained.clone()?;
                Some(OrphanDomain {
                    name: g.live.name.clone(),
                    vm_uid: uid.clone(),
                    reason: reason.chars().take(256).collect(),
                })
            })
            .collect();
        let up = machine.libvirt;
        let (boot, uuid, attestation) =
            (machine.boot_id(), machine.machine_uuid.clone(), daemon.attestation.clone());
        let mut wanted = host.as_ref().clone();
        let now = self.now();
        let edit = |host: &mut Host| {
            let generation = host.metadata.generation.unwrap_or_default();
            let status = host.status.get_or_insert_default();
            let ready = |type_, yes| {
                if yes {
                    condition::ConditionValue::yes(type_, "Ready", "")
                } else {
                    condition::ConditionValue::no(type_, "HypervisorDown", "libvirt does not answer")
                }
            };
            let values = [
                ready(kind::HYPERVISOR_READY, up),
                ready(kind::STORAGE_READY, true),
                ready(kind::NETWORK_READY, true),
            ];
            status.conditions = condition::merge(&status.conditions, &values, generation, now);
            status.incarnation = Some(life.id.clone());
            status.boot_id = Some(boot.clone());
            status.past_incarnations.clone_from(&life.past);
            let past = status.past_incarnations.len().saturating_sub(16);
            status.past_incarnations.drain(..past);
            status.attestation.clone_from(&attestation);
            status.identity =
                Some(HostIdentity { public_key_sha256: String::new(), machine_uuid: uuid.clone() });
            status.domains.clone_from(&orphans);
            let fixed: vireo_crds::v1alpha1::HostStatus = resolve::host_status();
            status.features = fixed.features;
            status.cpu = fixed.cpu;
            status.allocatable = fixed.allocatable;
            status.storage_domains = self.domain_reports.clone();
        };
        edit(&mut wanted);
        let same = {
            let (a, b) = (host.status.clone().unwrap_or_default(), wanted.status.clone().unwrap_or_default());
            let said = |s: &vireo_crds::v1alpha1::HostStatus| {
                let own: Vec<_> = HOST_CONDITIONS
                    .iter()
                    .map(|t| {
                        condition::get(&s.conditions, t)
                            .map(|c| (c.status.clone(), c.reason.clone(), c.observed_generation))
                    })
                    .collect();
                (
                    own,
                    s.incarnation.clone(),
                    s.boot_id.clone(),
                    s.past_incarnations.clone(),
                    s.attestation.clone(),
                    s.identity.clone(),
                    s.domains.clone(),
                    s.storage_domains.clone(),
                )
            };
            said(&a) == said(&b)
        };
        if same {
            return false;
        }
        let edit2 = edit;
        match self.store.report(&host, &HOST_CONDITIONS, edit2) {
            Ok(host) => {
                let name = host.metadata.name.clone().unwrap_or_default();
                self.say(|| format!("{name} reports about itself"));
                if let Some(daemon) = &mut self.machines[m].daemon {
                    daemon.host = Some(host);
                }
                true
            }
            Err(_) => {
                self.fault(Fault::Conflict);
                false
            }
        }
    }

    /// Makes, and removes, volumes of the Disks this host works on. True if anything was done.
    pub fn work_on_disks(&mut self, m: usize) -> bool {
        use node_plan::storage::{
            disk::{DiskFacts, DiskIntent, DiskStep, DomainFacts, VolumeFact, plan_disk},
            report::{Teller, disk_report, is_news},
        };
        let name = self.machines[m].name.clone();
        let Some(daemon) = &self.machines[m].daemon else { return false };
        let disks: Vec<Arc<Disk>> = daemon.disks.values().cloned().collect();
        let mut did = false;
        for disk in disks {
            let Some(intent) = DiskIntent::of(&disk, &name) else { continue };
            let volume = self.volumes.entry(intent.uid.clone()).or_default().clone();
            let present = if volume.present {
                VolumeFact::Present { capacity: 1 << 30, allocated: 0 }
            } else {
                VolumeFact::Absent
            };
            let facts = DiskFacts {
                volume: present,
                sidecar: volume.sidecar.clone(),
                trashed: volume.trashed.clone(),
                origin: None,
                partials: false,
            };
            let domain = DomainFacts { not_ready: None, available: 1 << 40, block_free: 0 };
            let plan = plan_disk(&intent, &facts, &domain);
            self.counts.node_plans += 1;
            for step in &plan.steps {
                did = true;
                self.say(|| {
                    format!(
                        "{name}: volume {}: {}",
                        intent.uid,
                        match step {
                            DiskStep::Create(..) => "made",
                            DiskStep::MoveToTrash(_) => "moved to the trash",
                            _ => "worked on",
                        }
                    )
                });
                match step {
                    DiskStep::Create(sidecar, _) => {
                        if volume.present {
                            self.violation(
                                "10",
                                format!("volume {} is made anew over a finished one", intent.uid),
                            );
                        }
                        if volume.trashed.is_some() {
                            self.violation(
                                "10",
                                format!(
                                    "volume {} is in the trash and is replaced by a blank one",
                                    intent.uid
                                ),
                            );
                        }
                        let volume = self.volumes.entry(intent.uid.clone()).or_default();
                        volume.present = true;
                        volume.sidecar = Some(sidecar.clone());
                    }
                    DiskStep::MoveToTrash(sidecar) => {
                        self.removing(&intent.uid);
                        let volume = self.volumes.entry(intent.uid.clone()).or_default();
                        volume.present = false;
                        volume.sidecar = None;
                        volume.trashed = Some(sidecar.clone());
                    }
                    DiskStep::WriteSidecar(sidecar) => {
                        self.volumes.entry(intent.uid.clone()).or_default().sidecar = Some(sidecar.clone())
                    }
                    _ => {}
                }
            }
            if !self.reaches(m) || !plan.steps.is_empty() {
                continue;
            }
            let old = disk.status.clone().unwrap_or_default();
            let report = disk_report(
                &intent,
                &plan.standing,
                Teller { host: &name, shared: true, progress: None },
                &old,
                self.now(),
            );
            if !is_news(&report, &old) {
                continue;
            }
            let written = self.store.report(&disk, &DISK_CONDITIONS, |disk| {
                let status = disk.status.get_or_insert_default();
                status.conditions.clone_from(&report.conditions);
                status.observed_generation = report.observed_generation;
                status.phase = report.phase;
                status.capacity = report.capacity;
                status.volume.clone_from(&report.volume);
                status.local_host.clone_from(&report.local_host);
                if report.summary.is_some() {
                    status.allocated = report.allocated;
                    status.summary.get_or_insert_default().allocated =
                        report.summary.as_ref().and_then(|s| s.allocated.clone());
                }
            });
            match written {
                Ok(disk) => {
                    did = true;
                    if let Some(daemon) = &mut self.machines[m].daemon {
                        daemon.disks.insert(Key::of(disk.as_ref()), disk);
                    }
                }
                Err(_) => self.fault(Fault::Conflict),
            }
        }
        did
    }

    /// Whether everything shown by the watches has been taken in.
    pub fn is_caught_up(&self, m: usize) -> bool {
        let Some(daemon) = &self.machines[m].daemon else { return true };
        let ends = self.store.ends();
        daemon.connection == self.store.connection
            && daemon.nonce == self.store.nonce
            && [Kind::VirtualMachine, Kind::Disk, Kind::VirtualMachineAction, Kind::Host]
                .iter()
                .all(|k| daemon.cursors[Store::slot(*k)] == ends[Store::slot(*k)])
    }

    /// A guest resets itself.
    pub fn reset_guest(&mut self, m: usize, uid: &str) {
        let now = self.now();
        let destroys =
            self.machines[m].guests.get(uid).is_some_and(|g| g.live.on_reboot == OnReboot::Destroy);
        if destroys {
            self.machines[m].end_guest(uid, ExitKind::Reset, now);
        }
    }
}

fn is_due(store: &Store, object: &VirtualMachine, report: &node_plan::step::VmReport) -> bool {
    let empty = Default::default();
    let status = object.status.as_ref().unwrap_or(&empty);
    let uid = object.metadata.uid.as_deref().unwrap_or_default();
    let differs = |wanted: &condition::ConditionValue| {
        condition::get(&status.conditions, &wanted.type_).is_none_or(|c| {
            c.status != wanted.status
                || c.reason != wanted.reason
                || c.message != wanted.message
                || c.observed_generation != Some(report.observed_generation)
        })
    };
    let dropped = |c: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
        VM_CONDITIONS.contains(&c.type_.as_str())
            && !report.conditions.iter().any(|w| w.type_ == c.type_)
            && store.is_nodes(uid, &c.type_)
    };
    report.conditions.iter().any(differs)
        || status.conditions.iter().any(dropped)
        || status.observed_generation != Some(report.observed_generation)
        || status.state != Some(report.state)
        || status.summary.as_ref() != Some(&report.summary)
        || status.runtime != report.runtime
        || status.hardware != report.hardware
}

fn placed_on(vm: &VirtualMachine) -> Option<&str> {
    vm.status.as_ref()?.placement.as_ref().map(|p| p.host.as_str())
}

fn version<K: kube::Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

fn needs_libvirt(step: &VmStep) -> bool {
    matches!(
        step,
        VmStep::StartDomain { .. }
            | VmStep::RequestShutdown { .. }
            | VmStep::Destroy { .. }
            | VmStep::Reset
            | VmStep::InjectNmi
            | VmStep::Pause
            | VmStep::Resume
            | VmStep::SetLink { .. }
            | VmStep::SetOnReboot { .. }
            | VmStep::WriteMetadata { .. }
            | VmStep::Undefine { .. }
    )
}

fn step_name(step: &VmStep) -> String {
    let text = format!("{step:?}");
    text.split([' ', '{', '(']).next().unwrap_or_default().to_owned()
}
