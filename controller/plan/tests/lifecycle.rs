//! One VM from apply to gone, with a daemon that reports: what each stage costs in writes, and that a stage that
//! changes nothing costs none.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::sync::Arc;

use controller_plan::{HostLiveness, Key, Kind, Step, World, effect, lint};
use jiff::Timestamp;
use serde_json::{Value, json};
use support::{Subject, WorldFile};
use vireo_crds::v1alpha1::{Placement, VirtualMachine};

struct Stage {
    world: World,
    fresh: u32,
}

impl Stage {
    fn begin() -> Self {
        let file: WorldFile = serde_json::from_value(json!({
            "plan": {"kind": "VirtualMachine", "name": "web-1"},
            "hosts": {"host1": {}, "host2": {}},
            "session": {"nonce": "s1"},
            "objects": [
                {"kind": "Disk", "metadata": {"name": "data"}, "spec": {"storageDomain": "shared", "size": "1Gi"},
                 "status": {"phase": "Ready", "observedGeneration": 1, "placement": {"host": "host1", "epoch": 1}}},
                {"kind": "VirtualMachine", "metadata": {"name": "web-1", "finalizers": []},
                 "spec": {"memory": {"size": "2Gi"}, "disks": [{"name": "data", "disk": {"name": "data"}}]}},
            ],
        }))
        .unwrap();
        Self { world: file.build(), fresh: 0 }
    }

    fn now() -> Timestamp {
        "2026-01-01T12:00:00Z".parse().unwrap()
    }

    fn vm(&self) -> Option<Arc<VirtualMachine>> {
        self.world.vm(&Key::new("default", "web-1")).cloned()
    }

    fn placement(&self) -> Placement {
        self.vm().unwrap().status.as_ref().unwrap().placement.clone().unwrap()
    }

    /// Plans for VM and Disk until nothing is left to do; answers with the writes made.
    fn settle(&mut self) -> Vec<&'static str> {
        let mut wrote = Vec::new();
        for _ in 0..4 {
            for (kind, name) in [(Kind::VirtualMachine, "web-1"), (Kind::Disk, "data")] {
                self.fresh += 1;
                let plan = support::plan(
                    &self.world,
                    &Subject { kind, name: name.into() },
                    Self::now(),
                    &format!("grant-{}", self.fresh),
                );
                assert_eq!(lint::lint(&self.world, &plan), Vec::<String>::new());
                effect::apply_plan(&mut self.world, &plan, Self::now()).unwrap();
                wrote.extend(plan.steps.iter().map(Step::name));
            }
        }
        wrote
    }

    /// Somebody else changes the VM: a user its spec, a daemon its report.
    fn change(&mut self, change: &Value) {
        let mut document = serde_json::to_value(self.vm().unwrap().as_ref()).unwrap();
        support::merge(&mut document, change);
        let version: u64 = document["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        document["metadata"]["resourceVersion"] = json!((version + 1).to_string());
        self.world.put_vm(Arc::new(serde_json::from_value(document).unwrap()));
    }

    fn edit(&mut self, spec: &Value) {
        let generation = self.vm().unwrap().metadata.generation.unwrap() + 1;
        self.change(&json!({"metadata": {"generation": generation}, "spec": spec}));
    }

    /// The daemon of the VM's host reports, and takes the pen.
    fn report(&mut self, holding: &str, power: &str, cause: Option<&str>) {
        let placement = self.placement();
        let status = json!({
            "runtime": {
                "vmUid": "uid-web-1", "holding": holding, "power": power, "stopCause": cause, "since": "2026-01-01T12:00:00Z",
                "grant": {"incarnation": placement.incarnation, "epoch": placement.epoch, "id": placement.id},
            },
            "state": if power == "On" { "Running" } else { "Stopped" },
        });
        self.change(&json!({"status": status}));
        let ready = json!({"type": "Ready", "status": "True", "reason": "Running", "message": "", "lastTransitionTime": "2026-01-01T12:00:00Z"});
        let mut document = serde_json::to_value(self.vm().unwrap().as_ref()).unwrap();
        let conditions = document["status"]["conditions"].as_array_mut().unwrap();
        conditions.retain(|c| c["type"] != "Ready");
        conditions.push(ready);
        self.world.put_vm(Arc::new(serde_json::from_value(document).unwrap()));
    }

    fn reboot(&mut self, host: &str) {
        let mut document = support::host(host);
        support::merge(
            &mut document,
            &json!({
                "apiVersion": "vireo.dev/v1alpha1", "kind": "Host", "metadata": {"resourceVersion": "1000"},
                "status": {
                    "incarnation": "second-life", "bootId": "second-boot",
                    "pastIncarnations": [{"incarnation": format!("inc-{host}"), "bootId": format!("boot-{host}"), "machineUuid": format!("machine-{host}")}],
                },
            }),
        );
        self.world.put_host(Arc::new(serde_json::from_value(document).unwrap()));
        let alive = ["second-life".to_owned()].into();
        let liveness = HostLiveness {
            holder: Some("second-life".into()),
            alive,
            ..self.world.liveness(host).unwrap().clone()
        };
        self.world.set_liveness(host, liveness);
    }
}

