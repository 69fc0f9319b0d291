//! Reads and changes the links of the host by netlink; decides nothing.

use std::collections::HashMap;

use futures::{Stream, StreamExt, TryStreamExt};
use node_plan::network::{LinkFact, LinkKind};
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, MulticastGroup,
    packet_route::{
        address::AddressAttribute,
        link::{BridgeStpState, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    },
};

/// A change of a link that the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No netlink socket.
    #[error("cannot open netlink: {0}")]
    Open(#[source] std::io::Error),
    /// The kernel refused.
    #[error("cannot {what} {link}: {source}")]
    Netlink {
        /// What was tried.
        what: &'static str,
        /// On which link.
        link: String,
        /// Why it failed.
        source: Box<rtnetlink::Error>,
    },
    /// The link is not there, or no longer what it was.
    #[error("{0}")]
    Gone(String),
}

impl LinkError {
    fn on(what: &'static str, link: &str) -> impl FnOnce(rtnetlink::Error) -> Self {
        let link = link.to_owned();
        move |source| Self::Netlink { what, link, source: Box::new(source) }
    }
}

/// The links of the host.
#[derive(Clone)]
pub struct Links {
    handle: Handle,
}

/// Opens netlink; the stream says that something changed, and ends when netlink does.
pub fn open() -> Result<(Links, impl Stream<Item = ()> + Unpin), LinkError> {
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, handle, messages) =
        rtnetlink::new_multicast_connection(&groups).map_err(LinkError::Open)?;
    tokio::spawn(connection);
    Ok((Links { handle }, messages.map(|_| ())))
}

impl Links {
    /// Every link with its addresses.
    pub async fn read(&self) -> Result<Vec<LinkFact>, LinkError> {
        let messages: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(LinkError::on("list", "links"))?;
        let names: HashMap<u32, String> =
            messages.iter().map(|message| (message.header.index, name(message))).collect();
        let mut links: HashMap<u32, LinkFact> =
            messages.iter().map(|message| (message.header.index, fact(message, &names))).collect();
        let mut addresses = self.handle.address().get().execute();
        while let Some(message) = addresses.try_next().await.map_err(LinkError::on("list", "addresses"))? {
            let prefix = message.header.prefix_len;
            let local = message
                .attributes
                .iter()
                .find_map(|a| if let AddressAttribute::Local(address) = a { Some(*address) } else { None });
            let plain = message
                .attributes
                .iter()
                .find_map(|a| if let AddressAttribute::Address(address) = a { Some(*address) } else { None });
            if let (Some(link), Some(address)) = (links.get_mut(&message.header.index), local.or(plain)) {
                link.addresses.push((address, prefix));
            }
        }
        let mut links: Vec<LinkFact> = links.into_values().collect();
        links.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(links)
    }

    /// Makes a bridge without spanning tree and without delay, and labels it; one that is there is only labelled if
    /// it is the one just made.
    pub async fn create_bridge(&self, bridge: &str, alias: &str, mtu: u32) -> Result<(), LinkError> {
        let message =
            LinkBridge::new(bridge).stp_state(BridgeStpState::Disabled).forward_delay(0).mtu(mtu).build();
        self.handle.link().add(message).execute().await.map_err(LinkError::on("make bridge", bridge))?;
        self.set_alias(bridge, alias).await
    }

    /// Sets the alias of a link.
    pub async fn set_alias(&self, link: &str, alias: &str) -> Result<(), LinkError> {
        self.change("label", link, |builder| builder.alias(alias)).await
    }

    /// Sets the MTU of a link.
    pub async fn set_mtu(&self, link: &str, mtu: u32) -> Result<(), LinkError> {
        self.change("set the MTU of", link, |builder| builder.mtu(mtu)).await
    }

    /// Sets a link up.
    pub async fn set_up(&self, link: &str) -> Result<(), LinkError> {
        self.change("set up", link, LinkMessageBuilder::up).await
    }

    /// Makes a link a port of a bridge.
    pub async fn add_port(&self, bridge: &str, port: &str) -> Result<(), LinkError> {
        let index = self.find(bridge).await?.header.index;
        self.change("plug in", port, |builder| builder.controller(index)).await
    }

    /// Takes a link out of a bridge, if it is in that one.
    pub async fn remove_port(&self, bridge: &str, port: &str) -> Result<(), LinkError> {
        let index = self.find(bridge).await?.header.index;
        let inside = self
            .find(port)
            .await?
            .attributes
            .iter()
            .any(|a| matches!(a, LinkAttribute::Controller(master) if *master == index));
        if inside { self.change("unplug", port, LinkMessageBuilder::nocontroller).await } else { Ok(()) }
    }

    /// Removes a bridge, if it still carries this label.
    pub async fn remove_bridge(&self, bridge: &str, alias: &str) -> Result<(), LinkError> {
        let message = self.find(bridge).await?;
        if !message.attributes.iter().any(|a| matches!(a, LinkAttribute::IfAlias(found) if found == alias)) {
            return Err(LinkError::Gone(format!(
                "bridge {bridge} is no longer labelled as ours and is left alone"
            )));
        }
        self.handle
            .link()
            .del(message.header.index)
            .execute()
            .await
            .map_err(LinkError::on("remove bridge", bridge))
    }

    async fn change(
        &self,
        what: &'static str,
        link: &str,
        change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), LinkError> {
        let index = self.find(link).await?.header.index;
        let message = change(LinkUnspec::new_with_index(index)).build();
        self.handle.link().set(message).execute().await.map_err(LinkError::on(what, link))
    }

    async fn find(&self, link: &str) -> Result<LinkMessage, LinkError> {
        let found = self.handle.link().get().match_name(link).execute().try_next().await;
        found
            .map_err(LinkError::on("find", link))?
            .ok_or_else(|| LinkError::Gone(format!("{link} does not exist any more")))
    }
}

fn name(message: &LinkMessage) -> String {
    message
        .attributes
        .iter()
        .find_map(|a| if let LinkAttribute::IfName(name) = a { Some(name.clone()) } else { None })
        .unwrap_or_default()
}

fn fact(message: &LinkMessage, names: &HashMap<u32, String>) -> LinkFact {
    let mut fact = LinkFact {
        name: name(message),
        kind: LinkKind::Other,
        alias: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        master: None,
        addresses: vec![],
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfAlias(alias) => fact.alias = Some(alias.clone()),
            LinkAttribute::Mtu(mtu) => fact.mtu = *mtu,
            LinkAttribute::Controller(index) => fact.master = names.get(index).cloned(),
            LinkAttribute::LinkInfo(infos) => {
                fact.kind = infos.iter().find_map(kind).unwrap_or(LinkKind::Other);
            }
            _ => {}
        }
    }
    fact
}

fn kind(info: &LinkInfo) -> Option<LinkKind> {
    match info {
        LinkInfo::Kind(InfoKind::Bridge) => Some(LinkKind::Bridge),
        LinkInfo::Kind(InfoKind::Tun) => Some(LinkKind::Tap),
        _ => None,
    }
}
