//! The watchdog device.

use roxmltree::Node;
use serde::{Deserialize, Serialize};

use super::{
    address::PciAddress,
    element::Element,
    read::{NodeExt, XmlError},
    token::tokens,
};

tokens! {
    /// Device the guest sees.
    pub enum WatchdogModel {
        /// Intel 6300ESB: every supported libvirt has it, and guests know it.
        I6300esb = "i6300esb",
        /// The one a q35 board has by itself.
        Itco = "itco",
    }
}

tokens! {
    /// What it does.
    pub enum WatchdogDeed {
        /// Resets the guest.
        Reset = "reset",
        /// Cuts its power.
        Poweroff = "poweroff",
        /// Pauses it.
        Pause = "pause",
        /// Reports.
        None = "none",
    }
}

/// A watchdog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Watchdog {
    /// Device.
    pub model: WatchdogModel,
    /// What it does to a guest that stops feeding it.
    pub action: WatchdogDeed,
    /// Where it sits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<PciAddress>,
}

impl Watchdog {
    pub(crate) fn element(&self) -> Element {
        Element::new("watchdog")
            .attr("model", &self.model)
            .attr("action", &self.action)
            .children(self.address.map(PciAddress::element))
    }

    /// newer libvirt adds an itco watchdog to every q35 domain; only one that acts through a device of its own counts.
    pub(crate) fn of(devices: Node<'_, '_>) -> Result<Option<Self>, XmlError> {
        let Some(node) = devices.all("watchdog").find(|node| node.attribute("model") != Some("itco")) else {
            return Ok(None);
        };
        Ok(Some(Self {
            model: WatchdogModel::from(node.attribute("model").unwrap_or_default()),
            action: WatchdogDeed::from(node.attribute("action").unwrap_or("reset")),
            address: PciAddress::of(node)?,
        }))
    }
}
