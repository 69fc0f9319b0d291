//! The tiny guest: Debian's cloud kernel with busybox, a serial shell, DHCP,
//! a boot counter on its disk, the power button and the real guest agent.
//! It boots directly from kernel and initrd, and from a disk by UEFI or BIOS.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cpio::Archive;
use super::disk::{BOOT_PACKAGES, Disk};
use super::{digest, find_one, packages, tool};
use crate::progress;

/// Loading and unpacking are what booting takes, so only what may be needed.
const MODULES: [&str; 21] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
    "virtio_console",
    "virtio_balloon",
    "scsi_common",
    "scsi_mod",
    "virtio_scsi",
    "cdrom",
    "sr_mod",
    "isofs",
    "button",
    "evdev",
    "pvpanic-pci",
    // Loaded by whoever wants to see firmware variables.
    "efivarfs",
];

const PVPANIC: [&str; 2] = ["pvpanic", "pvpanic-mmio"];

/// Commands the guest's scripts use; it makes the others itself, later.
const APPLETS: [&str; 22] = [
    "sh", "mount", "hostname", "insmod", "cat", "dd", "tr", "printf", "ip", "mkdir", "setsid", "cttyhack",
    "tar", "gzip", "rm", "sleep", "sync", "udhcpc", "echo", "ls", "dmesg", "ps",
];

const SCRIPTS: [(&str, &str); 9] = [
    ("init", include_str!("tiny/init")),
    ("sbin/dhcp", include_str!("tiny/dhcp")),
    ("etc/udhcpc", include_str!("tiny/udhcpc")),
    ("sbin/power-button", include_str!("tiny/power-button")),
    ("sbin/agent", include_str!("tiny/agent")),
    ("sbin/poweroff", include_str!("tiny/poweroff")),
    ("sbin/reboot", include_str!("tiny/reboot")),
    ("sbin/halt", include_str!("tiny/poweroff")),
    ("sbin/shutdown", include_str!("tiny/shutdown")),
];

const FILES: [(&str, &str); 4] = [
    ("etc/profile", include_str!("tiny/profile")),
    ("etc/os-release", include_str!("tiny/os-release")),
    ("etc/passwd", "root:x:0:0:root:/:/bin/sh\n"),
    ("etc/group", "root:x:0:\n"),
];

const COMMAND_LINE: &str = "console=ttyS0 quiet";

const SYSLINUX: &str = "DEFAULT tiny\nPROMPT 0\nTIMEOUT 0\nLABEL tiny\n  LINUX /vmlinuz\n  INITRD /initrd.img\n  APPEND console=ttyS0 quiet\n";

pub fn recipe() -> String {
    let mut parts = vec![include_str!("tiny.rs"), include_str!("disk.rs"), include_str!("cpio.rs")];
    parts.extend(SCRIPTS.iter().chain(&FILES).map(|(_, text)| *text));
    digest(&parts)
}

pub fn build(work: &Path) -> Result<()> {
    let root = work.join("root");
    let kernel = packages::cloud_kernel()?;
    progress(&format!("fetching {kernel}, busybox and what else the tiny guest needs"));
    let mut names = vec![kernel.as_str(), "busybox-static", "qemu-guest-agent", "systemd-boot-efi"];
    names.extend(BOOT_PACKAGES);
    packages::unpack(&names, work, &root)?;

    let vmlinuz = find_one(&root.join("boot"), "vmlinuz-")?;
    fs::copy(&vmlinuz, work.join("vmlinuz")).context("cannot copy the kernel")?;
    fs::set_permissions(work.join("vmlinuz"), fs::Permissions::from_mode(0o644))?;
    fs::write(work.join("initrd.img"), initrd(work, &root)?).context("cannot write the initrd")?;
    let uki = unified_kernel(work, &root)?;
    let config = work.join("syslinux.cfg");
    fs::write(&config, SYSLINUX).context("cannot write syslinux.cfg")?;
    let disk = Disk {
        packages: &root,
        boot_mib: 60,
        boot_files: vec![
            ("EFI/BOOT/BOOTX64.EFI".into(), uki),
            ("vmlinuz".into(), work.join("vmlinuz")),
            ("initrd.img".into(), work.join("initrd.img")),
            ("syslinux.cfg".into(), config),
        ],
        root: None,
    };
    disk.write(work, &work.join("tiny.qcow2"))
}

