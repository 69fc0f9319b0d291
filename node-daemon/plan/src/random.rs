//! Random histories of one VM on one host: the world misbehaves, steps fail half-way, the daemon forgets what it holds
//! in memory, the object changes under it. No plan may break a rule of the linter, and once the world keeps still the
//! VM comes to rest.

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::json;
use vireo_crds::v1alpha1::{Act, Grant, Link, RunStrategy};

use crate::{
    effect,
    facts::{
        DomainFact, DomainState, ExitKind, Facts, OnReboot, PausedReason, ProcessFact, StartFailure,
        TokenFact,
    },
    golden,
    intent::{Intent, Observation, PendingAct},
    ledger::{Entry, LedgerFact},
    lint::lint,
    step::VmStep,
    vm::plan_vm,
};

/// Something that happens.
#[derive(Debug, Clone)]
enum Happening {
    /// The daemon plans and carries out at most so many steps; a start may fail.
    Work {
        steps: usize,
        start_fails: bool,
    },
    /// Time passes.
    Wait {
        seconds: i64,
    },
    /// The guest ends.
    End(ExitKind),
    /// Somebody or something stops or resumes the vCPUs.
    State(DomainState),
    /// virsh: link, persistence, metadata, on_reboot.
    Link,
    Persist,
    StripMetadata,
    OnReboot,
    /// libvirt forgets a domain whose process goes on.
    Disown,
    /// libvirt stops answering, or answers again.
    Libvirt {
        answers: bool,
    },
    /// The daemon restarts: what it held in memory is gone.
    Forget,
    /// The host reboots.
    Reboot,
    /// The ledger is lost while the guest may run on.
    LoseLedger,
    /// A token becomes unreadable, or another VM's.
    Token(TokenFact),
    /// The strategy is edited.
    Strategy {
        to: RunStrategy,
        accepted: bool,
    },
    /// Memory is edited.
    Memory {
        gib: u64,
    },
    /// It is deleted.
    Delete,
    /// An act is made.
    Act(Act),
    /// The controller grants again, if it may.
    Grant,
    /// The API forgets: an older grant is shown.
    Restore,
    /// What is known of the object.
    Unseen,
    Disappeared,
    Gone,
    Elsewhere {
        ahead: i64,
        order: bool,
    },
    Seen,
    /// The storage domain.
    Storage {
        ready: bool,
    },
}

fn happening() -> impl Strategy<Value = Happening> {
    use Happening as H;
    let ends = prop_oneof![
        Just(ExitKind::Shutdown),
        Just(ExitKind::PoweredOff),
        Just(ExitKind::Reset),
        Just(ExitKind::Destroyed),
        Just(ExitKind::Crashed),
        Just(ExitKind::Failed),
    ];
    let states = prop_oneof![
        Just(DomainState::Running),
        Just(DomainState::Paused(PausedReason::User)),
        Just(DomainState::Paused(PausedReason::IoError)),
        Just(DomainState::Paused(PausedReason::Watchdog)),
        Just(DomainState::Paused(PausedReason::Transient)),
        Just(DomainState::ShuttingDown),
        Just(DomainState::Suspended),
    ];
    let strategies = prop_oneof![
        Just(RunStrategy::Always),
        Just(RunStrategy::RerunOnFailure),
        Just(RunStrategy::Manual),
        Just(RunStrategy::Halted)
    ];
    let acts = prop_oneof![
        Just(Act::Stop),
        Just(Act::Restart),
        Just(Act::Reset),
        Just(Act::Pause),
        Just(Act::Resume),
        Just(Act::Nmi)
    ];
    let tokens = prop_oneof![
        Just(TokenFact::None),
        Just(TokenFact::Unknown { why: "I/O error".into() }),
        Just(TokenFact::Present(crate::facts::DiskToken { vm_uid: "u9".into(), epoch: 1, id: "x".into() })),
        Just(TokenFact::Present(crate::facts::DiskToken { vm_uid: "u1".into(), epoch: 99, id: "y".into() })),
    ];
    prop_oneof![
        16 => (0usize..9, any::<bool>()).prop_map(|(steps, fails)| H::Work { steps, start_fails: fails && steps < 4 }),
        4 => (1i64..900).prop_map(|seconds| H::Wait { seconds }),
        4 => ends.prop_map(H::End),
        3 => states.prop_map(H::State),
        1 => Just(H::Link),
        1 => Just(H::Persist),
        1 => Just(H::StripMetadata),
        1 => Just(H::OnReboot),
        1 => Just(H::Disown),
        2 => any::<bool>().prop_map(|answers| H::Libvirt { answers }),
        2 => Just(H::Forget),
        1 => Just(H::Reboot),
        1 => Just(H::LoseLedger),
        1 => tokens.prop_map(H::Token),
        3 => (strategies, any::<bool>()).prop_map(|(to, accepted)| H::Strategy { to, accepted }),
        1 => (1u64..4).prop_map(|gib| H::Memory { gib }),
        1 => Just(H::Delete),
        3 => acts.prop_map(H::Act),
        4 => Just(H::Grant),
        1 => Just(H::Restore),
        1 => Just(H::Unseen),
        1 => Just(H::Disappeared),
        1 => Just(H::Gone),
        1 => (-1i64..3, any::<bool>()).prop_map(|(ahead, order)| H::Elsewhere { ahead, order }),
        4 => Just(H::Seen),
        1 => any::<bool>().prop_map(|ready| H::Storage { ready }),
    ]
}

