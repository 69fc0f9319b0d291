//! Answers a new session of the controller: everything cached is dropped, listed again consistently, compared with the
//! ledger and with what runs, and the difference attested in Host.status. Decides nothing: the comparison is
//! `node_plan::attest`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use kube::{Api, ResourceExt};
use node_plan::{
    attest::{Known, Stored, attest},
    facts::DomainMetadata,
    intent::VmRef,
};
use tokio::sync::{mpsc, watch};
use vireo_crds::v1alpha1::{Attestation, Holding, VirtualMachine};

use crate::{
    host_report::HostReport,
    reconcile::entry_of,
    report::with_timeout,
    workers::{Context, Workers},
};

/// Pause before what could not be read is read again.
const RETRY: Duration = Duration::from_secs(2);
/// How often an answer that is not empty is looked at again.
const REFRESH: Duration = Duration::from_secs(10);

/// What the session task is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// A new nonce.
    Session(String),
    /// The list of VMs of this host is complete.
    Listed,
}

/// Answers sessions until the channel closes.
pub async fn run(
    context: Arc<Context>,
    workers: Arc<Workers>,
    mut notes: mpsc::UnboundedReceiver<Note>,
    report: watch::Sender<HostReport>,
) {
    // The nonce for which everything has been dropped, and the nonce last answered.
    let (mut listing, mut answered): (Option<String>, Option<String>) = (None, None);
    loop {
        let refresh = answered.is_some()
            && report.borrow().attestation.as_ref().is_some_and(|answer| !is_empty(answer));
        let note = tokio::select! {
            note = notes.recv() => match note {
                Some(note) => note,
                None => return,
            },
            () = tokio::time::sleep(REFRESH), if refresh => Note::Listed,
        };
        match note {
            Note::Session(nonce) => {
                tracing::info!(
                    session = nonce,
                    "a new session: everything is listed again before it is answered"
                );
                (listing, answered) = (Some(nonce), None);
                context.watches.begin_anew();
            }
            Note::Listed => {
                let Some(session) = listing.clone().filter(|_| context.objects.vms_listed()) else {
                    continue;
                };
                if answered.is_some() && !refresh {
                    continue;
                }
                let first = answered.as_deref() != Some(session.as_str());
                if first {
                    tokio::time::sleep(jitter()).await;
                    workers.wake_all();
                }
                match answer(&context, &session).await {
                    Ok(attestation) => {
                        if first {
                            tracing::info!(session, claims = attestation.claims.len(), "session answered");
                        }
                        answered = Some(session);
                        report.send_if_modified(|report| {
                            let changed = report.attestation.as_ref() != Some(&attestation);
                            report.attestation = Some(attestation);
                            changed
                        });
                    }
                    Err(why) => {
                        tracing::info!(why, "the session cannot be answered yet");
                        tokio::time::sleep(RETRY).await;
                        // Nothing else would say that the list is complete.
                        context.objects.announce_list();
                    }
                }
            }
        }
    }
}

fn is_empty(answer: &Attestation) -> bool {
    answer.claims.is_empty()
        && answer.offers.is_empty()
        && answer.commits.is_empty()
        && answer.conditional.is_empty()
}

fn jitter() -> Duration {
    let byte = uuid::Uuid::new_v4().as_bytes().first().copied().unwrap_or(0);
    Duration::from_millis(u64::from(byte))
}

async fn answer(context: &Context, session: &str) -> Result<Attestation, String> {
    let census = context.driver.census().await.map_err(|error| error.to_string())?;
    // Domains that are somebody else's, or explained by their metadata.
    let shown: Vec<String> = census.found.iter().map(|found| found.uuid.clone()).collect();
    let running: BTreeMap<String, DomainMetadata> = census
        .found
        .into_iter()
        .filter_map(|found| found.metadata)
        .map(|metadata| (metadata.vm.uid.clone(), metadata))
        .collect();
    // A process counts even if libvirt has lost its domain.
    let mut strays: BTreeSet<String> = census.processes.into_iter().map(|process| process.uuid).collect();
    let processes = strays.clone();
    for domain in &shown {
        strays.remove(domain);
    }
    let uids: BTreeSet<String> = context.ledger.uids().into_iter().chain(running.keys().cloned()).collect();
    let held: BTreeMap<String, Known> = uids
        .into_iter()
        .map(|uid| {
            let entry = entry_of(&context.ledger.get(&uid));
            let wanted = entry.as_ref().and_then(|entry| entry.wanted.as_ref());
            let uuid = wanted.map_or(uid.as_str(), |wanted| wanted.machine.uuid.as_str());
            let process = processes.contains(uuid);
            if entry.as_ref().is_some_and(|entry| entry.held.is_some()) {
                strays.remove(uuid);
            }
            (uid.clone(), Known { entry, running: running.get(&uid).cloned(), process })
        })
        .collect();
    let strays: Vec<String> = strays.into_iter().collect();
    let mut stored = BTreeMap::new();
    for vm in context.objects.vms_here() {
        if let Some(uid) = vm.uid() {
            let placement = vm.status.as_ref().and_then(|status| status.placement.as_ref());
            let listed = placement.is_some_and(|placement| context.objects.is_listed_grant(&placement.id));
            stored.insert(uid, Stored { listed, ..says(&vm) });
        }
    }
    for (uid, held) in &held {
        if stored.contains_key(uid) {
            continue;
        }
        let vm =
            held.entry.as_ref().map(|entry| &entry.vm).or(held.running.as_ref().map(|metadata| &metadata.vm));
        let read = match vm {
            Some(vm) => read(context, vm).await?,
            None => None,
        };
        if let Some(says) = read {
            stored.insert(uid.clone(), says);
        }
    }
    if context.objects.session().as_deref() != Some(session) || !context.objects.vms_listed() {
        return Err("a newer session has begun".into());
    }
    Ok(attest(session, &context.incarnation, held.values(), &strays, &stored))
}

/// What the store says of a VM that is not placed here, read by name.
async fn read(context: &Context, vm: &VmRef) -> Result<Option<Stored>, String> {
    let api: Api<VirtualMachine> = Api::namespaced(context.client.clone(), &vm.namespace);
    let found = with_timeout(api.get_opt(&vm.name)).await;
    let found = found.map_err(|error| {
        error.map_or_else(|| "the API server does not answer".into(), |error| error.to_string())
    })?;
    Ok(found.filter(|found| found.uid().as_deref() == Some(&vm.uid)).map(|found| says(&found)))
}

/// Placement of a VM, and whether its runtime says that the grant is released.
fn says(vm: &VirtualMachine) -> Stored {
    let status = vm.status.as_ref();
    let placement = status.and_then(|status| status.placement.clone());
    let runtime = status.and_then(|status| status.runtime.as_ref());
    let released = placement.as_ref().zip(runtime).is_some_and(|(placement, runtime)| {
        runtime.grant.names(&placement.grant()) && runtime.holding == Holding::Released
    });
    Stored { placement, released, listed: false }
}
