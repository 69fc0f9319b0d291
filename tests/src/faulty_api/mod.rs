//! An API server that misbehaves: everything passes through here on its way to a real one, and a seeded share of it is
//! delayed, refused, cut, held back or answered with yesterday's list. What really reached the store is the truth all
//! the same, so what comes of it can be checked there.
//!
//! Daemons are given a client that passes through ([`FaultyApi::client`]); the controller, which opens a connection of
//! its own, is given an address ([`door`]).

pub mod door;
pub mod faults;
mod streams;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use kube::{Client, client::Body};
use serde_json::json;
use tower::{BoxError, service_fn};

use crate::{apiserver::User, requests::write_of};
use faults::{Fault, Faults};

/// A body on its way to a client.
pub type Stream = UnsyncBoxBody<Bytes, BoxError>;

/// A list older than this is never served again.
const STALE: Duration = Duration::from_secs(10);

/// Whom an absence concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The controller.
    Controller,
    /// The daemons.
    Daemons,
}

/// The way to the API server.
pub struct FaultyApi {
    upstream: Client,
    /// What goes wrong.
    pub faults: Faults,
    absent_controller: AtomicBool,
    absent_daemons: AtomicBool,
    lists: Mutex<HashMap<String, (Instant, Bytes)>>,
    /// Writes that arrived here, by second since the beginning and by who sent them.
    writes: Mutex<BTreeMap<(u64, Side), u64>>,
    began: Instant,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn reset(why: &'static str) -> BoxError {
    io::Error::new(io::ErrorKind::ConnectionReset, why).into()
}

impl FaultyApi {
    /// In front of the API server this client speaks to, which must be the administrator's.
    pub fn new(upstream: Client, seed: u64) -> Arc<Self> {
        Arc::new(Self {
            upstream,
            faults: Faults::new(seed),
            absent_controller: AtomicBool::new(false),
            absent_daemons: AtomicBool::new(false),
            lists: Mutex::default(),
            writes: Mutex::default(),
            began: Instant::now(),
        })
    }

