//! Private networks of one host: libvirt networks with dnsmasq behind them.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::{Carrier, NetworkFacts, NetworkIntent, NetworkPlan, NetworkStep};

/// Name of the libvirt network of a Network.
pub fn nat_network_name(uid: &str) -> String {
    format!("vireo-{uid}")
}

/// Name of its bridge on the host: interface names end at 15 characters.
pub fn nat_bridge_name(uid: &str) -> String {
    let digits: String = uid.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
    format!("vn{digits}")
}

/// How a private network is configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NatConfig {
    /// Name of the libvirt network.
    pub name: String,
    /// Name of its bridge.
    pub bridge: String,
    /// Its addresses.
    pub cidr: String,
    /// Guests get addresses by DHCP.
    pub dhcp: bool,
    /// Largest frame.
    pub mtu: u32,
}

pub(super) fn plan(intent: &NetworkIntent, cidr: &str, dhcp: bool, facts: &NetworkFacts) -> NetworkPlan {
    if let Some(why) = &facts.nats_unknown {
        return NetworkPlan::refused(intent, format!("libvirt's networks cannot be read: {why}"));
    }
    let Some(range) = Range::parse(cidr) else {
        return NetworkPlan::refused(
            intent,
            format!("spec.nat.cidr: \"{cidr}\" is not an IPv4 network such as 10.88.0.0/24"),
        );
    };
    let wanted = NatConfig {
        name: nat_network_name(&intent.uid),
        bridge: nat_bridge_name(&intent.uid),
        cidr: cidr.into(),
        dhcp,
        mtu: intent.mtu,
    };
    let found = facts.nats.iter().find(|nat| nat.uid == intent.uid);
    if let Some(nat) = found.filter(|nat| nat.active) {
        if nat.config == wanted {
            let down = facts.link(&wanted.bridge).is_some_and(|link| !link.up);
            let steps = if down { vec![NetworkStep::SetUp { name: wanted.bridge }] } else { vec![] };
            return NetworkPlan { steps, ..NetworkPlan::of(intent) };
        }
        if nat.guests > 0 {
            let message = format!(
                "still has {} (DHCP {}, MTU {}): changes come when none of its {} guest NICs here is plugged in any more",
                nat.config.cidr,
                if nat.config.dhcp { "on" } else { "off" },
                nat.config.mtu,
                nat.guests
            );
            return NetworkPlan { message: Some(message), ..NetworkPlan::of(intent) };
        }
    }
    if let Some((link, address)) = range.taken_by(facts, &wanted.bridge) {
        let message = format!(
            "{cidr} overlaps with {address} on {link} of this host: choose other addresses for the Network"
        );
        return NetworkPlan::refused(intent, message);
    }
    let mut steps = vec![];
    if let Some(nat) = found {
        steps.push(NetworkStep::RemoveNat { name: nat.config.name.clone() });
    }
    steps.push(NetworkStep::CreateNat { uid: intent.uid.clone(), config: wanted });
    NetworkPlan { steps, ..NetworkPlan::of(intent) }
}

/// Networks of ours that no Network asks for and no guest uses.
pub(super) fn leftovers(intents: &[NetworkIntent], facts: &NetworkFacts) -> Vec<NetworkStep> {
    let explained =
        |uid: &str| intents.iter().any(|i| i.uid == uid && matches!(i.carrier, Carrier::Nat { .. }));
    let idle = facts.nats.iter().filter(|nat| nat.guests == 0 && !explained(&nat.uid));
    idle.map(|nat| NetworkStep::RemoveNat { name: nat.config.name.clone() }).collect()
}

struct Range {
    first: u32,
    prefix: u8,
}

impl Range {
    fn parse(cidr: &str) -> Option<Self> {
        let (address, prefix) = cidr.split_once('/')?;
        let prefix: u8 = prefix.parse().ok().filter(|prefix| (16..=29).contains(prefix))?;
        let first = u32::from(address.parse::<Ipv4Addr>().ok()?);
        (first & !mask(prefix) == 0).then_some(Self { first, prefix })
    }