#[test]
fn every_stage_costs_what_it_should() {
    let mut stage = Stage::begin();
    assert_eq!(stage.settle(), ["EnsureFinalizer", "SetDiskStatus", "SetPlacement"], "first start");
    assert_eq!(stage.placement().epoch, 1);
    stage.report("Open", "On", None);
    assert_eq!(stage.settle(), [""; 0], "at rest");

    stage.edit(&json!({"gracePeriodSeconds": 30}));
    assert_eq!(stage.settle(), ["SetVmStatus"], "an edit is accepted");
    assert_eq!(stage.placement().generation, 2);

    stage.edit(&json!({"runStrategy": "Halted"}));
    assert_eq!(stage.settle(), ["SetVmStatus"], "the stop is accepted");
    stage.report("Released", "Off", Some("BySpec"));
    assert_eq!(stage.settle(), [""; 0], "stopped");
    assert_eq!(stage.world.load(&stage.placement().host).vms, 0, "a stopped VM takes no room");

    stage.edit(&json!({"runStrategy": "Always"}));
    assert_eq!(stage.settle(), ["SetPlacement"], "started again");
    assert_eq!((stage.placement().epoch, stage.placement().generation), (2, 4));
    stage.report("Open", "On", None);

    let host = stage.placement().host;
    stage.reboot(&host);
    assert_eq!(stage.settle(), ["SetPlacement"], "a reboot costs one grant");
    assert_eq!(stage.placement().epoch, 3);
    stage.report("Open", "On", None);

    stage.change(&json!({"metadata": {"deletionTimestamp": "2026-01-01T12:00:00Z"}}));
    assert_eq!(stage.settle(), [""; 0], "its host stops it first");
    stage.report("Released", "Off", Some("BySpec"));
    assert_eq!(stage.settle(), ["SetDiskStatus", "RemoveFinalizer"], "gone");
    assert!(stage.vm().is_none());
    let disk = stage.world.disk(&Key::new("default", "data")).unwrap();
    assert!(disk.status.as_ref().unwrap().attachments.is_empty(), "the Disk is free again");
}

#[test]
fn a_new_session_waits_for_the_hosts_before_it_places_anew() {
    let mut stage = Stage::begin();
    stage.settle();
    stage.report("Released", "Off", Some("Crashed"));
    stage.world.begin_session("s2");
    assert_eq!(stage.settle(), ["SetVmStatus"], "says AttestationPending, once");
    for host in ["host1", "host2"] {
        let mut document = support::host(host);
        let attested = json!({"apiVersion": "vireo.dev/v1alpha1", "kind": "Host", "metadata": {"resourceVersion": "9"}, "status": {"attestation": {"session": "s2"}}});
        support::merge(&mut document, &attested);
        stage.world.put_host(Arc::new(serde_json::from_value(document).unwrap()));
    }
    assert_eq!(stage.settle(), ["SetPlacement"]);
}

#[test]
fn a_holder_that_attests_is_enough_for_its_own_vm() {
    let mut stage = Stage::begin();
    stage.settle();
    stage.report("Open", "On", None);
    stage.world.begin_session("s2");
    let host = stage.placement().host;
    let mut document = support::host(&host);
    let attested = json!({"apiVersion": "vireo.dev/v1alpha1", "kind": "Host", "metadata": {"resourceVersion": "9"}, "status": {"attestation": {"session": "s2"}}});
    support::merge(&mut document, &attested);
    stage.world.put_host(Arc::new(serde_json::from_value(document).unwrap()));
    // Released only after it was attested as held: the other host need not be heard.
    stage.report("Released", "Off", Some("Crashed"));
    assert_eq!(stage.settle(), ["SetPlacement"]);
}
