//! VMs for the hosts: creates them at a pace, and watches them as a user's client would, with one watch.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, ObjectMeta, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};
use vireo_crds::{
    condition,
    v1alpha1::{Disk, Network, StorageDomain, VirtualMachine, VmState},
};

/// Disks being created at once; VMs come one after the other.
const AT_ONCE: usize = 8;

/// How fast VMs are created.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    /// One every so often, whatever becomes of the one before.
    Every(Duration),
    /// One client, the next create as soon as the last was answered.
    Sequential,
}

/// What one watch has shown.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// VMs there are.
    pub present: BTreeSet<String>,
    /// VMs that run now, and since when they were first seen to.
    pub running: BTreeMap<String, Instant>,
    /// Disks that are Ready.
    pub disks: BTreeSet<String>,
}

/// Watches the VMs and Disks of one namespace.
pub struct Observer {
    seen: Arc<Mutex<Seen>>,
    counts: watch::Receiver<(usize, usize, usize)>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Observer {
    /// Begins to watch.
    pub fn start(client: &Client, namespace: &str) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (sender, counts) = watch::channel((0, 0, 0));
        let sender = Arc::new(sender);
        let note = {
            let seen = Arc::clone(&seen);
            move |change: &dyn Fn(&mut Seen)| {
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                change(&mut seen);
                sender.send_replace((seen.present.len(), seen.running.len(), seen.disks.len()));
            }
        };
        let vms: Api<VirtualMachine> = Api::namespaced(client.clone(), namespace);
        let disks: Api<Disk> = Api::namespaced(client.clone(), namespace);
        let (note_vm, note_disk) = (note.clone(), note);
        let tasks = [
            tokio::spawn(async move {
                let mut events = std::pin::pin!(watcher(vms, watcher::Config::default()).default_backoff());
                while let Some(event) = events.next().await {
                    let now = Instant::now();
                    match event {
                        Ok(watcher::Event::Init) => note_vm(&|seen| {
                            seen.present.clear();
                            seen.running.clear();
                        }),
                        Ok(watcher::Event::InitApply(vm) | watcher::Event::Apply(vm)) => {
                            let runs = vm.status.as_ref().and_then(|s| s.state) == Some(VmState::Running);
                            let name = vm.name_any();
                            note_vm(&|seen| {
                                seen.present.insert(name.clone());
                                if runs {
                                    seen.running.entry(name.clone()).or_insert(now);
                                } else {
                                    seen.running.remove(&name);
                                }
                            });
                        }
                        Ok(watcher::Event::Delete(vm)) => note_vm(&|seen| {
                            seen.present.remove(&vm.name_any());
                            seen.running.remove(&vm.name_any());
                        }),
                        Ok(watcher::Event::InitDone) | Err(_) => {}
                    }
                }
            }),
            tokio::spawn(async move {
                let mut events = std::pin::pin!(watcher(disks, watcher::Config::default()).default_backoff());
                while let Some(event) = events.next().await {
                    match event {
                        Ok(watcher::Event::InitApply(disk) | watcher::Event::Apply(disk)) => {
                            let conditions = disk.status.as_ref().map(|s| s.conditions.as_slice());
                            if condition::is_true(conditions.unwrap_or_default(), "Ready") {
                                note_disk(&|seen| _ = seen.disks.insert(disk.name_any()));
                            }
                        }
                        Ok(watcher::Event::Delete(disk)) => {
                            note_disk(&|seen| _ = seen.disks.remove(&disk.name_any()));
                        }
                        Ok(_) | Err(_) => {}
                    }
                }
            }),
        ];
        Self { seen, counts, tasks }
    }

    /// What has been seen so far.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn wait(
        &self,
        what: &str,
        limit: Duration,
        holds: impl FnMut(&(usize, usize, usize)) -> bool,
    ) -> Result<()> {
        let mut counts = self.counts.clone();
        let waited = tokio::time::timeout(limit, counts.wait_for(holds)).await;
        match waited {
            Ok(seen) => seen.map(drop).context("the watch has ended"),
            Err(_) => {
                let (present, running, disks) = *self.counts.borrow();
                Err(anyhow!(
                    "{what}: not within {limit:?}; there are {present} VMs, {running} run, {disks} Disks are Ready"
                ))
            }
        }
    }

    /// Until so many VMs run.
    pub async fn running(&self, count: usize, limit: Duration) -> Result<()> {
        self.wait(&format!("{count} VMs run"), limit, |(_, running, _)| *running == count).await
    }

    /// Until so many Disks are Ready.
    pub async fn disks(&self, count: usize, limit: Duration) -> Result<()> {
        self.wait(&format!("{count} Disks are Ready"), limit, |(_, _, disks)| *disks >= count).await
    }

    /// Until no VM is left.
    pub async fn gone(&self, limit: Duration) -> Result<()> {
        self.wait("every VM is gone", limit, |(present, _, _)| *present == 0).await
    }
}

