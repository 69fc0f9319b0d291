//! Private networks as transient libvirt networks: nothing of them outlives a boot of the host, and nothing is left
//! in libvirt's own configuration. Decides nothing.

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use node_plan::{
    network::NatConfig,
    xml::{
        live::taps_on,
        network::{NatNetworkXml, NetworkOwner, parse_nat, render_nat},
    },
};
use virt::{connect::Connect, enumutil::Enum, error::ErrorNumber};

use crate::host::libvirt::{connection::spawn, events};

/// A call about private networks that failed.
#[derive(Debug, thiserror::Error)]
pub enum NatError {
    /// libvirt refused, or does not answer.
    #[error("cannot {what}: {message}")]
    Libvirt {
        /// What was tried.
        what: &'static str,
        /// What libvirt says.
        message: String,
    },
    /// The configuration cannot be rendered.
    #[error("{0}")]
    Config(String),
}

/// A private network of ours, as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundNat {
    /// uid of the Network in its metadata.
    pub uid: String,
    /// How it is configured.
    pub config: NatConfig,
    /// Whether it runs.
    pub active: bool,
}

/// What makes private networks.
pub trait NatHost: Send + Sync + 'static {
    /// Those of this installation.
    fn networks<'a>(&'a self, installation: &'a str) -> BoxFuture<'a, Result<Vec<FoundNat>, NatError>>;
    /// Makes one; one of the same name that runs already is fine.
    fn create<'a>(
        &'a self,
        installation: &'a str,
        uid: &'a str,
        config: &'a NatConfig,
    ) -> BoxFuture<'a, Result<(), NatError>>;
    /// Removes one; one that is not there is fine.
    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), NatError>>;
    /// Taps of running guests that belong to it.
    fn taps<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<String>, NatError>>;
}

/// Private networks by libvirt.
#[derive(Clone)]
pub struct LibvirtNat {
    uri: Arc<str>,
}

impl LibvirtNat {
    /// Uses the libvirt at this URI.
    pub fn new(uri: impl AsRef<str>) -> Self {
        Self { uri: uri.as_ref().into() }
    }

    /// Runs one call on a connection and a thread of its own: these calls are rare, and one that hangs, say in
    /// dnsmasq, delays no other.
    async fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        call: impl FnOnce(&Connect) -> Result<T, virt::error::Error> + Send + 'static,
    ) -> Result<T, NatError> {
        let uri = self.uri.clone();
        let work = move || {
            let connect = Connect::open(Some(&uri))?;
            let result = call(&connect);
            events::close(connect);
            result
        };
        let failed = |message: String| NatError::Libvirt { what, message };
        spawn("networks", work)
            .await
            .map_err(|e| failed(e.to_string()))?
            .map_err(|e| failed(e.message().to_owned()))
    }
}

impl NatHost for LibvirtNat {
    fn networks<'a>(&'a self, installation: &'a str) -> BoxFuture<'a, Result<Vec<FoundNat>, NatError>> {
        async move {
            let found = self
                .call("list libvirt's networks", |connect| {
                    let mut found = vec![];
                    for network in connect.list_all_networks(0)? {
                        // A network may go while the list is read.
                        if let (Ok(xml), Ok(active)) = (network.xml_desc(0), network.is_active()) {
                            found.push((xml, active));
                        }
                    }
                    Ok(found)
                })
                .await?;
            Ok(found.into_iter().filter_map(|(xml, active)| ours(&xml, active, installation)).collect())
        }
        .boxed()
    }

    fn create<'a>(
        &'a self,
        installation: &'a str,
        uid: &'a str,
        config: &'a NatConfig,
    ) -> BoxFuture<'a, Result<(), NatError>> {
        async move {
            let xml = render(installation, uid, config)?;
            let name = config.name.clone();
            self.call("make the private network", move |connect| {
                match connect.lookup_network_by_name(&name) {
                    Ok(network) if network.is_active()? => Ok(()),
                    // Somebody defined it by hand: what is ours is transient.
                    Ok(network) => {
                        network.undefine().and_then(|()| connect.create_network_xml(&xml).map(drop))
                    }
                    Err(error) if is_absent(&error) => connect.create_network_xml(&xml).map(drop),
                    Err(error) => Err(error),
                }
            })
            .await
        }
        .boxed()
    }

    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), NatError>> {
        let name = name.to_owned();
        self.call("remove the private network", move |connect| {
            let network = match connect.lookup_network_by_name(&name) {
                Ok(network) => network,
                Err(error) if is_absent(&error) => return Ok(()),
                Err(error) => return Err(error),
            };
            let persistent = network.is_persistent()?;
            if network.is_active()? {
                network.destroy()?;
            }
            if persistent { network.undefine() } else { Ok(()) }
        })
        .boxed()
    }

    fn taps<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<String>, NatError>> {
        let name = name.to_owned();
        self.call("list guests", move |connect| {
            let mut taps = vec![];
            for domain in connect.list_all_domains(virt_sys::VIR_CONNECT_LIST_DOMAINS_ACTIVE)? {
                if let Ok(xml) = domain.xml_desc(0) {
                    taps.extend(taps_on(&xml, &name));
                }
            }
            Ok(taps)
        })
        .boxed()
    }
}

fn is_absent(error: &virt::error::Error) -> bool {
    error.code() == Enum::Known(ErrorNumber::NoNetwork)
}

fn ours(xml: &str, active: bool, installation: &str) -> Option<FoundNat> {
    let parsed = parse_nat(xml).ok()?;
    let owner = parsed.owner.filter(|owner| owner.installation_id == installation)?;
    let config = NatConfig {
        name: parsed.name,
        bridge: parsed.bridge,
        cidr: parsed.cidr.to_string(),
        dhcp: parsed.dhcp,
        mtu: parsed.mtu,
    };
    Some(FoundNat { uid: owner.network_uid, config, active })
}

fn render(installation: &str, uid: &str, config: &NatConfig) -> Result<String, NatError> {
    let cidr = config.cidr.parse().map_err(|e| NatError::Config(format!("{e}")))?;
    Ok(render_nat(&NatNetworkXml {
        name: config.name.clone(),
        uuid: uid.into(),
        bridge: config.bridge.clone(),
        cidr,
        dhcp: config.dhcp,
        mtu: config.mtu,
        owner: Some(NetworkOwner {
            installation_id: installation.into(),
            network_uid: uid.into(),
            spec_hash: format!("{} {} {}", config.cidr, config.dhcp, config.mtu),
        }),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_rendered_is_recognised_by_its_installation() {
        let config = NatConfig {
            name: "vireo-u".into(),
            bridge: "vnu".into(),
            cidr: "10.88.0.0/24".into(),
            dhcp: true,
            mtu: 1500,
        };
        let xml = render("i", "11111111-2222-3333-4444-555555555555", &config).unwrap();
        let found = ours(&xml, true, "i").unwrap();
        assert_eq!(
            (found.config, found.active, found.uid.as_str()),
            (config, true, "11111111-2222-3333-4444-555555555555")
        );
        assert_eq!(ours(&xml, true, "another"), None);
        assert_eq!(ours("<network><name>default</name></network>", true, "i"), None);
    }
}
