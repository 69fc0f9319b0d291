//! Renews this host's Lease: the sign that this incarnation of the daemon lives. Decides nothing; what silence means is
//! the controller's business, and whether this machine may give the sign is said by `node_plan::identity`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::MicroTime};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use node_plan::identity;
use serde_json::json;
use vireo_crds::meta::{HOSTS_NAMESPACE, NODE_MANAGER};

use crate::{incarnation::Incarnation, metrics::Metrics, objects::Objects, watch::Watches};

/// Pause between renewals.
const INTERVAL: Duration = Duration::from_secs(10);
/// Pause after a renewal that failed.
const RETRY: Duration = Duration::from_secs(2);
/// How often it is looked whether this machine may renew the Lease. Nobody is asked for it, and a daemon that starts
/// has to wait for its Host.
const LOOK: Duration = Duration::from_millis(100);
/// Longest wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Seconds after which the Lease counts as stale, for readers who do not measure for themselves.
const LEASE_SECONDS: i32 = 40;
/// After a silence this long, connections that seem open are not believed.
const OUTAGE: Duration = Duration::from_secs(15);

/// Renews the Lease of this daemon's host until the task is dropped.
pub async fn run(
    client: Client,
    objects: Arc<Objects>,
    incarnation: Incarnation,
    watches: Arc<Watches>,
    metrics: Arc<Metrics>,
) {
    let api: Api<Lease> = Api::namespaced(client, HOSTS_NAMESPACE);
    let mut last_success = Instant::now();
    let mut failing = false;
    let may_speak = || {
        let host = objects.host();
        host.is_some_and(|host| identity::ours(&host, Some(&incarnation.machine_uuid)).is_ok())
    };
    loop {
        while !may_speak() {
            tokio::time::sleep(LOOK).await;
        }
        let pause = match renew(&api, objects.host_name(), &incarnation.id).await {
            Ok(()) => {
                if std::mem::take(&mut failing) {
                    tracing::info!("the Lease is renewed again");
                    if last_success.elapsed() >= OUTAGE {
                        watches.restart();
                    }
                }
                last_success = Instant::now();
                INTERVAL
            }
            Err(error) => {
                metrics.lease_failures.inc();
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(
                        error,
                        "the Lease could not be renewed; guests go on, trying again until it works"
                    );
                }
                RETRY
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn renew(api: &Api<Lease>, host: &str, incarnation: &str) -> Result<(), String> {
    let body = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": host, "namespace": HOSTS_NAMESPACE},
        "spec": {"holderIdentity": incarnation, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": MicroTime(Timestamp::now())},
    });
    // A merge patch never creates: the Lease is the controller's to make, and ours to renew.
    let params = PatchParams { field_manager: Some(NODE_MANAGER.into()), ..PatchParams::default() };
    let answer = tokio::time::timeout(TIMEOUT, api.patch(host, &params, &Patch::Merge(&body))).await;
    match answer {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the API server does not answer".into()),
    }
}
