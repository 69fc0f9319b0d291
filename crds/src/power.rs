//! Decides whether a VM is meant to run: the one rule that controller and node daemon must read alike.
//!
//! A grant is the wish to run. The controller makes a new one when [`wants_new_grant`] says so; under an open
//! grant the daemon keeps the guest up until [`stays_down`] says that what happened under it ends it.

use crate::v1alpha1::{RunStrategy, StopCause};

/// Whether a VM that holds no open grant should be given one. `last_stop` is why it went down under its last
/// grant (none: it never had one); `start_asked` is a pending `start` act.
pub fn wants_new_grant(strategy: RunStrategy, last_stop: Option<StopCause>, start_asked: bool) -> bool {
    match strategy {
        RunStrategy::Always => true,
        RunStrategy::RerunOnFailure => {
            start_asked || !matches!(last_stop, Some(StopCause::ByGuest | StopCause::ByAction))
        }
        RunStrategy::Manual | RunStrategy::Unknown => start_asked,
        RunStrategy::Halted => false,
    }
}

/// Whether a guest that went down for `cause` under an open grant stays down, so that the grant is released.
pub fn stays_down(strategy: RunStrategy, cause: StopCause) -> bool {
    match strategy {
        RunStrategy::Always => false,
        RunStrategy::RerunOnFailure => matches!(cause, StopCause::ByGuest | StopCause::ByAction),
        RunStrategy::Manual | RunStrategy::Unknown => !matches!(cause, StopCause::StartFailed),
        RunStrategy::Halted => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAUSES: [StopCause; 6] = [
        StopCause::ByGuest,
        StopCause::BySpec,
        StopCause::ByAction,
        StopCause::Crashed,
        StopCause::HostLost,
        StopCause::StartFailed,
    ];

    #[test]
    fn a_halted_vm_is_never_started_and_always_stays_down() {
        for cause in CAUSES {
            assert!(!wants_new_grant(RunStrategy::Halted, Some(cause), true));
            assert!(stays_down(RunStrategy::Halted, cause));
        }
    }

    #[test]
    fn a_guests_own_shutdown_stays_down_unless_always() {
        assert!(!stays_down(RunStrategy::Always, StopCause::ByGuest));
        assert!(stays_down(RunStrategy::RerunOnFailure, StopCause::ByGuest));
        assert!(!stays_down(RunStrategy::RerunOnFailure, StopCause::Crashed));
        assert!(stays_down(RunStrategy::Manual, StopCause::Crashed));
    }

    #[test]
    fn what_stays_down_is_not_started_again_unasked() {
        for strategy in [RunStrategy::Always, RunStrategy::RerunOnFailure, RunStrategy::Manual] {
            for cause in CAUSES {
                if stays_down(strategy, cause) && cause != StopCause::BySpec {
                    assert!(!wants_new_grant(strategy, Some(cause), false), "{strategy:?} {cause:?}");
                }
            }
        }
    }
}
