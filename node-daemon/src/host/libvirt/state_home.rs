//! The directory a VM has beside its volumes: record of hardware, copy of TPM state. Every write survives a power cut.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use serde::{Deserialize, Serialize};
use vireo_crds::v1alpha1::Hardware;

use crate::ledger::files::{self, FileError};

const FORMAT: u32 = 1;
const HARDWARE: &str = "hardware.json";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    format_version: u32,
    hardware: Hardware,
}

/// The record kept there; none if there is none, or none that this version can read.
pub fn read_hardware(dir: &Path) -> Option<Hardware> {
    match files::read_json::<Kept>(&dir.join(HARDWARE), FORMAT) {
        Ok(kept) => kept.map(|kept| kept.hardware),
        Err(error) => {
            tracing::warn!(%error, "the record of a VM's hardware cannot be read");
            None
        }
    }
}

/// Afterwards the record lies there.
pub fn write_hardware(dir: &Path, hardware: &Hardware) -> Result<(), FileError> {
    files::write_json(&dir.join(HARDWARE), &Kept { format_version: FORMAT, hardware: hardware.clone() })
}

/// Afterwards `to` holds what `from` holds and nothing else; a `from` that is not there counts as empty.
pub fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    let fresh = to.with_extension("copy");
    remove_tree(&fresh)?;
    fs::create_dir_all(&fresh)?;
    if from.try_exists()? {
        copy_into(from, &fresh)?;
    }
    remove_tree(to)?;
    fs::rename(&fresh, to)?;
    sync_dir(to.parent().unwrap_or(to))
}

fn copy_into(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            fs::create_dir_all(&target)?;
            copy_into(&entry.path(), &target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), &target)?;
            File::open(&target)?.sync_all()?;
        }
    }
    sync_dir(to)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Afterwards nothing lies at `dir`.
pub fn remove_tree(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_replaces_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("sub")).unwrap();
        fs::write(from.join("sub/state"), "new").unwrap();
        fs::create_dir_all(&to).unwrap();
        fs::write(to.join("stale"), "old").unwrap();
        copy_tree(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("sub/state")).unwrap(), "new");
        assert!(!to.join("stale").exists());
        copy_tree(&dir.path().join("missing"), &to).unwrap();
        assert_eq!(fs::read_dir(&to).unwrap().count(), 0);
    }
}
