//! Makes a failing history smaller: events are left out as long as the same promise is broken.

use super::{EVENTS, Rules, Sim};

/// The rules under which the history of this seed still breaks `invariant`, with as few events as could be found.
pub fn shrink(seed: u64, rules: &Rules, invariant: &str) -> Rules {
    let fails = |rules: &Rules| {
        let mut sim = Sim::new(seed, rules.clone(), false);
        sim.run();
        sim.violations.first().is_some_and(|(found, _)| *found == invariant)
    };
    let mut best = Rules { events: if rules.events > 0 { rules.events } else { EVENTS }, ..rules.clone() };
    // What comes after is of no use; the end of faults may be.
    let mut whole = Sim::new(seed, best.clone(), false);
    whole.run();
    best.events = whole.counts.events.max(1);
    let mut size = best.events.div_ceil(2).max(1);
    loop {
        let mut smaller = false;
        let mut from = 1;
        while from <= best.events {
            let more = (from..(from + size).min(best.events + 1)).filter(|n| !best.dropped.contains(n));
            let mut tried = best.clone();
            tried.dropped.extend(more);
            if tried.dropped.len() > best.dropped.len() && fails(&tried) {
                best = tried;
                smaller = true;
            }
            from += size;
        }
        if size == 1 && !smaller {
            return best;
        }
        size = if size > 1 { size.div_ceil(2) } else { 1 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A rule whose absence shows soon.
    fn broken() -> Rules {
        Rules { gone_destroys: true, deeds: &[super::super::faults::DELETE_VM], ..Rules::default() }
    }

    #[test]
    fn a_failing_history_becomes_shorter_and_still_fails() {
        let first = (1..400).find_map(|seed| {
            let mut sim = Sim::new(seed, broken(), false);
            sim.run();
            Some((seed, sim.violations.first()?.0))
        });
        let (seed, invariant) = first.unwrap();
        let small = shrink(seed, &broken(), invariant);
        let mut sim = Sim::new(seed, small.clone(), false);
        sim.run();
        assert_eq!(sim.violations.first().map(|(found, _)| *found), Some(invariant));
        assert!(
            (small.dropped.len() as u64) > small.events / 2,
            "{} of {}",
            small.dropped.len(),
            small.events
        );
    }
}
