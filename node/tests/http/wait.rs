//! Waiting for what comes by itself: asked again until it is there, with a deadline.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{sleep, timeout};

use super::node::DEADLINE;

const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Asks until there is an answer; says what did not come.
pub async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let waiting = async {
        loop {
            if let Some(value) = ask().await? {
                return Ok(value);
            }
            sleep(POLL_INTERVAL).await;
        }
    };
    timeout(DEADLINE, waiting).await.with_context(|| format!("not in time: {what}"))?
}
