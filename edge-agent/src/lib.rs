//! The daemon on each compute host.
//!
//! It fetches images from the swarm (`fetch`), keeps them in a cache on disk (`cache`), serves
//! their chunks to other hosts, writes disks for the hypervisor (`export`) and mirrors the
//! registry for the container engine (`mirror`). The cluster's orders come over a stream from some
//! node (`nodes::orders`, `deploy`); people talk to it over a socket (`control`).
//!
//! Invariant: this crate knows nothing of Raft or of the metadata; what it must know of an image a
//! node tells it, with a ticket for each recipe.

mod advertise;
mod authority;
pub mod cache;
pub mod catalogue;
mod certificate;
pub mod cli;
pub mod commands;
pub mod config;
pub mod control;
pub mod daemon;
pub mod deploy;
pub mod enrolment;
pub mod export;
pub mod fetch;
pub mod join;
pub mod limits;
pub mod metrics;
pub mod mirror;
pub mod nodes;
mod offers;
pub mod setup;
pub mod status;
pub mod telemetry;
pub mod ticket_keys;
pub mod transfers;

/// Runs `work`, which blocks on the disk, off the async threads. `None` where the runtime is
/// shutting down. A panic of `work` goes on here.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => Some(value),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => None,
        },
    }
}
