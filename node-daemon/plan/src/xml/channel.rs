//! Channels between guest and host; the guest agent's is the one we make.

use roxmltree::Node;
use serde::{Deserialize, Serialize};

use super::{element::Element, read::NodeExt};

/// Name of the guest agent's channel, by which the guest finds it.
pub const AGENT_CHANNEL: &str = "org.qemu.guest_agent.0";

/// A virtio channel whose host end is a socket of libvirt's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Channel {
    /// Name the guest sees.
    pub name: String,
}

impl Channel {
    /// The guest agent's.
    pub fn agent() -> Self {
        Self { name: AGENT_CHANNEL.into() }
    }

    pub(crate) fn element(&self) -> Element {
        // The port is fixed: the guest finds the channel by name, but a free one could differ on another host.
        Element::new("channel")
            .attr("type", "unix")
            .child(Element::new("target").attr("type", "virtio").attr("name", &self.name))
            .child(
                Element::new("address")
                    .attr("type", "virtio-serial")
                    .attr("controller", 0)
                    .attr("bus", 0)
                    .attr("port", 1),
            )
    }

    pub(crate) fn all_of(devices: Node<'_, '_>) -> Vec<Self> {
        devices
            .all("channel")
            .filter_map(|node| node.child("target"))
            .filter(|target| target.attribute("type") == Some("virtio"))
            .filter_map(|target| target.attribute("name"))
            .map(|name| Self { name: name.into() })
            .collect()
    }
}
