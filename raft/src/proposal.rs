//! The types that openraft is parameterised with.
//!
//! An entry of the log carries the command in its encoded form, with the version byte of
//! `shoal-metadata`, so that a member meets a command it does not know as such and not as a torn
//! entry. Layout of stored and sent values: postcard.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shoal_content::Timestamp;
use shoal_metadata::{Refusal, Response};

/// For so many log entries the answer to a proposal is remembered (about 36 bytes each). A retry
/// comes within [`crate::PROPOSE_TIMEOUT`], so this suffices up to 26,000 commands a second;
/// `benches/metadata` says how many a group takes.
pub const PROPOSALS_REMEMBERED: u64 = 262_144;

/// The longest encoded command, in bytes: the longest manifest and what is kept beside it.
pub const COMMAND_BYTES_MAX: usize = 12 * 1024 * 1024;

openraft::declare_raft_types!(
    pub TypeConfig:
        D = Proposal,
        R = Applied,
        NodeId = u64,
        Node = openraft::BasicNode,
);

pub type Engine = openraft::Raft<TypeConfig, crate::machine::StateMachine>;
pub type Entry = openraft::alias::EntryOf<TypeConfig>;
pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
pub type Membership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;

/// A command on its way.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// Random; the same in every retry.
    pub id: u128,
    pub at: Timestamp,
    /// See `shoal_metadata::encode_command`.
    pub command: Bytes,
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Commands carry secrets: nothing of them is shown.
        write!(f, "proposal {:032x} of {} bytes", self.id, self.command.len())
    }
}

/// What an applied entry answers. Nearly all are answers, so boxing them would save nothing.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applied {
    /// The entry was Raft's own.
    Nothing,
    Answer(Result<Response, Refusal>),
}
