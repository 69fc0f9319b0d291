//! A placement session: one unbroken connection, beginning with a consistent list of everything and a random nonce
//! written to one object. It holds the world as seen on that connection, and dies with it.
//!
//! The store may be a restored one that has forgotten grants. Hosts answer a new nonce with what they really run,
//! and only what was decided inside the session that asked may be written.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use controller_plan::{plan::WaitFor, step::Kind, world::World};
use k8s_openapi::{
    api::{
        certificates::v1::CertificateSigningRequest,
        coordination::v1::{Lease, LeaseSpec},
        core::v1::Namespace,
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, ResourceExt, api::PostParams};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use vireo_crds::meta::{SESSION_LEASE, SYSTEM_NAMESPACE};

use crate::{
    backoff::Backoff,
    connection::Connection,
    context::Context,
    error::Error,
    kinds::{self, Item},
    queue::Queue,
    watch,
    world::Waiting,
};

/// How long the first lists may take.
const LIST_TIMEOUT: Duration = Duration::from_secs(120);
/// How long all that comes before a session's first decision may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(150);

/// What the queue holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Work {
    /// An object to plan.
    Object(Item),
    /// A request for a host certificate.
    Certificate(String),
}

/// A session.
pub struct Session {
    context: Arc<Context>,
    nonce: String,
    connection: Connection,
    pub(crate) world: Mutex<World>,
    pub(crate) waiting: Mutex<Waiting>,
    pub(crate) backoffs: Mutex<HashMap<Work, Backoff>>,
    pub(crate) queue: Queue<Work>,
    requests: Mutex<HashMap<String, CertificateSigningRequest>>,
    lists: Mutex<Vec<CancellationToken>>,
    clock_moved: Notify,
    begun: CancellationToken,
    ended: CancellationToken,
    why: OnceLock<String>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    /// Connects, lists everything, and writes the nonce.
    pub async fn open(context: Arc<Context>) -> Result<Arc<Self>, Error> {
        let connection = Connection::open(&context.config).await?;
        let session = Arc::new(Self {
            context,
            nonce: uuid::Uuid::new_v4().to_string(),
            connection,
            world: Mutex::default(),
            waiting: Mutex::default(),
            backoffs: Mutex::default(),
            queue: Queue::default(),
            requests: Mutex::default(),
            lists: Mutex::default(),
            clock_moved: Notify::new(),
            begun: CancellationToken::new(),
            ended: CancellationToken::new(),
            why: OnceLock::new(),
        });
        // Each question before the lists too may stay without an answer on a connection that looks alive.
        let opened = tokio::time::timeout(OPEN_TIMEOUT, session.begin()).await.unwrap_or_else(|_| {
            Err(Error::NoAnswer { what: "open a placement session".into(), after: OPEN_TIMEOUT })
        });
        if let Err(error) = &opened {
            session.end(&error.to_string());
        }
        opened.map(|()| session)
    }

    async fn begin(self: &Arc<Self>) -> Result<(), Error> {
        let namespace = Api::<Namespace>::all(self.client()).get("kube-system").await;
        let namespace = namespace.map_err(Error::api("get Namespace kube-system"))?;
        if let Some(id) = namespace.uid() {
            lock(&self.world).set_installation_id(&id);
        }
        crate::access::load(self).await?;
        self.context.liveness().watch_began(Instant::now());
        watch::start(self);
        self.follow_connection();
        let lists = std::mem::take(&mut *lock(&self.lists));
        let all = futures::future::join_all(lists.iter().map(CancellationToken::cancelled));
        tokio::select! {
            _ = tokio::time::timeout(LIST_TIMEOUT, all) => {}
            () = self.ended.cancelled() => {}
        }
        self.check()?;
        if !lists.iter().all(CancellationToken::is_cancelled) {
            return Err(Error::NoAnswer { what: "list all objects".into(), after: LIST_TIMEOUT });
        }
        // Before the nonce is out, or an answer to it could arrive unrecognised.
        lock(&self.world).begin_session(&self.nonce);
        self.write_nonce().await?;
        self.check()?;
        self.context.metrics.sessions.inc();
        self.follow_clock();
        self.begun.cancel();
        self.refresh_liveness(None);
        let items = kinds::all(&lock(&self.world));
        tracing::info!(session = self.nonce, objects = items.len(), "a placement session begins");
        items.into_iter().for_each(|item| self.queue.wake(Work::Object(item)));
        Ok(())
    }

