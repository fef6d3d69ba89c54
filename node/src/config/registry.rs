//! What the registry takes and lets go.

use serde::{Deserialize, Serialize};

/// `/v2`, and uploads of all kinds; the same settings belong on every node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registry {
    /// Whether tags, manifests and blobs can be deleted by `/v2`. Where not, retention, the REST
    /// API and collection go on.
    pub deletes: bool,
    /// Uploads of blobs that one account, a person or a robot, may have open at once, over all
    /// nodes; and as many of disks, with imports. 0 is any number.
    pub uploads_open_max_per_account: u64,
}

impl Default for Registry {
    fn default() -> Self {
        Self { deletes: true, uploads_open_max_per_account: 1_000 }
    }
}
