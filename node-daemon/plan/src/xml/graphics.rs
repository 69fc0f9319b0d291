//! The display and the pointer that goes with it.

use roxmltree::Node;
use serde::{Deserialize, Serialize};

use super::{element::Element, read::NodeExt};

/// A display of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Graphics {
    /// `vnc`, or a kind this version never writes.
    pub kind: String,
    /// Where it listens.
    pub listen: GraphicsListen,
}

/// Where a display listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum GraphicsListen {
    /// On this unix socket.
    Socket(String),
    /// Nowhere.
    None,
    /// Somewhere this version never writes, such as a network address.
    Other(String),
}

impl Graphics {
    /// A VNC display on a unix socket.
    pub fn vnc(socket: impl Into<String>) -> Self {
        Self { kind: "vnc".into(), listen: GraphicsListen::Socket(socket.into()) }
    }

    pub(crate) fn element(&self) -> Element {
        let listen = Element::new("listen");
        let listen = match &self.listen {
            GraphicsListen::Socket(path) => listen.attr("type", "socket").attr("socket", path),
            GraphicsListen::None => listen.attr("type", "none"),
            GraphicsListen::Other(kind) => listen.attr("type", kind),
        };
        Element::new("graphics").attr("type", &self.kind).child(listen)
    }

    pub(crate) fn all_of(devices: Node<'_, '_>) -> Vec<Self> {
        devices.all("graphics").map(Self::of).collect()
    }

    fn of(node: Node<'_, '_>) -> Self {
        let listen = match (
            node.child_attr("listen", "type"),
            node.child_attr("listen", "socket").or(node.attribute("socket")),
        ) {
            (Some("socket") | None, Some(path)) => GraphicsListen::Socket(path.into()),
            (Some("none"), _) => GraphicsListen::None,
            (kind, _) => GraphicsListen::Other(kind.unwrap_or("address").into()),
        };
        Self { kind: node.attribute("type").unwrap_or_default().into(), listen }
    }
}

/// A pointer or keyboard beyond a PC's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InputDevice {
    /// `tablet` or `keyboard`.
    pub kind: String,
    /// Bus.
    pub bus: String,
}

impl InputDevice {
    /// A USB device of this kind.
    pub fn usb(kind: &str) -> Self {
        Self { kind: kind.into(), bus: "usb".into() }
    }

    pub(crate) fn element(&self) -> Element {
        Element::new("input").attr("type", &self.kind).attr("bus", &self.bus)
    }

    /// libvirt adds PS/2 devices to every PC.
    pub(crate) fn all_of(devices: Node<'_, '_>) -> Vec<Self> {
        devices
            .all("input")
            .map(|node| Self {
                kind: node.attribute("type").unwrap_or_default().into(),
                bus: node.attribute("bus").unwrap_or_default().into(),
            })
            .filter(|input| input.bus != "ps2")
            .collect()
    }
}
