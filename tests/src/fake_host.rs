//! A host without libvirt: it reports, renews its Lease, attests each session, and says of guests what a test tells
//! it to. It speaks to the API server as the daemon of that host, so what it may write is what a daemon may write.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use vireo_crds::{
    meta::{HOSTS_NAMESPACE, NODE_MANAGER, SESSION_LEASE, SYSTEM_NAMESPACE},
    v1alpha1::{Disk, Host, HostSpec, Placement, VirtualMachine, VirtualMachineAction},
};

use crate::{
    apiserver::{ApiServer, User},
    wait::until,
};

const LIMIT: Duration = Duration::from_secs(30);
/// Memory that VMs may have on it.
pub const MEMORY: i64 = 16 << 30;
/// Threads that VMs may have on it.
pub const CPUS: i64 = 8;

/// A host without libvirt.
pub struct FakeHost {
    /// Its name.
    pub name: String,
    /// This life of its ledger.
    pub incarnation: String,
    client: Client,
    standing: Arc<Mutex<Value>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for FakeHost {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl FakeHost {
    /// Makes the Host object, waits for its account, reports, renews, and attests.
    pub async fn join(server: &ApiServer, name: &str, cluster: &str) -> Result<Self> {
        let mut host = Self::join_unattested(server, name, cluster).await?;
        host.attest();
        Ok(host)
    }

    /// The same, but it keeps silent about what it runs until [`FakeHost::attest`].
    pub async fn join_unattested(server: &ApiServer, name: &str, cluster: &str) -> Result<Self> {
        let admin = server.client(User::Admin).await?;
        let object = Host::new(name, HostSpec { cluster: cluster.into(), address: None, schedulable: true });
        Api::<Host>::all(admin).create(&PostParams::default(), &object).await.context("create the Host")?;
        let mut host = Self {
            name: name.into(),
            incarnation: format!("incarnation-of-{name}"),
            client: server.client(User::Host(name)).await?,
            standing: Arc::new(Mutex::new(json!({
                "incarnation": format!("incarnation-of-{name}"), "bootId": format!("boot-of-{name}"),
            }))),
            tasks: Vec::new(),
        };
        let leases: Api<Lease> = Api::namespaced(host.client.clone(), HOSTS_NAMESPACE);
        until("the host may renew its Lease", LIMIT, || async { Ok(leases.get(name).await?) }).await?;
        host.report(json!({})).await?;
        host.renew().await?;
        Ok(host)
    }

    async fn renew(&mut self) -> Result<()> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), HOSTS_NAMESPACE);
        renew(&leases, &self.name, &self.incarnation).await?;
        let (name, incarnation) = (self.name.clone(), self.incarnation.clone());
        self.tasks.push(tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(5)).await;
                // The next renewal comes soon; a test that needs one waits for its effect.
                let _ = renew(&leases, &name, &incarnation).await;
            }
        }));
        Ok(())
    }

    /// The machine comes back in a new boot; its ledger knows the incarnation that ended.
    pub async fn reboot(&mut self) -> Result<()> {
        self.tasks.drain(..).for_each(|task| task.abort());
        let past = json!([{
            "incarnation": self.incarnation, "bootId": format!("boot-of-{}", self.name), "machineUuid": format!("machine-of-{}", self.name),
        }]);
        self.incarnation = format!("incarnation-after-{}", self.incarnation);
        self.report(
            json!({"incarnation": self.incarnation, "bootId": "boot-after", "pastIncarnations": past}),
        )
        .await?;
        self.renew().await?;
        self.attest();
        Ok(())
    }

    /// Answers this session's nonce and every later one: it runs what the store says.
    pub fn attest(&mut self) {
        let (client, name, incarnation) = (self.client.clone(), self.name.clone(), self.incarnation.clone());
        let standing = Arc::clone(&self.standing);
        self.tasks.push(tokio::spawn(async move {
            let sessions: Api<Lease> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
            let mut answered = String::new();
            loop {
                let nonce = sessions
                    .get(SESSION_LEASE)
                    .await
                    .ok()
                    .and_then(|l| l.spec?.holder_identity)
                    .unwrap_or_default();
                if nonce != answered {
                    let attestation =
                        json!({"session": nonce, "incarnation": incarnation, "highestEpoch": 0});
                    if report(&client, &name, &standing, json!({"attestation": attestation})).await.is_ok() {
                        answered = nonce;
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }));
    }

    /// Reports what a host reports, with `more` on top, now and from now on.
    pub async fn report(&self, more: Value) -> Result<()> {
        report(&self.client, &self.name, &self.standing, more).await
    }

    /// Reports where the work on a Disk stands.
    pub async fn report_disk(&self, disk: &Disk, phase: &str) -> Result<()> {
        let ready = phase == "Ready";
        let body = json!({
            "apiVersion": "vireo.dev/v1alpha1", "kind": "Disk", "metadata": {"name": disk.name_any()},
            "status": {
                "observedGeneration": disk.metadata.generation, "phase": phase, "capacity": 1 << 30,
                "volume": format!("{}.qcow2", disk.uid().unwrap_or_default()),
                "conditions": [condition("Ready", ready), condition("Provisioned", ready)],
            },
        });
        let api: Api<Disk> = Api::namespaced(self.client.clone(), &disk.namespace().unwrap_or_default());
        api.patch_status(&disk.name_any(), &PatchParams::apply(NODE_MANAGER).force(), &Patch::Apply(body))
            .await?;
        Ok(())
    }

    /// A client that speaks as this host's daemon.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Reports about a VM under its present grant.
    pub async fn report_vm(
        &self,
        vm: &VirtualMachine,
        power: &str,
        holding: &str,
        stop_cause: Option<&str>,
    ) -> Result<()> {
        let placement = placement(vm)?;
        let ready = power == "On";
        let mut runtime = json!({
            "vmUid": vm.uid(), "holding": holding, "power": power, "since": "2026-01-01T00:00:00Z", "crashes": 0,
            "grant": {"incarnation": placement.incarnation, "epoch": placement.epoch, "id": placement.id},
        });
        if let (Some(cause), Some(map)) = (stop_cause, runtime.as_object_mut()) {
            map.insert("stopCause".into(), cause.into());
        }
        let body = json!({
            "apiVersion": "vireo.dev/v1alpha1", "kind": "VirtualMachine", "metadata": {"name": vm.name_any()},
            "status": {
                "observedGeneration": vm.metadata.generation,
                "state": if ready { "Running" } else { "Stopped" },
                "runtime": runtime,
                "conditions": [condition("Ready", ready), condition("Running", ready)],
            },
        });
        let api: Api<VirtualMachine> =
            Api::namespaced(self.client.clone(), &vm.namespace().unwrap_or_default());
        api.patch_status(&vm.name_any(), &PatchParams::apply(NODE_MANAGER).force(), &Patch::Apply(body))
            .await?;
        Ok(())
    }

    /// Ends an act.
    pub async fn report_act(&self, act: &VirtualMachineAction, phase: &str) -> Result<()> {
        let body = json!({
            "apiVersion": "vireo.dev/v1alpha1", "kind": "VirtualMachineAction", "metadata": {"name": act.name_any()},
            "status": {"phase": phase, "completedAt": "2026-01-01T00:00:00Z", "conditions": [condition("Ready", phase == "Succeeded")]},
        });
        let api: Api<VirtualMachineAction> =
            Api::namespaced(self.client.clone(), &act.namespace().unwrap_or_default());
        api.patch_status(&act.name_any(), &PatchParams::apply(NODE_MANAGER).force(), &Patch::Apply(body))
            .await?;
        Ok(())
    }
}

/// The placement of a VM.
pub fn placement(vm: &VirtualMachine) -> Result<Placement> {
    vm.status.as_ref().and_then(|s| s.placement.clone()).context("the VM has no placement")
}

fn condition(type_: &str, holds: bool) -> Value {
    json!({
        "type": type_, "status": if holds { "True" } else { "False" }, "reason": if holds { "Running" } else { "Stopped" },
        "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
    })
}

async fn renew(leases: &Api<Lease>, name: &str, incarnation: &str) -> Result<()> {
    let now = jiff::Timestamp::now();
    let now = jiff::fmt::temporal::DateTimePrinter::new().precision(Some(6)).timestamp_to_string(&now);
    let spec = json!({"spec": {"holderIdentity": incarnation, "leaseDurationSeconds": 40, "renewTime": now}});
    leases.patch(name, &PatchParams::default(), &Patch::Merge(spec)).await?;
    Ok(())
}

async fn report(client: &Client, name: &str, standing: &Mutex<Value>, more: Value) -> Result<()> {
    let api: Api<Host> = Api::all(client.clone());
    let mut status = json!({
        "daemonVersion": "0.1.0",
        "identity": {"publicKeySha256": "0".repeat(64), "machineUuid": format!("machine-of-{name}")},
        "versions": {"libvirt": "11.3.0", "qemu": "10.0.0", "kernel": "6.1"}, "accelerator": "tcg",
        "cpu": {
            "architecture": "x86_64", "model": "EPYC", "usableModels": ["EPYC", "qemu64"],
            "sockets": 1, "cores": 8, "threads": 1, "numaCells": 1,
        },
        "memory": MEMORY, "allocatable": {"cpus": CPUS, "memory": MEMORY}, "features": ["uefi", "tpm"],
        "conditions": [condition("HypervisorReady", true), condition("StorageReady", true), condition("NetworkReady", true)],
    });
    {
        // Server-side apply gives up what is left out, so what was said once is said every time.
        let mut standing = standing.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(standing), Some(more)) = (standing.as_object_mut(), more.as_object()) {
            standing.extend(more.clone());
        }
        if let (Some(status), Some(standing)) = (status.as_object_mut(), standing.as_object()) {
            status.extend(standing.clone());
        }
    }
    let body = json!({"apiVersion": "vireo.dev/v1alpha1", "kind": "Host", "metadata": {"name": name}, "status": status});
    api.patch_status(name, &PatchParams::apply(NODE_MANAGER).force(), &Patch::Apply(body)).await?;
    Ok(())
}
