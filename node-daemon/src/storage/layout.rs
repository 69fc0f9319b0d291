//! Where things lie inside a domain: every name is made from a uid, so that no name of a user becomes a path.

use std::{
    fs,
    path::{Path, PathBuf},
};

use vireo_crds::v1alpha1::DiskFormat;

use super::{
    domain::{TRASH, VOLUMES},
    error::StorageError,
};

/// Ending of unfinished files.
const PARTIAL: &str = ".partial";

/// Paths of one domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Paths below the domain's directory.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The domain's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A finished volume.
    pub fn volume(&self, uid: &str, format: DiskFormat) -> PathBuf {
        self.root.join(VOLUMES).join(volume_name(uid, format))
    }

    /// What explains a volume.
    pub fn sidecar(&self, uid: &str) -> PathBuf {
        self.root.join(VOLUMES).join(format!("{uid}.json"))
    }

    /// Who may write to a volume.
    pub fn token(&self, uid: &str) -> PathBuf {
        self.root.join(VOLUMES).join(format!("{uid}.token"))
    }

    /// A volume being made: each working host has its own, so that two never write to one.
    pub fn partial(&self, uid: &str, epoch: i64) -> PathBuf {
        self.root.join(VOLUMES).join(format!("{uid}.{epoch}{PARTIAL}"))
    }

    /// A source image on its way into a volume.
    pub fn source(&self, uid: &str, epoch: i64) -> PathBuf {
        self.root.join(VOLUMES).join(format!("{uid}.{epoch}.source{PARTIAL}"))
    }

    /// A volume in the trash.
    pub fn trashed_volume(&self, uid: &str, format: DiskFormat) -> PathBuf {
        self.trash().join(volume_name(uid, format))
    }

    /// What explains a volume in the trash.
    pub fn trashed_sidecar(&self, uid: &str) -> PathBuf {
        self.trash().join(format!("{uid}.json"))
    }

    /// The trash.
    pub fn trash(&self) -> PathBuf {
        self.root.join(TRASH)
    }

    /// Unfinished files of a disk.
    pub fn partials(&self, uid: &str) -> Result<Vec<PathBuf>, StorageError> {
        let volumes = self.root.join(VOLUMES);
        let prefix = format!("{uid}.");
        let entries = fs::read_dir(&volumes).map_err(StorageError::io("cannot list", &volumes))?;
        let mut found = vec![];
        for entry in entries {
            let entry = entry.map_err(StorageError::io("cannot list", &volumes))?;
            let name = entry.file_name();
            if name.to_str().is_some_and(|name| name.starts_with(&prefix) && name.ends_with(PARTIAL)) {
                found.push(entry.path());
            }
        }
        Ok(found)
    }
}

fn volume_name(uid: &str, format: DiskFormat) -> String {
    format!("{uid}.{}", format.qemu_name().unwrap_or("unknown"))
}
