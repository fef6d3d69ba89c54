//! The keys that this node signs with and believes, as the metadata have them.
//!
//! Invariants: a new key signs an hour after it was made ([`ANNOUNCED_FOR`]), so that every node
//! and every agent that is connected knows it by then; one whose signatures have all run out is
//! believed no longer; what is distrusted is believed no longer as soon as this node has applied
//! that, and a token of a key that it has not heard of makes it look again.
//! Non-goals: who may rotate keys (the handlers), and what is signed with them.

pub mod rotation;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use shoal_content::{PeerId, Timestamp};
use shoal_metadata::{
    Event, Fault, KeyPurpose, Query, Read, SIGNATURES_LIVE_MS, SecretPlace, SigningKey,
    accepted_until,
};
use shoal_p2p::identity::{self, KeyPair};
use shoal_p2p::{Swarm, TicketKey};
use shoal_raft::Raft;
use thiserror::Error;
use tokio::sync::broadcast::error::RecvError;
use tracing::warn;

use crate::encryption::{Vault, VaultError};
use crate::http::auth::TOKEN_TTL;
use crate::origin::TICKET_TTL;

/// From when a key is made to its first signature.
pub const ANNOUNCED_FOR: Duration = Duration::from_secs(3600);

/// Until keys that could not be read are looked at again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

// What a key has signed runs out before it is believed no longer, clocks apart.
const _: () = assert!(TICKET_TTL.as_secs() * 1000 < SIGNATURES_LIVE_MS);
const _: () = assert!(TOKEN_TTL.as_secs() * 1000 < SIGNATURES_LIVE_MS);

#[derive(Debug, Error)]
pub enum Error {
    #[error("the metadata cannot be read")]
    Read(#[from] Fault),
    #[error("a {purpose} key of the cluster is none")]
    Key {
        purpose: &'static str,
        #[source]
        error: identity::Error,
    },
    #[error("the cluster has no keys")]
    None,
    #[error(transparent)]
    Sealed(#[from] VaultError),
}

/// A key, and the time that it is good for.
#[derive(Debug)]
pub struct Held {
    pub number: u32,
    pub pair: KeyPair,
    pub signs_from: Timestamp,
    /// When the last that it signed has run out; `None` for the newest.
    pub until: Option<Timestamp>,
}

impl Held {
    pub fn public(&self) -> PeerId {
        self.pair.peer_id()
    }

    pub fn is_believed(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| until > now)
    }
}

/// The keys of each purpose, oldest first; never without one.
type Ring = Arc<[Arc<Held>]>;

/// See the module's documentation. Clones share the keys.
#[derive(Debug, Clone)]
pub struct Keyring {
    vault: Vault,
    tokens: Arc<RwLock<Ring>>,
    tickets: Arc<RwLock<Ring>>,
}

impl Keyring {
    /// # Errors
    /// Where there are no keys, or what there is cannot be read.
    pub fn read<R: Read>(query: Query<'_, R>, vault: Vault) -> Result<Self, Error> {
        let rows = |purpose| query.signing_keys(purpose);
        Self::of_rows(&rows(KeyPurpose::Token)?, &rows(KeyPurpose::Ticket)?, vault)
    }

    fn of_rows(tokens: &[SigningKey], tickets: &[SigningKey], vault: Vault) -> Result<Self, Error> {
        let ring =
            |rows, purpose| Ok::<_, Error>(Arc::new(RwLock::new(ring(rows, purpose, &vault)?)));
        let (tokens, tickets) =
            (ring(tokens, KeyPurpose::Token)?, ring(tickets, KeyPurpose::Ticket)?);
        Ok(Self { vault, tokens, tickets })
    }

    /// What opens them.
    pub fn vault(&self) -> &Vault {
        &self.vault
    }

    fn of(&self, purpose: KeyPurpose) -> &RwLock<Ring> {
        match purpose {
            KeyPurpose::Token => &self.tokens,
            KeyPurpose::Ticket => &self.tickets,
        }
    }

