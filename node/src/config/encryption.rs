//! Settings of encryption at rest.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

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
    /// So long after a project was removed its data keys are destroyed; less than a publisher may
    /// take from its look at an object to its command is for tests.
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
        let lonely = self.master_key_file.is_none() && !self.previous_master_key_files.is_empty();
        lonely.then_some(("previous_master_key_files", "they stand beside a master_key_file"))
    }
}
