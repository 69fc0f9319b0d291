//! Serves health, readiness and metrics, on a unix socket of this host or a loopback port. Decides nothing.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use axum::{Router, http::StatusCode, routing::get};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A socket file of this host, readable by root.
    Unix(PathBuf),
    /// A port; meant for loopback.
    Tcp(SocketAddr),
}

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        text.parse()
            .map(Self::Tcp)
            .map_err(|_| format!("\"{text}\" is neither unix:/path nor an address such as 127.0.0.1:9441"))
    }
}

/// Serves until `stop`.
pub async fn serve(
    listen: Listen,
    metrics: Arc<Metrics>,
    ready: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
    stop: CancellationToken,
) {
    let scrape = move || {
        let metrics = Arc::clone(&metrics);
        async move {
            let mut text = String::new();
            match prometheus_client::encoding::text::encode(&mut text, &metrics.registry) {
                Ok(()) => (StatusCode::OK, text),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            }
        }
    };
    let readiness = move || {
        let answer = match ready() {
            Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
            Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        };
        async move { answer }
    };
    let routes = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readiness))
        .route("/metrics", get(scrape));
    let done = stop.cancelled_owned();
    let outcome = match &listen {
        Listen::Unix(path) => {
            let _ = std::fs::remove_file(path);
            match UnixListener::bind(path) {
                Ok(listener) => axum::serve(listener, routes).with_graceful_shutdown(done).await,
                Err(error) => Err(error),
            }
        }
        Listen::Tcp(address) => match TcpListener::bind(address).await {
            Ok(listener) => axum::serve(listener, routes).with_graceful_shutdown(done).await,
            Err(error) => Err(error),
        },
    };
    if let Err(error) = outcome {
        tracing::error!(%error, ?listen, "health and metrics are not served");
    }
}
