//! Remembers how domains ended. A transient domain takes its end with it: libvirt's event is the first source, QEMU's
//! own word for the reason the second, and for what ended while nobody listened, the last line of QEMU's log.

use std::{
    collections::HashMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use node_plan::{
    facts::{Exit, ExitKind},
    qemu_log,
};

use crate::host::{DomainEvent, Lifecycle, StoppedHow};

/// How much of a log's end is read.
const TAIL_BYTES: u64 = 8192;

/// How domains ended, by UUID.
pub struct Exits {
    log_dir: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    ended: HashMap<String, Exit>,
    /// QEMU's word for a shutdown under way.
    reasons: HashMap<String, String>,
}

impl Exits {
    /// Looks for QEMU's logs in `log_dir`.
    pub fn new(log_dir: impl Into<PathBuf>) -> Self {
        Self { log_dir: log_dir.into(), inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in an event.
    pub fn note(&self, uuid: &str, event: &DomainEvent, now: Timestamp) {
        let mut inner = self.lock();
        match event {
            DomainEvent::ShutdownReason { reason } => {
                inner.reasons.insert(uuid.into(), reason.clone());
            }
            DomainEvent::Lifecycle(Lifecycle::Started) => {
                inner.reasons.remove(uuid);
                inner.ended.remove(uuid);
            }
            DomainEvent::Lifecycle(Lifecycle::Stopped(how)) => {
                let reason = inner.reasons.remove(uuid);
                inner
                    .ended
                    .insert(uuid.into(), Exit { at: now, how: kind(*how, reason.as_deref()), detail: None });
            }
            _ => {}
        }
    }

    /// Forgets how a domain ended: it is about to be started.
    pub fn forget(&self, uuid: &str) {
        let mut inner = self.lock();
        inner.ended.remove(uuid);
        inner.reasons.remove(uuid);
    }

    /// How the domain that is not there ended. Blocking: may read a log.
    pub fn of(&self, uuid: &str, name: &str) -> Option<Exit> {
        let known = self.lock().ended.get(uuid).cloned();
        let needs_log = known.as_ref().is_none_or(|exit| {
            exit.detail.is_none() && matches!(exit.how, ExitKind::Crashed | ExitKind::Failed)
        });
        if !needs_log {
            return known;
        }
        let logged =
            tail(&self.log_dir.join(format!("{name}.log"))).and_then(|text| qemu_log::last_end(&text));
        let exit = match (known, logged) {
            (Some(known), Some(logged)) => Exit { detail: logged.detail, ..known },
            (known, logged) => known.or(logged)?,
        };
        self.lock().ended.insert(uuid.into(), exit.clone());
        Some(exit)
    }
}

fn kind(how: StoppedHow, reason: Option<&str>) -> ExitKind {
    match (how, reason) {
        (StoppedHow::Shutdown | StoppedHow::Destroyed, Some("guest-reset" | "host-qmp-system-reset")) => {
            ExitKind::Reset
        }
        (StoppedHow::Shutdown, Some("guest-shutdown")) => ExitKind::PoweredOff,
        (_, Some("guest-panic")) => ExitKind::Crashed,
        (StoppedHow::Shutdown, _) => ExitKind::Shutdown,
        (StoppedHow::Destroyed | StoppedHow::Migrated, _) => ExitKind::Destroyed,
        (StoppedHow::Crashed, _) => ExitKind::Crashed,
        (StoppedHow::Failed, _) => ExitKind::Failed,
    }
}

fn tail(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES))).ok()?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_that_ends_the_domain_is_not_a_shutdown() {
        assert_eq!(kind(StoppedHow::Shutdown, Some("guest-reset")), ExitKind::Reset);
        assert_eq!(kind(StoppedHow::Shutdown, Some("guest-shutdown")), ExitKind::PoweredOff);
        assert_eq!(kind(StoppedHow::Shutdown, None), ExitKind::Shutdown);
        assert_eq!(kind(StoppedHow::Destroyed, Some("host-qmp-quit")), ExitKind::Destroyed);
    }
}
