//! Finds out what really accelerates guests: boots a tiny guest under KVM and waits for its kernel's first words. The
//! device node proves nothing; on some machines it is there and every guest hangs. The answer holds for one boot.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
};
use vireo_crds::v1alpha1::Accelerator;

use crate::ledger::files;

const FORMAT: u32 = 1;
/// How long the probe guest may take.
const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    format_version: u32,
    accelerator: Accelerator,
    reason: String,
}

/// What accelerates guests on this machine, found out once per boot and kept in `run_dir`.
pub async fn accelerator(run_dir: &Path) -> Accelerator {
    let kept = run_dir.join("accelerator.json");
    if let Ok(Some(answer)) = files::read_json::<Answer>(&kept, FORMAT) {
        return answer.accelerator;
    }
    let (accelerator, reason) = find_out().await;
    tracing::info!(?accelerator, reason, "found out what accelerates guests");
    if let Err(error) = files::write_json(&kept, &Answer { format_version: FORMAT, accelerator, reason }) {
        tracing::warn!(%error, "the answer is not kept and will be found out again");
    }
    accelerator
}

async fn find_out() -> (Accelerator, String) {
    if !Path::new("/dev/kvm").exists() {
        return (Accelerator::Tcg, "there is no /dev/kvm".into());
    }
    let Some(qemu) = emulator() else { return (Accelerator::Tcg, "no QEMU to probe KVM with".into()) };
    let kernel = kernel();
    match tokio::time::timeout(DEADLINE, boots(&qemu, kernel.as_deref())).await {
        Ok(Ok(true)) => (Accelerator::Kvm, "a probe guest booted".into()),
        Ok(Ok(false)) => (Accelerator::Tcg, "a probe guest under KVM ended without booting".into()),
        Ok(Err(error)) => (Accelerator::Tcg, format!("the probe guest could not be run: {error}")),
        Err(_) => (
            Accelerator::Tcg,
            format!("a probe guest under KVM did not boot within {} s", DEADLINE.as_secs()),
        ),
    }
}

fn emulator() -> Option<PathBuf> {
    let names = [format!("/usr/bin/qemu-system-{}", std::env::consts::ARCH), "/usr/libexec/qemu-kvm".into()];
    names.into_iter().map(PathBuf::from).find(|path| path.exists())
}

/// A kernel of this machine, the running one first.
fn kernel() -> Option<PathBuf> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let running = [format!("/boot/vmlinuz-{release}"), format!("/lib/modules/{release}/vmlinuz")];
    let running = running.into_iter().map(PathBuf::from).find(|path| path.exists());
    running.or_else(|| {
        let any = std::fs::read_dir("/boot").ok()?.filter_map(Result::ok).map(|entry| entry.path());
        any.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")))
            .max()
    })
}

/// Boots a guest and waits for what only a booted one says: of a kernel that it looks for its root file system, of
/// firmware alone that it looks for a disk.
async fn boots(qemu: &Path, kernel: Option<&Path>) -> std::io::Result<bool> {
    let mut command = Command::new(qemu);
    command.args([
        "-accel",
        "kvm",
        "-m",
        "128",
        "-display",
        "none",
        "-nodefaults",
        "-no-reboot",
        "-serial",
        "stdio",
    ]);
    command.args(if std::env::consts::ARCH == "aarch64" {
        ["-machine", "virt", "-cpu", "host"]
    } else {
        ["-machine", "q35", "-cpu", "host"]
    });
    let signs: &[&str] = match kernel {
        Some(kernel) => {
            command.arg("-kernel").arg(kernel).args(["-append", "console=ttyS0 console=ttyAMA0 panic=-1"]);
            &["VFS: ", "Kernel panic", "Unable to mount root", "Run /"]
        }
        None => {
            command.args(["-device", "sga"]);
            &["No bootable device", "Booting from"]
        }
    };
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut guest = command.spawn()?;
    let said = says(&mut guest, signs).await;
    let _ = guest.start_kill();
    let _ = guest.wait().await;
    said
}

async fn says(guest: &mut Child, signs: &[&str]) -> std::io::Result<bool> {
    let Some(mut output) = guest.stdout.take() else { return Ok(false) };
    let mut text = String::new();
    let mut buffer = [0; 4096];
    loop {
        let read = output.read(&mut buffer).await?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { return Ok(false) };
        text.push_str(&String::from_utf8_lossy(bytes));
        if signs.iter().any(|sign| text.contains(sign)) {
            return Ok(true);
        }
    }
}
