//! When objects are deleted that nothing refers to, and packs are written anew that are mostly garbage.

use serde::{Deserialize, Serialize};

/// Above this share packs would be written anew for next to nothing.
const COMPACT_BELOW_PERCENT_MAX: u8 = 95;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Collection {
    /// How long they are kept: downloads under way may still need them.
    pub grace_seconds: u64,
    pub interval_seconds: u64,
    /// Of a pack of which less than so much is needed, that is written into another; 0 is never.
    pub compact_below_percent: u8,
    /// Bytes of such packs that are read in a second, about.
    pub compact_bytes_per_second: u64,
}

impl Default for Collection {
    fn default() -> Self {
        Self {
            grace_seconds: 24 * 3600,
            interval_seconds: 600,
            compact_below_percent: 50,
            compact_bytes_per_second: 32 * 1024 * 1024,
        }
    }
}

impl Collection {
    /// What is wrong with it: the key, and why.
    pub(super) fn mistake(&self) -> Option<(&'static str, &'static str)> {
        if self.interval_seconds == 0 {
            return Some(("interval_seconds", "at least 1"));
        }
        if self.compact_below_percent > COMPACT_BELOW_PERCENT_MAX {
            return Some(("compact_below_percent", "at most 95; 0 is never"));
        }
        if self.compact_bytes_per_second == 0 {
            return Some(("compact_bytes_per_second", "at least 1"));
        }
        None
    }
}
