//! Opens the one HTTP/2 connection on which a session watches and writes.
//!
//! kube's own client keeps a pool and may send a request on a new connection after the old one broke; a write
//! sent that way could reach an API server that has forgotten everything. Here the connection is the client: once
//! it is gone every request fails, and so does the session.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use fail_points::ApiLayer;
use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::{
    Client, Config,
    client::{Body, ConfigExt},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tower::{BoxError, ServiceBuilder};

use crate::error::Error;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that answers no ping for this long is gone.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
const PING_INTERVAL: Duration = Duration::from_secs(10);
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;

/// One connection to the API server. Dropped, it is cut, requests under way included.
pub struct Connection {
    client: Client,
    closed: CancellationToken,
    driver: tokio::task::AbortHandle,
}

impl Connection {
    /// Connects. There is no second attempt behind the caller's back, now or later.
    pub async fn open(config: &Config) -> Result<Self, Error> {
        let server = config.cluster_url.to_string();
        let failed = |source: BoxError| Error::Connect { server: server.clone(), source };
        let io = tokio::time::timeout(CONNECT_TIMEOUT, tls(config))
            .await
            .map_err(|_| failed("no answer in time".into()))?
            .map_err(failed)?;
        let (sender, driver) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(io)
            .await
            .map_err(|e| failed(e.into()))?;

        let service = ServiceBuilder::new()
            .layer(config.base_uri_layer())
            .option_layer(config.auth_layer().map_err(|e| failed(e.into()))?)
            .layer(config.extra_headers_layer().map_err(|e| failed(e.into()))?)
            .layer(ApiLayer)
            .map_err(BoxError::from)
            .service(OneConnection { sender });
        let closed = CancellationToken::new();
        let guard = closed.clone().drop_guard();
        let driver = tokio::spawn(async move {
            let _closed_when_done = guard;
            if let Err(error) = driver.await {
                tracing::debug!(%error, "the session's connection broke");
            }
        })
        .abort_handle();
        Ok(Self { client: Client::new(service, config.default_namespace.clone()), closed, driver })
    }

    /// A client that uses this connection and no other.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Cancelled when the connection is gone.
    pub fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn tls(config: &Config) -> Result<TokioIo<tokio_rustls::client::TlsStream<TcpStream>>, BoxError> {
    let url = &config.cluster_url;
    if url.scheme() != Some(&http::uri::Scheme::HTTPS) {
        return Err("the server's address must begin with https://".into());
    }
    if config.proxy_url.is_some() {
        return Err(
            "the controller must reach the API server directly: remove proxy-url from the kubeconfig".into(),
        );
    }
    let host = url.host().ok_or("the server's address names no host")?.trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, url.port_u16().unwrap_or(443))).await?;
    stream.set_nodelay(true)?;
    let mut tls = config.rustls_client_config()?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let name = config.tls_server_name.clone().unwrap_or_else(|| host.to_owned());
    let name = rustls::pki_types::ServerName::try_from(name)?;
    let stream = TlsConnector::from(std::sync::Arc::new(tls)).connect(name, stream).await?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err("the server does not speak HTTP/2; is there a proxy in between?".into());
    }
    Ok(TokioIo::new(stream))
}

#[derive(Clone)]
struct OneConnection {
    sender: http2::SendRequest<Body>,
}

impl tower::Service<Request<Body>> for OneConnection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.sender.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut sender = self.sender.clone();
        Box::pin(async move { sender.send_request(request).await })
    }
}
