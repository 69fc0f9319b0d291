//! What an earlier release wrote is read, what a later one writes is refused or left alone: frozen files and objects of
//! each release under `tests/compatibility`, read by today's code.

mod live;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, ResourceExt,
    api::{DynamicObject, ObjectMeta, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use live::{Fleet, LIMIT, Node, is_ready, run};
use node_daemon::{
    host::{libvirt::state_home, memory::MemoryConfig},
    incarnation::Incarnation,
    storage::{domain, files, token, volume},
};
use node_plan::{
    facts::{DiskToken, TokenFact},
    ledger::{
        ActRecord, Entry, FORMAT_VERSION, HeldState, HeldVolume, LastStop, LedgerError, PausedBy, StopBy,
        Stopping, decode, encode,
    },
    storage::{domain::DirectoryFact, sidecar::Sidecar},
    xml::metadata,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use system_tests::{
    apiserver::{Stop, shared},
    wait::until,
};
use vireo_crds::{
    condition,
    meta::NODE_MANAGER,
    v1alpha1::{
        ActPhase, Disk, DiskFormat, Grant, Hardware, Host, HostCluster, Marker, Network, StopCause,
        StorageDomain, VirtualMachine, VirtualMachineAction,
    },
};

const NAMESPACE: &str = "default";
/// uid of the VM in the ledger files.
const UID: &str = "6f9d8f3e-0000-4000-8000-000000000001";
const KINDS: [&str; 7] =
    ["VirtualMachine", "VirtualMachineAction", "Disk", "HostCluster", "Host", "Network", "StorageDomain"];

fn folder() -> PathBuf {
    system_tests::root().join("tests/compatibility")
}

/// Releases with frozen files, oldest first.
fn releases() -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder())?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    ensure!(!found.is_empty(), "nothing is frozen under {}", folder().display());
    Ok(found)
}

fn json_file(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

fn in_folder(path: &Path) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = fs::read_dir(path)
        .with_context(|| path.display().to_string())?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    found.sort();
    ensure!(!found.is_empty(), "{} is empty", path.display());
    Ok(found)
}

/// What of `old` is not in `new`: a later version may add fields and must keep the value of every other.
fn lost(old: &Value, new: &Value, at: &str, found: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (name, value) in old {
                match new.get(name) {
                    Some(other) => lost(value, other, &format!("{at}.{name}"), found),
                    None => found.push(format!("{at}.{name} = {value}")),
                }
            }
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                lost(old, new, &format!("{at}[{index}]"), found);
            }
        }
        (old, new) if old == new => {}
        (old, new) => found.push(format!("{at}: {old} became {new}")),
    }
}

/// Reads a value as today's type and writes it again: nothing may be lost.
fn keeps<T: DeserializeOwned + Serialize>(what: &str, old: &Value) -> Result<T> {
    let value: T = serde_json::from_value(old.clone()).with_context(|| format!("{what} is not read"))?;
    let mut found = Vec::new();
    lost(old, &serde_json::to_value(&value)?, "", &mut found);
    ensure!(found.is_empty(), "{what}: read, but these are lost: {found:?}");
    Ok(value)
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap_or(Timestamp::UNIX_EPOCH)
}

fn grant(epoch: i64) -> Grant {
    Grant {
        host: "host1".into(),
        incarnation: "5a3d6c1e-0000-4000-8000-00000000000a".into(),
        epoch,
        id: format!("9b1c0000-0000-4000-8000-00000000000{epoch}"),
    }
}

