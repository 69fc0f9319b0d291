//! One serial worker per VM: facts → plan → run → verify → report. Carries out, decides nothing.
//!
//! A worker waits for nobody else: its blocking calls run on threads of their own, its reports on a task of their own,
//! so a guest that hangs delays no other, and an API server that is away delays no restart.

use std::{
    collections::BTreeSet,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use fail_points::Moment;
use futures::FutureExt;
use jiff::Timestamp;
use node_plan::{
    facts::{Attempts, DomainFact, DomainState, Facts, ShutdownAsked, StartFailure},
    intent::{Observation, VmRef, Wanted},
    ledger::{Entry, LedgerFact},
    step::{EventNote, Plan, VmStep},
};
use tokio::sync::Notify;
use tracing::Instrument;
use vireo_crds::{
    reasons,
    v1alpha1::{OrphanDomain, VirtualMachine, VmState},
};

use crate::{
    backoff,
    error::RetryClass,
    host::{Query, StepError, Target},
    metrics::StepLabels,
    objects::{Key, Sight},
    resolve,
    seed_data::{SeedData, SeedReader},
    step_names::step_name,
    workers::{Context, Handle, Shown, Workers},
    write_back::{Post, WriteBack},
};

/// Rounds of one pass: a plan that does not settle within this many is a fault of ours.
const MAX_ROUNDS: u32 = 24;
/// A guest that has run this long has got over its I/O errors.
const RESUME_FORGOTTEN: Duration = Duration::from_secs(60);
/// An Event is for people, and may come after the report that everybody waits for.
const AFTER_THE_REPORT: Duration = Duration::from_millis(200);

/// What a pass leaves behind.
struct Settled {
    due: Option<Timestamp>,
    retry: Option<RetryClass>,
    over: bool,
}

/// The worker of one VM.
pub(crate) struct Worker {
    workers: Arc<Workers>,
    context: Arc<Context>,
    uid: String,
    notify: Arc<Notify>,
    shown: Arc<Mutex<Shown>>,
    vm: Option<VmRef>,
    uuid: Option<String>,
    seeds: SeedReader,
    write_back: WriteBack,
    start_failure: Option<StartFailure>,
    shutdown_asked: Option<ShutdownAsked>,
    resume_attempts: Option<Attempts>,
    running_since: Option<Instant>,
    attempts: u32,
    told: Option<String>,
}

/// What one round of a pass looks at.
struct View {
    object: Option<Arc<VirtualMachine>>,
    observation: Observation,
}

impl Worker {
    /// A worker that has not looked at anything yet.
    pub(crate) fn new(
        workers: Arc<Workers>,
        uid: String,
        handle: &Handle,
        known: Option<(VmRef, String)>,
    ) -> Self {
        let context = Arc::clone(&workers.context);
        let entry = entry_of(&context.ledger.get(&uid));
        let of_entry = entry.as_ref().map(|entry| entry.vm.clone());
        let uuid_of_entry = entry.and_then(|entry| entry.wanted).map(|wanted| wanted.machine.uuid);
        let (vm, uuid) = match known {
            Some((vm, uuid)) => (Some(vm), Some(uuid)),
            None => (of_entry, uuid_of_entry),
        };
        Self {
            write_back: WriteBack::start(
                Arc::clone(&context.reporter),
                Arc::clone(&context.objects),
                Arc::clone(&handle.notify),
                uid.clone(),
            ),
            seeds: SeedReader::new(context.client.clone()),
            workers,
            context,
            notify: Arc::clone(&handle.notify),
            shown: Arc::clone(&handle.shown),
            uid,
            vm,
            uuid,
            start_failure: None,
            shutdown_asked: None,
            resume_attempts: None,
            running_since: None,
            attempts: 0,
            told: None,
        }
    }

    /// Plans and acts whenever it is woken, until nothing is left of its VM.
    pub(crate) async fn run(mut self) {
        let mut due: Option<Duration> = None;
        loop {
            tokio::select! {
                () = self.notify.notified() => {}
                () = sleep(due) => {}
            }
            let span =
                tracing::info_span!("vm", uid = %self.uid, object = self.vm.as_ref().map(VmRef::domain_name));
            let started = Instant::now();
            let outcome = AssertUnwindSafe(self.pass().instrument(span.clone())).catch_unwind().await;
            self.context.metrics.passes.inc();
            self.context.metrics.pass_seconds.observe(started.elapsed().as_secs_f64());
            let settled = outcome.unwrap_or_else(|_| {
                span.in_scope(|| tracing::error!("a pass over this VM panicked; its guest is left as it is"));
                Settled { due: None, retry: Some(RetryClass::Bug), over: false }
            });
            if settled.over {
                self.context.driver.forget(&self.uid).await;
                self.workers.remove(&self.uid);
                self.workers.shown_changed();
                return;
            }
            due = self.pause_until(&settled);
        }
    }

    /// Time until the next pass if nothing wakes the worker before.
    fn pause_until(&mut self, settled: &Settled) -> Option<Duration> {
        let planned = settled
            .due
            .map(|due| Duration::try_from(due.duration_since(Timestamp::now())).unwrap_or_default());
        let retry = settled.retry.map(|class| {
            self.attempts = self.attempts.saturating_add(1);
            backoff::pause(class, self.attempts, backoff::seed(&self.uid))
        });
        if retry.is_none() {
            self.attempts = 0;
        }
        [planned, retry].into_iter().flatten().min()
    }

    async fn pass(&mut self) -> Settled {
        for _ in 0..MAX_ROUNDS {
            let view = self.look().await;
            let Some(vm) = self.vm.clone() else {
                return Settled {
                    due: None,
                    retry: None,
                    over: matches!(view.observation, Observation::Gone),
                };
            };
            let facts = self.facts(&vm, &view).await;
            self.note_state(&facts);
            let now = Timestamp::now();
            let plan = node_plan::vm::plan_vm(&vm, &view.observation, &facts, now);
            self.show(&view, &facts, &plan);
            if plan.needs_get {
                match self.read_by_name(&vm).await {
                    Ok(true) => continue,
                    Ok(false) => {}
                    Err(error) => tracing::debug!(
                        error,
                        "the object could not be read by name; the guest is left as it is"
                    ),
                }
            }
            if plan.steps.is_empty() {
                self.post(&view, &plan, now, false);
                let gone = matches!(view.observation, Observation::Gone) && self.nothing_left(&facts);
                let retry = plan.needs_get.then_some(RetryClass::Transient);
                return Settled { due: plan.next_wakeup, retry, over: gone };
            }
            if let Err(error) = self.run_steps(&vm, &view, &plan, now).await {
                return self.failed(&vm, &error).await;
            }
        }
        tracing::error!("the plan for this VM does not settle; trying again later");
        Settled { due: None, retry: Some(RetryClass::Bug), over: false }
    }

    /// What the API server last said of the VM, resolved.
    async fn look(&mut self) -> View {
        let sight = self.context.objects.vm(&self.uid);
        let observation = match sight {
            Sight::Here(object) => return self.look_at(object).await,
            Sight::Undecodable(_) | Sight::Unseen => Observation::Unseen,
            Sight::Disappeared => Observation::Disappeared,
            Sight::Gone => Observation::Gone,
            Sight::Elsewhere { holder, order } => Observation::Elsewhere { holder, destroy_order: order },
        };
        View { object: None, observation }
    }

    async fn look_at(&mut self, object: Arc<VirtualMachine>) -> View {
        self.vm = resolve::vm_ref(&object).or(self.vm.take());
        self.uuid = resolve::domain_uuid(&object).or(self.uuid.take());
        let local = self.context.local.borrow().clone();
        let Some(local) = local.filter(|_| self.context.objects.references_listed()) else {
            return View { object: Some(object), observation: Observation::Unseen };
        };
        let objects = Arc::clone(&self.context.objects);
        let disks: BTreeSet<Key> =
            resolve::disk_keys(&object).into_values().filter(|key| !objects.is_worked_on_here(key)).collect();
        if self.set_shown(|shown| shown.disks = disks) {
            self.workers.shown_changed();
        }
        let kept = entry_of(&self.context.ledger.get(&self.uid)).and_then(|entry| entry.wanted);
        let seed: SeedData = self.seeds.read(&object, kept.as_ref()).await;
        let acts = objects.acts(&self.uid);
        let observation = match resolve::resolve(&object, &objects, &local, &seed, None, &acts) {
            Some(intent) => Observation::Granted(Box::new(intent)),
            None => Observation::Disappeared,
        };
        View { object: Some(object), observation }
    }

    async fn facts(&mut self, vm: &VmRef, view: &View) -> Facts {
        let ledger = self.context.ledger.get(&self.uid);
        let entry = entry_of(&ledger);
        let wanted = match &view.observation {
            Observation::Granted(intent) => intent.wanted.clone(),
            _ => None,
        };
        let wanted = wanted.or_else(|| entry.as_ref().and_then(|entry| entry.wanted.clone()));
        let uuid = self.uuid.clone().unwrap_or_else(|| self.uid.clone());
        let query = Query { vm: vm.clone(), uuid, tokens: tokens(wanted.as_ref(), entry.as_ref()), wanted };
        let side = self.context.driver.facts(query).await;
        if matches!(side.domain, DomainFact::Absent { .. }) {
            self.shutdown_asked = None;
        }
        Facts {
            host: self.context.host.clone(),
            incarnation: self.context.incarnation.clone(),
            ledger,
            domain: side.domain,
            process: side.process,
            exit: side.exit,
            start_failure: self.start_failure.clone(),
            shutdown_asked: self.shutdown_asked.clone(),
            resume_attempts: self.resume_attempts.clone(),
            files: side.files,
            tokens: side.tokens,
            guest: side.guest,
            addresses: side.addresses,
        }
    }

    /// Keeps what only the course of time shows.
    fn note_state(&mut self, facts: &Facts) {
        match facts.live().map(|live| live.state) {
            Some(DomainState::Running) => {
                let since = *self.running_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= RESUME_FORGOTTEN {
                    self.resume_attempts = None;
                }
                self.start_failure = None;
            }
            _ => self.running_since = None,
        }
    }

    fn set_shown(&self, change: impl FnOnce(&mut Shown)) -> bool {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let before = (shown.disks.clone(), shown.unexplained.clone());
        change(&mut shown);
        before != (shown.disks.clone(), shown.unexplained.clone())
    }

    fn show(&mut self, view: &View, facts: &Facts, plan: &Plan) {
        let uuid = self.uuid.clone().unwrap_or_else(|| self.uid.clone());
        let unexplained = plan.unexplained.as_ref().map(|reason| OrphanDomain {
            name: facts.live().map_or_else(|| self.uid.clone(), |live| live.name.clone()),
            vm_uid: self.uid.clone(),
            reason: reason.chars().take(256).collect(),
        });
        let unresolved = matches!(&view.observation, Observation::Granted(intent) if intent.wanted.is_none() || !intent.storage_ready);
        let waiting = !plan.waits.is_empty() || unresolved || matches!(view.observation, Observation::Unseen);
        if self.set_shown(|shown| {
            shown.uuid = Some(uuid);
            shown.waiting = waiting;
            shown.unexplained = unexplained;
        }) {
            self.workers.shown_changed();
        }
    }

    /// Whether a worker for a VM that is gone has anything left to look after.
    fn nothing_left(&self, facts: &Facts) -> bool {
        let open = entry_of(&facts.ledger).is_some_and(|entry| entry.open().is_some());
        !open && facts.presence() == node_plan::facts::Presence::Absent
    }

    /// Reads the object by name; true if what is known of it changed.
    async fn read_by_name(&self, vm: &VmRef) -> Result<bool, String> {
        let before = format!("{:?}", self.context.objects.vm(&self.uid));
        let read = self.context.objects.read_vm(&self.context.client, vm);
        tokio::time::timeout(crate::report::API_TIMEOUT, read)
            .await
            .map_err(|_| "the API server does not answer".to_owned())?
            .map_err(|error| error.to_string())?;
        Ok(before != format!("{:?}", self.context.objects.vm(&self.uid)))
    }

    /// Hands the report and the outcomes of acts to the task that writes them.
    fn post(&self, view: &View, plan: &Plan, now: Timestamp, passing: bool) {
        let Some(object) = view.object.clone() else { return };
        self.write_back.post(Post {
            object,
            report: plan.report.clone(),
            acts: plan.acts.clone(),
            now,
            passing,
        });
    }

    async fn run_steps(
        &mut self,
        vm: &VmRef,
        view: &View,
        plan: &Plan,
        now: Timestamp,
    ) -> Result<(), StepError> {
        self.post(view, plan, now, !is_bookkeeping(plan));
        let start = plan.steps.iter().position(|step| matches!(step, VmStep::StartDomain { .. }));
        for (index, step) in plan.steps.iter().enumerate() {
            let name = step_name(step);
            let started = Instant::now();
            fail_points::step(name, Moment::Before);
            let outcome = self.run_step(vm, view, step).await;
            if outcome.is_ok() {
                fail_points::step(name, Moment::After);
            }
            let result = if outcome.is_ok() { "ok" } else { "error" };
            self.context.metrics.steps.get_or_create(&StepLabels { step: name, result }).inc();
            self.context.metrics.step_seconds.observe(started.elapsed().as_secs_f64());
            match outcome {
                Ok(()) => tracing::debug!(step = name, millis = started.elapsed().as_millis(), "done"),
                Err(error) => {
                    let starts = start.is_some_and(|start| index <= start);
                    if starts && !error.unanswered && !matches!(step, VmStep::WriteLedger { .. }) {
                        tracing::warn!(step = name, %error, "the guest could not be started");
                        self.start_failure =
                            Some(StartFailure { at: Timestamp::now(), message: error.message });
                        return Ok(());
                    }
                    tracing::warn!(step = name, %error, "a step failed");
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    async fn run_step(&mut self, vm: &VmRef, view: &View, step: &VmStep) -> Result<(), StepError> {
        match step {
            VmStep::WriteLedger { entry, events, .. } => {
                let (ledger, entry) = (Arc::clone(&self.context.ledger), entry.clone());
                let written =
                    crate::host::libvirt::connection::spawn("ledger", move || ledger.write(&entry)).await;
                let written = written.map_err(|e| e.to_string()).and_then(|w| w.map_err(|e| e.to_string()));
                written.map_err(|error| StepError::new(RetryClass::Transient, error))?;
                self.context
                    .metrics
                    .ledger_entries
                    .set(i64::try_from(self.context.ledger.uids().len()).unwrap_or(i64::MAX));
                self.tell(vm, events.clone());
                Ok(())
            }
            VmStep::RequestShutdown { via } => {
                self.shutdown_asked = Some(ShutdownAsked { at: Timestamp::now(), via: *via });
                // A guest that cannot be asked this way is asked the next way, or stopped when its time is up.
                if let Err(error) = self.drive(vm, view, step).await {
                    tracing::debug!(%error, "the guest could not be asked to shut down");
                }
                Ok(())
            }
            VmStep::Resume => {
                let count =
                    self.resume_attempts.as_ref().map_or(0, |attempts| attempts.count).saturating_add(1);
                self.resume_attempts = Some(Attempts { count, last: Timestamp::now() });
                self.drive(vm, view, step).await
            }
            VmStep::StartDomain { .. } => {
                self.start_failure = None;
                self.resume_attempts = None;
                self.drive(vm, view, step).await
            }
            _ => self.drive(vm, view, step).await,
        }
    }

    async fn drive(&self, vm: &VmRef, view: &View, step: &VmStep) -> Result<(), StepError> {
        let seed = match (step, &view.object) {
            (VmStep::MakeSeed { .. }, Some(object)) => self.seeds.content(object),
            _ => None,
        };
        let target =
            Target { vm: vm.clone(), uuid: self.uuid.clone().unwrap_or_else(|| self.uid.clone()), seed };
        self.context.driver.run(&target, step).await
    }

    /// Tells people without waiting.
    fn tell(&self, vm: &VmRef, events: Vec<EventNote>) {
        for note in &events {
            tracing::info!(reason = note.reason, message = note.message, "event");
        }
        let (reporter, vm) = (Arc::clone(&self.context.reporter), vm.clone());
        if !events.is_empty() {
            tokio::spawn(async move {
                tokio::time::sleep(AFTER_THE_REPORT).await;
                for note in &events {
                    reporter.event(&vm, note).await;
                }
            });
        }
    }

    /// A step failed: say so once, try again later.
    async fn failed(&mut self, vm: &VmRef, error: &StepError) -> Settled {
        if self.told.as_ref() != Some(&error.message) && !error.unanswered {
            self.told = Some(error.message.clone());
            self.tell(
                vm,
                vec![EventNote {
                    reason: reasons::STEP_FAILED.into(),
                    warning: true,
                    message: error.message.clone(),
                }],
            );
        }
        Settled { due: None, retry: Some(error.class), over: false }
    }
}

/// Whether a guest runs and the steps only write down what is so: then its report need not wait for them.
fn is_bookkeeping(plan: &Plan) -> bool {
    let runs = plan.report.as_ref().is_some_and(|report| report.state == VmState::Running);
    runs && plan
        .steps
        .iter()
        .all(|step| matches!(step, VmStep::WriteLedger { .. } | VmStep::KeepHardware { .. }))
}

async fn sleep(due: Option<Duration>) {
    match due {
        Some(due) => tokio::time::sleep(due).await,
        None => std::future::pending().await,
    }
}

/// The entry, if the ledger has a usable one.
pub fn entry_of(fact: &LedgerFact) -> Option<Entry> {
    match fact {
        LedgerFact::Entry(entry) => Some(entry.as_ref().clone()),
        LedgerFact::None | LedgerFact::Unreadable { .. } => None,
    }
}

/// Token files of every volume the guest writes to, or has a token of.
fn tokens(wanted: Option<&Wanted>, entry: Option<&Entry>) -> BTreeSet<String> {
    let wanted = wanted.into_iter().flat_map(|wanted| &wanted.machine.disks);
    let wanted = wanted.filter_map(|disk| Some(disk.written_volume()?.token.clone()));
    wanted.chain(entry.into_iter().flat_map(|entry| &entry.volumes).map(|held| held.token.clone())).collect()
}
