//! Sets up logging: one line per outcome on standard error, filtered by `--log`.

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{args::LogFormat, error::Error};

/// Starts logging for this process.
pub fn start(filter: &str, format: LogFormat) -> Result<(), Error> {
    let filter = EnvFilter::try_new(filter).map_err(|e| Error::Config(format!("--log {filter}: {e}")))?;
    let registry = tracing_subscriber::registry().with(filter);
    let done = match format {
        LogFormat::Text => {
            registry.with(fmt::layer().with_writer(std::io::stderr).with_ansi(false)).try_init()
        }
        LogFormat::Json => registry.with(fmt::layer().json().with_writer(std::io::stderr)).try_init(),
    };
    done.map_err(|e| Error::Config(format!("logging cannot be started: {e}")))
}
