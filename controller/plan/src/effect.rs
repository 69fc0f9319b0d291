//! What each step does to the world: the reference by which executors, simulations and tests are judged.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::Resource;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use thiserror::Error;
use vireo_crds::{condition::kind, meta, v1alpha1::Disk};

use crate::{
    conditions,
    plan::Plan,
    step::{FreshRead, Kind, ObjectRef, Step},
    world::{Key, SecretAccess, World},
};

/// Why a step changes nothing. Each means: plan again.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum EffectError {
    /// The object is gone, or another one has its name.
    #[error("{0} {1} is gone")]
    Gone(Kind, String),
    /// Somebody wrote in between.
    #[error("{0} {1} has changed meanwhile")]
    Conflict(Kind, String),
    /// An object of this name exists already.
    #[error("{0} {1} exists already")]
    Exists(Kind, String),
    /// What had to be read once more no longer says the same.
    #[error("the confirmation on {0} {1} is gone")]
    NotConfirmed(Kind, String),
    /// The step belongs to another session.
    #[error("the session is over")]
    SessionOver,
    /// A document cannot be written or read back.
    #[error("{0}")]
    Document(String),
}

/// Carries out a whole plan, as an executor would: in order, up to the first failure.
pub fn apply_plan(world: &mut World, plan: &Plan, now: Timestamp) -> Result<(), EffectError> {
    let mut versions = BTreeMap::new();
    plan.steps.iter().try_for_each(|step| apply_step(world, step, &mut versions, now))
}

/// Versions that earlier steps of the same plan made, by kind and uid.
type Versions = BTreeMap<(Kind, String), String>;

fn apply_step(
    world: &mut World,
    step: &Step,
    versions: &mut Versions,
    now: Timestamp,
) -> Result<(), EffectError> {
    match step {
        Step::CreateDisk { disk } => create_disk(world, disk, now),
        Step::EnsureFinalizer { object } => {
            change(world, object, versions, |document| set_finalizer(document, true))
        }
        Step::RemoveFinalizer { object, read_first } => {
            still_confirmed(world, read_first)?;
            change(world, object, versions, |document| set_finalizer(document, false))
        }
        Step::DeleteAct { act } => {
            change(world, act, versions, |_| {})?;
            world.remove_act(&key(act));
            Ok(())
        }
        Step::EnsureHostAccess { host } => {
            world.set_host_access(&host.name, true);
            Ok(())
        }
        Step::EnsureSecretAccess { vm, host, secrets } => {
            world.set_secret_access(
                &vm.uid,
                Some(SecretAccess { host: host.clone(), secrets: secrets.clone() }),
            );
            Ok(())
        }
        Step::RemoveSecretAccess { vm } => {
            world.set_secret_access(&vm.uid, None);
            Ok(())
        }
        Step::SetPlacement { vm, session, read_first, status } => {
            if world.session().is_none_or(|s| s.nonce != *session) {
                return Err(EffectError::SessionOver);
            }
            still_confirmed(world, read_first)?;
            set_status(world, vm, step, versions, now)?;
            if let Some(placement) = &status.placement {
                world.note_granted(&placement.id);
            }
            Ok(())
        }
        Step::SetHostStatus { host, .. } => {
            set_status(world, host, step, versions, now)?;
            world.note_summary_written(Kind::Host, &host.name, now);
            Ok(())
        }
        Step::SetClusterStatus { cluster, .. } => {
            set_status(world, cluster, step, versions, now)?;
            world.note_summary_written(Kind::HostCluster, &cluster.name, now);
            Ok(())
        }
        Step::SetDiskStatus { disk, read_first, .. } => {
            still_confirmed(world, read_first)?;
            set_status(world, disk, step, versions, now)
        }
        Step::SetVmStatus { vm: object, .. }
        | Step::SetActStatus { act: object, .. }
        | Step::SetNetworkStatus { network: object, .. }
        | Step::SetDomainStatus { domain: object, .. }
        | Step::SetGroupStatus { group: object, .. } => set_status(world, object, step, versions, now),
    }
}

fn key(object: &ObjectRef) -> Key {
    Key::new(object.namespace.as_deref().unwrap_or_default(), &object.name)
}

fn gone(object: &ObjectRef) -> EffectError {
    EffectError::Gone(object.kind, object.name.clone())
}

fn create_disk(world: &mut World, disk: &Disk, now: Timestamp) -> Result<(), EffectError> {
    let key = Key::of(disk);
    if world.disk(&key).is_some() {
        return Err(EffectError::Exists(Kind::Disk, key.name));
    }
    let mut disk = disk.clone();
    disk.metadata.uid = Some(format!("uid-{}-{}", key.namespace, key.name));
    disk.metadata.resource_version = Some("1".into());
    disk.metadata.generation = Some(1);
    disk.metadata.creation_timestamp = Some(Time(now));
    world.put_disk(Arc::new(disk));
    Ok(())
}

