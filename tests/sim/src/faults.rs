//! What people do and what goes wrong. Administrators in here tell the truth, except for the one who confirms the end
//! of a host that is plainly alive.

use controller_plan::{Key, Kind};
use node_plan::facts::{ExitKind, TokenFact};
use serde_json::json;
use vireo_crds::{meta::CONFIRM_ANNOTATION, v1alpha1::RunStrategy};

use super::{
    Sim,
    controller::Controller,
    host::{Daemon, Machine},
};

/// Kinds of faults; each must occur in every run of the suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    ControllerDies,
    ControllerFreezes,
    SlowWrite,
    LostAnswer,
    Conflict,
    ApiOutage,
    ApiRestart,
    OldBackup,
    OldBackupBumped,
    BackupBeforeFirstGrant,
    DaemonDies,
    HostLosesPower,
    HostReboots,
    LedgerLost,
    HostCloned,
    HostCut,
    LibvirtSilent,
    DomainDisowned,
    GuestCrashes,
    GuestPowersOff,
    GuestResets,
    StartFails,
    TokenUnreadable,
    TrueConfirmation,
    FalseConfirmation,
    VmRecreated,
    DiskEditedIntoSecondVm,
    VolumeLost,
}

/// All of them.
pub const FAULTS: [Fault; 28] = [
    Fault::ControllerDies,
    Fault::ControllerFreezes,
    Fault::SlowWrite,
    Fault::LostAnswer,
    Fault::Conflict,
    Fault::ApiOutage,
    Fault::ApiRestart,
    Fault::OldBackup,
    Fault::OldBackupBumped,
    Fault::BackupBeforeFirstGrant,
    Fault::DaemonDies,
    Fault::HostLosesPower,
    Fault::HostReboots,
    Fault::LedgerLost,
    Fault::HostCloned,
    Fault::HostCut,
    Fault::LibvirtSilent,
    Fault::DomainDisowned,
    Fault::GuestCrashes,
    Fault::GuestPowersOff,
    Fault::GuestResets,
    Fault::StartFails,
    Fault::TokenUnreadable,
    Fault::TrueConfirmation,
    Fault::FalseConfirmation,
    Fault::VmRecreated,
    Fault::DiskEditedIntoSecondVm,
    Fault::VolumeLost,
];

/// How many kinds of things [`Sim::goes_wrong`] knows.
pub const MISHAPS: usize = 31;
/// Numbers of some of them, to favour.
pub const RESTORE: usize = 7;
pub const LEDGER_LOST: usize = 15;
pub const CLONE: usize = 16;
pub const CUT: usize = 17;
pub const DISOWNED: usize = 22;
pub const BACKUP: usize = 28;
pub const VOLUME_LOST: usize = 30;
/// Numbers of some things users do, to favour.
pub const STRATEGY: usize = 0;
pub const DELETE_VM: usize = 5;
pub const DATA_DISK: usize = 9;
pub const DISK_COMES_AND_GOES: usize = 11;

const NAMES: [&str; 2] = ["vm1", "vm2"];

fn key(name: &str) -> Key {
    Key::new("default", name)
}

impl Sim {
    /// Counts a fault.
    pub fn fault(&mut self, fault: Fault) {
        *self.histogram.entry(fault).or_default() += 1;
        self.faults += 1;
    }

    fn happens(&mut self, fault: Fault, what: impl FnOnce() -> String) {
        self.fault(fault);
        self.say(|| format!("!! {fault:?} {}", what()));
    }

