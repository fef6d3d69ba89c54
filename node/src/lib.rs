//! The server: HTTP, storage, registry, disks, the swarm's origin.
//!
//! Start reading at `server`, which puts the parts together.

mod acme;
pub mod api;
pub mod audit;
mod authorities;
pub mod backup;
pub mod clock;
pub mod collection;
pub mod compaction;
pub mod config;
pub mod delta;
pub mod deploy;
pub mod disks;
pub mod downloads;
pub mod encryption;
pub mod founding;
pub mod fuzz;
pub mod home;
pub mod http;
pub mod joining;
mod keys;
mod leaving;
pub mod level;
pub mod metrics;
pub mod needed;
pub mod origin;
pub mod ownership;
pub mod pulls;
pub mod registry;
pub mod remote;
mod renewal;
pub mod restore;
pub mod retention;
pub mod scanning;
pub mod scrub;
pub mod server;
pub mod stars;
pub mod state;
pub mod store;
mod stores;
pub mod telemetry;
pub mod trash;
pub mod unblocking;
pub mod upstreams;
pub mod verification;
