//! Orders from the cluster: bring this version here, and say how it goes.
//!
//! An order that comes again while it is carried out changes nothing; one that comes again after
//! its end is carried out again, which costs little since the chunks are here, and reported again.
//! So a lost report mends itself when the order stream opens anew.
//!
//! Bounds: [`AT_ONCE_MAX`] orders are carried out at once, [`ORDERS_MAX`] are known; what is
//! refused beyond that stays pending at the nodes and comes again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shoal_api::{OrderMessage, ProgressReport, TransferProgress};
use shoal_content::{DeploymentId, ImageReference};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use tracing::{info, warn};

use crate::fetch::{Fetcher, Patience};
use crate::nodes::chain;
use crate::transfers::{Purpose, Tracked, Transfers};

const AT_ONCE_MAX: usize = 4;
const ORDERS_MAX: usize = 1024;
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// The end of a transfer is reported until a node takes it, this often at most.
const FINAL_REPORTS_MAX: u32 = 120;
const FINAL_REPORT_PAUSE: Duration = Duration::from_secs(2);

/// Takes a new list of nodes.
pub type NodesChanged = Box<dyn Fn(Vec<shoal_api::NodeAddress>) + Send + Sync>;

/// Carries out orders; clones share them.
#[derive(Debug, Clone)]
pub struct Deployments {
    fetcher: Fetcher,
    transfers: Transfers,
    running: Arc<Mutex<HashMap<DeploymentId, AbortHandle>>>,
    permits: Arc<Semaphore>,
}

impl Deployments {
    pub fn new(fetcher: Fetcher, transfers: Transfers) -> Self {
        let permits = Arc::new(Semaphore::new(AT_ONCE_MAX));
        Self { fetcher, transfers, running: Arc::default(), permits }
    }

    /// Takes what the order stream brings, until it ends.
    pub async fn serve(self, mut orders: mpsc::Receiver<OrderMessage>, nodes: NodesChanged) {
        while let Some(order) = orders.recv().await {
            match order {
                OrderMessage::Nodes { nodes: list } => nodes(list),
                OrderMessage::Deploy { deployment, reference, .. } => {
                    self.start(deployment, reference);
                }
                OrderMessage::Cancel { deployment } => {
                    if let Some(task) = self.running.lock().remove(&deployment) {
                        info!(%deployment, "deployment cancelled");
                        task.abort();
                    }
                }
                OrderMessage::Ping => {}
            }
        }
    }

    fn start(&self, deployment: DeploymentId, reference: ImageReference) {
        let mut running = self.running.lock();
        if running.contains_key(&deployment) {
            return;
        }
        if running.len() >= ORDERS_MAX {
            warn!(%deployment, "too many orders at once; it comes again with the next stream");
            return;
        }
        let this = self.clone();
        let task = tokio::spawn(async move {
            this.carry_out(deployment, &reference).await;
            this.running.lock().remove(&deployment);
        });
        running.insert(deployment, task.abort_handle());
    }

    async fn carry_out(&self, deployment: DeploymentId, reference: &ImageReference) {
        let Ok(_permit) = self.permits.acquire().await else { return };
        info!(%deployment, %reference, "deployment started");
        let tracked = self.transfers.start(reference.to_string(), Purpose::Deployment);
        let outcome = {
            let fetching = self.fetcher.image(reference, &tracked, Patience::ORDER);
            let mut fetching = std::pin::pin!(fetching);
            let mut reporting = std::pin::pin!(self.report_while_running(deployment, &tracked));
            tokio::select! {
                outcome = &mut fetching => outcome,
                () = &mut reporting => return,
            }
        };
        let progress = match outcome {
            Ok(_) => tracked.done(),
            Err(error) => {
                let text = chain(&error);
                warn!(%deployment, %reference, error = text, "deployment failed");
                tracked.failed(&text)
            }
        };
        self.report_end(deployment, &tracked, progress).await;
    }

    /// Never returns; a report that gets lost is followed by a newer one.
    async fn report_while_running(&self, deployment: DeploymentId, tracked: &Tracked) {
        let mut changes = tracked.watch();
        loop {
            let progress = changes.borrow_and_update().clone();
            let report = ProgressReport { deployment, transfer: tracked.id(), progress };
            if let Err(error) = self.fetcher.nodes.report(&report).await {
                tracing::debug!(%deployment, %error, "a progress report was lost");
            }
            tokio::time::sleep(REPORT_INTERVAL).await;
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    async fn report_end(
        &self,
        deployment: DeploymentId,
        tracked: &Tracked,
        progress: TransferProgress,
    ) {
        let report = ProgressReport { deployment, transfer: tracked.id(), progress };
        for _ in 0..FINAL_REPORTS_MAX {
            match self.fetcher.nodes.report(&report).await {
                Ok(()) => {
                    info!(%deployment, state = report.progress.state, "deployment ended");
                    return;
                }
                Err(error) if error.is_retryable() => {
                    tokio::time::sleep(FINAL_REPORT_PAUSE).await;
                }
                Err(error) => {
                    warn!(%deployment, %error, "no node takes the end of a deployment");
                    return;
                }
            }
        }
        warn!(%deployment, "the end of a deployment could not be reported; the order comes again");
    }
}
