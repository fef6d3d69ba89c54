//! Whether the disk has room for more.
//!
//! Invariant: the reserve is looked at before anything is appended, so that RocksDB does not meet
//! a full disk while there is a reserve. The look is at most [`LOOK_INTERVAL`] old.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long one look at the disk counts.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// What the answer to a client says.
pub const DISK_FULL: &str = "disk full";

/// Watches the free bytes of one folder's disk.
#[derive(Debug)]
pub struct Space {
    folder: PathBuf,
    reserve_bytes: u64,
    last: Mutex<Option<(Instant, u64)>>,
}

impl Space {
    pub fn new(folder: PathBuf, reserve_bytes: u64) -> Self {
        Self { folder, reserve_bytes, last: Mutex::new(None) }
    }

    /// Bytes that this process may still write; where the disk cannot be asked, there is no limit
    /// known and RocksDB will say.
    pub fn free_bytes(&self) -> u64 {
        let mut last = self.last.lock();
        if let Some((at, free)) = *last
            && at.elapsed() < LOOK_INTERVAL
        {
            return free;
        }
        let free = match nix::sys::statvfs::statvfs(&self.folder) {
            Ok(disk) => disk.blocks_available().saturating_mul(disk.fragment_size()),
            Err(_) => u64::MAX,
        };
        *last = Some((Instant::now(), free));
        free
    }

    /// Whether a proposal may come in.
    pub fn has_reserve(&self) -> bool {
        self.free_bytes() >= self.reserve_bytes
    }

    /// Whether entries that a leader has already taken may come in. Only half the reserve is asked
    /// for, so that a leader refuses before its followers, on disks of the same size, fall behind.
    pub fn has_half_reserve(&self) -> bool {
        self.free_bytes() >= self.reserve_bytes / 2
    }

    /// Whether `bytes` fit without touching the reserve.
    pub fn fits(&self, bytes: u64) -> bool {
        self.free_bytes().checked_sub(bytes).is_some_and(|left| left >= self.reserve_bytes)
    }
}
