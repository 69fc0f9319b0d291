//! Disks and network interfaces of a VirtualMachine.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::disk::DiskSpec;

/// One disk of a VM. Exactly one of `disk`, `template`, `cdrom` and `ephemeral` says what it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.disk), has(self.template), has(self.cdrom), has(self.ephemeral)].filter(x, x).size() == 1").message("a disk has exactly one of disk, template, cdrom and ephemeral"))]
pub struct VmDisk {
    /// Name of the disk inside this VM.
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// An existing Disk of this namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskRef>,
    /// Makes Disk `<vm>-<name>`, owned by this VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<DiskSpec>,
    /// A Disk shown as a read-only CD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cdrom: Option<CdromSource>,
    /// A throw-away layer over a Disk: what the guest writes is gone at the next start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<EphemeralSource>,
    /// Bus the guest sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus: Option<DiskBus>,
    /// Place in the boot order; the lowest boots first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub boot_order: Option<i32>,
    /// The guest cannot write to it.
    #[serde(default)]
    pub read_only: bool,
    /// How the host's page cache is used.
    #[serde(default)]
    pub cache: DiskCache,
    /// Serial number the guest sees; left out, derived from the Disk's uid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 20), regex(pattern = r"^[A-Za-z0-9_.+-]+$"))]
    pub serial: Option<String>,
}

/// Reference to a Disk of the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiskRef {
    /// Name of the Disk.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Content of a CD drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CdromSource {
    /// Name of the Disk in the drive; left out, the drive is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub disk: Option<String>,
}

/// What an ephemeral disk is a layer over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EphemeralSource {
    /// Name of the Disk below; several VMs may share it, none writes to it.
    #[schemars(length(min = 1, max = 253))]
    pub disk: String,
}

/// Bus of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum DiskBus {
    /// virtio-blk.
    Virtio,
    /// virtio-scsi.
    Scsi,
    /// AHCI.
    Sata,
    /// A value this version does not know: refused.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// Use of the host's page cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum DiskCache {
    /// O_DIRECT: no host page cache; the safe choice on shared storage.
    #[default]
    None,
    /// Reads are cached, writes go through.
    Writethrough,
    /// Reads and writes are cached; the guest's flushes are obeyed.
    Writeback,
    /// A value this version does not know: refused.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// One network interface of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Name of the interface inside this VM.
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Network it is plugged into. You need the verb `use` on it.
    #[schemars(length(min = 1, max = 63))]
    pub network: String,
    /// Device model the guest sees.
    #[serde(default)]
    pub model: NicModel,
    /// Its address; left out, derived from (VM uid, interface name) under the cluster's prefix, so that it is
    /// the same wherever the VM runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 17), regex(pattern = r"^[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}$"))]
    pub mac_address: Option<String>,
    /// State of the link; changes at once on a running guest.
    #[serde(default)]
    pub link: Link,
    /// Place in the boot order; the lowest boots first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub boot_order: Option<i32>,
}

/// Device model of an interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum NicModel {
    /// virtio-net.
    #[default]
    Virtio,
    /// Intel 82574.
    E1000e,
    /// Realtek 8139.
    Rtl8139,
    /// A value this version does not know: refused.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// State of a link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Link {
    /// Plugged.
    #[default]
    Up,
    /// Unplugged.
    Down,
    /// A value this version does not know: left as it is.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}
