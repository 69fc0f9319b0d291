//! A worker of one VM: facts, the plan, its steps one by one; a crash may come between any two.

use std::{collections::BTreeMap, sync::Arc};

use node_plan::{
    effect,
    facts::{
        Attempts, DomainFact, ExitKind, Facts, OnReboot, ProcessFact, ShutdownAsked, StartFailure, TokenFact,
    },
    intent::{Intent, Observation, VmRef},
    ledger::LedgerFact,
    lint::lint,
    step::VmStep,
    vm::plan_vm,
};
use vireo_crds::v1alpha1::VirtualMachine;

use super::super::{Sim, faults::Fault, resolve};
use super::{Guest, Post, Sight, Worked};

impl Sim {
    pub(super) fn observation(&self, m: usize, uid: &str) -> (Observation, Option<Arc<VirtualMachine>>) {
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
                let is_listed = |id: &String| daemon.listed_grants.contains(id);
                let intent = intent.map(|i| Intent { listed: is_listed(&i.grant.id), ..i });
                let observation =
                    intent.map_or(Observation::Disappeared, |intent| Observation::Granted(Box::new(intent)));
                (observation, Some(vm.clone()))
            }
        }
    }

    pub(super) fn facts(&self, m: usize, uid: &str, observation: &Observation) -> Facts {
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

    pub(super) fn vm_ref(&self, m: usize, uid: &str, object: Option<&VirtualMachine>) -> Option<VmRef> {
        let machine = &self.machines[m];
        object
            .and_then(resolve::vm_ref)
            .or_else(|| machine.daemon.as_ref()?.workers.get(uid)?.vm.clone())
            .or_else(|| machine.ledger.get(uid).map(|e| e.vm.clone()))
            .or_else(|| machine.guests.get(uid)?.live.metadata.as_ref().map(|m| m.vm.clone()))
    }

    /// Whether a worker asked to be woken by now, or has something left to do.
    pub fn is_due(&self, m: usize, uid: &str) -> bool {
        let worker = self.machines[m].daemon.as_ref().and_then(|d| d.workers.get(uid));
        let now = self.now();
        worker.is_none_or(|w| !w.steps.is_empty() || w.post.is_some() || w.wake.is_some_and(|at| at <= now))
    }

    /// One round of a worker: carries on, or plans anew.
    pub fn work(&mut self, m: usize, uid: &str) -> Worked {
        let pending = self.machines[m]
            .daemon
            .as_ref()
            .and_then(|d| d.workers.get(uid))
            .is_some_and(|w| !w.steps.is_empty());
        if pending {
            self.run_steps(m, uid);
            return Worked::Did;
        }
        let (observation, object) = self.observation(m, uid);
        let facts = self.facts(m, uid, &observation);
        let Some(vm) = self.vm_ref(m, uid, object.as_deref()) else { return Worked::Nothing };
        let now = self.now();
        let plan = plan_vm(&vm, &observation, &facts, now);
        self.counts.node_plans += 1;
        if self.rules.lints {
            let broken = lint(&observation, &facts, &plan);
            if !broken.is_empty() {
                let host = self.machines[m].name.clone();
                self.violation("lint", format!("{host}'s plan for {uid} breaks a rule: {broken:?}"));
                return Worked::Did;
            }
        }
        let reaches = self.reaches(m);
        let host = self.machines[m].name.clone();
        let Some(daemon) = &mut self.machines[m].daemon else { return Worked::Nothing };
        let worker = daemon.workers.entry(uid.into()).or_default();
        worker.vm = Some(vm.clone());
        worker.wake = plan.next_wakeup;
        worker.unexplained.clone_from(&plan.unexplained);
        if !matches!(facts.domain, DomainFact::Present(_) | DomainFact::Unknown { .. }) {
            worker.shutdown_asked = None;
        }
        if let Some(object) = object {
            worker.post = Some(Post { object, plan: plan.clone(), now });
        }
        if plan.needs_get && reaches {
            let rest = plan.steps.is_empty();
            self.read_by_name(m, uid, &vm);
            return if rest { Worked::Read } else { Worked::Did };
        }
        if plan.steps.is_empty() {
            return Worked::Nothing;
        }
        worker.steps = plan.steps.into();
        if self.trace.is_some() {
            let names: Vec<_> = worker.steps.iter().map(step_name).collect();
            self.say(|| format!("{host} plans {uid}: {names:?}"));
        }
        self.run_steps(m, uid);
        Worked::Did
    }

    /// Carries out some of the steps left; a crash may come between any two.
    pub(super) fn run_steps(&mut self, m: usize, uid: &str) {
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
    pub(super) fn run_step(&mut self, m: usize, uid: &str, step: &VmStep) -> bool {
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
            | VmStep::SetMedia { .. }
            | VmStep::SetNetwork { .. }
            | VmStep::EndWithGuest
            | VmStep::SetOnReboot { .. }
            | VmStep::WriteMetadata { .. }
            | VmStep::Undefine { .. }
    )
}

fn step_name(step: &VmStep) -> String {
    let text = format!("{step:?}");
    text.split([' ', '{', '(']).next().unwrap_or_default().to_owned()
}
