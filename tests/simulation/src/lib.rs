//! Swarms of thousands in one process: the very core that the daemons run, over a fluid network.
//!
//! Invariant: a scenario and its seed give the same report each time.
//! Non-goals: tickets, hashing, disks, QUIC; those are tested where they are real.

pub mod draw;
pub mod network;
pub mod queue;
pub mod report;
pub mod scenario;
pub mod world;

pub use report::Report;
pub use scenario::{Conduct, Scenario};
pub use world::simulate;
