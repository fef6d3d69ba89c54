//! The server: HTTP, storage, registry, disks, the swarm's origin.

pub mod store;
