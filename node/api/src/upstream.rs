//! Other registries, whose images are pulled through the cluster.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One of `GET /api/v1/upstreams`, as it stands with the node that answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UpstreamInfo {
    /// The first part of its images' names here, and the project that holds them.
    pub name: String,
    /// By what else `?ns=` may name it.
    pub aliases: Vec<String>,
    pub url: String,
    /// Whether anyone may pull its images here.
    #[serde(default)]
    pub public: bool,
    /// Whether nodes log in there.
    pub login: bool,
    /// How long a tag is not looked up again.
    pub tag_seconds: u64,
    /// Manifests and blobs that were here when they were asked for, since the node started.
    pub hits: u64,
    /// Those that the upstream was asked for.
    pub misses: u64,
    /// Tags that were given as last known, because the upstream did not answer.
    pub stale: u64,
    /// Of blobs.
    pub received_bytes: u64,
    /// How many requests it takes in a while, as far as it says.
    pub limit: Option<u64>,
    /// How many of them are left.
    pub limit_remaining: Option<u64>,
    /// For so long it is left alone, because it wants that or could not be reached.
    pub paused_seconds: Option<u64>,
    pub asked_at: Option<String>,
    pub answered_at: Option<String>,
    pub last_error: Option<String>,
    pub last_error_at: Option<String>,
}
