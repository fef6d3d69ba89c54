//! Orders to put a version on hosts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shoal_content::{DeploymentId, Digest, ImageReference, PeerId};

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
}

/// `GET /api/v1/deployments/{id}`, and each event of `GET …/events` (SSE, event name `deployment`;
/// the stream ends after the final state).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Deployment {
    pub id: DeploymentId,
    pub reference: ImageReference,
    pub manifest_digest: Digest,
    /// `running`, `done`, `failed` (some host did) or `cancelled`.
    pub state: String,
    pub created_at: String,
    pub created_by: String,
    pub hosts: Vec<DeploymentHost>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeploymentHost {
    pub id: PeerId,
    pub name: String,
    /// `waiting`, `running`, `done` or `failed`.
    pub state: String,
    pub progress: TransferProgress,
}