/// Entries in which every variant of the ledger occurs at least once.
fn entries(wanted: &Entry) -> BTreeMap<&'static str, Entry> {
    let base = Entry {
        vm: node_plan::intent::VmRef { uid: UID.into(), namespace: NAMESPACE.into(), name: "web".into() },
        highest_epoch: 3,
        held: None,
        wanted: wanted.wanted.clone(),
        volumes: vec![HeldVolume {
            path: "/srv/shared/volumes/d1.qcow2".into(),
            token: "/srv/shared/volumes/d1.token".into(),
            cached: true,
        }],
        state_dir: Some("/srv/shared/vms/u1".into()),
        power: node_plan::ledger::PowerRecord::default(),
        acts: BTreeMap::new(),
    };
    let now = at("2026-01-01T09:30:00Z");
    let with = |state: HeldState, change: &dyn Fn(&mut Entry)| {
        let mut entry = base.clone();
        entry.held = Some(node_plan::ledger::Held {
            grant: grant(3),
            state,
            incarnation: grant(3).incarnation,
            follows: true,
            since: now,
        });
        change(&mut entry);
        entry
    };
    let stopping = |by: StopBy| {
        with(HeldState::Activated, &|entry| {
            entry.power.stopping = Some(Stopping { since: now, by: by.clone() });
        })
    };
    let stopped = |cause: Option<StopCause>| {
        with(HeldState::Released, &|entry| {
            entry.power.last_stop = Some(LastStop { at: now, cause, message: Some("why".into()) });
        })
    };
    let acts = with(HeldState::Activated, &|entry| {
        for (uid, phase) in [
            ("a1", ActPhase::Pending),
            ("a2", ActPhase::Running),
            ("a3", ActPhase::Succeeded),
            ("a4", ActPhase::Failed),
        ] {
            entry.acts.insert(uid.into(), ActRecord { phase, message: Some("done".into()), at: now });
        }
    });
    BTreeMap::from([
        ("seen-only", Entry { wanted: None, state_dir: None, volumes: Vec::new(), ..base.clone() }),
        (
            "accepted",
            with(HeldState::Accepted, &|entry| {
                entry.power.crashes = 2;
                entry.power.retry_at = Some(now);
            }),
        ),
        (
            "activated",
            with(HeldState::Activated, &|entry| {
                entry.power.up_since = Some(now);
                entry.power.reboot_applies = true;
            }),
        ),
        ("paused-by-act", with(HeldState::Activated, &|entry| entry.power.paused_by = Some(PausedBy::Act))),
        (
            "paused-superseded",
            with(HeldState::Activated, &|entry| {
                entry.power.paused_by = Some(PausedBy::Superseded);
            }),
        ),
        ("stopping-spec", stopping(StopBy::Spec)),
        ("stopping-withdrawn", stopping(StopBy::Withdrawn)),
        ("stopping-stop", stopping(StopBy::Stop { act: "a1".into() })),
        ("stopping-restart", stopping(StopBy::Restart { act: "a1".into() })),
        ("stopped-by-guest", stopped(Some(StopCause::ByGuest))),
        ("stopped-by-spec", stopped(Some(StopCause::BySpec))),
        ("stopped-by-action", stopped(Some(StopCause::ByAction))),
        ("stopped-crashed", stopped(Some(StopCause::Crashed))),
        ("stopped-host-lost", stopped(Some(StopCause::HostLost))),
        ("stopped-start-failed", stopped(Some(StopCause::StartFailed))),
        ("stopped-to-start-anew", stopped(None)),
        ("acts", acts),
    ])
}

fn disk_token() -> DiskToken {
    DiskToken { vm_uid: UID.into(), epoch: 3, id: grant(3).id }
}

fn marker() -> Marker {
    Marker { installation_id: "inst-1".into(), domain_uid: "dom-1".into() }
}

fn sidecar() -> Sidecar {
    Sidecar {
        format_version: node_plan::storage::sidecar::FORMAT_VERSION,
        uid: "d1".into(),
        namespace: NAMESPACE.into(),
        name: "web-root".into(),
        format: DiskFormat::Qcow2,
        size: 10 << 30,
        source: "https://images.example/debian.qcow2".into(),
        digest: Some("sha256:00".into()),
        iso: true,
        wipe: true,
        deleted_at: Some(at("2026-01-01T09:30:00Z")),
        retained_at: Some(at("2026-01-01T09:31:00Z")),
    }
}

fn hardware() -> Hardware {
    Hardware { machine_type: "pc-q35-10.0".into(), firmware: "uefi".into(), devices: Vec::new() }
}

