//! Counts failed attempts of one object and spaces them: doubling from half a second to a minute, with jitter.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(500);
const CAP: Duration = Duration::from_secs(60);

/// Failed attempts in a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// Attempts so far.
    pub fn failures(&self) -> u32 {
        self.attempts
    }

    /// Counts one more.
    pub fn count(&mut self) {
        self.attempts = self.attempts.saturating_add(1);
    }

    /// Counts one failure and gives the time until the next attempt: between half of and the full step.
    pub fn failed(&mut self) -> Duration {
        let step = step(self.attempts);
        self.count();
        let half = step / 2;
        half + half.mul_f64(random_share())
    }
}

fn step(attempts: u32) -> Duration {
    FIRST.saturating_mul(1 << attempts.min(16)).min(CAP)
}

/// A number from 0 to 1. Uuids are the randomness this crate has anyway.
fn random_share() -> f64 {
    let [a, b, ..] = *uuid::Uuid::new_v4().as_bytes();
    f64::from(u16::from_be_bytes([a, b])) / f64::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_double_up_to_the_cap() {
        assert_eq!(step(0), Duration::from_millis(500));
        assert_eq!(step(3), Duration::from_secs(4));
        assert_eq!(step(40), CAP);
    }

    #[test]
    fn jitter_stays_within_the_step() {
        let mut backoff = Backoff::default();
        for attempt in 0..20 {
            let wait = backoff.failed();
            assert!(wait <= step(attempt) && wait >= step(attempt) / 2, "{attempt}: {wait:?}");
        }
    }
}
