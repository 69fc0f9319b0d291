//! Golden folders of disks and networks: a case is a folder; adding one needs no code. `VIREO_BLESS=1` writes the
//! plans. For every case, planning again after applying gives nothing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot read its case fails")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use node_plan::{
    network::{LinkFact, LinkKind, NatFact, NetworkFacts, NetworkIntent, NetworkStep, plan_networks},
    storage::{
        disk::{DiskFacts, DiskIntent, DiskStep, DomainFacts, VolumeFact, plan_disk},
        sidecar::Sidecar,
    },
};
use serde::{Serialize, de::DeserializeOwned};

const INSTALLATION: &str = "installation";

fn cases(kind: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(kind);
    let mut found: Vec<PathBuf> = fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    assert!(!found.is_empty(), "no cases in {}", root.display());
    found
}

fn read<T: DeserializeOwned>(case: &Path, file: &str) -> T {
    let path = case.join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn compare(case: &Path, plan: &impl Serialize) {
    let path = case.join("plan.yaml");
    let text = serde_saphyr::to_string(plan).unwrap();
    if std::env::var_os("VIREO_BLESS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let wanted = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, wanted, "{} differs; VIREO_BLESS=1 accepts the new plan", path.display());
}

#[test]
fn disks() {
    for case in cases("disk") {
        let intent: DiskIntent = read(&case, "intent.yaml");
        let mut facts: DiskFacts = read(&case, "facts.yaml");
        let domain: DomainFacts = read(&case, "domain.yaml");
        let plan = plan_disk(&intent, &facts, &domain);
        compare(&case, &plan);
        // A volume brought back may still have to grow.
        for _ in 0..2 {
            for step in plan_disk(&intent, &facts, &domain).steps {
                run_disk_step(&mut facts, step);
            }
        }
        assert_eq!(plan_disk(&intent, &facts, &domain).steps, [], "{}", case.display());
    }
}

fn run_disk_step(facts: &mut DiskFacts, step: DiskStep) {
    match step {
        DiskStep::RemovePartials(_) => {
            facts.partials = false;
            if facts.volume == VolumeFact::Absent {
                facts.sidecar = None;
            }
        }
        DiskStep::Create(sidecar, _)
        | DiskStep::Fetch { sidecar, .. }
        | DiskStep::Copy { sidecar, .. }
        | DiskStep::Restore { sidecar, .. }
        | DiskStep::Grow { sidecar, .. } => {
            facts.volume = VolumeFact::Present { capacity: sidecar.size, allocated: 0 };
            facts.sidecar = Some(sidecar);
        }
        DiskStep::WriteSidecar(sidecar) => facts.sidecar = Some(sidecar),
        DiskStep::MoveToTrash(sidecar) => {
            facts.volume = VolumeFact::Absent;
            facts.sidecar = None;
            facts.trashed = Some(sidecar);
        }
        DiskStep::MarkRetained(sidecar) => {
            facts.sidecar = Some(Sidecar { retained_at: Some(jiff::Timestamp::UNIX_EPOCH), ..sidecar });
        }
    }
}

#[test]
fn networks() {
    for case in cases("network") {
        let intents: Vec<NetworkIntent> = read(&case, "intents.yaml");
        let mut facts: NetworkFacts = read(&case, "facts.yaml");
        let plans = plan_networks(&intents, &facts, INSTALLATION);
        compare(&case, &plans);
        for step in plans.into_iter().flat_map(|plan| plan.steps) {
            run_network_step(&mut facts, step);
        }
        let again: Vec<NetworkStep> =
            plan_networks(&intents, &facts, INSTALLATION).into_iter().flat_map(|plan| plan.steps).collect();
        assert_eq!(again, [], "{}", case.display());
    }
}

fn run_network_step(facts: &mut NetworkFacts, step: NetworkStep) {
    let new_bridge = |name: &str, mtu, alias, up| LinkFact {
        name: name.into(),
        kind: LinkKind::Bridge,
        alias,
        mtu,
        up,
        master: None,
        addresses: vec![],
    };
    let mut change = |name: &str, change: &dyn Fn(&mut LinkFact)| {
        facts.links.iter_mut().filter(|link| link.name == name).for_each(change)
    };
    match step {
        NetworkStep::SetLabel { name, label } => change(&name, &|link| link.alias = Some(label.to_string())),
        NetworkStep::SetMtu { name, mtu } => change(&name, &|link| link.mtu = mtu),
        NetworkStep::SetUp { name } => change(&name, &|link| link.up = true),
        NetworkStep::AddPort { bridge, port } => change(&port, &|link| link.master = Some(bridge.clone())),
        NetworkStep::RemovePort { port, .. } => change(&port, &|link| link.master = None),
        NetworkStep::RemoveBridge { name, .. } => facts.links.retain(|link| link.name != name),
        NetworkStep::CreateBridge { name, label, mtu } => {
            facts.links.push(new_bridge(&name, mtu, Some(label.to_string()), false))
        }
        NetworkStep::RemoveNat { name } => {
            facts.links.retain(|link| {
                !facts.nats.iter().any(|nat| nat.config.name == name && nat.config.bridge == link.name)
            });
            facts.nats.retain(|nat| nat.config.name != name);
        }
        NetworkStep::CreateNat { uid, config } => {
            facts.links.push(new_bridge(&config.bridge, config.mtu, None, true));
            facts.nats.push(NatFact { uid, config, active: true, guests: 0 });
        }
    }
}
