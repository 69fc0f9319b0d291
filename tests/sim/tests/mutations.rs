//! Takes the guards of the protocol away one by one and demands that the simulation notices each within so many
//! seeds, with the plan linters off: what is counted is a promise broken, not a rule of a plan.
//!
//! What goes wrong is chosen to suit the guard: favourites of chance, or a prelude that sets up the rare situation in
//! which it matters. The same choice with the guard in place must break nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use controller_plan::guard::{self as controller, Guard as Controller};
use node_plan::guard::{self as node, Guard as Node};
use simulation::{
    Rules, Sim,
    faults::{
        BACKUP, CLONE, CUT, DATA_DISK, DELETE_VM, DISK_COMES_AND_GOES, DISOWNED, LEDGER_LOST, RESTORE,
        STRATEGY, VOLUME_LOST,
    },
    prelude::Scene,
};
use vireo_crds::v1alpha1::RunStrategy;

/// Half of the time of a history is allocation.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Seeds tried at most for one guard.
const SEEDS: u64 = 600;
/// Seeds for which nothing may be found with all guards in place, for each choice of what goes wrong.
const SOUND: u64 = 25;

/// One removal, and what goes wrong while it lasts.
#[derive(Clone, Default)]
struct Removal {
    name: &'static str,
    controller: &'static [Controller],
    node: &'static [Node],
    executor: Option<fn(&mut Rules)>,
    favourites: &'static [usize],
    deeds: &'static [usize],
    prelude: &'static [Scene],
    disks: Option<bool>,
    /// Guards that cover the one of this line, and are gone in the histories that must hold, too.
    beside: &'static [Node],
    liar: bool,
}

impl Removal {
    fn rules(&self) -> Rules {
        Rules {
            favourites: self.favourites,
            deeds: self.deeds,
            prelude: self.prelude,
            disks: self.disks,
            liar: self.liar,
            ..Rules::default()
        }
    }

    fn focus(&self) -> String {
        let mut words = Vec::new();
        if !self.favourites.is_empty() {
            words.push(format!("faults {:?}", self.favourites));
        }
        if !self.deeds.is_empty() {
            words.push(format!("deeds {:?}", self.deeds));
        }
        if !self.prelude.is_empty() {
            words.push(format!("prelude of {} scenes", self.prelude.len()));
        }
        if let Some(disks) = self.disks {
            words.push(if disks { "disks".into() } else { "no disks".into() });
        }
        if self.liar {
            words.push("a lie".into());
        }
        if words.is_empty() { "chance".into() } else { words.join(", ") }
    }
}

/// A grant that its host never accepts, in a backup of a timeline that is given up for another.
const ABANDONED_GRANT: &[Scene] = &[
    Scene::Rest(3),
    Scene::Strategy(RunStrategy::Halted),
    Scene::Rest(14),
    Scene::Backup,
    Scene::DaemonsLive(false),
    Scene::Strategy(RunStrategy::Always),
    Scene::Rest(1),
    Scene::Mark,
    Scene::Backup,
    Scene::Restore { newest: false },
    Scene::DaemonsLive(true),
    Scene::Cordon(true),
    Scene::Rest(25),
    Scene::Restore { newest: true },
    Scene::Rest(3),
];

/// A grant that its host released long ago, and then forgot for a newer one, in a backup; the VM runs elsewhere.
const OLD_NUMBER: &[Scene] = &[
    Scene::Strategy(RunStrategy::Always),
    Scene::Rest(8),
    Scene::Mark,
    Scene::Backup,
    Scene::Strategy(RunStrategy::Halted),
    Scene::Rest(14),
    Scene::CordonOthers(true),
    Scene::Strategy(RunStrategy::Always),
    Scene::Rest(10),
    Scene::Strategy(RunStrategy::Halted),
    Scene::Rest(14),
    Scene::CordonOthers(false),
    Scene::Cordon(true),
    Scene::Strategy(RunStrategy::Always),
    Scene::Rest(10),
    Scene::Restore { newest: true },
    Scene::Rest(3),
];

/// A ledger is lost under a running guest whose grant the store forgets, and the host answers before it has looked at
/// that guest.
const LOST_LEDGER: &[Scene] = &[
    Scene::Strategy(RunStrategy::Always),
    Scene::Rest(8),
    Scene::Mark,
    Scene::LoseLedger,
    Scene::Restore { newest: false },
    Scene::Cordon(true),
    Scene::Strategy(RunStrategy::Always),
    Scene::Talk(25),
    Scene::Rest(3),
];

/// The clone of a host that is cut off boots.
const CLONE_OF_THE_CUT: &[Scene] = &[
    Scene::Strategy(RunStrategy::Always),
    Scene::Rest(8),
    Scene::Mark,
    Scene::Cut(true),
    Scene::Rest(20),
    Scene::Clone,
    Scene::Rest(25),
];

/// The store forgets a placement while the daemon of its host is dead, and the clone of that host boots.
const CLONE_ANSWERS: &[Scene] = &[
    Scene::Strategy(RunStrategy::Always),
    Scene::Rest(8),
    Scene::Mark,
    Scene::DaemonLives(false),
    Scene::Restore { newest: false },
    Scene::Clone,
    Scene::Rest(30),
];