    async fn write_nonce(&self) -> Result<(), Error> {
        let api: Api<Lease> = Api::namespaced(self.client(), SYSTEM_NAMESPACE);
        let what = || format!("write Lease {SYSTEM_NAMESPACE}/{SESSION_LEASE}");
        let spec = LeaseSpec {
            holder_identity: Some(self.nonce.clone()),
            acquire_time: Some(MicroTime(jiff::Timestamp::now())),
            ..LeaseSpec::default()
        };
        self.check()?;
        match api.get_opt(SESSION_LEASE).await.map_err(Error::api(what()))? {
            None => {
                let metadata = ObjectMeta { name: Some(SESSION_LEASE.into()), ..ObjectMeta::default() };
                let lease = Lease { metadata, spec: Some(spec) };
                api.create(&PostParams::default(), &lease).await.map_err(Error::api(what()))?;
            }
            Some(mut lease) => {
                lease.spec = Some(spec);
                api.replace(SESSION_LEASE, &PostParams::default(), &lease)
                    .await
                    .map_err(Error::api(what()))?;
            }
        }
        Ok(())
    }

    /// Its nonce.
    pub fn nonce(&self) -> &str {
        &self.nonce
    }

    /// A client on this session's connection, and on no other.
    pub fn client(&self) -> Client {
        self.connection.client()
    }

    /// What the whole process shares.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Fails if nothing may be written any more.
    pub fn check(&self) -> Result<(), Error> {
        if self.ended.is_cancelled() || self.connection.closed().is_cancelled() {
            return Err(Error::SessionOver(self.why().to_owned()));
        }
        if !self.context.leadership.borrow().holds(Instant::now()) {
            return Err(Error::NotLeader);
        }
        Ok(())
    }

    /// Ends the session: nothing is written in it any more.
    pub fn end(&self, why: &str) {
        if self.why.set(why.to_owned()).is_ok() && self.begun.is_cancelled() {
            tracing::warn!(session = self.nonce, why, "the placement session ends");
        }
        lock(&self.world).end_session();
        self.ended.cancel();
    }

    /// Why it ended.
    pub fn why(&self) -> &str {
        self.why.get().map_or("the connection broke", String::as_str)
    }

    /// Cancelled when it has ended.
    pub fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// Works until the session has ended.
    pub async fn until_ended(&self, work: impl Future<Output = ()>) {
        tokio::select! {
            () = self.ended.cancelled() => {}
            () = work => {}
        }
    }

    /// Whether wake-ups matter yet: before, everything will be looked at anyway.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// A list the session waits for before it begins; cancelled when it is complete.
    pub fn expect_list(&self) -> CancellationToken {
        let token = CancellationToken::new();
        lock(&self.lists).push(token.clone());
        token
    }

    /// Another nonce in the session object: another controller began a session.
    pub fn saw_nonce(&self, nonce: &str) {
        if nonce != self.nonce && self.has_begun() {
            self.end("another controller began a session");
        }
    }

    fn follow_connection(self: &Arc<Self>) {
        let (session, closed) = (Arc::clone(self), self.connection.closed());
        tokio::spawn(async move {
            tokio::select! {
                () = closed.cancelled() => session.end("the connection to the API server broke"),
                () = session.ended.cancelled() => {}
            }
        });
    }

    /// Notices hosts that fall silent: nothing arrives when they do.
    fn follow_clock(self: &Arc<Self>) {
        let session = Arc::clone(self);
        tokio::spawn(async move {
            let work = async {
                loop {
                    let moved = session.clock_moved.notified();
                    let next = session.context.liveness().next_change(Instant::now());
                    let due = async {
                        match next {
                            Some(at) => tokio::time::sleep_until(at.into()).await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        () = moved => {}
                        () = due => session.refresh_liveness(None),
                    }
                }
            };
            session.until_ended(work).await;
        });
    }

    /// Measures signs of life of one host, or of all.
    pub fn refresh_liveness(&self, host: Option<&str>) {
        self.clock_moved.notify_one();
        let now = Instant::now();
        let mut changed = Vec::new();
        {
            let mut world = lock(&self.world);
            let clock = self.context.liveness();
            let hosts: Vec<String> = match host {
                Some(host) => vec![host.to_owned()],
                None => world
                    .hosts()
                    .map(|(name, _)| name.clone())
                    .chain(clock.hosts().map(str::to_owned))
                    .collect(),
            };
            for host in hosts {
                if world.set_liveness(&host, clock.of(&host, now)) {
                    changed.push(host);
                }
            }
        }
        for host in changed {
            let item = Item::global(Kind::Host, &host);
            let woken = kinds::neighbours(&lock(&self.world), &item);
            self.wake_all(woken);
            self.wake_waiting(&WaitFor::AnyHost);
            self.wake_waiting(&WaitFor::Object { kind: Kind::Host, namespace: None, name: host });
        }
    }

    /// A request for a host certificate appeared or changed.
    pub fn put_request(&self, request: CertificateSigningRequest) {
        let name = request.name_any();
        lock(&self.requests).insert(name.clone(), request);
        self.queue.wake(Work::Certificate(name));
    }

    /// The request is gone.
    pub fn forget_request(&self, name: &str) {
        lock(&self.requests).remove(name);
    }

    /// The request of this name.
    pub fn request(&self, name: &str) -> Option<CertificateSigningRequest> {
        lock(&self.requests).get(name).cloned()
    }

    /// Objects waiting for a look.
    pub fn queue_depth(&self) -> usize {
        self.queue.depth()
    }
}
