//! How much may be held, and how much is.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

/// `PUT /api/v1/quotas/OF`: what may be held at most, each by one of its names; `null`, or nothing,
/// is any amount. A field that is no limit is refused: it would be taken for one that holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PutQuota {
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<Option<u64>>,
    /// Another name for `max_bytes`.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub max_storage_bytes: Option<Option<u64>>,
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub max_images: Option<Option<u64>>,
    /// Another name for `max_images`.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub max_image_count: Option<Option<u64>>,
    /// Of a single version.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub max_image_bytes: Option<Option<u64>>,
    /// Another name for `max_image_bytes`.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub max_image_size_bytes: Option<Option<u64>>,
}

/// A `null` is said, unlike nothing: it takes away the limit that was shown by another name, too.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// What may be held at most, by all its names; `null` is any amount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QuotaLimits {
    #[serde(default)]
    pub max_bytes: Option<u64>,
    /// The same number.
    #[serde(default)]
    pub max_storage_bytes: Option<u64>,
    #[serde(default)]
    pub max_images: Option<u64>,
    /// The same number.
    #[serde(default)]
    pub max_image_count: Option<u64>,
    /// Of a single version.
    #[serde(default)]
    pub max_image_bytes: Option<u64>,
    /// The same number.
    #[serde(default)]
    pub max_image_size_bytes: Option<u64>,
}

/// What a project, an owner or a group holds, and the limits that it is held to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Each content of a project once, with its logical length.
    pub used_bytes: u64,
    /// The same number.
    #[serde(default)]
    pub current_storage_bytes: u64,
    /// By uploads that are under way; they count like content.
    pub reserved_bytes: u64,
    pub images: u64,
    /// The same number.
    #[serde(default)]
    pub current_image_count: u64,
    #[serde(flatten)]
    pub limits: QuotaLimits,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Quota {
    /// `user:NAME`, `group:ORGANIZATION/NAME`, `organization:NAME`, `project:NAME`, `cluster`, or
    /// `default:` and a kind: for each of the kind that has no limits of its own.
    pub of: String,
    /// `user`, `user_group`, `organization`, `project` or `cluster`; nothing for a default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal_type: Option<String>,
    /// Its name; nothing for the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal_id: Option<String>,
    /// Nothing for a default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// What was set for exactly this; without it a default holds, or nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<QuotaLimits>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_by: Option<String>,
}

/// Why a push was refused with `quota_exceeded`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QuotaExceeded {
    /// Whose quota.
    pub of: String,
    /// `bytes`, `images` or `image_bytes`.
    pub kind: String,
    pub limit: u64,
    /// With what is reserved.
    pub used: u64,
    /// In addition.
    pub wanted: u64,
}

/// Accounts against a recount of everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QuotaCheck {
    /// Where they differ; nothing is right.
    pub drifts: Vec<String>,
}
