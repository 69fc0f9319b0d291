//! Whole objects that bypassed schema and CEL, as the controller meets them: decoded one by one, what cannot be decoded
//! noted as such, then planned for, and each plan carried out and planned again.

use std::sync::Arc;

use controller_plan::{
    Freshness, HostLiveness, Key, Kind, Plan, Session, Undecodable, World, effect, plan_act, plan_cluster,
    plan_disk, plan_domain, plan_group, plan_host, plan_network, plan_vm,
};
use jiff::Timestamp;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

/// Rounds of planning and carrying out.
const ROUNDS: usize = 3;
/// Objects looked at: more of them is slower, not more telling.
const MOST: usize = 40;

/// A world, as its API server has it.
#[derive(Deserialize)]
struct Input {
    #[serde(default)]
    objects: Vec<Value>,
    #[serde(default)]
    silent: Vec<String>,
    #[serde(default)]
    session: Option<Session>,
    #[serde(default)]
    now: Option<Timestamp>,
}

/// Nothing of it makes a planner panic.
pub fn run(data: &[u8]) {
    let Ok(input) = serde_json::from_slice::<Input>(data) else { return };
    let now = input.now.unwrap_or(Timestamp::UNIX_EPOCH);
    let mut world = World::default();
    world.set_installation_id("installation-1");
    for object in input.objects.iter().take(MOST) {
        put(&mut world, object, &input.silent);
    }
    let old = world.vms().filter_map(|vm| vm.metadata.uid.clone()).collect();
    let session =
        input.session.unwrap_or(Session { nonce: "s1".into(), preexisting: old, ..Session::default() });
    world.set_session(Some(session));
    for round in 0..ROUNDS {
        for plan in plans(&world, now, &format!("id-{round}")) {
            assert!(serde_json::to_string(&plan).is_ok(), "a plan can be written down");
            // A step may be refused: the objects are as odd as their plans.
            let _ = effect::apply_plan(&mut world, &plan, now);
        }
    }
}

fn plans(world: &World, now: Timestamp, fresh: &str) -> Vec<Plan> {
    let mut plans = Vec::new();
    plans.extend(world.clusters().map(|(_, object)| plan_cluster(world, object, now)));
    plans.extend(world.hosts().map(|(_, object)| plan_host(world, object, now)));
    plans.extend(world.networks().map(|(_, object)| plan_network(world, object, now)));
    plans.extend(world.domains().map(|(_, object)| plan_domain(world, object, now)));
    plans.extend(world.groups().map(|object| plan_group(world, object, now)));
    plans.extend(world.disks().map(|object| plan_disk(world, object, now)));
    plans.extend(world.acts().map(|object| plan_act(world, object, now)));
    plans.extend(world.vms().map(|object| plan_vm(world, object, now, fresh)));
    plans
}

fn put(world: &mut World, object: &Value, silent: &[String]) {
    let kind = object.get("kind").cloned().and_then(|kind| serde_json::from_value::<Kind>(kind).ok());
    let Some(kind) = kind else { return };
    let known = match kind {
        Kind::VirtualMachine => read(object).map(|vm| world.put_vm(Arc::new(vm))),
        Kind::VirtualMachineAction => read(object).map(|act| world.put_act(Arc::new(act))),
        Kind::Disk => read(object).map(|disk| world.put_disk(Arc::new(disk))),
        Kind::HostCluster => read(object).map(|cluster| world.put_cluster(Arc::new(cluster))),
        Kind::Network => read(object).map(|network| world.put_network(Arc::new(network))),
        Kind::StorageDomain => read(object).map(|domain| world.put_domain(Arc::new(domain))),
        Kind::AffinityGroup => read(object).map(|group| world.put_group(Arc::new(group))),
        Kind::Host => read::<vireo_crds::v1alpha1::Host>(object).map(|host| {
            let name = host.metadata.name.clone().unwrap_or_default();
            let incarnation = host.status.as_ref().and_then(|status| status.incarnation.clone());
            let is_silent = silent.contains(&name);
            world.put_host(Arc::new(host));
            world.set_host_access(&name, true);
            let alive = incarnation.clone().filter(|_| !is_silent).into_iter().collect();
            let freshness = if is_silent { Freshness::Silent } else { Freshness::Fresh };
            let liveness =
                HostLiveness { freshness, holder: incarnation, alive, duplicate: false, watched: true };
            world.set_liveness(&name, liveness);
        }),
    };
    if known.is_none() {
        let text = |pointer| object.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let key = Key::new(
            &text("/metadata/namespace").unwrap_or_default(),
            &text("/metadata/name").unwrap_or_default(),
        );
        world.put_undecodable(Undecodable {
            kind,
            namespace: Some(key.namespace).filter(|namespace| !namespace.is_empty()),
            name: key.name,
            uid: text("/metadata/uid").unwrap_or_default(),
        });
    }
}

fn read<T: DeserializeOwned>(object: &Value) -> Option<T> {
    serde_json::from_value(object.clone()).ok()
}
