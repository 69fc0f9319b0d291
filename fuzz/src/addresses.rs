//! PCI addresses, networks and the labels on bridges.

use std::str::FromStr;

use node_plan::{
    network::BridgeLabel,
    xml::{PciAddress, network::Cidr},
};

/// Whatever is accepted reads back as itself, and a network has room for its gateway and guests.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(address) = PciAddress::from_str(text) {
        assert_eq!(PciAddress::from_str(&address.to_string()), Ok(address), "{text}");
    }
    if let Ok(cidr) = Cidr::from_str(text) {
        assert_eq!(Cidr::from_str(&cidr.to_string()), Ok(cidr), "{text}");
        let (first, last) = cidr.guests();
        assert!(cidr.gateway() < first && first <= last, "{text}");
    }
    if let Ok(label) = BridgeLabel::from_str(text) {
        assert_eq!(BridgeLabel::from_str(&label.to_string()).as_ref().ok(), Some(&label), "{text}");
    }
}
