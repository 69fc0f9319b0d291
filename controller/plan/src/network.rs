//! Decides about one Network: on which hosts it is ready.

use jiff::Timestamp;
use vireo_crds::{
    condition::{ConditionValue, kind},
    reasons,
    v1alpha1::{Host, HostReadiness, HostSelector, Network, NetworkStatus, NetworkSummary},
};

use crate::{
    conditions,
    host::liveness::Freshness,
    plan::{Plan, WaitFor},
    step::{Kind, NetworkStatusApply, ObjectRef, Step},
    world::World,
};

/// Most hosts a status lists; hosts that are not ready come first.
pub(crate) const HOSTS_LISTED: usize = 512;

/// What should be done about this network.
pub fn plan_network(world: &World, network: &Network, now: Timestamp) -> Plan {
    let _ = now;
    let mut plan = Plan::default();
    let Some(subject) = ObjectRef::of(Kind::Network, network) else { return plan };
    if network.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    plan.wait(WaitFor::AnyHost, "its hosts");
    let hosts = Readiness::of(world, &network.spec.host_selector, |host| {
        let here =
            host.status.as_ref()?.networks.iter().find(|n| n.name == subject.name && n.uid == subject.uid)?;
        Some((here.ready, here.message.clone()))
    });
    let type_ = if network.spec.bridge.is_some() { "bridge" } else { "nat" };
    let apply = NetworkStatusApply {
        conditions: vec![hosts.ready()],
        observed_generation: subject.generation,
        summary: NetworkSummary { type_: type_.into(), hosts: hosts.column() },
        hosts: hosts.listed,
    };
    let empty = NetworkStatus::default();
    let status = network.status.as_ref().unwrap_or(&empty);
    let differs = conditions::differ(&network.metadata, &status.conditions, &apply.conditions)
        || status.observed_generation != Some(apply.observed_generation)
        || status.hosts != apply.hosts
        || status.summary.as_ref() != Some(&apply.summary);
    if differs {
        plan.steps.push(Step::SetNetworkStatus { network: subject, status: Box::new(apply) });
    }
    plan
}

/// Readiness of one thing on the hosts that should have it.
pub(crate) struct Readiness {
    /// As the status lists it.
    pub listed: Vec<HostReadiness>,
    ready: usize,
    alive: usize,
    all: usize,
    faults: Vec<String>,
}

impl Readiness {
    /// Gathers it; `here` tells whether a host says it is ready, and why not.
    pub fn of(
        world: &World,
        selector: &HostSelector,
        here: impl Fn(&Host) -> Option<(bool, Option<String>)>,
    ) -> Self {
        let mut found = Self { listed: Vec::new(), ready: 0, alive: 0, all: 0, faults: Vec::new() };
        for (name, host) in world.hosts() {
            let joined = host.status.as_ref().is_some_and(|s| s.incarnation.is_some());
            if !joined || !selector.matches(host.metadata.labels.as_ref()) {
                continue;
            }
            found.all += 1;
            let silent = world.freshness(name) == Freshness::Silent;
            let (ready, message) = match here(host) {
                _ if silent => (false, Some("the host is silent".to_owned())),
                Some((ready, message)) => (ready, message.filter(|_| !ready)),
                None => (false, Some("the host has not reported it yet".to_owned())),
            };
            found.alive += usize::from(!silent);
            found.ready += usize::from(ready);
            if !ready && !silent {
                found.faults.push(format!("{name}: {}", message.as_deref().unwrap_or("not ready")));
            }
            found.listed.push(HostReadiness { name: name.clone(), ready, message });
        }
        found.listed.sort_by(|a, b| a.ready.cmp(&b.ready).then_with(|| a.name.cmp(&b.name)));
        found.listed.truncate(HOSTS_LISTED);
        found
    }

    /// Ready hosts of all.
    pub fn column(&self) -> String {
        format!("{}/{}", self.ready, self.all)
    }

    /// Ready everywhere where somebody is alive to say so.
    pub fn ready(&self) -> ConditionValue {
        if self.all == 0 {
            return ConditionValue::no(
                kind::READY,
                reasons::NO_HOST_SELECTED,
                "no joined host is selected by hostSelector",
            );
        }
        if self.alive == 0 {
            return ConditionValue::unknown(
                kind::READY,
                reasons::HOST_SILENT,
                "all selected hosts are silent",
            );
        }
        if self.faults.is_empty() {
            return ConditionValue::yes(kind::READY, reasons::READY, "");
        }
        let shown: Vec<_> = self.faults.iter().take(5).cloned().collect();
        let more = self.faults.len() - shown.len();
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        let message =
            format!("not ready on {} of {} hosts: {}{more}", self.faults.len(), self.all, shown.join("; "));
        ConditionValue::no(kind::READY, reasons::NOT_ON_ALL_HOSTS, message)
    }
}
