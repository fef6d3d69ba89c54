//! Settings of encryption at rest.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::collection::PUBLISH_WINDOW;

/// By how much the nodes' clocks may differ.
const CLOCKS_SECONDS_MAX: u64 = 5 * 60;
/// A publisher may take so long from its look at an object to its command.
const SHRED_AFTER_SECONDS_MIN: u64 = PUBLISH_WINDOW.as_secs() + CLOCKS_SECONDS_MAX;

const KMS_TIMEOUT_SECONDS: u64 = 10;
const KMS_TIMEOUT_SECONDS_MAX: u64 = 60;

/// Objects in storage are sealed where there is a master key, which is the same on every node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Encryption {
    /// 32 bytes as base64 or hexadecimal, in a file that only the node's user can read.
    pub master_key_file: Option<PathBuf>,
    /// Those that open what was wrapped before `shoal encryption rotate`.
    pub previous_master_key_files: Vec<PathBuf>,
    /// In place of the file: the program of a key management service, by its absolute path, and its
    /// arguments. No shell reads it. What it is asked stands in `encryption::program`.
    pub kms_command: Vec<String>,
    /// One that opens what its service had wrapped before.
    pub previous_kms_command: Vec<String>,
    /// How long a call of such a program may take: 1 to 60.
    pub kms_timeout_seconds: u64,
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
            kms_command: Vec::new(),
            previous_kms_command: Vec::new(),
            kms_timeout_seconds: KMS_TIMEOUT_SECONDS,
            seal: true,
            shred_after_seconds: 900,
        }
    }
}

impl Encryption {
    /// What is wrong with it: the key, and why.
    pub(super) fn mistake(&self) -> Option<(&'static str, &'static str)> {
        let has_kms = !self.kms_command.is_empty();
        if self.master_key_file.is_some() && has_kms {
            let text = "one master key wraps: name the other one as previous_kms_command, or among \
                        previous_master_key_files";
            return Some(("kms_command", text));
        }
        if self.master_key_file.is_none() && !has_kms {
            let text = "it stands beside a master_key_file or a kms_command, which wraps";
            if !self.previous_master_key_files.is_empty() {
                return Some(("previous_master_key_files", text));
            }
            if !self.previous_kms_command.is_empty() {
                return Some(("previous_kms_command", text));
            }
        }
        let commands = [
            ("kms_command", &self.kms_command),
            ("previous_kms_command", &self.previous_kms_command),
        ];
        for (key, command) in commands {
            if command.first().is_some_and(|program| !program.starts_with('/')) {
                return Some((key, "a list: the absolute path of a program, then its arguments"));
            }
        }
        if !(1..=KMS_TIMEOUT_SECONDS_MAX).contains(&self.kms_timeout_seconds) {
            return Some(("kms_timeout_seconds", "1 to 60: requests wait for it"));
        }
        if self.shred_after_seconds < SHRED_AFTER_SECONDS_MIN {
            return Some(("shred_after_seconds", "at least 600: a push may be under way"));
        }
        None
    }
}