/// A placement on its way while the next controller decides otherwise.
const LATE_WRITE: &[Scene] = &[
    Scene::Hold(Some("SetPlacement")),
    Scene::Rest(2),
    Scene::Mark,
    Scene::Backup,
    Scene::FreezeLeader,
    Scene::Hold(None),
    Scene::Cordon(true),
    Scene::Rest(20),
    Scene::Arrive,
    Scene::Rest(3),
];

/// The same, and a restore to the version that the write was decided from.
const WRITE_ACROSS_RESTORE: &[Scene] = &[
    Scene::Hold(Some("SetPlacement")),
    Scene::Rest(2),
    Scene::Mark,
    Scene::Backup,
    Scene::FreezeLeader,
    Scene::Hold(None),
    Scene::Cordon(true),
    Scene::Rest(20),
    Scene::Freeze(true),
    Scene::Restore { newest: true },
    Scene::Daemons(3),
    Scene::Arrive,
    Scene::Daemons(3),
];

/// A host whose end was confirmed comes back, is given the VM again, and is cut off when the store forgets that.
const OLD_CONFIRMATION: &[Scene] = &[
    Scene::Rest(6),
    Scene::Mark,
    Scene::Power(false),
    Scene::Rest(25),
    Scene::Confirm,
    Scene::Rest(15),
    Scene::Backup,
    Scene::Power(true),
    Scene::Rest(20),
    Scene::CordonOthers(true),
    Scene::Strategy(RunStrategy::Halted),
    Scene::Rest(15),
    Scene::Strategy(RunStrategy::Always),
    Scene::Rest(10),
    Scene::Cut(true),
    Scene::Restore { newest: true },
    Scene::CordonOthers(false),
    Scene::Rest(30),
];

/// A host is confirmed to be off that is only cut off, and comes back.
const LIE: &[Scene] = &[
    Scene::Rest(6),
    Scene::Mark,
    Scene::Cut(true),
    Scene::Rest(25),
    Scene::Confirm,
    Scene::Rest(15),
    Scene::Cut(false),
    Scene::Rest(10),
];

/// A VM is deleted, and one of the same name is while a write about the first is on its way.
const SAME_NAME: &[Scene] = &[
    Scene::Rest(6),
    Scene::Delete,
    Scene::Hold(Some("RemoveFinalizer")),
    Scene::Rest(16),
    Scene::ArriveOne,
    Scene::Hold(None),
    Scene::Rest(6),
    Scene::Create,
    Scene::Rest(8),
    Scene::Delete,
    Scene::Arrive,
    Scene::Rest(4),
];

