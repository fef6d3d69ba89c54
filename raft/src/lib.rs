//! The metadata, replicated: openraft over RocksDB and QUIC.
//!
//! [`Raft`] is all that the rest of a node sees. Any node takes proposals and linearizable reads;
//! where another one leads, they are forwarded to it.
//!
//! ```text
//! propose -> (forward) -> log (RocksDB, synced in groups) -> majority -> state (RocksDB) -> answer
//! read    -> (ask the leader for its commit index) -> wait until applied here -> View
//! ```
//!
//! Reading: [`Raft::read`] and [`Raft::local`] give a [`View`], a frozen state of the tables. It is
//! `Send + 'static`, cheap to clone and to keep for a request, and blocks only for RocksDB:
//! ```text
//! let view = raft.read().await?;
//! let image = view.query().image_by_name(&name)?;
//! ```
//! Do not keep one for longer than a request: RocksDB keeps what it shows until it is dropped.
//!
//! Invariants: what was answered to a proposal is on a majority's disks. A proposal is applied
//! once however often it is sent again within [`PROPOSALS_REMEMBERED`] log entries. Everything
//! received is bounded before it is allocated.
//!
//! A full disk: a leader refuses proposals, and a follower log entries, while less than
//! [`Config::disk_reserve_bytes`] are free, so that RocksDB has room for what is under way. Should
//! RocksDB fail all the same, openraft stops its core; a supervisor then closes the databases,
//! waits for space, and opens them again (see `supervisor`).
//!
//! Non-goals: what the rows mean (`shoal-metadata`), certificates (the endpoint and the client
//! configuration are handed in), HTTP.

// The tests inside the crate share the harness of those outside.
#[cfg(test)]
extern crate self as shoal_raft;

mod config;
#[cfg(test)]
mod conformance;
mod core;
mod error;
mod folder;
mod forward;
#[doc(hidden)]
pub mod fuzz;
mod handover;
#[cfg(test)]
#[path = "../tests/harness/mod.rs"]
mod harness;
mod log;
mod machine;
mod members;
mod memo;
mod metrics;
mod network;
mod peers;
mod proposal;
mod propose;
mod raft;
mod read;
mod restore;
mod server;
mod snapshot;
mod space;
mod store;
mod supervisor;
mod tail;
mod transfer;
#[cfg(test)]
mod upgrade;
mod view;
mod wire;
mod writer;

pub use config::{Config, Transport, quic_settings};
pub use error::{Error, ProposeError, ReadError};
pub use folder::has_databases;
pub use metrics::METRIC_NAMES;
pub use proposal::PROPOSALS_REMEMBERED;
pub use propose::PROPOSE_TIMEOUT;
pub use raft::{Raft, Status};
pub use read::READ_TIMEOUT;
pub use restore::Restoring;
pub use view::{StoredRow, View};
