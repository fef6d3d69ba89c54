//! Watches the core, and starts it again after its storage failed.
//!
//! openraft stops for good on a storage error, which is right: it cannot know what was written.
//! The databases know, once they are opened again. So: take the core away (proposals and reads are
//! told to come again), shut it down, wait until the disk has room, open the databases, start
//! anew. Nothing that was acknowledged is lost, since that was synced.
//!
//! Opening waits for everyone who still reads the old databases, since RocksDB locks its folder.
//!
//! A leader whose disk is nearly full takes no proposals, so it has another voter lead. Whether that
//! one has room is not known here; where it has none either, it does the same, and nobody more often
//! than once in [`HAND_OVER_INTERVAL`].

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::{Instant, interval, sleep};
use tracing::{error, info, warn};

use crate::core::{Core, Shared};
use crate::handover::hand_over;
use crate::proposal::TypeConfig;

/// Between two tries to open the databases.
const RESTART_INTERVAL: Duration = Duration::from_secs(1);

/// How often the free space is measured where nothing else asks for it.
const SPACE_INTERVAL: Duration = Duration::from_secs(5);

/// How often at most a leader gives way because its disk is full.
const HAND_OVER_INTERVAL: Duration = Duration::from_secs(60);

/// Runs until this node stops.
pub async fn supervise(shared: Arc<Shared>) {
    loop {
        let Ok(core) = shared.core() else { return };
        tokio::select! {
            reason = failed(&shared, &core) => error!(%reason, "the Raft core has stopped"),
            () = shared.stopped.cancelled() => return,
        }
        *shared.core.write() = None;
        shared.metrics.core_restarts.inc();
        shared.metrics.is_leader.set(0);
        shared.metrics.has_leader.set(0);
        if let Err(error) = core.engine.shutdown().await {
            warn!(%error, "the Raft core did not end well");
        }
        drop(core);
        tokio::select! {
            () = restart(&shared) => info!("the Raft core runs again"),
            () = shared.stopped.cancelled() => return,
        }
    }
}

/// Opens the databases again, as often as it takes.
async fn restart(shared: &Shared) {
    loop {
        sleep(RESTART_INTERVAL).await;
        if !shared.space.has_half_reserve() {
            warn!(free_bytes = shared.space.free_bytes(), "waiting for space on the disk");
            continue;
        }
        match Core::open(shared).await {
            Ok(core) => return publish(shared, core),
            Err(error) => warn!(%error, "cannot start the Raft core yet"),
        }
    }
}

/// Lets everyone use `core`.
pub fn publish(shared: &Shared, core: Core) {
    *shared.core.write() = Some(Arc::new(core));
}

/// Keeps the gauges true, and a leader that has room, until the core fails; answers why.
async fn failed(shared: &Arc<Shared>, core: &Core) -> String {
    let mut gave_way: Option<Instant> = None;
    let mut metrics = core.engine.metrics();
    let mut measure = interval(SPACE_INTERVAL);
    loop {
        {
            let now = metrics.borrow_watched();
            if let Err(error) = &now.running_state {
                return error.to_string();
            }
            show(shared, &now);
        }
        tokio::select! {
            changed = metrics.changed() => {
                if changed.is_err() {
                    return "it ended without a reason".to_owned();
                }
            }
            _ = measure.tick() => {
                shared.metrics.disk_free_bytes.set(shared.space.free_bytes());
                let lately = gave_way.is_some_and(|at| at.elapsed() < HAND_OVER_INTERVAL);
                if !lately && !shared.space.has_reserve() && may_give_way(shared, core) {
                    gave_way = Some(Instant::now());
                    shared.tasks.spawn(give_way(shared.clone()));
                }
            }
        }
    }
}

/// Whether this node leads, and there is somebody else.
fn may_give_way(shared: &Shared, core: &Core) -> bool {
    let metrics = core.engine.metrics();
    let metrics = metrics.borrow_watched();
    let voters = metrics.membership_config.membership().voter_ids().count();
    metrics.current_leader == Some(shared.me()) && voters > 1
}

async fn give_way(shared: Arc<Shared>) {
    warn!(free_bytes = shared.space.free_bytes(), "the disk is nearly full: another is to lead");
    let handed = tokio::select! {
        handed = hand_over(&shared) => handed,
        () = shared.stopped.cancelled() => return,
    };
    match handed {
        Ok(Some(leader)) => info!(leader, "another node leads, as the disk here is nearly full"),
        // Somebody else leads already.
        Ok(None) => {}
        Err(error) => warn!(%error, "nobody else has taken the leadership"),
    }
}

fn show(shared: &Shared, now: &openraft::RaftMetrics<TypeConfig>) {
    let metrics = &shared.metrics;
    metrics.is_leader.set(i64::from(now.current_leader == Some(shared.me())));
    metrics.has_leader.set(i64::from(now.current_leader.is_some()));
    metrics.term.set(now.current_term);
    metrics.last_log_index.set(now.last_log_index.unwrap_or(0));
    metrics.applied_index.set(now.last_applied.as_ref().map_or(0, |applied| applied.index));
}

#[cfg(test)]
mod tests {
    use crate::harness::{Authority, Home, create_image, eventually, has_image};

    #[test]
    fn a_core_that_has_stopped_is_started_again_and_knows_what_it_knew() {
        let authority = Authority::new();
        let mut home = Home::new(1);
        let member = home.start(&authority);
        member.bootstrap();
        member.propose(create_image(1)).unwrap();
        // As on a storage error, openraft ends its core for good. A view that is still held keeps
        // the databases locked, so the first tries to open them fail.
        let held = member.read();
        member.run(|raft| async move {
            let core = raft.shared.core().unwrap();
            core.engine.shutdown().await.unwrap();
        });
        eventually("the end is noticed", || {
            (member.metric("shoal_raft_core_restarts_total") == 1.0).then_some(())
        });
        assert!(member.raft.local().query().image_count().is_err());
        assert!(has_image(&held, 1));
        drop(held);
        eventually("it serves again", || member.propose(create_image(2)).ok());
        let view = member.read();
        assert!(has_image(&view, 1) && has_image(&view, 2));
        assert_eq!(member.metric("shoal_raft_core_restarts_total"), 1.0);
    }
}