fn incarnation() -> Value {
    json!({
        "formatVersion": 1, "id": grant(3).incarnation, "bootId": "boot-2", "machineUuid": "machine-1",
        "past": [{"incarnation": "inc-0", "bootId": "boot-1", "machineUuid": "machine-1"}],
    })
}

#[test]
fn ledger_files_of_every_release_are_read() -> Result<()> {
    for release in releases()? {
        for path in in_folder(&release.join("ledger"))? {
            let text = fs::read_to_string(&path)?;
            let entry = decode(&text, UID).with_context(|| path.display().to_string())?;
            let mut missing = Vec::new();
            let again = serde_json::from_str(&encode(&entry)?)?;
            lost(&json_file(&path)?, &again, "", &mut missing);
            missing.retain(|line| !line.starts_with(".formatVersion"));
            ensure!(missing.is_empty(), "{}: read, but these are lost: {missing:?}", path.display());
            // What the values mean has not changed either.
            let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
            let expected = entries(&entry);
            let expected =
                expected.get(name).with_context(|| format!("{name}: what it means is not known"))?;
            ensure!(entry == *expected, "{}: {entry:?} instead of {expected:?}", path.display());
        }
    }
    Ok(())
}

#[test]
fn files_of_storage_of_every_release_are_read() -> Result<()> {
    for release in releases()? {
        let dir = release.join("storage");
        ensure!(token::read(&dir.join("d1.token")) == TokenFact::Present(disk_token()));
        ensure!(volume::read_sidecar(&dir.join("d1.json"))?.as_ref() == Some(&sidecar()));
        let found = domain::observe(&dir.join("domain"));
        ensure!(
            matches!(&found, DirectoryFact::Marked { marker: found, .. } if *found == marker()),
            "{found:?}"
        );
        ensure!(state_home::read_hardware(&dir).as_ref() == Some(&hardware()));
        let incarnation: Incarnation = keeps("incarnation.json", &json_file(&dir.join("incarnation.json"))?)?;
        ensure!(incarnation.id == grant(3).incarnation && incarnation.past.len() == 1, "{incarnation:?}");
    }
    Ok(())
}

#[test]
fn domains_of_every_release_are_recognised() -> Result<()> {
    for release in releases()? {
        for path in in_folder(&release.join("domains"))? {
            if path.extension().is_none_or(|ending| ending != "xml") {
                continue;
            }
            let xml = fs::read_to_string(&path)?;
            let found = metadata::read(&xml)?.with_context(|| format!("{}: not ours", path.display()))?;
            let expected = json_file(&path.with_extension("json"))?;
            let mut missing = Vec::new();
            lost(&expected, &serde_json::to_value(&found)?, "", &mut missing);
            ensure!(missing.is_empty(), "{}: {missing:?}", path.display());
        }
    }
    Ok(())
}

fn as_kind(kind: &str, value: &Value) -> Result<()> {
    match kind {
        "VirtualMachine" => keeps::<VirtualMachine>(kind, value).map(drop),
        "VirtualMachineAction" => keeps::<VirtualMachineAction>(kind, value).map(drop),
        "Disk" => keeps::<Disk>(kind, value).map(drop),
        "HostCluster" => keeps::<HostCluster>(kind, value).map(drop),
        "Host" => keeps::<Host>(kind, value).map(drop),
        "Network" => keeps::<Network>(kind, value).map(drop),
        "StorageDomain" => keeps::<StorageDomain>(kind, value).map(drop),
        other => bail!("{other} is no kind of ours"),
    }
}

#[test]
fn objects_of_every_release_are_read_and_nothing_is_lost() -> Result<()> {
    for release in releases()? {
        for kind in KINDS {
            let value = json_file(&release.join("objects").join(format!("{kind}.json")))?;
            as_kind(kind, &value).with_context(|| release.display().to_string())?;
        }
    }
    Ok(())
}

