//! How a deployment is carried out, and policies that make deployments by themselves.
//!
//! A plan stands beside its deployment's row, so that the rows of before keep their form; one that
//! is missing is the plan that [`Default`] makes: at once, everywhere, without an end.
//!
//! Invariant: what a policy has ordered last is named in its row, so that whoever leads goes on
//! where the last leader was.
//! Non-goal: when a policy is looked at; see the node.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use shoal_content::{
    AccountName, DeploymentId, Digest, Labels, PeerId, Priority, RepositoryName, TagName, Timestamp,
};

use crate::key;
use crate::query::Query;
use crate::record::{Deployment, HostState};
use crate::table::{Fault, Read, Table};
use crate::transaction::{decoded, row};

/// Policies at once: each is looked at whenever a tag moves or an agent joins.
pub const WARM_UPS_MAX: usize = 1000;

/// Hosts that one command says something of.
pub const REPORTS_MAX: usize = 1_000;

/// What a host has come to, at which of its attempts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReport {
    pub attempt: u32,
    pub state: HostState,
}

/// How an order is carried out, and how that goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploymentPlan {
    pub priority: Priority,
    /// At most so many hosts are at work at a time, at least one.
    pub parallel: Option<u32>,
    /// Who has not come to an end by then has failed.
    pub deadline: Option<Timestamp>,
    pub paused: bool,
    /// How often a host was told anew; of those that were not, nothing.
    pub attempts: BTreeMap<PeerId, u32>,
    /// The policy that ordered it.
    pub warm_up: Option<AccountName>,
}

impl DeploymentPlan {
    /// Which attempt a host is at, or would begin with.
    pub fn attempt(&self, peer: PeerId) -> u32 {
        self.attempts.get(&peer).copied().unwrap_or(0)
    }

    pub(crate) fn attempt_again(&mut self, peer: PeerId) {
        *self.attempts.entry(peer).or_default() += 1;
    }
}

/// What is ordered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploymentOrder {
    pub id: DeploymentId,
    pub image: RepositoryName,
    pub digest: Digest,
    pub tag: Option<TagName>,
    pub hosts: BTreeSet<PeerId>,
    pub owner: String,
    pub plan: DeploymentPlan,
}

/// "This tag, on these labels, always."
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmUp {
    pub name: AccountName,
    pub image: RepositoryName,
    pub tag: TagName,
    /// Empty is every agent.
    pub selector: Labels,
    pub priority: Priority,
    pub parallel: Option<u32>,
    pub created_at: Timestamp,
    /// On whose behalf it orders.
    pub created_by: String,
    /// What it ordered last.
    pub deployment: Option<DeploymentId>,
}

impl HostState {
    pub fn has_ended(&self) -> bool {
        matches!(self, Self::Done { .. } | Self::Failed { .. })
    }

    /// Whether the host is told of the order.
    pub fn is_at_work(&self) -> bool {
        matches!(self, Self::Waiting | Self::Running)
    }
}

impl<R: Read> Query<'_, R> {
    pub fn deployment(&self, id: DeploymentId) -> Result<Option<Deployment>, Fault> {
        row(self.read, Table::Deployments, &key::deployment(id))
    }

    /// The newest first, at most `limit`.
    pub fn deployments(&self, limit: usize) -> Result<Vec<Deployment>, Fault> {
        let rows = self.read.scan(Table::DeploymentTimes, b"", b"", limit)?;
        rows.iter().map(|(key, _)| self.ordered(key, key::TIME_BYTES)).collect()
    }

    /// The ids of [`Self::deployments`], for whoever reads the rows one by one: each may be large.
    pub fn newest_deployments(&self, limit: usize) -> Result<Vec<DeploymentId>, Fault> {
        let rows = self.read.scan(Table::DeploymentTimes, b"", b"", limit)?;
        let id = |key: &[u8]| key::read_id(key, key::TIME_BYTES).map(DeploymentId::from_bytes);
        rows.iter().map(|(key, _)| id(key)).collect()
    }

    /// Those that `peer` has not come to an end with, by id.
    pub fn pending_deployments(&self, peer: PeerId) -> Result<Vec<Deployment>, Fault> {
        let prefix = key::peer(peer);
        let rows = self.rows(Table::PendingDeployments, &prefix)?;
        rows.iter().map(|(key, _)| self.ordered(key, prefix.len())).collect()
    }

    fn ordered(&self, key: &[u8], skip: usize) -> Result<Deployment, Fault> {
        row(self.read, Table::Deployments, &key::read_id(key, skip)?)?
            .ok_or(Fault::Contradiction("an index names no deployment"))
    }

    /// Nothing for an order that was made without one.
    pub fn deployment_plan(&self, id: DeploymentId) -> Result<Option<DeploymentPlan>, Fault> {
        row(self.read, Table::DeploymentPlans, &key::deployment(id))
    }

    /// Which attempt `peer` is told to make at the moment, if it is told of the deployment at all.
    pub fn pending_attempt(&self, peer: PeerId, id: DeploymentId) -> Result<Option<u32>, Fault> {
        let table = Table::PendingDeployments;
        match self.read.get(table, &key::pending(peer, id))? {
            None => Ok(None),
            Some(bytes) if bytes.is_empty() => Ok(Some(0)),
            Some(bytes) => decoded(table, &bytes).map(Some),
        }
    }

    /// Deployments whose deadline is at `now` or before, the first ones first.
    pub fn passed_deadlines(
        &self,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<(Timestamp, DeploymentId)>, Fault> {
        let rows = self.read.scan(Table::DeploymentDeadlines, b"", b"", limit)?;
        let mut passed = Vec::new();
        for (key, _) in rows {
            let broken = || Fault::Contradiction("a key names no deadline");
            let time = key.get(..key::TIME_BYTES).and_then(|bytes| bytes.try_into().ok());
            let at = Timestamp::from_millis(u64::from_be_bytes(time.ok_or_else(broken)?));
            if at > now {
                break;
            }
            passed.push((at, DeploymentId::from_bytes(key::read_id(&key, key::TIME_BYTES)?)));
        }
        Ok(passed)
    }

    pub fn warm_up(&self, name: &AccountName) -> Result<Option<WarmUp>, Fault> {
        row(self.read, Table::WarmUps, name.as_str().as_bytes())
    }

    /// All of them, by name.
    pub fn warm_ups(&self) -> Result<Vec<WarmUp>, Fault> {
        self.all(Table::WarmUps, b"")
    }
}
