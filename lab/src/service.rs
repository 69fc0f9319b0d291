//! Starts, stops and kills the long-running programs of a lab inside the
//! namespaces they belong to. What runs is known by a PID file that the
//! program's starter writes inside, and by the process's start time.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::process::{self, Identity};

/// Namespaces of a running fabric or host, and where PID files lie.
#[derive(Debug, Clone)]
pub struct Place {
    pub init: Identity,
    pub run: PathBuf,
    /// As `nsenter` names them.
    pub namespaces: &'static [&'static str],
}

pub const HOST: &[&str] = &["--mount", "--net", "--uts", "--ipc", "--pid"];
pub const FABRIC: &[&str] = &["--mount", "--net", "--pid"];
/// Dies with the fabric, but lives in the machine's own network.
pub const OUTSIDE: &[&str] = &["--pid"];

impl Place {
    /// A command that runs inside, in the caller's directory if the inside has
    /// it, and does not outlive its caller.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        let here = std::env::current_dir().unwrap_or_default();
        let inside = PathBuf::from(format!("/proc/{}/root", self.init.pid))
            .join(here.strip_prefix("/").unwrap_or(&here));
        let directory = if inside.is_dir() { here } else { PathBuf::from("/") };
        let mut option = OsString::from("--wdns=");
        option.push(directory);
        command.arg(option);
        self.enter(&mut command);
        command.args(["setpriv", "--pdeathsig", "KILL", "--"]).arg(program);
        command
    }

    fn enter(&self, nsenter: &mut Command) {
        nsenter.arg("--target").arg(self.init.pid.to_string()).args(self.namespaces).arg("--");
    }
}

#[derive(Debug, Clone)]
pub struct Service {
    pub name: &'static str,
    pub log: PathBuf,
    pub argv: Vec<OsString>,
}

impl Service {
    fn pid_file(&self, place: &Place) -> PathBuf {
        place.run.join(format!("{}.pid", self.name))
    }

    /// Does nothing when it runs already; true if it was started.
    pub fn start(&self, place: &Place, exe: &Path) -> Result<bool> {
        if running(place, self.name).is_some() {
            return Ok(false);
        }
        create_dir(&place.run)?;
        if let Some(dir) = self.log.parent() {
            create_dir(dir)?;
        }
        let mut nsenter = Command::new("nsenter");
        place.enter(&mut nsenter);
        let status = nsenter
            .arg(exe)
            .arg("spawn")
            .arg("--pid-file")
            .arg(self.pid_file(place))
            .arg("--log")
            .arg(&self.log)
            .arg("--")
            .args(&self.argv)
            .stdin(Stdio::null())
            .status()
            .context("cannot run nsenter")?;
        if !status.success() {
            bail!("cannot start {} ({status}); see {}", self.name, self.log.display());
        }
        Ok(true)
    }
}

/// The service's process as the machine sees it.
pub fn running(place: &Place, name: &str) -> Option<Identity> {
    let text = fs::read_to_string(place.run.join(format!("{name}.pid"))).ok()?;
    let (pid, started) = text.trim().split_once(' ')?;
    process::from_inside(place.init, pid.parse().ok()?, started.parse().ok()?)
}

pub fn stop(place: &Place, name: &str) -> Result<bool> {
    let Some(process) = running(place, name) else { return Ok(false) };
    process.signal(Signal::TERM)?;
    process
        .wait_gone(Duration::from_secs(60))
        .with_context(|| format!("{name} does not stop; `kill` ends it at once"))?;
    Ok(true)
}

pub fn kill(place: &Place, name: &str) -> Result<bool> {
    let Some(process) = running(place, name) else { return Ok(false) };
    process.kill()?;
    Ok(true)
}

/// The inside half of `start`: runs in the namespaces, leaves the program to
/// the first process there, and notes which process it is.
pub fn spawn(pid_file: &Path, log: &Path, argv: &[OsString]) -> Result<()> {
    let [program, args @ ..] = argv else { bail!("nothing to start") };
    let out = open_log(log)?;
    let err = out.try_clone().context("cannot share the log file")?;
    // The program outlives whoever called, and no terminal signal reaches it.
    // (Fails where this process leads a session already, which is as good.)
    let _ = rustix::process::setsid();
    let child = Command::new(program)
        .args(args)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .with_context(|| format!("cannot start {}", Path::new(program).display()))?;
    let pid = i32::try_from(child.id()).context("the PID is out of range")?;
    // In the fabric's outer network /proc may be the machine's; there the
    // child is looked up under its own name for itself.
    let started =
        started_inside(pid).with_context(|| format!("{} ended at once", Path::new(program).display()))?;
    crate::state::write_atomically(pid_file, format!("{pid} {started}\n").as_bytes())
}

/// Start time of a child by its PID in this namespace, whichever PID
/// namespace the mounted /proc belongs to.
fn started_inside(pid: i32) -> Option<u64> {
    let me = std::process::id().to_string();
    let proc_self = fs::read_link("/proc/self").ok()?;
    if proc_self.as_os_str() == me.as_str() {
        return Identity::of(pid).map(|found| found.started);
    }
    let children = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| {
        let outer: i32 = entry.file_name().to_str()?.parse().ok()?;
        let status = fs::read_to_string(format!("/proc/{outer}/status")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().to_owned();
        (Path::new(&parent) == proc_self).then_some(outer)
    });
    children.filter_map(Identity::of).map(|found| found.started).next()
}

fn open_log(path: &Path) -> Result<File> {
    OpenOptions::new().create(true).append(true).open(path).with_context(|| path.display().to_string())
}

fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))
}
