//! Takes the guards of the protocol away one by one and demands that the simulation notices each within so many
//! seeds, with the plan linters off: what is counted is a promise broken, not a rule of a plan.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use controller_plan::guard::{self as controller, Guard as Controller};
use node_plan::guard::{self as node, Guard as Node};
use system_tests::sim::{Rules, Sim};

/// Seeds tried at most for one guard.
const SEEDS: u64 = 3000;

enum Removal {
    Controller(Controller),
    Node(Node),
    /// The guard acts only after an administrator confirmed the end of a host that lives.
    AfterALie(Node),
    Executor(fn(&mut Rules)),
}

fn removals() -> Vec<(&'static str, Removal)> {
    use Removal as R;
    vec![
        ("start not bound to the incarnation", R::Node(Node::Incarnation)),
        ("ledger release check removed", R::Node(Node::Released)),
        ("highest number ignored", R::Node(Node::HighestEpoch)),
        ("disk token ignored", R::Node(Node::DiskToken)),
        ("Superseded destroys instead of pausing", R::AfterALie(Node::SupersededPauses)),
        ("release on libvirt's word", R::Node(Node::ProcessCounts)),
        ("a missing volume is made anew", R::Node(Node::MissingVolume)),
        ("gone destroys", R::Node(Node::DisappearanceStopsNothing)),
        ("suspicion as evidence", R::Controller(Controller::SilenceIsNoEvidence)),
        ("no attestation awaited", R::Controller(Controller::Barrier)),
        ("unexplained claims ignored", R::Controller(Controller::UnexplainedClaims)),
        ("an old ended record replaces attestation", R::Controller(Controller::OldConfirmation)),
        ("stale runtime report accepted", R::Controller(Controller::ReportNamesGrant)),
        ("confirmation accepted while alive", R::Controller(Controller::ConfirmationWhileAlive)),
        ("Rebooted accepted from a clone", R::Controller(Controller::RebootOfSameMachine)),
        ("disk claim removed", R::Controller(Controller::DiskClaim)),
        ("Disk deleted before release", R::Controller(Controller::DiskRelease)),
        ("VM deleted before release", R::Controller(Controller::DeletionWaits)),
        ("session survives a broken connection", R::Executor(|r| r.session_survives = true)),
        ("a write replayed across a restore", R::Executor(|r| r.replay = true)),
        ("attest without dropping cached grants", R::Executor(|r| r.attest_cached = true)),
        ("a lost ledger keeps its incarnation", R::Executor(|r| r.lost_ledger_keeps = true)),
        ("a new incarnation without census", R::Executor(|r| r.no_census = true)),
        ("ledger entry dropped early", R::Executor(|r| r.drop_early = true)),
        ("name-based volume path", R::Executor(|r| r.name_based_volume = true)),
        ("version condition and CEL rule both removed", R::Executor(|r| r.unconditional = true)),
        ("apply without uid", R::Executor(|r| r.without_uid = true)),
    ]
}

/// Guards whose removal this simulation does not notice; docs/correctness.md says why for each.
const UNNOTICED: &[&str] = &[];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn the_removal_of_every_guard_is_noticed() {
    let seeds = number("VIREO_MUTATION_SEEDS").unwrap_or(SEEDS);
    let only = std::env::var("VIREO_MUTATION").ok();
    let mut unnoticed = Vec::new();
    println!("{:<48} {:<12} seeds", "guard taken away", "broken");
    for (name, removal) in removals() {
        if only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        let mut rules = Rules::default();
        controller::remove(None);
        node::remove(None);
        match removal {
            Removal::Controller(guard) => controller::remove(Some(guard)),
            Removal::Node(guard) => node::remove(Some(guard)),
            Removal::AfterALie(guard) => {
                rules.liar = true;
                node::remove(Some(guard));
            }
            Removal::Executor(change) => change(&mut rules),
        }
        let found = (1..=seeds).find_map(|seed| {
            let mut sim = Sim::new(seed, rules.clone(), false);
            sim.run();
            sim.violations.first().map(|(invariant, text)| (seed, *invariant, text.clone()))
        });
        match found {
            Some((seed, invariant, text)) => println!("{name:<48} {invariant:<12} {seed}   {text:.90}"),
            None => {
                println!("{name:<48} nothing");
                if !UNNOTICED.contains(&name) {
                    unnoticed.push(name);
                }
            }
        }
    }
    controller::remove(None);
    node::remove(None);
    assert!(unnoticed.is_empty(), "nothing noticed within {seeds} seeds: {unnoticed:?}");
}
