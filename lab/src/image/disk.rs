//! Puts a bootable disk together from parts, in plain files: one FAT
//! partition that both UEFI (a loader at the removable path) and BIOS
//! (syslinux) start from, and perhaps a second partition with a root.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::tool;

const MIB: u64 = 1 << 20;

/// Where the first partition starts; the gap before it is free.
const START: u64 = MIB;

/// Packages whose files `Disk::write` needs, unpacked.
pub const BOOT_PACKAGES: [&str; 2] = ["syslinux", "syslinux-common"];

#[derive(Debug)]
pub struct Disk<'a> {
    /// Where `BOOT_PACKAGES` are unpacked.
    pub packages: &'a Path,
    pub boot_mib: u64,
    /// Files of the boot partition: path in it, file to copy.
    pub boot_files: Vec<(String, PathBuf)>,
    /// File system image of a second partition.
    pub root: Option<PathBuf>,
}

impl Disk<'_> {
    /// Writes the disk as qcow2.
    pub fn write(&self, work: &Path, out: &Path) -> Result<()> {
        let boot = self.boot_partition(work)?;
        let root_size = match &self.root {
            Some(root) => fs::metadata(root).with_context(|| root.display().to_string())?.len(),
            None => 0,
        };
        let raw = work.join("disk.raw");
        let mut disk = File::create(&raw).with_context(|| raw.display().to_string())?;
        let boot_size = self.boot_mib * MIB;
        // Room at the end for GPT's second header.
        disk.set_len(START + boot_size + root_size + MIB)?;
        self.partition(&raw, root_size)?;
        self.master_boot_record(&raw)?;
        copy_sparse(&boot, &mut disk, START)?;
        if let Some(root) = &self.root {
            copy_sparse(root, &mut disk, START + boot_size)?;
        }
        drop(disk);
        tool(
            "qemu-img",
            [
                "convert".as_ref(),
                "-f".as_ref(),
                "raw".as_ref(),
                "-O".as_ref(),
                "qcow2".as_ref(),
                raw.as_os_str(),
                out.as_os_str(),
            ],
        )?;
        fs::remove_file(&raw).with_context(|| raw.display().to_string())
    }

    /// DOS partitions for a lone boot partition (BIOS and UEFI both take
    /// them), GPT where there is a root, as real installations have it.
    fn partition(&self, raw: &Path, root_size: u64) -> Result<()> {
        let boot = self.boot_mib;
        let script = if self.root.is_none() {
            format!("label: dos\nstart=1MiB, size={boot}MiB, type=ef, bootable\n")
        } else {
            format!(
                "label: gpt\nstart=1MiB, size={boot}MiB, type=U, attrs=LegacyBIOSBootable, name=boot\n\
                 start={}MiB, size={}MiB, type=L, name=root\n",
                boot + 1,
                root_size / MIB
            )
        };
        let mut child = Command::new("sfdisk")
            .arg("-q")
            .arg(raw)
            .stdin(Stdio::piped())
            .spawn()
            .context("cannot run sfdisk (tools/install-deps.sh installs it)")?;
        child.stdin.take().context("sfdisk has no input")?.write_all(script.as_bytes())?;
        if !child.wait()?.success() {
            bail!("sfdisk failed on:\n{script}");
        }
        Ok(())
    }

    /// The code BIOS runs: it starts the active partition.
    fn master_boot_record(&self, raw: &Path) -> Result<()> {
        let name = if self.root.is_none() { "mbr.bin" } else { "gptmbr.bin" };
        let path = self.packages.join("usr/lib/SYSLINUX").join(name);
        let code = fs::read(&path).with_context(|| path.display().to_string())?;
        // What follows in that sector is the partition table.
        let Some(code) = code.get(..code.len().min(440)) else { bail!("{name} is empty") };
        let mut disk = OpenOptions::new().write(true).open(raw).with_context(|| raw.display().to_string())?;
        disk.write_all(code).with_context(|| raw.display().to_string())
    }

    fn boot_partition(&self, work: &Path) -> Result<PathBuf> {
        let image = work.join("boot.fat");
        let file = File::create(&image).with_context(|| image.display().to_string())?;
        file.set_len(self.boot_mib * MIB)?;
        drop(file);
        let hidden = (START / 512).to_string();
        tool(
            "mkfs.vfat",
            [
                "-F".as_ref(),
                "32".as_ref(),
                "-s".as_ref(),
                "1".as_ref(),
                "-n".as_ref(),
                "BOOT".as_ref(),
                "-h".as_ref(),
                hidden.as_ref(),
                image.as_os_str(),
            ],
        )?;
        let mut directories: Vec<String> = Vec::new();
        for (path, source) in &self.boot_files {
            let parents = path.match_indices('/').filter_map(|(at, _)| path.get(..at));
            for parent in parents {
                if !directories.iter().any(|known| known == parent) {
                    tool("mmd", ["-i".as_ref(), image.as_os_str(), format!("::/{parent}").as_ref()])?;
                    directories.push(parent.to_owned());
                }
            }
            let target: OsString = format!("::/{path}").into();
            tool("mcopy", ["-i".as_ref(), image.as_os_str(), source.as_os_str(), &target])?;
        }
        let c32 = self.packages.join("usr/lib/syslinux/modules/bios/ldlinux.c32");
        tool("mcopy", ["-i".as_ref(), image.as_os_str(), c32.as_os_str(), "::/ldlinux.c32".as_ref()])?;
        tool(self.packages.join("usr/bin/syslinux"), ["--install".as_ref(), image.as_os_str()])?;
        Ok(image)
    }
}

/// Copies without writing what is zero, so that images stay small.
fn copy_sparse(from: &Path, to: &mut File, offset: u64) -> Result<()> {
    let mut source = File::open(from).with_context(|| from.display().to_string())?;
    let mut buffer = vec![0_u8; 1 << 16];
    let mut at = offset;
    loop {
        let read = source.read(&mut buffer)?;
        let Some(data) = buffer.get(..read).filter(|data| !data.is_empty()) else { return Ok(()) };
        if data.iter().any(|byte| *byte != 0) {
            to.seek(SeekFrom::Start(at))?;
            to.write_all(data)?;
        }
        at += read as u64;
    }
}
