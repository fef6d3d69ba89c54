//! The daemon on each compute host.
//!
//! It fetches images from the swarm, keeps them in a cache on disk, serves their chunks to other
//! hosts, writes disks for the hypervisor and mirrors the registry for the container engine.
//!
//! Invariant: this crate knows nothing of Raft or of the metadata; what it must know of an image a
//! node tells it, with a ticket for each recipe.

pub mod cache;
pub mod catalogue;
pub mod cli;
pub mod config;
pub mod enrolment;
pub mod export;
pub mod metrics;
pub mod transfers;
