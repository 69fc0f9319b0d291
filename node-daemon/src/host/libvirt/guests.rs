//! Asks running guests for addresses and facts, each on a task of its own, and remembers the answers. A guest whose
//! agent hangs delays nobody: the facts of a pass are read from here.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use node_plan::told::{facts, is_told, tidy};
use tokio::sync::{Notify, mpsc::UnboundedSender};
use tokio_util::sync::CancellationToken;
use vireo_crds::v1alpha1::GuestFacts;

use super::{
    connection::{Connections, Lane},
    error::LibvirtError,
    events::{self, AddressSource},
};
use crate::host::{DomainEvent, HostEvent};

/// Longest wait for an answer of a guest's agent, in seconds.
const AGENT_SECONDS: i32 = 5;
/// Pauses: while a young guest has no address, later, and once it has one.
const EAGER: Duration = Duration::from_secs(1);
const PATIENT: Duration = Duration::from_secs(10);
const SETTLED: Duration = Duration::from_secs(60);
/// How often a guest's domain is looked at for changes made by hand: libvirt has no event for most of them.
const LOOK: Duration = Duration::from_secs(10);
/// How long a guest counts as young.
const YOUNG: Duration = Duration::from_secs(180);
/// Size at which the record of a console is begun anew.
const CONSOLE_LOG_BYTES: u64 = 4 << 20;

/// What a guest tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// Facts.
    pub guest: Option<GuestFacts>,
    /// Addresses by MAC.
    pub addresses: BTreeMap<String, Vec<String>>,
}

struct Listener {
    told: Arc<Mutex<Told>>,
    ask: Arc<Notify>,
    agent: Arc<Mutex<bool>>,
    stop: CancellationToken,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The guests that run.
pub struct Guests {
    connections: Arc<Connections>,
    sender: UnboundedSender<HostEvent>,
    listeners: Mutex<HashMap<String, Listener>>,
}

impl Guests {
    /// No guest yet.
    pub fn new(connections: Arc<Connections>, sender: UnboundedSender<HostEvent>) -> Self {
        Self { connections, sender, listeners: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Listener>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a guest that runs has told; listens to it from now on.
    pub fn told(&self, uuid: &str, agent_connected: bool, console_log: PathBuf) -> Told {
        let mut listeners = self.lock();
        let listener = listeners.entry(uuid.into()).or_insert_with(|| self.listen(uuid, console_log));
        let mut agent = listener.agent.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *agent, agent_connected) != agent_connected {
            listener.ask.notify_one();
        }
        drop(agent);
        listener.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks now: something happened.
    pub fn ask(&self, uuid: &str) {
        if let Some(listener) = self.lock().get(uuid) {
            listener.ask.notify_one();
        }
    }

    /// The guest is gone.
    pub fn forget(&self, uuid: &str) {
        self.lock().remove(uuid);
    }

    fn listen(&self, uuid: &str, console_log: PathBuf) -> Listener {
        let listener = Listener {
            told: Arc::default(),
            ask: Arc::new(Notify::new()),
            agent: Arc::default(),
            stop: CancellationToken::new(),
        };
        let task = Task {
            uuid: uuid.into(),
            connections: Arc::clone(&self.connections),
            sender: self.sender.clone(),
            told: Arc::clone(&listener.told),
            ask: Arc::clone(&listener.ask),
            agent: Arc::clone(&listener.agent),
            console_log,
        };
        let stop = listener.stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task.run() => {}
            }
        });
        listener
    }
}

struct Task {
    uuid: String,
    connections: Arc<Connections>,
    sender: UnboundedSender<HostEvent>,
    told: Arc<Mutex<Told>>,
    ask: Arc<Notify>,
    agent: Arc<Mutex<bool>>,
    console_log: PathBuf,
}