fn still_confirmed(world: &World, reads: &[FreshRead]) -> Result<(), EffectError> {
    for read in reads {
        let name = &read.object.name;
        let metadata = match read.object.kind {
            Kind::Host => world.host(name).map(|host| &host.metadata),
            _ => world.vm(&key(&read.object)).map(|vm| &vm.metadata),
        };
        let same = metadata.filter(|m| m.uid.as_deref() == Some(&read.object.uid));
        let value = same.and_then(|m| m.annotations.as_ref()).and_then(|a| a.get(meta::CONFIRM_ANNOTATION));
        if value != Some(&read.confirm_annotation) {
            return Err(EffectError::NotConfirmed(read.object.kind, name.clone()));
        }
    }
    Ok(())
}

/// Puts the applied fields into the status: those of the controller that are left out go, all others stay.
fn set_status(
    world: &mut World,
    object: &ObjectRef,
    step: &Step,
    versions: &mut Versions,
    now: Timestamp,
) -> Result<(), EffectError> {
    let old = stored_conditions(world, object).ok_or_else(|| gone(object))?;
    let body = step.status_body(&old, now).transpose().map_err(|e| EffectError::Document(e.to_string()))?;
    let body = body.and_then(|b| b.as_object().cloned()).unwrap_or_default();
    let kept =
        kept_conditions(world, object, &old, &body).map_err(|e| EffectError::Document(e.to_string()))?;
    change(world, object, versions, |document| {
        let status = document.entry("status").or_insert_with(|| Value::Object(Map::new()));
        let Some(status) = status.as_object_mut() else { return };
        for field in whole_fields(object.kind) {
            status.remove(*field);
        }
        if let (Kind::Disk, Some(summary)) =
            (object.kind, status.get_mut("summary").and_then(Value::as_object_mut))
        {
            summary.remove("usedBy");
        }
        for (field, value) in body {
            match (field.as_str(), status.get_mut(&field), value) {
                ("conditions", _, Value::Array(applied)) => {
                    let all = kept.iter().cloned().chain(applied).collect();
                    status.insert(field, Value::Array(all));
                }
                ("summary", Some(Value::Object(summary)), Value::Object(applied))
                    if object.kind == Kind::Disk =>
                {
                    summary.extend(applied);
                }
                (_, _, value) => {
                    status.insert(field, value);
                }
            }
        }
    })
}

/// Fields that are the controller's alone: left out of an apply, they go.
fn whole_fields(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::VirtualMachine => &["placement"],
        Kind::Disk => &["placement", "attachments", "remove"],
        Kind::VirtualMachineAction => &["act", "host", "vmUid", "grantId"],
        Kind::Host => &["allocated"],
        Kind::HostCluster => &["baseline", "capacity"],
        Kind::Network => &["hosts"],
        Kind::StorageDomain => &["marker", "initialize", "initialized", "hosts", "capacity", "available"],
        Kind::AffinityGroup => &["violations"],
    }
}

