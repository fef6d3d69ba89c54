//! That a node runs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `GET /health`, in the form that other registry managers answer in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// Always.
    pub success: bool,
    pub data: HealthData,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HealthData {
    /// `healthy`: the process answers. Whether it can do its work is `/ready`'s to say.
    pub status: String,
    /// What the node runs.
    pub version: String,
}
