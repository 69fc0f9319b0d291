//! Renders docs/reference.md: every field of every kind, from the same texts as `kubectl explain`.

use anyhow::{Context, Result};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;

/// The field reference of these kinds.
pub fn render(crds: &[CustomResourceDefinition]) -> Result<String> {
    let mut text = String::from(
        "# Field reference\n\nEvery field of every kind, as `kubectl explain` tells it. Generated; do not edit.\n",
    );
    for crd in crds {
        let version = crd.spec.versions.first().context("a CRD has no version")?;
        let schema =
            serde_json::to_value(version.schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref()))?;
        let names = &crd.spec.names;
        let short = names.short_names.as_ref().and_then(|names| names.first()).cloned().unwrap_or_default();
        text.push_str(&format!("\n## {} (`{short}`, {})\n\n", names.kind, crd.spec.scope.to_lowercase()));
        text.push_str(&format!("{}\n", describe(&schema)));
        for part in ["spec", "status"] {
            if let Some(node) = schema.pointer(&format!("/properties/{part}")) {
                text.push_str("\n| Field | Type | Meaning |\n|---|---|---|\n");
                rows(node, part, &mut text);
            }
        }
    }
    Ok(text)
}

fn rows(node: &Value, path: &str, text: &mut String) {
    let required: Vec<&str> = node
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for (name, child) in node.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let path = format!("{path}.{name}");
        let must =
            if required.contains(&name.as_str()) && path.starts_with("spec") { ", required" } else { "" };
        text.push_str(&format!("| `{path}` | {}{must} | {} |\n", type_of(child), describe(child)));
        rows(child, &path, text);
        if let Some(items) = child.get("items") {
            rows(items, &format!("{path}[]"), text);
        }
    }
}

fn type_of(node: &Value) -> String {
    if let Some(values) = node.get("enum").and_then(Value::as_array) {
        let values: Vec<_> = values.iter().filter_map(Value::as_str).map(|v| format!("`{v}`")).collect();
        return values.join(", ");
    }
    let kind = node.get("type").and_then(Value::as_str).unwrap_or("any");
    let bounds = match (node.get("minimum"), node.get("maximum")) {
        (Some(low), Some(high)) => format!(" {} to {}", whole(low), whole(high)),
        _ => String::new(),
    };
    let default = match node.get("default") {
        Some(Value::Object(_)) | Some(Value::Array(_)) | None => String::new(),
        Some(value) => {
            format!(", default `{}`", value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        }
    };
    let kind = if kind == "array" { "list" } else { kind };
    format!("{kind}{bounds}{default}")
}

fn whole(value: &Value) -> String {
    value.as_f64().map_or_else(|| value.to_string(), |number| format!("{number:.0}"))
}

fn describe(node: &Value) -> String {
    node.get("description").and_then(Value::as_str).unwrap_or_default().replace('\n', " ").replace('|', "\\|")
}