/// Stored conditions that survive the apply: somebody else's, in their old order.
fn kept_conditions(
    world: &World,
    object: &ObjectRef,
    old: &[Condition],
    body: &Map<String, Value>,
) -> Result<Vec<Value>, serde_json::Error> {
    let applied: Vec<_> = body
        .get("conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|c| c.get("type").and_then(Value::as_str))
        .collect();
    let metadata = metadata(world, object).cloned().unwrap_or_default();
    let ours = |c: &Condition| {
        [kind::READY, kind::RECONCILING, kind::STALLED].contains(&c.type_.as_str())
            && conditions::is_ours(&metadata, c)
    };
    old.iter()
        .filter(|c| !applied.contains(&c.type_.as_str()) && !ours(c))
        .map(serde_json::to_value)
        .collect()
}

fn set_finalizer(document: &mut Map<String, Value>, wanted: bool) {
    let Some(metadata) = document.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let mut finalizers: Vec<Value> =
        metadata.get("finalizers").and_then(Value::as_array).cloned().unwrap_or_default();
    finalizers.retain(|f| f.as_str() != Some(meta::FINALIZER));
    if wanted {
        finalizers.push(meta::FINALIZER.into());
    }
    metadata.insert("finalizers".into(), finalizers.into());
}

fn stored_conditions(world: &World, object: &ObjectRef) -> Option<Vec<Condition>> {
    let conditions = match object.kind {
        Kind::VirtualMachine => world.vm(&key(object))?.status.as_ref().map(|s| s.conditions.clone()),
        Kind::VirtualMachineAction => world.act(&key(object))?.status.as_ref().map(|s| s.conditions.clone()),
        Kind::Disk => world.disk(&key(object))?.status.as_ref().map(|s| s.conditions.clone()),
        Kind::Host => world.host(&object.name)?.status.as_ref().map(|s| s.conditions.clone()),
        Kind::HostCluster => world.cluster(&object.name)?.status.as_ref().map(|s| s.conditions.clone()),
        Kind::Network => world.network(&object.name)?.status.as_ref().map(|s| s.conditions.clone()),
        Kind::StorageDomain => world.domain(&object.name)?.status.as_ref().map(|s| s.conditions.clone()),
        Kind::AffinityGroup => world.group(&key(object))?.status.as_ref().map(|s| s.conditions.clone()),
    };
    Some(conditions.unwrap_or_default())
}

fn metadata<'a>(
    world: &'a World,
    object: &ObjectRef,
) -> Option<&'a k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta> {
    Some(match object.kind {
        Kind::VirtualMachine => &world.vm(&key(object))?.metadata,
        Kind::VirtualMachineAction => &world.act(&key(object))?.metadata,
        Kind::Disk => &world.disk(&key(object))?.metadata,
        Kind::Host => &world.host(&object.name)?.metadata,
        Kind::HostCluster => &world.cluster(&object.name)?.metadata,
        Kind::Network => &world.network(&object.name)?.metadata,
        Kind::StorageDomain => &world.domain(&object.name)?.metadata,
        Kind::AffinityGroup => &world.group(&key(object))?.metadata,
    })
}

/// Changes one object of the version named, and gives it the next version.
fn change(
    world: &mut World,
    object: &ObjectRef,
    versions: &mut Versions,
    edit: impl FnOnce(&mut Map<String, Value>),
) -> Result<(), EffectError> {
    let held = metadata(world, object)
        .filter(|m| m.uid.as_deref() == Some(&object.uid))
        .ok_or_else(|| gone(object))?;
    let slot = (object.kind, object.uid.clone());
    let expected = versions.get(&slot).unwrap_or(&object.resource_version);
    if held.resource_version.as_ref() != Some(expected) {
        return Err(EffectError::Conflict(object.kind, object.name.clone()));
    }
    let next = expected.parse::<u64>().unwrap_or(0).saturating_add(1).to_string();
    let name = object.name.as_str();
    let key = key(object);
    match object.kind {
        Kind::VirtualMachine => match edited(world.vm(&key), &next, edit)? {
            Some(object) => world.put_vm(object),
            None => world.remove_vm(&key),
        },
        Kind::VirtualMachineAction => match edited(world.act(&key), &next, edit)? {
            Some(object) => world.put_act(object),
            None => world.remove_act(&key),
        },
        Kind::Disk => match edited(world.disk(&key), &next, edit)? {
            Some(object) => world.put_disk(object),
            None => world.remove_disk(&key),
        },
        Kind::Host => match edited(world.host(name), &next, edit)? {
            Some(object) => world.put_host(object),
            None => world.remove_host(name),
        },
        Kind::HostCluster => match edited(world.cluster(name), &next, edit)? {
            Some(object) => world.put_cluster(object),
            None => world.remove_cluster(name),
        },
        Kind::Network => match edited(world.network(name), &next, edit)? {
            Some(object) => world.put_network(object),
            None => world.remove_network(name),
        },
        Kind::StorageDomain => match edited(world.domain(name), &next, edit)? {
            Some(object) => world.put_domain(object),
            None => world.remove_domain(name),
        },
        Kind::AffinityGroup => match edited(world.group(&key), &next, edit)? {
            Some(object) => world.put_group(object),
            None => world.remove_group(&key),
        },
    }
    versions.insert(slot, next);
    Ok(())
}

/// The object after the edit; none if nothing keeps it from going.
fn edited<K>(
    held: Option<&Arc<K>>,
    version: &str,
    edit: impl FnOnce(&mut Map<String, Value>),
) -> Result<Option<Arc<K>>, EffectError>
where
    K: Resource + Serialize + DeserializeOwned,
{
    let document = |e: serde_json::Error| EffectError::Document(e.to_string());
    let Some(held) = held else { return Ok(None) };
    let mut value = serde_json::to_value(held.as_ref()).map_err(document)?;
    if let Some(map) = value.as_object_mut() {
        edit(map);
    }
    let mut object: K = serde_json::from_value(value).map_err(document)?;
    object.meta_mut().resource_version = Some(version.into());
    let stays = object.meta().deletion_timestamp.is_none()
        || object.meta().finalizers.as_ref().is_some_and(|f| !f.is_empty());
    Ok(stays.then(|| Arc::new(object)))
}
