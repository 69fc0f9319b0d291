//! A real Debian: systemd, cloud-init, sshd and the guest agent, installed
//! from packages as an administrator would have them. Boots by UEFI, also
//! with Secure Boot (shim, GRUB and kernel carry Debian's signatures), and
//! by BIOS. It has no user and no password: cloud-init makes what it is told.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::disk::{BOOT_PACKAGES, Disk};
use super::{digest, find_one, packages, tool};
use crate::progress;

const PACKAGES: &str = "systemd,systemd-sysv,systemd-resolved,dbus,udev,kmod,iproute2,iputils-ping,procps,\
    cloud-init,cloud-guest-utils,fdisk,netplan.io,qemu-guest-agent,openssh-server,sudo,ca-certificates,less,\
    linux-image-cloud-amd64,initramfs-tools,zstd,shim-signed,grub-efi-amd64-signed";

const ROOT_MIB: u64 = 1536;
const COMMAND_LINE: &str = "root=LABEL=root ro console=tty0 console=ttyS0 quiet";

/// Only what the machines of the lab have; found out by probing it would be
/// what the machine has that builds the image.
const INITRAMFS: &str = "MODULES=list\n";
const MODULES: &str = "virtio_pci\nvirtio_blk\nvirtio_scsi\nsd_mod\n";

const CLOUD: &str = "\
datasource_list: [NoCloud, None]
# The lab has no package mirror, and one host key is made sooner than three.
apt: {preserve_sources_list: true}
package_update: false
ssh_genkeytypes: [ed25519]
# Only C.UTF-8 is there; making another takes long.
locale: false
";

/// Interfaces that cloud-init was told nothing about.
const NETWORK: &str = "[Match]\nName=en* eth*\n\n[Network]\nDHCP=yes\n";

const WAIT_ONLINE: &str =
    "[Service]\nExecStart=\nExecStart=/lib/systemd/systemd-networkd-wait-online --any --timeout=30\n";

/// Chores of a machine that lives for years; under emulation they compete
/// with the boot.
const MASKED: [&str; 6] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
];

pub fn recipe() -> String {
    digest(&[include_str!("debian.rs"), include_str!("disk.rs")])
}

pub fn build(work: &Path) -> Result<()> {
    let root = work.join("root");
    install(work, &root)?;
    configure(&root)?;
    let tools = work.join("tools");
    packages::unpack(&BOOT_PACKAGES, work, &tools)?;
    let boot_files = boot_files(work, &root)?;
    progress("writing debian.qcow2");
    let image = work.join("root.ext4");
    let file = File::create(&image).with_context(|| image.display().to_string())?;
    file.set_len(ROOT_MIB << 20)?;
    drop(file);
    tool(
        "mke2fs",
        [
            "-q".as_ref(),
            "-F".as_ref(),
            "-t".as_ref(),
            "ext4".as_ref(),
            "-L".as_ref(),
            "root".as_ref(),
            "-d".as_ref(),
            root.as_os_str(),
            image.as_os_str(),
        ],
    )?;
    let disk = Disk { packages: &tools, boot_mib: 96, boot_files, root: Some(image) };
    disk.write(work, &work.join("debian.qcow2"))
}

