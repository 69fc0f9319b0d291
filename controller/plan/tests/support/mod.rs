//! Worlds written as YAML: whole objects where it matters, sensible ones where it does not.

#![allow(dead_code)]

use std::{collections::BTreeMap, path::Path, sync::Arc};

use controller_plan::{Freshness, HostLiveness, Key, Kind, Plan, SecretAccess, Session, Undecodable, World};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use vireo_crds::{meta, v1alpha1 as api};

/// A world in a file. Objects get uid `uid-<name>`, version 1 and generation 1 unless they say otherwise.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorldFile {
    /// What is planned for.
    pub plan: Subject,
    #[serde(default = "noon")]
    pub now: Timestamp,
    /// Hosts by name: a live, attested host of 8 CPUs and 16Gi, changed by what is given here.
    #[serde(default)]
    pub hosts: BTreeMap<String, Value>,
    /// Hosts whose Lease is not being renewed.
    #[serde(default)]
    pub silent: Vec<String>,
    /// Signs of life, where "fresh" and "silent" do not say enough.
    #[serde(default)]
    pub liveness: BTreeMap<String, HostLiveness>,
    /// Defaults to session `s1`, in which everything existed before.
    #[serde(default)]
    pub session: Option<Session>,
    #[serde(default)]
    pub no_session: bool,
    #[serde(default)]
    pub secret_access: BTreeMap<String, SecretAccess>,
    #[serde(default)]
    pub without_host_access: Vec<String>,
    #[serde(default)]
    pub terminating: Vec<Kind>,
    #[serde(default)]
    pub undecodable: Vec<Undecodable>,
    /// Everything else.
    #[serde(default)]
    pub objects: Vec<Value>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Subject {
    pub kind: Kind,
    pub name: String,
}

fn noon() -> Timestamp {
    "2026-01-01T12:00:00Z".parse().unwrap()
}