    /// A user does something.
    pub fn user_acts(&mut self) {
        if !self.store.up {
            return;
        }
        let name = NAMES[self.rng.below(2)];
        let now = self.now();
        let vm = self.store.world.vm(&key(name)).cloned();
        let Some(vm) = vm else { return self.create_vm(name) };
        let uid = vm.metadata.uid.clone().unwrap_or_default();
        let deeds = self.rules.deeds;
        let favourite = self.rng.pick(deeds).copied();
        let any = self.rng.below(14);
        match favourite.filter(|_| any > 3).unwrap_or(any) {
            0..=3 => {
                let strategies = [
                    RunStrategy::Always,
                    RunStrategy::RerunOnFailure,
                    RunStrategy::Manual,
                    RunStrategy::Halted,
                ];
                let to = strategies[self.rng.below(4)];
                self.say(|| format!("user: {name} runStrategy {to:?}"));
                if to == RunStrategy::Halted {
                    self.ghost.may_stop.insert(uid);
                }
                self.store.edit_vm(&key(name), |spec| spec.run_strategy = to);
            }
            4 => {
                let size = ["1Gi", "2Gi"][self.rng.below(2)];
                self.say(|| format!("user: {name} memory {size}"));
                self.store
                    .edit_vm(&key(name), |spec| spec.memory.size = vireo_crds::units::Size(size.into()));
            }
            5 => {
                self.say(|| format!("user deletes {name}"));
                self.ghost.may_stop.insert(uid);
                self.ghost.deleted_names.insert(name.into());
                self.store.delete(Kind::VirtualMachine, &key(name), now);
            }
            6..=8 => self.act_on(name, &uid),
            9..=10 => {
                let has = vm.spec.disks.iter().any(|d| d.disk.is_some());
                self.say(|| format!("user: {name} data disk {}", if has { "out" } else { "in" }));
                let other = NAMES.iter().filter(|n| **n != name).filter_map(|n| self.store.world.vm(&key(n)));
                let twice = !has && other.flat_map(|o| &o.spec.disks).any(|d| d.disk.is_some());
                if twice {
                    self.fault(Fault::DiskEditedIntoSecondVm);
                }
                self.store.edit_vm(&key(name), |spec| {
                    if has {
                        spec.disks.retain(|d| d.disk.is_none());
                    } else if let Ok(disk) =
                        serde_json::from_value(json!({"name": "data", "disk": {"name": "data"}}))
                    {
                        spec.disks.push(disk);
                    }
                });
            }
            11 => self.data_disk(),
            _ => {}
        }
    }

    fn data_disk(&mut self) {
        let now = self.now();
        if self.store.world.disk(&key("data")).is_some() {
            if self.rng.one_in(2) {
                self.say(|| "user deletes Disk data".into());
                self.store.delete(Kind::Disk, &key("data"), now);
            }
        } else {
            self.say(|| "user creates Disk data".into());
            self.store.create(Kind::Disk, json!({"metadata": {"name": "data", "namespace": "default"}, "spec": {"storageDomain": "shared", "size": "1Gi"}}), now);
        }
    }

    pub fn create_vm(&mut self, name: &str) {
        let now = self.now();
        let strategy = ["Always", "Always", "Always", "RerunOnFailure", "Manual"][self.rng.below(5)];
        let mut disks = Vec::new();
        if self.rng.below(3) > 0 {
            disks.push(json!({"name": "root", "template": {"storageDomain": "shared", "size": "1Gi"}}));
        }
        if self.rng.one_in(3) {
            disks.push(json!({"name": "data", "disk": {"name": "data"}}));
        }
        if let Some(disk) = self.rules.disks {
            let root = json!({"name": "root", "template": {"storageDomain": "shared", "size": "1Gi"}});
            disks = disk.then_some(root).into_iter().collect();
        }
        if self.ghost.deleted_names.contains(name) {
            self.fault(Fault::VmRecreated);
        }
        self.say(|| format!("user creates {name} {strategy} {}", json!(disks)));
        self.store.create(
            Kind::VirtualMachine,
            json!({"metadata": {"name": name, "namespace": "default"}, "spec": {"runStrategy": strategy, "gracePeriodSeconds": 20, "memory": {"size": "1Gi"}, "disks": disks}}),
            now,
        );
    }

    fn act_on(&mut self, name: &str, uid: &str) {
        let what = ["start", "stop", "restart", "pause", "resume", "reset"][self.rng.below(6)];
        self.serial += 1;
        let act = format!("act{}", self.serial);
        self.say(|| format!("user: act {act}: {what} {name}"));
        if ["stop", "restart"].contains(&what) {
            self.ghost.may_stop.extend([uid.to_owned(), name.to_owned()]);
        }
        if ["stop", "restart", "pause"].contains(&what) {
            self.ghost.may_pause.extend([uid.to_owned(), name.to_owned()]);
        }
        let now = self.now();
        let mut spec = json!({"vm": name, "ttlSecondsAfterFinished": 60});
        spec[what] = json!({});
        self.store.create(
            Kind::VirtualMachineAction,
            json!({"metadata": {"name": act, "namespace": "default"}, "spec": spec}),
            now,
        );
    }

