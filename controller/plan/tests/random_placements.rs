//! Random fleets: whatever the hosts, the VMs and the affinity groups, no placement promises more than a host has or
//! breaks a hard rule, and the same fleet gives the same placements. The rules are stated here anew, from the API.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;

use controller_plan::{Key, Step, World, effect, explain, plan_vm};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::WorldFile;
use vireo_crds::v1alpha1::{AffinityGroup, Enforcement, Polarity};

const HOSTS: usize = 5;
const VMS: usize = 8;

fn pick<T: Clone + std::fmt::Debug + 'static>(choices: &[T]) -> impl Strategy<Value = T> + use<T> {
    proptest::sample::select(choices.to_vec())
}

fn host() -> impl Strategy<Value = Value> {
    (1..9i64, 1..17i64, pick(&["a", "b", "c"]), proptest::bool::weighted(0.1)).prop_map(
        |(cpus, memory, zone, cordoned)| {
            json!({
                "metadata": {"labels": {"zone": zone}},
                "spec": {"schedulable": !cordoned},
                "status": {"allocatable": {"cpus": cpus, "memory": memory << 30}},
            })
        },
    )
}

fn vm(index: usize) -> impl Strategy<Value = Value> {
    (1..5i32, 1..6i64, pick(&["web", "db"]), proptest::option::weighted(0.1, 0..HOSTS)).prop_map(
        move |(cores, memory, app, host)| {
            let mut vm = json!({
                "kind": "VirtualMachine", "metadata": {"name": format!("vm{index}"), "labels": {"app": app}},
                "spec": {"cpu": {"cores": cores}, "memory": {"size": format!("{memory}Gi")}},
            });
            if let Some(host) = host {
                vm["spec"]["scheduling"] = json!({"hostName": format!("host{host}")});
            }
            vm
        },
    )
}

fn members() -> impl Strategy<Value = Value> {
    let named = proptest::sample::subsequence((0..VMS).collect::<Vec<_>>(), 1..4)
        .prop_map(|vms| json!({"names": vms.iter().map(|i| format!("vm{i}")).collect::<Vec<_>>()}));
    prop_oneof![named, pick(&["web", "db"]).prop_map(|app| json!({"matchLabels": {"app": app}}))]
}

fn hosts() -> impl Strategy<Value = Value> {
    let named = proptest::sample::subsequence((0..HOSTS).collect::<Vec<_>>(), 1..4)
        .prop_map(|hosts| json!({"names": hosts.iter().map(|i| format!("host{i}")).collect::<Vec<_>>()}));
    prop_oneof![named, pick(&["a", "b"]).prop_map(|zone| json!({"matchLabels": {"zone": zone}}))]
}

fn rule() -> impl Strategy<Value = Value> {
    (pick(&["Positive", "Negative"]), pick(&["Hard", "Hard", "Soft"]))
        .prop_map(|(polarity, enforcement)| json!({"polarity": polarity, "enforcement": enforcement}))
}

fn group(index: usize) -> impl Strategy<Value = Value> {
    (members(), rule(), rule(), hosts(), 0..3).prop_map(
        move |(members, of_vms, mut of_hosts, hosts, which)| {
            of_hosts["hosts"] = hosts;
            let mut spec = json!({"virtualMachines": members});
            if which != 0 {
                spec["vmRule"] = of_vms;
            }
            if which != 1 {
                spec["hostRule"] = of_hosts;
            }
            json!({"kind": "AffinityGroup", "metadata": {"name": format!("group{index}")}, "spec": spec})
        },
    )
}

fn policy() -> impl Strategy<Value = Value> {
    pick(&[
        json!({"policy": {"none": {}}}),
        json!({"policy": {"evenlyDistributed": {}}}),
        json!({"policy": {"vmEvenlyDistributed": {}}}),
        json!({"policy": {"powerSaving": {}}}),
        json!({"policy": {"powerSaving": {"fillPercent": 50}}, "weights": {"load": 3, "affinity": 0, "vms": 2}}),
    ])
}

prop_compose! {
    fn fleet()(
        hosts in proptest::collection::vec(host(), 1..=HOSTS),
        vms in (0..VMS).map(vm).collect::<Vec<_>>(),
        groups in (0..3).map(group).collect::<Vec<_>>(),
        kept in 0..=3usize,
        scheduling in policy(),
        overcommit in 1..3,
        percent in pick(&[50, 100, 150]),
    ) -> Value {
        let hosts: BTreeMap<_, _> =
            hosts.into_iter().enumerate().map(|(i, host)| (format!("host{i}"), host)).collect();
        let cluster = json!({
            "kind": "HostCluster", "metadata": {"name": "default"}, "status": {"baseline": "EPYC"},
            "spec": {
                "cpu": {"overcommit": overcommit}, "memory": {"overcommitPercent": percent},
                "scheduling": scheduling,
            },
        });
        let objects: Vec<_> =
            std::iter::once(cluster).chain(vms).chain(groups.into_iter().take(kept)).collect();
        json!({"plan": {"kind": "VirtualMachine", "name": "vm0"}, "hosts": hosts, "objects": objects})
    }
}

