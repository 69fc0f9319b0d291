//! The libvirt network that carries a `nat` Network on a host.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use roxmltree::Node;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use thiserror::Error;
use vireo_crds::meta::LIBVIRT_METADATA_NS;

use super::{
    element::Element,
    read::{NodeExt, XmlError, with_document},
};

/// A libvirt network, as far as Vireo owns it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NatNetworkXml {
    /// Name in libvirt.
    pub name: String,
    /// UUID in libvirt: the uid of the Network.
    pub uuid: String,
    /// Bridge that libvirt makes, at most 15 characters.
    pub bridge: String,
    /// Addresses; the first is the host's.
    pub cidr: Cidr,
    /// Guests get addresses by DHCP.
    pub dhcp: bool,
    /// Largest frame.
    pub mtu: u32,
    /// Whose it is. None: not ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<NetworkOwner>,
}

/// Whose network it is and what it was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkOwner {
    /// Installation that made it.
    pub installation_id: String,
    /// uid of the Network.
    pub network_uid: String,
    /// Hash of what it was made from.
    pub spec_hash: String,
}

/// A text that is not an IPv4 network Vireo can carry.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("\"{0}\" is not an IPv4 network of /16 to /29: write it like 10.88.0.0/24")]
pub struct CidrError(String);

/// An IPv4 network of /16 to /29.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    network: u32,
    prefix: u8,
}

impl Cidr {
    /// Address number `n` of the network.
    fn nth(self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.network | n)
    }

    fn size(self) -> u32 {
        1 << (32 - u32::from(self.prefix))
    }

    /// The host's own address.
    pub fn gateway(self) -> Ipv4Addr {
        self.nth(1)
    }

    /// First and last address given to guests.
    pub fn guests(self) -> (Ipv4Addr, Ipv4Addr) {
        (self.nth(2), self.nth(self.size() - 2))
    }

    /// Network mask.
    pub fn netmask(self) -> Ipv4Addr {
        Ipv4Addr::from(!(self.size() - 1))
    }

    /// The network a host address and its mask lie in.
    fn around(address: Ipv4Addr, mask: Ipv4Addr) -> Option<Self> {
        let mask = u32::from(mask);
        let prefix = u8::try_from(mask.leading_ones()).ok()?;
        let cidr = Self { network: u32::from(address) & mask, prefix };
        ((16..=29).contains(&prefix) && u32::from(cidr.netmask()) == mask).then_some(cidr)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let read = || {
            let (address, prefix) = text.split_once('/')?;
            let prefix: u8 = prefix.parse().ok().filter(|prefix| (16..=29).contains(prefix))?;
            let network = u32::from(address.parse::<Ipv4Addr>().ok()?);
            let cidr = Self { network, prefix };
            (network & (cidr.size() - 1) == 0).then_some(cidr)
        };
        read().ok_or_else(|| CidrError(text.chars().take(40).collect()))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.nth(0), self.prefix)
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// The network as the document that `virNetworkCreateXML` takes.
pub fn render_nat(network: &NatNetworkXml) -> String {
    let metadata = network.owner.as_ref().map(|owner| {
        Element::new("metadata").child(
            Element::new("vireo:network")
                .attr("xmlns:vireo", LIBVIRT_METADATA_NS)
                .attr("installation", &owner.installation_id)
                .attr("uid", &owner.network_uid)
                .attr("specHash", &owner.spec_hash),
        )
    });
    let (first, last) = network.cidr.guests();
    let dhcp = network
        .dhcp
        .then(|| Element::new("dhcp").child(Element::new("range").attr("start", first).attr("end", last)));
    Element::new("network")
        .child(Element::text("name", &network.name))
        .child(Element::text("uuid", &network.uuid))
        .children(metadata)
        .child(Element::new("forward").attr("mode", "nat"))
        // No spanning tree and no delay: a guest's first DHCP request must not fall into the listening phase.
        .child(Element::new("bridge").attr("name", &network.bridge).attr("stp", "off").attr("delay", 0))
        .child(Element::new("mtu").attr("size", network.mtu))
        .child(Element::new("dns").attr("enable", "yes"))
        .child(
            Element::new("ip")
                .attr("address", network.cidr.gateway())
                .attr("netmask", network.cidr.netmask())
                .children(dhcp),
        )
        .render()
}

