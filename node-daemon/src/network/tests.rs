//! The network worker on the links of a network namespace of its own, with private networks made of a table.

use std::{
    collections::BTreeMap,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use node_plan::network::{LinkFact, NatConfig, nat_network_name};
use tokio_util::sync::CancellationToken;
use vireo_crds::v1alpha1::{BridgeCreate, BridgeNetwork, HostNetwork, NatNetwork, Network, NetworkSpec};

use super::{
    NetworkInput, Networks, NetworksConfig, links,
    nat::{FoundNat, NatError, NatHost},
};

const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Clone, Default)]
struct Table(Arc<Mutex<BTreeMap<String, FoundNat>>>);

impl NatHost for Table {
    fn networks<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<FoundNat>, NatError>> {
        let found = self.0.lock().unwrap().values().cloned().collect();
        async { Ok(found) }.boxed()
    }

    fn create<'a>(
        &'a self,
        _: &'a str,
        uid: &'a str,
        config: &'a NatConfig,
    ) -> BoxFuture<'a, Result<(), NatError>> {
        let found = FoundNat { uid: uid.into(), config: config.clone(), active: true };
        self.0.lock().unwrap().insert(config.name.clone(), found);
        async { Ok(()) }.boxed()
    }

    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), NatError>> {
        self.0.lock().unwrap().remove(name);
        async { Ok(()) }.boxed()
    }

    fn taps<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<String>, NatError>> {
        async { Ok(vec![]) }.boxed()
    }
}

fn network(name: &str, spec: NetworkSpec) -> Arc<Network> {
    let mut network = Network::new(name, spec);
    network.metadata.uid = Some(format!("uid-{name}"));
    Arc::new(network)
}

fn bridge(name: &str, create: Option<BridgeCreate>) -> NetworkSpec {
    NetworkSpec {
        nat: None,
        bridge: Some(BridgeNetwork { name: name.into(), create }),
        mtu: 1400,
        host_selector: Default::default(),
        required: false,
    }
}

fn nat() -> NetworkSpec {
    NetworkSpec {
        nat: Some(NatNetwork { cidr: "10.88.0.0/24".into(), dhcp: None }),
        bridge: None,
        ..bridge("", None)
    }
}

fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status().unwrap();
    assert!(status.success(), "ip {args}");
}

/// Runs a test on a thread in a network namespace of its own; without the right to make one it is skipped, by name.
fn in_own_namespace(name: &str, test: impl Future<Output = ()> + Send + 'static) {
    let name = name.to_owned();
    #[expect(
        deprecated,
        reason = "the safe call is deprecated for flags that share files between threads; this one does not"
    )]
    let run = move || {
        if rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET).is_err() {
            eprintln!("SKIPPED {name}: no right to make a network namespace");
            return;
        }
        ip("link set lo up");
        // One thread, so that every socket and every child belongs to this namespace.
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
    };
    std::thread::spawn(run).join().unwrap();
}

