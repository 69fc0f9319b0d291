//! Where a device sits: PCI and drive addresses.

use std::{fmt, str::FromStr};

use roxmltree::Node;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::{
    element::Element,
    read::{NodeExt, XmlError, hex_or_decimal},
};

/// A PCI address, written `0000:01:00.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PciAddress {
    /// Domain.
    pub domain: u16,
    /// Bus; on PCI Express the index of the root port above the device.
    pub bus: u8,
    /// Slot, 0 to 31.
    pub slot: u8,
    /// Function, 0 to 7.
    pub function: u8,
}

impl PciAddress {
    /// A device directly on the root complex.
    pub const fn on_root(slot: u8, function: u8) -> Self {
        Self { domain: 0, bus: 0, slot, function }
    }

    /// The one device below a root port.
    pub const fn below_port(index: u8) -> Self {
        Self { domain: 0, bus: index, slot: 0, function: 0 }
    }

    pub(crate) fn element(self) -> Element {
        Element::new("address")
            .attr("type", "pci")
            .attr("domain", format!("0x{:04x}", self.domain))
            .attr("bus", format!("0x{:02x}", self.bus))
            .attr("slot", format!("0x{:02x}", self.slot))
            .attr("function", format!("0x{:x}", self.function))
    }

    /// The PCI address of a device, if it has one.
    pub(crate) fn of(device: Node<'_, '_>) -> Result<Option<Self>, XmlError> {
        let Some(node) = device.child("address").filter(|node| node.attribute("type") == Some("pci")) else {
            return Ok(None);
        };
        let part = |name: &str, max: u32| {
            let value = node.attribute(name).map_or(Ok(0), |text| hex_or_decimal(text, "address"))?;
            if value <= max { Ok(value) } else { Err(XmlError::invalid("address", &value.to_string())) }
        };
        Ok(Some(Self {
            domain: narrow(part("domain", 0xffff)?),
            bus: narrow(part("bus", 0xff)?),
            slot: narrow(part("slot", 31)?),
            function: narrow(part("function", 7)?),
        }))
    }
}

/// A number that has been checked to fit.
fn narrow<T: TryFrom<u32> + Default>(value: u32) -> T {
    T::try_from(value).unwrap_or_default()
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.slot, self.function)
    }
}

/// A text that is not a PCI address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a PCI address: write it like 0000:01:00.0")]
pub struct PciAddressError(String);

impl FromStr for PciAddress {
    type Err = PciAddressError;

    fn from_str(text: &str) -> Result<Self, PciAddressError> {
        let error = || PciAddressError(text.chars().take(40).collect());
        let (rest, function) = text.split_once('.').ok_or_else(error)?;
        let mut parts = rest.split(':');
        let mut next = |digits: usize| {
            let part = parts
                .next()
                .filter(|part| part.len() == digits && part.bytes().all(|b| b.is_ascii_hexdigit()))?;
            u16::from_str_radix(part, 16).ok()
        };
        let (domain, bus, slot) =
            (next(4).ok_or_else(error)?, next(2).ok_or_else(error)?, next(2).ok_or_else(error)?);
        let function: u8 = function.parse().ok().filter(|function| *function < 8).ok_or_else(error)?;
        if parts.next().is_some() || slot > 31 {
            return Err(error());
        }
        let byte = |value: u16| u8::try_from(value).map_err(|_| error());
        Ok(Self { domain, bus: byte(bus)?, slot: byte(slot)?, function })
    }
}

impl Serialize for PciAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PciAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Place of a disk on a SCSI or SATA controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DriveAddress {
    /// Index of the controller.
    pub controller: u32,
    /// SCSI target.
    pub target: u32,
    /// SCSI LUN or SATA port.
    pub unit: u32,
}

impl DriveAddress {
    pub(crate) fn element(self) -> Element {
        Element::new("address")
            .attr("type", "drive")
            .attr("controller", self.controller)
            .attr("bus", 0)
            .attr("target", self.target)
            .attr("unit", self.unit)
    }

    pub(crate) fn of(device: Node<'_, '_>) -> Result<Option<Self>, XmlError> {
        let Some(node) = device.child("address").filter(|node| node.attribute("type") == Some("drive"))
        else {
            return Ok(None);
        };
        let part = |name: &str| node.attribute(name).map_or(Ok(0), |text| hex_or_decimal(text, "address"));
        Ok(Some(Self { controller: part("controller")?, target: part("target")?, unit: part("unit")? }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_strictly() {
        let address = PciAddress { domain: 0, bus: 0x1f, slot: 3, function: 7 };
        assert_eq!(address.to_string(), "0000:1f:03.7");
        assert_eq!("0000:1f:03.7".parse(), Ok(address));
        for text in [
            "",
            "0000:1f:03",
            "0000:1f:03.8",
            "0000:1f:20.0",
            "0000:1ff:03.0",
            "0:1f:03.0",
            "0000:1f:03.0:1",
            "0000:+f:03.0",
            "\u{661}",
        ] {
            assert!(text.parse::<PciAddress>().is_err(), "{text}");
        }
    }
}
