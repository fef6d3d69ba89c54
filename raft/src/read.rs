//! Linearizable reads from any node, by ReadIndex under a short lease (Ongaro's dissertation, 6.4).
//!
//! The leader knows that it leads and names its commit index; whoever has applied that much may answer
//! from its own state. It knows because a majority has acknowledged what it sent within [`LEASE`], and
//! asks the majority where that is older. All reads that wait when a round begins share it: a read
//! never joins a round that began before it was asked for.
//!
//! A member that acknowledged a leader votes for no other one for `election_ms.1` after it, and a member
//! that starts waits for [`LEASE`] since it forgot whom it acknowledged. So nothing is stale while the
//! members' monotonic clocks run at rates within `election_ms.1 / LEASE` of each other (40 by default);
//! what time of day they show does not matter. A leader whose whole machine stood still, clock and
//! all, may answer reads from its old state for [`LEASE`] after it goes on, and no longer. Who is
//! asked to hand the leadership over answers no reads any more.

use std::sync::Arc;
use std::time::Duration;

use openraft::raft::linearizable_read::LinearizerOption;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::core::{Leader, Shared};
use crate::error::ReadError;
use crate::view::View;
use crate::wire::{Failure, Kind};

/// How long a read tries to find a leader and a majority.
pub const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the leader may rely on what a majority acknowledged, since it sent that. Short, since it
/// is how long a machine that stood still may be mistaken; a round in so long costs next to nothing.
pub const LEASE: Duration = Duration::from_millis(50);

/// How long one round may take.
const ROUND_TIMEOUT: Duration = Duration::from_secs(2);

/// Between two tries.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// The most reads that wait for a round; more wait to be let in.
pub const READS_WAITING_MAX: usize = 4096;

/// How often a round gives way to whoever is ready to run, before it begins.
const GATHERED_MAX: usize = 8;

/// A read that waits for a round to begin and end.
pub type Waiter = oneshot::Sender<Result<u64, Failure>>;

/// The state, at least as new as anything that was answered anywhere before this call.
pub async fn read(shared: &Shared) -> Result<View, ReadError> {
    shared.metrics.reads.inc();
    let deadline = Instant::now() + READ_TIMEOUT;
    let mut last = "no leader is known".to_owned();
    loop {
        match timeout_at(deadline, attempt(shared, deadline)).await {
            Ok(Ok(view)) => return Ok(view),
            Ok(Err(failure)) => last = failure.to_string(),
            Err(_) => return Err(ReadError::Unavailable { reason: last }),
        }
        if timeout_at(deadline, sleep(RETRY_INTERVAL)).await.is_err() {
            return Err(ReadError::Unavailable { reason: last });
        }
    }
}

async fn attempt(shared: &Shared, deadline: Instant) -> Result<View, Failure> {
    let index = next_round(shared).await?;
    let core = shared.core()?;
    let left = deadline.saturating_duration_since(Instant::now());
    core.engine
        .wait(Some(left))
        .applied_index_at_least(Some(index), "linearizable read")
        .await
        .map_err(|error| {
            tracing::debug!(%error, index, "a read did not catch up");
            Failure::Unavailable("this node did not catch up with the leader in time".into())
        })?;
    Ok(core.view())
}

/// What the next round to begin here finds.
async fn next_round(shared: &Shared) -> Result<u64, Failure> {
    let stopped = || Failure::Unavailable("reads have stopped".into());
    let (waiter, answer) = oneshot::channel();
    shared.reads.send(waiter).await.map_err(|_| stopped())?;
    answer.await.map_err(|_| stopped())?
}

/// The commit index for another member's round, which shares the leader's own next one: the leader
/// asks its majority once for all that wait anywhere. Who does not lead says so at once.
pub async fn index_for_member(shared: &Shared) -> Result<u64, Failure> {
    let core = shared.core()?;
    if core.leader(shared.me()) != Leader::Me {
        return Err(core.not_leader(shared.me()));
    }
    next_round(shared).await
}

/// Runs the rounds until this node stops.
pub async fn run_rounds(shared: Arc<Shared>, mut waiting: mpsc::Receiver<Waiter>) {
    let mut round = Vec::new();
    loop {
        let got = tokio::select! {
            got = waiting.recv_many(&mut round, READS_WAITING_MAX) => got,
            () = shared.stopped.cancelled() => return,
        };
        if got == 0 {
            return;
        }
        gather(&mut round, &mut waiting).await;
        shared.metrics.read_rounds.inc();
        let result = match timeout(ROUND_TIMEOUT, index(&shared)).await {
            Ok(result) => result,
            Err(_) => Err(Failure::Unavailable("the leader did not answer".into())),
        };
        for waiter in round.drain(..) {
            // A read that was given up needs no answer.
            let _ = waiter.send(result.clone());
        }
    }
}

/// Requests that are ready to run may be about to ask: they may as well share the round. Where nothing
/// else is ready, nobody waits.
async fn gather(round: &mut Vec<Waiter>, waiting: &mut mpsc::Receiver<Waiter>) {
    for _ in 0..GATHERED_MAX {
        tokio::task::yield_now().await;
        let before = round.len();
        while round.len() < READS_WAITING_MAX
            && let Ok(waiter) = waiting.try_recv()
        {
            round.push(waiter);
        }
        if round.len() == before {
            return;
        }
    }
}

/// The commit index of whoever leads now.
async fn index(shared: &Shared) -> Result<u64, Failure> {
    let core = shared.core()?;
    let leader = core.leader(shared.me());
    let asking = async {
        match &leader {
            Leader::Me => index_here(shared).await,
            Leader::Other(address) => {
                let called = shared.peers.call(address, Kind::ReadIndex, &(), ROUND_TIMEOUT).await;
                called.unwrap_or_else(|error| Err(Failure::Unavailable(error.to_string())))
            }
            Leader::Unknown => Err(Failure::NotLeader { leader: None }),
        }
    };
    tokio::select! {
        answer = asking => answer,
        () = core.leader_changed(shared.me(), &leader) => {
            Err(Failure::Unavailable("the leader changed".into()))
        }
    }
}

/// The commit index of this node, where a majority agrees that it leads, or did within the lease.
async fn index_here(shared: &Shared) -> Result<u64, Failure> {
    let core = shared.core()?;
    if core.leader(shared.me()) != Leader::Me {
        return Err(core.not_leader(shared.me()));
    }
    let leased = LinearizerOption::new(Some(LEASE), true);
    match core.engine.get_read_log_id(leased).await {
        Ok((read, _)) => Ok(read.log_id().index),
        Err(error) => Err(Failure::Unavailable(error.to_string())),
    }
}
