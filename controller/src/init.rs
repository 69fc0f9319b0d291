//! Makes what an installation needs once: the HostCluster that VMs and Hosts name when they name none.

use kube::{
    Api, Client, Config,
    api::{ObjectMeta, PostParams},
};
use vireo_crds::v1alpha1::{HostCluster, HostClusterSpec};

use crate::error::Error;

/// Name that VMs and Hosts have in `spec.cluster` when their author says nothing.
const DEFAULT_CLUSTER: &str = "default";

/// Makes the HostCluster `default` unless there is one.
pub async fn init(config: Config) -> Result<(), Error> {
    let server = config.cluster_url.to_string();
    let client = Client::try_from(config).map_err(|e| Error::Connect { server, source: Box::new(e) })?;
    let spec: HostClusterSpec = serde_json::from_value(serde_json::json!({}))
        .map_err(|e| Error::Document { what: "HostCluster default".into(), cause: e.to_string() })?;
    let metadata = ObjectMeta { name: Some(DEFAULT_CLUSTER.into()), ..ObjectMeta::default() };
    let cluster = HostCluster { metadata, spec, status: None };
    match Api::all(client).create(&PostParams::default(), &cluster).await {
        Ok(_) => tracing::info!("HostCluster {DEFAULT_CLUSTER} is made"),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            tracing::info!("HostCluster {DEFAULT_CLUSTER} is there already")
        }
        Err(error) => return Err(Error::api(format!("create HostCluster {DEFAULT_CLUSTER}"))(error)),
    }
    Ok(())
}
