//! Bundles that lead hosts from one version of a disk to the next.

use serde::{Deserialize, Serialize};
use shoal_formats::{DeltaLimits, PACK_BYTES};

use crate::delta::READ_CACHE_BYTES_MAX;
use crate::disks::PACKS_IN_FLIGHT_MAX;

/// Bundles that one node makes at once.
const AT_ONCE_MAX: usize = 16;
/// What is in memory beside the making: packs on their way to storage, and what was read of others.
const BESIDE_BYTES: u64 = (PACKS_IN_FLIGHT_MAX * PACK_BYTES) as u64 + READ_CACHE_BYTES_MAX;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Delta {
    /// Whether bundles are made and given to hosts.
    pub enabled: bool,
    /// Whether one is made from the version before as soon as a version is published; else when the
    /// first host asks.
    pub ahead: bool,
    /// Bundles made at once.
    pub at_once: usize,
    /// What making one takes at most, beside the two recipes.
    pub memory_bytes: u64,
    /// A bundle has to be so much smaller than the compressed chunks that it makes, in percent.
    pub saving_percent_min: u8,
    /// How long one is kept that nobody asks for.
    pub keep_days: u32,
}

impl Default for Delta {
    fn default() -> Self {
        Self {
            enabled: true,
            ahead: true,
            at_once: 1,
            memory_bytes: 320 * 1024 * 1024,
            saving_percent_min: 10,
            keep_days: 14,
        }
    }
}

impl Delta {
    /// What is wrong with it: the key, and why.
    pub(super) fn mistake(&self) -> Option<(&'static str, &'static str)> {
        if self.at_once == 0 || self.at_once > AT_ONCE_MAX {
            return Some(("at_once", "from 1 to 16; enabled = false makes none"));
        }
        if self.memory_bytes < DeltaLimits::MEMORY_BYTES_MIN + BESIDE_BYTES {
            return Some(("memory_bytes", "at least 256 MiB"));
        }
        if self.saving_percent_min > 90 {
            return Some(("saving_percent_min", "at most 90"));
        }
        None
    }

    pub fn limits(&self) -> DeltaLimits {
        DeltaLimits::within(self.memory_bytes.saturating_sub(BESIDE_BYTES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_fits_in_the_memory_that_it_is_given() {
        for memory_bytes in [256 << 20, 288 << 20, Delta::default().memory_bytes, 8 << 30] {
            let delta = Delta { memory_bytes, ..Delta::default() };
            assert_eq!(delta.mistake(), None);
            assert!(delta.limits().memory_bytes() + BESIDE_BYTES <= memory_bytes);
        }
        let small = Delta { memory_bytes: 100 << 20, ..Delta::default() };
        assert_eq!(small.mistake().map(|(key, _)| key), Some("memory_bytes"));
    }
}