    /// Something of a guest's own.
    pub fn guest_acts(&mut self) {
        let all: Vec<(usize, String)> = self
            .machines
            .iter()
            .enumerate()
            .flat_map(|(m, machine)| machine.guests.keys().map(move |uid| (m, uid.clone())))
            .collect();
        let Some((m, uid)) = self.rng.pick(&all).cloned() else { return };
        let now = self.now();
        let asked = self.machines[m].guests.get(&uid).is_some_and(|g| g.asked);
        if asked && self.rng.below(3) > 0 {
            self.say(|| format!("guest {uid} obeys and shuts down"));
            return self.machines[m].end_guest(&uid, ExitKind::Shutdown, now);
        }
        match self.rng.below(5) {
            0 => {
                self.happens(Fault::GuestCrashes, || uid.clone());
                self.machines[m].end_guest(&uid, ExitKind::Crashed, now);
            }
            1 => {
                self.happens(Fault::GuestPowersOff, || uid.clone());
                self.machines[m].end_guest(&uid, ExitKind::PoweredOff, now);
            }
            2 => {
                self.happens(Fault::GuestResets, || uid.clone());
                self.reset_guest(m, &uid);
            }
            _ => {}
        }
    }

    /// Something goes wrong, or is put right again.
    pub fn goes_wrong(&mut self) {
        let m = self.rng.below(self.machines.len());
        let c = self.rng.below(self.controllers.len());
        let name = self.machines[m].name.clone();
        let now = self.now();
        let favourite = self.favourites[self.rng.below(3)];
        let any = self.rng.below(MISHAPS);
        match if self.rng.one_in(2) { favourite } else { any } {
            0 | 1 => {
                if self.controllers[c].alive {
                    self.happens(Fault::ControllerDies, || c.to_string());
                    self.controllers[c] = Controller::default();
                } else {
                    self.controllers[c].alive = true;
                }
            }
            2 | 3 => {
                let frozen = !self.controllers[c].frozen && self.controllers[c].alive;
                if frozen {
                    self.happens(Fault::ControllerFreezes, || c.to_string());
                }
                self.controllers[c].frozen = frozen;
            }
            4 | 5 => {
                if self.store.up {
                    self.happens(Fault::ApiOutage, String::new);
                }
                self.store.up = !self.store.up;
            }
            6 => {
                self.happens(Fault::ApiRestart, String::new);
                self.store.restart();
            }
            7 | 8 => self.restore(),
            9 | 10 => {
                if self.machines[m].daemon.is_some() {
                    self.happens(Fault::DaemonDies, || name);
                    self.machines[m].daemon = None;
                    self.honest();
                } else if self.machines[m].powered {
                    self.machines[m].daemon = Some(Daemon::default());
                }
            }
            11 | 12 => {
                if self.machines[m].powered {
                    self.happens(Fault::HostLosesPower, || name);
                    self.machines[m].power_off();
                    self.honest();
                } else {
                    self.machines[m].power_on();
                }
            }
            13 | 14 => {
                if self.machines[m].powered {
                    self.happens(Fault::HostReboots, || name);
                    self.machines[m].power_off();
                    self.machines[m].power_on();
                    self.honest();
                }
            }
            15 => {
                if self.rng.one_in(2) {
                    self.happens(Fault::LedgerLost, || name);
                    let machine = &mut self.machines[m];
                    machine.ledger.clear();
                    machine.life_on_disk = None;
                    machine.daemon = machine.powered.then(Daemon::default);
                    self.honest();
                }
            }
            16 => self.clone_host(m),
            17..=19 if self.rules.liar && self.machines[m].cut => self.confirm_lie(),
            17..=19 => {
                let cut = !self.machines[m].cut;
                if cut {
                    self.happens(Fault::HostCut, || name);
                }
                self.machines[m].cut = cut;
                self.honest();
            }
            20 | 21 => {
                let up = !self.machines[m].libvirt;
                if !up {
                    self.happens(Fault::LibvirtSilent, || name);
                }
                self.machines[m].libvirt = up;
            }
            22 => {
                let uids: Vec<String> = self.machines[m].guests.keys().cloned().collect();
                let Some(uid) = self.rng.pick(&uids).cloned() else { return };
                if let Some(guest) = self.machines[m].guests.get_mut(&uid) {
                    guest.visible = !guest.visible;
                    if !guest.visible {
                        self.happens(Fault::DomainDisowned, || format!("{uid} on {name}"));
                    }
                }
            }
            23 => {
                let paths: Vec<String> = self.tokens.keys().cloned().collect();
                let Some(path) = self.rng.pick(&paths).cloned() else { return };
                if let Some(TokenFact::Present(token)) = self.tokens.get(&path).cloned() {
                    self.happens(Fault::TokenUnreadable, || path.clone());
                    self.tokens.insert(path.clone(), TokenFact::Unknown { why: "I/O error".into() });
                    self.bad_tokens.push((path, token));
                } else if let Some((path, token)) = self.bad_tokens.pop() {
                    self.tokens.insert(path, TokenFact::Present(token));
                }
            }
            24..=26 => self.confirm_truth(),
            27 => self.confirm_lie(),
            28 => self.backups.push(self.store.backup()),
            30 => {
                let files: Vec<String> =
                    self.volumes.iter().filter(|(_, v)| v.present).map(|(file, _)| file.clone()).collect();
                let Some(file) = self.rng.pick(&files).cloned() else { return };
                self.happens(Fault::VolumeLost, || file.clone());
                let volume = self.volumes.entry(file).or_default();
                volume.present = false;
                volume.lost = volume.sidecar.take();
            }
            _ => {
                let _ = now;
                self.freeze_time = 1 + self.rng.below(4);
            }
        }
    }

