//! Storage and networks of this host: the real workers, or those of a host in memory. Passes the picture on and hands
//! back readiness; decides nothing.

use std::{path::PathBuf, sync::Arc, time::Duration};

use kube::{Client, ResourceExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vireo_crds::v1alpha1::{HostNetwork, HostStorageDomain};

use crate::{
    disk_report::KubeDiskReports,
    host::memory_storage,
    network::{NetworkInput, Networks, NetworksConfig, nat::NatHost},
    objects::Objects,
    report::{Reporter, WriteError},
    storage::{Storage, StorageConfig, StorageInput},
};

/// Pauses between attempts to report a Disk of a host in memory.
const PROVISION_PAUSES: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
];

/// Which workers.
#[derive(Clone)]
pub enum BackingConfig {
    /// Directories, bridges, libvirt networks of this machine.
    Real {
        /// qemu-img.
        qemu_img: PathBuf,
        /// Makes NAT networks.
        nat: Arc<dyn NatHost>,
    },
    /// Everything is ready at once.
    Memory,
}

/// The workers, started.
pub enum Backing {
    /// Of this machine.
    Real {
        /// Storage.
        storage: Storage,
        /// Networks.
        networks: Networks,
    },
    /// In memory.
    Memory {
        /// API server.
        client: Client,
        /// Writes reports.
        reporter: Arc<Reporter>,
        /// Readiness of domains.
        domains: watch::Sender<Vec<HostStorageDomain>>,
        /// Readiness of networks.
        networks: watch::Sender<Vec<HostNetwork>>,
    },
}

impl Backing {
    /// Starts the workers of `host`.
    pub fn start(
        config: BackingConfig,
        host: &str,
        client: Client,
        reporter: Arc<Reporter>,
        stop: CancellationToken,
    ) -> Self {
        match config {
            BackingConfig::Real { qemu_img, nat } => Self::Real {
                storage: Storage::start(
                    StorageConfig { host: host.into(), qemu_img },
                    Arc::new(KubeDiskReports::new(client)),
                    stop.clone(),
                ),
                networks: Networks::start(NetworksConfig { host: host.into(), stop }, nat),
            },
            BackingConfig::Memory => Self::Memory {
                client,
                reporter,
                domains: watch::Sender::default(),
                networks: watch::Sender::default(),
            },
        }
    }

    /// Readiness of storage domains.
    pub fn domains(&self) -> watch::Receiver<Vec<HostStorageDomain>> {
        match self {
            Self::Real { storage, .. } => storage.readiness(),
            Self::Memory { domains, .. } => domains.subscribe(),
        }
    }

    /// Readiness of networks.
    pub fn networks(&self) -> watch::Receiver<Vec<HostNetwork>> {
        match self {
            Self::Real { networks, .. } => networks.readiness(),
            Self::Memory { networks, .. } => networks.subscribe(),
        }
    }

    /// Passes on what the API server says of storage, once it is complete.
    pub fn update_storage(&self, objects: &Objects) {
        let (Some((domains, disks)), Some(host)) = (objects.storage(), objects.host()) else { return };
        match self {
            Self::Real { storage, .. } => {
                let host_labels = host.labels().clone();
                storage.update(StorageInput {
                    installation_id: objects.installation_id(),
                    host_labels,
                    domains,
                    disks,
                });
            }
            Self::Memory { client, reporter, domains: ready, .. } => {
                ready.send_replace(memory_storage::domains(&domains));
                let name = objects.host_name().to_owned();
                let (client, reporter) = (client.clone(), Arc::clone(reporter));
                tokio::spawn(async move {
                    for disk in disks {
                        let local = domains.iter().any(|domain| {
                            domain.name_any() == disk.spec.storage_domain && !domain.spec.directory.shared
                        });
                        for pause in PROVISION_PAUSES {
                            match memory_storage::provision(&client, &reporter, &name, &disk, local).await {
                                // One that has changed or is gone comes again by the watch, or never.
                                Ok(()) | Err(WriteError::Conflict(_) | WriteError::Gone(_)) => break,
                                Err(error) => {
                                    tracing::debug!(%error, "a Disk of a host in memory was not reported");
                                }
                            }
                            tokio::time::sleep(pause).await;
                        }
                    }
                });
            }
        }
    }

    /// Passes on what the API server says of networks, once it is complete.
    pub fn update_networks(&self, objects: &Objects) {
        let (Some(all), Some(host)) = (objects.networks(), objects.host()) else { return };
        match self {
            Self::Real { networks, .. } => {
                let host_labels = host.labels().clone();
                networks.update(NetworkInput {
                    installation_id: objects.installation_id(),
                    host_labels,
                    networks: all,
                });
            }
            Self::Memory { networks, .. } => {
                networks.send_replace(memory_storage::networks(&all));
            }
        }
    }
}
