//! Orders from the cluster: bring this version here, and say how it goes.
//!
//! An order that comes again while it is carried out changes nothing; one that comes again after
//! its end is carried out again, which costs little since the chunks are here, and reported again.
//! So a lost report mends itself when the order stream opens anew, which is asked for where the end
//! could not be reported. An order that comes as another attempt is begun anew, and reports say
//! which attempt they are of.
//!
//! Of several orders those of the highest priority go first; a lower one that was under way lets go
//! of the swarm, keeps what it has, and goes on when they are through (see `turns`), or while they wait
//! long for their next attempt.
//!
//! What policies keep on this host comes by orders, too; where it leaves the cache again, the host brings it
//! back by itself (see `keeping`).
//!
//! Bounds: [`turns::AT_ONCE_MAX`] orders are carried out at once, [`ORDERS_MAX`] are known; what is
//! refused beyond that stays pending at the nodes and comes again.

mod keeping;
mod turns;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shoal_api::{
    AuthorityNews, NodeAddress, OrderMessage, ProgressReport, TicketKeyInfo, TransferProgress,
};
use shoal_content::{DeploymentId, ImageReference, PeerId, Priority};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::AbortHandle;
use tracing::{debug, info, warn};

use crate::blocking;
use crate::fetch::{self, Fetched, Fetcher, Patience};
use crate::limits;
use crate::nodes::chain;
use crate::transfers::{Purpose, Tracked, Transfers};
use turns::Turns;

const ORDERS_MAX: usize = 1024;
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// The end of a transfer is reported until a node takes it, this often at most.
const FINAL_REPORTS_MAX: u32 = 120;
const FINAL_REPORT_PAUSE: Duration = Duration::from_secs(2);
/// What people read while an order waits for others.
const YIELDS: &str = "other deployments that go first";

/// Takes what a node says of the cluster.
pub type ClusterChanged = Box<dyn Fn(ClusterNews) + Send + Sync>;

/// How the nodes are reached, what tickets are checked with, who has no part in it any more, and whom to
/// believe.
#[derive(Debug)]
pub struct ClusterNews {
    pub nodes: Vec<NodeAddress>,
    pub ticket_keys: Vec<TicketKeyInfo>,
    /// Missing where the node does not know.
    pub expelled: Option<Vec<PeerId>>,
    /// Missing where the node does not know.
    pub authorities: Option<AuthorityNews>,
}

/// What is to be carried out.
#[derive(Debug, Clone)]
struct Order {
    deployment: DeploymentId,
    reference: ImageReference,
    priority: Priority,
    attempt: u32,
}

#[derive(Debug)]
struct Running {
    reference: ImageReference,
    attempt: u32,
    task: AbortHandle,
}

#[derive(Debug, Default)]
struct Desk {
    running: HashMap<DeploymentId, Running>,
    turns: Turns,
}

/// Carries out orders; clones share them.
#[derive(Debug, Clone)]
pub struct Deployments {
    fetcher: Fetcher,
    transfers: Transfers,
    desk: Arc<Mutex<Desk>>,
    /// Whose turn it is.
    at_work: Arc<watch::Sender<BTreeSet<DeploymentId>>>,
    /// What policies keep here.
    kept: Arc<watch::Sender<Vec<ImageReference>>>,
    /// Something left that may be missed.
    moved: Arc<Notify>,
    limits: limits::Shown,
}

impl Deployments {
    pub fn new(fetcher: Fetcher, transfers: Transfers, limits: limits::Shown) -> Self {
        let at_work = Arc::new(watch::Sender::default());
        let (kept, moved) = (Arc::new(watch::Sender::default()), Arc::default());
        Self { fetcher, transfers, desk: Arc::default(), at_work, kept, moved, limits }
    }

    /// Wants to hear of all that leaves the cache.
    pub fn moved(&self) -> Arc<Notify> {
        Arc::clone(&self.moved)
    }

    /// Stops all without a word to the nodes: there the orders stay, and come again.
    pub fn lay_down(&self) {
        self.stop(|_, _| true);
    }

    /// Takes what the order stream brings, until it ends.
    pub async fn serve(self, mut orders: mpsc::Receiver<OrderMessage>, changed: ClusterChanged) {
        while let Some(order) = orders.recv().await {
            match order {
                OrderMessage::Nodes { nodes, ticket_keys, expelled, authorities } => {
                    changed(ClusterNews { nodes, ticket_keys, expelled, authorities });
                }
                OrderMessage::Deploy { deployment, reference, priority, attempt, .. } => {
                    self.start(Order { deployment, reference, priority, attempt });
                }
                OrderMessage::Cancel { deployment, attempt } => {
                    self.stop(|id, running| id == deployment && running.attempt <= attempt);
                }
                OrderMessage::Standing { deployments } => {
                    self.stop(|id, _| !deployments.contains(&id));
                }
                OrderMessage::Keep { references } => {
                    self.kept.send_if_modified(|known| {
                        let changed = *known != references;
                        *known = references;
                        changed
                    });
                }
                OrderMessage::Ping => {}
            }
        }
    }

