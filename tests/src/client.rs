//! Clients of the API server for those who test it.

use std::{path::Path, time::Duration};

use anyhow::Result;
use hyper_util::{client::legacy, rt::TokioExecutor};
use kube::{
    Client, Config,
    client::{ConfigExt, retry::RetryPolicy},
    config::{KubeConfigOptions, Kubeconfig},
};
use tower::{BoxError, ServiceBuilder, retry::RetryLayer};

/// The API server closes an idle connection after 90 s, and kube's own client keeps one just as long: a request sent
/// at that moment is lost. So the connections of a test go first.
const KEEP_IDLE: Duration = Duration::from_secs(30);

/// What a client needs to speak as this kubeconfig says.
pub async fn config(kubeconfig: &Path) -> Result<Config> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    Ok(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)
}

/// kube's own client but for its idle connections: it asks again what the server was too busy to answer.
pub fn client(config: &Config) -> Result<Client> {
    let connector = config.rustls_https_connector()?;
    let pool = legacy::Client::builder(TokioExecutor::new()).pool_idle_timeout(KEEP_IDLE).build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(RetryPolicy::server_retry()))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(pool);
    Ok(Client::new(service, config.default_namespace.clone()))
}
