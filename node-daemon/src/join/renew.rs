//! Renews the host's token and peer certificate while the daemon runs: at a third of their life, so that two thirds
//! are left for an API server that is away.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use kube::Client;
use tokio_util::sync::CancellationToken;

use super::{
    JoinError,
    config::{self, NodeConfig},
    credentials::{self, CERTIFICATE_SECONDS, TOKEN_SECONDS},
};
use crate::{backoff, error::RetryClass};

/// Longest pause: a suspended clock or a replaced file is noticed by then.
const LONGEST: Duration = Duration::from_secs(3600);

/// Renews until `stop`.
pub async fn run(client: Client, node: NodeConfig, etc_dir: PathBuf, stop: CancellationToken) {
    let token = keep("token", &node.host, etc_dir.join(config::TOKEN), seconds(TOKEN_SECONDS), || {
        credentials::renew_token(&client, &node.host, &etc_dir)
    });
    let certificate = keep(
        "peer certificate",
        &node.host,
        etc_dir.join(config::PEER_CERTIFICATE),
        seconds(CERTIFICATE_SECONDS.into()),
        || async {
            let key = config::load_key(&etc_dir)?;
            credentials::renew_certificate(&client, &node.host, &key, &etc_dir).await
        },
    );
    tokio::select! {
        () = stop.cancelled() => {}
        () = async { tokio::join!(token, certificate); } => {}
    }
}

/// Renews one file again and again.
async fn keep<F: Future<Output = Result<Timestamp, JoinError>>>(
    what: &str,
    host: &str,
    path: PathBuf,
    life: Duration,
    renew: impl Fn() -> F,
) {
    let mut attempt = 0;
    loop {
        // The file's own age counts: a daemon that is restarted often still renews in time, and one that is restarted
        // does not ask anew each time.
        let due = due_in(age(&path), life);
        if !due.is_zero() {
            tokio::time::sleep(due.min(LONGEST)).await;
            continue;
        }
        match renew().await {
            Ok(until) => {
                attempt = 0;
                tracing::info!(what, %until, "renewed");
            }
            Err(error) => {
                attempt += 1;
                tracing::warn!(what, attempt, "not renewed: {error}");
                tokio::time::sleep(backoff::pause(RetryClass::Transient, attempt, backoff::seed(host))).await;
            }
        }
    }
}

fn age(path: &Path) -> Option<Duration> {
    std::fs::metadata(path)
        .and_then(|file| file.modified())
        .ok()
        .map(|written| written.elapsed().unwrap_or_default())
}

/// Time until something of this age and life is to be renewed; what is not there is due.
fn due_in(age: Option<Duration>, life: Duration) -> Duration {
    age.map_or(Duration::ZERO, |age| (life / 3).saturating_sub(age))
}

fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_are_renewed_at_a_third_of_their_life() {
        let hour = Duration::from_secs(3600);
        assert_eq!(due_in(None, 24 * hour), Duration::ZERO);
        assert_eq!(due_in(Some(hour), 24 * hour), 7 * hour);
        assert_eq!(due_in(Some(9 * hour), 24 * hour), Duration::ZERO);
    }
}
