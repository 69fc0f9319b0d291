//! Serves metrics, health and readiness.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::error::Error;

/// What is asked of the rest of the process.
pub trait Probe: Send + Sync + 'static {
    /// The text Prometheus reads.
    fn metrics(&self) -> Result<String, std::fmt::Error>;
    /// Why this replica cannot do its part, if it cannot. A standby that watches the leader does its part.
    fn not_ready(&self) -> Option<String>;
}

/// Binds the address; port 0 takes a free one. Gives the address bound.
pub async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let failed = |e: std::io::Error| Error::Config(format!("--http {address}: {e}; choose another address"));
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Serves until `shutdown`.
pub async fn serve(listener: TcpListener, probe: Arc<dyn Probe>, shutdown: CancellationToken) {
    let app = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(|State(probe): State<Arc<dyn Probe>>| async move { answer(probe.not_ready()) }))
        .with_state(probe);
    let served = axum::serve(listener, app).with_graceful_shutdown(async move { shutdown.cancelled().await });
    if let Err(error) = served.await {
        tracing::error!(%error, "metrics and health are not served any more");
    }
}

async fn metrics(State(probe): State<Arc<dyn Probe>>) -> Response {
    match probe.metrics() {
        Ok(text) => {
            ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
                .into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn answer(trouble: Option<String>) -> Response {
    match trouble {
        None => (StatusCode::OK, "ok\n").into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}
