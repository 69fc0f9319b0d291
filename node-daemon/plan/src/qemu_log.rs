//! How a domain ended, as the log that libvirt keeps for each QEMU tells it. QEMU writes there, too, and so may whoever
//! makes QEMU complain.

use crate::facts::{Exit, ExitKind};

/// Longest detail told.
const MAX_DETAIL: usize = 300;

/// The end libvirt noted last in QEMU's log, unless a later start follows it.
pub fn last_end(log: &str) -> Option<Exit> {
    let lines: Vec<&str> = log.lines().collect();
    let last = lines
        .iter()
        .rposition(|line| line.contains(": shutting down, reason=") || line.contains(": starting up "))?;
    let line = lines.get(last)?;
    let (stamp, reason) = line.split_once(": shutting down, reason=")?;
    let at = jiff::fmt::strtime::parse("%Y-%m-%d %H:%M:%S%.f%z", stamp.trim()).ok()?.to_timestamp().ok()?;
    let how = match reason.trim() {
        "shutdown" => ExitKind::Shutdown,
        "destroyed" | "migrated" => ExitKind::Destroyed,
        "failed" => ExitKind::Failed,
        _ => ExitKind::Crashed,
    };
    let words = lines
        .get(..last)?
        .iter()
        .rev()
        .take(8)
        .find(|line| line.contains("qemu") && !line.contains("char device redirected"));
    let words = words.filter(|line| !line.trim_end().ends_with('\\') && !line.contains("LC_ALL="));
    let detail = words.map(|line| line.trim().chars().take(MAX_DETAIL).collect());
    Some(Exit { at, how, detail })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_tells_what_nobody_saw() {
        let log = "2026-11-21 08:59:58.000+0000: starting up libvirt version: 11.3.0\n\
                   qemu-system-x86_64: Could not read: Input/output error\n\
                   2026-11-21 09:00:00.500+0000: shutting down, reason=crashed\n";
        let exit = last_end(log).unwrap();
        assert_eq!(exit.how, ExitKind::Crashed);
        assert_eq!(exit.at, "2026-11-21T09:00:00.5Z".parse().unwrap());
        assert!(exit.detail.unwrap().contains("Input/output error"));
        let restarted = format!("{log}2026-11-21 09:00:02.000+0000: starting up libvirt version: 11.3.0\n");
        assert_eq!(last_end(&restarted), None, "it has been started since");
    }
}
