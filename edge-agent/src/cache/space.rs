//! How much room the cache may take, and how much its file system has left.
//!
//! Asking the file system is a system call, so the answer is kept for [`LOOK_INTERVAL`] or until
//! [`LOOK_BYTES`] were written since, whichever comes first.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::statvfs::statvfs;
use parking_lot::Mutex;

use super::Error;
use crate::config;

const LOOK_INTERVAL: Duration = Duration::from_millis(250);
const LOOK_BYTES: u64 = 16 << 20;
/// The default reserve is this share of the file system, and no more than the next constant.
const RESERVE_DIVISOR: u64 = 50;
const RESERVE_BYTES_MAX: u64 = 10 << 30;

/// In bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Eviction starts when the cache holds more.
    pub high: u64,
    /// Eviction ends when the cache holds no more than this.
    pub low: u64,
    /// What the file system keeps free.
    pub reserve: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileSystem {
    total: u64,
    available: u64,
}

#[derive(Debug)]
struct Look {
    at: Instant,
    available: u64,
    written_since: u64,
}

/// The room under one folder.
#[derive(Debug)]
pub struct Space {
    folder: PathBuf,
    limits: Limits,
    last: Mutex<Option<Look>>,
}

impl Space {
    pub fn new(folder: &Path, config: &config::Cache) -> Result<Self, Error> {
        let total = ask(folder)?.total;
        let high = config.max_bytes.map_or(total / 5 * 4, config::ByteSize::bytes);
        let reserve = config
            .min_free_bytes
            .map_or((total / RESERVE_DIVISOR).min(RESERVE_BYTES_MAX), config::ByteSize::bytes);
        let low = (u128::from(high) * u128::from(config.low_percent) / 100) as u64;
        let limits = Limits { high, low, reserve };
        Ok(Self { folder: folder.to_owned(), limits, last: Mutex::new(None) })
    }

    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// How many bytes are missing for `bytes` more to fit beside the reserve: 0 where they fit.
    pub fn missing(&self, bytes: u64) -> Result<u64, Error> {
        let mut last = self.last.lock();
        let fresh = last.as_mut().filter(|look| {
            look.at.elapsed() < LOOK_INTERVAL && look.written_since + bytes <= LOOK_BYTES
        });
        let look = match fresh {
            Some(look) => look,
            None => {
                let available = ask(&self.folder)?.available;
                last.insert(Look { at: Instant::now(), available, written_since: 0 })
            }
        };
        let wanted = self.limits.reserve.saturating_add(look.written_since).saturating_add(bytes);
        let missing = wanted.saturating_sub(look.available);
        if missing == 0 {
            look.written_since += bytes;
        }
        Ok(missing)
    }

    /// After something was deleted, or a write failed: look again next time.
    pub fn forget(&self) {
        *self.last.lock() = None;
    }
}

fn ask(folder: &Path) -> Result<FileSystem, Error> {
    let answer = statvfs(folder)
        .map_err(|errno| Error::io("asking for free space", folder, errno.into()))?;
    let block = answer.fragment_size();
    Ok(FileSystem {
        total: answer.blocks().saturating_mul(block),
        available: answer.blocks_available().saturating_mul(block),
    })
}
