//! What every refused or failed request of `/api/v1` answers with.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `code` is stable and for programs, `message` says to a person what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// For instance `image_not_found`, `disk_backing_file`, `storage_full`.
    pub code: String,
    pub message: String,
    /// Found again in the node's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// With `quota_exceeded`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<Box<crate::QuotaExceeded>>,
}
