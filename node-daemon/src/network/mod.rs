//! Makes the networks of this host true: one serial task that looks, decides with `node_plan::network`, runs the
//! steps, and looks again. It wakes when the picture changes and when a link of the host does.

pub mod links;
pub mod nat;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::StreamExt;
use node_plan::network::{NatFact, NetworkFacts, NetworkIntent, NetworkPlan, NetworkStep, plan_networks};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use vireo_crds::v1alpha1::{HostNetwork, Network};

use crate::{backoff, error::RetryClass};
use links::{LinkError, Links};
use nat::{NatError, NatHost};

/// Changes of links come in bursts, one for each tap of a guest.
const GATHER: Duration = Duration::from_millis(300);
/// Rounds of looking and doing before something else must be wrong.
const MAX_ROUNDS: usize = 4;

/// What does not change while the daemon runs.
#[derive(Debug, Clone)]
pub struct NetworksConfig {
    /// Name of this Host.
    pub host: String,
    /// Ends the worker.
    pub stop: CancellationToken,
}

/// The whole picture, as the API server has it.
#[derive(Debug, Clone, Default)]
pub struct NetworkInput {
    /// This installation; none until it is known: then nothing is made or removed.
    pub installation_id: Option<String>,
    /// Labels of this Host.
    pub host_labels: BTreeMap<String, String>,
    /// All networks.
    pub networks: Vec<Arc<Network>>,
}

/// Handle of the network worker.
#[derive(Clone)]
pub struct Networks {
    input: watch::Sender<NetworkInput>,
    readiness: watch::Receiver<Vec<HostNetwork>>,
}

impl Networks {
    /// Starts the worker.
    pub fn start(config: NetworksConfig, nat: Arc<dyn NatHost>) -> Self {
        let (input, inputs) = watch::channel(NetworkInput::default());
        let (said, readiness) = watch::channel(vec![]);
        tokio::spawn(Worker { config, nat, inputs, said, attempt: 0 }.run());
        Self { input, readiness }
    }

    /// Takes the newest picture.
    pub fn update(&self, input: NetworkInput) {
        self.input.send_replace(input);
    }

    /// What the Host says of its networks, by name.
    pub fn readiness(&self) -> watch::Receiver<Vec<HostNetwork>> {
        self.readiness.clone()
    }
}

/// A step that failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The kernel refused.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// libvirt refused.
    #[error(transparent)]
    Nat(#[from] NatError),
}

impl NetworkError {
    /// What to do about it.
    pub fn class(&self) -> RetryClass {
        match self {
            Self::Link(_) | Self::Nat(_) => RetryClass::Transient,
        }
    }
}

struct Worker {
    config: NetworksConfig,
    nat: Arc<dyn NatHost>,
    inputs: watch::Receiver<NetworkInput>,
    said: watch::Sender<Vec<HostNetwork>>,
    attempt: u32,
}

