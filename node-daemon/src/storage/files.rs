//! Durable file operations: after a crash the old or the new state is there, and nothing is ever replaced unasked.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

use rustix::fs::{AtFlags, CWD, FallocateFlags, FlockOperation, OFlags, RenameFlags};
use serde::{Serialize, de::DeserializeOwned};

use super::error::StorageError;

/// Writes a small file whole, replacing what was there.
pub fn write_whole(path: &Path, content: &[u8]) -> Result<(), StorageError> {
    let partial = beside(path, ".new");
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(no_follow())
            .open(&partial)?;
        file.write_all(content)?;
        file.sync_all()?;
        fail_points::around("rename to", path, || fs::rename(&partial, path))?;
        sync_parent(path)
    };
    fail_points::around("write", path, write).map_err(StorageError::io("cannot write", path))
}

/// Writes a small file that must not be there yet.
pub fn write_new(path: &Path, content: &[u8]) -> Result<(), StorageError> {
    let partial = beside(path, &format!(".{}.new", std::process::id()));
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .custom_flags(no_follow())
            .open(&partial)?;
        file.write_all(content)?;
        file.sync_all()
    };
    let written = write().map_err(StorageError::io("cannot write", path));
    let moved = written.and_then(|()| rename_new(&partial, path));
    if moved.is_err() {
        remove(&partial)?;
    }
    moved
}

/// Writes a value as JSON, whole.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), StorageError> {
    let text =
        serde_json::to_vec_pretty(value).map_err(|e| StorageError::io("cannot encode", path)(e.into()))?;
    write_whole(path, &text)
}

/// Reads JSON of at most 1 MiB; a file that is not there is none.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StorageError> {
    match read_bounded(path, 1 << 20) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|e| StorageError::io("cannot understand", path)(e.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StorageError::io("cannot read", path)(error)),
    }
}

fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(no_follow()).open(path)?;
    let mut text = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, limit), &mut text)?;
    Ok(text)
}

/// Moves a file to a name that must be free, and makes that survive a power cut.
pub fn rename_new(from: &Path, to: &Path) -> Result<(), StorageError> {
    fail_points::around("rename to", to, || rename(from, to))
}

fn rename(from: &Path, to: &Path) -> Result<(), StorageError> {
    let moved = match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // NFS and some other file systems do not know the flag; a link is refused where there is a file, too.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {
            rustix::fs::linkat(CWD, from, CWD, to, AtFlags::empty()).and_then(|()| rustix::fs::unlink(from))
        }
        other => other,
    };
    match moved {
        Ok(()) => {}
        Err(rustix::io::Errno::EXIST) => return Err(StorageError::Exists(to.display().to_string())),
        Err(error) => return Err(StorageError::io("cannot move to", to)(error.into())),
    }
    sync_parent(to)
        .and_then(|()| sync_parent(from))
        .map_err(StorageError::io("cannot sync the directory of", to))
}

/// Removes a file; one that is not there is fine.
pub fn remove(path: &Path) -> Result<(), StorageError> {
    match fail_points::around("remove", path, || fs::remove_file(path)) {
        Ok(()) => sync_parent(path).map_err(StorageError::io("cannot sync the directory of", path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StorageError::io("cannot remove", path)(error)),
    }
}

/// Makes a file's entry in its directory survive a power cut.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Makes a file's content survive a power cut.
pub fn sync_file(path: &Path) -> Result<(), StorageError> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(no_follow())
        .open(path)
        .map_err(StorageError::io("cannot open", path))?;
    file.sync_all().map_err(StorageError::io("cannot sync", path))
}

/// Opens a volume for reading and writing without following a link, and takes it exclusively: fails while QEMU or
/// another daemon has it open, on this host or, on a network file system, on another.
pub fn open_exclusive(path: &Path) -> Result<File, StorageError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(no_follow())
        .open(path)
        .map_err(StorageError::io("cannot open", path))?;
    match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => {
            Err(StorageError::InUse(path.file_name().unwrap_or_default().to_string_lossy().into_owned()))
        }
        Err(error) => Err(StorageError::io("cannot lock", path)(error.into())),
    }
}

/// Takes the space of a whole file now.
pub fn allocate(file: &File, length: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, length) {
        Err(rustix::io::Errno::OPNOTSUPP) => write_holes(file, length),
        other => Ok(other?),
    }
}

/// Takes space where the file system cannot reserve it: what is there, holes included, is written again. Only for
/// files that nobody else has open.
fn write_holes(file: &File, length: u64) -> io::Result<()> {
    let mut block = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < length {
        let room = usize::try_from(length - offset).unwrap_or(usize::MAX).min(block.len());
        let part = block.get_mut(..room).unwrap_or_default();
        file.read_exact_at(part, offset)?;
        file.write_all_at(part, offset)?;
        offset += room as u64;
    }
    Ok(())
}

/// Space a file takes.
pub fn allocated(metadata: &fs::Metadata) -> u64 {
    metadata.blocks().saturating_mul(512)
}

/// Open flag that refuses a link as the last part of the path.
pub fn no_follow() -> i32 {
    i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0)
}

/// The path with something added to its name.
pub fn beside(path: &Path, suffix: &str) -> std::path::PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(suffix);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_never_replaced_unasked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("marker");
        write_new(&path, b"one").unwrap();
        assert!(matches!(write_new(&path, b"two"), Err(StorageError::Exists(_))));
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no partial file is left");
        write_whole(&path, b"three").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three");
    }

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        fs::write(&target, "{}").unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(read_json::<serde_json::Value>(&link).is_err());
        assert!(open_exclusive(&link).is_err());
    }

    #[test]
    fn space_is_taken_without_touching_what_is_there() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(3 << 20).unwrap();
        file.write_all_at(b"data", 1 << 20).unwrap();
        write_holes(&file, 3 << 20).unwrap();
        let mut found = [0; 4];
        file.read_exact_at(&mut found, 1 << 20).unwrap();
        assert_eq!(&found, b"data");
        assert!(allocated(&file.metadata().unwrap()) >= 3 << 20);
    }
}
