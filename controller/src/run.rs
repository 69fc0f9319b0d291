//! Wires the process together: election, then one session after another for as long as this replica leads.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ::http::{HeaderValue, header::USER_AGENT};
use fail_points::ApiLayer;
use futures::future::BoxFuture;
use kube::{
    Config,
    client::ClientBuilder,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    args::{Connect, RunArgs},
    backoff::Backoff,
    context::{Context, Phase},
    error::{Error, chain},
    http,
    lease::{self, Leadership, Timing},
    reconcile,
    session::Session,
};

/// Between two attempts to open a session: every VM that waits, waits for this.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Settings of one controller.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Address for metrics and health.
    pub http: SocketAddr,
    /// Times of the election.
    pub timing: Timing,
    /// Objects looked at in parallel.
    pub workers: usize,
    /// Unique name of this process.
    pub identity: String,
    /// Seconds after which a watch is reopened, at its last version. One that stays silent for five seconds longer is
    /// not believed: so a stream that stalls without closing is noticed.
    pub watch_seconds: u32,
}

/// Of [`Settings::watch_seconds`], unless a test is in a hurry.
pub const WATCH_SECONDS: u32 = 60;

/// A running controller.
pub struct Running {
    /// Address of metrics and health.
    pub http: SocketAddr,
    task: JoinHandle<()>,
}

impl Running {
    /// Waits until it has stopped.
    pub async fn stopped(self) -> Result<(), Error> {
        self.task.await.map_err(|e| Error::Config(format!("the controller ended by itself: {e}")))
    }
}

/// Runs as the flags say, until SIGTERM or SIGINT.
pub async fn run(args: RunArgs) -> Result<(), Error> {
    let config = configuration(&args.connect).await?;
    let settings = Settings {
        http: args.http,
        timing: args.timing().checked()?,
        workers: usize::from(args.workers),
        identity: identity(),
        watch_seconds: WATCH_SECONDS,
    };
    let shutdown = CancellationToken::new();
    stop_on_signals(&shutdown)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), server = %config.cluster_url, identity = settings.identity, "starting");
    start(config, settings, shutdown).await?.stopped().await?;
    tracing::info!("stopped");
    Ok(())
}

/// Starts a controller; it stops, and gives its Lease back, when `shutdown` is cancelled. Boxed, because the body of an
/// `async fn` is compiled once more into every binary that awaits it, and this one is the whole controller.
pub fn start(
    config: Config,
    settings: Settings,
    shutdown: CancellationToken,
) -> BoxFuture<'static, Result<Running, Error>> {
    Box::pin(begin(config, settings, shutdown))
}

async fn begin(
    mut config: Config,
    settings: Settings,
    shutdown: CancellationToken,
) -> Result<Running, Error> {
    // Another crate of the binary may bring a second provider; then TLS refuses to choose by itself.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Each caller here has its own way to try again; kube's would repeat writes behind their backs.
    config.default_retry = false;
    let agent = HeaderValue::from_static(concat!("vireo-controller/", env!("CARGO_PKG_VERSION")));
    config.headers.push((USER_AGENT, agent));
    let client = ClientBuilder::try_from(config.clone())
        .map_err(|e| Error::Connect { server: config.cluster_url.to_string(), source: Box::new(e) })?
        .with_layer(&ApiLayer)
        .build();
    let (publish, leadership) = watch::channel(Leadership::default());
    let context = Context::new(config, client.clone(), &settings, leadership);
    let (listener, address) = http::bind(settings.http).await?;

    let task = tokio::spawn(async move {
        let (end_http, end_lease) = (CancellationToken::new(), CancellationToken::new());
        let http = tokio::spawn(http::serve(listener, context.clone(), end_http.clone()));
        let election = tokio::spawn(lease::run(
            client,
            settings.identity.clone(),
            settings.timing,
            publish,
            end_lease.clone(),
        ));
        lead(&context, settings.workers, &shutdown).await;
        // Only now, when nothing of ours is under way any more, may another replica begin.
        end_lease.cancel();
        let _ = election.await;
        end_http.cancel();
        let _ = http.await;
    });
    Ok(Running { http: address, task })
}

/// Opens a session whenever this replica leads and has none.
async fn lead(context: &Arc<Context>, workers: usize, shutdown: &CancellationToken) {
    let mut leadership = context.leadership.clone();
    let mut backoff = Backoff::default();
    let mut refusal = String::new();
    while !shutdown.is_cancelled() {
        if !leadership.borrow_and_update().holds(std::time::Instant::now()) {
            let known = tokio::select! {
                () = shutdown.cancelled() => return,
                changed = leadership.changed() => changed,
            };
            if known.is_err() {
                return;
            }
            context.set_phase(Phase::Standby);
            continue;
        }
        let opened = tokio::select! {
            () = shutdown.cancelled() => return,
            opened = Session::open(Arc::clone(context)) => opened,
        };
        let wait = match opened {
            Ok(session) => {
                context.set_phase(Phase::Active(Arc::downgrade(&session)));
                backoff = Backoff::default();
                refusal.clear();
                work(&session, workers, shutdown, leadership.clone()).await;
                context.set_phase(Phase::Opening(session.why().to_owned()));
                Duration::from_millis(100)
            }
            Err(error) => {
                let why = chain(&error);
                if why != refusal {
                    tracing::warn!(why, "no session can be opened");
                    refusal.clone_from(&why);
                }
                context.set_phase(Phase::Opening(why));
                backoff.failed().min(LONGEST_PAUSE)
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Works in a session until it ends, leadership is lost, or the process is told to stop.
async fn work(
    session: &Arc<Session>,
    workers: usize,
    shutdown: &CancellationToken,
    mut leadership: watch::Receiver<Leadership>,
) {
    let lost = async {
        while leadership.borrow_and_update().holds(std::time::Instant::now()) {
            if leadership.changed().await.is_err() {
                break;
            }
        }
    };
    let guard = async {
        tokio::select! {
            () = shutdown.cancelled() => session.end("the controller is stopping"),
            () = lost => session.end("another replica leads, or may"),
            () = session.ended().cancelled_owned() => {}
        }
    };
    tokio::join!(guard, reconcile::run(session, workers));
}

fn unusable(error: &(dyn std::error::Error + 'static)) -> Error {
    Error::Config(format!("the kubeconfig cannot be used: {}", chain(error)))
}

/// The configuration the flags ask for.
pub async fn configuration(args: &Connect) -> Result<Config, Error> {
    match &args.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path)
                .map_err(|e| Error::Config(format!("--kubeconfig {}: {}", path.display(), chain(&e))))?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(|e| unusable(&e))
        }
        None => Config::infer().await.map_err(|e| unusable(&e)),
    }
}

/// Host name or pod name for people, and something random: two processes are never the same.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    let host = if host.is_empty() { "controller" } else { host };
    format!("{host}_{}", uuid::Uuid::new_v4())
}

fn stop_on_signals(shutdown: &CancellationToken) -> Result<(), Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |e: std::io::Error| Error::Config(format!("signals cannot be received: {e}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        shutdown.cancel();
    });
    Ok(())
}
