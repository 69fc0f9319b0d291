//! What must hold after every event, what must have become true at the end, and the memory this takes: a ghost that
//! sees everything and tells nobody.

use std::collections::{BTreeMap, BTreeSet};

use controller_plan::Key;
use node_plan::ledger::{Entry, HeldState};
use vireo_crds::{
    condition::{self, kind},
    reasons,
    v1alpha1::{EvidenceKind, Grant, Placement, RunStrategy, StopCause, VirtualMachine},
};

use super::{Sim, host::Guest};

/// What has been so far.
#[derive(Debug, Default)]
pub struct Ghost {
    /// VMs whose spec, deletion or act has asked for a stop, ever.
    pub may_stop: BTreeSet<String>,
    /// VMs an act has asked to pause.
    pub may_pause: BTreeSet<String>,
    /// Names of VMs deleted.
    pub deleted_names: BTreeSet<String>,
    /// Grants made since the last restore. Of older ones only what a ledger holds is open: a host that finds one in a list
    /// and has not accepted it never does.
    pub made: BTreeSet<String>,
    /// lastEpoch by VM in this timeline.
    pub last_epochs: BTreeMap<String, i64>,
    released: BTreeSet<String>,
    grants: BTreeMap<String, (String, Grant)>,
    ended: BTreeMap<String, EvidenceKind>,
    highest: BTreeMap<(String, String), i64>,
}

impl Sim {
    /// A promise is broken.
    pub fn violation(&mut self, invariant: &'static str, text: String) {
        if self.rules.liar && invariant != "8" {
            return;
        }
        self.say(|| format!("VIOLATION of {invariant}: {text}"));
        self.violations.push((invariant, text));
    }

    /// A placement was written.
    pub fn granted(&mut self, vm: &VirtualMachine, placement: &Placement) {
        let uid = vm.metadata.uid.clone().unwrap_or_default();
        let grant = placement.grant();
        let known = self.ghost.grants.entry(grant.id.clone()).or_insert_with(|| (uid.clone(), grant.clone()));
        if *known != (uid.clone(), grant.clone()) {
            let text = format!("grant id {} is used for {known:?} and for {uid} {grant:?}", grant.id);
            self.violation("5", text);
        }
        self.ghost.made.insert(grant.id.clone());
        let before = vm.status.as_ref().and_then(|s| s.placement.as_ref());
        for old in before.iter().filter(|p| p.id != placement.id) {
            match placement.evidence.iter().find(|e| e.grant_id == old.id) {
                None => self.violation(
                    "7",
                    format!("{} of {uid} replaces {} without evidence", placement.id, old.id),
                ),
                Some(evidence) => match evidence.kind {
                    EvidenceKind::Rebooted | EvidenceKind::Confirmed => {
                        self.ghost.ended.insert(old.id.clone(), evidence.kind);
                    }
                    EvidenceKind::Released if !self.ghost.released.contains(&old.id) => {
                        self.violation(
                            "7",
                            format!("{} of {uid} was never released, but that is the evidence", old.id),
                        );
                    }
                    _ => {}
                },
            }
        }
    }

    /// A ledger entry was written.
    pub fn ledger_written(&mut self, m: usize, uid: &str, entry: &Entry) {
        let life = self.machines[m]
            .daemon
            .as_ref()
            .and_then(|d| d.life.as_ref())
            .map(|l| l.id.clone())
            .unwrap_or_default();
        let highest = self.ghost.highest.entry((life, uid.to_owned())).or_default();
        if entry.highest_epoch < *highest {
            let text = format!("highest epoch of {uid} falls from {highest} to {}", entry.highest_epoch);
            return self.violation("5", text);
        }
        *highest = entry.highest_epoch;
        let Some(held) = &entry.held else { return };
        if held.state == HeldState::Released {
            self.ghost.released.insert(held.grant.id.clone());
        } else if self.ghost.released.contains(&held.grant.id) {
            self.violation("6", format!("released grant {} of {uid} opens again", held.grant.id));
        }
    }

    /// A guest was started.
    pub fn started(&mut self, m: usize, uid: &str, guest: &Guest) {
        let machine = &self.machines[m];
        let life = machine.daemon.as_ref().and_then(|d| d.life.as_ref()).map(|l| l.id.clone());
        let Some(grant) = guest.grant().cloned() else { return };
        if grant.host != machine.name || Some(&grant.incarnation) != life.as_ref() {
            let text =
                format!("{} runs {uid} under a grant for {} {}", machine.name, grant.host, grant.incarnation);
            self.violation("3", text);
        } else if machine.guests.contains_key(uid) {
            let text = format!("{} starts {uid} although a process of it is there", machine.name);
            self.violation("1", text);
        }
    }

