//! The audit trail.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditEntry {
    pub number: u64,
    pub at: String,
    /// Empty for nobody.
    pub who: String,
    /// The address.
    pub from: String,
    /// `image.pull`, `project.create`.
    pub action: String,
    pub target: String,
    /// `done` or `refused`.
    pub result: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How often, one right after another.
    pub count: u64,
    pub request_id: String,
    pub node: u64,
    /// Of the entry and the hash before it.
    pub hash: String,
    #[serde(flatten)]
    pub words: AuditWords,
}

/// The same once more, in the words of systems that keep a log of operations.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct AuditWords {
    /// The action.
    pub operation: String,
    /// Who.
    pub operator_id: String,
    /// `user`, `service` for robots and hosts, or `system` for the cluster's own doing; nothing for
    /// nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operator_type: Option<String>,
    /// `success` or `failure`.
    pub status: String,
    /// The reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// The address.
    pub client_ip: String,
    /// When.
    pub created_at: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditPage {
    /// The newest first.
    pub entries: Vec<AuditEntry>,
    /// Where the next page begins; without it this is the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditVerification {
    /// That are in no archive.
    pub entries: u64,
    pub archives: u64,
    /// The number of the newest entry, and its hash: whoever notes them elsewhere can tell later
    /// whether the newest entries were cut off.
    pub last: u64,
    pub head: String,
    pub flaws: Vec<String>,
}

/// Entries that lie in storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditArchive {
    pub first: u64,
    pub last: u64,
    pub from: String,
    pub until: String,
    pub object: String,
    pub bytes: u64,
}
