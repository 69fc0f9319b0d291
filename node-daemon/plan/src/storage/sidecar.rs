//! What lies beside a volume, so that storage explains itself without the API.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vireo_crds::v1alpha1::DiskFormat;

/// Version of the sidecar's format.
pub const FORMAT_VERSION: u32 = 1;

/// The file `<disk uid>.json` beside a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sidecar {
    /// Version of this format.
    pub format_version: u32,
    /// uid of the Disk.
    pub uid: String,
    /// Namespace of the Disk; only Disks of the same one may bring the volume back.
    pub namespace: String,
    /// Name of the Disk.
    pub name: String,
    /// Format of the volume.
    pub format: DiskFormat,
    /// Size the guest saw when this was written, in bytes.
    pub size: u64,
    /// What the volume started with, for people.
    pub source: String,
    /// Digest of what was imported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// The volume is a CD, whose size is that of its image and not that of the Disk.
    #[serde(default)]
    pub iso: bool,
    /// Zeros are written over the volume before it leaves the trash.
    #[serde(default)]
    pub wipe: bool,
    /// When it was moved to the trash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<Timestamp>,
    /// When its Disk was deleted with `reclaimPolicy: Retain`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retained_at: Option<Timestamp>,
}
