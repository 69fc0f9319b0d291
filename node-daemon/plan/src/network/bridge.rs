//! Bridges: those that must be there already, and those we make.

use super::{
    BridgeLabel, Carrier, LinkFact, LinkKind, NetworkFacts, NetworkIntent, NetworkPlan, NetworkStep,
};

pub(super) fn plan_existing(intent: &NetworkIntent, name: &str, facts: &NetworkFacts) -> NetworkPlan {
    let Some(link) = facts.link(name) else {
        return NetworkPlan::refused(
            intent,
            format!(
                "bridge {name} does not exist on this host: make it, or let Vireo make it with spec.bridge.create"
            ),
        );
    };
    if link.kind != LinkKind::Bridge {
        return NetworkPlan::refused(intent, format!("{name} is no Linux bridge on this host"));
    }
    if !link.up {
        return NetworkPlan::refused(
            intent,
            format!("bridge {name} is down on this host: `ip link set {name} up`"),
        );
    }
    if link.mtu < intent.mtu {
        let message = format!(
            "bridge {name} has MTU {} on this host, less than spec.mtu {}: raise it there or lower spec.mtu",
            link.mtu, intent.mtu
        );
        return NetworkPlan::refused(intent, message);
    }
    NetworkPlan::of(intent)
}

pub(super) fn plan_own(
    intent: &NetworkIntent,
    name: &str,
    uplink: Option<&str>,
    facts: &NetworkFacts,
    installation: &str,
) -> NetworkPlan {
    let label = BridgeLabel {
        installation: installation.into(),
        uid: intent.uid.clone(),
        uplink: uplink.map(Into::into),
    };
    let existing = facts.link(name);
    let former = match existing.map(|link| owned_label(link, name, &label)) {
        None => None,
        Some(Ok(former)) => Some(former),
        Some(Err(message)) => return NetworkPlan::refused(intent, message),
    };
    let mut steps = vec![];
    match existing {
        None => {
            steps.push(NetworkStep::CreateBridge {
                name: name.into(),
                label: label.clone(),
                mtu: intent.mtu,
            });
            steps.push(NetworkStep::SetUp { name: name.into() });
        }
        Some(link) => {
            if link.mtu != intent.mtu && uplink.is_none() {
                steps.push(NetworkStep::SetMtu { name: name.into(), mtu: intent.mtu });
            }
            if !link.up {
                steps.push(NetworkStep::SetUp { name: name.into() });
            }
        }
    }
    if let Some(former) = former.filter(|former| *former != label) {
        if let Some(port) = former.uplink.filter(|port| facts.ports(name).any(|link| link.name == *port)) {
            steps.push(NetworkStep::RemovePort { bridge: name.into(), port });
        }
        steps.push(NetworkStep::SetLabel { name: name.into(), label });
    }
    let Some(uplink) = uplink else { return NetworkPlan { steps, ..NetworkPlan::of(intent) } };
    match uplink_steps(intent, name, uplink, facts) {
        Ok(more) => NetworkPlan { steps: steps.into_iter().chain(more).collect(), ..NetworkPlan::of(intent) },
        // Guests that are there already go on talking to each other; for none, nothing is made.
        Err(message) if existing.is_some() => NetworkPlan { steps, ..NetworkPlan::refused(intent, message) },
        Err(message) => NetworkPlan::refused(intent, message),
    }
}

/// The label of a link that is our bridge for this very Network, or why it is not.
fn owned_label(link: &LinkFact, name: &str, wanted: &BridgeLabel) -> Result<BridgeLabel, String> {
    if link.kind != LinkKind::Bridge {
        return Err(format!("{name} exists on this host and is no bridge: choose another name"));
    }
    match link.alias.as_deref().map(str::parse::<BridgeLabel>) {
        Some(Ok(label)) if label.installation != wanted.installation => Err(format!(
            "bridge {name} was made by another Vireo installation ({}): choose another name",
            label.installation
        )),
        Some(Ok(label)) if label.uid != wanted.uid => Err(format!(
            "bridge {name} was made for another Network (uid {}): choose another name",
            label.uid
        )),
        Some(Ok(label)) => Ok(label),
        None | Some(Err(_)) => Err(format!(
            "bridge {name} exists on this host and was not made by Vireo: to use it as it is, leave out spec.bridge.create; else choose another name"
        )),
    }
}

