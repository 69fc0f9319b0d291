//! Builds the root file system of one host: the machine's own files seen
//! through an overlay whose writes die with the host's power, its own /dev,
//! /proc, /sys, /run and /tmp, and binds for the little that is kept.
//! Nothing written inside a host reaches the machine except through a bind.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, unmount};
use uuid::Uuid;

use crate::init::HostSpec;

/// Built here because every host replaces it anyway, so that no file anybody
/// may need is hidden while the new root is put together.
const STAGE: &str = "/sys";

pub fn enter(spec: &HostSpec) -> Result<()> {
    let extra = machine_mounts()?;
    let device_kvm = fs::metadata("/dev/kvm").ok().map(|kvm| kvm.rdev());
    tmpfs(Path::new(STAGE), "mode=0755")?;
    let stage = Path::new(STAGE);
    let new = stage.join("root");
    for name in ["upper", "work", "root"] {
        create_dir(&stage.join(name))?;
    }
    let options = format!("lowerdir=/,upperdir={STAGE}/upper,workdir={STAGE}/work\0");
    let options = std::ffi::CStr::from_bytes_with_nul(options.as_bytes())?;
    mount("overlay", &new, "overlay", MountFlags::empty(), Some(options))
        .context("cannot mount an overlay over the machine's root (does this kernel have overlayfs?)")?;
    for path in extra {
        let target = inside(&new, &path);
        if target.is_dir() {
            mount_bind(&path, &target).with_context(|| format!("cannot bind {}", path.display()))?;
        }
    }

    special(&new, "proc", "proc")?;
    special(&new, "sys", "sysfs")?;
    devices(&new.join("dev"), device_kvm.filter(|_| spec.kvm))?;
    tmpfs(&new.join("run"), "mode=0755")?;
    create_dir(&new.join("run/lock"))?;
    tmpfs(&new.join("tmp"), "mode=1777")?;
    over(&new, "proc/sys/kernel/random/boot_id", &Uuid::new_v4().to_string())?;
    over(&new, "sys/devices/virtual/dmi/id/product_uuid", &spec.uuid)?;

    for (source, target) in &spec.binds {
        let target = inside(&new, target);
        create_dir(&target)?;
        mount_bind_recursive(source, &target)
            .with_context(|| format!("cannot bind {} to {}", source.display(), target.display()))?;
    }
    write(&new, "etc/hostname", &format!("{}\n", spec.hostname))?;
    write(&new, "etc/machine-id", &format!("{}\n", spec.machine_id))?;
    write(&new, "etc/hosts", &spec.hosts_file)?;
    write(&new, "etc/resolv.conf", "# There is no name server in the lab.\n")?;

    // Both at the same place, which leaves the old root on top of the new
    // one, to be unmounted; so no directory is needed to put it into.
    rustix::process::chdir(&new).context("cannot enter the new root")?;
    rustix::process::pivot_root(".", ".").context("cannot switch to the new root")?;
    unmount(".", UnmountFlags::DETACH).context("cannot leave the old root")?;
    rustix::process::chdir("/").context("cannot enter /")
}

/// Mounts of the machine that carry files, other than its root; an overlay
/// shows only the one file system it lies over.
fn machine_mounts() -> Result<Vec<PathBuf>> {
    let path = "/proc/self/mountinfo";
    let text = fs::read_to_string(path).context(path)?;
    Ok(parse_mounts(&text))
}

fn parse_mounts(mountinfo: &str) -> Vec<PathBuf> {
    const HOLD_FILES: [&str; 11] =
        ["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "9p", "virtiofs", "nfs", "nfs4"];
    mountinfo
        .lines()
        .filter_map(|line| {
            let (mount, file_system) = line.split_once(" - ")?;
            let kind = file_system.split(' ').next()?;
            let point = mount.split(' ').nth(4)?.replace("\\040", " ");
            let own = ["/", "/tmp", "/run", "/dev", "/proc", "/sys"].contains(&point.as_str())
                || ["/run/", "/dev/", "/proc/", "/sys/"].iter().any(|prefix| point.starts_with(prefix));
            (!own && HOLD_FILES.contains(&kind)).then(|| PathBuf::from(point))
        })
        .collect()
}

fn devices(dev: &Path, kvm: Option<u64>) -> Result<()> {
    tmpfs(dev, "mode=0755")?;
    let nodes =
        [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
    for (name, major, minor) in nodes {
        node(&dev.join(name), makedev(major, minor), 0o666)?;
    }
    create_dir(&dev.join("net"))?;
    node(&dev.join("net/tun"), makedev(10, 200), 0o666)?;
    if let Some(device) = kvm {
        node(&dev.join("kvm"), device, 0o666)?;
    }
    let (pts, shm) = (dev.join("pts"), dev.join("shm"));
    create_dir(&pts)?;
    mount(
        "devpts",
        &pts,
        "devpts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        Some(c"newinstance,mode=0620,ptmxmode=0666,gid=5"),
    )
    .context("cannot mount /dev/pts")?;
    create_dir(&shm)?;
    tmpfs(&shm, "mode=1777")?;
    let links = [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ];
    for (name, target) in links {
        symlink(target, dev.join(name)).with_context(|| format!("/dev/{name}"))?;
    }
    Ok(())
}

fn node(path: &Path, device: u64, mode: u32) -> Result<()> {
    mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(mode), device)
        .with_context(|| format!("cannot make {}", path.display()))?;
    // The process's umask took part in the above.
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).with_context(|| path.display().to_string())
}

/// Shows another text in place of one of the kernel's, which all hosts would
/// share: the boot id, new at every power-on, and the firmware's UUID.
fn over(new: &Path, name: &str, text: &str) -> Result<()> {
    let target = new.join(name);
    if !target.exists() {
        return Ok(());
    }
    let file =
        new.join("run").join(format!("vireo-lab-{}", target.file_name().unwrap_or_default().display()));
    fs::write(&file, format!("{text}\n")).with_context(|| file.display().to_string())?;
    mount_bind(&file, &target).with_context(|| format!("cannot put another text over /{name}"))
}

fn special(new: &Path, name: &str, kind: &str) -> Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(kind, new.join(name), kind, flags, None).with_context(|| format!("cannot mount /{name}"))
}

fn tmpfs(target: &Path, options: &str) -> Result<()> {
    let options = std::ffi::CString::new(options)?;
    mount("tmpfs", target, "tmpfs", MountFlags::NOSUID, Some(options.as_c_str()))
        .with_context(|| format!("cannot mount a tmpfs on {}", target.display()))
}

fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))
}

fn write(new: &Path, name: &str, content: &str) -> Result<()> {
    let path = new.join(name);
    // Often a link into /run; what it points at is not ours to fill.
    if path.is_symlink() {
        fs::remove_file(&path).with_context(|| path.display().to_string())?;
    }
    fs::write(&path, content).with_context(|| path.display().to_string())
}

fn inside(new: &Path, path: &Path) -> PathBuf {
    new.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_with_files_are_shown_again() {
        let text = "\
27 1 254:0 / / rw - ext4 /dev/vda rw
28 27 254:1 / /home rw shared:1 - ext4 /dev/vdb rw
29 27 0:5 / /proc rw - proc proc rw
30 27 254:2 / /with\\040space rw - xfs /dev/vdc rw
31 27 0:9 / /mnt/x rw - tmpfs none rw
32 27 254:3 / /run/user/1/doc rw - ext4 /dev/vdd rw
";
        assert_eq!(parse_mounts(text), [PathBuf::from("/home"), PathBuf::from("/with space")]);
    }
}
