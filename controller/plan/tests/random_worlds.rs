//! Random worlds: no plan breaks a rule of `lint`, and every world comes to rest.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use controller_plan::{Kind, World, effect, lint};
use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};
use support::{Subject, WorldFile};

const HOSTS: [&str; 3] = ["host1", "host2", "host3"];
const VMS: [&str; 3] = ["vm1", "vm2", "vm3"];
const DISKS: [&str; 2] = ["disk1", "disk2"];

fn one_of<T: Clone + std::fmt::Debug + 'static>(choices: &[T]) -> impl Strategy<Value = T> + use<T> {
    proptest::sample::select(choices.to_vec())
}

fn maybe(chance: f64, value: Value) -> impl Strategy<Value = Option<Value>> {
    proptest::bool::weighted(chance).prop_map(move |yes| yes.then(|| value.clone()))
}

/// A claim of a host on a VM, as a restored store leaves it behind.
fn claim(host: &'static str) -> impl Strategy<Value = Value> {
    (one_of(&VMS), 1..8i64, one_of(&["Open", "Released"]), any::<bool>(), 0..3i64).prop_map(move |(vm, epoch, holding, running, more)| {
        json!({
            "vmUid": format!("uid-{vm}"), "namespace": "default", "name": vm,
            "grant": {"incarnation": format!("inc-{host}"), "epoch": epoch, "id": format!("claim-{vm}-{epoch}-{host}")},
            "holding": holding, "running": running && holding == "Open", "highestEpoch": epoch + more,
        })
    })
}

fn host(name: &'static str) -> impl Strategy<Value = Value> {
    let rebooted = json!({
        "status": {
            "incarnation": format!("new-{name}"), "bootId": format!("newboot-{name}"),
            "pastIncarnations": [{"incarnation": format!("inc-{name}"), "bootId": format!("boot-{name}"), "machineUuid": format!("machine-{name}")}],
        }
    });
    (
        maybe(0.3, rebooted),
        maybe(0.2, json!({"status": {"attestation": {"session": "s0"}}})),
        maybe(0.1, json!({"spec": {"schedulable": false}})),
        one_of(&[
            None,
            None,
            None,
            Some(json!({"status": {"identity": {"machineUuid": "machine-other"}}})),
            Some(json!({"status": {"bootId": format!("boot-{name}")}})),
        ]),
        maybe(
            0.2,
            json!({"metadata": {"annotations": {"vireo.dev/confirm-stopped": format!("inc-{name}")}}}),
        ),
        maybe(0.1, json!({"metadata": {"deletionTimestamp": "2026-01-01T11:30:00Z"}})),
        proptest::collection::vec(claim(name), 0..2),
    )
        .prop_map(|(rebooted, unheard, cordoned, replaced, confirmed, deleted, claims)| {
            let mut change = json!({"status": {"attestation": {"claims": claims}}});
            for part in [rebooted, unheard, cordoned, replaced, confirmed, deleted].iter().flatten() {
                support::merge(&mut change, part);
            }
            change
        })
}

fn liveness(name: &'static str) -> impl Strategy<Value = Value> {
    let incarnations = vec![format!("inc-{name}"), format!("new-{name}")];
    (
        one_of(&["Fresh", "Fresh", "Silent", "NotYetKnown"]),
        one_of(&incarnations),
        proptest::sample::subsequence(incarnations, 0..=2),
        proptest::bool::weighted(0.1),
        proptest::bool::weighted(0.8),
    )
        .prop_map(|(freshness, holder, alive, duplicate, watched)| {
            json!({"freshness": freshness, "holder": holder, "alive": alive, "duplicate": duplicate, "watched": watched})
        })
}

fn vm_disks() -> impl Strategy<Value = Value> {
    proptest::collection::vec(
        one_of(&[
            json!({"disk": {"name": "disk1"}}),
            json!({"cdrom": {"disk": "disk2"}}),
            json!({"disk": {"name": "disk2"}, "readOnly": true}),
            json!({"template": {"storageDomain": "shared", "size": "1Gi"}}),
            json!({"template": {"storageDomain": "local", "size": "1Gi"}}),
            json!({"disk": {"name": "missing"}}),
        ]),
        0..3,
    )
    .prop_map(|disks| {
        let named = disks.into_iter().enumerate().map(|(i, mut disk)| {
            disk["name"] = json!(format!("d{i}"));
            disk
        });
        Value::Array(named.collect())
    })
}

