//! The keys that the cluster signs with: Bearer tokens with some, tickets with others.
//!
//! Each purpose has its keys, numbered from 0, which came with the cluster. A new one is announced
//! before it signs, so that whoever checks signatures knows it by then; the one before it is good
//! for what it signed until that has run out.
//!
//! Invariants: there is always a key; numbers grow and are never used twice; a key that nothing can
//! be signed with any more leaves with the next rotation, and all of them at once where one of them
//! is to be trusted no longer.
//! Non-goals: what is signed, and by which algorithm; here a key is bytes.

use serde::{Deserialize, Serialize};
use shoal_content::Timestamp;

use crate::query::Query;
use crate::record::{Cluster, Secret};
use crate::table::{Fault, Read};

/// How long after its successor began to sign a key's signatures are accepted, in milliseconds:
/// longer than any token or ticket lives, and clocks may differ.
pub const SIGNATURES_LIVE_MS: u64 = 7 * 3600 * 1000;
/// Keys of one purpose that are known at once.
pub const SIGNING_KEYS_MAX: usize = 16;
/// An Ed25519 key in PKCS#8 has 48 to 85 bytes.
pub const SIGNING_KEY_BYTES_MAX: usize = 256;

/// What is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum KeyPurpose {
    /// Bearer tokens of people and robots.
    Token,
    /// Rights of agents to chunks.
    Ticket,
}

impl KeyPurpose {
    pub const ALL: [Self; 2] = [Self::Token, Self::Ticket];

    /// As routes and the trail name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Ticket => "ticket",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigningKey {
    pub number: u32,
    /// Ed25519 PKCS#8 (DER).
    pub private: Secret,
    pub signs_from: Timestamp,
}

impl SigningKey {
    /// The one that came with the cluster.
    pub fn first(cluster: &Cluster, purpose: KeyPurpose) -> Self {
        let private = match purpose {
            KeyPurpose::Token => cluster.token_key.clone(),
            KeyPurpose::Ticket => cluster.ticket_key.clone(),
        };
        Self { number: 0, private, signs_from: cluster.founded_at }
    }
}

/// Until when the signatures of `keys[at]` are accepted; `None` is as long as it is there.
pub fn accepted_until(keys: &[SigningKey], at: usize) -> Option<Timestamp> {
    keys.get(at + 1).map(|next| next.signs_from.plus_millis(SIGNATURES_LIVE_MS))
}

impl<R: Read> Query<'_, R> {
    /// The keys of a purpose, oldest first; none before there is a cluster.
    ///
    /// # Errors
    /// Where the metadata cannot be read.
    pub fn signing_keys(&self, purpose: KeyPurpose) -> Result<Vec<SigningKey>, Fault> {
        if let Some(keys) = self.rotated_keys(purpose)? {
            return Ok(keys);
        }
        let cluster = self.cluster()?;
        Ok(cluster.iter().map(|cluster| SigningKey::first(cluster, purpose)).collect())
    }
}
