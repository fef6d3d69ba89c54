//! Keeps what this node gives to agents within its limit, as the hours of the week have it.

use std::time::Duration;

use shoal_p2p::Swarm;
use shoal_settings::{Rate, WeekMinute};
use tokio::time::{MissedTickBehavior, interval};
use tracing::info;

use crate::config::Limits;

/// How often the clock on the wall is looked at.
const INTERVAL: Duration = Duration::from_secs(5);

/// Runs until it is dropped.
pub async fn keep_limits(swarm: Swarm, limits: Limits) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = Rate::UNLIMITED;
    loop {
        ticks.tick().await;
        let now = limits.at(WeekMinute::now());
        if now != before {
            info!(origin = %now, "the origin's limit changed");
            let upload = now.bytes_per_second();
            swarm.set_limits(shoal_p2p::Limits { upload, download: None }).await;
            before = now;
        }
    }
}