impl Worker {
    async fn run(mut self) {
        let stop = self.config.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.work() => {}
        }
    }

    async fn work(&mut self) {
        // Nothing is known yet, so nothing is a leftover.
        if self.inputs.changed().await.is_err() {
            return;
        }
        loop {
            let (links, mut changes) = match links::open() {
                Ok(opened) => opened,
                Err(error) => {
                    tracing::warn!("the host's links cannot be watched: {error}");
                    self.attempt = self.attempt.saturating_add(1);
                    tokio::time::sleep(backoff::pause(RetryClass::Transient, self.attempt, 0)).await;
                    continue;
                }
            };
            loop {
                let retry = self.settle(&links).await;
                tokio::select! {
                    changed = self.inputs.changed() => if changed.is_err() { return },
                    changed = changes.next() => {
                        if changed.is_none() {
                            break;
                        }
                        let gathered = Instant::now() + GATHER;
                        while let Ok(Some(())) = tokio::time::timeout_at(gathered, changes.next()).await {}
                    }
                    () = sleep_until(retry) => {}
                }
            }
        }
    }

    /// Looks, decides and acts until nothing is left to do; reports; returns when to try again.
    async fn settle(&mut self, links: &Links) -> Option<Instant> {
        let input = self.inputs.borrow_and_update().clone();
        let installation = input.installation_id.clone()?;
        let intents: Vec<NetworkIntent> = input
            .networks
            .iter()
            .filter(|network| network.metadata.deletion_timestamp.is_none())
            .filter(|network| network.spec.host_selector.matches(Some(&input.host_labels)))
            .map(|network| NetworkIntent::of(network))
            .collect();
        let mut failures: BTreeMap<String, String> = BTreeMap::new();
        let mut plans = vec![];
        for _ in 0..MAX_ROUNDS {
            let facts = match self.look(links, &installation).await {
                Ok(facts) => facts,
                Err(error) => {
                    tracing::warn!("the host's links cannot be read: {error}");
                    return self.later(true);
                }
            };
            plans = plan_networks(&intents, &facts, &installation);
            let mut acted = false;
            for plan in &plans {
                if failures.contains_key(&plan.uid) {
                    continue;
                }
                acted |= !plan.steps.is_empty();
                if let Err(error) = self.run_steps(links, plan, &installation).await {
                    tracing::warn!(network = plan.name, "{error}");
                    failures.insert(plan.uid.clone(), error.to_string());
                }
            }
            if !acted {
                break;
            }
        }
        let mut reports: Vec<HostNetwork> = plans
            .iter()
            .filter(|plan| !plan.name.is_empty())
            .map(|plan| plan.report(failures.get(&plan.uid).map(String::as_str)))
            .collect();
        reports.sort_by(|a, b| a.name.cmp(&b.name));
        self.said.send_if_modified(|old| std::mem::replace(old, reports) != *old);
        let unknown = plans
            .iter()
            .any(|plan| !plan.ready && plan.message.as_deref().is_some_and(|m| m.contains("cannot be read")));
        self.later(!failures.is_empty() || unknown)
    }

    fn later(&mut self, failed: bool) -> Option<Instant> {
        if !failed {
            self.attempt = 0;
            return None;
        }
        self.attempt = self.attempt.saturating_add(1);
        Some(
            Instant::now()
                + backoff::pause(RetryClass::Transient, self.attempt, backoff::seed(&self.config.host)),
        )
    }

    async fn look(&self, links: &Links, installation: &str) -> Result<NetworkFacts, LinkError> {
        let links = links.read().await?;
        let (nats, nats_unknown) = match self.nat.networks(installation).await {
            Ok(found) => (found, None),
            Err(error) => (vec![], Some(error.to_string())),
        };
        let nats = nats
            .into_iter()
            .map(|found| {
                let taps = links.iter().filter(|link| {
                    link.kind == node_plan::network::LinkKind::Tap
                        && link.master.as_deref() == Some(&found.config.bridge)
                });
                let guests = u32::try_from(taps.count()).unwrap_or(u32::MAX);
                NatFact { uid: found.uid, config: found.config, active: found.active, guests }
            })
            .collect();
        Ok(NetworkFacts { links, nats, nats_unknown })
    }

    async fn run_steps(
        &self,
        links: &Links,
        plan: &NetworkPlan,
        installation: &str,
    ) -> Result<(), NetworkError> {
        for step in &plan.steps {
            self.run_step(links, step, installation).await?;
            tracing::info!(network = plan.name, ?step, "done");
        }
        Ok(())
    }

    async fn run_step(
        &self,
        links: &Links,
        step: &NetworkStep,
        installation: &str,
    ) -> Result<(), NetworkError> {
        match step {
            NetworkStep::CreateNat { uid, config } => {
                self.nat.create(installation, uid, config).await?;
                // Guests whose network was taken away under them hang in the air until their taps are ports again.
                for tap in self.nat.taps(&config.name).await? {
                    links.add_port(&config.bridge, &tap).await?;
                }
            }
            NetworkStep::RemoveNat { name } => self.nat.remove(name).await?,
            NetworkStep::CreateBridge { name, label, mtu } => {
                links.create_bridge(name, &label.to_string(), *mtu).await?
            }
            NetworkStep::SetLabel { name, label } => links.set_alias(name, &label.to_string()).await?,
            NetworkStep::SetMtu { name, mtu } => links.set_mtu(name, *mtu).await?,
            NetworkStep::SetUp { name } => links.set_up(name).await?,
            NetworkStep::AddPort { bridge, port } => links.add_port(bridge, port).await?,
            NetworkStep::RemovePort { bridge, port } => links.remove_port(bridge, port).await?,
            NetworkStep::RemoveBridge { name, label } => {
                links.remove_bridge(name, &label.to_string()).await?
            }
        }
        Ok(())
    }
}

async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}
