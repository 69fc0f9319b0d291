//! Network interfaces.

use roxmltree::Node;
use serde::{Deserialize, Serialize};
use vireo_crds::units::Mac;

use super::{
    address::PciAddress,
    element::Element,
    read::{NodeExt, XmlError},
    token::tokens,
};

tokens! {
    /// Device model the guest sees.
    pub enum InterfaceModel {
        /// virtio-net.
        Virtio = "virtio",
        /// Intel 82574.
        E1000e = "e1000e",
        /// Realtek 8139.
        Rtl8139 = "rtl8139",
    }
}

tokens! {
    /// State of the link.
    pub enum LinkState {
        /// Plugged.
        Up = "up",
        /// Unplugged.
        Down = "down",
    }
}

/// An interface of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Name in the VM's spec; `mac:<address>` for one that somebody else attached.
    pub name: String,
    /// Its address.
    pub mac: String,
    /// What it is plugged into.
    pub source: InterfaceSource,
    /// Model.
    pub model: InterfaceModel,
    /// Link.
    pub link: LinkState,
    /// Name of its end on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// MTU, if it is not the network's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Place in the boot order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_order: Option<u32>,
    /// Where it sits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<PciAddress>,
}

/// What an interface is plugged into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum InterfaceSource {
    /// A bridge of the host.
    Bridge(String),
    /// A libvirt network.
    Network(String),
    /// A kind this version never writes.
    Other(String),
}

const ALIAS_PREFIX: &str = "ua-nic-";

/// libvirt's alias for the interface `name` of a spec.
pub fn nic_alias(name: &str) -> String {
    format!("{ALIAS_PREFIX}{name}")
}

/// Name of the host's end of an interface: derived, so that people and metrics find it, and within the kernel's 15
/// characters. libvirt keeps names beginning with `vnet` for itself.
pub fn tap_name(vm_uid: &str, nic: &str) -> String {
    let digest =
        uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, format!("vireo.dev/tap/{vm_uid}/{nic}").as_bytes());
    let hex = digest.simple().to_string();
    format!("vt{}", hex.get(..12).unwrap_or_default())
}

impl Interface {
    pub(crate) fn element(&self) -> Element {
        let (kind, source) = match &self.source {
            InterfaceSource::Bridge(name) => ("bridge", Some(Element::new("source").attr("bridge", name))),
            InterfaceSource::Network(name) => ("network", Some(Element::new("source").attr("network", name))),
            InterfaceSource::Other(kind) => (kind.as_str(), None),
        };
        Element::new("interface")
            .attr("type", kind)
            .child(Element::new("mac").attr("address", &self.mac))
            .children(source)
            .children(self.device.as_ref().map(|device| Element::new("target").attr("dev", device)))
            .child(Element::new("model").attr("type", &self.model))
            .children(self.mtu.map(|mtu| Element::new("mtu").attr("size", mtu)))
            .child(Element::new("link").attr("state", &self.link))
            .children(self.boot_order.map(|order| Element::new("boot").attr("order", order)))
            .child(Element::new("alias").attr("name", nic_alias(&self.name)))
            .children(self.address.map(PciAddress::element))
    }

    pub(crate) fn of(node: Node<'_, '_>) -> Result<Self, XmlError> {
        let mac = node.child_attr("mac", "address").ok_or(XmlError::Missing("interface/mac/@address"))?;
        // One spelling; an address that is none stays as it is, for somebody to look at.
        let mac = mac.parse::<Mac>().map_or_else(|_| mac.to_owned(), |mac| mac.to_string());
        let source = |name| node.child_attr("source", name);
        let kind = node.attribute("type").unwrap_or_default();
        Ok(Self {
            name: name_of(node).map_or_else(|| format!("mac:{mac}"), Into::into),
            source: match (kind, source("bridge"), source("network")) {
                ("bridge", Some(bridge), _) => InterfaceSource::Bridge(bridge.into()),
                ("network", _, Some(network)) => InterfaceSource::Network(network.into()),
                (other, ..) => InterfaceSource::Other(other.into()),
            },
            mac,
            model: InterfaceModel::from(node.child_attr("model", "type").unwrap_or_default()),
            link: LinkState::from(node.child_attr("link", "state").unwrap_or("up")),
            device: node.child_attr("target", "dev").map(Into::into),
            mtu: node.child("mtu").map_or(Ok(None), |mtu| mtu.parsed("size", "interface/mtu/@size"))?,
            boot_order: node
                .child("boot")
                .map_or(Ok(None), |boot| boot.parsed("order", "interface/boot/@order"))?,
            address: PciAddress::of(node)?,
        })
    }
}

/// Name in the spec, if the interface is one of ours.
pub(crate) fn name_of<'a>(node: Node<'a, '_>) -> Option<&'a str> {
    node.child_attr("alias", "name")?.strip_prefix(ALIAS_PREFIX)
}
