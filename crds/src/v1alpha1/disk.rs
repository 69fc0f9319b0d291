//! Disk: one volume, its source, and who may write to it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::virtual_machine::Empty;
use crate::{condition::conditions_schema, units::Size};

/// One volume on a storage domain.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "vireo.dev",
    version = "v1alpha1",
    kind = "Disk",
    plural = "disks",
    shortname = "vdisk",
    category = "vireo",
    namespaced,
    cel,
    derive = "PartialEq",
    status = "DiskStatus",
    doc = "One volume on a storage domain: blank, fetched from a URL, taken from a file of the domain, or brought back from the trash.",
    selectable = ".status.placement.host",
    printcolumn(name = "Domain", type_ = "string", json_path = ".spec.storageDomain"),
    printcolumn(name = "Size", type_ = "string", json_path = ".spec.size"),
    printcolumn(name = "Allocated", type_ = "string", json_path = ".status.summary.allocated"),
    printcolumn(name = "Format", type_ = "string", json_path = ".spec.format"),
    printcolumn(name = "Used by", type_ = "string", json_path = ".status.summary.usedBy"),
    printcolumn(name = "Progress", type_ = "string", json_path = ".status.progress"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.storageDomain == oldSelf.storageDomain").message("spec.storageDomain: moving a disk to another domain is not supported by this version; make a new Disk there"))]
#[x_kube(validation = Rule::new("(has(self.format) ? self.format : 'qcow2') == (has(oldSelf.format) ? oldSelf.format : 'qcow2')").message("spec.format cannot change; make a new Disk"))]
#[x_kube(validation = Rule::new("(has(self.source) && !has(self.source.blank) ? [self.source] : []) == (has(oldSelf.source) && !has(oldSelf.source.blank) ? [oldSelf.source] : [])").message("spec.source cannot change: the volume has been made from it; make a new Disk"))]
#[x_kube(validation = Rule::new("!isQuantity(self.size) || !isQuantity(oldSelf.size) || quantity(self.size).compareTo(quantity(oldSelf.size)) >= 0").message("spec.size: a disk may grow but never shrink"))]
#[x_kube(validation = Rule::new("!isQuantity(self.size) || (quantity(self.size).compareTo(quantity('64Ti')) <= 0 && quantity(self.size).compareTo(quantity('1Mi')) >= 0)").message("spec.size: must be between 1Mi and 64Ti"))]
pub struct DiskSpec {
    /// StorageDomain the volume lies on. You need the verb `use` on it.
    #[schemars(length(min = 1, max = 63))]
    pub storage_domain: String,
    /// Size the guest sees, such as `20Gi`. It may grow.
    pub size: Size,
    /// Format of the volume.
    #[serde(default)]
    pub format: DiskFormat,
    /// `Thin` takes space as the guest writes; `Preallocated` takes it at once.
    #[serde(default)]
    pub allocation: Allocation,
    /// What the volume starts with.
    #[serde(default)]
    pub source: DiskSource,
    /// What happens to the volume when this object is deleted: `Delete` moves it to the domain's trash for its
    /// retention time, `Retain` leaves it where it is.
    #[serde(default)]
    pub reclaim_policy: ReclaimPolicy,
    /// Overwrite the volume with zeros before it leaves the trash.
    #[serde(default)]
    pub wipe_after_delete: bool,
}

/// Format of a volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum DiskFormat {
    /// QEMU's copy-on-write format.
    #[default]
    Qcow2,
    /// Bytes as the guest sees them.
    Raw,
    /// A value this version does not know: refused.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

impl DiskFormat {
    /// QEMU's name of the format, also the file extension.
    pub fn qemu_name(self) -> Option<&'static str> {
        match self {
            Self::Qcow2 => Some("qcow2"),
            Self::Raw => Some("raw"),
            Self::Unknown => None,
        }
    }
}

