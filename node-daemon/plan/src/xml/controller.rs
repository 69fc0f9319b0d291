//! Controllers: PCI Express root ports, and those that carry SCSI disks, channels and USB devices.

use roxmltree::Node;
use serde::{Deserialize, Serialize};

use super::{
    address::PciAddress,
    element::Element,
    read::{NodeExt, XmlError},
    token::tokens,
};

tokens! {
    /// What a controller carries.
    pub enum ControllerKind {
        /// SCSI disks, by virtio-scsi.
        Scsi = "scsi",
        /// Channels.
        VirtioSerial = "virtio-serial",
        /// USB devices, by xHCI.
        Usb = "usb",
    }
}

impl ControllerKind {
    fn model(&self) -> Option<&'static str> {
        match self {
            Self::Scsi => Some("virtio-scsi"),
            Self::Usb => Some("qemu-xhci"),
            Self::VirtioSerial | Self::Other(_) => None,
        }
    }
}

/// A controller with a place of its own. Index 0 of its kind: there is never a second one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Controller {
    /// What it carries.
    pub kind: ControllerKind,
    /// Where it sits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<PciAddress>,
}

impl Controller {
    pub(crate) fn element(&self) -> Element {
        Element::new("controller")
            .attr("type", &self.kind)
            .attr("index", 0)
            .attr_opt("model", self.kind.model())
            .children(self.address.map(PciAddress::element))
    }

    /// What libvirt must be told where there is no USB: it adds a controller otherwise.
    pub(crate) fn no_usb() -> Element {
        Element::new("controller").attr("type", "usb").attr("index", 0).attr("model", "none")
    }

    pub(crate) fn all_of(devices: Node<'_, '_>) -> Result<Vec<Self>, XmlError> {
        devices
            .all("controller")
            .filter(|node| node.attribute("index") == Some("0") && node.attribute("model") != Some("none"))
            .filter_map(|node| match ControllerKind::from(node.attribute("type")?) {
                ControllerKind::Other(_) => None,
                kind => Some((node, kind)),
            })
            .map(|(node, kind)| Ok(Self { kind, address: PciAddress::of(node)? }))
            .collect()
    }
}

/// Slots of the root complex that hold root ports: 0 is the host bridge, 1 the screen, 0x10 the watchdog, and a PC's
/// own devices sit at 0x1f.
const FIRST_PORT_SLOT: u8 = 2;
const PORTS_PER_SLOT: u8 = 8;
/// Most root ports a domain has.
pub(crate) const MAX_ROOT_PORTS: u8 = 64;

/// Root port `index`, from 1. Its place depends on the index only, and so does the bus below it.
pub(crate) fn root_port(index: u8) -> Element {
    let slot = FIRST_PORT_SLOT + index.saturating_sub(1) / PORTS_PER_SLOT;
    let function = index.saturating_sub(1) % PORTS_PER_SLOT;
    let address = PciAddress::on_root(slot, function).element();
    let address = if function == 0 { address.attr("multifunction", "on") } else { address };
    Element::new("controller")
        .attr("type", "pci")
        .attr("index", index)
        .attr("model", "pcie-root-port")
        .child(
            Element::new("target")
                .attr("chassis", index)
                .attr("port", format!("0x{:x}", (slot << 3) | function)),
        )
        .child(address)
}

/// How many root ports a domain has.
pub(crate) fn root_ports(devices: Node<'_, '_>) -> u8 {
    let count =
        devices.all("controller").filter(|node| node.attribute("model") == Some("pcie-root-port")).count();
    u8::try_from(count).unwrap_or(u8::MAX)
}
