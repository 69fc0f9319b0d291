//! Seeded histories of the whole. `VIREO_SIM_HISTORIES` says how many, `VIREO_SIM_SEED` replays one with its trace,
//! `VIREO_SIM_FIRST` says where to begin, `VIREO_SIM_THREADS` how many run at once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use simulation::{
    Counts, Rules, Sim,
    faults::{FAULTS, Fault},
    shrink::shrink,
};

/// Half of the time of a history is allocation.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Histories of one run.
const HISTORIES: u64 = 3000;
/// Seeds that break a promise, each explained in docs/correctness.md: they are run too, and once one holds it has to
/// leave this list.
const KNOWN: &[u64] = &[];
/// A run of so many shows every kind of fault.
const ENOUGH: u64 = 500;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn rules() -> Rules {
    Rules { lints: true, ..Rules::default() }
}

/// What all histories of a run came to.
#[derive(Default)]
struct Sum {
    counts: Counts,
    histogram: BTreeMap<Fault, u64>,
    /// Reason, how often, and a seed that ended so.
    waits: BTreeMap<String, (u64, u64)>,
    bad: BTreeMap<u64, (&'static str, String)>,
}

impl Sum {
    fn add(&mut self, seed: u64, sim: Sim) {
        if let Some(found) = sim.violations.first() {
            self.bad.insert(seed, found.clone());
        }
        for (fault, count) in sim.histogram {
            *self.histogram.entry(fault).or_default() += count;
        }
        for (wait, count) in sim.waits {
            self.waits.entry(wait).or_insert((0, seed)).0 += count;
        }
        self.counts.add(&sim.counts);
    }

    fn merge(&mut self, other: Self) {
        for (fault, count) in other.histogram {
            *self.histogram.entry(fault).or_default() += count;
        }
        for (wait, (count, seed)) in other.waits {
            self.waits.entry(wait).or_insert((0, seed)).0 += count;
        }
        self.counts.add(&other.counts);
        self.bad.extend(other.bad);
    }
}

/// Runs these histories on a few threads; stops early at the first that fails unless told to go on.
fn run(first: u64, histories: u64, rules: &Rules, keep_going: bool) -> Sum {
    let (next, failed, sum) = (AtomicU64::new(first), AtomicBool::new(false), Mutex::new(Sum::default()));
    let work = || {
        let mut own = Sum::default();
        while keep_going || !failed.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + histories {
                break;
            }
            let mut sim = Sim::new(seed, rules.clone(), false);
            sim.run();
            failed.fetch_or(!sim.violations.is_empty() && !KNOWN.contains(&seed), Ordering::Relaxed);
            own.add(seed, sim);
        }
        sum.lock().unwrap().merge(own);
    };
    std::thread::scope(|scope| {
        for _ in 0..number("VIREO_SIM_THREADS").unwrap_or(2) {
            scope.spawn(work);
        }
    });
    sum.into_inner().unwrap()
}

/// Nothing protects against a second copy then; but no guest is stopped, only paused, and each says why.
#[test]
fn a_false_word_about_a_host_nobody_hears_stops_no_guest() {
    let rules = Rules { liar: true, ..Rules::default() };
    let sum = run(1, number("VIREO_SIM_HISTORIES").unwrap_or(HISTORIES) / 20, &rules, false);
    assert!(sum.bad.is_empty(), "{:#?}", sum.bad);
}

#[test]
fn no_history_breaks_a_promise_and_every_one_comes_to_rest() {
    if let Some(seed) = number("VIREO_SIM_SEED") {
        return explain(seed);
    }
    let (first, histories) =
        (number("VIREO_SIM_FIRST").unwrap_or(1), number("VIREO_SIM_HISTORIES").unwrap_or(HISTORIES));
    let started = Instant::now();
    let Sum { counts, histogram, waits, bad } =
        run(first, histories, &rules(), std::env::var_os("VIREO_SIM_KEEP_GOING").is_some());
    println!(
        "{histories} histories, seeds {first} to {}, {} events, {:.1} s",
        first + histories - 1,
        counts.events,
        started.elapsed().as_secs_f64()
    );
    println!(
        "planner calls: controller {}, node daemon {}; writes {}",
        counts.controller_plans, counts.node_plans, counts.writes
    );
    println!(
        "at the end: {} VMs as wanted; waiting, by reason (how often, a seed): {waits:?}",
        counts.as_wanted
    );
    println!("faults:");
    for fault in FAULTS {
        println!("  {:<24} {}", format!("{fault:?}"), histogram.get(&fault).copied().unwrap_or(0));
    }
    for (seed, (invariant, text)) in &bad {
        let known = if KNOWN.contains(seed) { " (known)" } else { "" };
        println!("seed {seed}{known} breaks {invariant}: {text:.300}");
    }
    if let Some(seed) = bad.keys().find(|seed| !KNOWN.contains(seed)) {
        explain(*seed);
    }
    let run = first..first + histories;
    let holds: Vec<_> = KNOWN.iter().filter(|seed| run.contains(seed) && !bad.contains_key(seed)).collect();
    assert!(holds.is_empty(), "seeds that hold now and are still listed as known failures: {holds:?}");
    if histories >= ENOUGH {
        let missing: Vec<_> = FAULTS.into_iter().filter(|fault| !histogram.contains_key(fault)).collect();
        assert!(missing.is_empty(), "kinds of faults that never occurred: {missing:?}");
    }
}

/// Replays a history with its trace; one that fails is shrunk first.
fn explain(seed: u64) {
    let replay = |rules: Rules| {
        let mut sim = Sim::new(seed, rules, true);
        sim.run();
        sim
    };
    let whole = replay(rules());
    let Some((invariant, text)) = whole.violations.first() else {
        println!("{}", whole.trace().join("\n"));
        return;
    };
    let small = shrink(seed, &rules(), invariant);
    let left = (1..=small.events).filter(|event| !small.dropped.contains(event)).count();
    let shrunk = replay(small);
    println!("{}", shrunk.trace().join("\n"));
    panic!(
        "seed {seed} breaks {invariant}: {text}\nshrunk to {left} of {} events, above; replay with VIREO_SIM_SEED={seed}",
        whole.counts.events
    );
}
