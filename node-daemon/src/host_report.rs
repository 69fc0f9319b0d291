//! Writes what this host says of itself into Host.status, only when it changed, and only while the Host is this
//! machine's.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::{Api, Client};
use node_plan::{
    identity::{self, NotOurs},
    step::EventNote,
};
use serde_json::json;
use tokio::sync::watch;
use vireo_crds::{
    condition::{self, ConditionValue, kind},
    reasons,
    v1alpha1::{
        Architecture, Attestation, Host, HostIdentity, HostNetwork, HostStorageDomain, OrphanDomain,
        PastIncarnation, Resources,
    },
};

use crate::{
    host::HostFacts,
    incarnation::Incarnation,
    objects::Objects,
    report::{Reporter, WriteError},
};

/// Condition types of a Host that are the daemon's.
const OWN: [&str; 3] = [kind::HYPERVISOR_READY, kind::STORAGE_READY, kind::NETWORK_READY];
/// Changes that come together are written together.
const GATHER: Duration = Duration::from_millis(200);
/// Pauses after a write that failed: first and longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Features of this daemon that a VM may need.
const FEATURES: [&str; 3] = ["secureBoot", "tpm", "uefi"];

/// What this host says of itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HostReport {
    /// Which life of the ledger this is.
    pub incarnation: Option<Incarnation>,
    /// SHA-256 of the host's public key.
    pub public_key_sha256: String,
    /// The machine, once the hypervisor has been seen.
    pub facts: Option<HostFacts>,
    /// The hypervisor answers.
    pub hypervisor_up: bool,
    /// What is wrong with the ledger, if anything.
    pub ledger_fault: Option<String>,
    /// Networks.
    pub networks: Vec<HostNetwork>,
    /// Storage domains.
    pub domains: Vec<HostStorageDomain>,
    /// Domains of ours that no object explains.
    pub orphans: Vec<OrphanDomain>,
    /// Domains that are not ours.
    pub foreign: Vec<String>,
    /// Answer to the present session.
    pub attestation: Option<Attestation>,
}

impl HostReport {
    /// Which machine this is, once that is known. The incarnation's word comes first, and stays the same for as long as
    /// it lives: where the firmware has no UUID, libvirt makes up another one each time it starts.
    fn machine_uuid(&self) -> Option<&str> {
        let of_facts = self.facts.as_ref().map(|facts| facts.machine_uuid.as_str());
        self.incarnation.as_ref().map(|incarnation| incarnation.machine_uuid.as_str()).or(of_facts)
    }
}

/// Writes the report whenever it, or the object, changes.
pub async fn run(
    client: Client,
    objects: Arc<Objects>,
    reporter: Arc<Reporter>,
    mut report: watch::Receiver<HostReport>,
    mut changed: watch::Receiver<u64>,
) {
    let api: Api<Host> = Api::all(client);
    let mut failures = 0u32;
    let mut refused: Option<NotOurs> = None;
    loop {
        tokio::time::sleep(GATHER).await;
        let current = report.borrow_and_update().clone();
        changed.mark_unchanged();
        if let Some(host) = objects.host() {
            let was = std::mem::replace(&mut refused, identity::ours(&host, current.machine_uuid()).err());
            if was != refused {
                tell(&reporter, &host, refused.as_ref()).await;
            }
            let written = match refused {
                Some(_) => Ok(None),
                None => write(&api, &reporter, &host, &current).await,
            };
            match written {
                Ok(written) => {
                    failures = 0;
                    if let Some(written) = written {
                        objects.learn_host(written);
                    }
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    if !matches!(error, WriteError::Conflict(_)) {
                        tracing::warn!(%error, "Host.status was not written; trying again");
                    }
                    let pause = RETRY.0.saturating_mul(1 << failures.min(8)).min(RETRY.1);
                    let _ = tokio::time::timeout(pause, changed.changed()).await;
                    continue;
                }
            }
        }
        tokio::select! {
            gone = report.changed() => if gone.is_err() { return },
            gone = changed.changed() => if gone.is_err() { return },
        }
    }
}

/// Says once that this machine may not speak for its Host, and once that it may again.
async fn tell(reporter: &Reporter, host: &Host, refused: Option<&NotOurs>) {
    match refused {
        Some(why @ NotOurs::OtherMachine { .. }) => {
            tracing::error!(%why, "this machine does not speak for its Host; guests that run here go on");
            let note = EventNote {
                reason: reasons::DUPLICATE_IDENTITY.into(),
                warning: true,
                message: why.to_string(),
            };
            reporter.host_event(host, &note).await;
        }
        Some(why @ NotOurs::Unknown { .. }) => tracing::info!(%why, "nothing is reported yet"),
        None => tracing::info!("this machine speaks for its Host"),
    }
}

