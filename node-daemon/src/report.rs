//! Writes what is so to the API server: one status apply per change, conditional on the very object it was decided
//! from. Drops writes that would change nothing but times.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::Time};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams},
    runtime::events::{Event, EventType, Recorder, Reporter as EventReporter},
};
use node_plan::{
    intent::VmRef,
    step::{ActReport, EventNote, VmReport},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use vireo_crds::{
    condition::{self, ConditionValue, kind},
    meta::{GROUP, NODE_MANAGER, VERSION},
    v1alpha1::{ActPhase, Host, VirtualMachine, VirtualMachineAction},
};

use crate::metrics::{Metrics, WriteLabels};

/// Longest wait for one answer of the API server.
pub const API_TIMEOUT: Duration = Duration::from_secs(10);

/// Condition types a daemon may own on a VM.
const VM_CONDITIONS: [&str; 8] = [
    kind::PROVISIONED,
    kind::RUNNING,
    kind::AGENT_CONNECTED,
    kind::RESTART_REQUIRED,
    kind::LIVE_MIGRATABLE,
    kind::READY,
    kind::RECONCILING,
    kind::STALLED,
];

/// A write that did not happen.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The object has changed since: decide anew.
    #[error("{0} has changed meanwhile")]
    Conflict(String),
    /// The object is gone.
    #[error("{0} is gone")]
    Gone(String),
    /// The API server refuses it.
    #[error("{object}: the API server refuses the report: {message}")]
    Refused {
        /// Object.
        object: String,
        /// Why.
        message: String,
    },
    /// No answer, or an error of the server's.
    #[error("{object}: {message}")]
    Failed {
        /// Object.
        object: String,
        /// Why.
        message: String,
    },
}

/// Writes reports.
pub struct Reporter {
    client: Client,
    recorder: Recorder,
    metrics: Arc<Metrics>,
    /// Last body applied per uid, with the version that came of it: what the server prunes or another manager owns
    /// must not be written again and again.
    applied: Mutex<HashMap<String, (Value, Option<String>)>>,
}

impl Reporter {
    /// Writes as `host`.
    pub fn new(client: Client, host: &str, metrics: Arc<Metrics>) -> Self {
        let reporter = EventReporter { controller: NODE_MANAGER.into(), instance: Some(host.into()) };
        Self { recorder: Recorder::new(client.clone(), reporter), client, metrics, applied: Mutex::default() }
    }

    /// Writes a VM's status if it differs. The object as it is then.
    pub async fn vm(
        &self,
        vm: &VirtualMachine,
        report: &VmReport,
        now: Timestamp,
    ) -> Result<Option<VirtualMachine>, WriteError> {
        let old = vm.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let status = json!({
            "observedGeneration": report.observed_generation,
            "conditions": condition::merge(old, &report.conditions, report.observed_generation, now),
            "state": report.state,
            "summary": report.summary,
            "runtime": report.runtime,
            "hardware": report.hardware,
        });
        let api = Api::namespaced(self.client.clone(), &vm.namespace().unwrap_or_default());
        self.apply("VirtualMachine", &api, vm, without_nulls(status), &VM_CONDITIONS).await
    }

    /// Writes the outcome of an act if it differs.
    pub async fn act(
        &self,
        act: &VirtualMachineAction,
        report: &ActReport,
        now: Timestamp,
    ) -> Result<Option<VirtualMachineAction>, WriteError> {
        let old = act.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let ready = match report.phase {
            ActPhase::Succeeded => ConditionValue::yes(kind::READY, "Succeeded", report.message.as_str()),
            ActPhase::Failed => ConditionValue::no(kind::READY, "Failed", report.message.as_str()),
            ActPhase::Pending | ActPhase::Running | ActPhase::Unknown => {
                ConditionValue::no(kind::READY, "Running", report.message.as_str())
            }
        };
        let generation = act.metadata.generation.unwrap_or_default();
        let status = json!({
            "observedGeneration": generation,
            "conditions": condition::merge(old, &[ready], generation, now),
            "phase": report.phase,
            "message": report.message,
            "completedAt": report.completed_at.map(Time),
        });
        let api = Api::namespaced(self.client.clone(), &act.namespace().unwrap_or_default());
        self.apply("VirtualMachineAction", &api, act, without_nulls(status), &[kind::READY]).await
    }