/// Each object below `value` that has a schema of its own, with a field that no version knows.
fn with_unknown_fields(value: &mut Value, schema: &Value) -> usize {
    let mut count = 0;
    if let (Some(object), Some(properties)) =
        (value.as_object_mut(), schema.get("properties").and_then(Value::as_object))
    {
        for (name, inner) in object.iter_mut() {
            if let Some(schema) = properties.get(name) {
                count += with_unknown_fields(inner, schema);
            }
        }
        // Of a union there is exactly one member; a new one is a new value, not a field beside the others.
        if schema.get("oneOf").is_none() {
            object.insert("fieldOfTheNextRelease".into(), json!({"x": [1]}));
            count += 1;
        }
    }
    if let (Some(items), Some(schema)) = (value.as_array_mut(), schema.get("items")) {
        count += items.iter_mut().map(|item| with_unknown_fields(item, schema)).sum::<usize>();
    }
    count
}

/// Paths of fields that may be left out, and of texts with a fixed set of values.
fn soft_spots(value: &Value, schema: &Value, at: &str, optional: &mut Vec<String>, named: &mut Vec<String>) {
    if schema.get("enum").is_some() && value.is_string() {
        named.push(at.to_owned());
    }
    if let (Some(object), Some(properties)) =
        (value.as_object(), schema.get("properties").and_then(Value::as_object))
    {
        let required: Vec<&str> = schema
            .get("required")
            .and_then(Value::as_array)
            .map(|names| names.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let is_union = schema.get("oneOf").is_some();
        for (name, inner) in object {
            let Some(schema) = properties.get(name) else { continue };
            let path = format!("{at}/{name}");
            soft_spots(inner, schema, &path, optional, named);
            if !required.contains(&name.as_str()) && !is_union {
                optional.push(path);
            }
        }
    }
    if let (Some(items), Some(schema)) = (value.as_array(), schema.get("items")) {
        for (index, item) in items.iter().enumerate() {
            soft_spots(item, schema, &format!("{at}/{index}"), optional, named);
        }
    }
}

fn schema(kind: &str) -> Result<Value> {
    let file = format!("crds/yaml/{}s.vireo.dev.yaml", kind.to_lowercase());
    let text = fs::read_to_string(system_tests::root().join(&file)).with_context(|| file.clone())?;
    let crd: Value = serde_saphyr::from_str(&text)?;
    let schema = crd.pointer("/spec/versions/0/schema/openAPIV3Schema").cloned();
    let mut schema = schema.with_context(|| format!("{file}: no schema"))?;
    // Metadata is the API server's.
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.retain(|name, _| name == "spec" || name == "status");
    }
    Ok(schema)
}

fn decodes(kind: &str, value: Value) -> Result<()> {
    match kind {
        "VirtualMachine" => serde_json::from_value::<VirtualMachine>(value).map(drop)?,
        "VirtualMachineAction" => serde_json::from_value::<VirtualMachineAction>(value).map(drop)?,
        "Disk" => serde_json::from_value::<Disk>(value).map(drop)?,
        "HostCluster" => serde_json::from_value::<HostCluster>(value).map(drop)?,
        "Host" => serde_json::from_value::<Host>(value).map(drop)?,
        "Network" => serde_json::from_value::<Network>(value).map(drop)?,
        "StorageDomain" => serde_json::from_value::<StorageDomain>(value).map(drop)?,
        other => bail!("{other} is no kind of ours"),
    }
    Ok(())
}

