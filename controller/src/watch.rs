//! Feeds the world of a session from one watch per kind, and wakes whoever reads what changed.
//!
//! Any error of a watch ends the session: what was missed meanwhile is only known after a new consistent list. A
//! watch that timed out cleanly is reopened by kube at its last version, on the same connection.

use std::{fmt::Debug, sync::Arc, time::Instant};

use controller_plan::{step::Kind, world::Undecodable};
use futures::StreamExt;
use k8s_openapi::{
    api::{certificates::v1::CertificateSigningRequest, coordination::v1::Lease},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Resource, ResourceExt,
    api::DynamicObject,
    core::PartialObjectMeta,
    runtime::watcher::{self, Event, watcher},
};
use serde::de::DeserializeOwned;
use vireo_crds::meta::{HOSTS_NAMESPACE, SESSION_LEASE, SYSTEM_NAMESPACE};

use crate::{
    error::chain,
    kinds::{self, Item, KINDS},
    metrics::KindLabel,
    session::Session,
};

/// A change seen by a watch; `listed` marks what the first list gave.
enum Change<K> {
    Put { object: K, listed: bool },
    Gone(K),
    Synced,
}

/// Starts every watch of a session, each in a task of its own that ends with the session.
pub fn start(session: &Arc<Session>) {
    for kind in KINDS {
        let session = Arc::clone(session);
        let api = Api::<DynamicObject>::all_with(session.client(), &kinds::resource(kind));
        let seen = session.expect_list();
        tokio::spawn(async move {
            let work =
                follow(&session, kind.as_str(), api, watcher::Config::default(), |change| match change {
                    Change::Put { object, .. } => put(&session, kind, object),
                    Change::Gone(object) => {
                        session.note_gone(&object.metadata);
                        gone(&session, &Item::of(kind, &object.metadata));
                    }
                    Change::Synced => seen.cancel(),
                });
            session.until_ended(work).await;
        });
    }
    leases(session);
    definitions(session);
    certificates(session);
    nonce(session);
}

fn put(session: &Session, kind: Kind, object: DynamicObject) {
    let item = Item::of(kind, &object.metadata);
    let (namespace, uid) = (object.namespace(), object.uid().unwrap_or_default());
    if !session.is_news(kind, &object.metadata) {
        return;
    }
    session.change(&item, |world| {
        let decoded = kinds::put(world, kind, object);
        match decoded {
            Ok(()) => world.remove_undecodable(kind, namespace.as_deref(), &item.name),
            Err(error) => {
                tracing::warn!(object = %item, %error, "an object cannot be decoded and is left alone: correct it with an API client that can");
                kinds::remove(world, &item);
                world.put_undecodable(Undecodable { kind, namespace: namespace.clone(), name: item.name.clone(), uid });
            }
        }
    });
}

fn gone(session: &Session, item: &Item) {
    session.change(item, |world| {
        kinds::remove(world, item);
        let namespace = (!item.namespace.is_empty()).then_some(item.namespace.as_str());
        world.remove_undecodable(item.kind, namespace, &item.name);
    });
}

/// Hosts' Leases: signs of life.
fn leases(session: &Arc<Session>) {
    let session = Arc::clone(session);
    let api = Api::<Lease>::namespaced(session.client(), HOSTS_NAMESPACE);
    let seen = session.expect_list();
    tokio::spawn(async move {
        let work = follow(&session, "Lease", api, watcher::Config::default(), |change| match change {
            Change::Put { object, listed } => {
                session.context().liveness().observe(&object, listed, Instant::now());
                session.refresh_liveness(Some(&object.name_any()));
            }
            Change::Gone(object) => {
                session.context().liveness().forget(&object.name_any());
                session.refresh_liveness(Some(&object.name_any()));
            }
            Change::Synced => seen.cancel(),
        });
        session.until_ended(work).await;
    });
}