/// What VMs are made of.
pub struct Load {
    client: Client,
    /// Where they are.
    pub namespace: String,
}

impl Load {
    /// Makes the namespace, a network `nat` and a storage domain `shared`, unless they are there.
    pub async fn prepare(client: &Client, namespace: &str) -> Result<Self> {
        let metadata = ObjectMeta { name: Some(namespace.into()), ..ObjectMeta::default() };
        let object = Namespace { metadata, ..Namespace::default() };
        make(&Api::all(client.clone()), &object).await?;
        let domain = json!({"apiVersion": "vireo.dev/v1alpha1", "kind": "StorageDomain", "metadata": {"name": "shared"}, "spec": {"directory": {"path": "/srv/vireo/shared", "shared": true}}});
        make(&Api::<StorageDomain>::all(client.clone()), &serde_json::from_value(domain)?).await?;
        let network = json!({"apiVersion": "vireo.dev/v1alpha1", "kind": "Network", "metadata": {"name": "nat"}, "spec": {"nat": {"cidr": "10.88.0.0/24", "dhcp": {}}}});
        make(&Api::<Network>::all(client.clone()), &serde_json::from_value(network)?).await?;
        Ok(Self { client: client.clone(), namespace: namespace.into() })
    }

    /// The VMs.
    pub fn vms(&self) -> Api<VirtualMachine> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn disk_api(&self) -> Api<Disk> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// A Disk for each of these VMs.
    pub async fn create_disks(&self, names: &[String]) -> Result<()> {
        let api = self.disk_api();
        futures::stream::iter(names)
            .map(|name| {
                let api = api.clone();
                async move {
                    let disk: Disk = serde_json::from_value(json!({
                        "apiVersion": "vireo.dev/v1alpha1", "kind": "Disk", "metadata": {"name": name},
                        "spec": {"storageDomain": "shared", "size": "1Gi"},
                    }))?;
                    api.create(&PostParams::default(), &disk).await.map(drop).context("create a Disk")
                }
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    /// A VM on the existing Disk of its name.
    pub fn vm(name: &str) -> Result<VirtualMachine> {
        Ok(serde_json::from_value(json!({
            "apiVersion": "vireo.dev/v1alpha1", "kind": "VirtualMachine", "metadata": {"name": name},
            "spec": Self::spec(name),
        }))?)
    }

    fn spec(name: &str) -> Value {
        json!({
            "memory": {"size": "256Mi"},
            "interfaces": [{"name": "eth0", "network": "nat"}],
            "disks": [{"name": "root", "disk": {"name": name}}],
        })
    }

    /// Creates these VMs; when each create was sent.
    pub async fn create_vms(&self, names: &[String], pace: Pace) -> Result<BTreeMap<String, Instant>> {
        let api = self.vms();
        let mut sent = BTreeMap::new();
        match pace {
            Pace::Sequential => {
                for name in names {
                    let vm = Self::vm(name)?;
                    sent.insert(name.clone(), Instant::now());
                    api.create(&PostParams::default(), &vm).await.context("create a VM")?;
                }
            }
            Pace::Every(pause) => {
                let mut ticks = tokio::time::interval(pause);
                let mut creates = tokio::task::JoinSet::new();
                for name in names {
                    let (vm, api) = (Self::vm(name)?, api.clone());
                    ticks.tick().await;
                    sent.insert(name.clone(), Instant::now());
                    creates.spawn(async move { api.create(&PostParams::default(), &vm).await.map(drop) });
                }
                while let Some(created) = creates.join_next().await {
                    created?.context("create a VM")?;
                }
            }
        }
        Ok(sent)
    }

    /// Asks for the end of every VM.
    pub async fn delete_vms(&self) -> Result<()> {
        self.vms().delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
        Ok(())
    }

    /// Asks for the end of every Disk.
    pub async fn delete_disks(&self) -> Result<()> {
        self.disk_api().delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
        Ok(())
    }
}

async fn make<K>(api: &Api<K>, object: &K) -> Result<()>
where
    K: kube::Resource + Clone + serde::Serialize + serde::de::DeserializeOwned + std::fmt::Debug,
{
    match api.create(&PostParams::default(), object).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error.into()),
    }
}