/// Controller and daemon speak through these objects alone: specs, grants, reports, attestations. One of them is a
/// release ahead, or behind.
#[test]
fn a_peer_one_release_apart_is_understood() -> Result<()> {
    let mut faults = Vec::new();
    let (mut fields, mut left_out, mut values) = (0, 0, 0);
    for release in releases()? {
        for kind in KINDS {
            let value = json_file(&release.join("objects").join(format!("{kind}.json")))?;
            let schema = schema(kind)?;
            let mut newer = value.clone();
            fields += with_unknown_fields(&mut newer, &schema);
            if let Err(error) = decodes(kind, newer) {
                faults.push(format!("{kind} with fields of the next release: {error}"));
            }
            let (mut optional, mut named) = (Vec::new(), Vec::new());
            soft_spots(&value, &schema, "", &mut optional, &mut named);
            for path in &optional {
                let mut older = value.clone();
                let (parent, name) = path.rsplit_once('/').unwrap_or_default();
                older.pointer_mut(parent).and_then(Value::as_object_mut).map(|object| object.remove(name));
                left_out += 1;
                if let Err(error) = decodes(kind, older) {
                    faults.push(format!("{kind} without {path}: {error}"));
                }
            }
            for path in &named {
                let mut newer = value.clone();
                if let Some(text) = newer.pointer_mut(path) {
                    *text = "OfTheNextRelease".into();
                }
                values += 1;
                if let Err(error) = decodes(kind, newer) {
                    faults.push(format!("{kind} with a new value of {path}: {error}"));
                }
            }
        }
    }
    live::show(&format!("{fields} unknown fields, {left_out} fields left out, {values} unknown values"))?;
    ensure!(fields > 50 && left_out > 100 && values > 10, "{fields}, {left_out}, {values}");
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

#[test]
fn a_newer_ledger_is_refused_in_words() -> Result<()> {
    let newer = json!({"formatVersion": FORMAT_VERSION + 1, "shape": "unknown"}).to_string();
    let refused = decode(&newer, UID);
    ensure!(matches!(refused, Err(LedgerError::Newer { .. })), "{refused:?}");
    let text = refused.err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(text.contains("upgrade vireo-node"), "{text}");
    Ok(())
}

fn rich_vm(name: &str) -> Result<VirtualMachine> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "vireo.dev/v1alpha1", "kind": "VirtualMachine",
        "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {
            "runStrategy": "Always", "cpu": {"cores": 2}, "memory": {"size": "256Mi"}, "gracePeriodSeconds": 30,
            "firmware": {"uefi": {"secureBoot": true}}, "tpm": {}, "rng": {}, "watchdog": {"action": "reset"},
            "cloudInit": {"userDataSecret": {"name": "user-data"}},
            "scheduling": {"priority": 5},
            "disks": [{"name": "root", "bootOrder": 1, "template": {"storageDomain": "shared", "size": "1Gi"}}],
            "interfaces": [{"name": "eth0", "network": "nat"}],
        },
    }))?)
}

async fn make(fleet: &Fleet, name: &str) -> Result<VirtualMachine> {
    let secret = Secret {
        metadata: ObjectMeta { name: Some("user-data".into()), ..ObjectMeta::default() },
        string_data: Some(BTreeMap::from([("userData".into(), "#cloud-config\n".into())])),
        ..Secret::default()
    };
    let secrets: Api<Secret> = Api::namespaced(fleet.admin.clone(), NAMESPACE);
    if secrets.get_opt("user-data").await?.is_none() {
        secrets.create(&PostParams::default(), &secret).await?;
    }
    fleet.vms(NAMESPACE).create(&PostParams::default(), &rich_vm(name)?).await?;
    fleet.ready(NAMESPACE, name).await
}

fn ledger_file(node: &Node, uid: &str) -> PathBuf {
    node.state_dir().join("ledger").join(format!("{uid}.json"))
}

