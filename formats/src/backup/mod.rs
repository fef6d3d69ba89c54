//! The file that a cluster's metadata are backed up in.
//!
//! ```text
//! magic    8 bytes, "shoalbak"
//! version  2 bytes, big-endian: 1
//! frames   kind (1 byte), length of the body (4 bytes, big-endian), body, chain (16 bytes)
//! ```
//! A frame's chain is the beginning of the BLAKE3 of everything before it in the file, earlier
//! chains included. So each frame is known to be sound, and to follow the right one, before anybody
//! acts on it, in one pass; and a file that was cut off between two frames lacks its last one.
//!
//! | kind | body |
//! |---|---|
//! | 1 head | JSON of [`Head`]: which cluster, when, at which index of its log, by which program |
//! | 2 rows | records: table (1), length of the key (4), key, length of the row (4), row |
//! | 3 objects | records: length of the key (2), key, size + 1 or 0 (8), length of the digest (1), digest |
//! | 4 end | JSON of [`Totals`] |
//!
//! One head, then rows in the order of table and key, then objects in the order in which they are
//! named, then the end, and nothing behind it. All numbers are big-endian; keys and digests of
//! objects are text. Rows are the metadata's own stored form, which says its version.
//!
//! **What it holds:** everything that the cluster agrees on: names, manifests, users with the hashes
//! of their passwords – and the cluster's secrets: the private key of its authority and the keys
//! that sign tickets and tokens. Whoever reads it can pose as the cluster. It does not hold bytes
//! of objects; it names those that the metadata need ([`Needed`]).
//!
//! Invariants: a length is held against a limit before anything is allocated for it; a version or
//! kind of frame that is not known is refused, never skipped.
//! Non-goals: opening files, encryption, compression (`zstd` does that to the file as well as here),
//! what the rows mean.

mod check;
mod reader;
mod writer;

use serde::{Deserialize, Serialize};
use shoal_content::{ClusterId, Digest, ObjectKey, Timestamp};
use thiserror::Error;

pub use check::{Check, Flaw};
pub use reader::{Frame, Reader};
pub use writer::Writer;

const MAGIC: &[u8; 8] = b"shoalbak";

/// The version of the format that is written, and the newest that is read.
pub const BACKUP_VERSION: u16 = 1;

const HEAD: u8 = 1;
const ROWS: u8 = 2;
const OBJECTS: u8 = 3;
const END: u8 = 4;

/// The bytes of a frame before its body.
const FRAME_HEAD_BYTES: usize = 5;
const CHAIN_BYTES: usize = 16;

/// The longest body of a frame: the longest row there is, and some.
const FRAME_BYTES_MAX: usize = 32 * 1024 * 1024;

/// A frame is ended once its body is as long as this.
const FRAME_BYTES: usize = 1024 * 1024;

/// What a backup says of itself, before anything else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub cluster: ClusterId,
    pub made_at: Timestamp,
    /// The entry of the cluster's log that was applied last.
    pub index: u64,
    /// The cluster's level then: a program that knows less cannot take it up.
    pub level: u8,
    /// The newest version of its rows.
    pub row_version: u8,
    /// The highest number of a table.
    pub tables: u8,
    /// The version of the program that wrote it, for people.
    pub program: String,
}

/// What a backup says of itself in the end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub rows: u64,
    /// Keys and rows, in bytes.
    pub row_bytes: u64,
    pub objects: u64,
}

/// One row of the metadata, as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    pub table: u8,
    pub key: &'a [u8],
    pub row: &'a [u8],
}

/// An object of central storage that the metadata name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    pub key: ObjectKey,
    /// In bytes, where the metadata know it: that of a blob.
    pub size: Option<u64>,
    /// Of its bytes, where the key does not say it itself (packs and recipes are named by theirs).
    pub digest: Option<Digest>,
}

/// Why a backup cannot be written or read.
#[derive(Debug, Error)]
pub enum BackupError {
    #[error("it is no backup of a Shoal cluster")]
    Foreign,
    #[error(
        "it is in version {0} of the format, and this program knows versions up to {BACKUP_VERSION}; use a later one"
    )]
    Newer(u16),
    #[error("it was cut off: {bytes} bytes are there, and its end is not among them")]
    Truncated { bytes: u64 },
    #[error("it is damaged between byte {from} and byte {to}")]
    Damaged { from: u64, to: u64 },
    #[error("it is not as a backup is made: {0}")]
    Malformed(&'static str),
    #[error("a row of {0} bytes is longer than any may be")]
    TooLong(usize),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