struct Rig {
    networks: Networks,
    table: Table,
    stop: CancellationToken,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Rig {
    fn new() -> Self {
        let (table, stop) = (Table::default(), CancellationToken::new());
        let networks = Networks::start(
            NetworksConfig { host: "host1".into(), stop: stop.clone() },
            Arc::new(table.clone()),
        );
        Self { networks, table, stop }
    }

    fn update(&self, networks: Vec<Arc<Network>>) {
        self.networks.update(NetworkInput {
            installation_id: Some("i".into()),
            host_labels: BTreeMap::new(),
            networks,
        });
    }

    async fn until(&self, what: &str, holds: impl FnMut(&Vec<HostNetwork>) -> bool) -> Vec<HostNetwork> {
        let mut readiness = self.networks.readiness();
        let waited = tokio::time::timeout(DEADLINE, readiness.wait_for(holds)).await;
        match waited {
            Ok(found) => found.unwrap().clone(),
            Err(_) => panic!("not {what} in time: {:?}", self.networks.readiness().borrow()),
        }
    }

    async fn link(&self, what: &str, holds: impl Fn(&[LinkFact]) -> bool) {
        let (links, mut changes) = links::open().unwrap();
        let wait = async {
            while !holds(&links.read().await.unwrap()) {
                futures::StreamExt::next(&mut changes).await.unwrap();
            }
        };
        if tokio::time::timeout(DEADLINE, wait).await.is_err() {
            panic!("{what} not in time: {:?}", links.read().await.unwrap());
        }
    }
}

fn has(links: &[LinkFact], name: &str, mtu: u32, master: Option<&str>) -> bool {
    links
        .iter()
        .any(|link| link.name == name && link.up && link.mtu == mtu && link.master.as_deref() == master)
}

#[test]
fn bridges_are_made_repaired_and_removed() {
    in_own_namespace("bridges_are_made_repaired_and_removed", async {
        ip("link add up0 type veth peer name up1");
        let rig = Rig::new();
        let lan = network("lan", bridge("br-lan", Some(BridgeCreate { uplink: Some("up0".into()) })));
        rig.update(vec![lan.clone()]);
        rig.until("ready", |n| n.iter().any(|n| n.name == "lan" && n.ready)).await;
        rig.link("made", |l| has(l, "br-lan", 1400, None) && has(l, "up0", 1400, Some("br-lan"))).await;
        ip("link set br-lan down");
        ip("link set up0 nomaster");
        rig.link("repaired", |l| has(l, "br-lan", 1400, None) && has(l, "up0", 1400, Some("br-lan"))).await;
        rig.update(vec![]);
        rig.link("removed", |l| l.iter().all(|l| l.name != "br-lan") && has(l, "up0", 1400, None)).await;
        rig.until("gone", Vec::is_empty).await;
    });
}

#[test]
fn bridges_of_others_and_uplinks_with_addresses_are_left_alone() {
    in_own_namespace("bridges_of_others_and_uplinks_with_addresses_are_left_alone", async {
        ip("link add br0 type bridge");
        ip("link set br0 up");
        ip("link add up0 type veth peer name up1");
        ip("address add 192.0.2.7/24 dev up0");
        let rig = Rig::new();
        rig.update(vec![
            network("taken", bridge("br0", Some(BridgeCreate { uplink: None }))),
            network("used", bridge("br0", None)),
            network("absent", bridge("br9", None)),
            network("cut", bridge("br-cut", Some(BridgeCreate { uplink: Some("up0".into()) }))),
        ]);
        let said = rig.until("told", |n| n.len() == 4).await;
        let message = |name: &str| {
            said.iter()
                .find(|n| n.name == name)
                .map(|n| (n.ready, n.message.clone().unwrap_or_default()))
                .unwrap()
        };
        assert!(!message("taken").0 && message("taken").1.contains("not made by Vireo"));
        assert!(message("used").0);
        assert!(!message("absent").0 && message("absent").1.contains("does not exist"));
        assert!(!message("cut").0 && message("cut").1.contains("192.0.2.7"));
        rig.update(vec![]);
        rig.link("cleaned", |l| {
            l.iter().any(|l| l.name == "br0" && l.mtu == 1500) && l.iter().all(|l| l.name != "br-cut")
        })
        .await;
    });
}

#[test]
fn private_networks_come_and_go() {
    in_own_namespace("private_networks_come_and_go", async {
        let rig = Rig::new();
        rig.update(vec![network("nat", nat())]);
        rig.until("ready", |n| n.iter().any(|n| n.name == "nat" && n.ready)).await;
        let made = rig.table.0.lock().unwrap()[&nat_network_name("uid-nat")].clone();
        assert_eq!(
            (made.config.cidr.as_str(), made.config.dhcp, made.config.mtu),
            ("10.88.0.0/24", false, 1400)
        );
        rig.update(vec![]);
        rig.until("gone", Vec::is_empty).await;
        assert!(rig.table.0.lock().unwrap().is_empty());
    });
}
