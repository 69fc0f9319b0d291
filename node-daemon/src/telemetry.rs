//! Sets up logging: one line per event, as text or JSON, filtered by `VIREO_LOG`, repeated warnings held back.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people and the journal.
    Text,
    /// For machines.
    Json,
}

/// Lines one place in the code may write per window; what is more is counted and dropped.
const BURST: u32 = 200;
const WINDOW: Duration = Duration::from_secs(10);

/// Sets the subscriber of the process.
pub fn init(format: LogFormat) {
    let filter = EnvFilter::try_from_env("VIREO_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,kube=error,kube_client=error,kube_runtime=error"));
    let limit = RateLimit::default();
    let limited = tracing_subscriber::filter::filter_fn(move |meta| meta.is_span() || limit.admits(meta));
    let registry = tracing_subscriber::registry();
    match format {
        LogFormat::Text => {
            let lines = tracing_subscriber::fmt::layer()
                .with_ansi(false)
                .with_target(false)
                .with_writer(std::io::stderr);
            registry.with(lines.with_filter(limited).with_filter(filter)).init();
        }
        LogFormat::Json => {
            let lines = tracing_subscriber::fmt::layer().json().with_writer(std::io::stderr);
            registry.with(lines.with_filter(limited).with_filter(filter)).init();
        }
    }
}

/// Bounds the lines each place in the code may write, so that a loop gone wrong cannot fill a disk.
#[derive(Default)]
struct RateLimit {
    places: Mutex<HashMap<tracing::callsite::Identifier, (Instant, u32)>>,
}

impl RateLimit {
    fn admits(&self, meta: &tracing::Metadata<'_>) -> bool {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (since, lines) = places.entry(meta.callsite()).or_insert((now, 0));
        if now.duration_since(*since) >= WINDOW {
            (*since, *lines) = (now, 0);
        }
        *lines += 1;
        *lines <= BURST
    }
}