    /// A guest is being stopped by its daemon.
    pub fn stopping(&mut self, m: usize, uid: &str, what: &str) {
        // An act names a VM by its name, and waits until there is one.
        let by_name = uid.rsplit_once('-').is_some_and(|(name, _)| self.ghost.may_stop.contains(name));
        if !by_name && !self.ghost.may_stop.contains(uid) && self.machines[m].guests.contains_key(uid) {
            let text = format!("{} stops {uid} ({what}) although nobody ever asked", self.machines[m].name);
            self.violation("8", text);
        }
    }

    /// A guest is being paused by its daemon.
    pub fn pausing(&mut self, m: usize, uid: &str) {
        let epoch = self.machines[m].guests.get(uid).and_then(|g| g.grant()).map_or(0, |g| g.epoch);
        let newer = self
            .store
            .world
            .vm_by_uid(uid)
            .and_then(|vm| vm.status.as_ref()?.placement.as_ref())
            .is_some_and(|p| p.epoch > epoch);
        let by_name = uid.rsplit_once('-').is_some_and(|(name, _)| self.ghost.may_pause.contains(name));
        if !newer && !by_name && !self.ghost.may_pause.contains(uid) {
            self.violation(
                "8",
                format!(
                    "{} pauses {uid} although nothing newer is there and nobody asked",
                    self.machines[m].name
                ),
            );
        }
    }

    /// A volume is being removed.
    pub fn removing(&mut self, disk: &str, file: &str) {
        let open = self.machines.iter().find_map(|machine| {
            let user = machine.guests.iter().find(|(_, g)| uses(g, file))?;
            Some(format!("{} on {}", user.0, machine.name))
        });
        if let Some(open) = open {
            self.violation("10", format!("volume {disk} is removed while {open} has it open"));
        }
        let claims = self
            .store
            .world
            .disks()
            .find(|d| d.metadata.uid.as_deref() == Some(disk))
            .map_or(0, |d| d.status.as_ref().map_or(0, |s| s.attachments.len()));
        if claims > 0 {
            self.violation("10", format!("volume {disk} is removed while claimed"));
        }
    }

