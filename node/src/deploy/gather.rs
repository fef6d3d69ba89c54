//! The reports of a deployment from all nodes, asked for once however many watch.
//!
//! Invariant: nodes are asked about one deployment at most once in [`FRESH`].

use std::collections::BTreeMap;
use std::time::Duration;

use moka::future::Cache;
use shoal_content::{DeploymentId, PeerId};

use super::board::{Board, Reported, Reports, merge};
use super::orders::OrderDesk;
use super::siblings::Siblings;

/// How old an answer of other nodes may be.
const FRESH: Duration = Duration::from_millis(450);
/// Deployments that are watched at once; for more, nodes are asked more often.
const WATCHED_MAX: u64 = 1024;

/// See the module's documentation. Clones share it.
#[derive(Debug, Clone)]
pub struct Gatherer {
    board: Board,
    desk: OrderDesk,
    siblings: Siblings,
    elsewhere: Cache<DeploymentId, Reports>,
    online: Cache<(), Vec<PeerId>>,
}

impl Gatherer {
    pub fn new(board: Board, desk: OrderDesk, siblings: Siblings) -> Self {
        let elsewhere = Cache::builder().time_to_live(FRESH).max_capacity(WATCHED_MAX).build();
        let online = Cache::builder().time_to_live(FRESH).max_capacity(1).build();
        Self { board, desk, siblings, elsewhere, online }
    }

    /// What all nodes that answer have heard.
    pub async fn reports(&self, deployment: DeploymentId) -> Reports {
        let ask = async {
            let path = format!("/api/v1/cluster/reports/{deployment}");
            let answers: Vec<BTreeMap<String, Reported>> = self.siblings.ask(&path).await;
            let mut all = Reports::new();
            for answer in answers {
                let parsed = answer
                    .into_iter()
                    .filter_map(|(peer, reported)| Some((peer.parse().ok()?, reported)));
                merge(&mut all, parsed.collect());
            }
            all
        };
        let mut reports = self.elsewhere.get_with(deployment, ask).await;
        merge(&mut reports, self.board.reports(deployment));
        reports
    }

    /// Agents whose order stream is open at some node.
    pub async fn online(&self) -> std::collections::BTreeSet<PeerId> {
        let ask = async {
            let answers: Vec<Vec<String>> = self.siblings.ask("/api/v1/cluster/streams").await;
            answers.into_iter().flatten().filter_map(|peer| peer.parse().ok()).collect()
        };
        let elsewhere: Vec<PeerId> = self.online.get_with((), ask).await;
        elsewhere.into_iter().chain(self.desk.online()).collect()
    }
}