/// Writes today's fixtures under `VIREO_FREEZE`, a release's number; without it, does nothing that could fail.
async fn freeze(fleet: &Fleet, name: &str, release: &str) -> Result<()> {
    let target = folder().join(release);
    for inner in ["ledger", "storage/domain", "domains", "objects"] {
        fs::create_dir_all(target.join(inner))?;
    }
    let write = |path: PathBuf, value: &Value| -> Result<()> {
        Ok(fs::write(path, format!("{}\n", serde_json::to_string_pretty(value)?))?)
    };
    let vm = fleet.ready(NAMESPACE, name).await?;
    let uid = vm.uid().context("no uid")?;
    let written: Entry = decode(&fs::read_to_string(ledger_file(&fleet.nodes[0], &uid))?, &uid)?;
    for (name, entry) in entries(&written) {
        write(target.join(format!("ledger/{name}.json")), &serde_json::from_str(&encode(&entry)?)?)?;
    }
    let storage = target.join("storage");
    token::write(&storage.join("d1.token"), &disk_token())?;
    files::write_json(&storage.join("d1.json"), &sidecar())?;
    state_home::write_hardware(&storage, &hardware())?;
    if !storage.join("domain/.vireo-domain.json").exists() {
        domain::write_marker(&storage.join("domain"), &marker())?;
    }
    write(storage.join("incarnation.json"), &incarnation())?;
    let goldens = system_tests::root().join("node-daemon/plan/testdata/xml");
    for case in ["everything", "first-vm"] {
        let xml = fs::read_to_string(goldens.join(case).join("domain.xml"))?;
        let found = metadata::read(&xml)?.with_context(|| format!("{case}: not ours"))?;
        fs::write(target.join(format!("domains/{case}.xml")), xml)?;
        write(target.join(format!("domains/{case}.json")), &serde_json::to_value(found)?)?;
    }
    let act = json!({"apiVersion": "vireo.dev/v1alpha1", "kind": "VirtualMachineAction",
        "metadata": {"name": "reset-1"}, "spec": {"vm": name, "reset": {}}});
    let acts: Api<VirtualMachineAction> = Api::namespaced(fleet.admin.clone(), NAMESPACE);
    acts.create(&PostParams::default(), &serde_json::from_value(act)?).await?;
    until("the act is done", LIMIT, || async {
        let act = acts.get("reset-1").await?;
        let phase = act.status.and_then(|status| status.phase);
        ensure!(phase == Some(ActPhase::Succeeded), "{phase:?}");
        Ok(())
    })
    .await?;
    for kind in KINDS {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("vireo.dev", "v1alpha1", kind));
        let namespaced = ["VirtualMachine", "VirtualMachineAction", "Disk"].contains(&kind);
        let api: Api<DynamicObject> = if namespaced {
            Api::namespaced_with(fleet.admin.clone(), NAMESPACE, &resource)
        } else {
            Api::all_with(fleet.admin.clone(), &resource)
        };
        let object = api.list(&Default::default()).await?.items.into_iter().next();
        let mut object = object.with_context(|| format!("no {kind}"))?;
        object.types =
            Some(kube::core::TypeMeta { api_version: "vireo.dev/v1alpha1".into(), kind: kind.into() });
        write(target.join(format!("objects/{kind}.json")), &serde_json::to_value(&object)?)?;
    }
    Ok(())
}

