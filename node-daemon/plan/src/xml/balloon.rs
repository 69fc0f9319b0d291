//! The memory balloon: how the host learns what the guest uses.

use roxmltree::Node;
use serde::{Deserialize, Serialize};

use super::{
    address::PciAddress,
    element::Element,
    read::{NodeExt, XmlError},
};

/// A virtio balloon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Balloon {
    /// Where it sits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<PciAddress>,
}

impl Balloon {
    /// libvirt adds a balloon unless told not to, so its absence is written too.
    pub(crate) fn element(balloon: Option<&Self>) -> Element {
        let element = Element::new("memballoon");
        match balloon {
            None => element.attr("model", "none"),
            Some(balloon) => {
                element.attr("model", "virtio").children(balloon.address.map(PciAddress::element))
            }
        }
    }

    pub(crate) fn of(devices: Node<'_, '_>) -> Result<Option<Self>, XmlError> {
        let Some(node) = devices.child("memballoon").filter(|node| node.attribute("model") != Some("none"))
        else {
            return Ok(None);
        };
        Ok(Some(Self { address: PciAddress::of(node)? }))
    }
}
