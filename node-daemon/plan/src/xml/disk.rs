//! Disks and CD drives. Types are explicit and chains end where we say, so that nothing ever probes an image.

use roxmltree::Node;
use serde::{Deserialize, Serialize};

use super::{
    address::{DriveAddress, PciAddress},
    element::Element,
    read::{NodeExt, XmlError},
    token::tokens,
};

tokens! {
    /// What the guest takes it for.
    pub enum DiskDevice {
        /// A disk.
        Disk = "disk",
        /// A CD drive.
        Cdrom = "cdrom",
    }
}

tokens! {
    /// Bus the guest sees.
    pub enum Bus {
        /// virtio-blk.
        Virtio = "virtio",
        /// virtio-scsi.
        Scsi = "scsi",
        /// AHCI.
        Sata = "sata",
    }
}

tokens! {
    /// Format of an image.
    pub enum ImageFormat {
        /// QEMU's copy-on-write format.
        Qcow2 = "qcow2",
        /// Bytes as the guest sees them.
        Raw = "raw",
    }
}

tokens! {
    /// Use of the host's page cache.
    pub enum Cache {
        /// O_DIRECT.
        None = "none",
        /// Reads are cached.
        Writethrough = "writethrough",
        /// Reads and writes are cached, flushes are obeyed.
        Writeback = "writeback",
    }
}

tokens! {
    /// What a failed request does to the guest.
    pub enum ErrorPolicy {
        /// Pauses it until the disk works again.
        Stop = "stop",
        /// Is told to it.
        Report = "report",
    }
}

/// A disk of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// Name in the VM's spec; `target:<device>` for one that somebody else attached.
    pub name: String,
    /// Disk or CD drive.
    pub device: DiskDevice,
    /// Name libvirt knows it by, such as `vda`.
    pub target: String,
    /// Bus.
    pub bus: Bus,
    /// Content.
    pub source: DiskSource,
    /// Use of the host's page cache.
    pub cache: Cache,
    /// What a failed request does.
    pub error_policy: ErrorPolicy,
    /// The guest's discards reach the image.
    #[serde(default)]
    pub discard: bool,
    /// The guest cannot write.
    #[serde(default)]
    pub read_only: bool,
    /// Serial number the guest sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Place in the boot order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_order: Option<u32>,
    /// Where it sits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<DiskAddress>,
}

/// Content of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum DiskSource {
    /// An image file.
    File {
        /// Path on the host.
        path: String,
        /// Format.
        format: ImageFormat,
        /// Images below it, nearest first. The chain ends with the last one.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        backing: Vec<BackingFile>,
    },
    /// Nothing: an empty CD drive.
    Empty,
    /// A kind this version never writes.
    Other(String),
}

/// An image below another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackingFile {
    /// Path on the host.
    pub path: String,
    /// Format.
    pub format: ImageFormat,
}

/// Where a disk sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DiskAddress {
    /// A virtio disk.
    Pci(PciAddress),
    /// A disk on a controller.
    Drive(DriveAddress),
}

const ALIAS_PREFIX: &str = "ua-disk-";

/// libvirt's alias for the disk `name` of a spec: how a disk is recognised whatever its target is.
pub fn disk_alias(name: &str) -> String {
    format!("{ALIAS_PREFIX}{name}")
}

impl Disk {
    pub(crate) fn element(&self) -> Element {
        let kind = match &self.source {
            DiskSource::File { .. } | DiskSource::Empty => "file",
            DiskSource::Other(kind) => kind,
        };
        let driver = Element::new("driver")
            .attr("name", "qemu")
            .attr_opt("type", self.format())
            .attr("cache", &self.cache)
            .attr("error_policy", &self.error_policy)
            .attr("rerror_policy", &self.error_policy);
        let driver = if self.discard {
            driver.attr("discard", "unmap").attr("detect_zeroes", "unmap")
        } else {
            driver
        };
        let mut disk = Element::new("disk").attr("type", kind).attr("device", &self.device).child(driver);
        if let DiskSource::File { path, backing, .. } = &self.source {
            disk = disk.child(Element::new("source").attr("file", path)).child(chain(backing));
        }
        disk = disk.child(Element::new("target").attr("dev", &self.target).attr("bus", &self.bus));
        if self.read_only {
            disk = disk.child(Element::new("readonly"));
        }
        disk.children(self.serial.as_ref().map(|serial| Element::text("serial", serial)))
            .children(self.boot_order.map(|order| Element::new("boot").attr("order", order)))
            .child(Element::new("alias").attr("name", disk_alias(&self.name)))
            .children(self.address.map(|address| match address {
                DiskAddress::Pci(address) => address.element(),
                DiskAddress::Drive(address) => address.element(),
            }))
    }

    fn format(&self) -> Option<&ImageFormat> {
        match &self.source {
            DiskSource::File { format, .. } => Some(format),
            DiskSource::Empty | DiskSource::Other(_) => None,
        }
    }

    pub(crate) fn of(node: Node<'_, '_>) -> Result<Self, XmlError> {
        let target = node.child_attr("target", "dev").ok_or(XmlError::Missing("disk/target/@dev"))?;
        let name = node.child_attr("alias", "name").and_then(|alias| alias.strip_prefix(ALIAS_PREFIX));
        let driver = |name| node.child_attr("driver", name);
        let pci = PciAddress::of(node)?.map(DiskAddress::Pci);
        let drive = DriveAddress::of(node)?.map(DiskAddress::Drive);
        Ok(Self {
            name: name.map_or_else(|| format!("target:{target}"), Into::into),
            device: DiskDevice::from(node.attribute("device").unwrap_or("disk")),
            target: target.into(),
            bus: Bus::from(node.child_attr("target", "bus").unwrap_or_default()),
            source: source(node),
            cache: Cache::from(driver("cache").unwrap_or("default")),
            error_policy: ErrorPolicy::from(driver("error_policy").unwrap_or("default")),
            discard: driver("discard") == Some("unmap"),
            read_only: node.child("readonly").is_some(),
            serial: node.child_text("serial").map(Into::into),
            boot_order: node
                .child("boot")
                .map_or(Ok(None), |boot| boot.parsed("order", "disk/boot/@order"))?,
            address: pci.or(drive),
        })
    }
}

/// `<backingStore>` elements down to the empty one that ends the chain.
fn chain(backing: &[BackingFile]) -> Element {
    backing.iter().rev().fold(Element::new("backingStore"), |below, file| {
        Element::new("backingStore")
            .attr("type", "file")
            .child(Element::new("format").attr("type", &file.format))
            .child(Element::new("source").attr("file", &file.path))
            .child(below)
    })
}

fn source(disk: Node<'_, '_>) -> DiskSource {
    let kind = disk.attribute("type").unwrap_or("file");
    match (kind, disk.child_attr("source", "file")) {
        ("file", None) => DiskSource::Empty,
        ("file", Some(path)) => DiskSource::File {
            path: path.into(),
            format: ImageFormat::from(disk.child_attr("driver", "type").unwrap_or_default()),
            backing: backing(disk),
        },
        (other, _) => DiskSource::Other(other.into()),
    }
}

fn backing(disk: Node<'_, '_>) -> Vec<BackingFile> {
    let mut files = Vec::new();
    let mut below = disk.child("backingStore");
    while let Some(node) = below {
        let Some(path) = node.child_attr("source", "file") else { break };
        let format = ImageFormat::from(node.child_attr("format", "type").unwrap_or_default());
        files.push(BackingFile { path: path.into(), format });
        below = node.child("backingStore");
    }
    files
}