    /// Applies `status` to an object unless it already says so.
    pub async fn apply<K>(
        &self,
        what: &'static str,
        api: &Api<K>,
        object: &K,
        status: Value,
        own: &[&str],
    ) -> Result<Option<K>, WriteError>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
    {
        let uid = object.uid().unwrap_or_default();
        let version = object.resource_version();
        let name = format!("{what} {}/{}", object.namespace().unwrap_or_default(), object.name_any());
        let seen = serde_json::to_value(object)
            .ok()
            .and_then(|mut value| value.get_mut("status").map(Value::take))
            .unwrap_or(Value::Null);
        let last = self.lock().get(&uid).cloned();
        if !is_due(&seen, &status, own, last.as_ref(), version.as_deref()) {
            return Ok(None);
        }
        let body = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": what,
            "metadata": {"name": object.name_any(), "namespace": object.namespace(), "uid": uid, "resourceVersion": version},
            "status": status,
        });
        let params = PatchParams::apply(NODE_MANAGER).force();
        let written =
            with_timeout(api.patch_status(&object.name_any(), &params, &Patch::Apply(without_nulls(body))))
                .await;
        let count = |result| self.metrics.writes.get_or_create(&WriteLabels { kind: what, result }).inc();
        match written {
            Ok(written) => {
                count("ok");
                self.lock().insert(uid, (status, written.resource_version()));
                Ok(Some(written))
            }
            Err(error) => {
                let error = classify(name, error);
                count(if matches!(error, WriteError::Conflict(_)) { "conflict" } else { "error" });
                Err(error)
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Value, Option<String>)>> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what was written for an object that is gone.
    pub fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// Tells people of something that happened to a VM. Best effort: an Event is never worth waiting for.
    pub async fn event(&self, vm: &VmRef, note: &EventNote) {
        let regarding = ObjectReference {
            api_version: Some(format!("{GROUP}/{VERSION}")),
            kind: Some("VirtualMachine".into()),
            namespace: Some(vm.namespace.clone()),
            name: Some(vm.name.clone()),
            uid: Some(vm.uid.clone()),
            ..ObjectReference::default()
        };
        self.publish(&regarding, note).await;
    }

    /// Tells people of something that happened to the host.
    pub async fn host_event(&self, host: &Host, note: &EventNote) {
        self.publish(&host.object_ref(&()), note).await;
    }

    async fn publish(&self, regarding: &ObjectReference, note: &EventNote) {
        let event = Event {
            type_: if note.warning { EventType::Warning } else { EventType::Normal },
            reason: note.reason.clone(),
            note: Some(note.message.chars().take(1000).collect()),
            action: note.reason.clone(),
            secondary: None,
        };
        if let Err(error) = tokio::time::timeout(API_TIMEOUT, self.recorder.publish(&event, regarding))
            .await
            .map_err(|_| "no answer".to_owned())
            .and_then(|r| r.map_err(|e| e.to_string()))
        {
            let (kind, name) = (regarding.kind.as_deref(), regarding.name.as_deref());
            tracing::debug!(kind, name, reason = note.reason, error, "an Event was not written");
        }
    }
}

