//! Join tokens, enrolment, and what an agent asks a node for.
//!
//! After enrolment an agent authenticates with a short-lived token that it signs itself (JWT,
//! EdDSA, its own Ed25519 key), so that any node can check it and nothing has to be renewed.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shoal_content::{
    ClusterId, DeploymentId, Digest, ImageReference, NodeId, PeerId, Priority, RecipeId,
    RepositoryName, TagName, TransferId, Zone,
};

/// `POST /api/v1/join-tokens` (admin).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CreateJoinToken {
    /// `agent` or `node`.
    pub role: String,
    pub ttl_seconds: u64,
    /// How many may join with it; any number where missing.
    #[serde(default)]
    pub uses: Option<u32>,
}

/// The text is shown once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JoinTokenCreated {
    pub id: String,
    /// `shoal-join-v1.<CA fingerprint>.<id>.<secret>`
    pub token: String,
    pub expires_at: String,
}

impl std::fmt::Debug for JoinTokenCreated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinTokenCreated").field("id", &self.id).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JoinTokenInfo {
    pub id: String,
    pub role: String,
    pub uses_left: Option<u32>,
    pub created_at: String,
    pub expires_at: String,
}

/// `POST /api/v1/agents/enrol`: the token is the authentication.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct EnrolRequest {
    pub token: String,
    pub name: String,
    /// PKCS#10 over the agent's Ed25519 key, PEM.
    pub csr_pem: String,
    /// `host` or `cache`.
    pub role: String,
    pub zone: Zone,
    pub labels: BTreeMap<String, String>,
}

impl std::fmt::Debug for EnrolRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnrolRequest").field("name", &self.name).finish_non_exhaustive()
    }
}

#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct EnrolResponse {
    pub cluster: ClusterId,
    /// May be a chain.
    pub certificate_pem: String,
    /// The authority that the join token names.
    pub authority_pem: String,
    /// All that are believed; missing where there is only that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub believed_pem: Option<String>,
    /// Ed25519, hexadecimal: checks tickets. For agents that know one key only; see `ticket_keys`.
    pub ticket_public_key: String,
    /// Those that check tickets now.
    #[serde(default)]
    pub ticket_keys: Vec<TicketKeyInfo>,
    /// 32 bytes, hexadecimal: the libp2p network's pre-shared key.
    pub network_key: String,
    pub nodes: Vec<NodeAddress>,
}

/// A key that tickets are checked with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TicketKeyInfo {
    /// Ed25519, hexadecimal.
    pub public_key: String,
    /// Milliseconds since 1970, when the last ticket that it signed has run out; missing where it
    /// may still sign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<u64>,
}

impl std::fmt::Debug for EnrolResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnrolResponse").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// Whom agents believe from now on, in place of those before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuthorityNews {
    /// The authorities, PEM.
    pub believed_pem: String,
    /// The one that signs: whoever has another one's certificate asks for one of it.
    pub signs_pem: String,
}

/// How agents reach a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeAddress {
    pub id: NodeId,
    pub name: String,
    pub peer: PeerId,
    pub zone: Zone,
    pub api_url: String,
    /// `host:port` of the QUIC peer endpoint.
    pub peer_address: String,
    /// `host:port` of the libp2p endpoint.
    pub discovery_address: String,
}

/// `GET /api/v1/agents` (people) shows these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AgentInfo {
    pub id: PeerId,
    pub name: String,
    pub role: String,
    pub zone: Zone,
    pub labels: BTreeMap<String, String>,
    /// Whether its order stream is open on some node, as far as the asked node knows.
    pub online: bool,
    pub enrolled_at: String,
}

/// `POST /api/v1/agents/self/resolve`: one reference, with the right to its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AgentResolveRequest {
    pub reference: ImageReference,
    /// Where missing, all that the version refers to; else only these blobs, which must belong to
    /// the repository.
    #[serde(default)]
    pub blobs: Option<Vec<Digest>>,
    /// All of it is to come to this host: what is not here of another registry's image is asked for
    /// there, and named in `awaited` until it is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub whole: bool,
    /// `linux/amd64`: of another registry's index, `whole` asks for what is for this; where missing,
    /// for everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AgentResolution {
    pub image: RepositoryName,
    /// Whether anyone may pull it.
    #[serde(default)]
    pub public: bool,
    /// `disk` or `container`.
    pub kind: String,
    pub version: String,
    pub manifest_digest: Digest,
    pub media_type: String,
    /// The manifest's bytes, base64.
    pub manifest: String,
    /// Manifests below an index, each with its bytes.
    pub manifests: Vec<ManifestContent>,
    pub disk: Option<DiskGrant>,
    pub blobs: Vec<BlobGrant>,
    /// What whoever pulls it is to be told: that it may be out of date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// What of it is on its way from another registry; `blobs` has the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub awaited: Option<AwaitedContent>,
}

