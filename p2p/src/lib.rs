//! Peers: who they are, how chunks move between them, and how they find each other.
//!
//! The decisions are `shoal-swarm`'s; this crate gives it time, randomness and sockets, and does
//! what it says.

mod bulk;
mod channel;
mod compression;
pub mod conformance;
mod discovery;
mod driver;
mod endpoint;
pub mod identity;
mod link;
mod metrics;
mod outgoing;
mod relay;
mod request;
mod serve;
mod status;
mod store;
mod swarm;
mod tickets;
mod transfer;
mod wire;

pub use bulk::{Bulk, Path};
pub use compression::{Stored, ZstdFrame};
pub use discovery::DiscoveryConfig;
pub use shoal_swarm::ChunkSet;
pub use status::{BanStatus, PeerStatus, Status};
pub use store::{ChunkStore, MemoryStore, StoreError};
pub use swarm::{Config, Error, Limits, NodeAddress, PeerRole, Swarm, wall_clock};
pub use tickets::{CLOCK_SKEW_MAX, TICKET_LIFE_MAX, TicketKey, TicketKeys};
pub use transfer::{FetchError, Progress, Transfer};
