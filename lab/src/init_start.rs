//! Starts the first process of a fabric's or a host's namespaces and waits
//! until it says that everything inside is in place.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::layout::{HostLayout, Layout};
use crate::process::Identity;

const DEADLINE: Duration = Duration::from_secs(30);

pub fn fabric(layout: &Layout) -> Result<Identity> {
    let log = layout.logs().join("fabric.log");
    start(layout, &["--mount", "--net", "--pid"], "fabric-init", &[], &log).context("cannot start the fabric")
}

pub fn host(layout: &Layout, host: &HostLayout, spec: &Path) -> Result<Identity> {
    let log = host.logs.join("init.log");
    let spec = spec.to_string_lossy();
    let args = ["--name", &host.name, "--spec", &spec];
    start(layout, &["--mount", "--net", "--uts", "--ipc", "--pid"], "host-init", &args, &log)
        .with_context(|| format!("cannot power {} on", host.name))
}

fn start(layout: &Layout, namespaces: &[&str], sub: &str, args: &[&str], log: &Path) -> Result<Identity> {
    let errors = File::create(log).with_context(|| log.display().to_string())?;
    // A session of its own, so that neither Ctrl-C nor a closed terminal
    // reaches it; the namespaces die with it (--kill-child), and with them
    // everything inside.
    let mut child = Command::new("setsid")
        .arg("unshare")
        .args(namespaces)
        .args(["--fork", "--kill-child", "--"])
        .arg(&layout.exe)
        .args([sub, "--lab"])
        .arg(&layout.dir)
        .args(args)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .context("cannot run setsid and unshare (package util-linux)")?;
    let out = child.stdout.take().context("no output to wait for")?;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(out).read_line(&mut line);
        let _ = sender.send(read.map(|_| line));
    });
    let line = match receiver.recv_timeout(DEADLINE) {
        Ok(line) => line.context("cannot read from the new namespaces")?,
        Err(_) => bail!("nothing is ready after {DEADLINE:?}; see {}", log.display()),
    };
    let pid = line.trim().strip_prefix("ready ").and_then(|pid| pid.parse().ok());
    let Some(pid) = pid else {
        let why = std::fs::read_to_string(log).unwrap_or_default();
        bail!("{}", if why.trim().is_empty() { "it ended without a word" } else { why.trim() });
    };
    Identity::of(pid).context("the first process ended at once")
}
