//! Carries out one step, and decides nothing. The only file that writes objects of ours.
//!
//! Every write goes over the session's connection, once: an answer that does not come is never asked for again.

use std::{collections::HashMap, future::Future, time::Duration};

use controller_plan::step::{FreshRead, Kind, ObjectRef, Step};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::{Value, json};
use vireo_crds::meta::{CONFIRM_ANNOTATION, CONTROLLER_MANAGER, FINALIZER};

use crate::{
    access::{self, Owner},
    error::Error,
    kinds::{self, Held, Item},
    session::Session,
    world::Outcome,
};

/// An answer that takes longer does not come.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// The objects of one plan as they are after the steps so far: what the next step's version is.
#[derive(Debug, Default)]
pub struct Chain {
    objects: HashMap<(Kind, String), Held>,
}

impl Chain {
    /// The object as the plan was made from.
    pub fn begin(&mut self, object: &ObjectRef, held: Held) {
        self.objects.insert((object.kind, object.uid.clone()), held);
    }

    fn held(&self, object: &ObjectRef) -> Option<&Held> {
        self.objects.get(&(object.kind, object.uid.clone()))
    }

    fn version(&self, object: &ObjectRef) -> String {
        let newer = self.held(object).and_then(|held| held.metadata.resource_version.clone());
        newer.unwrap_or_else(|| object.resource_version.clone())
    }

    fn wrote(&mut self, kind: Kind, answer: &DynamicObject) {
        let uid = answer.uid().unwrap_or_default();
        let conditions = answer.data.pointer("/status/conditions").cloned().unwrap_or_default();
        let conditions = serde_json::from_value(conditions).unwrap_or_default();
        self.objects.insert((kind, uid), Held { metadata: answer.metadata.clone(), conditions });
    }
}

/// Carries out one step.
pub async fn apply(session: &Session, step: &Step, chain: &mut Chain) -> Result<Outcome, Error> {
    session.check()?;
    let outcome = match step {
        Step::EnsureFinalizer { object } => {
            let mut finalizers =
                chain.held(object).and_then(|h| h.metadata.finalizers.clone()).unwrap_or_default();
            finalizers.push(FINALIZER.to_owned());
            patch_metadata(session, object, chain, json!({"finalizers": finalizers})).await?
        }
        Step::RemoveFinalizer { object, read_first } => {
            refuse_while_terminating(session, object.kind).await?;
            confirm(session, read_first).await?;
            let mut finalizers =
                chain.held(object).and_then(|h| h.metadata.finalizers.clone()).unwrap_or_default();
            finalizers.retain(|f| f != FINALIZER);
            let last = finalizers.is_empty();
            let outcome = patch_metadata(session, object, chain, json!({"finalizers": finalizers})).await?;
            if last { Outcome::Gone(item(object)) } else { outcome }
        }
        Step::SetPlacement { vm, session: nonce, read_first, status: _ } => {
            if nonce != session.nonce() {
                return Err(Error::SessionOver("the placement was decided in another one".into()));
            }
            confirm(session, read_first).await?;
            let written = apply_status(session, step, vm, chain).await;
            if let Err(error) = &written
                && error.status().is_none()
            {
                // It may have been carried out or not: only a new consistent list tells.
                session.end(&format!("the answer to a placement did not come: {error}"));
            }
            written?
        }
        Step::SetVmStatus { vm, status: _ } => apply_status(session, step, vm, chain).await?,
        Step::SetDiskStatus { disk, read_first, status: _ } => {
            confirm(session, read_first).await?;
            apply_status(session, step, disk, chain).await?
        }
        Step::SetActStatus { act, status: _ } => apply_status(session, step, act, chain).await?,
        Step::SetHostStatus { host, status: _ } => apply_status(session, step, host, chain).await?,
        Step::SetClusterStatus { cluster, status: _ } => apply_status(session, step, cluster, chain).await?,
        Step::SetNetworkStatus { network, status: _ } => apply_status(session, step, network, chain).await?,
        Step::SetDomainStatus { domain, status: _ } => apply_status(session, step, domain, chain).await?,
        Step::SetGroupStatus { group, status: _ } => apply_status(session, step, group, chain).await?,
        Step::CreateDisk { disk } => {
            let namespace = disk.namespace().unwrap_or_default();
            let what = format!("create Disk {namespace}/{}", disk.name_any());
            let api = Api::<DynamicObject>::namespaced_with(
                session.client(),
                &namespace,
                &kinds::resource(Kind::Disk),
            );
            let document = serde_json::to_value(disk).and_then(serde_json::from_value);
            let document: DynamicObject =
                document.map_err(|e| Error::Document { what: what.clone(), cause: e.to_string() })?;
            let creating =
                PostParams { field_manager: Some(CONTROLLER_MANAGER.into()), ..PostParams::default() };
            put(Kind::Disk, chain, answer(what, api.create(&creating, &document)).await?)
        }
        Step::DeleteAct { act } => {
            let preconditions =
                Preconditions { uid: Some(act.uid.clone()), resource_version: Some(chain.version(act)) };
            let deleting = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
            let api = api(session, act);
            answer(format!("delete {}", item(act)), api.delete(&act.name, &deleting)).await?;
            Outcome::Gone(item(act))
        }
        Step::EnsureHostAccess { host } => {
            let owner = Owner { kind: Kind::Host.as_str(), name: &host.name, uid: &host.uid };
            in_time(
                format!("give {} its rights", item(host)),
                access::ensure_host(&session.client(), &owner),
            )
            .await?;
            Outcome::Other
        }
        Step::EnsureSecretAccess { vm, host, secrets } => {
            let owner = Owner { kind: Kind::VirtualMachine.as_str(), name: &vm.name, uid: &vm.uid };
            let namespace = vm.namespace.as_deref().unwrap_or_default();
            let what = format!("let {host} read the Secrets of {}", item(vm));
            let client = session.client();
            in_time(what, access::ensure_secrets(&client, &owner, namespace, host, secrets)).await?;
            Outcome::Other
        }
        Step::RemoveSecretAccess { vm } => {
            let (client, namespace) = (session.client(), vm.namespace.as_deref().unwrap_or_default());
            let what = format!("take back the access to the Secrets of {}", item(vm));
            in_time(what, access::remove_secrets(&client, &vm.uid, namespace)).await?;
            Outcome::Other
        }
    };
    Ok(outcome)
}

