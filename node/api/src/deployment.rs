//! Orders to put a version on hosts, and policies that order by themselves.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shoal_content::{AccountName, DeploymentId, Digest, ImageReference, PeerId, Priority};

use crate::agent::TransferProgress;

/// `POST /api/v1/deployments`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CreateDeployment {
    pub reference: ImageReference,
    /// Agents by name or id.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// `KEY=VALUE,…`: agents that carry all of these labels. `hosts` and `selector` add up; both
    /// empty is all agents.
    #[serde(default)]
    pub selector: String,
    /// A host carries out the greater first; those below wait for it.
    #[serde(default)]
    pub priority: Priority,
    /// At most so many hosts are at work at a time; any number where missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel: Option<u32>,
    #[serde(default, flatten)]
    pub deadline: Deadline,
}

/// Until when hosts may take: a moment, or so long from now; neither is without an end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Deadline {
    /// RFC 3339.
    #[serde(default, rename = "deadline", skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    #[serde(default, rename = "deadline_seconds", skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
}

/// `POST /api/v1/deployments/{id}/retry`: the hosts that failed try again. A deadline that is over
/// is none from then on, unless another is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RetryDeployment {
    #[serde(default, flatten)]
    pub deadline: Deadline,
}

/// `GET /api/v1/deployments/{id}`, and each event of `GET …/events` (SSE, event name `deployment`;
/// the stream ends after the final state).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Deployment {
    pub id: DeploymentId,
    pub reference: ImageReference,
    pub manifest_digest: Digest,
    /// `running`, `paused`, `done`, `failed` (some host did) or `cancelled`.
    pub state: String,
    pub created_at: String,
    pub created_by: String,
    #[serde(default)]
    pub priority: Priority,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel: Option<u32>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<String>,
    /// The policy that ordered it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<String>,
    pub hosts: Vec<DeploymentHost>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeploymentHost {
    pub id: PeerId,
    pub name: String,
    /// `queued` (not told yet), `waiting`, `running`, `done` or `failed`.
    pub state: String,
    pub progress: TransferProgress,
}

/// `POST /api/v1/warm-ups`: this tag, on the agents with these labels, always.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CreateWarmUp {
    pub name: AccountName,
    /// `NAME:TAG`.
    pub reference: ImageReference,
    /// `KEY=VALUE,…`; empty is every agent.
    #[serde(default)]
    pub selector: String,
    #[serde(default)]
    pub priority: Priority,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel: Option<u32>,
}

/// `GET /api/v1/warm-ups` lists these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WarmUp {
    pub name: AccountName,
    pub reference: ImageReference,
    pub selector: BTreeMap<String, String>,
    pub priority: Priority,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel: Option<u32>,
    pub created_at: String,
    /// On whose behalf it orders.
    pub created_by: String,
    /// What it ordered last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment: Option<DeploymentId>,
    /// Of that deployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Why it orders nothing at the moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}
