//! Fetches Debian packages from the machine's own apt sources and unpacks
//! them somewhere, without installing them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::tool;

/// Unpacks the named packages into one directory.
pub fn unpack(names: &[&str], work: &Path, into: &Path) -> Result<()> {
    let downloads = work.join("packages");
    fs::create_dir_all(&downloads).with_context(|| downloads.display().to_string())?;
    fs::create_dir_all(into).with_context(|| into.display().to_string())?;
    let output = Command::new("apt-get")
        .args(["-q", "-o", "APT::Sandbox::User=root", "download"])
        .args(names)
        .current_dir(&downloads)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .context("cannot run apt-get")?;
    if !output.status.success() {
        bail!(
            "cannot fetch {} (try `apt-get update`): {}",
            names.join(", "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let files: Vec<PathBuf> = fs::read_dir(&downloads)?.flatten().map(|entry| entry.path()).collect();
    for file in files {
        tool("dpkg-deb", ["-x".as_ref(), file.as_os_str(), into.as_os_str()])?;
        fs::remove_file(&file).with_context(|| file.display().to_string())?;
    }
    Ok(())
}

/// The package that the newest cloud kernel of this release is in.
pub fn cloud_kernel() -> Result<String> {
    let depends = tool("apt-cache", ["depends", "--important", "linux-image-cloud-amd64"])?;
    let name = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"));
    name.map(str::to_owned).context("apt knows no package linux-image-cloud-amd64: run `apt-get update`")
}

/// Where this machine takes its Debian release from, for another root.
pub struct Sources {
    pub codename: String,
    pub lines: Vec<String>,
}

pub fn sources() -> Result<Sources> {
    let os_release = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
    let codename = os_release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .context("/etc/os-release names no VERSION_CODENAME")?
        .to_owned();
    let targets = tool(
        "apt-get",
        [
            "indextargets",
            "--format",
            "$(REPO_URI) $(RELEASE) $(COMPONENT)",
            "Created-By: Packages",
            "Origin: Debian",
        ],
    )?;
    let lines = source_lines(&targets, &codename);
    if lines.is_empty() {
        bail!("apt has no source of Debian {codename}: run `apt-get update`");
    }
    Ok(Sources { codename, lines })
}

/// The release itself, its updates and its security fixes; no backports.
fn source_lines(targets: &str, codename: &str) -> Vec<String> {
    let mut lines: Vec<String> = targets
        .lines()
        .filter(|line| {
            let release = line.split(' ').nth(1).unwrap_or_default();
            [codename.to_owned(), format!("{codename}-updates"), format!("{codename}-security")]
                .iter()
                .any(|wanted| wanted == release)
        })
        .map(|line| format!("deb {line}"))
        .collect();
    lines.sort();
    lines.dedup();
    lines
}

/// Shared libraries a program needs, as the dynamic linker finds them, with
/// the linker itself.
pub fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = tool("ldd", [program])?;
    if let Some(missing) = output.lines().find(|line| line.contains("not found")) {
        bail!("{} lacks a library: {}", program.display(), missing.trim());
    }
    Ok(parse_ldd(&output))
}

fn parse_ldd(output: &str) -> Vec<PathBuf> {
    output
        .lines()
        .filter_map(|line| {
            let line = line.trim();
            let path = line.split_once("=> ").map_or(line, |(_, path)| path);
            path.split(" (").next().filter(|path| path.starts_with('/')).map(PathBuf::from)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_with_updates_and_security_but_no_backports() {
        let targets = "http://m/debian/ bookworm main\nhttp://m/debian/ bookworm-backports main\n\
                       http://m/debian/ bookworm main\nhttp://m/sec/ bookworm-security main\nhttp://n/ nodistro main\n";
        assert_eq!(
            source_lines(targets, "bookworm"),
            ["deb http://m/debian/ bookworm main", "deb http://m/sec/ bookworm-security main"]
        );
    }

    #[test]
    fn libraries_and_the_linker_but_not_the_kernels_own() {
        let output = "\tlinux-vdso.so.1 (0x00007)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x0)\n\t/lib64/ld-linux.so.2 (0x1)\n";
        assert_eq!(
            parse_ldd(output),
            [PathBuf::from("/lib/x/libc.so.6"), PathBuf::from("/lib64/ld-linux.so.2")]
        );
    }
}
