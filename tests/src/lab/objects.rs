//! Reads objects of a lab's API in this process: tests look often, and each kubectl costs a tenth of a second of a core.

use std::{
    path::PathBuf,
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use http::Request;
use kube::Client;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

use crate::client::{client, config};

/// A server that was killed must be noticed while a test waits for it.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// The administrator's view of the objects of one lab.
pub struct Objects {
    kubeconfig: PathBuf,
    client: Mutex<Option<Client>>,
}

impl Objects {
    /// Nothing is read before the first object is asked for.
    pub fn new(kubeconfig: PathBuf) -> Self {
        Self { kubeconfig, client: Mutex::default() }
    }

    /// An object by the name or short name of its kind; in namespace `default` if the kind has namespaces.
    pub fn get(&self, kind: &str, name: &str) -> Result<Value> {
        let path = match kind {
            "vvm" => format!("/apis/vireo.dev/v1alpha1/namespaces/default/virtualmachines/{name}"),
            "vdisk" => format!("/apis/vireo.dev/v1alpha1/namespaces/default/disks/{name}"),
            "vact" => format!("/apis/vireo.dev/v1alpha1/namespaces/default/virtualmachineactions/{name}"),
            "vhost" => format!("/apis/vireo.dev/v1alpha1/hosts/{name}"),
            "vsd" => format!("/apis/vireo.dev/v1alpha1/storagedomains/{name}"),
            "network" => format!("/apis/vireo.dev/v1alpha1/networks/{name}"),
            "crd" => format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"),
            other => bail!("tests read no objects of kind {other}; name its path here"),
        };
        let request = Request::get(path).body(Vec::new())?;
        runtime()?.block_on(async {
            let client = self.client().await?;
            let answer = tokio::time::timeout(ANSWER_LIMIT, client.request::<Value>(request));
            let mut object = answer.await.context("no answer")??;
            // As kubectl shows it, and so that it can be applied again.
            object["metadata"].as_object_mut().context("no metadata")?.remove("managedFields");
            Ok(object)
        })
    }

    async fn client(&self) -> Result<Client> {
        let kept = self.client.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(client) = kept {
            return Ok(client);
        }
        let client = client(&config(&self.kubeconfig).await?)?;
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = Some(client.clone());
        Ok(client)
    }
}

/// One for all tests of a binary: connections live on it between two looks.
fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    RUNTIME
        .get_or_init(|| {
            let built = Builder::new_multi_thread().worker_threads(1).enable_all().build();
            built.map_err(|error| error.to_string())
        })
        .as_ref()
        .map_err(|error| anyhow::anyhow!("{error}"))
}
