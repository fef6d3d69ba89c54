//! What a Raft member is told when it starts.
//!
//! Non-goal: reading files or flags; the node does that.

use std::path::PathBuf;
use std::sync::Arc;

use shoal_content::{NodeId, PeerId};
use shoal_metadata::COMMAND_VERSION;

use crate::error::Error;

/// The space that stays free on the disk of the databases, in bytes: room for what RocksDB writes
/// to settle what it has accepted.
const DISK_RESERVE_BYTES: u64 = 256 * 1024 * 1024;

/// Log entries between two snapshots.
const SNAPSHOT_AFTER_ENTRIES: u64 = 20_000;

/// Log entries that are kept behind a snapshot, so that a member that was away shortly catches up
/// without one; and one that is sent a large state finds what was written meanwhile, rather than that
/// it needs the next snapshot. Nothing bounds their bytes besides: entries have some hundred bytes,
/// those with a manifest mostly a few KiB, so that they are some hundred MiB at the most where a
/// cluster does little but push. Fewer than the answers that are remembered, so that what is applied
/// late is answered as it was.
const KEEP_ENTRIES: u64 = 100_000;

/// How a member runs. The defaults suit nodes of one site or of sites near each other.
#[derive(Debug, Clone)]
pub struct Config {
    pub node: NodeId,
    /// Belongs to this member alone; made where it is missing.
    pub directory: PathBuf,
    /// The leader shows that it lives once in so many milliseconds.
    pub heartbeat_ms: u64,
    /// A member that hears of no leader for a random time between these, in milliseconds, asks for
    /// an election. At least four heartbeats, and long beside the lease of reads (50 ms).
    pub election_ms: (u64, u64),
    /// Log entries between two snapshots.
    pub snapshot_after: u64,
    /// Log entries that are kept behind a snapshot.
    pub keep_entries: u64,
    /// Proposals are refused while less than this is free, in bytes.
    pub disk_reserve_bytes: u64,
    /// The newest command version that this member applies. Tests set another one, to stand for an
    /// earlier or a later program.
    #[doc(hidden)]
    pub command_version: u8,
}

impl Config {
    /// The defaults for `node`, with its databases in `directory`.
    pub fn new(node: NodeId, directory: impl Into<PathBuf>) -> Self {
        Self {
            node,
            directory: directory.into(),
            heartbeat_ms: 250,
            election_ms: (1000, 2000),
            snapshot_after: SNAPSHOT_AFTER_ENTRIES,
            keep_entries: KEEP_ENTRIES,
            disk_reserve_bytes: DISK_RESERVE_BYTES,
            command_version: COMMAND_VERSION,
        }
    }

    pub(crate) fn openraft(&self) -> Result<openraft::Config, Error> {
        let config = openraft::Config {
            cluster_name: "shoal".to_owned(),
            heartbeat_interval: self.heartbeat_ms,
            election_timeout_min: self.election_ms.0,
            election_timeout_max: self.election_ms.1,
            // Of a whole transfer; that it goes on is watched piece by piece (see `transfer`).
            install_snapshot_timeout: SNAPSHOT_TIMEOUT_MS,
            snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(self.snapshot_after),
            max_in_snapshot_log_to_keep: self.keep_entries,
            purge_batch_size: PURGE_BATCH_ENTRIES,
            max_payload_entries: PAYLOAD_ENTRIES_MAX,
            enable_pre_vote: Some(true),
            // A leader that comes back from a power cut may have lost what it had applied and which
            // entries were committed, neither of which is synced: its reads would be stale. By an
            // election it learns both.
            enable_leader_restore: Some(false),
            ..openraft::Config::default()
        };
        config.validate().map_err(|error| Error::Config(error.to_string()))
    }
}

/// A snapshot transfer that takes longer starts anew.
const SNAPSHOT_TIMEOUT_MS: u64 = 30 * 60 * 1000;

/// Log entries are dropped in batches of about this many.
const PURGE_BATCH_ENTRIES: u64 = 256;

/// The most entries in one append message; its bytes are bounded besides (see `log`).
const PAYLOAD_ENTRIES_MAX: u64 = 256;

/// A connection on which nothing comes for so long is dead.
const IDLE_TIMEOUT_MS: u32 = 4000;

/// Where the network takes larger packets than most, a batch of entries is a few of them. Ten, which
/// quinn sends at once, still fit into what UDP can carry.
const MTU_MAX: u16 = 6500;

/// So many packets are acknowledged together: requests are answered in a moment, and the answers
/// carry it. By QUIC's own rule every other packet would cost one more, both to send and to take.
const PACKETS_UNACKNOWLEDGED_MAX: u32 = 10;

/// QUIC as members speak it, for whoever makes [`Transport::endpoint`].
pub fn quic_settings() -> quinn::TransportConfig {
    let mut settings = quinn::TransportConfig::default();
    settings.max_idle_timeout(Some(quinn::VarInt::from_u32(IDLE_TIMEOUT_MS).into()));
    let mut mtu = quinn::MtuDiscoveryConfig::default();
    mtu.upper_bound(MTU_MAX);
    settings.mtu_discovery_config(Some(mtu));
    let mut acknowledging = quinn::AckFrequencyConfig::default();
    acknowledging.ack_eliciting_threshold(PACKETS_UNACKNOWLEDGED_MAX.into());
    settings.ack_frequency_config(Some(acknowledging));
    settings
}

/// Says who is at the other end of a connection; `None` is a stranger.
pub type Authenticate = Arc<dyn Fn(&quinn::Connection) -> Option<PeerId> + Send + Sync>;

/// How a member reaches the others, and they it.
#[derive(Clone)]
pub struct Transport {
    /// Bound, with a server configuration that accepts nodes of this cluster only and has
    /// [`quic_settings`].
    pub endpoint: quinn::Endpoint,
    /// For connections to other nodes, with this node's certificate.
    pub client: quinn::ClientConfig,
    /// The name that the other nodes' certificates carry.
    pub server_name: String,
    /// Asked after each handshake, and now and then again for as long as a connection stands, which ends
    /// when it is a stranger's: whom this member believes may have changed. Refusing strangers is first
    /// the TLS configuration's work; this is the second check, and gives the log a name.
    pub authenticate: Authenticate,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport")
            .field("local_address", &self.endpoint.local_addr().ok())
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}
