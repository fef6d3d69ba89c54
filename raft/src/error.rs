//! What can go wrong, by what the caller was doing.

use std::io;
use std::path::PathBuf;

use shoal_metadata::{Fault, Refusal};
use thiserror::Error;

/// Starting, stopping or changing the group failed.
#[derive(Debug, Error)]
pub enum Error {
    #[error("the Raft configuration is refused: {0}")]
    Config(String),
    #[error("cannot {doing} {path}")]
    Files { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot open the database in {path}: {reason}")]
    Open { path: PathBuf, reason: String },
    #[error("this node has Raft state already; a new cluster starts with an empty folder")]
    NotEmpty,
    #[error("the change of the members failed: {0}")]
    Membership(String),
    #[error("no leader answered in time: {0}")]
    Unavailable(String),
    #[error("the Raft core has stopped: {0}")]
    Stopped(String),
    /// A cluster does not go back behind its level.
    #[error(
        "the cluster is at level {level} and this program knows levels up to {knows} only; \
         install the version that ran here before, or a later one"
    )]
    TooOld { level: u8, knows: u8 },
    #[error("{path} is there already")]
    Exists { path: PathBuf },
}

impl Error {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Stopped(_) | Self::Membership(_))
    }
}

/// A command was not applied, or it is not known whether it was.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProposeError {
    /// The state machine's answer; proposing again gives the same until something changes.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No majority answered in time. The command may be applied yet.
    #[error("the metadata cannot be changed right now: {reason}")]
    Unavailable { reason: String },
    /// A member might not understand the command: `oldest` is the cluster's level.
    #[error(
        "this needs the cluster's level {needs}, which is {oldest} now; it rises once every node \
         runs a program that knows it"
    )]
    Unsupported { needs: u8, oldest: u8 },
    /// Nothing was changed: the leader's storage has no room.
    #[error("the metadata cannot be stored: {0}")]
    Storage(String),
}

impl ProposeError {
    /// Whether the same command may succeed later, without anyone changing it.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Storage(_))
    }
}

/// A linearizable read could not be had.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReadError {
    #[error("the metadata cannot be read right now: {reason}")]
    Unavailable { reason: String },
}

impl ReadError {
    /// Always: reading changes nothing.
    pub fn is_retryable(&self) -> bool {
        true
    }
}

/// What openraft's storage traits want; the cause is in the text.
pub(crate) fn storage(doing: &'static str) -> impl Fn(rocksdb::Error) -> io::Error {
    move |error| io::Error::other(format!("{doing}: {error}"))
}

pub(crate) fn fault(error: &Fault) -> io::Error {
    io::Error::other(error.to_string())
}