/// Our CustomResourceDefinitions: while one is being deleted, nothing is obeyed as a deletion.
fn definitions(session: &Arc<Session>) {
    let session = Arc::clone(session);
    let api = Api::<PartialObjectMeta<CustomResourceDefinition>>::all(session.client());
    let seen = session.expect_list();
    tokio::spawn(async move {
        let of = |name: &str| KINDS.into_iter().find(|kind| kinds::crd_name(*kind) == name);
        let set = |name: &str, terminating: bool| {
            if let Some(kind) = of(name) {
                session.set_terminating(kind, terminating);
            }
        };
        let work = follow(&session, "CustomResourceDefinition", api, watcher::Config::default(), |change| {
            match change {
                Change::Put { object, .. } => {
                    set(&object.name_any(), object.meta().deletion_timestamp.is_some())
                }
                Change::Gone(object) => set(&object.name_any(), true),
                Change::Synced => seen.cancel(),
            }
        });
        session.until_ended(work).await;
    });
}

/// Requests for host certificates.
fn certificates(session: &Arc<Session>) {
    let session = Arc::clone(session);
    let api = Api::<CertificateSigningRequest>::all(session.client());
    let config =
        watcher::Config::default().fields(&format!("spec.signerName={}", vireo_crds::meta::HOST_SIGNER));
    let seen = session.expect_list();
    tokio::spawn(async move {
        let work = follow(&session, "CertificateSigningRequest", api, config, |change| match change {
            Change::Put { object, .. } => session.put_request(object),
            Change::Gone(object) => session.forget_request(&object.name_any()),
            Change::Synced => seen.cancel(),
        });
        session.until_ended(work).await;
    });
}

/// The session object: another nonce in it is another controller's session.
fn nonce(session: &Arc<Session>) {
    let session = Arc::clone(session);
    let api = Api::<Lease>::namespaced(session.client(), SYSTEM_NAMESPACE);
    let config = watcher::Config::default().fields(&format!("metadata.name={SESSION_LEASE}"));
    let seen = session.expect_list();
    tokio::spawn(async move {
        let work = follow(&session, "Lease", api, config, |change| match change {
            Change::Put { object, listed: false } => {
                session.saw_nonce(&object.spec.and_then(|s| s.holder_identity).unwrap_or_default());
            }
            Change::Put { listed: true, .. } => {}
            Change::Gone(_) => session.end("the session object was deleted"),
            Change::Synced => seen.cancel(),
        });
        session.until_ended(work).await;
    });
}

/// Runs one watch until it fails, and then ends the session.
async fn follow<K>(
    session: &Session,
    kind: &'static str,
    api: Api<K>,
    config: watcher::Config,
    mut take: impl FnMut(Change<K>),
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    // The time-out is what notices a stream that stalls: kube believes it for a few seconds longer and reopens it.
    let config = config.timeout(session.context().watch_seconds);
    let mut events = std::pin::pin!(watcher(api, config));
    let counter = session.context().metrics.watch_events.get_or_create_owned(&KindLabel { kind });
    let mut newest = 0_u64;
    let mut listed = false;
    while let Some(event) = events.next().await {
        counter.inc();
        let change = match event {
            Ok(Event::Init) if listed => {
                session.end(&format!("the watch of {kind} began anew"));
                return;
            }
            Ok(Event::Init) => continue,
            Ok(Event::InitApply(object)) => {
                newest = newest.max(version(&object));
                Change::Put { object, listed: true }
            }
            Ok(Event::InitDone) => {
                listed = true;
                Change::Synced
            }
            Ok(Event::Apply(object)) => Change::Put { object, listed: false },
            Ok(Event::Delete(object)) => Change::Gone(object),
            Err(error) => {
                session.end(&format!("the watch of {kind} broke: {}", chain(&error)));
                return;
            }
        };
        if let Change::Put { object, listed: false } | Change::Gone(object) = &change {
            let version = version(object);
            if version < newest {
                session.end(&format!(
                    "the version of {kind} went back from {newest} to {version}: the store was restored"
                ));
                return;
            }
            newest = version;
        }
        take(change);
    }
    session.end(&format!("the watch of {kind} ended"));
}

fn version<K: Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}
