//! The explorer: a fleet as a model of stateright, and what an exploration comes to.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use stateright::{Checker, HasDiscoveries, Model, Property};

use crate::{
    act::{self, Act},
    check,
    controller::Removed,
    fault::{self, Fault, new_vm},
    settle::{End, settle},
    state::{Broken, Budget, Daemon, HostObject, Machine, Objects, Spec, State},
};

/// Guards that do not stand. Empty: the product as it is.
#[derive(Clone, Debug, Default)]
pub struct Guards {
    #[cfg(feature = "mutations")]
    pub controller: Option<controller_plan::guard::Guard>,
    #[cfg(feature = "mutations")]
    pub node: Option<node_plan::guard::Guard>,
    /// A daemon keeps what it has cached when it answers a new session.
    pub attest_cached: bool,
    /// A write of a controller lands whatever the object has become since.
    pub unconditional: bool,
    /// Tells what was remembered of plans without a guard from the rest; different for each removal.
    pub removal: Removed,
}

impl Guards {
    /// Takes the guards away on this thread.
    pub(crate) fn stand_without(&self) -> Removed {
        #[cfg(feature = "mutations")]
        {
            controller_plan::guard::remove(self.controller.as_slice());
            node_plan::guard::remove(self.node.as_slice());
        }
        self.removal
    }
}

/// A fleet to explore.
#[derive(Debug, Default)]
pub struct Fleet {
    pub controllers: usize,
    pub hosts: usize,
    pub vms: usize,
    /// The first VM writes to a Disk.
    pub disk: bool,
    /// Hosts that differ only in name count as the same.
    pub symmetric: bool,
    pub budget: Budget,
    /// Exploration begins where everything has come to rest for the first time, and not with a VM that is new.
    pub at_rest: bool,
    pub guards: Guards,
    /// One state in this many is let come to rest; 0: none.
    pub sample: u64,
    /// Of those so far: how many, and how many wait for a person.
    pub settled: AtomicU64,
    pub waiting: AtomicU64,
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Act(Act),
    Fault(Fault),
}

impl Fleet {
    fn start(&self) -> State {
        let vm = |slot: usize| {
            let uid = u8::try_from(slot + 1).unwrap_or(u8::MAX);
            Some(new_vm(uid, Spec { halted: false, disk: self.disk && slot == 0 }))
        };
        let host = |inc| HostObject { inc: u8::try_from(inc).unwrap_or(u8::MAX), ..HostObject::default() };
        let store = Objects {
            vms: (0..self.vms).map(vm).collect(),
            hosts: (1..=self.hosts).map(host).collect(),
            claims: Vec::new(),
        };
        let numbers = 1..=u8::try_from(self.hosts).unwrap_or(u8::MAX);
        let daemon = Daemon { connected: true, listed: true, ..Daemon::default() };
        let machine = |inc| Machine { powered: true, inc, daemon: daemon.clone(), ..Machine::default() };
        let s = State {
            backup: (store.clone(), 0),
            store,
            sessions: vec![None; self.controllers],
            machines: numbers.clone().map(machine).collect(),
            left: self.budget,
            next_id: 1,
            next_inc: u8::try_from(self.hosts + 1).unwrap_or(u8::MAX),
            next_nonce: 1,
            next_uid: u8::try_from(self.vms + 1).unwrap_or(u8::MAX),
            ..State::default()
        };
        if !self.at_rest {
            return s.canonical(self.symmetric);
        }
        let rest = State { left: self.budget, ..settle(self, &s).0 };
        rest.canonical(self.symmetric)
    }

    fn after(&self, s: &State, event: Event) -> Option<State> {
        let mut next = match event {
            Event::Act(act) => act::after(self, s, act)?,
            Event::Fault(fault) => fault::after(self, s, fault)?,
        };
        check::judge(&mut next);
        let next = next.canonical(self.symmetric);
        (next != *s).then_some(next)
    }

    fn rests(&self, s: &State) -> bool {
        if self.sample == 0 || s.ghost.broken.is_some() {
            return true;
        }
        let mut hasher = DefaultHasher::new();
        s.hash(&mut hasher);
        if !hasher.finish().is_multiple_of(self.sample) {
            return true;
        }
        self.settled.fetch_add(1, Ordering::Relaxed);
        let (_, end) = settle(self, s);
        if end == End::Waits {
            self.waiting.fetch_add(1, Ordering::Relaxed);
        }
        matches!(end, End::AsWanted | End::Waits)
    }
}

const PROMISES: &str = "promises";
const REST: &str = "comes to rest";

impl Model for Fleet {
    type State = State;
    type Action = Event;

    fn init_states(&self) -> Vec<State> {
        vec![self.start()]
    }

    fn actions(&self, s: &State, events: &mut Vec<Event>) {
        if s.ghost.broken.is_some() {
            return;
        }
        let (mut acts, mut faults) = (Vec::new(), Vec::new());
        act::acts(self, s, &mut acts);
        fault::faults(self, s, &mut faults);
        events.extend(acts.into_iter().map(Event::Act));
        events.extend(faults.into_iter().map(Event::Fault));
    }

    fn next_state(&self, s: &State, event: Event) -> Option<State> {
        self.after(s, event)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(PROMISES, |_, s: &State| s.ghost.broken.is_none()),
            Property::always(REST, |fleet: &Fleet, s: &State| fleet.rests(s)),
        ]
    }
}

/// What an exploration came to.
#[derive(Debug, Default)]
pub struct Outcome {
    pub states: usize,
    pub generated: usize,
    pub depth: usize,
    /// Every reachable state has been seen.
    pub fixpoint: bool,
    pub seconds: f64,
    pub settled: u64,
    pub waiting: u64,
    pub broken: Option<Broken>,
    /// What led to a broken promise, or to a state from which the fleet does not come to rest as it should.
    pub trace: Vec<String>,
}

/// Explores until nothing new is found, a promise is broken, or time or depth is over.
pub fn explore(fleet: Fleet, at_most: Duration, depth: Option<usize>) -> Outcome {
    let began = Instant::now();
    let mut checker = fleet.checker().threads(2).timeout(at_most).finish_when(HasDiscoveries::Any);
    if let Some(depth) = depth {
        checker = checker.target_max_depth(depth);
    }
    let checker = checker.spawn_bfs().join();
    let elapsed = began.elapsed();
    let mut outcome = Outcome {
        states: checker.unique_state_count(),
        generated: checker.state_count(),
        depth: checker.max_depth(),
        fixpoint: elapsed < at_most && depth.is_none_or(|d| checker.max_depth() < d),
        seconds: elapsed.as_secs_f64(),
        settled: checker.model().settled.load(Ordering::Relaxed),
        waiting: checker.model().waiting.load(Ordering::Relaxed),
        ..Outcome::default()
    };
    let found =
        checker.discovery(PROMISES).map(|p| (true, p)).or(checker.discovery(REST).map(|p| (false, p)));
    if let Some((promise, path)) = found {
        outcome.fixpoint = false;
        let last = path.last_state().clone();
        outcome.broken = last.ghost.broken;
        outcome.trace = path.into_actions().iter().map(|event| format!("{event:?}")).collect();
        if !promise {
            let (end, how) = settle(checker.model(), &last);
            outcome.broken =
                Some((11, "it does not come to rest with every VM as wanted or waiting for a person"));
            outcome.trace.push(format!("{how:?}: {end:#?}"));
        }
    }
    outcome
}