/// When space is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Allocation {
    /// As the guest writes.
    #[default]
    Thin,
    /// At once.
    Preallocated,
    /// A value this version does not know: refused.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// What happens to the volume of a deleted Disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ReclaimPolicy {
    /// To the trash.
    #[default]
    Delete,
    /// Left in place.
    Retain,
    /// A value this version does not know: left in place.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// What a volume starts with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum DiskSource {
    /// Nothing.
    Blank(Empty),
    /// An image fetched from a URL.
    Http(HttpSource),
    /// A file that lies in the domain's `files` directory.
    File(FileSource),
    /// A volume of the domain: one in its trash, or one kept by `Retain`.
    Volume(VolumeSource),
}

impl Default for DiskSource {
    fn default() -> Self {
        Self::Blank(Empty {})
    }
}

/// An image fetched from a URL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpSource {
    /// Address of a qcow2 or raw image. What may be fetched is decided by the domain's `imports.allowedUrls`.
    #[schemars(length(min = 8, max = 2048), regex(pattern = r"^https?://"))]
    pub url: String,
    /// Digest of the image, `sha256:` and 64 hexadecimal digits; a different one is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 71), regex(pattern = r"^sha256:[0-9a-f]{64}$"))]
    pub checksum: Option<String>,
    /// Certificates of the server's authority, PEM, if it is not a public one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub ca_bundle: Option<String>,
}

/// A file of the domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileSource {
    /// Path relative to the domain's `files` directory; it may not leave it. `vireo-node import` puts files there.
    #[schemars(length(min = 1, max = 255))]
    pub path: String,
}

/// A volume of the domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSource {
    /// uid of the Disk it belonged to, as the sidecar in the trash says.
    #[schemars(
        length(max = 36),
        regex(pattern = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")
    )]
    pub uid: String,
}

/// What became of a Disk.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiskStatus {
    /// Newest spec generation that has been acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions. `Accepted` is the controller's, the others the working host's (the controller's before one is named).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
    /// Which host works on it: provision, grow, delete. Written by the controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = StructMerge::Atomic)]
    pub placement: Option<DiskPlacement>,
    /// Who may attach it. Written by the controller, conditional on the Disk's resourceVersion, before the VM is placed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub attachments: Vec<Attachment>,
    /// Orders the working host to remove the volume: set by the controller once nothing can use it any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remove: Option<bool>,
    /// Where the work stands. Written by the working host, as all that follows but `summary.usedBy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<DiskPhase>,
    /// Progress of an import, such as `42%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub progress: Option<String>,
    /// Size the guest sees, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<i64>,
    /// Space taken, in bytes, as of the last work on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocated: Option<i64>,
    /// File name of the volume inside the domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub volume: Option<String>,
    /// Host on which the volume lies, for a domain that is local to each host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub local_host: Option<String>,
    /// Digest of what was imported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 71))]
    pub content_digest: Option<String>,
    /// Texts for columns. `usedBy` is the controller's, `allocated` the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<DiskSummary>,
}

/// Which host works on a Disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiskPlacement {
    /// Name of the Host.
    #[schemars(length(max = 63))]
    pub host: String,
    /// Grows with each change of host, so that an earlier host's report is recognised as stale.
    pub epoch: i64,
}

/// A claim: one VM may attach the Disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// uid of the VM.
    #[schemars(length(max = 64))]
    pub vm_uid: String,
    /// Name of the VM, for people.
    #[schemars(length(max = 63))]
    pub vm: String,
    /// The VM only reads: a CD, or the base of an ephemeral layer. Several such claims may stand together.
    #[serde(default)]
    pub read_only: bool,
}

/// Where the work on a Disk stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum DiskPhase {
    /// Waits for a host.
    Pending,
    /// The volume is being made.
    Provisioning,
    /// The volume is there.
    Ready,
    /// The volume could not be made; the Ready condition says why.
    Failed,
    /// The volume is being removed.
    Removing,
    /// The volume is in the trash, or left in place by `Retain`: nothing of this Disk is left to do.
    Removed,
    /// A value this version does not know.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// Texts for columns.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiskSummary {
    /// VMs that use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub used_by: Option<String>,
    /// Space taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub allocated: Option<String>,
}
