//! The graphics card.

use roxmltree::Node;
use serde::{Deserialize, Serialize};

use super::{
    address::PciAddress,
    element::Element,
    read::{NodeExt, XmlError},
    token::tokens,
};

tokens! {
    /// Model of the card.
    pub enum VideoModel {
        /// Standard VGA, which every PC guest can drive.
        Vga = "vga",
        /// virtio-gpu.
        Virtio = "virtio",
        /// No card.
        None = "none",
    }
}

/// A graphics card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Video {
    /// Model.
    pub model: VideoModel,
    /// Where it sits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<PciAddress>,
}

impl Video {
    pub(crate) fn element(&self) -> Element {
        Element::new("video")
            .child(Element::new("model").attr("type", &self.model))
            .children(self.address.map(PciAddress::element))
    }

    pub(crate) fn of(devices: Node<'_, '_>) -> Result<Self, XmlError> {
        let Some(node) = devices.child("video") else {
            return Ok(Self { model: VideoModel::None, address: None });
        };
        let model = VideoModel::from(node.child_attr("model", "type").unwrap_or_default());
        // A card that does not exist sits nowhere, whatever is written.
        let address = if model == VideoModel::None { None } else { PciAddress::of(node)? };
        Ok(Self { model, address })
    }
}