fn placement(vm: &'static str) -> impl Strategy<Value = (Value, Value)> {
    (one_of(&HOSTS), 1..4i64, 0..3i64, one_of(&["Open", "Released", "Renounced"]), proptest::bool::weighted(0.7), one_of(&["ByGuest", "Crashed", "BySpec"]), proptest::option::weighted(0.2, one_of(&HOSTS))).prop_map(
        move |(host, epoch, later, holding, exact, cause, target)| {
            let id = format!("g-{vm}-{epoch}");
            let mut placement = json!({
                "host": host, "incarnation": format!("inc-{host}"), "epoch": epoch, "id": id,
                "generation": 1, "lastEpoch": epoch + later + 1,
            });
            let mut status = json!({});
            if let Some(target) = target {
                placement["target"] = json!({"host": target, "incarnation": format!("inc-{target}"), "epoch": epoch + 1, "id": format!("t-{vm}")});
                status["incoming"] = json!({"vmUid": format!("uid-{vm}"), "grant": {"incarnation": format!("inc-{target}"), "epoch": epoch + 1, "id": format!("t-{vm}")}, "holding": holding});
            }
            status["runtime"] = json!({
                "vmUid": format!("uid-{vm}"),
                "grant": {"incarnation": format!("inc-{host}"), "epoch": epoch, "id": if exact { id } else { "older".into() }},
                "holding": holding, "power": if holding == "Open" { "On" } else { "Off" }, "stopCause": cause, "since": "2026-01-01T11:00:00Z",
            });
            (placement, status)
        },
    )
}

fn vm(name: &'static str) -> impl Strategy<Value = Value> {
    (
        one_of(&["Always", "RerunOnFailure", "Manual", "Halted"]),
        vm_disks(),
        proptest::option::weighted(0.6, placement(name)),
        maybe(0.2, json!({"metadata": {"deletionTimestamp": "2026-01-01T11:30:00Z"}})),
        maybe(0.2, json!({"metadata": {"annotations": {"vireo.dev/confirm-stopped": format!("g-{name}-1")}}})),
        1..3i64,
        one_of(&[json!([]), json!([{"name": "eth0", "network": "lan"}]), json!([{"name": "eth0", "network": "lan", "macAddress": "02:00:00:00:00:01"}])]),
    )
        .prop_map(move |(strategy, disks, placement, deleted, confirmed, generation, interfaces)| {
            let mut vm = json!({
                "kind": "VirtualMachine", "metadata": {"name": name, "generation": generation},
                "spec": {"runStrategy": strategy, "memory": {"size": "2Gi"}, "disks": disks, "interfaces": interfaces},
            });
            if let Some((placement, status)) = placement {
                vm["status"] = status;
                vm["status"]["placement"] = placement;
            }
            for part in [deleted, confirmed].iter().flatten() {
                support::merge(&mut vm, part);
            }
            vm
        })
}

fn disk(name: &'static str) -> impl Strategy<Value = Value> {
    (
        one_of(&["shared", "shared", "local", "nowhere"]),
        one_of(&["Pending", "Ready", "Removed", "Provisioning"]),
        proptest::option::of(one_of(&HOSTS)),
        proptest::option::weighted(0.5, one_of(&["vm1", "vm2", "vanished"])),
        any::<bool>(),
        maybe(0.3, json!({"metadata": {"deletionTimestamp": "2026-01-01T11:30:00Z"}})),
    )
        .prop_map(move |(domain, phase, host, claimant, read_only, deleted)| {
            let mut disk = json!({
                "kind": "Disk", "metadata": {"name": name}, "spec": {"storageDomain": domain, "size": "1Gi"},
                "status": {"phase": phase, "observedGeneration": 1},
            });
            if let Some(host) = host {
                disk["status"]["placement"] = json!({"host": host, "epoch": 1});
            }
            if let Some(vm) = claimant {
                disk["status"]["attachments"] =
                    json!([{"vmUid": format!("uid-{vm}"), "vm": vm, "readOnly": read_only}]);
            }
            if let Some(deleted) = deleted {
                support::merge(&mut disk, &deleted);
            }
            disk
        })
}

