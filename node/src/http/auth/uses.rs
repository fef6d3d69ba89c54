//! When personal tokens were last used.
//!
//! Uses are noted in memory and written down together once a minute, so that a token that is used
//! a thousand times a second costs no write. What a crash loses is the last minute's uses.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use shoal_content::Timestamp;
use shoal_metadata::Command;
use shoal_raft::Raft;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::debug;

/// Between two commands.
const INTERVAL: Duration = Duration::from_secs(60);
/// Tokens that one interval notes; the uses of others show in the next.
const TOKENS_MAX: usize = 10_000;

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct TokenUses {
    uses: Mutex<BTreeMap<[u8; 32], Timestamp>>,
}

impl TokenUses {
    /// Notes a use of the token with this secret's hash.
    pub fn note(&self, hash: [u8; 32], at: Timestamp) {
        let mut uses = self.uses.lock();
        if uses.len() < TOKENS_MAX || uses.contains_key(&hash) {
            uses.insert(hash, at);
        }
    }

    /// Writes the uses down, once an interval. Runs until it is dropped.
    pub async fn run(&self, raft: Raft) {
        let mut ticks = interval_at(Instant::now() + INTERVAL, INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let uses = std::mem::take(&mut *self.uses.lock());
            if uses.is_empty() {
                continue;
            }
            let noted = Command::NoteTokenUses { uses };
            if let Err(error) = raft.propose(crate::clock::now(), noted).await {
                debug!(%error, "the uses of tokens were not written down");
            }
        }
    }
}
