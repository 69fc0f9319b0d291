//! Waiting for a condition with a deadline, in place of sleeping.

use std::{future::Future, time::Duration};

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep};

/// Asks `probe` until it gives a value, or fails after `limit` with what was awaited and what was last seen.
pub async fn until<T, F, Fut>(what: &str, limit: Duration, mut probe: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let deadline = Instant::now() + limit;
    loop {
        match probe().await {
            Ok(value) => return Ok(value),
            Err(seen) if Instant::now() >= deadline => {
                bail!("{what}: not within {limit:?}; last seen: {seen:#}")
            }
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}