fn removals() -> Vec<Removal> {
    let of = Removal::default;
    let controller = |name, controller| Removal { name, controller, ..of() };
    let node = |name, node| Removal { name, node, ..of() };
    let executor = |name, change| Removal { name, executor: Some(change), ..of() };
    vec![
        node("start not bound to the incarnation", &[Node::Incarnation]),
        node("ledger release check removed", &[Node::Released]),
        Removal {
            prelude: ABANDONED_GRANT,
            disks: Some(false),
            ..node("a grant found in a list is accepted", &[Node::ListedGrant])
        },
        Removal {
            prelude: OLD_NUMBER,
            disks: Some(false),
            beside: &[Node::ListedGrant],
            ..node("highest number ignored (and the one before)", &[Node::HighestEpoch, Node::ListedGrant])
        },
        Removal {
            liar: true,
            prelude: LIE,
            ..node("Superseded destroys instead of pausing", &[Node::SupersededPauses])
        },
        Removal { favourites: &[DISOWNED], ..node("release on libvirt's word", &[Node::ProcessCounts]) },
        Removal {
            favourites: &[VOLUME_LOST],
            ..node("a missing volume is made anew", &[Node::MissingVolume])
        },
        Removal {
            favourites: &[RESTORE],
            deeds: &[DELETE_VM],
            ..node("gone destroys", &[Node::DisappearanceStopsNothing])
        },
        controller("suspicion as evidence", &[Controller::SilenceIsNoEvidence]),
        controller("no attestation awaited", &[Controller::Barrier]),
        controller("unexplained claims ignored", &[Controller::UnexplainedClaims]),
        Removal {
            prelude: CLONE_ANSWERS,
            ..node("a machine the Host is not tied to speaks for it", &[Node::SameMachine])
        },
        Removal {
            favourites: &[CLONE, RESTORE, CUT],
            node: &[Node::SameMachine],
            beside: &[Node::SameMachine],
            ..controller("one of two machines speaks for both (not tied)", &[Controller::OneMachineByName])
        },
        Removal {
            prelude: OLD_CONFIRMATION,
            ..controller("an old ended record replaces attestation", &[Controller::OldConfirmation])
        },
        controller("stale runtime report accepted", &[Controller::ReportNamesGrant]),
        controller("confirmation accepted while alive", &[Controller::ConfirmationWhileAlive]),
        Removal {
            prelude: CLONE_OF_THE_CUT,
            node: &[Node::SameMachine],
            beside: &[Node::SameMachine],
            ..controller("Rebooted accepted from a clone (not tied)", &[Controller::RebootOfSameMachine])
        },
        Removal { deeds: &[DATA_DISK], ..controller("disk claim removed", &[Controller::DiskClaim]) },
        controller("Disk deleted before release", &[Controller::DiskRelease]),
        controller("VM deleted before release", &[Controller::DeletionWaits]),
        executor("session survives a broken connection", |r| r.session_survives = true),
        Removal {
            prelude: WRITE_ACROSS_RESTORE,
            ..executor("a write replayed across a restore", |r| r.replay = true)
        },
        Removal {
            favourites: &[RESTORE, BACKUP],
            ..executor("attest without dropping cached grants", |r| r.attest_cached = true)
        },
        Removal {
            favourites: &[LEDGER_LOST],
            deeds: &[STRATEGY],
            node: &[Node::ListedGrant],
            beside: &[Node::ListedGrant],
            ..executor("a lost ledger keeps its incarnation (and listed)", |r| r.lost_ledger_keeps = true)
        },
        Removal {
            prelude: LOST_LEDGER,
            ..executor("a new incarnation without census", |r| r.no_census = true)
        },
        executor("ledger entry dropped early", |r| r.drop_early = true),
        Removal {
            favourites: &[RESTORE],
            deeds: &[DISK_COMES_AND_GOES, DATA_DISK, DELETE_VM],
            ..executor("name-based volume path", |r| r.name_based_volume = true)
        },
        Removal {
            prelude: LATE_WRITE,
            ..executor("version condition and CEL rule both removed", |r| r.unconditional = true)
        },
        Removal { prelude: SAME_NAME, ..executor("apply without uid", |r| r.without_uid = true) },
    ]
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The first of these seeds, tried in order, that breaks a promise.
fn first_broken(rules: &Rules, seeds: u64) -> Option<(u64, &'static str, String)> {
    (1..=seeds).find_map(|seed| {
        let mut sim = Sim::new(seed, rules.clone(), false);
        sim.run();
        sim.violations.first().map(|(invariant, text)| (seed, *invariant, text.clone()))
    })
}

/// Runs this for every removal, on two threads; prints the lines it answers as they come, and counts its complaints.
fn for_each_removal(each: impl Fn(&Removal) -> (String, bool) + Sync) -> u64 {
    let only = std::env::var("VIREO_MUTATION").ok();
    let all: Vec<Removal> = removals()
        .into_iter()
        .filter(|r| only.as_ref().is_none_or(|only| r.name.contains(only.as_str())))
        .collect();
    let (next, complaints, out) = (AtomicUsize::new(0), AtomicU64::new(0), Mutex::new(()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(removal) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (line, bad) = each(removal);
                    complaints.fetch_add(u64::from(bad), Ordering::Relaxed);
                    let _one = out.lock();
                    println!("{line}");
                }
            });
        }
    });
    complaints.into_inner()
}

#[test]
fn the_removal_of_every_guard_is_noticed() {
    let seeds = number("VIREO_MUTATION_SEEDS").unwrap_or(SEEDS);
    println!("{:<50} {:<10} {:>5} {:>6}  what goes wrong", "guard taken away", "caught by", "seeds", "s");
    let unnoticed = for_each_removal(|removal| {
        let started = Instant::now();
        let mut rules = removal.rules();
        if let Some(change) = removal.executor {
            change(&mut rules);
        }
        controller::remove(removal.controller);
        node::remove(removal.node);
        let found = first_broken(&rules, seeds);
        controller::remove(&[]);
        node::remove(&[]);
        let (name, focus, took) = (removal.name, removal.focus(), started.elapsed().as_secs_f64());
        match found {
            Some((seed, invariant, text)) => {
                (format!("{name:<50} {invariant:<10} {seed:>5} {took:>6.1}  {focus}: {text:.80}"), false)
            }
            None => (format!("{name:<50} {:<10} {:>5} {took:>6.1}  {focus}", "nothing", "-"), true),
        }
    });
    assert_eq!(unnoticed, 0, "guards whose absence nothing noticed within {seeds} seeds");
}

/// Without this the table above could be noise.
#[test]
fn with_all_guards_in_place_the_same_histories_hold() {
    let broken = for_each_removal(|removal| {
        node::remove(removal.beside);
        let found = held_or_not(removal);
        node::remove(&[]);
        found
    });
    assert_eq!(broken, 0, "histories that break a promise although every guard stands");
}

fn held_or_not(removal: &Removal) -> (String, bool) {
    match first_broken(&removal.rules(), SOUND) {
        Some((seed, invariant, text)) => {
            let mut again = Sim::new(seed, removal.rules(), true);
            again.run();
            let trace = again.trace();
            let last = trace.get(trace.len().saturating_sub(40)..).unwrap_or_default().join("\n");
            (format!("{}: seed {seed} breaks {invariant}: {text:.300}\n{last}", removal.name), true)
        }
        None => (format!("{}: holds", removal.name), false),
    }
}
