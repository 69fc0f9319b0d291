//! Reads and writes small versioned JSON files so that after a crash the old or the new content is there, whole.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

/// A file that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// File.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The content is not what this version writes.
    #[error("{}: cannot be read: {message}", path.display())]
    Content {
        /// File.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
}

impl FileError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// Reads a file whose `formatVersion` must be `format`; a file that is not there is none.
pub fn read_json<T: DeserializeOwned>(path: &Path, format: u32) -> Result<Option<T>, FileError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(FileError::Content { path: path.into(), message: error.to_string() });
        }
        Err(error) => return Err(FileError::io(path)(error)),
    };
    parse(&text, format).map(Some).map_err(|message| FileError::Content { path: path.into(), message })
}

fn parse<T: DeserializeOwned>(text: &str, format: u32) -> Result<T, String> {
    let value: serde_json::Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    match value.get("formatVersion").and_then(serde_json::Value::as_u64) {
        Some(found) if found == u64::from(format) => {}
        Some(found) => return Err(format!("format version {found}, but this version knows only {format}")),
        None => return Err("no formatVersion".into()),
    }
    serde_json::from_value(value).map_err(|e| e.to_string())
}

/// Writes a file: content synced, renamed into place, directory synced. On return it survives a power cut.
pub fn write_json<T: Serialize>(path: &Path, content: &T) -> Result<(), FileError> {
    let text = serde_json::to_vec_pretty(content)
        .map_err(|e| FileError::Content { path: path.into(), message: e.to_string() })?;
    write_bytes(path, &text)
}

/// As [`write_json`], for content that is encoded already.
pub fn write_bytes(path: &Path, content: &[u8]) -> Result<(), FileError> {
    let partial = path.with_extension("new");
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(content)?;
        file.sync_all()?;
        fail_points::around("rename to", path, || fs::rename(&partial, path))?;
        sync_parent(path)
    };
    fail_points::around("write", path, write).map_err(FileError::io(path))
}

/// Removes a file durably; one that is not there is fine.
pub fn remove(path: &Path) -> Result<(), FileError> {
    let remove = || match fs::remove_file(path) {
        Ok(()) => sync_parent(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    fail_points::around("remove", path, remove).map_err(FileError::io(path))
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}