    fn start(&self, order: Order) {
        let (deployment, attempt) = (order.deployment, order.attempt);
        let reference = order.reference.clone();
        let mut desk = self.desk.lock();
        match desk.running.get(&deployment) {
            Some(running) if running.attempt >= attempt => return,
            Some(running) => running.task.abort(),
            None if desk.running.len() >= ORDERS_MAX => {
                warn!(%deployment, "too many orders at once; it comes again with the next stream");
                return;
            }
            None => {}
        }
        desk.turns.enter(deployment, order.priority);
        let this = self.clone();
        let task = tokio::spawn(async move {
            let is_known = this.carry_out(order).await;
            this.stop(|id, running| id == deployment && running.attempt == attempt);
            // Only now: an order that comes while it is under way is none.
            if !is_known {
                this.fetcher.nodes.reopen_orders();
            }
        });
        desk.running.insert(deployment, Running { reference, attempt, task: task.abort_handle() });
        self.at_work.send_replace(desk.turns.at_work());
    }

    /// Ends those that are meant, also where they have come to their end.
    fn stop(&self, meant: impl Fn(DeploymentId, &Running) -> bool) {
        let mut desk = self.desk.lock();
        let Desk { running, turns } = &mut *desk;
        running.retain(|&id, running| {
            let stops = meant(id, running);
            if stops {
                running.task.abort();
                turns.leave(id);
            }
            !stops
        });
        self.at_work.send_replace(turns.at_work());
    }

    /// Lets others have an order's turn while it waits for its next attempt.
    fn rest(&self, deployment: DeploymentId, rests: bool) {
        let mut desk = self.desk.lock();
        desk.turns.rest(deployment, rests);
        self.at_work.send_replace(desk.turns.at_work());
    }

    /// Whether there is nothing left to be said of it to the nodes.
    async fn carry_out(&self, order: Order) -> bool {
        let Order { deployment, reference, attempt, .. } = &order;
        let mut at_work = self.at_work.subscribe();
        if at_work.wait_for(|at_work| at_work.contains(deployment)).await.is_err() {
            return true;
        }
        info!(%deployment, %reference, attempt, "deployment started");
        let tracked = self.transfers.start(reference.to_string(), Purpose::Deployment);
        let outcome = {
            let mut fetching = std::pin::pin!(self.fetch(&order, &tracked));
            let mut reporting = std::pin::pin!(self.report_while_running(&order, &tracked));
            tokio::select! {
                outcome = &mut fetching => outcome,
                () = &mut reporting => return true,
            }
        };
        let progress = match outcome {
            Ok(_) => {
                let (catalogue, whole) = (self.fetcher.catalogue.clone(), reference.clone());
                blocking(move || catalogue.note_whole(&whole)).await;
                tracked.done()
            }
            Err(error) => {
                let text = chain(&error);
                warn!(%deployment, %reference, error = text, "deployment failed");
                tracked.failed(&text)
            }
        };
        self.report_end(&order, &tracked, progress).await
    }

    /// Fetches in its turns, to the end.
    async fn fetch(&self, order: &Order, tracked: &Tracked) -> Result<Fetched, fetch::Error> {
        let deployment = order.deployment;
        let mut at_work = self.at_work.subscribe();
        let rests = |rests| self.rest(deployment, rests);
        let (reference, patience) = (&order.reference, Patience::ORDER);
        loop {
            let mine = at_work.wait_for(|at_work| at_work.contains(&deployment)).await;
            mine.map_err(|_| fetch::Error::Stopped)?;
            tokio::select! {
                outcome = self.fetcher.image_in_turns(reference, tracked, patience, &rests) => {
                    return outcome;
                }
                yields = at_work.wait_for(|at_work| !at_work.contains(&deployment)) => {
                    yields.map_err(|_| fetch::Error::Stopped)?;
                    info!(%deployment, "the deployment waits for its turn");
                    tracked.wait_for(YIELDS);
                }
            }
        }
    }

    /// Never returns; a report that gets lost is followed by a newer one.
    async fn report_while_running(&self, order: &Order, tracked: &Tracked) {
        let mut changes = tracked.watch();
        loop {
            let line_bytes_per_second = limits::line(&self.limits);
            let progress = changes.borrow_and_update().clone();
            let progress = TransferProgress { line_bytes_per_second, ..progress };
            if let Err(error) = self.fetcher.nodes.report(&report(order, tracked, progress)).await {
                debug!(deployment = %order.deployment, %error, "a report was lost");
            }
            tokio::time::sleep(REPORT_INTERVAL).await;
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether a node took it, or knows of no such order; whatever else one says may be that node's.
    async fn report_end(
        &self,
        order: &Order,
        tracked: &Tracked,
        progress: TransferProgress,
    ) -> bool {
        let deployment = order.deployment;
        let line_bytes_per_second = limits::line(&self.limits);
        let progress = TransferProgress { line_bytes_per_second, ..progress };
        let report = report(order, tracked, progress);
        for _ in 0..FINAL_REPORTS_MAX {
            match self.fetcher.nodes.report(&report).await {
                Ok(()) => {
                    info!(%deployment, state = report.progress.state, "deployment ended");
                    return true;
                }
                Err(error) if error.is_not_found() || error.is_malformed() => {
                    warn!(%deployment, %error, "no node takes the end of a deployment");
                    return true;
                }
                Err(error) => {
                    debug!(%deployment, %error, "the end of a deployment is reported again");
                    tokio::time::sleep(FINAL_REPORT_PAUSE).await;
                }
            }
        }
        warn!(%deployment, "the end of a deployment could not be reported; the order comes again");
        false
    }
}

fn report(order: &Order, tracked: &Tracked, progress: TransferProgress) -> ProgressReport {
    let (deployment, attempt) = (order.deployment, order.attempt);
    ProgressReport { deployment, transfer: tracked.id(), attempt, progress }
}
