//! `/api/v1` of a real node over HTTPS: real Raft, real storage in a folder, real disks.
//!
//! One binary for all of it: linking RocksDB once is enough.

mod cluster;
mod collection;
mod disks;
mod http;
mod members;
mod node;
mod orders;
mod swarm;
