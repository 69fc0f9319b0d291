//! Decides what this host does about logical networks: which libvirt networks and bridges to make, repair or remove,
//! and which of them guests can be plugged into. Existing bridges are never changed; of ours only those go that no
//! Network explains and no guest uses.

mod bridge;
mod label;
mod nat;

use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use vireo_crds::v1alpha1::{HostNetwork, Network};

pub use label::BridgeLabel;
pub use nat::{NatConfig, nat_bridge_name, nat_network_name};

/// A logical network this host should carry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkIntent {
    /// Name of the Network.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// How it is carried.
    pub carrier: Carrier,
    /// Largest frame.
    pub mtu: u32,
}

/// How a network is carried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Carrier {
    /// A private network of this host.
    Nat {
        /// Its addresses.
        cidr: String,
        /// Guests get addresses by DHCP.
        dhcp: bool,
    },
    /// A bridge that must be there.
    ExistingBridge {
        /// Its name.
        name: String,
    },
    /// A bridge made by us.
    OwnBridge {
        /// Its name.
        name: String,
        /// Interface that becomes a port of it.
        uplink: Option<String>,
    },
    /// A way this version does not know.
    Unknown,
}

impl NetworkIntent {
    /// What a Network asks of each host.
    pub fn of(network: &Network) -> Self {
        let spec = &network.spec;
        let carrier = match (&spec.nat, &spec.bridge) {
            (Some(nat), None) => Carrier::Nat { cidr: nat.cidr.clone(), dhcp: nat.dhcp.is_some() },
            (None, Some(bridge)) => match &bridge.create {
                Some(create) => {
                    Carrier::OwnBridge { name: bridge.name.clone(), uplink: create.uplink.clone() }
                }
                None => Carrier::ExistingBridge { name: bridge.name.clone() },
            },
            _ => Carrier::Unknown,
        };
        Self {
            name: network.metadata.name.clone().unwrap_or_default(),
            uid: network.metadata.uid.clone().unwrap_or_default(),
            carrier,
            mtu: u32::try_from(spec.mtu).unwrap_or(1500),
        }
    }
}

/// What the host has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkFacts {
    /// Every link of the host.
    #[serde(default)]
    pub links: Vec<LinkFact>,
    /// libvirt networks of ours.
    #[serde(default)]
    pub nats: Vec<NatFact>,
    /// Why libvirt's networks could not be read.
    #[serde(default)]
    pub nats_unknown: Option<String>,
}

impl NetworkFacts {
    fn link(&self, name: &str) -> Option<&LinkFact> {
        self.links.iter().find(|link| link.name == name)
    }

    fn ports<'a>(&'a self, bridge: &'a str) -> impl Iterator<Item = &'a LinkFact> {
        self.links.iter().filter(move |link| link.master.as_deref() == Some(bridge))
    }
}

/// One link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkFact {
    /// Name.
    pub name: String,
    /// What it is.
    pub kind: LinkKind,
    /// Alias, by which ours are known.
    #[serde(default)]
    pub alias: Option<String>,
    /// Largest frame.
    pub mtu: u32,
    /// Set up by an administrator or us.
    pub up: bool,
    /// Bridge or bond it belongs to.
    #[serde(default)]
    pub master: Option<String>,
    /// Addresses with the length of their prefix.
    #[serde(default)]
    pub addresses: Vec<(IpAddr, u8)>,
}

impl LinkFact {
    /// An address the host uses; those every interface gives itself do not count.
    fn own_address(&self) -> Option<IpAddr> {
        self.addresses.iter().map(|(address, _)| *address).find(|address| match address {
            IpAddr::V4(_) => true,
            IpAddr::V6(address) => !address.is_unicast_link_local(),
        })
    }
}

/// Kinds of link that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LinkKind {
    /// A Linux bridge.
    Bridge,
    /// A guest's tap.
    Tap,
    /// Anything else.
    Other,
}

/// A libvirt network of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NatFact {
    /// uid of the Network in its metadata.
    pub uid: String,
    /// How it is configured.
    pub config: NatConfig,
    /// Whether it runs; a defined but stopped one does not.
    pub active: bool,
    /// NICs of running guests plugged into it.
    pub guests: u32,
}

