//! How a swarm decides: whom to know, whom to ask for what, when to give up on someone.
//!
//! Pure: time is a [`std::time::Duration`] since the shell's start, randomness is a seed, and all
//! that shall happen outside comes out as an [`Action`]. The same core runs in `shoal-p2p` over
//! QUIC and in the simulation in `tests/`.
//! Non-goals: sockets, tickets' signatures, hashing, storage.

mod chunk_set;
mod download;
mod event;
pub mod frames;
mod rendezvous;
mod swarm;
mod tracker;
mod uploads;

pub use chunk_set::ChunkSet;
pub use event::{Action, BanReason, Event, RequestEnd, RequestId};
pub use frames::{ChunkRange, Contact};
pub use rendezvous::ranked;
pub use swarm::{Settings, Swarm};
pub use uploads::{UPLOADS_MAX, UPLOADS_PER_PEER_MAX, Uploads};
