//! How much work a large fleet is, counted in hosts looked at and steps planned, never in seconds.

use std::{cell::Cell, sync::Arc};

use jiff::Timestamp;
use serde_json::json;
use vireo_crds::v1alpha1::{Host, HostCluster, VirtualMachine};

use crate::{
    Freshness, HostLiveness, Key, Step, World, effect, plan_cluster, plan_host, plan_vm, resources_of,
};

thread_local! {
    static HOSTS_LOOKED_AT: Cell<usize> = const { Cell::new(0) };
}

/// A host was looked at by the filters.
pub(super) fn count_host() {
    HOSTS_LOOKED_AT.with(|count| count.set(count.get() + 1));
}

fn hosts_looked_at() -> usize {
    HOSTS_LOOKED_AT.with(|count| count.replace(0))
}

const HOSTS: usize = 200;
const VMS: usize = 5_000;

fn fleet() -> World {
    let mut world = World::default();
    let cluster = json!({"metadata": {"name": "default", "uid": "c", "resourceVersion": "1", "generation": 1}, "spec": {}});
    let typed = |kind: &str, mut object: serde_json::Value| {
        object["apiVersion"] = json!("vireo.dev/v1alpha1");
        object["kind"] = json!(kind);
        object
    };
    world
        .put_cluster(Arc::new(serde_json::from_value::<HostCluster>(typed("HostCluster", cluster)).unwrap()));
    for i in 0..HOSTS {
        let name = format!("host{i:03}");
        let host = json!({
            "metadata": {"name": name, "uid": name, "resourceVersion": "1", "generation": 1}, "spec": {},
            "status": {"incarnation": name, "allocatable": {"cpus": 16, "memory": 34_359_738_368_i64}},
        });
        world.put_host(Arc::new(serde_json::from_value::<Host>(typed("Host", host)).unwrap()));
        let liveness = HostLiveness {
            freshness: Freshness::Fresh,
            holder: Some(name.clone()),
            watched: true,
            ..HostLiveness::default()
        };
        world.set_liveness(&name, liveness);
    }
    world.begin_session("s1");
    for i in 0..VMS {
        let name = format!("vm{i:04}");
        let vm = json!({
            "metadata": {"name": name, "namespace": "default", "uid": name, "resourceVersion": "1", "generation": 1, "finalizers": ["vireo.dev/cleanup"]},
            "spec": {"memory": {"size": "1Gi"}},
        });
        world
            .put_vm(Arc::new(serde_json::from_value::<VirtualMachine>(typed("VirtualMachine", vm)).unwrap()));
    }
    world
}

#[test]
fn five_thousand_vms_on_two_hundred_hosts() {
    let now = Timestamp::UNIX_EPOCH;
    let mut world = fleet();
    hosts_looked_at();
    let keys: Vec<Key> = world.vms().map(|vm| Key::of(vm.as_ref())).collect();
    for (i, key) in keys.iter().enumerate() {
        let vm = world.vm(key).cloned().unwrap();
        let plan = plan_vm(&world, &vm, now, &format!("grant-{i}"));
        assert_eq!(plan.steps.len(), 1, "one write binds a VM: {plan:?}");
        assert!(matches!(plan.steps.first(), Some(Step::SetPlacement { .. })));
        // As the executor does it: the room is taken before the answer is there.
        if let Some(Step::SetPlacement { status, .. }) = plan.steps.first() {
            let host = status.placement.as_ref().unwrap().host.clone();
            world.reserve(&vm.metadata.uid.clone().unwrap(), &host, resources_of(&vm));
        }
        effect::apply_plan(&mut world, &plan, now).unwrap();
        world.unreserve(&vm.metadata.uid.clone().unwrap());
    }
    assert_eq!(hosts_looked_at(), HOSTS * VMS, "each host is looked at once for each VM to place");

    let loads: Vec<i64> = world.hosts().map(|(name, _)| world.load(name).vms).collect();
    let expected = i64::try_from(VMS / HOSTS).unwrap();
    assert!(loads.iter().all(|vms| *vms == expected), "evenly distributed: {loads:?}");

    for key in &keys {
        let vm = world.vm(key).cloned().unwrap();
        assert!(plan_vm(&world, &vm, now, "unused").is_empty(), "{key} is not at rest");
    }
    assert_eq!(hosts_looked_at(), 0, "a VM at rest looks at no host");

    for name in world.hosts().map(|(name, _)| name.clone()).collect::<Vec<_>>() {
        let host = world.host(&name).cloned().unwrap();
        assert!(plan_host(&world, &host, now).steps.len() <= 3);
    }
    let cluster = world.cluster("default").cloned().unwrap();
    assert_eq!(plan_cluster(&world, &cluster, now).steps.len(), 1);
}

#[test]
fn a_burst_does_not_overfill_a_host() {
    let now = Timestamp::UNIX_EPOCH;
    let mut world = fleet();
    let keys: Vec<Key> = world.vms().map(|vm| Key::of(vm.as_ref())).take(4).collect();
    for name in world.hosts().map(|(name, _)| name.clone()).skip(1).collect::<Vec<_>>() {
        world.remove_host(&name);
    }
    let mut small = world.host("host000").unwrap().as_ref().clone();
    small.status.as_mut().unwrap().allocatable.as_mut().unwrap().memory =
        3 * resources_of(world.vm(&keys[0]).unwrap()).memory;
    world.put_host(Arc::new(small));
    let mut placed = 0;
    for key in &keys {
        let vm = world.vm(key).cloned().unwrap();
        let plan = plan_vm(&world, &vm, now, key.name.as_str());
        if plan.steps.iter().any(|s| matches!(s, Step::SetPlacement { .. })) {
            placed += 1;
            // No echo yet: only the reservation tells the next plan.
            world.reserve(&vm.metadata.uid.clone().unwrap(), "host000", resources_of(&vm));
        } else {
            assert!(
                plan.waits.iter().any(|w| w.message.contains("lacks 1.1Gi of memory (0Gi free)")),
                "{plan:?}"
            );
        }
    }
    assert_eq!(placed, 3);
}
