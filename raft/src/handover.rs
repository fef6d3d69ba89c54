//! A leader that is about to stop makes another voter lead, so that nobody waits for an election.
//!
//! From the moment it asks, openraft proposes nothing more here and sends no heartbeats: proposals
//! come again until the other one leads. Should it not take over, the next candidate is asked; in
//! the worst case the voters elect one of themselves, as after a crash.

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use tracing::{info, warn};

use crate::core::{Core, Shared};
use crate::error::Error;

/// How long one candidate may take.
const CANDIDATE_TIMEOUT: Duration = Duration::from_secs(2);

/// Hands the leadership over; gives who leads now, and nothing where this node does not lead or is
/// the only voter.
///
/// # Errors
/// [`Error::Unavailable`] where nobody took it in time.
pub async fn hand_over(shared: &Shared) -> Result<Option<u64>, Error> {
    let me = shared.me();
    let core = shared.core().map_err(|failure| Error::Unavailable(failure.to_string()))?;
    let candidates = candidates(&core, me);
    if candidates.is_empty() {
        return Ok(None);
    }
    for candidate in candidates {
        let asked = core.engine.trigger().transfer_leader(candidate).await;
        asked.map_err(|error| Error::Stopped(error.to_string()))?;
        let another = |leader: Option<u64>| leader.filter(|leader| *leader != me);
        let waiting = core.engine.wait(Some(CANDIDATE_TIMEOUT));
        let changed = waiting.metrics(|now| another(now.current_leader).is_some(), "hand over");
        match changed.await {
            Ok(now) => {
                let leader = another(now.current_leader);
                info!(leader, "the leadership was handed over");
                return Ok(leader);
            }
            Err(error) => warn!(candidate, %error, "the leadership was not taken over"),
        }
    }
    Err(Error::Unavailable("no other voter took the leadership over".into()))
}

/// The other voters, those first that have most of the log, and of equal ones those that come next
/// after this: so that each has its turn where nobody is better. None where another one leads.
fn candidates(core: &Core, me: u64) -> Vec<u64> {
    let metrics = core.engine.metrics();
    let metrics = metrics.borrow_watched();
    if metrics.current_leader != Some(me) {
        return Vec::new();
    }
    let matched = |voter: u64| {
        let log = metrics.replication.as_ref()?.get(&voter)?.as_ref()?;
        Some(log.index)
    };
    let voters = metrics.membership_config.membership().voter_ids();
    let mut others: Vec<u64> = voters.filter(|voter| *voter != me).collect();
    others.sort_by_key(|voter| (std::cmp::Reverse(matched(*voter)), *voter < me, *voter));
    others
}
