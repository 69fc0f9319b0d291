//! Sidecars, markers and tokens as they lie on storage that others can write to, and the plans made from them.

use std::str::FromStr;

use jiff::{SignedDuration, Timestamp};
use node_plan::{
    facts::DiskToken,
    storage::{
        disk::{DiskFacts, DiskIntent, Origin, VolumeFact, plan_disk},
        domain::{DirectoryFact, DomainIntent, DomainPlan, plan_domain},
        sidecar::Sidecar,
        trash::plan_trash,
    },
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use vireo_crds::v1alpha1::{Disk, Marker};

/// What lies there.
#[derive(Deserialize)]
struct Input {
    #[serde(default)]
    sidecar: Value,
    #[serde(default)]
    trashed: Value,
    #[serde(default)]
    marker: Value,
    #[serde(default)]
    token: Value,
    #[serde(default)]
    disk: Value,
    #[serde(default)]
    capacity: u64,
}

/// A domain whose marker names another is never used, and no plan writes over a finished volume.
pub fn run(data: &[u8]) {
    let Ok(input) = serde_json::from_slice::<Input>(data) else { return };
    let _ = read::<DiskToken>(&input.token);
    let sidecar = read::<Sidecar>(&input.sidecar);
    let trashed = read::<Sidecar>(&input.trashed);
    if let Some(found) = read::<Marker>(&input.marker) {
        let wanted = Marker { installation_id: "i".into(), domain_uid: "d".into() };
        let intent = DomainIntent {
            name: "d".into(),
            path: "/srv".into(),
            marker: Some(wanted.clone()),
            may_initialize: true,
            initialized_by: None,
            warn_free_percent: 10,
        };
        let marked = DirectoryFact::Marked {
            marker: found.clone(),
            capacity: input.capacity,
            available: input.capacity,
        };
        let plan = plan_domain(&intent, &marked);
        assert_eq!(matches!(plan, DomainPlan::Ready { .. }), found == wanted, "{plan:?}");
    }
    let now = Timestamp::from_str("2026-01-01T00:00:00Z").unwrap_or(Timestamp::UNIX_EPOCH);
    let sidecars: Vec<Sidecar> = [&sidecar, &trashed].into_iter().flatten().cloned().collect();
    let _ = plan_trash(&sidecars, Some(SignedDuration::from_hours(24)), now);
    let _ = plan_trash(&sidecars, Some(SignedDuration::MAX), now);
    let Some(disk) = read::<Disk>(&input.disk) else { return };
    let Some(intent) = DiskIntent::of(&disk, "host1") else { return };
    for volume in [
        VolumeFact::Absent,
        VolumeFact::Present { capacity: input.capacity, allocated: input.capacity / 2 },
        VolumeFact::Unknown("it cannot be read".into()),
    ] {
        let facts = DiskFacts {
            volume,
            sidecar: sidecar.clone(),
            trashed: trashed.clone(),
            origin: trashed.clone().map(|sidecar| Origin { sidecar, in_trash: true }),
            partials: input.capacity % 2 == 1,
        };
        let _ = plan_disk(&intent, &facts, &super::host_plans::domain_facts(input.capacity));
    }
}

fn read<T: DeserializeOwned>(value: &Value) -> Option<T> {
    serde_json::from_value(value.clone()).ok()
}