    /// An address of the host that lies in the range, or whose own network holds the range.
    fn taken_by<'a>(&self, facts: &'a NetworkFacts, own_bridge: &str) -> Option<(&'a str, IpAddr)> {
        facts.links.iter().filter(|link| link.name != own_bridge).find_map(|link| {
            let overlapping = link.addresses.iter().find(|(address, prefix)| match address {
                IpAddr::V4(address) => {
                    let common = mask(self.prefix.min(*prefix));
                    self.first & common == u32::from(*address) & common
                }
                IpAddr::V6(_) => false,
            });
            overlapping.map(|(address, _)| (link.name.as_str(), *address))
        })
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::{LinkFact, LinkKind, NatFact, plan_networks};
    use super::*;
    use crate::network::NetworkStep::{CreateNat, RemoveNat};

    fn intent() -> NetworkIntent {
        NetworkIntent {
            name: "lan".into(),
            uid: "11111111-2222-3333-4444-555555555555".into(),
            carrier: Carrier::Nat { cidr: "10.88.0.0/24".into(), dhcp: true },
            mtu: 1500,
        }
    }

    fn running(guests: u32, cidr: &str) -> NetworkFacts {
        let uid = intent().uid;
        let config = NatConfig {
            name: nat_network_name(&uid),
            bridge: nat_bridge_name(&uid),
            cidr: cidr.into(),
            dhcp: true,
            mtu: 1500,
        };
        NetworkFacts { nats: vec![NatFact { uid, config, active: true, guests }], ..NetworkFacts::default() }
    }

    fn link(name: &str, address: &str, prefix: u8) -> LinkFact {
        LinkFact {
            name: name.into(),
            kind: LinkKind::Other,
            alias: None,
            mtu: 1500,
            up: true,
            master: None,
            addresses: vec![(address.parse().unwrap(), prefix)],
        }
    }

    #[test]
    fn names_fit_an_interface() {
        assert_eq!(nat_bridge_name(&intent().uid), "vn111111112222");
        assert!(nat_bridge_name(&intent().uid).len() <= 15);
    }

    #[test]
    fn a_missing_network_is_made_and_a_right_one_left_alone() {
        let plans = plan_networks(&[intent()], &NetworkFacts::default(), "i");
        assert!(
            matches!(plans.as_slice(), [NetworkPlan { ready: true, steps, .. }] if matches!(steps.as_slice(), [CreateNat { .. }]))
        );
        let plans = plan_networks(&[intent()], &running(3, "10.88.0.0/24"), "i");
        assert!(
            matches!(plans.as_slice(), [NetworkPlan { ready: true, steps, message: None, .. }] if steps.is_empty())
        );
    }

    #[test]
    fn a_changed_network_waits_for_its_guests() {
        let plans = plan_networks(&[intent()], &running(2, "10.99.0.0/24"), "i");
        assert!(
            plans[0].steps.is_empty()
                && plans[0].ready
                && plans[0].message.as_deref().unwrap().contains("10.99.0.0/24")
        );
        let plans = plan_networks(&[intent()], &running(0, "10.99.0.0/24"), "i");
        assert!(matches!(plans[0].steps.as_slice(), [RemoveNat { .. }, CreateNat { .. }]));
    }

    #[test]
    fn addresses_of_the_host_are_not_taken_over() {
        for (address, prefix) in [("10.88.0.7", 24), ("10.80.0.1", 9), ("10.88.0.200", 32)] {
            let facts =
                NetworkFacts { links: vec![link("eth0", address, prefix)], ..NetworkFacts::default() };
            let plans = plan_networks(&[intent()], &facts, "i");
            assert!(!plans[0].ready && plans[0].message.as_deref().unwrap().contains("eth0"), "{address}");
        }
        let facts = NetworkFacts { links: vec![link("eth0", "10.87.0.7", 24)], ..NetworkFacts::default() };
        assert!(plan_networks(&[intent()], &facts, "i")[0].ready);
    }

    #[test]
    fn only_unused_leftovers_go() {
        assert!(plan_networks(&[], &running(1, "10.88.0.0/24"), "i").is_empty());
        let plans = plan_networks(&[], &running(0, "10.88.0.0/24"), "i");
        assert!(matches!(plans[0].steps.as_slice(), [RemoveNat { .. }]));
    }

    #[test]
    fn nothing_is_done_while_libvirt_does_not_answer() {
        let facts =
            NetworkFacts { nats_unknown: Some("connection refused".into()), ..NetworkFacts::default() };
        let plans = plan_networks(&[intent()], &facts, "i");
        assert!(!plans[0].ready && plans[0].steps.is_empty());
    }
}
