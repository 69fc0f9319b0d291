//! Every metric of the controller, in one table.

use std::time::Duration;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// Labels of a look at an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReconcileLabels {
    /// Kind looked at.
    pub controller: &'static str,
    /// `success`, or a retry class.
    pub result: &'static str,
}

/// Label of what exists once per kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    /// Kind of object.
    pub kind: &'static str,
}

/// Labels of a write.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StepLabels {
    /// Name of the step.
    pub step: &'static str,
    /// `success`, or a retry class.
    pub result: &'static str,
}

/// Label of a count by state.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StateLabel {
    /// State, as `kubectl get` shows it.
    pub state: String,
}

/// Label of the election.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LeaseLabel {
    /// Name of the Lease.
    pub name: &'static str,
}

/// Label of a queue.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct QueueLabel {
    /// Name of the queue.
    pub name: &'static str,
}

/// The table.
pub struct Metrics {
    registry: Registry,
    /// Looks at objects, by outcome.
    pub reconciles: Family<ReconcileLabels, Counter>,
    /// How long looks took, writes included.
    pub reconcile_time: Family<KindLabel, Histogram>,
    /// How long planning took.
    pub plan_time: Family<KindLabel, Histogram>,
    /// Writes, by outcome.
    pub writes: Family<StepLabels, Counter>,
    /// Objects waiting for a look.
    pub queue_depth: Family<QueueLabel, Gauge>,
    /// 1 on the leader.
    pub leading: Family<LeaseLabel, Gauge>,
    /// Placement sessions begun.
    pub sessions: Counter,
    /// 1 while a placement session is open.
    pub session_open: Gauge,
    /// Watch events received.
    pub watch_events: Family<KindLabel, Counter>,
    /// Time from the answer to a write until the watch showed it.
    pub watch_lag: Histogram,
    /// Objects that cannot be decoded.
    pub undecodable: Family<KindLabel, Gauge>,
    /// VMs by state.
    pub vms: Family<StateLabel, Gauge>,
    /// Hosts by liveness.
    pub hosts: Family<StateLabel, Gauge>,
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_1, 4.0, 10))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let metrics = Self {
            reconciles: Family::default(),
            reconcile_time: Family::new_with_constructor(seconds),
            plan_time: Family::new_with_constructor(seconds),
            writes: Family::default(),
            queue_depth: Family::default(),
            leading: Family::default(),
            sessions: Counter::default(),
            session_open: Gauge::default(),
            watch_events: Family::default(),
            watch_lag: seconds(),
            undecodable: Family::default(),
            vms: Family::default(),
            hosts: Family::default(),
            registry: Registry::default(),
        };
        let table = &metrics;
        registry.register("controller_reconcile", "Looks at objects, by outcome", table.reconciles.clone());
        registry.register_with_unit(
            "controller_reconcile_time",
            "How long looks took, writes included",
            Unit::Seconds,
            table.reconcile_time.clone(),
        );
        registry.register_with_unit(
            "controller_plan_time",
            "How long planning took",
            Unit::Seconds,
            table.plan_time.clone(),
        );
        registry.register("controller_writes", "Writes to the API, by outcome", table.writes.clone());
        registry.register("workqueue_depth", "Objects waiting for a look", table.queue_depth.clone());
        registry.register("leader_election_master_status", "1 on the leader", table.leading.clone());
        registry.register("controller_sessions", "Placement sessions begun", table.sessions.clone());
        registry.register(
            "controller_session_open",
            "1 while a placement session is open",
            table.session_open.clone(),
        );
        registry.register("controller_watch_events", "Watch events received", table.watch_events.clone());
        registry.register_with_unit(
            "controller_watch_lag",
            "Time from the answer to a write until the watch showed it",
            Unit::Seconds,
            table.watch_lag.clone(),
        );
        registry.register(
            "vireo_undecodable_objects",
            "Objects that cannot be decoded and are left alone",
            table.undecodable.clone(),
        );
        registry.register("vireo_vms", "VirtualMachines by state", table.vms.clone());
        registry.register("vireo_hosts", "Hosts by liveness", table.hosts.clone());
        Self { registry, ..metrics }
    }
}

impl Metrics {
    /// Counts one look.
    pub fn looked(&self, kind: &'static str, result: &'static str, took: Duration) {
        self.reconciles.get_or_create(&ReconcileLabels { controller: kind, result }).inc();
        self.reconcile_time.get_or_create(&KindLabel { kind }).observe(took.as_secs_f64());
    }

    /// Counts one write.
    pub fn wrote(&self, step: &'static str, result: &'static str) {
        self.writes.get_or_create(&StepLabels { step, result }).inc();
    }

    /// The text Prometheus reads.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_dashboards_expect() {
        let metrics = Metrics::default();
        metrics.looked("VirtualMachine", "success", Duration::from_millis(3));
        metrics.leading.get_or_create(&LeaseLabel { name: "vireo-controller" }).set(1);
        metrics.queue_depth.get_or_create(&QueueLabel { name: "objects" }).set(2);
        metrics.vms.get_or_create(&StateLabel { state: "Running".into() }).set(3);
        let text = metrics.text().unwrap();
        for line in [
            "controller_reconcile_total{controller=\"VirtualMachine\",result=\"success\"} 1",
            "controller_reconcile_time_seconds_count{kind=\"VirtualMachine\"} 1",
            "workqueue_depth{name=\"objects\"} 2",
            "leader_election_master_status{name=\"vireo-controller\"} 1",
            "vireo_vms{state=\"Running\"} 3",
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
    }
}
