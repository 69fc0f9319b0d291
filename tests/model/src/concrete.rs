//! The planners' inputs from small numbers, and small numbers from what they plan.

use std::sync::{Arc, OnceLock};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::{Value, json};
use vireo_crds::{
    meta::{CONFIRM_ANNOTATION, FINALIZER},
    v1alpha1 as api,
};

use crate::state::{Attestation, Cause, Claim, Grant, HostObject, Placement, Runtime, Spec, Vm};

pub const NAMESPACE: &str = "default";
pub const DISK: &str = "data";

/// The one instant at which everything is planned; what was earlier lies well before it.
pub fn now() -> Timestamp {
    Timestamp::from_second(1_767_225_600).unwrap_or(Timestamp::UNIX_EPOCH)
}

pub fn ago(seconds: i64) -> Timestamp {
    now().checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(now())
}

pub fn name(letter: char, number: u8) -> String {
    format!("{letter}{number}")
}

/// The number in a name; a new grant is named `g0`.
pub fn number(name: &str) -> u8 {
    name.get(1..).and_then(|digits| digits.parse().ok()).unwrap_or(u8::MAX)
}

pub fn parse<T: serde::de::DeserializeOwned>(document: Value) -> T {
    serde_json::from_value(document.clone()).unwrap_or_else(|error| panic!("{error}: {document}"))
}

pub fn grant(grant: Grant) -> api::Grant {
    api::Grant {
        host: name('h', grant.host),
        incarnation: name('i', grant.inc),
        epoch: grant.epoch.into(),
        id: name('g', grant.id),
    }
}

pub fn grant_ref(g: Grant) -> api::GrantRef {
    api::GrantRef::from(&grant(g))
}

pub fn small(number: i64) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}

pub fn abstract_grant(grant: &api::Grant) -> Grant {
    Grant {
        host: number(&grant.host),
        inc: number(&grant.incarnation),
        epoch: small(grant.epoch),
        id: number(&grant.id),
    }
}

pub fn abstract_ref(grant: &api::GrantRef, host: u8) -> Grant {
    Grant { host, inc: number(&grant.incarnation), epoch: small(grant.epoch), id: number(&grant.id) }
}

pub fn abstract_placement(p: &api::Placement) -> Placement {
    Placement {
        grant: abstract_grant(&p.grant()),
        generation: small(p.generation),
        last: small(p.last_epoch),
    }
}

pub fn cause(cause: Cause) -> api::StopCause {
    match cause {
        Cause::ByGuest => api::StopCause::ByGuest,
        Cause::BySpec => api::StopCause::BySpec,
        Cause::Crashed => api::StopCause::Crashed,
        Cause::HostLost => api::StopCause::HostLost,
        Cause::Other => api::StopCause::Unknown,
    }
}

pub fn abstract_cause(cause: api::StopCause) -> Cause {
    match cause {
        api::StopCause::ByGuest => Cause::ByGuest,
        api::StopCause::BySpec => Cause::BySpec,
        api::StopCause::Crashed => Cause::Crashed,
        api::StopCause::HostLost => Cause::HostLost,
        _ => Cause::Other,
    }
}

fn placement(p: Placement) -> api::Placement {
    let api::Grant { host, incarnation, epoch, id } = grant(p.grant);
    api::Placement {
        host,
        incarnation,
        epoch,
        id,
        generation: p.generation.into(),
        last_epoch: p.last.into(),
        evidence: Vec::new(),
        target: None,
    }
}

fn runtime(r: Runtime, uid: u8) -> api::Runtime {
    let pending = json!([{"path": "spec.disks", "running": "none", "wanted": "d1", "applies": "NextBoot"}]);
    let document = json!({
        "vmUid": name('u', uid), "grant": grant_ref(r.grant),
        "holding": if r.released { "Released" } else { "Open" }, "power": if r.on { "On" } else { "Off" },
        "since": ago(800), "stopCause": r.cause.map(cause), "crashes": 0, "generation": r.generation,
    });
    api::Runtime { pending_changes: if r.pending { parse(pending) } else { Vec::new() }, ..parse(document) }
}

pub fn abstract_runtime(r: &api::Runtime, host: u8) -> Runtime {
    Runtime {
        grant: abstract_ref(&r.grant, host),
        released: r.holding == api::Holding::Released,
        on: r.power == api::Power::On,
        cause: r.stop_cause.map(abstract_cause),
        generation: r.generation.map(small),
        pending: !r.pending_changes.is_empty(),
    }
}

/// A spec: always up or halted, with the one Disk or without.
pub fn spec(spec: Spec) -> api::VirtualMachineSpec {
    static ALL: OnceLock<Vec<api::VirtualMachineSpec>> = OnceLock::new();
    let make = |halted: bool, disk: bool| {
        let disks = if disk { json!([{"name": "root", "disk": {"name": DISK}}]) } else { json!([]) };
        let strategy = if halted { "Halted" } else { "Always" };
        parse(json!({"memory": {"size": "1Gi"}, "runStrategy": strategy, "disks": disks}))
    };
    let all =
        ALL.get_or_init(|| vec![make(false, false), make(true, false), make(false, true), make(true, true)]);
    all[usize::from(spec.halted) + 2 * usize::from(spec.disk)].clone()
}

pub fn meta(name: String, uid: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        uid: Some(uid),
        resource_version: Some("1".into()),
        generation: Some(1),
        creation_timestamp: Some(Time(ago(10_000))),
        ..ObjectMeta::default()
    }
}

