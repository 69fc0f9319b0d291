//! Makes storage domains and disks of this host true: one serial task per domain and per Disk, so that one stuck
//! server or one long import delays nothing else. Decisions are made by `node_plan::storage`.

pub mod beneath;
pub mod domain;
pub mod error;
pub mod files;
pub mod layout;
pub mod qemu_img;
pub mod receive;
pub mod token;
pub mod volume;

mod disk_steps;
mod disk_task;
mod domain_task;
mod fetch;
mod trash;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vireo_crds::v1alpha1::{Disk, HostStorageDomain, StorageDomain};

use crate::disk_report::DiskReports;
use disk_task::DiskTask;
use domain_task::{DomainState, DomainTask, DomainWish};
use qemu_img::QemuImg;

/// States of all domains of this host, by name.
type Domains = BTreeMap<String, DomainState>;

/// What does not change while the daemon runs.
#[derive(Debug, Clone)]
pub struct StorageConfig {
    /// Name of this Host.
    pub host: String,
    /// qemu-img.
    pub qemu_img: PathBuf,
}

/// The whole picture, as the API server has it.
#[derive(Debug, Clone, Default)]
pub struct StorageInput {
    /// This installation; none until it is known.
    pub installation_id: Option<String>,
    /// Labels of this Host.
    pub host_labels: BTreeMap<String, String>,
    /// All storage domains.
    pub domains: Vec<Arc<StorageDomain>>,
    /// Disks whose `status.placement.host` is this host.
    pub disks: Vec<Arc<Disk>>,
}

/// Handle of the storage workers.
#[derive(Clone)]
pub struct Storage {
    input: watch::Sender<StorageInput>,
    readiness: watch::Receiver<Vec<HostStorageDomain>>,
}

impl Storage {
    /// Starts the workers; they end when `stop` is cancelled.
    pub fn start(config: StorageConfig, reports: Arc<dyn DiskReports>, stop: CancellationToken) -> Self {
        let (input, inputs) = watch::channel(StorageInput::default());
        let (said, readiness) = watch::channel(vec![]);
        let (domains, _) = watch::channel(Domains::new());
        let supervisor = Supervisor {
            qemu_img: QemuImg::new(&config.qemu_img),
            host: config.host,
            reports,
            domains: Arc::new(domains),
            domain_tasks: HashMap::new(),
            disk_tasks: HashMap::new(),
            stop,
        };
        tokio::spawn(supervisor.run(inputs, said));
        Self { input, readiness }
    }

    /// Takes the newest picture.
    pub fn update(&self, input: StorageInput) {
        self.input.send_replace(input);
    }

    /// What the Host says of its storage domains, by name.
    pub fn readiness(&self) -> watch::Receiver<Vec<HostStorageDomain>> {
        self.readiness.clone()
    }
}

struct Supervisor {
    host: String,
    qemu_img: QemuImg,
    reports: Arc<dyn DiskReports>,
    domains: Arc<watch::Sender<Domains>>,
    domain_tasks: HashMap<String, watch::Sender<DomainWish>>,
    disk_tasks: HashMap<String, watch::Sender<Arc<Disk>>>,
    stop: CancellationToken,
}

impl Supervisor {
    async fn run(
        mut self,
        mut inputs: watch::Receiver<StorageInput>,
        said: watch::Sender<Vec<HostStorageDomain>>,
    ) {
        let mut states = self.domains.subscribe();
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                changed = inputs.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let input = inputs.borrow_and_update().clone();
                    self.sort_domains(&input);
                    self.sort_disks(&input);
                }
                changed = states.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let reports: Vec<HostStorageDomain> = states.borrow_and_update().values().map(DomainState::report).collect();
                    said.send_if_modified(|old| std::mem::replace(old, reports) != *old);
                }
            }
        }
    }

    /// One task per domain this host should reach. A domain that goes is only no longer looked at.
    fn sort_domains(&mut self, input: &StorageInput) {
        let wishes: HashMap<String, DomainWish> = input
            .domains
            .iter()
            .filter(|domain| domain.spec.host_selector.matches(Some(&input.host_labels)))
            .filter_map(|domain| DomainWish::of(domain, &self.host, input.installation_id.as_deref()))
            .map(|wish| (wish.intent.name.clone(), wish))
            .collect();
        self.domain_tasks.retain(|name, _| wishes.contains_key(name));
        self.domains.send_if_modified(|states| {
            let before = states.len();
            states.retain(|name, _| wishes.contains_key(name));
            states.len() != before
        });
        for (name, wish) in wishes {
            match self.domain_tasks.get(&name) {
                Some(task) => {
                    task.send_if_modified(|old| std::mem::replace(old, wish.clone()) != *old);
                }
                None => {
                    let (sender, wishes) = watch::channel(wish);
                    tokio::spawn(
                        DomainTask { wishes, domains: self.domains.clone(), stop: self.stop.clone() }.run(),
                    );
                    self.domain_tasks.insert(name, sender);
                }
            }
        }
    }

    fn sort_disks(&mut self, input: &StorageInput) {
        let disks: HashMap<&str, &Arc<Disk>> =
            input.disks.iter().filter_map(|disk| Some((disk.metadata.uid.as_deref()?, disk))).collect();
        self.disk_tasks.retain(|uid, _| disks.contains_key(uid.as_str()));
        for (uid, disk) in disks {
            match self.disk_tasks.get(uid) {
                Some(task) => {
                    task.send_if_modified(|old| {
                        std::mem::replace(old, disk.clone()).metadata.resource_version
                            != old.metadata.resource_version
                    });
                }
                None => {
                    let (sender, receiver) = watch::channel(disk.clone());
                    let task = DiskTask {
                        host: self.host.clone(),
                        qemu_img: self.qemu_img.clone(),
                        reports: self.reports.clone(),
                        disk: receiver,
                        domains: self.domains.subscribe(),
                        stop: self.stop.clone(),
                    };
                    tokio::spawn(task.run());
                    self.disk_tasks.insert(uid.to_owned(), sender);
                }
            }
        }
    }
}
