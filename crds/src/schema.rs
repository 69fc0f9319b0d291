//! Builds the CustomResourceDefinitions: derived schemas plus the bounds and defaults that no derive can say.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

use crate::v1alpha1::{
    AffinityGroup, Disk, Host, HostCluster, Network, StorageDomain, VirtualMachine, VirtualMachineAction,
};

const DEFAULT_MAX_LENGTH: u64 = 1024;
const DEFAULT_MAX_ITEMS: u64 = 64;
const DEFAULT_MAX_PROPERTIES: u64 = 64;

/// Every kind, once.
pub fn all_crds() -> Result<Vec<CustomResourceDefinition>, serde_json::Error> {
    [
        VirtualMachine::crd(),
        VirtualMachineAction::crd(),
        Disk::crd(),
        HostCluster::crd(),
        Host::crd(),
        Network::crd(),
        StorageDomain::crd(),
        AffinityGroup::crd(),
    ]
    .into_iter()
    .map(finish)
    .collect()
}

/// Adds what every schema needs and no derive says: bounds on strings, lists and maps that name none, no stored
/// default for a union, and a status that kstatus never mistakes for Current before we have seen the object.
fn finish(crd: CustomResourceDefinition) -> Result<CustomResourceDefinition, serde_json::Error> {
    let mut document = serde_json::to_value(crd)?;
    let versions = document.pointer_mut("/spec/versions").and_then(Value::as_array_mut);
    for version in versions.into_iter().flatten() {
        if let Some(schema) = version.pointer_mut("/schema/openAPIV3Schema") {
            bound(schema);
            drop_union_defaults(schema);
            tell_list_defaults(schema, false);
            if let Some(status) = schema.pointer_mut("/properties/status").and_then(Value::as_object_mut) {
                status.insert("default".into(), pending_status());
            }
        }
    }
    serde_json::from_value(document)
}

fn pending_status() -> Value {
    json!({
        "observedGeneration": -1,
        "conditions": [{
            "type": "Ready",
            "status": "Unknown",
            "reason": "Pending",
            "message": "not seen by Vireo yet: is the controller running?",
            "lastTransitionTime": "1970-01-01T00:00:00Z",
        }],
    })
}

fn bound(schema: &mut Value) {
    let Some(node) = schema.as_object_mut() else { return };
    match node.get("type").and_then(Value::as_str) {
        Some("string") if needs_length(node) => {
            node.insert("maxLength".into(), DEFAULT_MAX_LENGTH.into());
        }
        Some("array") => {
            node.entry("maxItems").or_insert_with(|| DEFAULT_MAX_ITEMS.into());
            node.entry("x-kubernetes-list-type").or_insert_with(|| "atomic".into());
        }
        Some("object") if node.contains_key("additionalProperties") => {
            node.entry("maxProperties").or_insert_with(|| DEFAULT_MAX_PROPERTIES.into());
        }
        _ => {}
    }
    for key in ["items", "additionalProperties"] {
        if let Some(child) = node.get_mut(key) {
            bound(child);
        }
    }
    if let Some(properties) = node.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(bound);
    }
}

/// Removes defaults inside of lists and says them in the description instead; they are applied when reading. kubectl
/// sends a whole list again whenever what is stored has more than the manifest, and would say `configured` for ever.
fn tell_list_defaults(schema: &mut Value, is_in_list: bool) {
    let Some(node) = schema.as_object_mut() else { return };
    if is_in_list && let Some(default) = node.remove("default") {
        let told = node.get("description").and_then(Value::as_str).unwrap_or_default();
        let default = default.as_str().map_or_else(|| default.to_string(), str::to_owned);
        node.insert("description".into(), format!("{told} Left out: `{default}`.").trim().into());
    }
    if let Some(items) = node.get_mut("items") {
        tell_list_defaults(items, true);
    }
    if let Some(child) = node.get_mut("additionalProperties") {
        tell_list_defaults(child, is_in_list);
    }
    if let Some(properties) = node.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(|property| tell_list_defaults(property, is_in_list));
    }
}

/// Removes defaults of unions, which are applied when reading instead. A stored `{utc: {}}` would stay beside the
/// `{timezone: ...}` of a later merge, and an object with two members of a union is refused.
fn drop_union_defaults(schema: &mut Value) {
    let default =
        schema.as_object_mut().and_then(|node| node.remove("default")).filter(|_| !is_union(schema));
    if let Some(mut default) = default {
        drop_union_members(schema, &mut default);
        if let Some(node) = schema.as_object_mut() {
            node.insert("default".into(), default);
        }
    }
    for key in ["items", "additionalProperties"] {
        if let Some(child) = schema.get_mut(key) {
            drop_union_defaults(child);
        }
    }
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(drop_union_defaults);
    }
}

/// Removes from a default object what its schema declares to be a union.
fn drop_union_members(schema: &Value, default: &mut Value) {
    let Some(members) = default.as_object_mut() else { return };
    let property = |name: &str| schema.get("properties").and_then(|properties| properties.get(name));
    members.retain(|name, _| property(name).is_none_or(|property| !is_union(property)));
    for (name, member) in members.iter_mut() {
        if let Some(property) = property(name) {
            drop_union_members(property, member);
        }
    }
}

fn is_union(schema: &Value) -> bool {
    schema.get("oneOf").is_some()
}

fn needs_length(node: &Map<String, Value>) -> bool {
    !["enum", "maxLength"].iter().any(|key| node.contains_key(*key))
        && node.get("format").and_then(Value::as_str) != Some("date-time")
}
