//! The serial console: a pty that `virDomainOpenConsole` opens, with a log beside it if asked for.

use roxmltree::Node;
use serde::{Deserialize, Serialize};

use super::{element::Element, read::NodeExt};

/// First serial port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Serial {
    /// `pty`, or a kind this version never writes.
    pub backend: String,
    /// File that keeps what the guest has written since its start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
}

impl Serial {
    /// A pty.
    pub fn pty(log: Option<String>) -> Self {
        Self { backend: "pty".into(), log }
    }

    /// libvirt adds the `<console>` that stands for the same port.
    pub(crate) fn element(&self, pc: bool) -> Element {
        let (kind, model) = if pc { ("isa-serial", "isa-serial") } else { ("system-serial", "pl011") };
        Element::new("serial")
            .attr("type", &self.backend)
            .children(
                self.log.as_ref().map(|path| Element::new("log").attr("file", path).attr("append", "off")),
            )
            .child(
                Element::new("target")
                    .attr("type", kind)
                    .attr("port", 0)
                    .child(Element::new("model").attr("name", model)),
            )
    }

    pub(crate) fn of(devices: Node<'_, '_>) -> Option<Self> {
        let node = devices.child("serial")?;
        Some(Self {
            backend: node.attribute("type").unwrap_or_default().into(),
            log: node.child_attr("log", "file").map(Into::into),
        })
    }
}
