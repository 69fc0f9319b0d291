//! Keeps connections to libvirt open and runs calls on threads of their own. Decides nothing.
//!
//! Two kinds of connection: `queries` answers reads, `jobs` carries calls that may hang on one guest. libvirt
//! serves only a few calls of one connection at a time, so a guest that hangs must not share one with the rest:
//! a job goes to the least busy of several connections. A lost connection is reopened in the background; calls
//! made meanwhile fail at once as `Disconnected`.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{mpsc::UnboundedSender, oneshot};
use virt::connect::Connect;

use super::{error::LibvirtError, events};
use crate::host::HostEvent;

/// Connections for jobs; each takes five calls at a time by libvirt's default limits.
const MAX_JOB_CONNECTIONS: usize = 6;
/// Calls on one job connection before another is opened.
const CALLS_PER_CONNECTION: usize = 3;
/// Seconds between keepalive messages, and how many may go unanswered.
const KEEPALIVE: (i32, u32) = (5, 3);
/// Stack of a thread that makes one call.
const STACK_BYTES: usize = 512 * 1024;
/// Pause between attempts to open a connection: first and longest.
const REOPEN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// What a call is for: which connection carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Reads that libvirt answers from its own memory.
    Queries,
    /// Everything that may wait for a guest, a disk or a process.
    Jobs,
}

/// One open connection with the number of calls on it.
struct Line {
    conn: Option<Connect>,
    calls: AtomicUsize,
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(conn) = self.conn.take() {
            events::close(conn);
        }
    }
}

#[derive(Default)]
struct Lines {
    queries: Option<Arc<Line>>,
    jobs: Vec<Arc<Line>>,
}

/// The connections of one libvirt.
pub struct Connections {
    uri: String,
    sender: UnboundedSender<HostEvent>,
    lines: Mutex<Lines>,
    /// Counts openings, so that a late close message of an old connection is recognised.
    generation: AtomicU64,
}

impl Connections {
    /// Prepares connections to `uri`; nothing is opened yet.
    pub fn new(uri: impl Into<String>, sender: UnboundedSender<HostEvent>) -> Arc<Self> {
        Arc::new(Self { uri: uri.into(), sender, lines: Mutex::default(), generation: AtomicU64::new(0) })
    }

    /// Opens the connection that carries queries and events. Blocking.
    fn open(&self) -> Result<(), LibvirtError> {
        let generation = self.generation.fetch_add(1, Ordering::SeqCst) + 1;
        let conn = open_alive(&self.uri)?;
        events::register(&conn, &self.sender, generation)
            .map_err(|e| LibvirtError::of("registering for events", e))?;
        let mut lines = self.lock();
        *lines = Lines {
            queries: Some(Arc::new(Line { conn: Some(conn), calls: AtomicUsize::new(0) })),
            jobs: Vec::new(),
        };
        Ok(())
    }

    /// Opens, and goes on opening until it works. `HostEvent::Connected` tells when.
    pub async fn reopen(self: &Arc<Self>) {
        *self.lock() = Lines::default();
        let mut pause = REOPEN.0;
        let mut told = false;
        loop {
            let this = Arc::clone(self);
            match spawn("libvirt-open", move || this.open()).await {
                Ok(Ok(())) => {
                    let _ = self.sender.send(HostEvent::Connected);
                    return;
                }
                Ok(Err(error)) | Err(error) => {
                    if !told {
                        tracing::warn!(%error, uri = %self.uri, "libvirt does not answer; trying again until it does");
                        told = true;
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(REOPEN.1);
        }
    }

    /// Forgets the connections if `generation` is the present one; whether it was.
    pub fn close_generation(&self, generation: u64) -> bool {
        if self.generation.load(Ordering::SeqCst) != generation {
            return false;
        }
        *self.lock() = Lines::default();
        true
    }

    /// Whether the connection for queries is there.
    pub fn is_open(&self) -> bool {
        self.lock().queries.is_some()
    }

    /// Runs one call on a thread of its own. A panic inside becomes an error.
    pub async fn call<T: Send + 'static>(
        self: &Arc<Self>,
        lane: Lane,
        name: &'static str,
        call: impl FnOnce(&Connect) -> Result<T, LibvirtError> + Send + 'static,
    ) -> Result<T, LibvirtError> {
        let this = Arc::clone(self);
        spawn(name, move || {
            let line = this.line(lane)?;
            line.calls.fetch_add(1, Ordering::SeqCst);
            let result = match &line.conn {
                Some(conn) => call(conn),
                None => Err(LibvirtError::Disconnected),
            };
            line.calls.fetch_sub(1, Ordering::SeqCst);
            result
        })
        .await?
    }

    /// The connection a call goes to. Blocking: may open one more for jobs.
    fn line(&self, lane: Lane) -> Result<Arc<Line>, LibvirtError> {
        {
            let lines = self.lock();
            let queries = lines.queries.as_ref().ok_or(LibvirtError::Disconnected)?;
            if lane == Lane::Queries {
                return Ok(Arc::clone(queries));
            }
            let idle = lines.jobs.iter().min_by_key(|line| line.calls.load(Ordering::SeqCst));
            if let Some(line) = idle
                && (line.calls.load(Ordering::SeqCst) < CALLS_PER_CONNECTION
                    || lines.jobs.len() >= MAX_JOB_CONNECTIONS)
            {
                return Ok(Arc::clone(line));
            }
        }
        let opened = Arc::new(Line { conn: Some(open_alive(&self.uri)?), calls: AtomicUsize::new(0) });
        self.lock().jobs.push(Arc::clone(&opened));
        Ok(opened)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open_alive(uri: &str) -> Result<Connect, LibvirtError> {
    let conn = Connect::open(Some(uri)).map_err(|e| LibvirtError::of("opening the connection", e))?;
    // The test driver has no connection to keep alive and says so; a real one always can.
    if let Err(error) = conn.set_keep_alive(KEEPALIVE.0, KEEPALIVE.1) {
        tracing::debug!(%error, "no keepalive on this connection");
    }
    Ok(conn)
}

/// Runs blocking work on a new thread; a panic is an error. Threads, not the runtime's blocking pool: a call that
/// never returns then costs one thread and delays nobody.
pub async fn spawn<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, LibvirtError> {
    let (done, result) = oneshot::channel();
    let span = tracing::Span::current();
    let run = move || {
        let outcome = span.in_scope(|| catch_unwind(AssertUnwindSafe(work)));
        let _ = done.send(outcome.map_err(|_| LibvirtError::Panicked(name)));
    };
    std::thread::Builder::new()
        .name(name.chars().take(15).collect())
        .stack_size(STACK_BYTES)
        .spawn(run)
        .map_err(|error| LibvirtError::NoThread(error.to_string()))?;
    result.await.map_err(|_| LibvirtError::Panicked(name))?
}

/// `qemu:///system` by way of the socket that exists: the monolithic daemon's or the modular one's.
pub fn default_uri() -> String {
    let monolithic = std::path::Path::new("/run/libvirt/libvirt-sock").exists();
    let modular = std::path::Path::new("/run/libvirt/virtqemud-sock").exists();
    if modular && !monolithic { "qemu:///system?mode=direct".into() } else { "qemu:///system".into() }
}
