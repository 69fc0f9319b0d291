//! What libvirt filled in by itself in a running domain: facts to report, never drift.

use serde::{Deserialize, Serialize};

use super::{
    channel::AGENT_CHANNEL,
    interface::name_of,
    read::{NodeExt, XmlError, with_document},
};

/// What a running domain shows beyond what it was built from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Observed {
    /// libvirt's number; none: not running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    /// Versioned machine type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_type: Option<String>,
    /// The guest agent has opened its channel.
    #[serde(default)]
    pub agent_connected: bool,
    /// Terminal of the serial console.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console_tty: Option<String>,
    /// Socket of the VNC display.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vnc_socket: Option<String>,
    /// Interfaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<ObservedInterface>,
}

/// An interface of a running domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObservedInterface {
    /// Name in the spec; none: attached by somebody else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its address.
    pub mac: String,
    /// Its end on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

/// Reads a live domain document.
pub fn observe(xml: &str) -> Result<Observed, XmlError> {
    with_document(xml, "domain", |domain| {
        let mut observed = Observed {
            id: domain.parsed("id", "domain/@id")?,
            machine_type: domain.child("os").and_then(|os| os.child_attr("type", "machine")).map(Into::into),
            ..Observed::default()
        };
        let Some(devices) = domain.child("devices") else { return Ok(observed) };
        observed.agent_connected =
            devices.all("channel").filter_map(|channel| channel.child("target")).any(|target| {
                target.attribute("name") == Some(AGENT_CHANNEL)
                    && target.attribute("state") == Some("connected")
            });
        observed.console_tty =
            devices.child("serial").and_then(|serial| serial.child_attr("source", "path")).map(Into::into);
        observed.vnc_socket = devices
            .all("graphics")
            .filter(|graphics| graphics.attribute("type") == Some("vnc"))
            .find_map(|graphics| graphics.child_attr("listen", "socket").or(graphics.attribute("socket")))
            .map(Into::into);
        observed.interfaces = devices
            .all("interface")
            .map(|node| ObservedInterface {
                name: name_of(node).map(Into::into),
                mac: node.child_attr("mac", "address").unwrap_or_default().into(),
                device: node.child_attr("target", "dev").map(Into::into),
            })
            .collect();
        Ok(observed)
    })
}