impl Task {
    async fn run(self) {
        let since = Instant::now();
        let mut shape = None;
        let mut ask_at = since;
        loop {
            if Instant::now() >= ask_at {
                ask_at = Instant::now() + self.ask_once(since).await;
            }
            self.look(&mut shape).await;
            tokio::select! {
                () = self.ask.notified() => ask_at = Instant::now(),
                () = tokio::time::sleep(LOOK.min(ask_at.saturating_duration_since(Instant::now()))) => {}
            }
        }
    }

    /// Asks the guest, and says when to ask again.
    async fn ask_once(&self, since: Instant) -> Duration {
        let told = self.listen_once().await;
        let settled = told.as_ref().is_some_and(|told| !told.addresses.is_empty());
        if let Some(told) = told {
            self.keep(told);
        }
        self.bound_console_log();
        match (settled, since.elapsed() < YOUNG) {
            (true, _) => SETTLED,
            (false, true) => EAGER,
            (false, false) => PATIENT,
        }
    }

    /// Tells when the domain is not what it was at the last look; what that means is for the plan to say.
    async fn look(&self, shape: &mut Option<u64>) {
        let uuid = self.uuid.clone();
        let read = self.connections.call(Lane::Queries, "look-at-domain", move |conn| {
            let of = |e| LibvirtError::of("looking at a domain", e);
            let text =
                conn.lookup_domain_by_uuid_string(&uuid).and_then(|domain| domain.xml_desc(0)).map_err(of)?;
            let mut hasher = DefaultHasher::new();
            text.hash(&mut hasher);
            Ok(hasher.finish())
        });
        // A domain that cannot be read now is read again at the next look.
        let Ok(found) = read.await else { return };
        if shape.replace(found).is_some_and(|before| before != found) {
            self.tell_changed();
        }
    }

    fn tell_changed(&self) {
        let _ =
            self.sender.send(HostEvent::Domain { uuid: self.uuid.clone(), event: DomainEvent::GuestChanged });
    }

    fn keep(&self, new: Told) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if *told == new {
            return;
        }
        *told = new;
        drop(told);
        self.tell_changed();
    }

    /// What the guest tells now; none if it could not be asked, and then what it told before stands.
    async fn listen_once(&self) -> Option<Told> {
        let agent = *self.agent.lock().unwrap_or_else(PoisonError::into_inner);
        let uuid = self.uuid.clone();
        let leases = self.connections.call(Lane::Queries, "guest-leases", move |conn| {
            let domain = conn
                .lookup_domain_by_uuid_string(&uuid)
                .map_err(|e| LibvirtError::of("looking up a domain", e))?;
            events::addresses(&domain, AddressSource::Leases)
                .map_err(|e| LibvirtError::of("reading leases", e))
        });
        let mut addresses = leases.await.ok()?;
        let before = self.told.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut guest = None;
        if agent {
            let uuid = self.uuid.clone();
            let asked = self.connections.call(Lane::Jobs, "guest-agent", move |conn| {
                let of = |e| LibvirtError::of("asking the guest agent", e);
                let domain = conn.lookup_domain_by_uuid_string(&uuid).map_err(of)?;
                events::set_agent_timeout(&domain, AGENT_SECONDS).map_err(of)?;
                Ok((
                    events::guest_info(&domain).map_err(of)?,
                    events::addresses(&domain, AddressSource::Agent).map_err(of)?,
                ))
            });
            match asked.await {
                Ok((info, from_agent)) => {
                    guest = Some(facts(&info));
                    addresses.extend(
                        from_agent
                            .into_iter()
                            .filter(|(_, list)| list.iter().any(|address| is_told(address))),
                    );
                }
                Err(_) => guest = before.guest,
            }
        }
        Some(Told { guest, addresses: tidy(addresses) })
    }

    /// Keeps the record of the console from filling the disk: libvirt appends, so emptying it is safe.
    fn bound_console_log(&self) {
        let too_long = std::fs::metadata(&self.console_log).is_ok_and(|file| file.len() > CONSOLE_LOG_BYTES);
        if too_long
            && let Err(error) = std::fs::OpenOptions::new().write(true).truncate(true).open(&self.console_log)
        {
            tracing::debug!(%error, "the record of a console could not be begun anew");
        }
    }
}
