//! Waiting for a condition with a deadline, in place of sleeping.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Pauses between two looks: short for what this process asks itself, longer where a look starts a process.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_BLOCKING: Duration = Duration::from_millis(100);

/// What is awaited, and until when.
struct Wait<'a> {
    what: &'a str,
    limit: Duration,
    deadline: Instant,
}

impl<'a> Wait<'a> {
    fn new(what: &'a str, limit: Duration) -> Self {
        Self { what, limit, deadline: Instant::now() + limit }
    }

    /// The value, if there is one; none: look again. Past the deadline, what was awaited and what was last seen.
    fn judge<T>(&self, seen: Result<T>) -> Result<Option<T>> {
        match seen {
            Ok(value) => Ok(Some(value)),
            Err(seen) if Instant::now() >= self.deadline => {
                bail!("{}: not within {:?}; last seen: {seen:#}", self.what, self.limit)
            }
            Err(_) => Ok(None),
        }
    }
}

/// Asks `probe` until it gives a value, or fails after `limit` with what was awaited and what was last seen.
pub async fn until<T, F, Fut>(what: &str, limit: Duration, mut probe: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let wait = Wait::new(what, limit);
    loop {
        if let Some(value) = wait.judge(probe().await)? {
            return Ok(value);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// [`until`] for a thread of its own.
pub fn until_blocking<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let wait = Wait::new(what, limit);
    loop {
        if let Some(value) = wait.judge(probe())? {
            return Ok(value);
        }
        std::thread::sleep(PAUSE_BLOCKING);
    }
}
