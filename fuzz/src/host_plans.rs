//! What a host plans from: objects that bypassed schema and CEL, an intent made from them, and facts of any kind.

use jiff::Timestamp;
use node_plan::{
    effect,
    facts::Facts,
    intent::{Observation, ValidatedSpec, VmRef},
    network::{NetworkFacts, NetworkIntent, plan_networks},
    storage::disk::DomainFacts,
    vm::plan_vm,
    xml::build::{DomainInput, build_domain},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use vireo_crds::v1alpha1::{Network, VirtualMachine};

/// Rounds of planning and carrying out.
const ROUNDS: usize = 3;

/// A host, and what it is asked for.
#[derive(Deserialize)]
struct Input {
    #[serde(default)]
    observation: Value,
    #[serde(default)]
    facts: Value,
    #[serde(default)]
    domain: Value,
    #[serde(default)]
    vm: Value,
    #[serde(default)]
    networks: Vec<Value>,
    #[serde(default)]
    network_facts: Value,
    #[serde(default)]
    now: Option<Timestamp>,
}

/// A domain that is ready and has this much room.
pub fn domain_facts(available: u64) -> DomainFacts {
    DomainFacts { not_ready: None, available, block_free: 5 << 30 }
}

/// Nothing of it makes a planner panic.
pub fn run(data: &[u8]) {
    let Ok(input) = serde_json::from_slice::<Input>(data) else { return };
    let now = input.now.unwrap_or(Timestamp::UNIX_EPOCH);
    if let Some(vm) = read::<VirtualMachine>(&input.vm) {
        let _ = ValidatedSpec::new(&vm.spec).map(|spec| spec.hash());
    }
    let networks: Vec<NetworkIntent> = input
        .networks
        .iter()
        .filter_map(read::<Network>)
        .map(|network| NetworkIntent::of(&network))
        .collect();
    let facts = read::<NetworkFacts>(&input.network_facts).unwrap_or_default();
    for plan in plan_networks(&networks, &facts, "installation-1") {
        let _ = plan.report(None);
    }
    if let Some(domain) = read::<DomainInput>(&input.domain) {
        built(&domain);
    }
    let (Some(observation), Some(facts)) =
        (read::<Observation>(&input.observation), read::<Facts>(&input.facts))
    else {
        return;
    };
    if let Observation::Granted(intent) = &observation
        && let Some(wanted) = &intent.wanted
    {
        built(&DomainInput::new(&intent.vm, wanted, &intent.grant, intent.hardware.as_ref()));
    }
    let vm = VmRef { uid: "u1".into(), namespace: "default".into(), name: "web".into() };
    let mut facts = facts;
    for _ in 0..ROUNDS {
        let plan = plan_vm(&vm, &observation, &facts, now);
        assert!(serde_json::to_string(&plan).is_ok(), "a plan can be written down");
        for step in &plan.steps {
            effect::apply(step, &mut facts, now);
        }
    }
}

/// A domain that is built reads back as it was meant.
fn built(input: &DomainInput) {
    let Ok(built) = build_domain(input) else { return };
    let text = node_plan::xml::render(&built.domain);
    let read = node_plan::xml::parse(&text).expect("what was built can be read");
    assert_eq!(node_plan::xml::compare(&built.domain, &read), [], "{text}");
}

fn read<T: DeserializeOwned>(value: &Value) -> Option<T> {
    serde_json::from_value(value.clone()).ok()
}
