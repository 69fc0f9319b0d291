//! The entropy device.

use roxmltree::Node;
use serde::{Deserialize, Serialize};

use super::{
    address::PciAddress,
    element::Element,
    read::{NodeExt, XmlError},
};

/// Entropy from the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rng {
    /// Where the host takes it from.
    pub source: String,
    /// Where it sits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<PciAddress>,
}

impl Rng {
    /// From the kernel's generator, which never blocks.
    pub fn at(address: PciAddress) -> Self {
        Self { source: "/dev/urandom".into(), address: Some(address) }
    }

    pub(crate) fn element(&self) -> Element {
        Element::new("rng")
            .attr("model", "virtio")
            .child(Element::text("backend", &self.source).attr("model", "random"))
            .children(self.address.map(PciAddress::element))
    }

    pub(crate) fn of(devices: Node<'_, '_>) -> Result<Option<Self>, XmlError> {
        let Some(node) = devices.child("rng") else { return Ok(None) };
        Ok(Some(Self {
            source: node.child_text("backend").unwrap_or_default().into(),
            address: PciAddress::of(node)?,
        }))
    }
}