struct World {
    intent: Intent,
    observation: Option<Observation>,
    facts: Facts,
    hidden: Option<(DomainFact, ProcessFact)>,
    now: Timestamp,
    last_epoch: i64,
    lives: u32,
    acts: u32,
    /// Ids of grants that were released once.
    released: Vec<String>,
}

impl World {
    fn new() -> Self {
        let Observation::Granted(intent) = golden::observation(json!({})) else { unreachable!() };
        Self {
            intent: *intent,
            observation: None,
            facts: golden::facts("down", json!({})),
            hidden: None,
            now: golden::now(),
            last_epoch: 1,
            lives: 1,
            acts: 0,
            released: Vec::new(),
        }
    }

    fn observation(&self) -> Observation {
        self.observation.clone().unwrap_or_else(|| Observation::Granted(Box::new(self.intent.clone())))
    }

    fn entry(&self) -> Option<&Entry> {
        match &self.facts.ledger {
            LedgerFact::Entry(entry) => Some(entry),
            LedgerFact::None | LedgerFact::Unreadable { .. } => None,
        }
    }

    fn work(&mut self, steps: usize, start_fails: bool) {
        let observation = self.observation();
        let plan = plan_vm(&golden::vm(), &observation, &self.facts, self.now);
        let broken = lint(&observation, &self.facts, &plan);
        assert!(broken.is_empty(), "{broken:?}\n{plan:#?}\n{:#?}", self.facts);
        for step in plan.steps.iter().take(steps) {
            if let VmStep::StartDomain { metadata, .. } = step {
                assert!(!self.released.contains(&metadata.grant.id), "a released grant runs again");
                let second = matches!(&self.hidden, Some((DomainFact::Present(_), _)))
                    || matches!(self.facts.domain, DomainFact::Present(_));
                assert!(!second, "a second copy is started");
                if start_fails {
                    self.facts.start_failure = Some(StartFailure { at: self.now, message: "no".into() });
                    return;
                }
            }
            effect::apply(step, &mut self.facts, self.now);
            let entry = self.entry().cloned();
            if let Some(held) = entry
                .and_then(|entry| entry.held)
                .filter(|held| held.state == crate::ledger::HeldState::Released)
            {
                self.released.push(held.grant.id);
            }
        }
    }

    fn live(&mut self, change: impl FnOnce(&mut crate::facts::LiveDomain)) {
        if let DomainFact::Present(live) = &mut self.facts.domain {
            change(live);
        }
    }

    fn down(&mut self) {
        self.facts.domain = DomainFact::Absent { defined: false };
        self.facts.process = ProcessFact::None;
        self.hidden = None;
    }

    fn forget(&mut self) {
        self.facts.exit = None;
        self.facts.start_failure = None;
        self.facts.shutdown_asked = None;
        self.facts.resume_attempts = None;
    }

    fn edit(&mut self, accepted: bool) {
        self.intent.generation += 1;
        if accepted {
            self.intent.accepted_generation = self.intent.generation;
        }
        if let Some(wanted) = &mut self.intent.wanted {
            wanted.generation = self.intent.generation;
        }
    }

    fn spec(&mut self, patch: serde_json::Value) {
        let Some(wanted) = &mut self.intent.wanted else { return };
        let mut spec = serde_json::to_value(&wanted.spec).unwrap();
        for (key, value) in patch.as_object().unwrap() {
            spec[key] = value.clone();
        }
        wanted.spec = serde_json::from_value(spec).unwrap();
    }