    fn restore(&mut self) {
        if self.backups.is_empty() || !self.rng.one_in(2) {
            return;
        }
        let at = self.rng.below(self.backups.len());
        let bump = self.rng.one_in(2);
        self.bring_back(at, bump);
    }

    /// A backup is restored, with the versions it had or with higher ones.
    pub fn bring_back(&mut self, at: usize, bump: bool) {
        let backup = self.backups[at].clone();
        if at == 0 {
            self.fault(Fault::BackupBeforeFirstGrant);
        }
        self.happens(if bump { Fault::OldBackupBumped } else { Fault::OldBackup }, || format!("number {at}"));
        self.store.restore(&backup, bump);
        self.timeline += 1;
        self.ghost.last_epochs.clear();
        self.ghost.made.clear();
        self.lie = None;
        self.scrub();
        // Later backups are of a timeline that is over; they stay on the shelf all the same.
        for vm in self.store.world.vms() {
            if vm.spec.run_strategy == RunStrategy::Halted || vm.metadata.deletion_timestamp.is_some() {
                self.ghost.may_stop.extend(vm.metadata.uid.clone());
            }
        }
    }

    /// A disk image of a host is put into another machine, which starts under the same name.
    fn clone_host(&mut self, m: usize) {
        if let Some(at) = self.machines.iter().position(|machine| machine.is_copy) {
            if self.takes_over(at) {
                return;
            }
            if self.machines[at].guests.is_empty() {
                self.say(|| "the clone is shut down".into());
                self.machines.remove(at);
            }
            return;
        }
        if !self.clones || self.machines[m].life_on_disk.is_none() {
            return;
        }
        self.make_clone(m);
    }

    /// A machine that is off is scrapped, and its copy takes its place: an administrator ties the Host to it.
    fn takes_over(&mut self, copy: usize) -> bool {
        let name = self.machines[copy].name.clone();
        let original = self.machines.iter().position(|m| m.name == name && !m.is_copy && !m.powered);
        let Some(original) = original.filter(|_| self.store.up && self.rng.one_in(2)) else { return false };
        self.say(|| format!("the clone takes the place of {name}, which is scrapped"));
        self.machines[copy].is_copy = false;
        self.machines.remove(original);
        self.store.untie_host(&name);
        true
    }

    /// Boots another machine from the disk image of this one.
    pub fn make_clone(&mut self, m: usize) {
        self.serial += 1;
        let of = &self.machines[m];
        let name = of.name.clone();
        let mut clone = Machine::new(&name, &format!("clone{}", self.serial));
        clone.is_copy = true;
        clone.ledger = of.ledger.clone();
        clone.life_on_disk = of.life_on_disk.clone();
        self.happens(Fault::HostCloned, || name);
        self.machines.push(clone);
        self.honest();
    }