fn act() -> impl Strategy<Value = Value> {
    (
        one_of(&VMS),
        one_of(&["start", "stop", "restart", "reset"]),
        proptest::option::of(one_of(&["Pending", "Running"])),
    )
        .prop_map(|(vm, what, phase)| {
            let mut act =
                json!({"kind": "VirtualMachineAction", "metadata": {"name": "act1"}, "spec": {"vm": vm}});
            act["spec"][what] = json!({});
            if let Some(phase) = phase {
                act["status"] = json!({"phase": phase, "vmUid": format!("uid-{vm}")});
            }
            act
        })
}

fn session() -> impl Strategy<Value = Value> {
    let uids: Vec<_> = VMS.iter().chain(&DISKS).map(|n| format!("uid-{n}")).collect();
    let grants: Vec<_> = VMS.iter().flat_map(|v| (1..4).map(move |e| format!("g-{v}-{e}"))).collect();
    (proptest::sample::subsequence(uids, 0..=5), proptest::sample::subsequence(grants, 0..=2)).prop_map(
        |(preexisting, granted)| json!({"nonce": "s1", "preexisting": preexisting, "granted": granted}),
    )
}

fn world() -> impl Strategy<Value = WorldFile> {
    let hosts = (host("host1"), host("host2"), host("host3"));
    let lives = (liveness("host1"), liveness("host2"), liveness("host3"));
    let vms = (vm("vm1"), vm("vm2"), vm("vm3"));
    let disks = (disk("disk1"), disk("disk2"));
    (hosts, lives, vms, disks, act(), session()).prop_map(
        |((h1, h2, h3), (l1, l2, l3), (v1, v2, v3), (d1, d2), act, session)| {
            let file = json!({
                "plan": {"kind": "VirtualMachine", "name": "vm1"},
                "hosts": {"host1": h1, "host2": h2, "host3": h3},
                "liveness": {"host1": l1, "host2": l2, "host3": l3},
                "objects": [v1, v2, v3, d1, d2, act],
                "session": session,
            });
            serde_json::from_value(file).unwrap()
        },
    )
}

/// Everything there is to plan for.
fn subjects(world: &World) -> Vec<Subject> {
    let name = |meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
        meta.name.clone().unwrap_or_default()
    };
    let mut all = Vec::new();
    all.extend(world.vms().map(|o| Subject { kind: Kind::VirtualMachine, name: name(&o.metadata) }));
    all.extend(world.disks().map(|o| Subject { kind: Kind::Disk, name: name(&o.metadata) }));
    all.extend(world.acts().map(|o| Subject { kind: Kind::VirtualMachineAction, name: name(&o.metadata) }));
    all.extend(world.hosts().map(|(n, _)| Subject { kind: Kind::Host, name: n.clone() }));
    all.extend(world.clusters().map(|(n, _)| Subject { kind: Kind::HostCluster, name: n.clone() }));
    all.extend(world.networks().map(|(n, _)| Subject { kind: Kind::Network, name: n.clone() }));
    all.extend(world.domains().map(|(n, _)| Subject { kind: Kind::StorageDomain, name: n.clone() }));
    all
}

fn now() -> Timestamp {
    "2026-01-01T12:00:00Z".parse().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        failure_persistence: Some(Box::new(proptest::test_runner::FileFailurePersistence::Direct("tests/random_worlds.regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_plan_breaks_a_rule_and_every_world_comes_to_rest(file in world()) {
        let mut world = file.build();
        let mut fresh = 0;
        let mut at = now();
        for round in 0..12 {
            let mut wrote = Vec::new();
            for subject in subjects(&world) {
                fresh += 1;
                let plan = support::plan(&world, &subject, at, &format!("fresh-{fresh}"));
                let found = lint::lint(&world, &plan);
                prop_assert!(found.is_empty(), "{:?} {}: {found:?}\n{}", subject.kind, subject.name, support::as_yaml(&plan));
                if !plan.is_empty() {
                    wrote.push(format!("{:?} {}:\n{}", subject.kind, subject.name, support::as_yaml(&plan)));
                    let done = effect::apply_plan(&mut world, &plan, at);
                    prop_assert!(done.is_ok(), "{:?} {}: {done:?}\n{}", subject.kind, subject.name, support::as_yaml(&plan));
                }
            }
            if wrote.is_empty() {
                break;
            }
            prop_assert!(round < 11, "no rest after {round} rounds:\n{}", wrote.join("\n"));
            // Numbers in columns move every ten seconds at most.
            at = at.checked_add(jiff::SignedDuration::from_secs(11)).unwrap();
        }
    }
}
