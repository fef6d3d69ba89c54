//! A deployment as a stream: its state at once, then whenever it changed, until it is over.

use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use shoal_content::DeploymentId;
use shoal_raft::Raft;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::gather::Gatherer;
use super::view::{Names, is_over, view};

/// How often a watcher is told at most.
const INTERVAL: Duration = Duration::from_millis(500);
/// States that wait for a slow watcher.
const QUEUE: usize = 4;

/// Sends the deployment as seen from here, until it is over, it is gone, nobody listens,
/// or the node stops.
pub fn watch(
    raft: Raft,
    gatherer: Gatherer,
    id: DeploymentId,
    stopping: CancellationToken,
) -> impl Stream<Item = Arc<shoal_api::Deployment>> + Send + 'static {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let mut last: Option<Arc<shoal_api::Deployment>> = None;
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = sender.closed() => return,
                () = stopping.cancelled() => return,
            }
            let reports = gatherer.reports(id).await;
            let local = raft.local();
            let query = local.query();
            let read = query.deployment(id).and_then(|row| {
                let plan = query.deployment_plan(id)?.unwrap_or_default();
                Ok((row, plan, Names::read(query)?))
            });
            let shown = match read {
                Ok((Some(row), plan, names)) => Arc::new(view(&row, &plan, &reports, &names)),
                Ok((None, ..)) => return,
                Err(error) => {
                    warn!(deployment = %id, %error, "a deployment cannot be read");
                    return;
                }
            };
            if last.as_ref() == Some(&shown) {
                continue;
            }
            last = Some(Arc::clone(&shown));
            let over = is_over(&shown.state);
            if sender.send(shown).await.is_err() || over {
                return;
            }
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(receiver)
}