fn install(work: &Path, root: &Path) -> Result<()> {
    let sources = packages::sources()?;
    let (initramfs, modules) = (work.join("initramfs.conf"), work.join("modules"));
    fs::write(&initramfs, INITRAMFS).context("cannot write initramfs.conf")?;
    fs::write(&modules, MODULES).context("cannot write modules")?;
    let log = work.with_file_name("debian.log");
    progress(&format!("installing Debian {} (one to two minutes; log: {})", sources.codename, log.display()));
    let errors = File::create(&log).with_context(|| log.display().to_string())?;
    let mut install = Command::new("mmdebstrap");
    install
        .args(["--mode=root", "--variant=minbase", &format!("--include={PACKAGES}")])
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .args(
            ["doc", "man", "locale", "info"]
                .map(|kind| format!("--dpkgopt=path-exclude=/usr/share/{kind}/*")),
        )
        .arg("--essential-hook=mkdir -p \"$1/etc/initramfs-tools/conf.d\"")
        .arg(format!(
            "--essential-hook=cp {} \"$1/etc/initramfs-tools/conf.d/lab.conf\"",
            initramfs.display()
        ))
        .arg(format!("--essential-hook=cp {} \"$1/etc/initramfs-tools/modules\"", modules.display()))
        .arg("--customize-hook=chroot \"$1\" systemctl -q enable systemd-networkd systemd-resolved")
        .arg(&sources.codename)
        .arg(root)
        .args(&sources.lines)
        .stdin(Stdio::null())
        .stdout(errors.try_clone()?)
        .stderr(errors);
    let status = install.status().context("cannot run mmdebstrap (tools/install-deps.sh installs it)")?;
    if !status.success() {
        bail!("mmdebstrap failed; see {}", log.display());
    }
    Ok(())
}

fn configure(root: &Path) -> Result<()> {
    for (path, text) in [
        ("etc/fstab", "LABEL=root / ext4 defaults 0 1\n"),
        ("etc/hostname", "debian\n"),
        ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
        // Empty: each guest makes its own at its first boot.
        ("etc/machine-id", ""),
        ("etc/cloud/cloud.cfg.d/90-lab.cfg", CLOUD),
        ("etc/systemd/network/99-dhcp.network", NETWORK),
        ("etc/systemd/system/systemd-networkd-wait-online.service.d/any.conf", WAIT_ONLINE),
    ] {
        let path = root.join(path);
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        }
        fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    for unit in MASKED {
        let path = root.join("etc/systemd/system").join(unit);
        let _ = fs::remove_file(&path);
        symlink("/dev/null", &path).with_context(|| path.display().to_string())?;
    }
    // Keys and identities made by installing are not for every guest to share.
    for name in ["ssh_host_rsa_key", "ssh_host_ecdsa_key", "ssh_host_ed25519_key"] {
        for suffix in ["", ".pub"] {
            let _ = fs::remove_file(root.join("etc/ssh").join(format!("{name}{suffix}")));
        }
    }
    let _ = fs::remove_file(root.join("var/lib/dbus/machine-id"));
    let _ = fs::remove_file(root.join("var/lib/systemd/random-seed"));
    Ok(())
}

/// The signed chain for UEFI at the path firmware looks at by itself, GRUB's
/// configuration where Debian's signed GRUB looks for it, and syslinux's.
fn boot_files(work: &Path, root: &Path) -> Result<Vec<(String, PathBuf)>> {
    let grub = work.join("grub.cfg");
    fs::write(
        &grub,
        format!(
            "set timeout=0\nmenuentry Debian {{\n  linux /vmlinuz {COMMAND_LINE}\n  initrd /initrd.img\n}}\n"
        ),
    )
    .context("cannot write grub.cfg")?;
    let syslinux = work.join("syslinux.cfg");
    fs::write(
        &syslinux,
        format!("DEFAULT debian\nPROMPT 0\nTIMEOUT 0\nLABEL debian\n  LINUX /vmlinuz\n  INITRD /initrd.img\n  APPEND {COMMAND_LINE}\n"),
    )
    .context("cannot write syslinux.cfg")?;
    let boot = root.join("boot");
    Ok(vec![
        ("EFI/BOOT/BOOTX64.EFI".into(), root.join("usr/lib/shim/shimx64.efi.signed")),
        ("EFI/BOOT/mmx64.efi".into(), root.join("usr/lib/shim/mmx64.efi.signed")),
        ("EFI/BOOT/grubx64.efi".into(), root.join("usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed")),
        ("EFI/debian/grub.cfg".into(), grub),
        ("vmlinuz".into(), find_one(&boot, "vmlinuz-")?),
        ("initrd.img".into(), find_one(&boot, "initrd.img-")?),
        ("syslinux.cfg".into(), syslinux),
    ])
}