fn item(object: &ObjectRef) -> Item {
    Item {
        kind: object.kind,
        namespace: object.namespace.clone().unwrap_or_default(),
        name: object.name.clone(),
    }
}

fn api(session: &Session, object: &ObjectRef) -> Api<DynamicObject> {
    let resource = kinds::resource(object.kind);
    match &object.namespace {
        Some(namespace) => Api::namespaced_with(session.client(), namespace, &resource),
        None => Api::all_with(session.client(), &resource),
    }
}

fn put(kind: Kind, chain: &mut Chain, answer: DynamicObject) -> Outcome {
    chain.wrote(kind, &answer);
    Outcome::Put(kind, Box::new(answer))
}

async fn answer<T>(what: String, request: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
    in_time(what.clone(), async { request.await.map_err(Error::api(what)) }).await
}

/// An answer that never comes must not keep the object, nor whoever looks at it, for ever.
pub(crate) async fn in_time<T>(
    what: String,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(ANSWER_TIMEOUT, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::NoAnswer { what, after: ANSWER_TIMEOUT }),
    }
}

/// Changes metadata by a merge patch, which never creates; conditional on uid and version.
async fn patch_metadata(
    session: &Session,
    object: &ObjectRef,
    chain: &mut Chain,
    mut metadata: Value,
) -> Result<Outcome, Error> {
    if let Some(map) = metadata.as_object_mut() {
        map.insert("uid".into(), object.uid.clone().into());
        map.insert("resourceVersion".into(), chain.version(object).into());
    }
    let patching = PatchParams { field_manager: Some(CONTROLLER_MANAGER.into()), ..PatchParams::default() };
    let patch = Patch::Merge(json!({"metadata": metadata}));
    let api = api(session, object);
    let patched =
        answer(format!("patch {}", item(object)), api.patch(&object.name, &patching, &patch)).await?;
    Ok(put(object.kind, chain, patched))
}

/// Applies our part of a status; conditional on uid and version.
async fn apply_status(
    session: &Session,
    step: &Step,
    object: &ObjectRef,
    chain: &mut Chain,
) -> Result<Outcome, Error> {
    let what = format!("apply the status of {}", item(object));
    let broken = |cause: String| Error::Document { what: what.clone(), cause };
    let old = chain.held(object).map(|held| held.conditions.clone()).unwrap_or_default();
    let document = step
        .status_document(&old, jiff::Timestamp::now())
        .ok_or_else(|| broken("the step has no status".into()))?;
    let mut document = document.map_err(|e| broken(e.to_string()))?;
    if let Some(metadata) = document.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".into(), chain.version(object).into());
        metadata.retain(|_, value| !value.is_null());
    }
    let applying = PatchParams::apply(CONTROLLER_MANAGER).force();
    let api = api(session, object);
    let applied = answer(what, api.patch_status(&object.name, &applying, &Patch::Apply(document))).await?;
    Ok(put(object.kind, chain, applied))
}

/// Reads confirmations from the API server itself: one may have been withdrawn.
async fn confirm(session: &Session, reads: &[FreshRead]) -> Result<(), Error> {
    for read in reads {
        let api = api(session, &read.object);
        let what = format!("read the confirmation on {}", item(&read.object));
        let found = answer(what, api.get(&read.object.name)).await?;
        let stands = found.annotations().get(CONFIRM_ANNOTATION) == Some(&read.confirm_annotation);
        if found.uid().as_deref() != Some(read.object.uid.as_str()) || !stands {
            return Err(Error::Withdrawn(item(&read.object).to_string()));
        }
    }
    Ok(())
}

/// Deleting a CustomResourceDefinition deletes all its objects past every admission: that is no order of a user.
async fn refuse_while_terminating(session: &Session, kind: Kind) -> Result<(), Error> {
    let api = Api::<CustomResourceDefinition>::all(session.client());
    let name = kinds::crd_name(kind);
    let crd = answer(format!("get CustomResourceDefinition {name}"), api.get_metadata(&name)).await?;
    if crd.metadata.deletion_timestamp.is_some() { Err(Error::KindTerminating(name)) } else { Ok(()) }
}