/// Reads a libvirt network as far as Vireo owns it. An error also for a network that is nothing like ours.
pub fn parse_nat(xml: &str) -> Result<NatNetworkXml, XmlError> {
    with_document(xml, "network", |network| {
        let text = |name, path| network.child_text(name).map(str::to_owned).ok_or(XmlError::Missing(path));
        let mode = network.child_attr("forward", "mode").unwrap_or_default();
        if mode != "nat" {
            return Err(XmlError::invalid("forward/@mode", mode));
        }
        let ip = network.child("ip").ok_or(XmlError::Missing("ip"))?;
        Ok(NatNetworkXml {
            name: text("name", "name")?,
            uuid: text("uuid", "uuid")?,
            bridge: network.child_attr("bridge", "name").ok_or(XmlError::Missing("bridge/@name"))?.into(),
            cidr: cidr(ip)?,
            dhcp: ip.child("dhcp").is_some(),
            mtu: network
                .child("mtu")
                .map_or(Ok(None), |mtu| mtu.parsed("size", "mtu/@size"))?
                .unwrap_or(1500),
            owner: owner(network)?,
        })
    })
}

fn cidr(ip: Node<'_, '_>) -> Result<Cidr, XmlError> {
    let address = ip.required("address", "ip/@address")?;
    let netmask = match (ip.attribute("netmask"), ip.parsed::<u32>("prefix", "ip/@prefix")?) {
        (Some(mask), _) => mask.parse().ok(),
        (None, Some(prefix)) => u32::MAX.checked_shl(32u32.saturating_sub(prefix)).map(Ipv4Addr::from),
        (None, None) => None,
    };
    let around = address.parse().ok().zip(netmask).and_then(|(address, mask)| Cidr::around(address, mask));
    around.ok_or_else(|| XmlError::invalid("ip", address))
}

fn owner(network: Node<'_, '_>) -> Result<Option<NetworkOwner>, XmlError> {
    let Some(metadata) = network.child("metadata") else { return Ok(None) };
    let ours = metadata
        .children()
        .find(|node| node.is_element() && node.tag_name().namespace() == Some(LIBVIRT_METADATA_NS));
    let Some(node) = ours else { return Ok(None) };
    Ok(Some(NetworkOwner {
        installation_id: node.required("installation", "metadata/@installation")?.into(),
        network_uid: node.required("uid", "metadata/@uid")?.into(),
        spec_hash: node.required("specHash", "metadata/@specHash")?.into(),
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_of_a_network() {
        let cidr: Cidr = "10.88.0.0/24".parse().unwrap();
        assert_eq!(cidr.gateway().to_string(), "10.88.0.1");
        assert_eq!(cidr.guests(), ("10.88.0.2".parse().unwrap(), "10.88.0.254".parse().unwrap()));
        assert_eq!(cidr.netmask().to_string(), "255.255.255.0");
        for text in ["10.88.0.1/24", "10.88.0.0/15", "10.88.0.0/30", "10.88.0.0", "::/64", "10.88.0.0/24/1"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(seed in any::<u32>(), prefix in 16u8..=29, dhcp: bool, mtu in 576u32..9216, owned: bool) {
            let mask = u32::MAX << (32 - prefix);
            let network = NatNetworkXml {
                name: format!("vireo-{seed}"),
                uuid: "5c0a1b1e-7a0e-4a52-a0a4-0c3c7f5d2e11".into(),
                bridge: "vn5c0a1b1e7a0e".into(),
                cidr: Cidr { network: seed & mask, prefix },
                dhcp,
                mtu,
                owner: owned.then(|| NetworkOwner { installation_id: "i".into(), network_uid: "u".into(), spec_hash: "h<&>".into() }),
            };
            prop_assert_eq!(parse_nat(&render_nat(&network)), Ok(network));
        }

        #[test]
        fn anything_is_read_or_refused(xml in ".{0,200}") {
            let _ = parse_nat(&xml);
        }
    }
}
