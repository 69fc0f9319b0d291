//! Knows processes by PID and start time, so that a recycled PID is never
//! taken for one of ours, and finds the lab's own processes again when its
//! records are gone.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// One process of this boot of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    pub pid: i32,
    /// Clock ticks between the machine's boot and the process's start.
    pub started: u64,
}

impl Identity {
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, started) = parse_stat(&stat)?;
        (state != 'Z' && state != 'X').then_some(Self { pid, started })
    }

    pub fn alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Sends a signal to this very process; a process that is gone is fine.
    pub fn signal(self, signal: Signal) -> Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        // The descriptor pins the process, so nothing can take its PID
        // between the comparison and the signal.
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
        if !self.alive() {
            return Ok(());
        }
        match pidfd_send_signal(&pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(e).with_context(|| format!("cannot signal process {}", self.pid)),
        }
    }

    pub fn wait_gone(self, deadline: Duration) -> Result<()> {
        wait_until(deadline, || !self.alive())
            .with_context(|| format!("process {} is still there after {deadline:?}", self.pid))
    }

    pub fn kill(self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait_gone(Duration::from_secs(30))
    }
}

/// State letter and start time from a line of `/proc/PID/stat`. The command
/// name may hold spaces and parentheses, so fields count from its end.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// The same process as seen from the machine, given its PID inside the PID
/// namespace that `init` is the first process of.
pub fn from_inside(init: Identity, inner_pid: i32, started: u64) -> Option<Identity> {
    let namespace = fs::read_link(format!("/proc/{}/ns/pid", init.pid)).ok()?;
    pids().into_iter().find_map(|pid| {
        let identity = Identity::of(pid).filter(|found| found.started == started)?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let innermost = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
        let innermost: i32 = innermost.split_ascii_whitespace().last()?.parse().ok()?;
        let same = innermost == inner_pid
            && fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|found| found == namespace);
        same.then_some(identity)
    })
}

/// Every first process (and the `unshare` holding it) of the lab in this
/// directory, recorded or not: they carry the directory on their command line.
pub fn inits_of(state_dir: &Path) -> Vec<Identity> {
    pids()
        .into_iter()
        .filter(|pid| {
            let Ok(cmdline) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
            is_init_of(&cmdline, state_dir)
        })
        .filter_map(Identity::of)
        .collect()
}

/// Process that started this one; of a lab's first process, the `unshare`
/// that holds its namespaces.
pub fn parent(of: Identity) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", of.pid)).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn is_init_of(cmdline: &[u8], state_dir: &Path) -> bool {
    let args: Vec<&[u8]> = cmdline.split(|byte| *byte == 0).collect();
    args.windows(3).any(|window| match window {
        [sub, flag, dir] => {
            (*sub == b"host-init" || *sub == b"fabric-init")
                && *flag == b"--lab"
                && *dir == state_dir.as_os_str().as_bytes()
        }
        _ => false,
    })
}

fn pids() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Waits for a condition that nothing announces.
pub fn wait_until(deadline: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(2);
    while !condition() {
        if start.elapsed() > deadline {
            bail!("gave up after {deadline:?}");
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_of_a_command_with_spaces_and_parentheses() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2 3";
        assert_eq!(parse_stat(stat), Some(('S', 987_654)));
    }

    #[test]
    fn a_recycled_pid_is_not_the_same_process() {
        let me = Identity::of(std::process::id() as i32).unwrap();
        assert!(me.alive());
        let other = Identity { started: me.started + 1, ..me };
        assert!(!other.alive());
        other.signal(Signal::KILL).unwrap();
    }

    #[test]
    fn only_the_inits_of_this_very_directory_are_ours() {
        let cmdline = |args: &[&str]| args.join("\0").into_bytes();
        let dir = Path::new("/a/lab");
        assert!(is_init_of(&cmdline(&["unshare", "--", "vireo-lab", "host-init", "--lab", "/a/lab"]), dir));
        assert!(is_init_of(&cmdline(&["vireo-lab", "fabric-init", "--lab", "/a/lab", ""]), dir));
        assert!(!is_init_of(&cmdline(&["vireo-lab", "host-init", "--lab", "/a/lab2"]), dir));
        assert!(!is_init_of(&cmdline(&["vi", "host-init --lab /a/lab"]), dir));
        assert!(!is_init_of(&cmdline(&["vireo-lab", "up", "--lab", "/a/lab"]), dir));
    }
}
