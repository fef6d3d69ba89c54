//! Keeps those out who guess.
//!
//! A failure counts at this node at once, and at all of them with the next command: failures are
//! gathered and proposed together, [`FLUSH_INTERVAL`] apart, so that a flood costs a few writes a
//! second. Whoever waits for a hash is looked at again before it is made. So an account's password
//! can be tried at most so often before it is locked: the limit, and for each further node what it
//! tries within an interval.
//!
//! Invariants: an account that nobody has is locked like any other; a block is answered before a
//! password is looked at, so that it says nothing about it; machines of the cluster are never
//! blocked. A failure that cannot be proposed is kept and proposed later, [`PENDING_MAX`] of them,
//! for as long as it counts.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use ipnet::IpNet;
use parking_lot::Mutex;
use shoal_content::Timestamp;
use shoal_metadata::{
    Block, Command, FAILURES_MAX, Failure, Fault, LockoutRules, Query, Read, Suspect,
};
use shoal_raft::Raft;
use tokio::sync::Notify;
use tracing::{debug, info};

use crate::clock;
use crate::config;
use crate::http::problem::Problem;

/// Between two commands.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);
/// Different failures that wait for a command; further ones are only counted by the metrics.
const PENDING_MAX: usize = FAILURES_MAX;

#[derive(Debug, Default)]
struct Pending {
    new: BTreeMap<Failure, u32>,
    /// What is proposed just now.
    sent: BTreeMap<Failure, u32>,
    /// What was known of its accounts before.
    before: BTreeMap<Suspect, u32>,
    /// Since when nothing could be proposed.
    stuck: Option<Instant>,
}

impl Pending {
    /// With what the metadata know of. What is proposed just now may be in them already, so it
    /// counts from what they knew before.
    fn passwords(&self, wanted: &Suspect, known: u32) -> u32 {
        let of = |failures: &BTreeMap<Failure, u32>| -> u32 {
            let counts = failures.iter().filter(|(failure, _)| account_of(failure) == Some(wanted));
            counts.map(|(_, count)| *count).fold(0, u32::saturating_add)
        };
        let before = self.before.get(wanted).copied().unwrap_or(0);
        known.max(before.saturating_add(of(&self.sent))).saturating_add(of(&self.new))
    }
}

