//! What every part of the process shares, for as long as the process lives.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use kube::{Client, Config};
use tokio::sync::watch;

use crate::{
    events::Events,
    http::Probe,
    lease::Leadership,
    liveness::Clock,
    metrics::{LeaseLabel, Metrics, QueueLabel},
    run::Settings,
    session::Session,
};

/// What this replica is doing.
#[derive(Debug, Clone, Default)]
pub enum Phase {
    /// It has not seen the leader's Lease yet.
    #[default]
    Starting,
    /// Another replica leads.
    Standby,
    /// It leads and cannot open a session yet; the text says why.
    Opening(String),
    /// It leads, in a session.
    Active(Weak<Session>),
}

/// Shared by all.
pub struct Context {
    /// How to reach the API server.
    pub config: Config,
    /// Pooled client for what may be repeated: the leader's Lease and Events. Placements never go through it.
    pub client: Client,
    /// Unique name of this process.
    pub identity: String,
    /// Seconds after which a watch is reopened.
    pub watch_seconds: u32,
    /// Events.
    pub events: Events,
    /// Metrics.
    pub metrics: Metrics,
    /// Whether this replica leads.
    pub leadership: watch::Receiver<Leadership>,
    clock: Mutex<Clock>,
    phase: Mutex<Phase>,
}

impl Context {
    /// For one process.
    pub fn new(
        config: Config,
        client: Client,
        settings: &Settings,
        leadership: watch::Receiver<Leadership>,
    ) -> Arc<Self> {
        Arc::new(Self {
            events: Events::new(client.clone(), &settings.identity),
            config,
            client,
            identity: settings.identity.clone(),
            watch_seconds: settings.watch_seconds,
            metrics: Metrics::default(),
            leadership,
            clock: Mutex::default(),
            phase: Mutex::default(),
        })
    }

    /// The clock of all hosts.
    pub fn liveness(&self) -> MutexGuard<'_, Clock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what this replica is doing.
    pub fn set_phase(&self, phase: Phase) {
        self.metrics.session_open.set(i64::from(matches!(phase, Phase::Active(_))));
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
    }

    fn phase(&self) -> Phase {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Probe for Context {
    fn metrics(&self) -> Result<String, std::fmt::Error> {
        let leads = self.leadership.borrow().holds(std::time::Instant::now());
        self.metrics
            .leading
            .get_or_create(&LeaseLabel { name: vireo_crds::meta::LEADER_LEASE })
            .set(i64::from(leads));
        let session = match self.phase() {
            Phase::Active(session) => session.upgrade(),
            Phase::Starting | Phase::Standby | Phase::Opening(_) => None,
        };
        let depth = session.as_ref().map_or(0, |s| s.queue_depth());
        self.metrics
            .queue_depth
            .get_or_create(&QueueLabel { name: "objects" })
            .set(i64::try_from(depth).unwrap_or(i64::MAX));
        if let Some(session) = session {
            session.count_states();
        }
        self.metrics.text()
    }

    fn not_ready(&self) -> Option<String> {
        match self.phase() {
            Phase::Starting => Some("the leader's Lease has not been read yet".into()),
            Phase::Standby => None,
            Phase::Opening(why) => Some(format!("leading, and no session is open: {why}")),
            Phase::Active(_) => None,
        }
    }
}
