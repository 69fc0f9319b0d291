//! Storage and networks of a host in memory: every domain and network is ready, every Disk has its volume at once.

use std::sync::Arc;

use kube::{Api, Client, ResourceExt};
use serde_json::json;
use vireo_crds::{
    condition::{self, ConditionValue, kind},
    reasons,
    v1alpha1::{Disk, DiskPhase, HostNetwork, HostStorageDomain, Network, StorageDomain},
};

use crate::report::{Reporter, WriteError, without_nulls};

/// All domains, ready.
pub fn domains(all: &[Arc<StorageDomain>]) -> Vec<HostStorageDomain> {
    let domain = |domain: &Arc<StorageDomain>| {
        Some(HostStorageDomain {
            name: domain.name_any(),
            uid: domain.uid()?,
            ready: true,
            marked: true,
            message: None,
            capacity: Some(1 << 40),
            available: Some(1 << 39),
        })
    };
    all.iter().filter_map(domain).collect()
}

/// All networks, ready.
pub fn networks(all: &[Arc<Network>]) -> Vec<HostNetwork> {
    let network = |network: &Arc<Network>| {
        Some(HostNetwork { name: network.name_any(), uid: network.uid()?, ready: true, message: None })
    };
    all.iter().filter_map(network).collect()
}

/// Reports the volume of a Disk as made, or as removed if that is ordered.
pub async fn provision(
    client: &Client,
    reporter: &Reporter,
    host: &str,
    disk: &Disk,
    local: bool,
) -> Result<(), WriteError> {
    let status = disk.status.clone().unwrap_or_default();
    let remove = status.remove == Some(true);
    let (phase, ready) = if remove {
        (DiskPhase::Removed, ConditionValue::no(kind::READY, reasons::REMOVED, ""))
    } else {
        (DiskPhase::Ready, ConditionValue::yes(kind::READY, reasons::VOLUME_READY, ""))
    };
    let provisioned = ConditionValue { type_: kind::PROVISIONED.into(), ..ready.clone() };
    let generation = disk.metadata.generation.unwrap_or_default();
    let uid = disk.uid().unwrap_or_default();
    let wanted = json!({
        "observedGeneration": generation,
        "conditions": condition::merge(&status.conditions, &[ready, provisioned], generation, jiff::Timestamp::now()),
        "phase": phase,
        "capacity": disk.spec.size.bytes().ok(),
        "allocated": 0,
        "volume": format!("{uid}.{}", disk.spec.format.qemu_name().unwrap_or("raw")),
        "localHost": local.then_some(host),
    });
    let api = Api::namespaced(client.clone(), &disk.namespace().unwrap_or_default());
    reporter
        .apply("Disk", &api, disk, without_nulls(wanted), &[kind::READY, kind::PROVISIONED])
        .await
        .map(drop)
}
