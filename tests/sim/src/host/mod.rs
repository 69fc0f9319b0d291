//! A machine, its hypervisor and its daemon as the executor runs it: an incarnation kept twice, a ledger that
//! survives power, watches that forget nothing by themselves, one worker per VM. Every decision is the real planner's.

mod attest;
mod disks;
mod report;
mod status;
mod watch;
mod work;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use controller_plan::Key;
use node_plan::{
    facts::{Attempts, Exit, ExitKind, HostFiles, LiveDomain, ShutdownAsked, StartFailure},
    identity,
    intent::VmRef,
    ledger::Entry,
    step::{Plan, VmStep},
};
use vireo_crds::{
    condition::kind,
    v1alpha1::{
        Attestation, Disk, Grant, Host, OrphanDomain, PastIncarnation, VirtualMachine, VirtualMachineAction,
    },
};

use super::{
    Sim,
    store::{KINDS, Renewal},
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
    /// It was made from the disk image of another that goes by its name.
    pub is_copy: bool,
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

/// What a worker did in one round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worked {
    /// Nothing is left to do.
    Nothing,
    /// Its object was read by name, and nothing else.
    Read,
    /// Something.
    Did,
}

/// All that a host's report about itself is made of: if it is the same as when there was nothing to report, there is
/// still nothing.
type SaidOf = (Option<String>, String, String, bool, Option<Attestation>, Vec<OrphanDomain>);

/// A daemon process.
#[derive(Default)]
pub struct Daemon {
    pub life: Option<Life>,
    connection: u64,
    cursors: [usize; KINDS.len()],
    listed: bool,
    vms: BTreeMap<String, Sight>,
    /// Ids of grants found in the last list or by a read since.
    listed_grants: BTreeSet<String>,
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
    nothing_to_say: Option<SaidOf>,
}

#[derive(Default)]
struct Worker {
    vm: Option<VmRef>,
    start_failure: Option<StartFailure>,
    shutdown_asked: Option<ShutdownAsked>,
    resume_attempts: Option<Attempts>,
    steps: VecDeque<VmStep>,
    /// When it wants to plan again although nothing has changed.
    wake: Option<jiff::Timestamp>,
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
            is_copy: false,
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
            let (Some(life), Some(host)) = (&daemon.life, &daemon.host) else { continue };
            if identity::ours(host, Some(&life.machine_uuid)).is_err() {
                continue;
            }
            if reaches && self.ms - daemon.renewed >= 10_000 {
                daemon.renewed = self.ms;
                self.store.leases.insert(name.clone(), Renewal { holder: life.id.clone(), time: self.ms });
                self.store.renewals += 1;
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
            let running: BTreeSet<String> =
                machine.guests.iter().filter(|_| !no_census).map(|(uid, _)| uid.clone()).collect();
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
}

/// Id of the grant by which a VM is placed here.
fn grant_of(sight: &Sight) -> Option<String> {
    match sight {
        Sight::Here(vm) => Some(vm.status.as_ref()?.placement.as_ref()?.id.clone()),
        _ => None,
    }
}

fn placed_on(vm: &VirtualMachine) -> Option<&str> {
    vm.status.as_ref()?.placement.as_ref().map(|p| p.host.as_str())
}

fn version<K: kube::Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}
