//! Writes the daemon's part of a Disk's status, conditional on the version of the object it was decided from.

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use vireo_crds::{
    meta::{GROUP, NODE_MANAGER, VERSION},
    v1alpha1::{Disk, DiskStatus},
};

use crate::error::RetryClass;

/// A report that was not taken.
#[derive(Debug, thiserror::Error)]
pub enum DiskReportError {
    /// The object changed meanwhile: look again, then decide again.
    #[error("the Disk changed meanwhile")]
    Conflict,
    /// The object is gone.
    #[error("the Disk is gone")]
    Gone,
    /// The API server did not take it.
    #[error("cannot write the status of Disk {disk}: {source}")]
    Api {
        /// Which Disk.
        disk: String,
        /// Why.
        source: Box<kube::Error>,
    },
}

impl DiskReportError {
    /// What to do about it.
    pub fn class(&self) -> RetryClass {
        match self {
            Self::Conflict | Self::Gone => RetryClass::WaitFor,
            Self::Api { .. } => RetryClass::Transient,
        }
    }
}

/// Where reports about Disks go.
pub trait DiskReports: Send + Sync + 'static {
    /// Writes a report about this very version of the Disk and returns the new one.
    fn write<'a>(
        &'a self,
        disk: &'a Disk,
        report: DiskStatus,
    ) -> BoxFuture<'a, Result<Arc<Disk>, DiskReportError>>;
}

/// Reports to the API server.
#[derive(Clone)]
pub struct KubeDiskReports {
    client: Client,
}

impl KubeDiskReports {
    /// Reports through this client.
    pub fn new(client: Client) -> Self {
        Self { client }
    }
}

impl DiskReports for KubeDiskReports {
    fn write<'a>(
        &'a self,
        disk: &'a Disk,
        report: DiskStatus,
    ) -> BoxFuture<'a, Result<Arc<Disk>, DiskReportError>> {
        async move {
            let meta = &disk.metadata;
            let (namespace, name) = (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
            let body = json!({
                "apiVersion": format!("{GROUP}/{VERSION}"),
                "kind": "Disk",
                "metadata": {"name": name, "namespace": namespace, "uid": meta.uid, "resourceVersion": meta.resource_version},
                "status": report,
            });
            let api: Api<Disk> = Api::namespaced(self.client.clone(), &namespace);
            match api.patch_status(&name, &PatchParams::apply(NODE_MANAGER).force(), &Patch::Apply(&body)).await {
                Ok(disk) => Ok(Arc::new(disk)),
                Err(kube::Error::Api(status)) if status.is_conflict() => Err(DiskReportError::Conflict),
                Err(kube::Error::Api(status)) if status.is_not_found() => Err(DiskReportError::Gone),
                Err(source) => Err(DiskReportError::Api { disk: format!("{namespace}/{name}"), source: Box::new(source) }),
            }
        }
        .boxed()
    }
}