fn uplink_steps(
    intent: &NetworkIntent,
    bridge: &str,
    uplink: &str,
    facts: &NetworkFacts,
) -> Result<Vec<NetworkStep>, String> {
    let link = facts.link(uplink).ok_or_else(|| format!("uplink {uplink} does not exist on this host"))?;
    let mut steps = vec![];
    if link.mtu != intent.mtu {
        steps.push(NetworkStep::SetMtu { name: uplink.into(), mtu: intent.mtu });
    }
    if facts.link(bridge).is_some_and(|link| link.mtu != intent.mtu) {
        steps.push(NetworkStep::SetMtu { name: bridge.into(), mtu: intent.mtu });
    }
    if !link.up {
        steps.push(NetworkStep::SetUp { name: uplink.into() });
    }
    if link.master.as_deref() == Some(bridge) {
        return Ok(steps);
    }
    if let Some(master) = &link.master {
        return Err(format!("uplink {uplink} is a port of {master}: take it out there first"));
    }
    if link.kind == LinkKind::Bridge {
        return Err(format!(
            "uplink {uplink} is itself a bridge: name one of its ports, or use it as an existing bridge"
        ));
    }
    if let Some(address) = link.own_address() {
        return Err(format!(
            "uplink {uplink} carries address {address} of this host, which would be cut off: use an interface without one"
        ));
    }
    steps.push(NetworkStep::AddPort { bridge: bridge.into(), port: uplink.into() });
    Ok(steps)
}

