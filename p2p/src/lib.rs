//! Peers: who they are, how chunks move between them, and how they find each other.
//!
//! The decisions are `shoal-swarm`'s; this crate gives it time, randomness and sockets, and does
//! what it says.

pub mod identity;
