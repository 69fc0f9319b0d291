//! Decides when a guest that went down may be started again: at once, then later and later, capped, and spread by uid
//! so that guests that die together do not come back together.

use jiff::{SignedDuration, Timestamp};
use vireo_crds::v1alpha1::StopCause;

/// Crashes in a row from which on the state is shown as CrashLoop.
pub const CRASH_LOOP: u32 = 3;
/// A guest that ran this long is over its earlier crashes.
pub const FORGET_AFTER: SignedDuration = SignedDuration::from_mins(10);
/// Longest delay.
pub const CAP: SignedDuration = SignedDuration::from_mins(5);
const FIRST_DELAY: SignedDuration = SignedDuration::from_secs(5);
const BRIEF: SignedDuration = SignedDuration::from_secs(30);
const AFTER_BRIEF_RUN: SignedDuration = SignedDuration::from_secs(5);

/// Whether an ending counts as a crash.
pub fn is_crash(cause: Option<StopCause>) -> bool {
    match cause {
        Some(StopCause::Crashed | StopCause::StartFailed) => true,
        None
        | Some(
            StopCause::ByGuest
            | StopCause::BySpec
            | StopCause::ByAction
            | StopCause::HostLost
            | StopCause::Unknown,
        ) => false,
    }
}

/// The delay after the `crashes`th crash in a row: 0 s, 5 s, 10 s, 20 s, ... five minutes, give or take a tenth.
pub fn after_crashes(crashes: u32, uid: &str) -> SignedDuration {
    let Some(doublings) = crashes.checked_sub(2) else { return SignedDuration::ZERO };
    let delay = FIRST_DELAY.checked_mul(1 << doublings.min(10)).unwrap_or(CAP).min(CAP);
    spread(delay, uid, crashes)
}

/// The delay after a guest shut itself down although it is to be up always: none, unless it did so right after its start.
pub fn after_shutdown(up_since: Option<Timestamp>, now: Timestamp) -> SignedDuration {
    let brief = up_since.is_some_and(|since| now.duration_since(since) < BRIEF);
    if brief { AFTER_BRIEF_RUN } else { SignedDuration::ZERO }
}

/// The delay before the next attempt to resume a guest paused by an I/O error.
pub fn after_resumes(count: u32) -> SignedDuration {
    SignedDuration::from_secs(1 << count.min(5)).min(SignedDuration::from_secs(30))
}

/// `at`, unless the clock was set back and it lies further ahead than any delay can be.
pub fn sane(at: Timestamp, now: Timestamp) -> Timestamp {
    let bound = now.checked_add(CAP + CAP / 10).unwrap_or(now);
    if at > bound { now } else { at }
}

fn spread(delay: SignedDuration, uid: &str, crashes: u32) -> SignedDuration {
    let digest = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, format!("{uid}/{crashes}").as_bytes());
    let [byte, ..] = digest.into_bytes();
    // 90 % to 110 %, in steps of 1/1275.
    let permille = 900 + i32::from(byte) * 200 / 255;
    delay.checked_mul(permille).map_or(delay, |scaled| scaled / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_cap_and_differ_by_uid() {
        let nominal = [0, 0, 5, 10, 20, 40, 80, 160, 300, 300];
        for (crashes, seconds) in nominal.into_iter().enumerate() {
            let delay = after_crashes(u32::try_from(crashes).unwrap(), "u1").as_secs_f64();
            assert!(
                delay >= f64::from(seconds) * 0.9 && delay <= f64::from(seconds) * 1.1,
                "{crashes}: {delay}"
            );
        }
        assert_ne!(after_crashes(9, "u1"), after_crashes(9, "u2"));
        assert!(after_crashes(u32::MAX, "u1") <= CAP + CAP / 10);
    }

    #[test]
    fn a_clock_set_back_does_not_hold_a_start_for_ever() {
        let now = Timestamp::from_second(1000).unwrap();
        let soon = Timestamp::from_second(1100).unwrap();
        assert_eq!(sane(soon, now), soon);
        assert_eq!(sane(Timestamp::from_second(900_000).unwrap(), now), now);
    }
}