/// Bridges of ours that no Network asks for and no guest uses.
pub(super) fn leftovers(
    intents: &[NetworkIntent],
    facts: &NetworkFacts,
    installation: &str,
) -> Vec<NetworkStep> {
    let mut steps = vec![];
    for link in facts.links.iter().filter(|link| link.kind == LinkKind::Bridge) {
        let Some(Ok(label)) = link.alias.as_deref().map(str::parse::<BridgeLabel>) else { continue };
        let explained = intents.iter().any(|i| {
            i.uid == label.uid && matches!(&i.carrier, Carrier::OwnBridge { name, .. } if *name == link.name)
        });
        let in_use = facts.ports(&link.name).any(|port| port.kind == LinkKind::Tap);
        if label.installation != installation || explained || in_use {
            continue;
        }
        if let Some(port) =
            label.uplink.clone().filter(|port| facts.ports(&link.name).any(|link| link.name == *port))
        {
            steps.push(NetworkStep::RemovePort { bridge: link.name.clone(), port });
        }
        steps.push(NetworkStep::RemoveBridge { name: link.name.clone(), label });
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::super::{NetworkPlan, plan_networks};
    use super::*;

    fn own(uplink: Option<&str>) -> NetworkIntent {
        NetworkIntent {
            name: "lan".into(),
            uid: "u".into(),
            carrier: Carrier::OwnBridge { name: "br-lan".into(), uplink: uplink.map(Into::into) },
            mtu: 1500,
        }
    }

    fn link(name: &str, kind: LinkKind) -> LinkFact {
        LinkFact {
            name: name.into(),
            kind,
            alias: None,
            mtu: 1500,
            up: true,
            master: None,
            addresses: vec![],
        }
    }

    fn ours(uplink: Option<&str>) -> LinkFact {
        let label = BridgeLabel { installation: "i".into(), uid: "u".into(), uplink: uplink.map(Into::into) };
        LinkFact { alias: Some(label.to_string()), ..link("br-lan", LinkKind::Bridge) }
    }

    fn plan(intent: &NetworkIntent, links: Vec<LinkFact>) -> NetworkPlan {
        let facts = NetworkFacts { links, ..NetworkFacts::default() };
        plan_networks(std::slice::from_ref(intent), &facts, "i").remove(0)
    }

    #[test]
    fn labels_round_trip() {
        for label in [
            BridgeLabel { installation: "i".into(), uid: "u".into(), uplink: None },
            BridgeLabel { installation: "i".into(), uid: "u".into(), uplink: Some("eth1".into()) },
        ] {
            assert_eq!(label.to_string().parse(), Ok(label));
        }
        assert!("my bridge".parse::<BridgeLabel>().is_err());
    }

    #[test]
    fn a_bridge_is_made_with_its_uplink_and_then_left_alone() {
        let made = plan(&own(Some("eth1")), vec![link("eth1", LinkKind::Other)]);
        assert!(
            made.ready && made.steps.iter().any(|s| matches!(s, NetworkStep::AddPort { .. })),
            "{made:?}"
        );
        let port = LinkFact { master: Some("br-lan".into()), ..link("eth1", LinkKind::Other) };
        let rest = plan(&own(Some("eth1")), vec![ours(Some("eth1")), port]);
        assert!(rest.ready && rest.steps.is_empty(), "{rest:?}");
    }

    #[test]
    fn an_uplink_with_an_address_is_left_to_the_host() {
        let with_address =
            LinkFact { addresses: vec![("192.0.2.7".parse().unwrap(), 24)], ..link("eth0", LinkKind::Other) };
        let refused = plan(&own(Some("eth0")), vec![with_address]);
        assert!(!refused.ready && refused.message.as_deref().unwrap().contains("carries address 192.0.2.7"));
        assert!(refused.steps.is_empty());
        let link_local =
            LinkFact { addresses: vec![("fe80::1".parse().unwrap(), 64)], ..link("eth0", LinkKind::Other) };
        assert!(plan(&own(Some("eth0")), vec![link_local]).ready);
        let busy = LinkFact { master: Some("bond0".into()), ..link("eth0", LinkKind::Other) };
        assert!(plan(&own(Some("eth0")), vec![busy]).message.unwrap().contains("port of bond0"));
        assert!(plan(&own(Some("eth9")), vec![]).message.unwrap().contains("does not exist"));
    }

    #[test]
    fn what_is_not_ours_is_never_changed() {
        let foreign =
            plan(&own(None), vec![LinkFact { up: false, mtu: 9000, ..link("br-lan", LinkKind::Bridge) }]);
        assert!(!foreign.ready && foreign.steps.is_empty());
        let other = BridgeLabel { installation: "other".into(), uid: "u".into(), uplink: None };
        let stranger = LinkFact { alias: Some(other.to_string()), ..link("br-lan", LinkKind::Bridge) };
        assert!(!plan(&own(None), vec![stranger.clone()]).ready);
        let facts = NetworkFacts { links: vec![stranger], ..NetworkFacts::default() };
        assert!(plan_networks(&[], &facts, "i").is_empty());
        let existing = NetworkIntent { carrier: Carrier::ExistingBridge { name: "br0".into() }, ..own(None) };
        for bad in [
            vec![],
            vec![link("br0", LinkKind::Other)],
            vec![LinkFact { up: false, ..link("br0", LinkKind::Bridge) }],
            vec![LinkFact { mtu: 1400, ..link("br0", LinkKind::Bridge) }],
        ] {
            let refused = plan(&existing, bad);
            assert!(!refused.ready && refused.steps.is_empty() && refused.message.is_some());
        }
        assert!(plan(&existing, vec![link("br0", LinkKind::Bridge)]).ready);
    }

    #[test]
    fn drift_of_our_bridge_is_repaired() {
        let drifted = plan(&own(None), vec![LinkFact { up: false, mtu: 1400, ..ours(None) }]);
        assert_eq!(
            drifted.steps,
            [
                NetworkStep::SetMtu { name: "br-lan".into(), mtu: 1500 },
                NetworkStep::SetUp { name: "br-lan".into() }
            ]
        );
        let port = LinkFact { master: Some("br-lan".into()), ..link("eth1", LinkKind::Other) };
        let moved = plan(&own(Some("eth2")), vec![ours(Some("eth1")), port, link("eth2", LinkKind::Other)]);
        assert!(
            moved.steps.contains(&NetworkStep::RemovePort { bridge: "br-lan".into(), port: "eth1".into() })
        );
        assert!(moved.steps.contains(&NetworkStep::AddPort { bridge: "br-lan".into(), port: "eth2".into() }));
    }

    #[test]
    fn a_leftover_goes_only_when_no_guest_is_plugged_in() {
        let tap = LinkFact { master: Some("br-lan".into()), ..link("vnet0", LinkKind::Tap) };
        let facts = NetworkFacts { links: vec![ours(None), tap], ..NetworkFacts::default() };
        assert!(plan_networks(&[], &facts, "i").is_empty());
        let facts = NetworkFacts { links: vec![ours(Some("eth1"))], ..NetworkFacts::default() };
        let label: BridgeLabel = ours(Some("eth1")).alias.unwrap().parse().unwrap();
        assert_eq!(
            plan_networks(&[], &facts, "i")[0].steps,
            [NetworkStep::RemoveBridge { name: "br-lan".into(), label }]
        );
    }
}
