//! Opens files inside a storage domain by a path a user wrote: the kernel itself refuses every way out, links included.

use std::{
    fs::File,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use node_plan::storage::path::RelativePath;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::error::StorageError;

/// Directory of a domain into which people put files.
pub const FILES: &str = "files";

/// Opens a regular file below the domain's `files` for reading.
pub fn open_file(domain: &Path, path: &RelativePath) -> Result<File, StorageError> {
    let root = domain.join(FILES);
    let directory = File::open(&root).map_err(StorageError::io("cannot open", &root))?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = match rustix::fs::openat2(directory.as_fd(), path.as_path(), flags, Mode::empty(), resolve) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT) => {
            return Err(StorageError::Path(format!(
                "files/{path} does not exist in the domain: put it there with `vireo-node import`"
            )));
        }
        Err(rustix::io::Errno::XDEV | rustix::io::Errno::LOOP) => {
            return Err(StorageError::Path(format!(
                "files/{path} is a link that leaves the domain's files directory: put the file itself there"
            )));
        }
        Err(error) => return Err(StorageError::io("cannot open", &root.join(path.as_path()))(error.into())),
    };
    let metadata = file.metadata().map_err(StorageError::io("cannot look at", &root.join(path.as_path())))?;
    if metadata.is_file() {
        Ok(file)
    } else {
        Err(StorageError::Path(format!("files/{path} is not a regular file")))
    }
}

/// The path of a regular file below the domain's `files` with every link resolved, for programs that take no open file.
pub fn resolve(domain: &Path, path: &RelativePath) -> Result<PathBuf, StorageError> {
    let file = open_file(domain, path)?;
    let root = domain.join(FILES);
    let found =
        rustix::fs::readlink(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file)), Vec::new())
            .map_err(|e| StorageError::io("cannot resolve", &root.join(path.as_path()))(e.into()))?;
    let found = PathBuf::from(std::ffi::OsString::from(found.to_string_lossy().into_owned()));
    let real = root.canonicalize().map_err(StorageError::io("cannot resolve", &root))?;
    match found.strip_prefix(&real) {
        Ok(below) => Ok(root.join(below)),
        Err(_) => Err(StorageError::Path(format!("files/{path} was moved while it was opened: try again"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    fn domain() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("files/sub")).unwrap();
        fs::write(dir.path().join("files/sub/vmlinuz"), "kernel").unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        dir
    }

    fn open(dir: &tempfile::TempDir, path: &str) -> Result<File, StorageError> {
        open_file(dir.path(), &RelativePath::parse(path).unwrap())
    }

    #[test]
    fn files_and_links_inside_are_opened() {
        let dir = domain();
        symlink("sub/vmlinuz", dir.path().join("files/current")).unwrap();
        assert!(open(&dir, "sub/vmlinuz").is_ok());
        assert!(open(&dir, "current").is_ok());
        let path = resolve(dir.path(), &RelativePath::parse("current").unwrap()).unwrap();
        assert_eq!(path, dir.path().join("files/sub/vmlinuz"));
    }

    #[test]
    fn links_that_leave_the_domain_are_refused() {
        let dir = domain();
        symlink("/etc/shadow", dir.path().join("files/absolute")).unwrap();
        symlink("../secret", dir.path().join("files/upwards")).unwrap();
        symlink("/etc", dir.path().join("files/directory")).unwrap();
        symlink("/proc/self/root/etc/passwd", dir.path().join("files/magic")).unwrap();
        for path in ["absolute", "upwards", "directory/shadow", "magic"] {
            let refused = open(&dir, path);
            assert!(
                matches!(&refused, Err(StorageError::Path(message)) if message.contains("leaves")),
                "{path}: {refused:?}"
            );
            assert!(resolve(dir.path(), &RelativePath::parse(path).unwrap()).is_err());
        }
    }

    #[test]
    fn what_is_no_regular_file_is_refused() {
        let dir = domain();
        assert!(matches!(open(&dir, "sub"), Err(StorageError::Path(_))));
        assert!(matches!(open(&dir, "absent"), Err(StorageError::Path(m)) if m.contains("does not exist")));
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.path().join("files/pipe"),
            rustix::fs::FileType::Fifo,
            Mode::RUSR,
            0,
        )
        .unwrap();
        assert!(matches!(open(&dir, "pipe"), Err(StorageError::Path(_))));
    }
}