async fn write(
    api: &Api<Host>,
    reporter: &Reporter,
    host: &Host,
    report: &HostReport,
) -> Result<Option<Host>, WriteError> {
    let old = host.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let generation = host.metadata.generation.unwrap_or_default();
    let facts = report.facts.as_ref();
    let incarnation = report.incarnation.as_ref();
    let identity = report.machine_uuid().map(str::to_owned);
    let past: Vec<PastIncarnation> =
        incarnation.map(|incarnation| incarnation.past.clone()).unwrap_or_default();
    let status = json!({
        "conditions": condition::merge(old, &conditions(report), generation, Timestamp::now()),
        "daemonVersion": env!("CARGO_PKG_VERSION"),
        "features": features(facts),
        "bootId": incarnation.map(|incarnation| &incarnation.boot_id),
        "incarnation": incarnation.map(|incarnation| &incarnation.id),
        "pastIncarnations": (!past.is_empty()).then_some(past),
        "attestation": report.attestation,
        "identity": identity.map(|machine_uuid| HostIdentity { public_key_sha256: report.public_key_sha256.clone(), machine_uuid }),
        "versions": facts.map(|facts| &facts.versions),
        "accelerator": facts.map(|facts| facts.accelerator),
        "cpu": facts.map(|facts| &facts.cpu),
        "memory": facts.map(|facts| facts.memory),
        "allocatable": facts.map(allocatable),
        "networks": some(&report.networks),
        "storageDomains": some(&report.domains),
        "domains": some(&report.orphans),
        "foreignDomains": some(&report.foreign),
    });
    reporter.apply("Host", api, host, crate::report::without_nulls(status), &OWN).await
}

fn some<T>(list: &[T]) -> Option<&[T]> {
    (!list.is_empty()).then_some(list)
}

fn features(facts: Option<&HostFacts>) -> Vec<&'static str> {
    let secure_boot = facts.is_none_or(|facts| facts.cpu.architecture == Architecture::x86_64);
    FEATURES.into_iter().filter(|feature| secure_boot || *feature != "secureBoot").collect()
}

/// What VMs may have: all threads, and all memory less what the host keeps for itself.
fn allocatable(facts: &HostFacts) -> Resources {
    let cpu = &facts.cpu;
    let cpus = i64::from(cpu.numa_cells.max(1))
        * i64::from(cpu.sockets)
        * i64::from(cpu.cores)
        * i64::from(cpu.threads);
    let kept = (facts.memory / 20).clamp(256 << 20, 4 << 30);
    Resources { cpus, memory: i64::try_from(facts.memory.saturating_sub(kept)).unwrap_or(i64::MAX) }
}

fn conditions(report: &HostReport) -> Vec<ConditionValue> {
    let hypervisor = match (&report.ledger_fault, report.hypervisor_up, &report.facts) {
        (Some(fault), ..) => {
            ConditionValue::no(kind::HYPERVISOR_READY, reasons::LEDGER_UNREADABLE, fault.as_str())
        }
        (None, true, Some(_)) => ConditionValue::yes(kind::HYPERVISOR_READY, reasons::HYPERVISOR_READY, ""),
        (None, true, None) => {
            ConditionValue::unknown(kind::HYPERVISOR_READY, reasons::PENDING, "the host is being looked at")
        }
        (None, false, _) => ConditionValue::no(
            kind::HYPERVISOR_READY,
            reasons::HYPERVISOR_DOWN,
            "libvirt does not answer; running guests go on. Look at libvirtd (or virtqemud) on the host",
        ),
    };
    let storage = summary(
        kind::STORAGE_READY,
        reasons::STORAGE_READY,
        reasons::DOMAIN_NOT_READY,
        report
            .domains
            .iter()
            .filter(|domain| !domain.ready)
            .map(|domain| (domain.name.as_str(), domain.message.as_deref())),
    );
    let network = summary(
        kind::NETWORK_READY,
        reasons::NETWORK_READY,
        reasons::NETWORK_NOT_READY,
        report
            .networks
            .iter()
            .filter(|network| !network.ready)
            .map(|network| (network.name.as_str(), network.message.as_deref())),
    );
    vec![hypervisor, storage, network]
}

fn summary<'a>(
    type_: &str,
    ready: &str,
    not_ready: &str,
    faults: impl Iterator<Item = (&'a str, Option<&'a str>)>,
) -> ConditionValue {
    let faults: Vec<_> =
        faults.map(|(name, why)| format!("{name}: {}", why.unwrap_or("not ready"))).collect();
    if faults.is_empty() {
        ConditionValue::yes(type_, ready, "")
    } else {
        ConditionValue::no(type_, not_ready, faults.join("; "))
    }
}
