//! Clients of the API server for those who test it.

use std::time::Duration;

use anyhow::Result;
use hyper_util::{client::legacy, rt::TokioExecutor};
use kube::{Client, Config, client::ConfigExt};
use tower::{BoxError, ServiceBuilder};

/// The API server closes an idle connection after 90 s, and kube's own client keeps one just as long: a request sent
/// at that moment is lost. Who tests sends each request once, so his connections must go first.
const KEEP_IDLE: Duration = Duration::from_secs(30);

/// A client that tries nothing again, so that a test sees what the server said.
pub fn client(config: &Config) -> Result<Client> {
    let connector = config.rustls_https_connector()?;
    let pool = legacy::Client::builder(TokioExecutor::new()).pool_idle_timeout(KEEP_IDLE).build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(pool);
    Ok(Client::new(service, config.default_namespace.clone()))
}
