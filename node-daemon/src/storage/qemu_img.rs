//! Runs qemu-img confined: no capability but the one to reach files of other users, no new privileges, bounded
//! memory, processor time, file size and run time, no environment. The format is always named, never probed.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
};

use super::error::StorageError;

const TOOL: &str = "qemu-img";
/// Address space; its coroutines and threads reserve much more than they use.
const ADDRESS_SPACE: u64 = 4 << 30;
const OPEN_FILES: u32 = 256;
const BASE_SECONDS: u64 = 300;
/// A slow disk still writes this much in a second.
const SLOWEST_BYTES_PER_SECOND: u64 = 5 << 20;
const LONGEST_MESSAGE: usize = 2000;

/// How an image is rewritten.
#[derive(Debug, Clone, Copy)]
pub struct ConvertWish {
    /// Size it may have at most.
    pub size: u64,
    /// Take its space at once.
    pub preallocated: bool,
}

/// Runs qemu-img.
#[derive(Debug, Clone)]
pub struct QemuImg {
    program: PathBuf,
}

impl QemuImg {
    /// Runs this program.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into() }
    }

    /// Makes an empty qcow2 image at a path that must be free.
    pub async fn create(&self, path: &Path, size: u64, preallocated: bool) -> Result<(), StorageError> {
        let mut args = words(&["create", "-q", "-f", "qcow2"]);
        if preallocated {
            args.extend(words(&["-o", "preallocation=falloc"]));
        }
        args.extend([path.into(), size.to_string().into()]);
        self.run(args, size, |_| {}).await
    }

    /// Makes an empty layer over an image, both named with their format.
    pub async fn create_layer(
        &self,
        path: &Path,
        base: &Path,
        base_format: &str,
    ) -> Result<(), StorageError> {
        let mut args = words(&["create", "-q", "-f", "qcow2", "-F", base_format, "-b"]);
        args.extend([base.into(), path.into()]);
        self.run(args, 0, |_| {}).await
    }

    /// Writes the content of one image into a new one.
    pub async fn convert(
        &self,
        from: (&Path, &str),
        to: (&Path, &str),
        wish: ConvertWish,
        progress: impl Fn(u8),
    ) -> Result<(), StorageError> {
        let mut args = words(&["convert", "-p", "-f", from.1, "-O", to.1]);
        if wish.preallocated {
            args.extend(words(&["-o", "preallocation=falloc"]));
        }
        args.extend([from.0.into(), to.0.into()]);
        self.run(args, wish.size, progress).await
    }

    /// Grows an image.
    pub async fn grow(
        &self,
        path: &Path,
        format: &str,
        size: u64,
        preallocated: bool,
    ) -> Result<(), StorageError> {
        let mut args = words(&["resize", "-q", "-f", format]);
        if preallocated {
            args.extend(words(&["--preallocation=falloc"]));
        }
        args.extend([path.into(), size.to_string().into()]);
        self.run(args, size, |_| {}).await
    }

    /// Runs one command that may write images of up to `size` bytes.
    async fn run(&self, args: Vec<OsString>, size: u64, progress: impl Fn(u8)) -> Result<(), StorageError> {
        let seconds = BASE_SECONDS.saturating_add(size / SLOWEST_BYTES_PER_SECOND);
        let mut command = self.confined(size, seconds);
        command.args(args);
        let fail = |message: String| StorageError::Tool { tool: TOOL, message };
        let mut child = command.spawn().map_err(|e| fail(format!("cannot be run: {e}")))?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(fail("has no output".into()));
        };
        let work = async {
            let ((), message) = tokio::join!(watch(stdout, progress), first_bytes(stderr));
            (child.wait().await, message)
        };
        match tokio::time::timeout(Duration::from_secs(seconds), work).await {
            Err(_) => Err(fail(format!("did not end within {seconds} s and was stopped"))),
            Ok((Err(error), _)) => Err(fail(error.to_string())),
            Ok((Ok(status), _)) if status.success() => Ok(()),
            Ok((Ok(status), message)) if message.is_empty() => Err(fail(status.to_string())),
            // Another process holds the image lock.
            Ok((Ok(_), message)) if message.contains("Failed to get") && message.contains("lock") => {
                Err(StorageError::InUse(message))
            }
            Ok((Ok(_), message)) => Err(fail(message)),
        }
    }

    fn confined(&self, size: u64, seconds: u64) -> Command {
        let longest_file = size.saturating_add(size / 8).saturating_add(64 << 20);
        let mut command = Command::new("prlimit");
        command
            .arg("--core=0")
            .arg(format!("--as={ADDRESS_SPACE}"))
            .arg(format!("--nofile={OPEN_FILES}"))
            .arg(format!("--fsize={longest_file}"))
            .arg(format!("--cpu={seconds}"))
            .args(["--", "setpriv", "--no-new-privs"]);
        if rustix::process::geteuid().is_root() {
            command.args(["--inh-caps=-all", "--bounding-set=-all,+dac_override"]);
        }
        command
            .arg(&self.program)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(|word| OsStr::new(word).to_owned()).collect()
}

/// Reads `(12.34/100%)` marks until the end.
async fn watch(mut output: impl AsyncRead + Unpin, progress: impl Fn(u8)) {
    let mut buffer = [0; 256];
    loop {
        let read = match output.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => read,
        };
        let text = String::from_utf8_lossy(buffer.get(..read).unwrap_or_default());
        let mark = text
            .rsplit('(')
            .next()
            .and_then(|rest| rest.split(['.', '/']).next())
            .and_then(|number| number.trim().parse().ok());
        if let Some(percent) = mark {
            progress(percent);
        }
    }
}

/// The beginning of what a tool says; the rest is read and dropped so that the tool never waits.
async fn first_bytes(mut output: impl AsyncRead + Unpin) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = output.read(&mut buffer).await {
        let room = LONGEST_MESSAGE.saturating_sub(kept.len()).min(read);
        kept.extend_from_slice(buffer.get(..room).unwrap_or_default());
    }
    let text = String::from_utf8_lossy(&kept);
    text.trim().trim_start_matches("qemu-img: ").replace('\n', "; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_tool_that_fails_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let qemu_img = QemuImg::new("qemu-img");
        let error = qemu_img.grow(&dir.path().join("absent"), "qcow2", 1 << 20, false).await.unwrap_err();
        assert!(
            matches!(&error, StorageError::Tool { message, .. } if message.contains("No such file")),
            "{error}"
        );
        let missing = QemuImg::new("/nonexistent/qemu-img");
        assert!(missing.create(&dir.path().join("x"), 1 << 20, false).await.is_err());
    }

    #[tokio::test]
    async fn limits_reach_the_tool() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("tool");
        let report = dir.path().join("report");
        std::fs::write(&script, format!("#!/bin/sh\n(ulimit -f; ulimit -v; env; grep -E 'NoNewPrivs|CapEff' /proc/self/status) > {}\n", report.display())).unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        QemuImg::new(&script).create(&dir.path().join("x"), 0, false).await.unwrap();
        let report = std::fs::read_to_string(report).unwrap();
        assert!(report.starts_with("131072\n4194304\n"), "{report}");
        assert!(report.contains("NoNewPrivs:\t1") && !report.contains("HOME="), "{report}");
        if rustix::process::geteuid().is_root() {
            assert!(report.contains("CapEff:\t0000000000000002"), "{report}");
        }
    }
}