/// Waits for an answer of the API server, but not for ever: a dead connection may never give one.
pub async fn with_timeout<T>(
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, Option<kube::Error>> {
    match tokio::time::timeout(API_TIMEOUT, call).await {
        Ok(answer) => answer.map_err(Some),
        Err(_) => Err(None),
    }
}

fn classify(object: String, error: Option<kube::Error>) -> WriteError {
    match error {
        None => WriteError::Failed { object, message: "the API server does not answer".into() },
        Some(kube::Error::Api(status)) => match status.code {
            409 => WriteError::Conflict(object),
            404 => WriteError::Gone(object),
            400 | 403 | 422 => WriteError::Refused { object, message: status.message.clone() },
            _ => WriteError::Failed { object, message: status.message.clone() },
        },
        Some(error) => WriteError::Failed { object, message: error.to_string() },
    }
}

/// Whether a status has to be written: something of it differs from what the object says, or the object still carries
/// something of ours that it should not.
fn is_due(
    seen: &Value,
    wanted: &Value,
    own: &[&str],
    last: Option<&(Value, Option<String>)>,
    version: Option<&str>,
) -> bool {
    let same_as_last = last.is_some_and(|(body, _)| same(body, wanted));
    let after_last = last.is_some_and(|(_, written)| written.as_deref() == version);
    let differs = wanted.as_object().into_iter().flatten().any(|(field, value)| match field.as_str() {
        "conditions" => value.as_array().into_iter().flatten().any(|c| !has_condition(seen, c)),
        field => seen.get(field) != Some(value),
    });
    if differs {
        // The server keeps it otherwise (pruned, defaulted): writing the same to the same changes nothing.
        return !(same_as_last && after_last);
    }
    let surplus = seen.get("conditions").and_then(Value::as_array).into_iter().flatten().any(|c| {
        let type_ = c.get("type").and_then(Value::as_str).unwrap_or_default();
        own.contains(&type_) && !types(wanted).any(|wanted| wanted == type_)
    });
    surplus && !same_as_last
}

fn types(status: &Value) -> impl Iterator<Item = &str> {
    status
        .get("conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|c| c.get("type")?.as_str())
}

fn has_condition(seen: &Value, wanted: &Value) -> bool {
    let list = seen.get("conditions").and_then(Value::as_array);
    list.into_iter().flatten().any(|c| {
        ["type", "status", "reason", "message", "observedGeneration"]
            .iter()
            .all(|field| c.get(*field) == wanted.get(*field))
    })
}

/// Whether two bodies differ in nothing but transition times.
fn same(a: &Value, b: &Value) -> bool {
    let strip = |value: &Value| {
        let mut value = value.clone();
        for condition in value.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(condition) = condition.as_object_mut() {
                condition.remove("lastTransitionTime");
            }
        }
        value
    };
    strip(a) == strip(b)
}

/// A null would claim the field.
pub fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: &str, conditions: &[(&str, &str, &str)]) -> Value {
        let list: Vec<_> = conditions.iter().map(|(t, s, when)| json!({"type": t, "status": s, "reason": "R", "message": "", "observedGeneration": 1, "lastTransitionTime": when})).collect();
        json!({"state": state, "conditions": list})
    }

    #[test]
    fn only_a_difference_is_worth_a_write() {
        let seen = status("Running", &[("Ready", "True", "a"), ("Accepted", "True", "a")]);
        let own = ["Ready", "Stalled"];
        assert!(
            !is_due(&seen, &status("Running", &[("Ready", "True", "b")]), &own, None, Some("1")),
            "only a time moved"
        );
        assert!(is_due(&seen, &status("Stopped", &[("Ready", "True", "a")]), &own, None, Some("1")));
        assert!(is_due(&seen, &status("Running", &[("Ready", "False", "a")]), &own, None, Some("1")));
    }

    #[test]
    fn a_condition_that_no_longer_holds_is_dropped_once() {
        let seen = status("Running", &[("Ready", "True", "a"), ("Stalled", "True", "a")]);
        let wanted = status("Running", &[("Ready", "True", "a")]);
        let own = ["Ready", "Stalled"];
        assert!(is_due(&seen, &wanted, &own, None, Some("1")));
        assert!(
            !is_due(&seen, &wanted, &own, Some(&(wanted.clone(), Some("1".into()))), Some("1")),
            "another manager's: not ours to drop"
        );
    }

    #[test]
    fn what_the_server_prunes_is_not_written_for_ever() {
        let seen = status("Running", &[]);
        let wanted = json!({"state": "Running", "unknown": 1});
        assert!(is_due(&seen, &wanted, &[], None, Some("1")));
        assert!(!is_due(&seen, &wanted, &[], Some(&(wanted.clone(), Some("2".into()))), Some("2")));
        assert!(is_due(&seen, &wanted, &[], Some(&(wanted.clone(), Some("2".into()))), Some("3")));
    }
}