pub fn load(path: &Path) -> WorldFile {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Changes a document by another: maps are merged, null removes, all else replaces.
pub fn merge(base: &mut Value, change: &Value) {
    match (base, change) {
        (Value::Object(base), Value::Object(change)) => {
            for (key, value) in change {
                if value.is_null() {
                    base.remove(key);
                } else {
                    merge(base.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (base, change) => *base = change.clone(),
    }
}

/// A live host that has attested in session `s1` and can do everything.
pub fn host(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "uid": format!("uid-{name}"), "resourceVersion": "1", "generation": 1, "finalizers": [meta::FINALIZER]},
        "spec": {"cluster": "default"},
        "status": {
            "incarnation": format!("inc-{name}"),
            "bootId": format!("boot-{name}"),
            "identity": {"publicKeySha256": "", "machineUuid": format!("machine-{name}")},
            "attestation": {"session": "s1", "incarnation": format!("inc-{name}"), "highestEpoch": 0},
            "features": ["uefi", "secureBoot", "tpm"],
            "cpu": {"architecture": "x86_64", "usableModels": ["qemu64", "EPYC", "EPYC-Rome"]},
            "allocatable": {"cpus": 8, "memory": 17_179_869_184_i64},
            "networks": [{"name": "lan", "uid": "uid-lan", "ready": true}],
            "storageDomains": [
                {"name": "shared", "uid": "uid-shared", "ready": true, "marked": true},
                {"name": "local", "uid": "uid-local", "ready": true, "marked": true},
            ],
        },
    })
}

fn fresh(incarnation: Option<&str>) -> HostLiveness {
    HostLiveness {
        freshness: Freshness::Fresh,
        holder: incarnation.map(Into::into),
        alive: incarnation.map(Into::into).into_iter().collect(),
        duplicate: false,
        watched: true,
    }
}

/// Cluster, network and storage domains that every case has unless it brings its own.
fn surroundings() -> Vec<Value> {
    vec![
        json!({"kind": "HostCluster", "metadata": {"name": "default"}, "spec": {}, "status": {"baseline": "EPYC"}}),
        json!({"kind": "Network", "metadata": {"name": "lan"}, "spec": {"nat": {"cidr": "10.88.0.0/24", "dhcp": {}}}}),
        json!({"kind": "StorageDomain", "metadata": {"name": "shared"}, "spec": {"directory": {"path": "/srv/shared", "shared": true}}}),
        json!({"kind": "StorageDomain", "metadata": {"name": "local"}, "spec": {"directory": {"path": "/srv/local"}}}),
    ]
}

impl WorldFile {
    pub fn build(&self) -> World {
        let mut world = World::default();
        world.set_installation_id("installation-1");
        let mut objects: BTreeMap<(String, String), Value> = BTreeMap::new();
        for object in surroundings().into_iter().chain(self.objects.iter().cloned()) {
            let id = (text(&object, "/kind"), text(&object, "/metadata/name"));
            objects.insert(id, object);
        }
        for object in objects.into_values() {
            put(&mut world, object);
        }
        for (name, change) in &self.hosts {
            let mut document = host(name);
            merge(&mut document, change);
            let object: api::Host = serde_json::from_value(with_type(document, "Host"))
                .unwrap_or_else(|e| panic!("host {name}: {e}"));
            let incarnation = object.status.as_ref().and_then(|s| s.incarnation.clone());
            world.put_host(Arc::new(object));
            world.set_host_access(name, !self.without_host_access.contains(name));
            let silent = self.silent.contains(name);
            let liveness = match silent {
                true => HostLiveness {
                    freshness: Freshness::Silent,
                    alive: Default::default(),
                    ..fresh(incarnation.as_deref())
                },
                false => fresh(incarnation.as_deref()),
            };
            world.set_liveness(name, liveness);
        }
        for (name, liveness) in &self.liveness {
            world.set_liveness(name, liveness.clone());
        }
        for (uid, access) in &self.secret_access {
            world.set_secret_access(uid, Some(access.clone()));
        }
        for kind in &self.terminating {
            world.set_terminating(*kind, true);
        }
        for object in &self.undecodable {
            world.put_undecodable(object.clone());
        }
        if !self.no_session {
            let everything = world
                .vms()
                .filter_map(|o| o.metadata.uid.clone())
                .chain(world.disks().filter_map(|o| o.metadata.uid.clone()));
            let default =
                Session { nonce: "s1".into(), preexisting: everything.collect(), ..Session::default() };
            world.set_session(Some(self.session.clone().unwrap_or(default)));
        }
        world
    }
}

fn text(object: &Value, pointer: &str) -> String {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().into()
}

fn with_type(mut object: Value, kind: &str) -> Value {
    merge(&mut object, &json!({"apiVersion": "vireo.dev/v1alpha1", "kind": kind}));
    object
}

/// Puts an object into the world, filling in what the API server would have.
pub fn put(world: &mut World, object: Value) {
    let kind = text(&object, "/kind");
    let name = text(&object, "/metadata/name");
    let mut document =
        json!({"metadata": {"uid": format!("uid-{name}"), "resourceVersion": "1", "generation": 1}});
    if ["VirtualMachine", "Disk", "VirtualMachineAction", "AffinityGroup"].contains(&kind.as_str()) {
        merge(&mut document, &json!({"metadata": {"namespace": "default"}}));
    }
    if ["VirtualMachine", "Disk"].contains(&kind.as_str()) {
        merge(
            &mut document,
            &json!({"metadata": {"finalizers": [meta::FINALIZER], "creationTimestamp": "2026-01-01T11:00:00Z"}}),
        );
    }
    merge(&mut document, &object);
    let document = with_type(document, &kind);
    let bad = |e: serde_json::Error| -> ! { panic!("{kind} {name}: {e}") };
    match kind.as_str() {
        "VirtualMachine" => {
            world.put_vm(serde_json::from_value(document).map(Arc::new).unwrap_or_else(|e| bad(e)))
        }
        "Disk" => world.put_disk(serde_json::from_value(document).map(Arc::new).unwrap_or_else(|e| bad(e))),
        "VirtualMachineAction" => {
            world.put_act(serde_json::from_value(document).map(Arc::new).unwrap_or_else(|e| bad(e)))
        }
        "HostCluster" => {
            world.put_cluster(serde_json::from_value(document).map(Arc::new).unwrap_or_else(|e| bad(e)))
        }
        "Host" => world.put_host(serde_json::from_value(document).map(Arc::new).unwrap_or_else(|e| bad(e))),
        "Network" => {
            world.put_network(serde_json::from_value(document).map(Arc::new).unwrap_or_else(|e| bad(e)))
        }
        "StorageDomain" => {
            world.put_domain(serde_json::from_value(document).map(Arc::new).unwrap_or_else(|e| bad(e)))
        }
        "AffinityGroup" => {
            world.put_group(serde_json::from_value(document).map(Arc::new).unwrap_or_else(|e| bad(e)))
        }
        other => panic!("{other} is no kind of ours"),
    }
}

/// Plans for one object of the world; an object that is gone has an empty plan.
pub fn plan(world: &World, subject: &Subject, now: Timestamp, fresh_id: &str) -> Plan {
    let key = Key::new("default", &subject.name);
    let name = subject.name.as_str();
    let plan = match subject.kind {
        Kind::VirtualMachine => world.vm(&key).map(|o| controller_plan::plan_vm(world, o, now, fresh_id)),
        Kind::VirtualMachineAction => world.act(&key).map(|o| controller_plan::plan_act(world, o, now)),
        Kind::Disk => world.disk(&key).map(|o| controller_plan::plan_disk(world, o, now)),
        Kind::HostCluster => world.cluster(name).map(|o| controller_plan::plan_cluster(world, o, now)),
        Kind::Host => world.host(name).map(|o| controller_plan::plan_host(world, o, now)),
        Kind::Network => world.network(name).map(|o| controller_plan::plan_network(world, o, now)),
        Kind::StorageDomain => world.domain(name).map(|o| controller_plan::plan_domain(world, o, now)),
        Kind::AffinityGroup => world.group(&key).map(|o| controller_plan::plan_group(world, o, now)),
    };
    plan.unwrap_or_default()
}

/// A plan as people read it in a golden file.
pub fn as_yaml(plan: &Plan) -> String {
    let value = serde_json::to_value(plan).unwrap();
    let value = if value == Value::Object(Map::new()) { json!({"steps": []}) } else { value };
    serde_saphyr::to_string(&value).unwrap()
}
