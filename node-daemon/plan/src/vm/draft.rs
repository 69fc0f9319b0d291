//! A plan under construction. It keeps the ledger entry as it will be, and writes it before whatever step follows.

use jiff::Timestamp;
use vireo_crds::v1alpha1::{ActPhase, StopCause};

use crate::{
    facts::Facts,
    intent::{Fault, Wait},
    ledger::{Entry, LastStop, Transition},
    step::{EventNote, Plan, VmStep},
};

/// A plan under construction.
pub(super) struct Draft<'a> {
    /// What the host has.
    pub facts: &'a Facts,
    /// Now.
    pub now: Timestamp,
    /// The ledger entry once all that is planned so far has been done.
    pub entry: Entry,
    /// The plan.
    pub plan: Plan,
    transitions: Vec<Transition>,
    events: Vec<EventNote>,
}

impl<'a> Draft<'a> {
    pub fn new(facts: &'a Facts, entry: Entry, now: Timestamp) -> Self {
        Self { facts, now, entry, plan: Plan::default(), transitions: Vec::new(), events: Vec::new() }
    }

    /// Changes the ledger entry. It is written before the next step.
    pub fn record(&mut self, change: impl FnOnce(&mut Entry) -> Transition) {
        let transition = change(&mut self.entry);
        self.transitions.push(transition);
    }

    /// Notes a stop.
    pub fn record_stop(&mut self, cause: Option<StopCause>, message: Option<String>) {
        let at = self.now;
        self.record(|entry| entry.stop(LastStop { at, cause, message }));
    }

    /// Notes where an act stands.
    pub fn record_act(&mut self, uid: &str, phase: ActPhase, message: &str) {
        let at = self.now;
        self.record(|entry| entry.act(uid, phase, Some(message.into()), at));
    }

    /// Tells people, once the ledger has what it is about.
    pub fn tell(&mut self, reason: &str, message: impl Into<String>) {
        self.events.push(EventNote { reason: reason.into(), warning: false, message: message.into() });
    }

    /// Tells people that something is wrong, once the ledger has what it is about.
    pub fn warn(&mut self, reason: &str, message: impl Into<String>) {
        self.events.push(EventNote { reason: reason.into(), warning: true, message: message.into() });
    }

    /// Adds a step, after the ledger write that permits it.
    pub fn step(&mut self, step: VmStep) {
        self.flush();
        self.plan.steps.push(step);
    }

    /// Names something that is waited for.
    pub fn wait(&mut self, reason: &str, message: impl Into<String>) {
        self.plan.waits.push(Wait::new(reason, message));
    }

    /// Names something that will not be done.
    pub fn refuse(&mut self, path: &str, message: impl Into<String>) {
        self.plan.refusals.push(Fault::new(path, message));
    }

    /// Plans again at `at` at the latest.
    pub fn wake_at(&mut self, at: Timestamp) {
        self.plan.next_wakeup = Some(self.plan.next_wakeup.map_or(at, |earlier| earlier.min(at)));
    }

    /// The finished plan.
    pub fn finish(mut self) -> Plan {
        self.flush();
        self.plan
    }

    fn flush(&mut self) {
        if !self.transitions.is_empty() {
            self.plan.steps.push(VmStep::WriteLedger {
                transitions: std::mem::take(&mut self.transitions),
                entry: Box::new(self.entry.clone()),
                events: std::mem::take(&mut self.events),
            });
        }
    }
}
