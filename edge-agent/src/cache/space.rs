//! How much room the cache may take, and how much its file system has left.
//!
//! Asking the file system is a system call, so the answer is kept for [`LOOK_INTERVAL`] or until
//! [`LOOK_BYTES`] were written since, whichever comes first. The limits follow from the answer, so
//! a file system that grew under a running agent is used at once.

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
    file_system: FileSystem,
    written_since: u64,
    /// Something happened that this answer does not know.
    stale: bool,
}

impl Look {
    fn ask(folder: &Path) -> Result<Self, Error> {
        let file_system = ask(folder)?;
        Ok(Self { at: Instant::now(), file_system, written_since: 0, stale: false })
    }

    fn serves(&self, bytes: u64) -> bool {
        let room = LOOK_BYTES.saturating_sub(self.written_since);
        !self.stale && self.at.elapsed() < LOOK_INTERVAL && bytes <= room
    }
}

/// The room under one folder.
#[derive(Debug)]
pub struct Space {
    folder: PathBuf,
    max_bytes: Option<u64>,
    min_free_bytes: Option<u64>,
    low_percent: u8,
    last: Mutex<Look>,
}

impl Space {
    pub fn new(folder: &Path, config: &config::Cache) -> Result<Self, Error> {
        Ok(Self {
            folder: folder.to_owned(),
            max_bytes: config.max_bytes.map(config::ByteSize::bytes),
            min_free_bytes: config.min_free_bytes.map(config::ByteSize::bytes),
            low_percent: config.low_percent,
            last: Mutex::new(Look::ask(folder)?),
        })
    }

    /// As the file system is now, or was when it last answered.
    pub fn limits(&self) -> Limits {
        let mut last = self.last.lock();
        if !last.serves(0)
            && let Ok(look) = Look::ask(&self.folder)
        {
            *last = look;
        }
        self.limits_of(last.file_system)
    }

    fn limits_of(&self, FileSystem { total, .. }: FileSystem) -> Limits {
        let high = self.max_bytes.unwrap_or(total / 5 * 4);
        let low = (u128::from(high) * u128::from(self.low_percent) / 100) as u64;
        let share = (total / RESERVE_DIVISOR).min(RESERVE_BYTES_MAX);
        Limits { high, low, reserve: self.min_free_bytes.unwrap_or(share) }
    }

    /// How many bytes are missing for `bytes` more to fit beside the reserve: 0 where they fit,
    /// and are counted as written then.
    pub fn missing(&self, bytes: u64) -> Result<u64, Error> {
        self.lack(bytes, true)
    }

    /// The same without counting anything as written.
    pub fn would_miss(&self, bytes: u64) -> Result<u64, Error> {
        self.lack(bytes, false)
    }

    fn lack(&self, bytes: u64, writes: bool) -> Result<u64, Error> {
        let mut last = self.last.lock();
        if !last.serves(bytes) {
            *last = Look::ask(&self.folder)?;
        }
        let reserve = self.limits_of(last.file_system).reserve;
        let wanted = reserve.saturating_add(last.written_since).saturating_add(bytes);
        let missing = wanted.saturating_sub(last.file_system.available);
        if missing == 0 && writes {
            last.written_since += bytes;
        }
        Ok(missing)
    }

    /// What the file system says now that it has left, in bytes.
    pub fn available(&self) -> Result<u64, Error> {
        Ok(ask(&self.folder)?.available)
    }

    /// How large the file system was when it last answered, in bytes.
    pub fn total(&self) -> u64 {
        self.last.lock().file_system.total
    }

    /// After something was deleted, or a write failed: look again next time.
    pub fn forget(&self) {
        self.last.lock().stale = true;
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
