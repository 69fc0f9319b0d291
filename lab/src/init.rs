//! The first process of the fabric's and of each host's PID namespace. Makes
//! the namespace a place of its own, says so, and from then on only reaps:
//! without it killed QEMUs stay as zombies, which libvirt takes for alive.
//! Decides nothing; when it is killed the kernel kills everything inside.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::process::WaitOptions;
use serde::{Deserialize, Serialize};

use crate::root;

/// What a host is made of, handed over as a file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostSpec {
    pub hostname: String,
    pub machine_id: String,
    /// What firmware calls the machine.
    pub uuid: String,
    /// `/etc/hosts` of all hosts of the lab.
    pub hosts_file: String,
    pub kvm: bool,
    /// Directories of the machine shown at another path in the host.
    pub binds: Vec<(PathBuf, PathBuf)>,
}

pub fn host(spec: &Path) -> Result<()> {
    let me = outer_pid()?;
    let text = fs::read_to_string(spec).with_context(|| spec.display().to_string())?;
    let spec: HostSpec = serde_json::from_str(&text).with_context(|| spec.display().to_string())?;
    detach()?;
    root::enter(&spec)?;
    rustix::system::sethostname(spec.hostname.as_bytes()).context("cannot set the host name")?;
    local_network()?;
    serve(me)
}

pub fn fabric() -> Result<()> {
    let me = outer_pid()?;
    detach()?;
    // The machine's own view of processes and network devices must not be
    // what the servers in the fabric see.
    unmount("/sys", UnmountFlags::DETACH).context("cannot unmount /sys")?;
    mount("sysfs", "/sys", "sysfs", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None)
        .context("cannot mount /sys")?;
    mount("proc", "/proc", "proc", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None)
        .context("cannot mount /proc")?;
    local_network()?;
    serve(me)
}

/// The PID by which the machine knows this process: /proc is still the
/// machine's here.
fn outer_pid() -> Result<String> {
    if std::process::id() != 1 {
        bail!("this is the first process of a lab's namespaces; only `vireo-lab up` starts it");
    }
    let link = fs::read_link("/proc/self").context("/proc/self")?;
    Ok(link.display().to_string())
}

/// No signal of the terminal reaches a lab, and no mount leaves it.
fn detach() -> Result<()> {
    rustix::process::setsid().context("cannot leave the terminal's session")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("cannot make mounts private")
}

fn local_network() -> Result<()> {
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("cannot run ip")?;
    if !status.success() {
        bail!("cannot bring up the loopback interface");
    }
    // Stock kernels do not pass bridged frames through iptables unless asked;
    // where the code is built in, new namespaces start with it on.
    for name in ["iptables", "ip6tables", "arptables"] {
        let path = format!("/proc/sys/net/bridge/bridge-nf-call-{name}");
        if Path::new(&path).exists() {
            fs::write(&path, "0").with_context(|| path.clone())?;
        }
    }
    Ok(())
}

fn serve(outer_pid: String) -> Result<()> {
    let mut out = std::io::stdout();
    // Whoever waited may be gone by now; the namespace is sound all the same.
    let _ = writeln!(out, "ready {outer_pid}").and_then(|()| out.flush());
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(_) => {}
            // No child at the moment: orphans of the namespace become ours
            // without notice, and waiting can only begin once there is one.
            Err(rustix::io::Errno::CHILD) => std::thread::sleep(Duration::from_millis(20)),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e).context("cannot wait for children"),
        }
    }
}
