//! Builds guest images from Debian packages, without installing any of them
//! on the machine and without loop devices: a tiny guest that boots in
//! seconds, and a real Debian.

mod cpio;
mod debian;
mod disk;
mod packages;
mod tiny;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::progress;
use crate::state::{Lock, write_atomically};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Which {
    /// Debian's cloud kernel and busybox: vmlinuz, initrd.img and tiny.qcow2
    Tiny,
    /// A real Debian with systemd, cloud-init, sshd and the guest agent: debian.qcow2
    Debian,
}

/// Builds an image unless this recipe has made it already.
pub fn build(which: Which, out: &Path) -> Result<()> {
    let (name, recipe, outputs): (_, String, &[&str]) = match which {
        Which::Tiny => ("tiny", tiny::recipe(), &["vmlinuz", "initrd.img", "tiny.qcow2"]),
        Which::Debian => ("debian", debian::recipe(), &["debian.qcow2"]),
    };
    fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let out = out.canonicalize().with_context(|| out.display().to_string())?;
    let _lock = Lock::file(&out.join(format!(".{name}.lock")))?;
    let stamp = out.join(format!("{name}.stamp"));
    let made = outputs.iter().all(|output| out.join(output).exists());
    if made && fs::read_to_string(&stamp).is_ok_and(|text| text == recipe) {
        progress(&format!("{name} image in {} is up to date", out.display()));
        return Ok(());
    }
    let start = Instant::now();
    progress(&format!("building the {name} image in {}", out.display()));
    // Beside the outputs, so that they can be renamed into place.
    let work = Work::new(&out.join(format!(".{name}-work")))?;
    match which {
        Which::Tiny => tiny::build(&work.dir)?,
        Which::Debian => debian::build(&work.dir)?,
    }
    for output in outputs {
        let (from, to) = (work.dir.join(output), out.join(output));
        fs::rename(&from, &to).with_context(|| format!("cannot move {} into place", from.display()))?;
    }
    write_atomically(&stamp, recipe.as_bytes())?;
    progress(&format!("{name} image built in {} s", start.elapsed().as_secs()));
    Ok(())
}

/// A directory that goes with whoever made it, also when the build fails.
struct Work {
    dir: PathBuf,
}

impl Work {
    fn new(dir: &Path) -> Result<Self> {
        if dir.exists() {
            fs::remove_dir_all(dir).with_context(|| dir.display().to_string())?;
        }
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        Ok(Self { dir: dir.to_path_buf() })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Runs a build tool; what it said comes with the error if it fails.
fn tool<I, S>(program: impl AsRef<OsStr>, args: I) -> Result<String>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let program = program.as_ref();
    let name = program.to_string_lossy().into_owned();
    let output = Command::new(program)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {name} (tools/install-deps.sh installs it)"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{name} failed ({}): {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn find_one(dir: &Path, prefix: &str) -> Result<PathBuf> {
    fs::read_dir(dir)
        .with_context(|| dir.display().to_string())?
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .with_context(|| format!("{} has no {prefix}*", dir.display()))
}

/// Names a recipe by its content, so that a changed one is built anew.
fn digest(parts: &[&str]) -> String {
    let hash = parts
        .iter()
        .flat_map(|part| part.bytes().chain([0]))
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    format!("{hash:016x}\n")
}
