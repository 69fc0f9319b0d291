//! Proves that the crates that decide cannot reach a client, a runtime, libvirt or a clock.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail};

const PURE: [&str; 3] = ["controller-plan", "node-plan", "vireo-crds"];
/// Crates that do I/O. `kube-core` and `kube-derive` are types only.
const FORBIDDEN: [&str; 11] = [
    "kube-client",
    "kube-runtime",
    "tokio",
    "virt",
    "virt-sys",
    "hyper",
    "reqwest",
    "rustls",
    "socket2",
    "mio",
    "rustix",
];
/// Calls that read a clock or the environment; a decision gets them as values.
const FORBIDDEN_CALLS: [&str; 6] =
    ["Timestamp::now(", "Zoned::now(", "SystemTime::now(", "Instant::now(", "std::env::var", "Uuid::new_v4("];

/// Faults in the plan crates.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for package in PURE {
        let output = Command::new("cargo")
            .args([
                "tree",
                "--offline",
                "--locked",
                "--edges",
                "normal",
                "--prefix",
                "none",
                "--format",
                "{p}",
                "-p",
                package,
            ])
            .current_dir(root)
            .output()
            .context("cannot run cargo tree")?;
        if !output.status.success() {
            bail!("cargo tree -p {package}: {}", String::from_utf8_lossy(&output.stderr));
        }
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let name = line.split(' ').next().unwrap_or_default();
            if FORBIDDEN.contains(&name) {
                faults.push(format!("{package} can reach {name}"));
            }
        }
    }
    for folder in ["controller/plan/src", "node-daemon/plan/src", "crds/src"] {
        crate::sizes::each_rust_file(&root.join(folder), &mut |path, text| {
            if text.contains("#![cfg(test)]") {
                return;
            }
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for call in FORBIDDEN_CALLS.into_iter().filter(|call| code.contains(call)) {
                faults.push(format!("{} calls {call}..): pass the value in", path.display()));
            }
        })?;
    }
    Ok(faults)
}