    /// A client of the daemon of this host.
    pub fn client(self: &Arc<Self>, host: &str) -> Client {
        let (name, groups) = User::Host(host).impersonated().unwrap_or_default();
        let this = Arc::clone(self);
        let service = service_fn(move |mut request: Request<Body>| {
            let value = |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""));
            let headers = request.headers_mut();
            headers.insert(HeaderName::from_static("impersonate-user"), value(&name));
            for group in &groups {
                headers.append(HeaderName::from_static("impersonate-group"), value(group));
            }
            let this = Arc::clone(&this);
            let answer: BoxFuture<'static, Result<Response<Stream>, BoxError>> =
                Box::pin(async move { this.answer(Side::Daemons, request).await });
            answer
        });
        Client::new(service, "default")
    }

    /// One side hears nothing any more, or again.
    pub fn set_absent(&self, side: Side, absent: bool) {
        self.absence(side).store(absent, Ordering::SeqCst);
        if absent {
            self.faults.count(Fault::Absence);
        }
    }

    fn absence(&self, side: Side) -> &AtomicBool {
        match side {
            Side::Controller => &self.absent_controller,
            Side::Daemons => &self.absent_daemons,
        }
    }

    /// Whether one side hears nothing.
    pub fn is_absent(&self, side: Side) -> bool {
        self.absence(side).load(Ordering::SeqCst)
    }

    /// Most writes within one second, by the controller and by all daemons.
    pub fn peak_writes(&self) -> (u64, u64) {
        let writes = lock(&self.writes);
        let most = |side: Side| {
            writes.iter().filter(|((_, of), _)| *of == side).map(|(_, count)| *count).max().unwrap_or(0)
        };
        (most(Side::Controller), most(Side::Daemons))
    }

    async fn answer(&self, side: Side, request: Request<Body>) -> Result<Response<Stream>, BoxError> {
        let write = write_of(&request).is_some_and(|what| !what.ends_with("leases"));
        if write {
            let second = self.began.elapsed().as_secs();
            *lock(&self.writes).entry((second, side)).or_default() += 1;
        }
        if self.is_absent(side) {
            return Err(reset("absent"));
        }
        let query = request.uri().query().unwrap_or_default();
        let watches = query.split('&').any(|pair| pair == "watch=true" || pair == "watch=1");
        if watches {
            return self.watch(request).await;
        }
        match self.faults.of_request(request.method()) {
            None => {}
            Some(Fault::Latency) => tokio::time::sleep(self.faults.delay()).await,
            Some(Fault::Conflict) => return Ok(status(StatusCode::CONFLICT, "Conflict", None)),
            Some(Fault::TooMany) => {
                return Ok(status(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", Some("1")));
            }
            Some(Fault::ServerError) => {
                return Ok(status(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", None));
            }
            Some(Fault::Reset) => return Err(reset("before it was read")),
            Some(Fault::Hang) => {
                tokio::time::sleep(self.faults.delay() * 8).await;
                return Err(reset("after a long silence"));
            }
            Some(Fault::LostAnswer) => {
                // It is carried out, and nobody is told.
                let _ = self.forward(request).await?;
                return Err(reset("before the answer"));
            }
            Some(Fault::StaleList) => {
                if let Some((at, list)) = lock(&self.lists).get(&name_of(&request)).cloned()
                    && at.elapsed() < STALE
                {
                    self.faults.count(Fault::StaleList);
                    return Ok(json_response(StatusCode::OK, list));
                }
            }
            // Faults of watches, and what is not of one request.
            Some(_) => {}
        }
        let name = (*request.method() == Method::GET).then(|| name_of(&request));
        let answer = self.forward(request).await?;
        let Some(name) = name.filter(|_| answer.status() == StatusCode::OK) else { return Ok(answer) };
        let (head, body) = answer.into_parts();
        let bytes = body.collect().await?.to_bytes();
        if String::from_utf8_lossy(&bytes).contains("\"items\":[") {
            let mut lists = lock(&self.lists);
            if lists.get(&name).is_none_or(|(at, _)| at.elapsed() >= STALE) {
                lists.insert(name, (Instant::now(), bytes.clone()));
            }
        }
        Ok(Response::from_parts(head, whole(bytes)))
    }

    async fn watch(&self, request: Request<Body>) -> Result<Response<Stream>, BoxError> {
        let fault = self.faults.of_watch();
        match fault {
            Some(Fault::Reset) => return Err(reset("before the watch began")),
            Some(Fault::TooMany) => {
                return Ok(status(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", Some("1")));
            }
            _ => {}
        }
        let version = request
            .uri()
            .query()
            .unwrap_or_default()
            .split('&')
            .find_map(|pair| pair.strip_prefix("resourceVersion="))
            .unwrap_or("0")
            .to_owned();
        let answer = self.forward(request).await?;
        if answer.status() != StatusCode::OK {
            return Ok(answer);
        }
        let (head, body) = answer.into_parts();
        let after = self.faults.lines();
        let stream = streams::spoil(body, fault, after, version);
        Ok(Response::from_parts(head, stream))
    }

    async fn forward(&self, request: Request<Body>) -> Result<Response<Stream>, BoxError> {
        let answer = self.upstream.send(request).await?;
        Ok(answer.map(|body| body.map_err(Into::into).boxed_unsync()))
    }
}

/// Who asks for what.
fn name_of(request: &Request<Body>) -> String {
    let who = request.headers().get("impersonate-user").and_then(|v| v.to_str().ok()).unwrap_or_default();
    format!("{who} {}", request.uri().path_and_query().map(|p| p.as_str()).unwrap_or_default())
}

fn whole(bytes: Bytes) -> Stream {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn json_response(code: StatusCode, bytes: Bytes) -> Response<Stream> {
    let mut response = Response::new(whole(bytes));
    *response.status_mut() = code;
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    response
}

fn status(code: StatusCode, reason: &str, retry_after: Option<&'static str>) -> Response<Stream> {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "the test says so", "reason": reason, "code": code.as_u16(),
    });
    let mut response = json_response(code, body.to_string().into());
    if let Some(seconds) = retry_after {
        response.headers_mut().insert("retry-after", HeaderValue::from_static(seconds));
    }
    response
}
