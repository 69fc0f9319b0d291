//! Looks at the directory of a storage domain and writes its marker; decides nothing.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
};

use node_plan::storage::domain::DirectoryFact;
use serde::{Deserialize, Serialize};
use vireo_crds::v1alpha1::Marker;

use super::{error::StorageError, files};

/// Marker of a domain.
pub const MARKER: &str = ".vireo-domain.json";
/// Directory of the volumes.
pub const VOLUMES: &str = "volumes";
/// Directory of deleted volumes.
pub const TRASH: &str = "trash";
/// Directory of what VMs keep beside their volumes.
pub const VMS: &str = "vms";

const MARKER_FORMAT: u32 = 1;

/// The marker as it lies on disk.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MarkerFile {
    format_version: u32,
    #[serde(flatten)]
    marker: Marker,
}

/// What lies at the path. Blocks, for ever on a network file system whose server is gone.
pub fn observe(path: &Path) -> DirectoryFact {
    match File::open(path).and_then(|directory| Ok((directory.metadata()?, directory))) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => DirectoryFact::Missing,
        Err(error) => DirectoryFact::Unreadable(error.to_string()),
        Ok((metadata, _)) if !metadata.is_dir() => DirectoryFact::NotADirectory,
        Ok((_, directory)) => match files::read_json::<MarkerFile>(&path.join(MARKER)) {
            Ok(None) => DirectoryFact::Unmarked,
            Ok(Some(file)) if file.format_version != MARKER_FORMAT => DirectoryFact::BadMarker(format!(
                "format version {}, this version knows {MARKER_FORMAT}",
                file.format_version
            )),
            Ok(Some(file)) => match space(&directory) {
                Ok((capacity, available)) => {
                    DirectoryFact::Marked { marker: file.marker, capacity, available }
                }
                Err(error) => DirectoryFact::Unreadable(error.to_string()),
            },
            Err(error) => DirectoryFact::BadMarker(error.to_string()),
        },
    }
}

/// Size and free space of the file system, in bytes.
pub fn space(directory: &File) -> io::Result<(u64, u64)> {
    let found = rustix::fs::fstatvfs(directory)?;
    Ok((found.f_blocks.saturating_mul(found.f_frsize), found.f_bavail.saturating_mul(found.f_frsize)))
}

/// Free space of the file system a domain lies on, in bytes.
pub fn available(path: &Path) -> Result<u64, StorageError> {
    let found = File::open(path)
        .and_then(|directory| space(&directory))
        .map_err(StorageError::io("cannot look at", path))?;
    Ok(found.1)
}

/// Writes the marker where there is none.
pub fn write_marker(path: &Path, marker: &Marker) -> Result<(), StorageError> {
    let file = MarkerFile { format_version: MARKER_FORMAT, marker: marker.clone() };
    let target = path.join(MARKER);
    let text =
        serde_json::to_vec_pretty(&file).map_err(|e| StorageError::io("cannot encode", &target)(e.into()))?;
    files::write_new(&target, &text)
}

/// Makes the directories of a marked domain. QEMU runs as another user: it passes through, but lists nothing.
pub fn ensure_directories(path: &Path) -> Result<(), StorageError> {
    for (name, mode) in [(VOLUMES, 0o711), (super::beneath::FILES, 0o755), (TRASH, 0o700), (VMS, 0o711)] {
        let directory = path.join(name);
        match fs::create_dir(&directory) {
            Ok(()) => {
                let permissions = fs::Permissions::from_mode(mode);
                fs::set_permissions(&directory, permissions)
                    .map_err(StorageError::io("cannot set the mode of", &directory))?;
                files::sync_parent(&directory)
                    .map_err(StorageError::io("cannot sync the directory of", &directory))?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let metadata = fs::symlink_metadata(&directory)
                    .map_err(StorageError::io("cannot look at", &directory))?;
                if !metadata.is_dir() {
                    return Err(StorageError::Path(format!(
                        "{} is not a directory: remove it",
                        directory.display()
                    )));
                }
            }
            Err(error) => return Err(StorageError::io("cannot make", &directory)(error)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marker() -> Marker {
        Marker { installation_id: "i".into(), domain_uid: "d".into() }
    }

    #[test]
    fn the_marker_is_written_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(observe(dir.path()), DirectoryFact::Unmarked);
        write_marker(dir.path(), &marker()).unwrap();
        assert!(
            matches!(observe(dir.path()), DirectoryFact::Marked { marker: found, capacity, .. } if found == marker() && capacity > 0)
        );
        let other = Marker { installation_id: "other".into(), ..marker() };
        assert!(matches!(write_marker(dir.path(), &other), Err(StorageError::Exists(_))));
        assert!(
            matches!(observe(dir.path()), DirectoryFact::Marked { marker: found, .. } if found == marker())
        );
    }

    #[test]
    fn what_is_no_domain_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(observe(&dir.path().join("absent")), DirectoryFact::Missing);
        fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(observe(&dir.path().join("file")), DirectoryFact::NotADirectory);
        for bad in ["", "{", "{\"formatVersion\":9,\"installationId\":\"i\",\"domainUid\":\"d\"}"] {
            fs::write(dir.path().join(MARKER), bad).unwrap();
            assert!(matches!(observe(dir.path()), DirectoryFact::BadMarker(_)), "{bad}");
        }
    }

    #[test]
    fn directories_are_made_and_links_in_their_place_refused() {
        let dir = tempfile::tempdir().unwrap();
        ensure_directories(dir.path()).unwrap();
        ensure_directories(dir.path()).unwrap();
        fs::remove_dir(dir.path().join(TRASH)).unwrap();
        std::os::unix::fs::symlink("/tmp", dir.path().join(TRASH)).unwrap();
        assert!(matches!(ensure_directories(dir.path()), Err(StorageError::Path(_))));
    }
}
