//! Fetches an image by http or https. The name is resolved here, every address is judged, and the connection goes to
//! one of those addresses: a name that changes its answer in between gains nothing. Redirects are followed here, too.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use node_plan::{
    image,
    url_policy::{self, Fetch, MAX_REDIRECTS, UrlRefusal},
};
use reqwest::{Certificate, Client, Response, StatusCode, header, redirect::Policy};
use tokio::sync::mpsc;

use super::{
    domain,
    error::StorageError,
    receive::{self, Bounds, Progress, Receiver},
    volume::blocking,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// Chunks that may wait for the disk before the network waits.
const QUEUE: usize = 16;

/// What to fetch.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The URL, not yet judged.
    pub url: String,
    /// Digest it must have.
    pub checksum: Option<String>,
    /// Certificates to trust besides the public ones, PEM.
    pub ca_bundle: Option<String>,
    /// Prefixes the domain lists.
    pub allowed: Vec<String>,
}

/// Fetches into a new file and returns the digest of what came.
pub async fn fetch(
    wanted: &Wanted,
    to: &Path,
    bounds: Bounds,
    progress: Arc<Progress>,
) -> Result<String, StorageError> {
    let (shown, mut response) = open(wanted).await?;
    let length = response.content_length();
    if let Some(length) = length {
        if length > image::longest_file(bounds.disk_size) {
            return Err(receive::too_long(length, bounds.disk_size));
        }
        let (domain, keep_free) = (bounds.domain.clone(), bounds.keep_free);
        blocking(move || receive::enough(domain::available(&domain)?, length, keep_free)).await?;
    }
    progress.expect(length);
    let (sender, mut chunks) = mpsc::channel::<Vec<u8>>(QUEUE);
    let (path, checksum) = (to.to_owned(), wanted.checksum.clone());
    let writing = tokio::task::spawn_blocking(move || {
        let mut receiver = Receiver::new(&path, bounds, progress)?;
        while let Some(chunk) = chunks.blocking_recv() {
            if chunk.is_empty() {
                return receiver.finish(checksum.as_deref());
            }
            receiver.take(&chunk)?;
        }
        // The fetch was given up; whoever plans next removes the file.
        Err(StorageError::Worker("the fetch was given up".into()))
    });
    let failed = loop {
        match response.chunk().await {
            Ok(Some(chunk)) if chunk.is_empty() => {}
            Ok(Some(chunk)) => {
                if sender.send(chunk.to_vec()).await.is_err() {
                    break None;
                }
            }
            Ok(None) => {
                // An empty chunk says that the end is the real one. A writer that is gone has an error to tell.
                let _ = sender.send(vec![]).await;
                break None;
            }
            Err(error) => break Some(http(&shown, &error)),
        }
    };
    drop(sender);
    let written = writing.await.unwrap_or_else(|e| Err(StorageError::Worker(e.to_string())));
    match failed {
        Some(error) => Err(error),
        None => written,
    }
}

/// Follows redirects until somebody answers with bytes.
async fn open(wanted: &Wanted) -> Result<(String, Response), StorageError> {
    let mut fetch = url_policy::check_url(&wanted.url, &wanted.allowed)?;
    for _ in 0..=MAX_REDIRECTS {
        let shown = url_policy::shown(&fetch.url);
        let addresses = resolve(&fetch, &shown).await?;
        let client = client(&fetch, &addresses, wanted.ca_bundle.as_deref())?;
        let response = client.get(fetch.url.clone()).send().await.map_err(|e| http(&shown, &e))?;
        let status = response.status();
        if status.is_redirection() {
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let location = location.ok_or_else(|| StorageError::Http {
                url: shown.clone(),
                why: format!("answers {status} without a location"),
            })?;
            fetch = fetch.redirect(location, &wanted.allowed)?;
            continue;
        }
        if status == StatusCode::OK {
            return Ok((shown, response));
        }
        if status.is_client_error()
            && status != StatusCode::TOO_MANY_REQUESTS
            && status != StatusCode::REQUEST_TIMEOUT
        {
            return Err(StorageError::HttpStatus { url: shown, status: status.as_u16() });
        }
        return Err(StorageError::Http { url: shown, why: format!("the server answers {status}") });
    }
    Err(UrlRefusal::TooManyRedirects(url_policy::shown(&fetch.url)).into())
}

/// The addresses to connect to, all of them judged.
async fn resolve(fetch: &Fetch, shown: &str) -> Result<Vec<SocketAddr>, StorageError> {
    let found: Vec<SocketAddr> = tokio::net::lookup_host(fetch.endpoint())
        .await
        .map_err(|e| StorageError::Http {
            url: shown.into(),
            why: format!("the name cannot be resolved: {e}"),
        })?
        .collect();
    let addresses: Vec<IpAddr> = found.iter().map(SocketAddr::ip).collect();
    fetch.judge(&addresses)?;
    Ok(found)
}

fn client(fetch: &Fetch, addresses: &[SocketAddr], ca_bundle: Option<&str>) -> Result<Client, StorageError> {
    // reqwest takes the process's provider; whoever comes first sets it, and all set the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder()
        .user_agent(concat!("vireo-node/", env!("CARGO_PKG_VERSION")))
        .no_proxy()
        .redirect(Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(SILENCE_TIMEOUT)
        .resolve_to_addrs(&fetch.endpoint().0, addresses);
    if let Some(pem) = ca_bundle {
        let certificates = Certificate::from_pem_bundle(pem.as_bytes())
            .map_err(|e| StorageError::CaBundle(e.to_string()))?;
        if certificates.is_empty() {
            return Err(StorageError::CaBundle("holds no certificate; it must be PEM".into()));
        }
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(|e| StorageError::CaBundle(e.to_string()))
}

/// The whole chain of causes, without the URL, whose query may hold a key.
fn http(shown: &str, error: &reqwest::Error) -> StorageError {
    let mut why = String::new();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(error) = cause {
        why = if why.is_empty() { error.to_string() } else { format!("{why}: {error}") };
        cause = error.source();
    }
    if why.is_empty() {
        why = if error.is_timeout() { "no answer in time".into() } else { "the transfer failed".into() };
    }
    StorageError::Http { url: shown.into(), why }
}