    /// Whether a life is over for good: no machine can go on as it, and nothing of it runs.
    pub fn is_over(&self, incarnation: &str) -> bool {
        !self.machines.iter().any(|machine| {
            machine.lives_as(incarnation)
                || machine
                    .guests
                    .values()
                    .any(|g| g.grant().is_some_and(|grant| grant.incarnation == incarnation))
        })
    }

    /// An administrator looks, and confirms in writing what is so.
    pub fn confirm_truth(&mut self) {
        if !self.store.up {
            return;
        }
        let mut found = Vec::new();
        for vm in self.store.world.vms() {
            let Some(placement) = vm.status.as_ref().and_then(|s| s.placement.as_ref()) else { continue };
            let uid = vm.metadata.uid.clone().unwrap_or_default();
            let runs = self
                .machines
                .iter()
                .any(|m| m.guests.get(&uid).and_then(|g| g.grant()).is_some_and(|g| g.id == placement.id));
            if self.is_over(&placement.incarnation) && !runs {
                found.push((Kind::VirtualMachine, Key::of(vm.as_ref()), placement.id.clone()));
            }
        }
        for (name, host) in self.store.world.hosts() {
            let Some(incarnation) = host.status.as_ref().and_then(|s| s.incarnation.clone()) else {
                continue;
            };
            if self.is_over(&incarnation) {
                found.push((Kind::Host, Key::new("", name), incarnation));
            }
        }
        let Some((kind, key, value)) = self.rng.pick(&found).cloned() else { return };
        self.happens(Fault::TrueConfirmation, || format!("{kind} {key}: {value}"));
        self.annotate(kind, &key, Some(value));
    }

    /// Somebody confirms the end of a host that lives and renews its Lease.
    fn confirm_lie(&mut self) {
        if self.rules.liar {
            let cut = self.machines.iter().filter(|m| m.cut && !m.guests.is_empty());
            let cut: Vec<_> = cut
                .filter_map(|m| Some((m.name.clone(), m.daemon.as_ref()?.life.as_ref()?.id.clone())))
                .collect();
            if let Some((name, incarnation)) = self.rng.pick(&cut).cloned() {
                self.happens(Fault::FalseConfirmation, || {
                    format!("{name}: {incarnation}, which nobody can hear")
                });
                self.annotate(Kind::Host, &Key::new("", &name), Some(incarnation));
            }
            return;
        }
        let lives: Vec<(String, String)> = self
            .machines
            .iter()
            .filter(|m| m.powered && !m.cut)
            .filter_map(|m| Some((m.name.clone(), m.daemon.as_ref()?.life.as_ref()?.id.clone())))
            .collect();
        let alone = |name: &str| self.machines.iter().filter(|m| m.name == name).count() == 1;
        let lives: Vec<_> = lives
            .into_iter()
            .filter(|(name, id)| alone(name) && self.store.leases.get(name).is_some_and(|r| r.holder == *id))
            .collect();
        let Some((name, incarnation)) = self.rng.pick(&lives).cloned() else { return };
        if self.lie.is_some() || !self.store.up {
            return;
        }
        self.happens(Fault::FalseConfirmation, || format!("{name}: {incarnation}"));
        self.annotate(Kind::Host, &Key::new("", &name), Some(incarnation));
        self.lie = Some(name);
    }

    /// A lie that the Lease would no longer expose is taken back: confirming a host nobody can hear is the
    /// administrator's own word, and nothing can protect against a wrong one.
    pub fn honest(&mut self) {
        let Some(name) = self.lie.take() else { return };
        self.annotate(Kind::Host, &Key::new("", &name), None);
    }

    fn annotate(&mut self, kind: Kind, key: &Key, value: Option<String>) {
        self.store.edit_meta(kind, key, |meta| {
            let annotations = meta.annotations.get_or_insert_default();
            match &value {
                Some(value) => annotations.insert(CONFIRM_ANNOTATION.into(), value.clone()),
                None => annotations.remove(CONFIRM_ANNOTATION),
            };
        });
    }
}
