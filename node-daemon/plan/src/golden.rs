//! Golden folders: `testdata/plan/<case>/{intent.yaml, facts.yaml, plan.yaml}`. A case needs no code. A file may start
//! from one in `base/` (`$base: NAME`) and change it as a JSON merge patch does. Goldens are rewritten only under
//! `VIREO_BLESS=1`, which `xtask bless` sets.

#![cfg(test)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    effect,
    facts::Facts,
    intent::{Observation, VmRef, Wanted},
    lint::lint,
    step::Plan,
    vm::{plan_vm, start},
};

/// Plans needed at most until nothing is left to do, for any golden.
const ROUNDS: usize = 6;

pub(crate) fn vm() -> VmRef {
    VmRef { uid: "u1".into(), namespace: "default".into(), name: "web".into() }
}

pub(crate) fn now() -> Timestamp {
    "2026-01-01T09:30:00Z".parse().unwrap()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/plan")
}

pub(crate) fn observation(patch: Value) -> Observation {
    let value = based(&json!({"$base": "web"}), "intent", patch);
    serde_json::from_value(value).unwrap()
}

pub(crate) fn facts(base: &str, patch: Value) -> Facts {
    serde_json::from_value(based(&json!({"$base": base}), "facts", patch)).unwrap()
}

fn based(start: &Value, kind: &str, patch: Value) -> Value {
    let mut value = match start.get("$base").and_then(Value::as_str) {
        Some(base) => {
            let text = fs::read_to_string(root().join(format!("base/{base}.{kind}.yaml"))).unwrap();
            let inner: Value = serde_saphyr::from_str(&text).unwrap();
            based(&inner.clone(), kind, inner)
        }
        None => json!({}),
    };
    merge(&mut value, patch);
    if let Some(object) = value.as_object_mut() {
        object.remove("$base");
    }
    if kind == "facts" {
        fill(&mut value);
    }
    value
}

/// RFC 7386.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Some(object) = target.as_object_mut() else { return };
    for (key, value) in patch {
        if value.is_null() {
            object.remove(&key);
        } else {
            merge(object.entry(key).or_insert(Value::Null), value);
        }
    }
}

/// Puts what the base intent says in place of `$wanted`, `$metadata` and `$hardware`.
fn fill(value: &mut Value) {
    match value {
        Value::String(text) if text == "$wanted" => *value = serde_json::to_value(base_wanted()).unwrap(),
        Value::String(text) if text == "$metadata" => {
            let Observation::Granted(intent) = observation(json!({})) else { unreachable!() };
            *value = serde_json::to_value(start::metadata(&vm(), &intent.grant, &base_wanted())).unwrap();
        }
        Value::String(text) if text == "$hardware" => {
            *value = json!({"machineType": "pc-q35-10.0", "firmware": "bios", "devices": [{"name": "root", "kind": "disk", "address": "0000:01:00.0"}]});
        }
        Value::Array(items) => items.iter_mut().for_each(fill),
        Value::Object(object) => object.values_mut().for_each(fill),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn base_wanted() -> Wanted {
    let Observation::Granted(intent) = observation(json!({})) else { unreachable!() };
    intent.wanted.unwrap()
}

fn load(case: &Path) -> (Observation, Facts, Timestamp) {
    let read = |name: &str| -> Value {
        let text = fs::read_to_string(case.join(name)).unwrap();
        serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}/{name}: {error}", case.display()))
    };
    let (intent, mut facts) = (read("intent.yaml"), read("facts.yaml"));
    let now = match facts.as_object_mut().unwrap().remove("$now") {
        Some(text) => text.as_str().unwrap().parse().unwrap(),
        None => now(),
    };
    let observation = if intent.is_string() { intent } else { based(&intent.clone(), "intent", intent) };
    let facts = based(&facts.clone(), "facts", facts);
    let name = case.display();
    (
        serde_json::from_value(observation).unwrap_or_else(|error| panic!("{name}/intent.yaml: {error}")),
        serde_json::from_value(facts).unwrap_or_else(|error| panic!("{name}/facts.yaml: {error}")),
        now,
    )
}

/// The plan as people read it: what is long and said elsewhere is left out.
fn brief(plan: &Plan) -> Value {
    let mut value = serde_json::to_value(plan).unwrap();
    for step in value.get_mut("steps").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(wanted) = step.pointer_mut("/writeLedger/entry/wanted") {
            *wanted = json!({"generation": wanted["generation"]});
        }
        for path in
            ["/startDomain/machine", "/startDomain/metadata/built/spec", "/writeMetadata/metadata/built/spec"]
        {
            if let Some(long) = step.pointer_mut(path) {
                *long = json!("(left out)");
            }
        }
        for path in ["/startDomain/metadata/built/specHash", "/writeMetadata/metadata/built/specHash"] {
            if let Some(hash) = step.pointer_mut(path) {
                *hash = json!("(hash)");
            }
        }
    }
    value
}

#[test]
fn every_case_plans_as_its_golden_says_and_comes_to_rest() {
    let bless = std::env::var_os("VIREO_BLESS").is_some_and(|value| value == "1");
    let mut cases: Vec<_> = fs::read_dir(root())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("intent.yaml").exists())
        .collect();
    cases.sort();
    assert!(!cases.is_empty());
    let mut failures = Vec::new();
    for case in cases {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let (observation, mut facts, now) = load(&case);
        let plan = plan_vm(&vm(), &observation, &facts, now);
        let golden = case.join("plan.yaml");
        let actual = brief(&plan);
        if bless {
            fs::write(&golden, serde_saphyr::to_string(&actual).unwrap()).unwrap();
        } else {
            let expected: Value = serde_saphyr::from_str(&fs::read_to_string(&golden).unwrap_or_default())
                .unwrap_or(Value::Null);
            if expected != actual {
                failures
                    .push(format!("{name}: the plan is now\n{}", serde_saphyr::to_string(&actual).unwrap()));
            }
        }
        failures.extend(
            rest(&observation, &mut facts, now).into_iter().map(|failure| format!("{name}: {failure}")),
        );
    }
    assert!(failures.is_empty(), "{}\n(cargo xtask bless rewrites goldens)", failures.join("\n"));
}

/// Plans and applies until nothing is left; says what goes wrong on the way.
pub(crate) fn rest(observation: &Observation, facts: &mut Facts, now: Timestamp) -> Vec<String> {
    for _ in 0..ROUNDS {
        let plan = plan_vm(&vm(), observation, facts, now);
        let broken = lint(observation, facts, &plan);
        if !broken.is_empty() {
            return broken;
        }
        if plan.steps.is_empty() {
            return Vec::new();
        }
        for step in &plan.steps {
            effect::apply(step, facts, now);
        }
    }
    let plan = plan_vm(&vm(), observation, facts, now);
    vec![format!("it does not come to rest; after {ROUNDS} rounds it still plans {:?}", plan.steps)]
}
