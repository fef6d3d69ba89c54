//! Settings of encryption at rest.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::collection::PUBLISH_WINDOW;

/// By how much the nodes' clocks may differ.
const CLOCKS_SECONDS_MAX: u64 = 5 * 60;
/// A publisher may take so long from its look at an object to its command.
const SHRED_AFTER_SECONDS_MIN: u64 = PUBLISH_WINDOW.as_secs() + CLOCKS_SECONDS_MAX;

/// Objects in storage are sealed where there is a master key, which is the same on every node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Encryption {
    /// 32 bytes as base64 or hexadecimal, in a file that only the node's user can read.
    pub master_key_file: Option<PathBuf>,
    /// Those that open what was wrapped before `shoal encryption rotate`.
    pub previous_master_key_files: Vec<PathBuf>,
    /// `false` stores new objects as they are; those that are sealed can be read all the same.
    pub seal: bool,
    /// So long after a project was removed its data keys are destroyed; at least 600.
    pub shred_after_seconds: u64,
}

impl Default for Encryption {
    fn default() -> Self {
        Self {
            master_key_file: None,
            previous_master_key_files: Vec::new(),
            seal: true,
            shred_after_seconds: 900,
        }
    }
}

impl Encryption {
    /// What is wrong with it: the key, and why.
    pub(super) fn mistake(&self) -> Option<(&'static str, &'static str)> {
        if self.master_key_file.is_none() && !self.previous_master_key_files.is_empty() {
            return Some(("previous_master_key_files", "they stand beside a master_key_file"));
        }
        if self.shred_after_seconds < SHRED_AFTER_SECONDS_MIN {
            return Some(("shred_after_seconds", "at least 600: a push may be under way"));
        }
        None
    }
}
