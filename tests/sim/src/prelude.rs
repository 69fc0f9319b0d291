//! What happens first in a history that aims at one guard: the situation in which its absence would show is rare, so it
//! is set up; what comes after is left to chance.

use controller_plan::{Key, Kind};
use vireo_crds::{meta::CONFIRM_ANNOTATION, v1alpha1::RunStrategy};

use super::{Sim, host::Daemon};

/// One scene. The host spoken of is the one marked last.
#[derive(Debug, Clone, Copy)]
pub enum Scene {
    /// Everybody works in peace, for so many rounds of two seconds.
    Rest(usize),
    /// Only the daemons work, for so many rounds.
    Daemons(usize),
    /// Controllers work, and daemons answer and report; their workers have not come to their turn.
    Talk(usize),
    /// The host that vm1 is placed on, or is about to be.
    Mark,
    /// No VM is placed on the host, or may be again.
    Cordon(bool),
    /// The same for all other hosts.
    CordonOthers(bool),
    /// The host loses its power, or has it back.
    Power(bool),
    /// The ledger of the host is lost while its guests run, and its daemon is started again.
    LoseLedger,
    /// The disk image of the host is put into another machine, which starts under the same name.
    Clone,
    /// The host does not reach the API server, or does again.
    Cut(bool),
    /// Somebody confirms in writing that the present incarnation of the host is over.
    Confirm,
    /// The daemon of the host dies, or is started again.
    DaemonLives(bool),
    /// Every daemon dies, or is started again.
    DaemonsLive(bool),
    /// Writes by this name stay on their way.
    Hold(Option<&'static str>),
    /// One of the writes on their way arrives.
    ArriveOne,
    /// All of them arrive.
    Arrive,
    /// The leader freezes.
    FreezeLeader,
    /// Every controller freezes, or goes on.
    Freeze(bool),
    /// A backup is made.
    Backup,
    /// The first or the newest backup is restored, with the versions it had.
    Restore {
        /// The newest.
        newest: bool,
    },
    /// vm1 gets this strategy.
    Strategy(RunStrategy),
    /// A user deletes vm1.
    Delete,
    /// A user creates vm1 anew.
    Create,
}

impl Sim {
    /// Plays a scene.
    pub fn play(&mut self, scene: Scene) {
        self.say(|| format!("-- {scene:?}"));
        let vm1 = Key::new("default", "vm1");
        let now = self.now();
        let marked = self.marked.clone();
        let is_marked = |name: &str| marked.as_deref() == Some(name);
        match scene {
            Scene::Rest(rounds) => {
                self.settling = true;
                for _ in 0..rounds {
                    if self.violations.is_empty() {
                        self.work_in_peace(2000);
                    }
                }
                self.settling = false;
            }
            Scene::Daemons(rounds) => {
                self.settling = true;
                for _ in 0..rounds {
                    self.pass(1000);
                    for m in 0..self.machines.len() {
                        self.daemon_settles(m);
                    }
                    self.check();
                }
                self.settling = false;
            }
            Scene::Talk(rounds) => {
                self.settling = true;
                for _ in 0..rounds {
                    self.pass(2000);
                    for c in 0..self.controllers.len() {
                        self.controller_settles(c);
                    }
                    for m in 0..self.machines.len() {
                        self.daemon_talks(m);
                    }
                    self.check();
                }
                self.settling = false;
            }
            Scene::LoseLedger => {
                for machine in self.machines.iter_mut().filter(|m| is_marked(&m.name)) {
                    machine.ledger.clear();
                    machine.life_on_disk = None;
                    machine.daemon = machine.powered.then(Daemon::default);
                }
            }
            Scene::Clone => {
                if let Some(m) = self.machines.iter().position(|m| is_marked(&m.name)) {
                    self.make_clone(m);
                }
            }
            Scene::Mark => self.marked = self.host_of(&vm1),
            Scene::Cordon(yes) => self.cordon(yes, is_marked),
            Scene::CordonOthers(yes) => self.cordon(yes, |name| !is_marked(name)),
            Scene::Power(on) => {
                for machine in self.machines.iter_mut().filter(|m| is_marked(&m.name)) {
                    if on {
                        machine.power_on();
                    } else {
                        machine.power_off();
                    }
                }
            }
            Scene::Cut(cut) => {
                self.machines.iter_mut().filter(|m| is_marked(&m.name)).for_each(|m| m.cut = cut);
            }
            Scene::Confirm => {
                let Some(name) = marked else { return };
                let host = self.store.world.host(&name);
                let Some(over) = host.and_then(|h| h.status.as_ref()?.incarnation.clone()) else { return };
                self.store.edit_meta(Kind::Host, &Key::new("", &name), |meta| {
                    meta.annotations.get_or_insert_default().insert(CONFIRM_ANNOTATION.into(), over.clone());
                });
            }
            Scene::DaemonLives(yes) => {
                for machine in self.machines.iter_mut().filter(|m| m.powered && is_marked(&m.name)) {
                    machine.daemon = yes.then(Daemon::default);
                }
            }
            Scene::DaemonsLive(yes) => {
                for machine in self.machines.iter_mut().filter(|m| m.powered) {
                    machine.daemon = yes.then(Daemon::default);
                }
            }
            Scene::Hold(name) => self.held = name,
            Scene::ArriveOne => {
                if !self.flights.is_empty() {
                    let flight = self.flights.remove(0);
                    self.arrive(flight);
                }
            }
            Scene::Arrive => {
                for flight in std::mem::take(&mut self.flights) {
                    self.arrive(flight);
                }
            }
            Scene::FreezeLeader => {
                if let Some((leader, _)) = self.leader {
                    self.controllers[leader].frozen = true;
                }
            }
            Scene::Freeze(frozen) => self.controllers.iter_mut().for_each(|c| c.frozen = frozen),
            Scene::Backup => self.backups.push(self.store.backup()),
            Scene::Restore { newest } => {
                let at = if newest { self.backups.len() - 1 } else { 0 };
                self.bring_back(at, false);
            }
            Scene::Strategy(to) => {
                let uid = self.store.world.vm(&vm1).and_then(|vm| vm.metadata.uid.clone());
                if to == RunStrategy::Halted {
                    self.ghost.may_stop.extend(uid);
                }
                self.store.edit_vm(&vm1, |spec| spec.run_strategy = to);
            }
            Scene::Delete => {
                let uid = self.store.world.vm(&vm1).and_then(|vm| vm.metadata.uid.clone());
                self.ghost.may_stop.extend(uid);
                self.store.delete(Kind::VirtualMachine, &vm1, now);
            }
            Scene::Create => self.create_vm("vm1"),
        }
    }

    fn host_of(&self, vm: &Key) -> Option<String> {
        let of_flight = self.flights.iter().find_map(|flight| match &flight.step {
            controller_plan::Step::SetPlacement { vm: of, status, .. } if of.name == vm.name => {
                Some(status.placement.as_ref()?.host.clone())
            }
            _ => None,
        });
        let stored = self.store.world.vm(vm).and_then(|vm| vm.status.as_ref()?.placement.as_ref());
        of_flight.or_else(|| stored.map(|placement| placement.host.clone()))
    }

    fn cordon(&mut self, yes: bool, which: impl Fn(&str) -> bool) {
        let names: Vec<String> =
            self.store.world.hosts().map(|(name, _)| name.clone()).filter(|name| which(name)).collect();
        for name in names {
            self.store.edit_host(&name, |spec| spec.schedulable = !yes);
        }
    }
}
