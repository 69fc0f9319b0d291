//! Measures a decision about one VM in a fleet of 1,000 hosts and 10,000 VMs, and prints what it takes:
//! `cargo run --release -p controller-plan --example placement_speed`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use controller_plan::{Freshness, HostLiveness, Key, Step, World, effect, explain, plan_vm};
use jiff::Timestamp;
use serde_json::{Value, json};

const HOSTS: usize = 1_000;
const VMS: usize = 10_000;
const MEASURED: usize = 1_000;

fn typed<K: serde::de::DeserializeOwned>(kind: &str, mut object: Value) -> Arc<K> {
    object["apiVersion"] = json!("vireo.dev/v1alpha1");
    object["kind"] = json!(kind);
    Arc::new(serde_json::from_value(object).expect(kind))
}

fn meta(name: &str) -> Value {
    json!({"name": name, "uid": name, "resourceVersion": "1", "generation": 1, "finalizers": ["vireo.dev/cleanup"]})
}

fn vm(index: usize, host: Option<String>) -> Value {
    let name = format!("vm{index:05}");
    let mut metadata = meta(&name);
    metadata["namespace"] = json!("default");
    // Groups of ten that belong apart, and one in twenty that belongs to a zone.
    metadata["labels"] =
        json!({"app": format!("app{}", index / 10), "zoned": index.is_multiple_of(20).to_string()});
    let mut vm = json!({
        "metadata": metadata,
        "spec": {
            "cpu": {"cores": 2}, "memory": {"size": "2Gi"},
            "interfaces": [{"name": "eth0", "network": "lan"}],
        },
    });
    if let Some(host) = host {
        vm["status"]["placement"] = json!({
            "host": host, "incarnation": host, "epoch": 1, "id": format!("g{index}"), "generation": 1, "lastEpoch": 1,
        });
    }
    vm
}

fn fleet() -> World {
    let mut world = World::default();
    let mut cluster = json!({"metadata": meta("default"), "spec": {}});
    cluster["status"]["baseline"] = json!("EPYC");
    world.put_cluster(typed("HostCluster", cluster));
    world.put_network(typed(
        "Network",
        json!({"metadata": meta("lan"), "spec": {"nat": {"cidr": "10.88.0.0/24"}}}),
    ));
    for index in 0..HOSTS {
        let name = format!("host{index:04}");
        let mut metadata = meta(&name);
        metadata["labels"] = json!({"zone": format!("z{}", index % 4)});
        let models: Vec<String> = (0..40).map(|i| format!("model{i}")).chain(["EPYC".into()]).collect();
        let host = json!({
            "metadata": metadata, "spec": {},
            "status": {
                "incarnation": name, "allocatable": {"cpus": 64, "memory": 274_877_906_944_i64},
                "cpu": {"architecture": "x86_64", "usableModels": models},
                "networks": [{"name": "lan", "uid": "lan", "ready": true}],
            },
        });
        world.put_host(typed("Host", host));
        let liveness = HostLiveness {
            freshness: Freshness::Fresh,
            holder: Some(name.clone()),
            watched: true,
            ..HostLiveness::default()
        };
        world.set_liveness(&name, liveness);
    }
    let groups = (0..VMS / 10).map(|app| {
        let mut metadata = meta(&format!("apart{app}"));
        metadata["namespace"] = json!("default");
        let members = json!({"matchLabels": {"app": format!("app{app}")}});
        json!({"metadata": metadata, "spec": {"virtualMachines": members, "vmRule": {"polarity": "Negative"}}})
    });
    let mut metadata = meta("zone");
    metadata["namespace"] = json!("default");
    let zone = json!({"metadata": metadata, "spec": {
        "virtualMachines": {"matchLabels": {"zoned": "true"}},
        "hostRule": {"polarity": "Positive", "enforcement": "Soft", "hosts": {"matchLabels": {"zone": "z1"}}},
    }});
    for group in groups.chain([zone]) {
        world.put_group(typed("AffinityGroup", group));
    }
    world.begin_session("s1");
    world
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| {
        times.get(times.len().saturating_sub(1) * percent / 100).copied().unwrap_or_default()
    };
    println!(
        "{what}: {} times, fastest {:.3} ms, median {:.3} ms, 99 % {:.3} ms, longest {:.3} ms",
        times.len(),
        at(0).as_secs_f64() * 1e3,
        at(50).as_secs_f64() * 1e3,
        at(99).as_secs_f64() * 1e3,
        at(100).as_secs_f64() * 1e3
    );
}

fn main() {
    let now = Timestamp::UNIX_EPOCH;
    let started = Instant::now();
    let mut world = fleet();
    for index in 0..VMS - MEASURED {
        let host = format!("host{:04}", index % HOSTS);
        world.put_vm(typed("VirtualMachine", vm(index, Some(host))));
    }
    for index in VMS - MEASURED..VMS {
        world.put_vm(typed("VirtualMachine", vm(index, None)));
    }
    println!(
        "{HOSTS} hosts, {VMS} VMs and {} groups read in {:.1} s",
        VMS / 10 + 1,
        started.elapsed().as_secs_f64()
    );

    let mut decisions = Vec::new();
    for index in VMS - MEASURED..VMS {
        let object = world.vm(&Key::new("default", &format!("vm{index:05}"))).cloned().expect("a VM");
        let begun = Instant::now();
        let plan = plan_vm(&world, &object, now, &format!("fresh-{index}"));
        decisions.push(begun.elapsed());
        assert!(plan.steps.iter().any(|s| matches!(s, Step::SetPlacement { .. })), "{plan:?}");
        effect::apply_plan(&mut world, &plan, now).expect("the plan can be carried out");
    }
    report("place one VM", decisions);

    let mut again = Vec::new();
    let mut explained = Vec::new();
    for index in (0..VMS).step_by(VMS / MEASURED) {
        let object = world.vm(&Key::new("default", &format!("vm{index:05}"))).cloned().expect("a VM");
        let begun = Instant::now();
        std::hint::black_box(plan_vm(&world, &object, now, "unused"));
        again.push(begun.elapsed());
        if explained.len() < 50 {
            let begun = Instant::now();
            std::hint::black_box(explain(&world, &object));
            explained.push(begun.elapsed());
        }
    }
    report("look at one VM that has a host", again);
    report("explain one VM", explained);
}