fn account_of(failure: &Failure) -> Option<&Suspect> {
    match failure {
        Failure::Password { account, .. } => Some(account),
        Failure::Token { .. } => None,
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Lockout {
    rules: LockoutRules,
    exempt: Vec<IpNet>,
    pending: Mutex<Pending>,
    wake: Notify,
}

impl Lockout {
    pub fn new(settings: &config::Lockout) -> Self {
        Self {
            rules: settings.rules(),
            exempt: settings.exempt_networks.clone(),
            pending: Mutex::default(),
            wake: Notify::new(),
        }
    }

    pub fn is_exempt(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        self.exempt.iter().any(|network| network.contains(&client))
    }

    fn address(&self, client: Option<IpAddr>) -> Option<Suspect> {
        client.filter(|client| !self.is_exempt(*client)).map(Suspect::address)
    }

    /// # Errors
    /// Where the address is blocked.
    pub fn check_address<R: Read>(
        &self,
        query: Query<'_, R>,
        client: Option<IpAddr>,
    ) -> Result<(), Problem> {
        let Some(address) = self.address(client) else { return Ok(()) };
        let at = clock::now();
        match query.block(&address, at)? {
            Some(block) => Err(blocked("address", &block, at)),
            None => Ok(()),
        }
    }

    /// Whether a password for the account may be looked at.
    ///
    /// # Errors
    /// Where the account is locked.
    pub fn check_account<R: Read>(&self, query: Query<'_, R>, name: &str) -> Result<(), Problem> {
        match self.account_block(query, name)? {
            Some(block) => Err(blocked("account", &block, clock::now())),
            None => Ok(()),
        }
    }

    fn account_block<R: Read>(
        &self,
        query: Query<'_, R>,
        name: &str,
    ) -> Result<Option<Block>, Fault> {
        let (account, at) = (Suspect::account(name), clock::now());
        if let Some(block) = query.block(&account, at)? {
            return Ok(Some(block));
        }
        let LockoutRules { account_failures, account_block_ms, .. } = self.rules;
        let known = self.known(query, &account, at)?;
        let full = self.pending.lock().passwords(&account, known) >= account_failures;
        Ok(full.then(|| Block {
            since: at,
            until: Some(at.plus_millis(account_block_ms)),
            reason: shoal_metadata::BlockReason::Passwords,
        }))
    }

    fn known<R: Read>(
        &self,
        query: Query<'_, R>,
        account: &Suspect,
        at: Timestamp,
    ) -> Result<u32, Fault> {
        let since = at.as_millis().saturating_sub(self.rules.account_window_ms);
        query.password_failures(account, Timestamp::from_millis(since))
    }

    pub fn note_password(&self, name: &str, client: Option<IpAddr>) {
        let (account, address) = (Suspect::account(name), self.address(client));
        self.note(Failure::Password { account, address });
    }

    pub fn note_token(&self, client: Option<IpAddr>) {
        if let Some(address) = self.address(client) {
            self.note(Failure::Token { address });
        }
    }

    fn note(&self, failure: Failure) {
        let mut pending = self.pending.lock();
        if pending.new.len() < PENDING_MAX || pending.new.contains_key(&failure) {
            *pending.new.entry(failure).or_default() += 1;
        }
        drop(pending);
        self.wake.notify_one();
    }

    /// Proposes what was noted. Runs until it is dropped.
    pub async fn run(self: Arc<Self>, raft: Raft) {
        loop {
            self.wake.notified().await;
            self.flush(&raft).await;
            tokio::time::sleep(FLUSH_INTERVAL).await;
        }
    }

    async fn flush(&self, raft: &Raft) {
        let failures = {
            let (view, at) = (raft.local(), clock::now());
            let mut pending = self.pending.lock();
            let sent = std::mem::take(&mut pending.new);
            for account in sent.keys().filter_map(account_of) {
                // Where the rows cannot be read, the command will say so.
                let known = self.known(view.query(), account, at).unwrap_or(0);
                pending.before.insert(account.clone(), known);
            }
            pending.sent = sent;
            pending.sent.clone()
        };
        if failures.is_empty() {
            return;
        }
        let count: u32 = failures.values().sum();
        let noted = Command::NoteFailures { failures, rules: self.rules };
        let answer = raft.propose(clock::now(), noted).await;
        let mut pending = self.pending.lock();
        let sent = std::mem::take(&mut pending.sent);
        pending.before.clear();
        if let Err(error) = answer {
            let window = Duration::from_millis(self.rules.account_window_ms);
            if pending.stuck.get_or_insert_with(Instant::now).elapsed() > window {
                // Too old to add up to anything; and what is stuck so must not lock anyone.
                *pending = Pending::default();
                return;
            }
            debug!(%error, count, "failures were not noted; they are kept");
            for (failure, count) in sent {
                if pending.new.len() < PENDING_MAX || pending.new.contains_key(&failure) {
                    let sum = pending.new.entry(failure).or_default();
                    *sum = sum.saturating_add(count);
                }
            }
            self.wake.notify_one();
        } else {
            pending.stuck = None;
            info!(count, "wrong passwords or tokens");
        }
    }
}

/// Says that the way is closed, and until when; the same whoever it is.
fn blocked(what: &str, block: &Block, at: Timestamp) -> Problem {
    let Block { until, reason, .. } = block;
    let text = match until {
        Some(_) => {
            format!("{reason}: the {what} is locked for a while; an administrator can end it")
        }
        None => format!("{reason}: the {what} is blocked until an administrator lets it in"),
    };
    let wait = until.map(|until| until.as_millis().saturating_sub(at.as_millis()));
    let wait = wait.map(Duration::from_millis);
    Problem { retry_after: wait, ..Problem::new(StatusCode::FORBIDDEN, "locked", text) }
}