/// One thing to do. Each is safe to repeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum NetworkStep {
    /// Afterwards a transient libvirt network of this configuration runs, and taps that belong to it are its ports.
    CreateNat {
        /// uid of the Network.
        uid: String,
        /// How.
        config: NatConfig,
    },
    /// Afterwards there is no libvirt network of this name.
    RemoveNat {
        /// Its name.
        name: String,
    },
    /// Afterwards a bridge of this name with this alias exists, without spanning tree.
    CreateBridge {
        /// Its name.
        name: String,
        /// Whose it is.
        label: BridgeLabel,
        /// Largest frame.
        mtu: u32,
    },
    /// Afterwards the link's alias says this.
    SetLabel {
        /// Its name.
        name: String,
        /// Whose it is.
        label: BridgeLabel,
    },
    /// Afterwards the link has this MTU.
    SetMtu {
        /// Its name.
        name: String,
        /// Largest frame.
        mtu: u32,
    },
    /// Afterwards the link is up.
    SetUp {
        /// Its name.
        name: String,
    },
    /// Afterwards the link is a port of the bridge.
    AddPort {
        /// The bridge.
        bridge: String,
        /// The link.
        port: String,
    },
    /// Afterwards the link is no port of the bridge.
    RemovePort {
        /// The bridge.
        bridge: String,
        /// The link.
        port: String,
    },
    /// Afterwards there is no bridge of this name with this alias.
    RemoveBridge {
        /// Its name.
        name: String,
        /// Whose it was.
        label: BridgeLabel,
    },
}

/// What to do about one network, and what to say of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPlan {
    /// Name of the Network; empty for what no Network explains.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Steps to run, in order.
    #[serde(default)]
    pub steps: Vec<NetworkStep>,
    /// Whether guests can be plugged in once the steps are done.
    pub ready: bool,
    /// Why not, or what else there is to say.
    #[serde(default)]
    pub message: Option<String>,
}

impl NetworkPlan {
    fn of(intent: &NetworkIntent) -> Self {
        Self { name: intent.name.clone(), uid: intent.uid.clone(), steps: vec![], ready: true, message: None }
    }

    fn refused(intent: &NetworkIntent, message: String) -> Self {
        Self { ready: false, message: Some(message), ..Self::of(intent) }
    }

    /// What the Host says of it while `failure` is what running the steps met, if anything.
    pub fn report(&self, failure: Option<&str>) -> HostNetwork {
        let message = failure.map(str::to_owned).or_else(|| self.message.clone());
        HostNetwork {
            name: self.name.clone(),
            uid: self.uid.clone(),
            ready: self.ready && failure.is_none(),
            message: message.map(|text| text.chars().take(500).collect()),
        }
    }
}

/// Decides about all networks of this host at once: what is ours and explained by none of them goes.
pub fn plan_networks(
    intents: &[NetworkIntent],
    facts: &NetworkFacts,
    installation: &str,
) -> Vec<NetworkPlan> {
    let mut plans: Vec<NetworkPlan> = intents
        .iter()
        .map(|intent| match &intent.carrier {
            Carrier::Nat { cidr, dhcp } => nat::plan(intent, cidr, *dhcp, facts),
            Carrier::ExistingBridge { name } => bridge::plan_existing(intent, name, facts),
            Carrier::OwnBridge { name, uplink } => {
                bridge::plan_own(intent, name, uplink.as_deref(), facts, installation)
            }
            Carrier::Unknown => NetworkPlan::refused(
                intent,
                "this version of the node daemon carries nat and bridge networks only; upgrade it".into(),
            ),
        })
        .collect();
    let leftovers: Vec<NetworkStep> = nat::leftovers(intents, facts)
        .into_iter()
        .chain(bridge::leftovers(intents, facts, installation))
        .collect();
    if !leftovers.is_empty() {
        plans.push(NetworkPlan {
            name: String::new(),
            uid: String::new(),
            steps: leftovers,
            ready: true,
            message: None,
        });
    }
    plans
}
