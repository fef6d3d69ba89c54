//! How `shoal-agent fetch`, `status` and the rest talk to the running daemon.
//!
//! A Unix socket that only its owner may open. One request a connection, as one line of JSON; the
//! answer is lines of JSON, the last of which is a result or an error. A client that goes away
//! stops what it asked for; what was verified by then stays in the cache.
//!
//! Invariant: whoever can open the socket is the agent's owner; there is no other authentication.

mod client;
mod server;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use shoal_api::TransferProgress;
use shoal_content::{ClusterId, ImageReference, PeerId};
use shoal_p2p::PeerStatus;

pub use client::{Error as ClientError, ask};
pub use server::{Control, bind};

use crate::transfers::TransferRecord;

/// The longest line either side reads, in bytes.
pub const LINE_BYTES_MAX: usize = 4 << 20;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Request {
    Fetch {
        reference: ImageReference,
        /// Absolute. For a disk the file to write, for a container image the folder.
        #[serde(default)]
        output: Option<PathBuf>,
        /// For disks: `raw`, `qcow2`, `vmdk`, `vmdk-stream`, `vhd`, `vhd-fixed`, `vhdx` or `ova`;
        /// where missing, by the output's name, else `qcow2`.
        #[serde(default)]
        format: Option<String>,
        /// All blocks of the file are to be there from the beginning; for `raw` and `vhd-fixed`.
        #[serde(default)]
        preallocate: bool,
    },
    Status,
    List,
    Remove {
        reference: ImageReference,
    },
    Pin {
        reference: ImageReference,
        pinned: bool,
    },
    Explain {
        limit: usize,
    },
}

/// One line of an answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Line {
    Progress {
        /// `fetching` or `writing`.
        step: String,
        #[serde(flatten)]
        progress: TransferProgress,
    },
    Fetched {
        image: String,
        digest: String,
        output: Option<PathBuf>,
        #[serde(flatten)]
        progress: TransferProgress,
    },
    Status(StatusReport),
    List {
        images: Vec<ImageReport>,
    },
    Removed {
        freed_bytes: u64,
        /// Recipes that stay, because other images have them or something uses them.
        kept: usize,
    },
    Pinned {
        recipes: usize,
    },
    Explain {
        transfers: Vec<TransferRecord>,
        /// What the swarm says of its peers, as it says it.
        swarm: serde_json::Value,
    },
    Error {
        message: String,
    },
}

/// What the daemon says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    pub name: String,
    pub version: String,
    pub peer: PeerId,
    pub cluster: ClusterId,
    pub peer_address: String,
    pub mirror_address: Option<String>,
    /// Whether a node's order stream is open.
    pub orders_connected: bool,
    pub nodes: Vec<String>,
    pub transfers_running: usize,
    pub cache_bytes: u64,
    pub cache_bytes_max: u64,
    pub recipes: usize,
    pub limits: LimitsReport,
    /// Peers that nothing is had from for now.
    #[serde(default)]
    pub banned: BTreeMap<PeerId, BanReport>,
    /// Agents and nodes that are connected.
    #[serde(default)]
    pub peers: Vec<PeerReport>,
}

/// Why a peer is banned, and for how much longer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BanReport {
    /// `wrong_content`, `bad_frame` or `unreliable`.
    pub reason: String,
    pub seconds_left: u64,
}

/// A connection to another agent or a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerReport {
    pub peer: PeerId,
    pub address: String,
    pub node: bool,
    pub rtt_ms: u64,
    /// How chunks go between the two: `quic`, or `tls` over TCP.
    pub path: String,
}

impl From<PeerStatus> for PeerReport {
    fn from(status: PeerStatus) -> Self {
        Self {
            peer: status.peer,
            address: status.address.to_string(),
            node: status.node,
            rtt_ms: status.rtt_ms,
            path: status.path.as_str().to_owned(),
        }
    }
}

/// What may be sent and brought in at the moment; `unlimited`, or as `50 Mbit/s`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsReport {
    pub upload: String,
    pub download: String,
    /// When other limits begin, by the host's clock: `fri 18:00`.
    pub until: Option<String>,
}

/// An image as `list` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageReport {
    pub reference: String,
    /// `disk` or `container`.
    pub kind: String,
    pub digest: String,
    pub chunks_held: u64,
    pub chunks_total: u64,
    /// Of the image's content.
    pub bytes: u64,
    pub pinned: bool,
}
