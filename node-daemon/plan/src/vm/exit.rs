//! Decides why a guest went down from what was under way, what libvirt and QEMU said, and what a reset was set to do.

use jiff::Timestamp;
use vireo_crds::v1alpha1::StopCause;

use crate::{
    facts::{Exit, ExitKind, Facts},
    ledger::{Entry, PowerRecord, StopBy},
};

/// Why a guest went down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// The cause; none: it went down only to be started anew.
    pub cause: Option<StopCause>,
    /// For people.
    pub message: String,
}

/// The ending that the ledger has not recorded yet, of a guest that is not there any more. None: there is none.
pub fn unrecorded(entry: &Entry, facts: &Facts) -> Option<Ending> {
    let held = entry.held.as_ref()?;
    let power = &entry.power;
    // What is older than the grant or than the last recorded stop has been dealt with.
    let fresh = |at: Timestamp| at >= held.since && power.last_stop.as_ref().is_none_or(|stop| at > stop.at);
    if let Some(failure) =
        facts.start_failure.as_ref().filter(|failure| power.up_since.is_none() && fresh(failure.at))
    {
        return Some(Ending { cause: Some(StopCause::StartFailed), message: failure.message.clone() });
    }
    let exit = facts.exit.as_ref().filter(|exit| fresh(exit.at));
    if power.up_since.is_none() && exit.is_none() {
        return None;
    }
    Some(classify(power, exit))
}

fn classify(power: &PowerRecord, exit: Option<&Exit>) -> Ending {
    let ending = |cause, message: &str| Ending { cause, message: message.into() };
    if let Some(stopping) = &power.stopping {
        return match stopping.by {
            StopBy::Spec | StopBy::Withdrawn => ending(Some(StopCause::BySpec), "stopped as declared"),
            StopBy::Stop { .. } => ending(Some(StopCause::ByAction), "stopped by an act"),
            StopBy::Restart { .. } => ending(None, "stopped to be started anew by an act"),
        };
    }
    let reboot = ending(None, "rebooted; it is started anew with the edits that waited");
    let Some(exit) = exit else {
        return if power.reboot_applies {
            reboot
        } else {
            ending(Some(StopCause::Crashed), "it ended while nobody watched")
        };
    };
    let with_detail = |text: &str| match &exit.detail {
        Some(detail) => format!("{text}: {detail}"),
        None => text.to_owned(),
    };
    let crash = |text: &str| Ending { cause: Some(StopCause::Crashed), message: with_detail(text) };
    match exit.how {
        ExitKind::PoweredOff => ending(Some(StopCause::ByGuest), "the guest shut itself down"),
        ExitKind::Reset => reboot,
        ExitKind::Shutdown if power.reboot_applies => reboot,
        ExitKind::Shutdown => ending(Some(StopCause::ByGuest), "the guest shut itself down"),
        ExitKind::Destroyed => crash("the domain was destroyed from outside Vireo"),
        ExitKind::Crashed => crash("QEMU died or the guest panicked"),
        ExitKind::Failed if power.up_since.is_none() => {
            Ending { cause: Some(StopCause::StartFailed), message: with_detail("libvirt could not start it") }
        }
        ExitKind::Failed => crash("libvirt lost the domain"),
    }
}
