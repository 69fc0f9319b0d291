//! Decides whether hosts of this machine may use KVM. A device node is no
//! proof: on some machines /dev/kvm exists, makes virtual machines, and then
//! hangs every guest. Only a guest that boots within its deadline is.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::layout::Layout;
use crate::process::wait_until;
use crate::state::{machine_boot, write_atomically};

const DEADLINE: Duration = Duration::from_secs(15);

/// What the tiny guest prints once its user space runs.
const ALIVE: &str = "vireo-guest";

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Verdict {
    machine_boot: String,
    kvm: bool,
}

/// Probes once per boot of the machine; needs the tiny guest to be built.
pub fn usable(layout: &Layout) -> Result<bool> {
    let (kernel, initrd) = (layout.images.join("vmlinuz"), layout.images.join("initrd.img"));
    if !Path::new("/dev/kvm").exists() || !kernel.exists() || !initrd.exists() {
        return Ok(false);
    }
    let boot = machine_boot()?;
    let path = layout.images.join("kvm-probe.json");
    let known = fs::read_to_string(&path).ok().and_then(|text| serde_json::from_str::<Verdict>(&text).ok());
    if let Some(verdict) = known.filter(|verdict| verdict.machine_boot == boot) {
        return Ok(verdict.kvm);
    }
    let kvm = probe(&kernel, &initrd, &layout.images.join("kvm-probe.log"))?;
    let verdict = Verdict { machine_boot: boot, kvm };
    write_atomically(&path, serde_json::to_string(&verdict)?.as_bytes())?;
    Ok(kvm)
}

fn probe(kernel: &Path, initrd: &Path, console: &Path) -> Result<bool> {
    let errors = File::create(console.with_extension("err")).context("cannot write the probe's log")?;
    let mut guest = Command::new("qemu-system-x86_64")
        .args([
            "-accel",
            "kvm",
            "-machine",
            "q35",
            "-cpu",
            "host",
            "-m",
            "256",
            "-nodefaults",
            "-no-user-config",
        ])
        .args(["-display", "none", "-no-reboot", "-append", "console=ttyS0 quiet panic=-1"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        .spawn()
        .context("cannot run qemu-system-x86_64 (package qemu-system-x86)")?;
    let mut alive = false;
    let waited = wait_until(DEADLINE, || {
        alive = fs::read(console).is_ok_and(|text| String::from_utf8_lossy(&text).contains(ALIVE));
        alive || guest.try_wait().is_ok_and(|status| status.is_some())
    });
    let _ = guest.kill();
    guest.wait().context("cannot end the probe guest")?;
    Ok(waited.is_ok() && alive)
}
