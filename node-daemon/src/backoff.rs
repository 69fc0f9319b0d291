//! Turns a retry class and the number of attempts into a pause: capped, with jitter, never in step with others.

use std::time::Duration;

use crate::error::RetryClass;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(60);
const SAFETY_NET: Duration = Duration::from_secs(300);

/// Pause before attempt number `attempt` (from 1) after a failure of this class. `seed` spreads objects apart.
pub fn pause(class: RetryClass, attempt: u32, seed: u64) -> Duration {
    match class {
        RetryClass::Transient => {
            let doubled =
                FIRST.saturating_mul(1u32.checked_shl(attempt.saturating_sub(1).min(16)).unwrap_or(u32::MAX));
            jittered(doubled.min(LONGEST), attempt, seed)
        }
        RetryClass::WaitFor | RetryClass::Rejected | RetryClass::Bug => jittered(SAFETY_NET, attempt, seed),
    }
}

/// Up to a quarter less than `pause`, the same for the same object and attempt.
fn jittered(pause: Duration, attempt: u32, seed: u64) -> Duration {
    let mixed = (seed ^ u64::from(attempt)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let share = u32::try_from(mixed % 256).unwrap_or(0);
    pause - pause * share / 1024
}

/// A stable number for a uid.
pub fn seed(uid: &str) -> u64 {
    uid.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_capped() {
        let pauses: Vec<_> =
            (1..20).map(|attempt| pause(RetryClass::Transient, attempt, seed("a"))).collect();
        assert!(pauses[0] <= FIRST && pauses[0] >= FIRST * 3 / 4);
        assert!(pauses.iter().all(|pause| *pause <= LONGEST));
        assert!(*pauses.last().unwrap() >= LONGEST * 3 / 4);
    }
}