/// Content of another registry's that a node has asked for and does not hold yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AwaitedContent {
    /// By which the cluster knows that registry.
    pub from: String,
    pub blobs: u64,
    pub bytes: u64,
    /// The last error of that registry's at this node, if it had any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ManifestContent {
    pub digest: Digest,
    pub media_type: String,
    /// Base64.
    pub content: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiskGrant {
    pub recipe: RecipeId,
    pub virtual_size_bytes: u64,
    pub content_size_bytes: u64,
    /// Ticket bytes, base64, bound to the asking agent.
    pub ticket: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BlobGrant {
    pub digest: Digest,
    pub size_bytes: u64,
    pub recipe: RecipeId,
    /// Ticket bytes, base64, bound to the asking agent.
    pub ticket: String,
}

/// `POST /api/v1/agents/self/certificate`: another certificate for the key that this agent has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CertificateRequest {
    /// PKCS#10 over that key, PEM.
    pub csr_pem: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CertificateResponse {
    pub certificate_pem: String,
}

/// `POST /api/v1/agents/self/delta`: a bundle that leads from a disk that this host has to another
/// version of the same image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeltaRequest {
    /// The version that the host wants.
    pub reference: ImageReference,
    /// Disks that it has whole, those first that are likelier to resemble it; others than the
    /// image's own count for nothing.
    pub held: Vec<RecipeId>,
    /// How long the answer may wait for a bundle that is being made; 8 s at most.
    #[serde(default)]
    pub wait_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum DeltaAnswer {
    Ready(DeltaGrant),
    /// One is being made; ask again, or fetch chunks.
    Making {
        /// Content that the host lacks, in bytes.
        missing_bytes: u64,
    },
    /// There will be none that is worth it.
    None,
}

/// A bundle, which is a blob like others, with the right to its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeltaGrant {
    /// The disk that it starts from.
    pub old: RecipeId,
    /// The bundle's own.
    pub recipe: RecipeId,
    pub size_bytes: u64,
    /// Content of the chunks that it makes.
    pub content_bytes: u64,
    /// Ticket bytes, base64, bound to the asking agent.
    pub ticket: String,
}

/// `GET /api/v1/agents/self/orders`: newline-delimited JSON that stays open; one of these a line.
/// On opening, `Nodes`, `Standing`, every order still pending and `Keep` are sent; `Ping` comes at
/// least every 10 s.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OrderMessage {
    Nodes {
        nodes: Vec<NodeAddress>,
        /// Those that check tickets from now on; none where the node knows the first only.
        #[serde(default)]
        ticket_keys: Vec<TicketKeyInfo>,
        /// Agents that were removed and whose certificates may still hold; missing where the node
        /// knows of none such.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expelled: Option<Vec<PeerId>>,
        /// Missing where the node knows of one authority only, which stays.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        authorities: Option<AuthorityNews>,
    },
    Deploy {
        deployment: DeploymentId,
        reference: ImageReference,
        tag: Option<TagName>,
        #[serde(default)]
        priority: Priority,
        /// Reports name it; an order that comes again with a greater one is to be begun anew.
        #[serde(default)]
        attempt: u32,
    },
    /// Stop this attempt, and those before it: the order was called off, held up or is too late.
    Cancel {
        deployment: DeploymentId,
        #[serde(default)]
        attempt: u32,
    },
    /// All orders that stand: whatever else is under way was called off unheard.
    Standing {
        deployments: Vec<DeploymentId>,
    },
    /// All that policies keep on this host, in place of what was said before: what came by an order and
    /// has left the host's cache since is to be brought again.
    Keep {
        references: Vec<ImageReference>,
    },
    Ping,
}

/// `POST /api/v1/agents/self/progress`: soft while `Running`, replicated at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProgressReport {
    pub deployment: DeploymentId,
    pub transfer: TransferId,
    /// Of the order that is carried out.
    #[serde(default)]
    pub attempt: u32,
    pub progress: TransferProgress,
}

/// How far a transfer is and where its bytes came from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TransferProgress {
    /// `running`, `done` or `failed`.
    pub state: String,
    pub bytes_total: u64,
    pub bytes_done: u64,
    /// From its own cache.
    pub bytes_local: u64,
    /// Of these, what stood there as part of other images and was copied.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub bytes_deduplicated: u64,
    /// Made from its own cache and delta bundles.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub bytes_by_delta: u64,
    /// What came of delta bundles for that; it is counted by who sent it, too.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub delta_bundle_bytes: u64,
    /// By the name of the agent, else its peer id.
    pub bytes_by_peer: BTreeMap<String, u64>,
    /// By the name of the node, else its peer id: what came out of central storage, which agents
    /// reach through nodes only. One read there serves all who ask, so that how much of it was read for this
    /// host alone is no number; what is read in all, a node's metrics have.
    pub bytes_by_node: BTreeMap<String, u64>,
    /// What agents sent, by where they stand: `REGION/ROOM/RACK`, and nothing for those that do not say.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bytes_by_zone: BTreeMap<String, u64>,
    pub rate_bytes_per_second: u64,
    pub elapsed_ms: u64,
    /// What the host's line brings at most: its interface, or the limit that is set for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line_bytes_per_second: Option<u64>,
    /// What would have to happen next for more to come, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde gives a reference.
fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}
