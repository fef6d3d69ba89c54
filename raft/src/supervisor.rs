//! Watches the core, and starts it again after its storage failed.
//!
//! openraft stops for good on a storage error, which is right: it cannot know what was written.
//! The databases know, once they are opened again. So: take the core away (proposals and reads are
//! told to come again), shut it down, wait until the disk has room, open the databases, start
//! anew. Nothing that was acknowledged is lost, since that was synced.
//!
//! Opening waits for everyone who still reads the old databases, since RocksDB locks its folder.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::{interval, sleep};
use tracing::{error, info, warn};

use crate::core::{Core, Shared};
use crate::proposal::TypeConfig;

/// Between two tries to open the databases.
const RESTART_INTERVAL: Duration = Duration::from_secs(1);

/// How often the free space is measured where nothing else asks for it.
const SPACE_INTERVAL: Duration = Duration::from_secs(5);

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

/// Keeps the gauges true until the core fails; answers why.
async fn failed(shared: &Shared, core: &Core) -> String {
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
            }
        }
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
