//! After the faults: everybody works until nothing is left to do, and a restored backup changes nothing for the guests.

use std::collections::{BTreeMap, BTreeSet};

use controller_plan::Kind;
use node_plan::{facts::TokenFact, identity::ours};

use crate::{
    Sim,
    host::{Daemon, Worked},
    store::{self, KINDS, Object},
};

impl Sim {
    /// Faults stop; everybody works until nothing is left to do.
    pub(crate) fn settle(&mut self) {
        self.settling = true;
        self.say(|| "-- faults stop".into());
        self.store.up = true;
        self.honest();
        for c in &mut self.controllers {
            (c.alive, c.frozen) = (true, false);
        }
        if let Some(at) = self.machines.iter().position(|m| m.is_copy) {
            // Which of the two is the good one is for people to say: the one with guests.
            let name = self.machines[at].name.clone();
            let original = self.machines.iter().position(|m| m.name == name && !m.is_copy);
            let keep_clone = !self.machines[at].guests.is_empty();
            if let (true, Some(original)) = (keep_clone, original) {
                if !self.machines[original].guests.is_empty() {
                    return;
                }
                self.machines[at].is_copy = false;
                self.machines.remove(original);
            } else {
                self.machines.remove(at);
            }
        }
        self.tie_hosts();
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

    /// An administrator looks which Hosts are tied to a machine that is gone for good, and unties them.
    fn tie_hosts(&mut self) {
        let gone: Vec<String> = self
            .store
            .world
            .hosts()
            .filter(|(name, host)| {
                self.machines.iter().all(|m| m.name != **name || ours(host, Some(&m.machine_uuid)).is_err())
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            self.say(|| format!("{name} is untied from a machine that is gone"));
            self.store.untie_host(&name);
        }
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
    pub(crate) fn work_in_peace(&mut self, ms: i64) -> bool {
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

    pub(crate) fn controller_settles(&mut self, c: usize) -> bool {
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
    pub(crate) fn daemon_talks(&mut self, m: usize) -> bool {
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

    pub(crate) fn daemon_settles(&mut self, m: usize) -> bool {
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
    pub(crate) fn restore_in_peace(&mut self) {
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
        self.tie_hosts();
        // One that was being deleted then goes on being deleted: that it ends is right.
        let in_backup: BTreeSet<String> =
            self.store.world.vms().filter_map(|vm| vm.metadata.uid.clone()).collect();
        self.come_to_rest();
        if !self.violations.is_empty() {
            return;
        }
        for (uid, (host, serial, grant)) in running {
            let Some(vm) = self.store.world.vm_by_uid(&uid).cloned() else {
                let still =
                    self.machines.iter().any(|m| m.guests.get(&uid).is_some_and(|g| g.serial == serial));
                if !still && !in_backup.contains(&uid) {
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
    pub(crate) fn scrub(&mut self) {
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
