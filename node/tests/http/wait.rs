//! Waiting for what comes by itself: asked again until it is there, with a deadline.

use std::time::Duration;

use anyhow::{Context, Result};
use shoal_api::ClusterStatus;
use shoal_metadata::COMMAND_VERSION;
use tokio::time::{sleep, timeout};

use super::node::{DEADLINE, Node};

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

/// Until commands of every version may be proposed, which a new cluster brings about by itself.
pub async fn level_raised(node: &Node) -> Result<()> {
    until("the cluster's level", async || {
        let status: ClusterStatus = node.get("cluster").await?;
        Ok((status.level >= COMMAND_VERSION).then_some(()))
    })
    .await
}
