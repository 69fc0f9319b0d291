//! Checks api.md's shape rules on every schema: nothing unbounded, every list keyed or atomic, everything explained.

use std::path::Path;

use anyhow::Result;
use kube::ResourceExt;
use serde_json::Value;
use vireo_crds::all_crds;

/// Faults in the schemas.
pub fn check(_: &Path) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for crd in all_crds()? {
        for version in &crd.spec.versions {
            let schema =
                serde_json::to_value(version.schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref()))?;
            for part in ["spec", "status"] {
                if let Some(node) = schema.pointer(&format!("/properties/{part}")) {
                    walk(node, &format!("{} {part}", crd.name_any()), true, &mut faults);
                }
            }
            if schema.pointer("/properties/status/default").is_none() {
                faults.push(format!(
                    "{}: status has no default, so kstatus would call a new object Current",
                    crd.name_any()
                ));
            }
            if !version.additional_printer_columns.iter().flatten().any(|c| c.name == "Age") {
                faults.push(format!("{}: no AGE column", crd.name_any()));
            }
        }
    }
    Ok(faults)
}

fn walk(node: &Value, path: &str, needs_description: bool, faults: &mut Vec<String>) {
    if needs_description && node.get("description").is_none() {
        faults.push(format!("{path}: no description, so `kubectl explain` says nothing"));
    }
    let has = |key: &str| node.get(key).is_some();
    match node.get("type").and_then(Value::as_str) {
        Some("string")
            if !has("maxLength")
                && !has("enum")
                && node.get("format").and_then(Value::as_str) != Some("date-time") =>
        {
            faults.push(format!("{path}: string without maxLength"));
        }
        Some("array") if !has("maxItems") || !has("x-kubernetes-list-type") => {
            faults.push(format!("{path}: list without maxItems or x-kubernetes-list-type"));
        }
        Some("object") if has("additionalProperties") && !has("maxProperties") => {
            faults.push(format!("{path}: map without maxProperties"));
        }
        Some("integer")
            if matches!(node.get("format").and_then(Value::as_str), Some("uint" | "uint32" | "uint64")) =>
        {
            faults.push(format!("{path}: unsigned formats are unknown to API servers"));
        }
        None if !has("x-kubernetes-int-or-string") && !has("x-kubernetes-preserve-unknown-fields") => {
            faults.push(format!("{path}: no type"));
        }
        _ => {}
    }
    if let Some(items) = node.get("items") {
        walk(items, &format!("{path}[]"), false, faults);
    }
    for (name, child) in node.get("properties").and_then(Value::as_object).into_iter().flatten() {
        walk(child, &format!("{path}.{name}"), true, faults);
    }
}