    fn happen(&mut self, happening: Happening) {
        use Happening as H;
        self.now = self.now.checked_add(SignedDuration::from_millis(10)).unwrap();
        match happening {
            H::Work { steps, start_fails } => self.work(steps, start_fails),
            H::Wait { seconds } => {
                self.now = self.now.checked_add(SignedDuration::from_secs(seconds)).unwrap()
            }
            H::End(how) => {
                if self.hidden.is_none() {
                    effect::end(&mut self.facts, how, self.now);
                }
            }
            H::State(state) => self.live(|live| live.state = state),
            H::Link => self.live(|live| live.nics.iter_mut().for_each(|nic| nic.link = Link::Down)),
            H::Persist => self.live(|live| live.persistent = true),
            H::StripMetadata => self.live(|live| live.metadata = None),
            H::OnReboot => self.live(|live| live.on_reboot = OnReboot::Other),
            H::Disown => {
                if self.hidden.is_none() && matches!(self.facts.domain, DomainFact::Present(_)) {
                    self.hidden = Some((self.facts.domain.clone(), self.facts.process.clone()));
                    self.facts.domain = DomainFact::Absent { defined: false };
                }
            }
            H::Libvirt { answers: true } => {
                if let Some((domain, process)) = self.hidden.take() {
                    self.facts.domain = domain;
                    self.facts.process = process;
                }
            }
            H::Libvirt { answers: false } => {
                if self.hidden.is_none() {
                    self.hidden = Some((self.facts.domain.clone(), self.facts.process.clone()));
                    self.facts.domain = DomainFact::Unknown { why: "connection refused".into() };
                }
            }
            H::Forget => self.forget(),
            H::Reboot => {
                self.down();
                self.forget();
                self.facts.files.permit = None;
                self.lives += 1;
                self.facts.incarnation = format!("inc{}", self.lives);
            }
            H::LoseLedger => {
                self.facts.ledger = LedgerFact::None;
                self.forget();
                self.lives += 1;
                self.facts.incarnation = format!("inc{}", self.lives);
            }
            H::Token(fact) => {
                self.facts.tokens.values_mut().for_each(|token| *token = fact.clone());
            }
            H::Strategy { to, accepted } => {
                self.intent.policy.run_strategy = to;
                self.spec(json!({"runStrategy": serde_json::to_value(to).unwrap()}));
                self.edit(accepted);
            }
            H::Memory { gib } => {
                self.spec(json!({"memory": {"size": format!("{gib}Gi")}}));
                if let Some(wanted) = &mut self.intent.wanted {
                    wanted.machine.memory = gib << 30;
                }
                self.edit(true);
            }
            H::Delete => self.intent.deleting = true,
            H::Act(act) => {
                self.acts += 1;
                let (uid, grant_id) = (format!("act{}", self.acts), self.intent.grant.id.clone());
                self.intent.acts.push(PendingAct { name: uid.clone(), uid, act, grant_id });
            }
            H::Grant => self.grant(),
            H::Restore => {
                let epoch = (self.intent.grant.epoch - 1).max(1);
                self.intent.grant = Grant { epoch, id: format!("old{epoch}"), ..self.intent.grant.clone() };
            }
            H::Unseen => self.observation = Some(Observation::Unseen),
            H::Disappeared => self.observation = Some(Observation::Disappeared),
            H::Gone => self.observation = Some(Observation::Gone),
            H::Elsewhere { ahead, order } => {
                let grant =
                    self.entry().and_then(Entry::open).cloned().unwrap_or_else(|| self.intent.grant.clone());
                let holder = Grant {
                    host: "host2".into(),
                    incarnation: "incB".into(),
                    epoch: grant.epoch + ahead,
                    id: "elsewhere".into(),
                };
                self.last_epoch = self.last_epoch.max(holder.epoch);
                self.observation =
                    Some(Observation::Elsewhere { holder, destroy_order: order.then_some(grant.id) });
            }
            H::Seen => self.observation = None,
            H::Storage { ready } => self.intent.storage_ready = ready,
        }
    }

    /// A new grant, as the controller makes it: only once the one before is over.
    fn grant(&mut self) {
        let over = self.released.contains(&self.intent.grant.id)
            || self.intent.grant.incarnation != self.facts.incarnation;
        if over && !matches!(self.facts.domain, DomainFact::Present(_)) && self.hidden.is_none() {
            let seen = self.entry().map_or(0, |entry| entry.highest_epoch);
            self.last_epoch = self.last_epoch.max(seen) + 1;
            let id = format!("g{}", self.last_epoch);
            self.intent.grant = Grant {
                host: "host1".into(),
                incarnation: self.facts.incarnation.clone(),
                epoch: self.last_epoch,
                id,
            };
        }
    }

    /// The world keeps still: libvirt answers, time passes, a guest that is asked to shut down does so in the end.
    fn settle(&mut self) {
        self.happen(Happening::Libvirt { answers: true });
        for _ in 0..40 {
            let observation = self.observation();
            let plan = plan_vm(&golden::vm(), &observation, &self.facts, self.now);
            if plan.steps.is_empty() && plan.next_wakeup.is_none() {
                return;
            }
            if plan.steps.is_empty() {
                self.now = plan.next_wakeup.unwrap().checked_add(SignedDuration::from_secs(1)).unwrap();
                continue;
            }
            self.happen(Happening::Work { steps: usize::MAX, start_fails: false });
        }
        let plan = plan_vm(&golden::vm(), &self.observation(), &self.facts, self.now);
        panic!("it does not come to rest: {plan:#?}\n{:#?}", self.facts);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, max_shrink_iters: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_history_breaks_a_rule(happenings in prop::collection::vec(happening(), 1..60)) {
        let mut world = World::new();
        for happening in happenings {
            world.happen(happening);
        }
        world.settle();
    }
}
