//! Ends deployments at their deadlines.
//!
//! The leader looks once in [`INTERVAL`]; the command itself compares with its own time, so that two
//! leaders at once, or one with another clock, end nothing early twice. A deadline that falls into a
//! change of leaders passes a little later.

use std::time::Duration;

use shoal_metadata::Command;
use shoal_raft::Raft;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::clock;

const INTERVAL: Duration = Duration::from_millis(500);
/// Deployments that one command ends: each may have thousands of hosts.
const AT_ONCE: u32 = 20;

/// Runs until it is dropped.
pub async fn keep_deadlines(raft: Raft) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if !raft.status().is_leader {
            continue;
        }
        let passed = raft.local().query().passed_deadlines(clock::now(), AT_ONCE as usize);
        let passed = match passed {
            Ok(passed) if passed.is_empty() => continue,
            Ok(passed) => passed,
            Err(error) => {
                warn!(%error, "deadlines of deployments cannot be read");
                continue;
            }
        };
        match raft.propose(clock::now(), Command::PassDeadlines { limit: AT_ONCE }).await {
            Ok(_) => info!(deployments = passed.len(), "deadlines of deployments passed"),
            // Whoever leads next does it.
            Err(error) => warn!(%error, "deadlines of deployments could not be kept"),
        }
    }
}
