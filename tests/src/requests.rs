//! Counts the writes that reach the API server: all of them, as it counts them itself, and those of one client.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use http::{Method, Request};
use kube::{Client, client::Body};

/// Requests by what they ask for: `PATCH virtualmachines/status`.
pub type Counts = BTreeMap<String, u64>;

/// What came on top between two counts.
pub fn since(before: &Counts, after: &Counts) -> Counts {
    let more = after
        .iter()
        .map(|(what, count)| (what.clone(), count.saturating_sub(before.get(what).copied().unwrap_or(0))));
    more.filter(|(_, count)| *count > 0).collect()
}

/// Texts for `kubectl get` that sum up many VMs: written at most every ten seconds, however many there are.
pub fn is_summary(what: &str) -> bool {
    what.ends_with(" hosts/status") || what.ends_with(" hostclusters/status")
}

/// Value of a label in a line of Prometheus text.
fn label<'a>(line: &'a str, name: &str) -> &'a str {
    line.split_once(&format!("{name}=\"")).and_then(|(_, rest)| rest.split('"').next()).unwrap_or_default()
}

fn value(line: &str) -> u64 {
    line.rsplit(' ').next().and_then(|number| number.parse::<f64>().ok()).unwrap_or(0.0) as u64
}

async fn metrics(client: &Client) -> Result<String> {
    Ok(client.request_text(Request::get("/metrics").body(Vec::new())?).await?)
}

/// Successful and refused writes so far, Leases and dry runs aside, as the API server counts them.
pub async fn writes(client: &Client) -> Result<Counts> {
    let text = metrics(client).await?;
    let mut counts = Counts::new();
    for line in text.lines().filter(|line| line.starts_with("apiserver_request_total{")) {
        let label = |name| label(line, name);
        let mutates =
            ["POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"].contains(&label("verb"));
        // Reviews are questions that happen to be posted; tokens are what the API server's own controllers take for themselves.
        if !mutates
            || label("resource") == "leases"
            || label("resource").ends_with("reviews")
            || label("subresource") == "token"
            || !label("dry_run").is_empty()
        {
            continue;
        }
        let (resource, subresource) = (label("resource"), label("subresource"));
        let what =
            if subresource.is_empty() { resource.to_owned() } else { format!("{resource}/{subresource}") };
        *counts.entry(format!("{} {what}", label("verb"))).or_default() += value(line);
    }
    Ok(counts)
}

/// Watches the API server serves right now, of Vireo's own kinds.
pub async fn watches(client: &Client) -> Result<u64> {
    let text = metrics(client).await?;
    let ours = |line: &&str| {
        line.starts_with("apiserver_longrunning_requests{")
            && label(line, "verb") == "WATCH"
            && label(line, "group") == vireo_crds::meta::GROUP
    };
    Ok(text.lines().filter(ours).map(value).sum())
}

/// Verb and resource of a request; none for one that only reads.
pub fn write_of<B>(request: &Request<B>) -> Option<String> {
    let applies = request
        .headers()
        .get("content-type")
        .is_some_and(|kind| kind.to_str().unwrap_or_default().starts_with("application/apply-patch"));
    let verb = match *request.method() {
        Method::GET | Method::HEAD => return None,
        Method::PATCH if applies => "APPLY",
        ref other => other.as_str(),
    };
    let path: Vec<&str> = request.uri().path().trim_matches('/').split('/').collect();
    // After api/VERSION or apis/GROUP/VERSION, and namespaces/NAMESPACE if there is one.
    let rest = path.get(if path.first() == Some(&"api") { 2 } else { 3 }..).unwrap_or_default();
    let rest = if rest.len() > 2 && rest.first() == Some(&"namespaces") {
        rest.get(2..).unwrap_or_default()
    } else {
        rest
    };
    let resource = rest.first().copied().unwrap_or_default();
    let what =
        rest.get(2).map_or_else(|| resource.to_owned(), |subresource| format!("{resource}/{subresource}"));
    Some(format!("{verb} {what}"))
}

/// Counts the writes clients send, Leases aside.
#[derive(Clone, Default)]
pub struct Tally(Arc<Mutex<Counts>>);

impl Tally {
    /// Counts this request.
    pub fn count(&self, request: &Request<Body>) {
        let Some(what) = write_of(request).filter(|what| !what.ends_with(" leases")) else { return };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(what).or_default() += 1;
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