pub fn vm(vm: &Vm, slot: u8) -> api::VirtualMachine {
    let mut object = api::VirtualMachine::new(&name('v', slot), spec(vm.spec));
    object.metadata = ObjectMeta {
        namespace: Some(NAMESPACE.into()),
        generation: Some(vm.generation.into()),
        finalizers: vm.finalizer.then(|| vec![FINALIZER.to_owned()]),
        deletion_timestamp: vm.deleting.then(|| Time(ago(300))),
        annotations: vm.confirm.map(|id| [(CONFIRM_ANNOTATION.to_owned(), name('g', id))].into()),
        ..meta(name('v', slot), name('u', vm.uid))
    };
    object.status = Some(api::VirtualMachineStatus {
        placement: vm.placement.map(placement),
        runtime: vm.runtime.map(|r| runtime(r, vm.uid)),
        ..api::VirtualMachineStatus::default()
    });
    object
}

fn claim(claim: &Claim) -> api::Claim {
    api::Claim {
        vm_uid: name('u', claim.uid),
        namespace: NAMESPACE.into(),
        name: name('v', claim.slot),
        grant: grant_ref(claim.grant),
        holding: if claim.released { api::Holding::Released } else { api::Holding::Open },
        running: claim.running,
        highest_epoch: claim.highest.into(),
    }
}

pub fn abstract_attestation(a: &api::Attestation, host: u8) -> Attestation {
    let claim = |c: &api::Claim| Claim {
        uid: number(&c.vm_uid),
        slot: number(&c.name),
        grant: abstract_ref(&c.grant, host),
        released: c.holding == api::Holding::Released,
        running: c.running,
        highest: small(c.highest_epoch),
    };
    Attestation {
        session: number(&a.session),
        inc: number(&a.incarnation),
        claims: a.claims.iter().map(claim).collect(),
    }
}

/// A Host; `schedulable` leaves the choice between hosts that fit to the explorer.
pub fn host(host: &HostObject, index: u8, schedulable: bool) -> api::Host {
    static ABLE: OnceLock<api::HostStatus> = OnceLock::new();
    let able = ABLE.get_or_init(|| {
        parse(json!({
            "features": [], "cpu": {"architecture": "x86_64", "usableModels": ["qemu64"]},
            "allocatable": {"cpus": 8, "memory": 17_179_869_184_i64},
            "storageDomains": [{"name": "shared", "uid": "domain", "ready": true, "marked": true}],
        }))
    });
    let mut object = api::Host::new(
        &name('h', index),
        api::HostSpec { cluster: "default".into(), address: None, schedulable },
    );
    object.metadata = ObjectMeta {
        finalizers: Some(vec![FINALIZER.to_owned()]),
        annotations: host.confirm.map(|inc| [(CONFIRM_ANNOTATION.to_owned(), name('i', inc))].into()),
        ..meta(name('h', index), name('o', index))
    };
    let machine = name('m', index);
    let past = |(inc, same): &(u8, bool)| api::PastIncarnation {
        incarnation: name('i', *inc),
        boot_id: if *same { "present".into() } else { "earlier".into() },
        machine_uuid: machine.clone(),
    };
    let orphan = |uid: &u8| api::OrphanDomain {
        name: name('u', *uid),
        vm_uid: name('u', *uid),
        reason: "unexplained".into(),
    };
    object.status = (host.inc > 0).then(|| api::HostStatus {
        incarnation: Some(name('i', host.inc)),
        boot_id: Some("present".into()),
        past_incarnations: host.past.iter().map(past).collect(),
        identity: Some(api::HostIdentity { public_key_sha256: String::new(), machine_uuid: machine.clone() }),
        attestation: host.attestation.as_ref().map(|a| api::Attestation {
            session: name('s', a.session),
            incarnation: name('i', a.inc),
            highest_epoch: a.claims.iter().map(|c| i64::from(c.highest)).max().unwrap_or(0),
            claims: a.claims.iter().map(claim).collect(),
            ..api::Attestation::default()
        }),
        domains: host.orphans.iter().map(orphan).collect(),
        ..able.clone()
    });
    object
}

/// The one Disk: on shared storage, made, ready.
pub fn disk(claims: &[(u8, u8)]) -> api::Disk {
    let each: Vec<Value> = claims
        .iter()
        .map(|(uid, slot)| json!({"vmUid": name('u', *uid), "vm": name('v', *slot), "readOnly": false}))
        .collect();
    let mut object: api::Disk = parse(json!({
        "apiVersion": "vireo.dev/v1alpha1", "kind": "Disk", "metadata": {"name": DISK},
        "spec": {"storageDomain": "shared", "size": "1Gi"},
        "status": {"phase": "Ready", "placement": {"host": "h0", "epoch": 1}, "attachments": each,
                   "observedGeneration": 1},
    }));
    object.metadata = ObjectMeta {
        namespace: Some(NAMESPACE.into()),
        finalizers: Some(vec![FINALIZER.to_owned()]),
        ..meta(DISK.into(), "disk".into())
    };
    object
}

pub fn fixed() -> (Arc<api::HostCluster>, Arc<api::StorageDomain>) {
    static FIXED: OnceLock<(Arc<api::HostCluster>, Arc<api::StorageDomain>)> = OnceLock::new();
    let make = || {
        let cluster = json!({"apiVersion": "vireo.dev/v1alpha1", "kind": "HostCluster", "metadata": {"name": "default"}, "spec": {}});
        let domain = json!({"apiVersion": "vireo.dev/v1alpha1", "kind": "StorageDomain", "metadata": {"name": "shared"},
            "spec": {"directory": {"path": "/srv/shared", "shared": true}}});
        let mut cluster: api::HostCluster = parse(cluster);
        cluster.metadata = meta("default".into(), "cluster".into());
        let mut domain: api::StorageDomain = parse(domain);
        domain.metadata = meta("shared".into(), "domain".into());
        (Arc::new(cluster), Arc::new(domain))
    };
    FIXED.get_or_init(make).clone()
}