fn initrd(work: &Path, root: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.device("dev/console", 5, 1);
    archive.device("dev/null", 1, 3);
    for name in ["proc", "sys", "tmp", "run", "var", "usr/sbin", "lib"] {
        archive.directory(name);
    }
    archive.file("bin/busybox", 0o755, &read(&root.join("bin/busybox"))?);
    for name in APPLETS {
        archive.link(&format!("bin/{name}"), "busybox");
    }
    let modules = find_one(&root.join("lib/modules"), "")?;
    for name in MODULES.iter().chain(&PVPANIC) {
        let path = find_module(&modules, name)?;
        archive.file(&format!("modules/{name}.ko"), 0o644, &read(&path)?);
    }
    for (path, text) in SCRIPTS {
        archive.file(path, 0o755, text.as_bytes());
    }
    for (path, text) in FILES {
        archive.file(path, 0o644, text.as_bytes());
    }
    // Compressed by itself: only guests that have an agent's channel pay for
    // unpacking it, and only after their banner.
    archive.file("agent.tar.gz", 0o644, &agent(work, root)?);
    Ok(archive.finish())
}

/// The guest agent with the libraries it needs.
fn agent(work: &Path, root: &Path) -> Result<Vec<u8>> {
    let program = root.join("usr/sbin/qemu-ga");
    let tree = work.join("agent");
    let put = |from: &Path, inside: &Path| -> Result<()> {
        let target = tree.join(inside.strip_prefix("/").unwrap_or(inside));
        if let Some(dir) = target.parent() {
            fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        }
        fs::copy(from, &target).with_context(|| format!("cannot copy {}", from.display()))?;
        Ok(())
    };
    put(&program, Path::new("/usr/sbin/qemu-ga"))?;
    for library in packages::libraries(&program)? {
        put(&library, &library)?;
    }
    let out = work.join("agent.tar.gz");
    tool(
        "tar",
        [
            "-czf".as_ref(),
            out.as_os_str(),
            "--owner=0".as_ref(),
            "--group=0".as_ref(),
            "-C".as_ref(),
            tree.as_os_str(),
            ".".as_ref(),
        ],
    )?;
    read(&out)
}

/// Kernel, initrd and command line as one UEFI program.
fn unified_kernel(work: &Path, root: &Path) -> Result<PathBuf> {
    let stub = root.join("usr/lib/systemd/boot/efi/linuxx64.efi.stub");
    let (command_line, out) = (work.join("cmdline"), work.join("tiny.efi"));
    fs::write(&command_line, COMMAND_LINE).context("cannot write the command line")?;
    let os_release = work.join("os-release");
    fs::write(&os_release, include_str!("tiny/os-release")).context("cannot write os-release")?;
    // Close together, since firmware makes room for the gaps, too; the stub
    // itself lies below all of them.
    let kernel = work.join("vmlinuz");
    let kernel_at = 0x10_0000;
    let kernel_size = fs::metadata(&kernel).with_context(|| kernel.display().to_string())?.len();
    let initrd_at = (kernel_at + kernel_size).next_multiple_of(0x10_0000);
    let sections = [
        (".osrel", os_release, 0x20_000),
        (".cmdline", command_line, 0x30_000),
        (".linux", kernel, kernel_at),
        (".initrd", work.join("initrd.img"), initrd_at),
    ];
    let mut args = Vec::new();
    for (name, path, address) in sections {
        args.push("--add-section".into());
        args.push(format!("{name}={}", path.display()));
        args.push("--change-section-vma".into());
        args.push(format!("{name}={address:#x}"));
    }
    args.push(stub.display().to_string());
    args.push(out.display().to_string());
    tool("objcopy", args)?;
    Ok(out)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}

fn find_module(dir: &Path, name: &str) -> Result<PathBuf> {
    fn search(dir: &Path, file: &str) -> Option<PathBuf> {
        fs::read_dir(dir).ok()?.flatten().find_map(|entry| {
            let path = entry.path();
            if path.is_dir() { search(&path, file) } else { (entry.file_name() == file).then_some(path) }
        })
    }
    search(dir, &format!("{name}.ko")).with_context(|| format!("the kernel package has no module {name}"))
}
