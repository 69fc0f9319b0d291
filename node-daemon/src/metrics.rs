//! Every metric of the daemon in one table. Labels are kinds, steps and classes, never names of objects.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// Which step, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StepLabels {
    /// Name of the step.
    pub step: &'static str,
    /// `ok` or `error`.
    pub result: &'static str,
}

/// Which write to the API server, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WriteLabels {
    /// Kind written.
    pub kind: &'static str,
    /// `ok`, `conflict` or `error`.
    pub result: &'static str,
}

/// The metrics.
pub struct Metrics {
    /// Where they are registered.
    pub registry: Registry,
    /// Steps run.
    pub steps: Family<StepLabels, Counter>,
    /// Seconds a step took.
    pub step_seconds: Histogram,
    /// Passes over a VM.
    pub passes: Counter,
    /// Seconds a pass over a VM took.
    pub pass_seconds: Histogram,
    /// Status writes.
    pub writes: Family<WriteLabels, Counter>,
    /// 1 while libvirt answers.
    pub libvirt_up: Gauge,
    /// Times the connection to libvirt was lost.
    pub libvirt_lost: Counter,
    /// VMs with an entry in the ledger.
    pub ledger_entries: Gauge,
    /// Objects of a watch that could not be decoded.
    pub undecodable: Counter,
    /// Lease renewals that failed.
    pub lease_failures: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds = || Histogram::new([0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0]);
        let mut registry = Registry::with_prefix("vireo_node");
        let this = Self {
            steps: Family::default(),
            step_seconds: seconds(),
            passes: Counter::default(),
            pass_seconds: seconds(),
            writes: Family::default(),
            libvirt_up: Gauge::default(),
            libvirt_lost: Counter::default(),
            ledger_entries: Gauge::default(),
            undecodable: Counter::default(),
            lease_failures: Counter::default(),
            registry: Registry::default(),
        };
        registry.register("steps", "Steps run, by name and result", this.steps.clone());
        registry.register("step_duration_seconds", "Time a step took", this.step_seconds.clone());
        registry.register("passes", "Passes over a VM", this.passes.clone());
        registry.register("pass_duration_seconds", "Time a pass over a VM took", this.pass_seconds.clone());
        registry.register("writes", "Status writes, by kind and result", this.writes.clone());
        registry.register("libvirt_up", "1 while libvirt answers", this.libvirt_up.clone());
        registry.register(
            "libvirt_lost",
            "Times the connection to libvirt was lost",
            this.libvirt_lost.clone(),
        );
        registry.register("ledger_entries", "VMs with an entry in the ledger", this.ledger_entries.clone());
        registry.register(
            "undecodable_objects",
            "Objects that could not be decoded",
            this.undecodable.clone(),
        );
        registry.register("lease_failures", "Lease renewals that failed", this.lease_failures.clone());
        Self { registry, ..this }
    }
}