    /// All that are known, oldest first.
    pub fn keys(&self, purpose: KeyPurpose) -> Ring {
        Arc::clone(&self.of(purpose).read())
    }

    /// The one that signs now.
    pub fn signer(&self, purpose: KeyPurpose, now: Timestamp) -> Arc<Held> {
        signer(&self.keys(purpose), now)
    }

    /// The one of this number, where it is believed.
    pub fn believed(&self, purpose: KeyPurpose, number: u32, now: Timestamp) -> Option<Arc<Held>> {
        let keys = self.keys(purpose);
        keys.iter().find(|key| key.number == number && key.is_believed(now)).cloned()
    }

    /// Reads them again where there are newer ones; a state of before that changes nothing.
    ///
    /// # Errors
    /// Where they cannot be read; those that were known stay.
    pub fn refresh<R: Read>(&self, query: Query<'_, R>) -> Result<(), Error> {
        for purpose in KeyPurpose::ALL {
            let rows = query.signing_keys(purpose)?;
            let Some(newest) = rows.last().map(|key| key.number) else { continue };
            let is_newer = |held: &Ring| held.last().is_none_or(|key| newest > key.number);
            if is_newer(&self.of(purpose).read()) {
                let new = ring(&rows, purpose, &self.vault)?;
                let mut held = self.of(purpose).write();
                if is_newer(&held) {
                    *held = new;
                }
            }
        }
        Ok(())
    }

    /// What peers check tickets with.
    pub fn ticket_keys(&self) -> Vec<TicketKey> {
        let key =
            |key: &Arc<Held>| TicketKey { public: *key.public().as_public_key(), until: key.until };
        self.keys(KeyPurpose::Ticket).iter().map(key).collect()
    }
}

fn ring(rows: &[SigningKey], purpose: KeyPurpose, vault: &Vault) -> Result<Ring, Error> {
    let mut held = Vec::with_capacity(rows.len());
    for (at, row) in rows.iter().enumerate() {
        let private = vault.open(SecretPlace::Signing(purpose, row.number), &row.private)?;
        let pair = KeyPair::from_pkcs8_der(&private)
            .map_err(|error| Error::Key { purpose: purpose.name(), error })?;
        let until = accepted_until(rows, at);
        let (number, signs_from) = (row.number, row.signs_from);
        held.push(Arc::new(Held { number, pair, signs_from, until }));
    }
    if held.is_empty() { Err(Error::None) } else { Ok(held.into()) }
}

/// The last that has begun. Where none has, by this clock, the first: others believe it already.
fn signer(keys: &[Arc<Held>], now: Timestamp) -> Arc<Held> {
    let begun = keys.iter().rfind(|key| key.signs_from <= now);
    Arc::clone(begun.unwrap_or(&keys[0]))
}

/// Keeps the ring and the swarm's keys as the metadata have them. Runs until it is dropped.
pub async fn follow(raft: Raft, keyring: Keyring, swarm: Swarm) {
    let mut events = raft.events();
    loop {
        match keyring.refresh(raft.local().query()) {
            Ok(()) => swarm.set_ticket_keys(keyring.ticket_keys()).await,
            Err(error) => {
                warn!(%error, "the cluster's signing keys cannot be read");
                tokio::time::sleep(RETRY_INTERVAL).await;
                continue;
            }
        }
        loop {
            match events.recv().await {
                Ok(Event::SigningKeysChanged | Event::AllChanged) | Err(RecvError::Lagged(_)) => {
                    break;
                }
                Ok(_) => {}
                // The node stops.
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(number: u32, from: u64) -> Arc<Held> {
        let pair = KeyPair::generate().unwrap();
        let signs_from = Timestamp::from_millis(from);
        Arc::new(Held { number, pair, signs_from, until: None })
    }

    #[test]
    fn the_last_key_that_has_begun_signs() {
        let keys = [held(3, 100), held(4, 200), held(5, 300)];
        let number = |now| signer(&keys, Timestamp::from_millis(now)).number;
        assert_eq!([50, 100, 199, 200, 299, 300, 900].map(number), [3, 3, 3, 4, 4, 5, 5]);
    }
}