    /// What must hold at any time.
    pub fn check(&mut self) {
        let mut found: Vec<(&'static str, String)> = Vec::new();
        let mut running: BTreeMap<&String, Vec<&str>> = BTreeMap::new();
        let mut writers: BTreeMap<&str, BTreeSet<(&String, &str)>> = BTreeMap::new();
        for machine in &self.machines {
            for (uid, guest) in &machine.guests {
                if guest.runs() {
                    running.entry(uid).or_default().push(&machine.machine_uuid);
                }
                for path in guest.live.disks.iter().filter_map(|d| d.path.as_deref()).filter(|_| guest.runs())
                {
                    writers.entry(path).or_default().insert((uid, &machine.machine_uuid));
                }
                let Some(grant) = guest.grant() else { continue };
                if self.ghost.released.contains(&grant.id) {
                    found.push((
                        "3",
                        format!("{} runs {uid} under released grant {}", machine.name, grant.id),
                    ));
                }
                if let Some(kind) = self.ghost.ended.get(&grant.id) {
                    found.push((
                        "6",
                        format!(
                            "{} runs {uid} under {}, which is recorded as ended by {kind:?}",
                            machine.name, grant.id
                        ),
                    ));
                }
            }
        }
        found.extend(
            running
                .iter()
                .filter(|(_, at)| at.len() > 1)
                .map(|(uid, at)| ("1", format!("{uid} runs on {at:?}"))),
        );
        found.extend(
            writers
                .iter()
                .filter(|(_, by)| by.len() > 1)
                .map(|(path, by)| ("2", format!("{path} is written by {by:?}"))),
        );
        let mut open: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for machine in &self.machines {
            for (uid, entry) in &machine.ledger {
                let held = entry
                    .held
                    .as_ref()
                    .filter(|h| h.state != HeldState::Released && machine.lives_as(&h.incarnation));
                open.entry(uid).or_default().extend(held.map(|h| h.grant.id.as_str()));
            }
        }
        for vm in self.store.world.vms() {
            let (Some(uid), Some(placement)) =
                (vm.metadata.uid.as_deref(), vm.status.as_ref().and_then(|s| s.placement.as_ref()))
            else {
                continue;
            };
            let alive =
                self.machines.iter().any(|m| m.name == placement.host && m.lives_as(&placement.incarnation));
            if alive
                && self.ghost.made.contains(&placement.id)
                && !self.ghost.released.contains(&placement.id)
                && !self.ghost.ended.contains_key(&placement.id)
            {
                open.entry(uid).or_default().insert(&placement.id);
            }
            let last = self.ghost.last_epochs.entry(uid.to_owned()).or_default();
            if placement.last_epoch < *last {
                found
                    .push(("5", format!("lastEpoch of {uid} falls from {last} to {}", placement.last_epoch)));
            }
            *last = placement.last_epoch;
        }
        found.extend(
            open.iter()
                .filter(|(_, ids)| ids.len() > 1)
                .map(|(uid, ids)| ("4", format!("{uid} has open grants {ids:?}"))),
        );
        for disk in self.store.world.disks() {
            let claims = disk.status.as_ref().map(|s| s.attachments.as_slice()).unwrap_or_default();
            if claims.len() > 1 && claims.iter().any(|claim| !claim.read_only) {
                found.push((
                    "2",
                    format!("Disk {} is claimed by a writer and another: {claims:?}", Key::of(disk.as_ref())),
                ));
            }
        }
        for (invariant, text) in found {
            self.violation(invariant, text);
        }
    }

    /// Whether every VM is as wanted, or says what it waits for.
    pub fn check_converged(&mut self) {
        let vms: Vec<_> = self.store.world.vms().cloned().collect();
        for vm in vms {
            let name = Key::of(vm.as_ref());
            let uid = vm.metadata.uid.clone().unwrap_or_default();
            let status = vm.status.clone().unwrap_or_default();
            let copies = self.machines.iter().filter(|m| m.guests.contains_key(&uid)).count();
            let says = |type_: &str| {
                condition::get(&status.conditions, type_)
                    .map(|c| (c.status.as_str(), c.reason.as_str(), c.message.as_str()))
            };
            let passing = [reasons::PLACED, "Starting", "Stopping", reasons::STARTED];
            let named = [kind::ACCEPTED, kind::PLACED, kind::RUNNING, kind::PROVISIONED, kind::READY]
                .into_iter()
                .find_map(|type_| {
                    let (value, reason, message) = says(type_)?;
                    (value != "True" && !passing.contains(&reason) && !message.is_empty())
                        .then(|| (type_, reason.to_owned()))
                });
            let last_stop = status.runtime.as_ref().and_then(|r| r.stop_cause);
            let wanted_up = match vm.spec.run_strategy {
                RunStrategy::Always => Some(true),
                RunStrategy::RerunOnFailure if copies == 0 => {
                    Some(!matches!(last_stop, Some(StopCause::ByGuest | StopCause::ByAction)))
                }
                RunStrategy::Halted => Some(false),
                _ => None,
            };
            let deleting = vm.metadata.deletion_timestamp.is_some();
            let wrong = match wanted_up {
                _ if deleting => Some("is being deleted and still there"),
                Some(true) if copies == 0 => Some("should run and does not"),
                Some(false) if copies > 0 => Some("should be down and runs"),
                _ => None,
            };
            // A daemon has no condition for "as wanted and down" other than Ready.
            if let Some(wrong) = wrong {
                let own = [reasons::STOPPED];
                match named {
                    Some((_, reason)) if !own.contains(&reason.as_str()) => {
                        self.say(|| {
                            format!(
                                "{name} {wrong}, and says {reason}: {}",
                                serde_json::to_string(&status).unwrap_or_default()
                            )
                        });
                        *self.waits.entry(reason).or_default() += 1;
                    }
                    _ => {
                        let text = format!(
                            "{name} ({uid}) {wrong}; status {}",
                            serde_json::to_string(&status).unwrap_or_default()
                        );
                        self.violation("11", text);
                    }
                }
            } else {
                self.counts.as_wanted += 1;
            }
        }
        let disks: Vec<_> =
            self.store.world.disks().filter(|d| d.metadata.deletion_timestamp.is_some()).cloned().collect();
        for disk in disks {
            let accepted = disk
                .status
                .as_ref()
                .and_then(|s| condition::get(&s.conditions, kind::ACCEPTED))
                .is_some_and(|c| c.status != "True");
            if !accepted && disk.status.as_ref().is_none_or(|s| s.remove != Some(true)) {
                self.violation(
                    "11",
                    format!("Disk {} is being deleted and says nothing", Key::of(disk.as_ref())),
                );
            }
        }
    }
}

fn uses(guest: &Guest, file: &str) -> bool {
    guest
        .live
        .disks
        .iter()
        .filter_map(|d| d.path.as_deref())
        .any(|path| path.ends_with(&format!("/{file}.qcow2")))
}