#[test]
fn a_ledger_of_a_newer_release_stops_nothing_and_starts_nothing() -> Result<()> {
    run("a_ledger_of_a_newer_release_stops_nothing_and_starts_nothing", async {
        let mut fleet = Fleet::start_at(shared()?, 1, &MemoryConfig::default()).await?;
        let server = fleet.server;
        let vm = make(&fleet, "web").await?;
        if let Ok(release) = std::env::var("VIREO_FREEZE") {
            return freeze(&fleet, "web", &release).await;
        }
        let uid = vm.uid().context("no uid")?;
        let guests = fleet.guests();
        ensure!(fleet.runs(&vm), "{guests:?}");
        let uuid = guests.keys().next().cloned().context("no guest")?;
        let node = fleet.nodes.first_mut().context("no host")?;
        node.stop(Stop::Kill).await?;
        let file = ledger_file(node, &uid);
        let known = fs::read_to_string(&file)?;
        let newer = known.replacen("\"formatVersion\":1", "\"formatVersion\":2", 1);
        ensure!(newer != known, "{known}");
        fs::write(&file, &newer)?;
        node.start(server).await?;

        let hosts: Api<Host> = Api::all(fleet.admin.clone());
        until("the Host says that its ledger is newer", LIMIT, || async {
            let status = hosts.get("host1").await?.status.unwrap_or_default();
            let told = condition::get(&status.conditions, "HypervisorReady");
            ensure!(
                told.is_some_and(|told| told.reason == "LedgerUnreadable" && told.message.contains(&uid)),
                "{told:?}"
            );
            Ok(())
        })
        .await?;
        ensure!(fleet.guests() == guests, "guests were {guests:?}, are {:?}", fleet.guests());
        // A stop that is asked for does not come either, nor is a guest that ends started again.
        let halt = json!({"spec": {"runStrategy": "Halted"}});
        fleet.vms(NAMESPACE).patch("web", &PatchParams::default(), &Patch::Merge(&halt)).await?;
        fleet.silent(Duration::from_secs(2), LIMIT).await?;
        ensure!(fleet.guests() == guests, "guests were {guests:?}, are {:?}", fleet.guests());
        let always = json!({"spec": {"runStrategy": "Always"}});
        fleet.vms(NAMESPACE).patch("web", &PatchParams::default(), &Patch::Merge(&always)).await?;
        let node = fleet.nodes.first().context("no host")?;
        node.machine.end(&uuid, node_plan::facts::ExitKind::Crashed);
        fleet.silent(Duration::from_secs(2), LIMIT).await?;
        ensure!(fleet.guests().is_empty(), "started under a ledger nobody can read: {:?}", fleet.guests());
        ensure!(fs::read_to_string(&file)? == newer, "the ledger file was touched");

        // With the ledger it knows, it goes on.
        let node = fleet.nodes.first_mut().context("no host")?;
        node.stop(Stop::Term).await?;
        fs::write(&file, &known)?;
        node.start(server).await?;
        fleet.vm(NAMESPACE, "web", "runs again", |vm| is_ready(vm) && fleet.runs(vm)).await?;
        survive(&fleet).await
    })
}

/// Fields another release wrote, under the same object: neither daemon nor controller takes them away.
async fn survive(fleet: &Fleet) -> Result<()> {
    let new = json!({"type": "string"});
    let root = "/spec/versions/0/schema/openAPIV3Schema/properties";
    let add: Vec<Value> = ["spec", "status"]
        .iter()
        .map(|at| json!({"op": "add", "path": format!("{root}/{at}/properties/ofTheNextRelease"), "value": new}))
        .collect();
    let patch = Value::Array(add).to_string();
    fleet.server.admin(["patch", "crd", "virtualmachines.vireo.dev", "--type=json", "-p", patch.as_str()])?;
    let resource = ApiResource::erase::<VirtualMachine>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(fleet.admin.clone(), NAMESPACE, &resource);
    let newer = PatchParams { field_manager: Some("a-newer-part".into()), ..PatchParams::default() };
    until("the API server knows the new fields", LIMIT, || async {
        let spec = json!({"spec": {"ofTheNextRelease": "kept"}});
        api.patch("web", &newer, &Patch::Merge(spec)).await?;
        let status = json!({"status": {"ofTheNextRelease": "kept"}});
        let vm = api.patch_status("web", &newer, &Patch::Merge(status)).await?;
        ensure!(vm.data.pointer("/status/ofTheNextRelease").is_some(), "{}", vm.data);
        Ok(())
    })
    .await?;
    // Both parts write: the generation accepted, the state, a restart.
    let edit = json!({"spec": {"gracePeriodSeconds": 77}});
    fleet.vms(NAMESPACE).patch("web", &PatchParams::default(), &Patch::Merge(&edit)).await?;
    fleet
        .vm(NAMESPACE, "web", "has taken the edit", |vm| is_ready(vm) && vm.spec.grace_period_seconds == 77)
        .await?;
    fleet.silent(Duration::from_secs(2), LIMIT).await?;
    let vm = api.get("web").await?;
    let writers: Vec<String> =
        vm.metadata.managed_fields.iter().flatten().filter_map(|entry| entry.manager.clone()).collect();
    ensure!(writers.iter().any(|writer| writer == NODE_MANAGER), "{writers:?}");
    for path in ["/spec/ofTheNextRelease", "/status/ofTheNextRelease"] {
        ensure!(vm.data.pointer(path) == Some(&json!("kept")), "{path} is lost: {}", vm.data);
    }
    Ok(())
}
