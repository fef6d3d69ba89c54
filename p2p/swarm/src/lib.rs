//! How a swarm decides: whom to know, whom to ask for what, when to give up on someone.
//!
//! Pure: time is a [`std::time::Duration`] since the shell's start, randomness is a seed, and all
//! that shall happen outside comes out as an [`Action`]. The same core runs in `shoal-p2p` over
//! QUIC and in `tests/simulation` with thousands of peers.
//!
//! The plan, in short: a node tracks who is in the swarm and names a few **heads**, for the whole
//! and for each room. A chunk's designated head, by rendezvous hashing, brings it in, from a node
//! or from another room; everybody else gets it from the neighbours, rarest first. Whoever serves
//! keeps few uploads at once, says "busy" to the rest and calls them when a slot is free, so that
//! each asks for what is rarest at the moment it can be sent. A node keeps a **ledger** of what it
//! gave to whom, and tells the second who asks for a chunk by whom it comes.
//! Non-goals: sockets, tickets' signatures, hashing, storage.

mod chunk_set;
mod download;
mod event;
pub mod frames;
mod ledger;
mod line;
mod meter;
mod pace;
mod rendezvous;
mod swarm;
mod tracker;
mod uploads;

pub use chunk_set::ChunkSet;
pub use event::{Action, BanReason, Event, RequestEnd, RequestId};
pub use frames::{ChunkRange, Contact, Member};
pub use ledger::Ledger;
pub use rendezvous::ranked;
pub use swarm::{Settings, Swarm, Tables, Wait};
pub use uploads::{
    Admission, UNACKNOWLEDGED_BYTES_MAX, UNACKNOWLEDGED_NODE_BYTES_MAX, UPLOADS_MAX, Uploads,
};