fn build(fleet: &Value) -> World {
    serde_json::from_value::<WorldFile>(fleet.clone()).unwrap().build()
}

/// Places all VMs, one after the other, and answers where they are.
fn place_all(world: &mut World) -> BTreeMap<String, String> {
    let now = "2026-01-01T12:00:00Z".parse().unwrap();
    for index in 0..VMS {
        let vm = world.vm(&Key::new("default", &format!("vm{index}"))).cloned().unwrap();
        let plan = plan_vm(world, &vm, now, &format!("fresh-{index}"));
        let again = plan_vm(world, &vm, now, &format!("fresh-{index}"));
        assert_eq!(plan, again, "the same world gives the same plan");
        let fits = explain(world, &vm).hosts.iter().any(|verdict| verdict.lacks.is_empty());
        let places = plan.steps.iter().any(|step| matches!(step, Step::SetPlacement { .. }));
        assert_eq!(fits, places, "the explanation agrees with the decision about vm{index}");
        effect::apply_plan(world, &plan, now).unwrap();
    }
    let placed = world.vms().filter_map(|vm| {
        let host = vm.status.as_ref()?.placement.as_ref()?.host.clone();
        Some((vm.metadata.name.clone()?, host))
    });
    placed.collect()
}

fn within_capacity(world: &World, placed: &BTreeMap<String, String>) -> Result<(), TestCaseError> {
    let cluster = &world.cluster("default").unwrap().spec;
    for (name, host) in world.hosts() {
        let give = host.status.as_ref().unwrap().allocatable.unwrap();
        let (mut cpus, mut memory) = (0, 0);
        for vm in placed.iter().filter(|(_, at)| *at == name).map(|(vm, _)| vm) {
            let spec = &world.vm(&Key::new("default", vm)).unwrap().spec;
            let guest = i64::try_from(spec.memory.size.bytes().unwrap()).unwrap();
            cpus += spec.cpu.vcpus();
            memory += guest + guest / 512 + (64 << 20) + spec.cpu.vcpus() * (8 << 20);
        }
        prop_assert!(cpus <= give.cpus * i64::from(cluster.cpu.overcommit), "vCPUs of {name}");
        prop_assert!(
            memory <= give.memory * i64::from(cluster.memory.overcommit_percent) / 100,
            "memory of {name}"
        );
        prop_assert!(host.spec.schedulable || cpus == 0, "{name} is cordoned");
    }
    Ok(())
}

fn keeps_hard_rules(
    world: &World,
    group: &AffinityGroup,
    placed: &BTreeMap<String, String>,
) -> Result<(), TestCaseError> {
    let chosen = &group.spec.virtual_machines;
    let at: Vec<&String> = placed
        .iter()
        .filter(|(name, _)| {
            let vm = world.vm(&Key::new("default", name)).unwrap();
            chosen.contains(name, vm.metadata.labels.as_ref())
        })
        .map(|(_, host)| host)
        .collect();
    let different: std::collections::BTreeSet<_> = at.iter().collect();
    if let Some(rule) = group.spec.vm_rule.as_ref().filter(|rule| rule.enforcement == Enforcement::Hard) {
        match rule.polarity {
            Polarity::Positive => {
                prop_assert!(different.len() <= 1, "{:?} is spread: {placed:?}", group.spec)
            }
            Polarity::Negative => prop_assert_eq!(different.len(), at.len(), "{:?} is crowded", group.spec),
            Polarity::Unknown => {}
        }
    }
    if let Some(rule) = group.spec.host_rule.as_ref().filter(|rule| rule.enforcement == Enforcement::Hard) {
        for host in at {
            let listed = rule.hosts.contains(host, world.host(host).unwrap().metadata.labels.as_ref());
            prop_assert_eq!(listed, rule.polarity == Polarity::Positive, "{:?}: {}", group.spec, host);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 600,
        failure_persistence: Some(Box::new(proptest::test_runner::FileFailurePersistence::Direct("tests/random_placements.regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_placement_breaks_a_hard_rule_or_a_capacity(fleet in fleet()) {
        let mut world = build(&fleet);
        let placed = place_all(&mut world);
        within_capacity(&world, &placed)?;
        for group in world.groups() {
            keeps_hard_rules(&world, group, &placed)?;
        }
        prop_assert_eq!(&placed, &place_all(&mut build(&fleet)), "the same fleet gives the same placements");

        let mut reversed = fleet.clone();
        reversed["objects"].as_array_mut().unwrap().reverse();
        prop_assert_eq!(&placed, &place_all(&mut build(&reversed)), "the order of reading does not matter");
    }
}
