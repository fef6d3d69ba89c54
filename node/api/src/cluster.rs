//! The cluster's members, and how a node joins.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shoal_content::{ClusterId, NodeId, PeerId, Zone};

/// `GET /api/v1/cluster`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterStatus {
    pub cluster: ClusterId,
    /// The node that answered.
    pub answered_by: NodeId,
    pub leader: Option<NodeId>,
    pub term: u64,
    pub last_log_index: u64,
    pub last_applied_index: u64,
    pub nodes: Vec<NodeStatus>,
    pub version: String,
    /// The newest version of commands that the cluster uses. It rises when every node knows more.
    #[serde(default)]
    pub level: u8,
    /// What every node knows.
    #[serde(default)]
    pub level_possible: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeStatus {
    pub id: NodeId,
    pub name: String,
    pub peer: PeerId,
    pub zone: Zone,
    /// `leader`, `voter`, `learner` or `removed`.
    pub role: String,
    pub api_url: String,
    pub raft_address: String,
    pub peer_address: String,
    /// The version of the program that it runs, where it has said so.
    #[serde(default)]
    pub program: Option<String>,
    /// The newest version of commands that it knows.
    #[serde(default)]
    pub level: u8,
}

/// `POST /api/v1/cluster/join`: the token is the authentication.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct JoinRequest {
    pub token: String,
    pub name: String,
    /// PKCS#10 over the node's Ed25519 key, PEM.
    pub csr_pem: String,
    pub zone: Zone,
    pub raft_address: String,
    pub peer_address: String,
    pub discovery_address: String,
    pub api_url: String,
    pub command_version: u8,
}

impl std::fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinRequest").field("name", &self.name).finish_non_exhaustive()
    }
}

/// With it the node starts Raft and waits to be made a member (the answering cluster does that).
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct JoinResponse {
    pub cluster: ClusterId,
    pub id: NodeId,
    /// May be a chain.
    pub certificate_pem: String,
    /// The authority that the join token names.
    pub authority_pem: String,
    /// All that are believed; missing where there is only that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub believed_pem: Option<String>,
    /// Of a cluster that was restored: which of its lives this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<String>,
}

/// `POST /api/v1/cluster/upgrade`: the level is raised to what every node knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LevelRaised {
    pub from: u8,
    pub to: u8,
}

/// `GET /api/v1/cluster/keys`: a key that the cluster signs with, without its secret half.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SigningKeyInfo {
    /// `token` (Bearer tokens) or `ticket` (agents' rights to chunks).
    pub purpose: String,
    /// Counted for each purpose from 0, which came with the cluster.
    pub number: u32,
    /// Ed25519, hexadecimal.
    pub public_key: String,
    /// `announced` (it will sign), `signs`, `believed` (what it signed still holds) or `ended`.
    pub state: String,
    pub signs_from: String,
    /// When the last that it signed has run out.
    pub believed_until: Option<String>,
}

/// `GET /api/v1/cluster/authority`: the certificate authorities of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuthorityStatus {
    /// Oldest first; one, and more while one takes the place of another and for a while after.
    pub authorities: Vec<AuthorityInfo>,
    /// Missing where none takes the place of another.
    pub rotation: Option<AuthorityRotation>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuthorityInfo {
    /// Counted from 0, which came with the cluster.
    pub number: u32,
    /// SHA-256 of its certificate, hexadecimal.
    pub fingerprint: String,
    /// `announced` (believed; it will sign), `signs`, `believed` (what it signed still holds), `retired`
    /// or `distrusted` (others may have its key).
    pub state: String,
    /// When it was announced, began to sign, or was retired.
    pub since: String,
    /// When its own certificate ends.
    pub ends_at: String,
}

/// Another authority takes the place of the one that there is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuthorityRotation {
    /// Of the new one.
    pub number: u32,
    /// What comes next: `sign` (the new one signs) or `retire` (the old one is believed no longer).
    pub next: String,
    /// Not before then, so that agents hear of it.
    pub not_before: String,
    /// Nodes that have not come so far yet: while there is one, the next step is not taken.
    pub waits_for: Vec<NodeId>,
    /// It waits for nodes only.
    pub hurried: bool,
}

/// `POST /api/v1/cluster/authority/rotate`: another authority.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RotateAuthority {
    /// Others may have the old one's key: it is retired as soon as all nodes have the new one, and join
    /// tokens made under it are good no longer. A rotation that is under way is cut short.
    #[serde(default)]
    pub now: bool,
}

/// `POST /api/v1/cluster/keys/{purpose}/rotate`: a new key, announced for an hour before it signs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RotateKey {
    /// The new one signs at once, and nothing is believed that those before it have signed: for a
    /// key that others may have.
    #[serde(default)]
    pub distrust: bool,
}

impl std::fmt::Debug for JoinResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinResponse").field("id", &self.id).finish_non_exhaustive()
    }
}
