//! Refuses Rust files that have outgrown one concept: 600 lines, test folders apart.

use std::{fs, path::Path};

use anyhow::{Context, Result};

const LIMIT: usize = 600;

/// Files over the limit.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for folder in ["crds", "controller", "node-daemon", "fail-points", "lab", "tests", "xtask"] {
        each_rust_file(&root.join(folder), &mut |path, text| {
            // The package `tests` is code like any other, but for the test folders in it.
            let within = path.strip_prefix(root.join(folder)).unwrap_or(path);
            let test = within.components().any(|part| part.as_os_str() == "tests");
            let lines = text.split("#[cfg(test)]").next().unwrap_or_default().lines().count();
            if lines > LIMIT && !test {
                faults.push(format!("{}: {lines} lines; split it by concept", path.display()));
            }
        })?;
    }
    Ok(faults)
}

/// Calls `visit` with every Rust file below `folder`.
pub fn each_rust_file(folder: &Path, visit: &mut dyn FnMut(&Path, &str)) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            each_rust_file(&path, visit)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            visit(&path, &fs::read_to_string(&path)?);
        }
    }
    Ok(())
}
