//! Removes the accounts of people who asked for it, when they can change their minds no more.
//!
//! The leader looks once in [`INTERVAL`]. An account that something would be left to nobody with –
//! it owns an organization alone by now – stays until that is settled, and the log says so.

use std::time::Duration;

use shoal_metadata::{AuditSource, Command, Fault};
use shoal_raft::Raft;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::{debug, info, warn};

use crate::clock;

const INTERVAL: Duration = Duration::from_secs(2);

/// Runs until it is dropped.
pub async fn keep(raft: Raft) {
    let mut ticks = interval_at(Instant::now() + INTERVAL, INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if !raft.status().is_leader {
            continue;
        }
        match due(&raft) {
            Ok(users) => {
                for name in users {
                    remove(&raft, name).await;
                }
            }
            Err(error) => debug!(%error, "who is to leave cannot be read"),
        }
    }
}

fn due(raft: &Raft) -> Result<Vec<String>, Fault> {
    let now = clock::now();
    let leavings = raft.local().query().leavings()?;
    Ok(leavings.into_iter().filter(|one| one.due <= now).map(|one| one.user).collect())
}

async fn remove(raft: &Raft, name: String) {
    // On its own behalf, so that the trail says whose wish it was.
    let source = AuditSource { who: name.clone(), ..AuditSource::default() };
    let command = Box::new(Command::RemoveUser { name: name.clone() });
    match raft.propose(clock::now(), Command::Audited { source, command }).await {
        Ok(_) => info!(user = name, "an account was removed, as its user had asked"),
        Err(error) => warn!(user = name, %error, "an account cannot be removed yet"),
    }
}
