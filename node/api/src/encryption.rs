//! Encryption at rest.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `GET /api/v1/cluster/encryption`: whether what is stored is sealed, and by which keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EncryptionStatus {
    /// `off` (this node has no master key), `waiting` (not every node has it), `on`, or `reading`
    /// (what is sealed can be read, and new objects are stored as they are).
    pub state: String,
    /// The master key that wraps new data keys, by its id; none before the first data key.
    pub master_key: Option<String>,
    /// Those that the node has which answers, by their ids.
    pub node_master_keys: Vec<String>,
    /// The one that a rotation would go over to.
    pub newest_master_key: Option<String>,
    /// Nodes that have not said that they have that one.
    pub waiting_for: Vec<u64>,
    /// How many data keys each master key has wrapped.
    pub wrapped_by: BTreeMap<String, u64>,
    /// Of removed projects, about to be destroyed.
    pub retired_keys: u64,
    pub destroyed_keys: u64,
    /// Data keys, those that were made last first; at most as many as were asked for.
    pub data_keys: Vec<DataKeyInfo>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DataKeyInfo {
    pub id: String,
    /// None is the cluster itself: archives of the trail, and what belongs to no project.
    pub project: Option<String>,
    /// `seals`, `opens` (another one seals), `retired` (its project was removed) or `destroyed`.
    pub state: String,
    /// The master key that has wrapped it.
    pub master_key: Option<String>,
    pub created_at: String,
    pub retired_at: Option<String>,
    pub destroyed_at: Option<String>,
}

/// `POST /api/v1/cluster/encryption/rotate`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RotateEncryption {
    /// Gives this project another data key; without it, the newest master key wraps all data keys.
    #[serde(default)]
    pub project: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EncryptionRotated {
    /// Data keys that were made, or wrapped anew.
    pub data_keys: u64,
    pub master_key: String,
}
