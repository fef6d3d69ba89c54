//! Waiting for a condition with a deadline, in place of sleeping and hoping.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at. Short beside every deadline in the tests.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Calls `condition` until it gives a value.
///
/// # Errors
/// After `deadline`, with `what` and the last error that the condition gave.
pub fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    let mut last = None;
    while started.elapsed() < deadline {
        match condition() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => {}
            Err(error) => last = Some(error),
        }
        std::thread::park_timeout(POLL_INTERVAL);
    }
    match last {
        Some(error) => bail!("waited {deadline:?} for {what}; last error: {error:#}"),
        None => bail!("waited {deadline:?} for {what}"),
    }
}
