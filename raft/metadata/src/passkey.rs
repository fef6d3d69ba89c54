//! Passkeys (WebAuthn credentials) of people, and the challenges that were answered.
//!
//! Invariants: a credential is one passkey's of one user, and goes with it; a challenge is answered
//! once in the whole cluster; a passkey's counter never goes back. What a challenge is sealed into,
//! and whether a signature is right, is the node's to say before it proposes.
//! Non-goal: what stands in a key; the rows keep it as the node wrote it.

use serde::{Deserialize, Serialize};
use shoal_content::Timestamp;

use crate::key;
use crate::query::Query;
use crate::table::{Fault, Read, Table};
use crate::transaction::row;

/// Of one user.
pub const PASSKEYS_MAX: usize = 16;
/// Of a passkey's name, in bytes.
pub const PASSKEY_NAME_BYTES_MAX: usize = 400;
/// Of a credential's id, in bytes (WebAuthn, section 5.1).
pub const CREDENTIAL_BYTES_MAX: usize = 1023;
/// Of a public key with what belongs to it, in bytes: an RSA key of 4096 bits several times over.
pub const PASSKEY_BYTES_MAX: usize = 16 * 1024;
/// Logins by one passkey within [`PASSKEY_WINDOW_MS`]; so many rows of spent challenges it makes.
pub const PASSKEY_USES_MAX: u32 = 100;
pub const PASSKEY_WINDOW_MS: u64 = 5 * 60 * 1000;
/// So long a spent challenge is kept behind its end: clocks of nodes may differ by less.
pub const CHALLENGE_KEPT_MS: u64 = 10 * 60 * 1000;

/// A passkey of a user's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passkey {
    /// Public; unique among its user's.
    pub id: String,
    pub user: String,
    /// What its user calls it.
    pub name: String,
    /// By which its authenticator knows it; unique in the cluster.
    pub credential: Vec<u8>,
    /// The public key with its flags, as the node wrote it.
    pub key: Vec<u8>,
    /// The authenticator's, of the last login; 0 before the first, and where it keeps none.
    pub counter: u32,
    /// Whether, while it is there, its user's password alone lets nobody in.
    pub second_factor: bool,
    pub created_at: Timestamp,
    pub last_used_at: Option<Timestamp>,
    /// How often it was used since the window's begin.
    pub uses: u32,
    pub uses_since: Timestamp,
}

/// Under what authenticators keep a user's passkeys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PasskeyOwner {
    /// Says nothing about the user.
    pub handle: [u8; 16],
    /// How many passkeys the user has ever registered: a registration that began before the last one
    /// ended is over.
    pub registered: u64,
}

/// A challenge that was answered, by its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    pub challenge: [u8; 32],
    /// When it could have been answered last.
    pub expires_at: Timestamp,
}

impl<R: Read> Query<'_, R> {
    /// A user's, the oldest first.
    pub fn passkeys(&self, user: &str) -> Result<Vec<Passkey>, Fault> {
        let mut passkeys: Vec<Passkey> = self.all(Table::Passkeys, &key::sessions(user))?;
        passkeys
            .sort_by(|one, other| (one.created_at, &one.id).cmp(&(other.created_at, &other.id)));
        Ok(passkeys)
    }

    pub fn passkey(&self, user: &str, id: &str) -> Result<Option<Passkey>, Fault> {
        row(self.read, Table::Passkeys, &key::session(user, id))
    }

    /// Whoever's it is.
    pub fn passkey_of(&self, credential: &[u8]) -> Result<Option<Passkey>, Fault> {
        let key: Option<Vec<u8>> = row(self.read, Table::Credentials, credential)?;
        let Some(key) = key else { return Ok(None) };
        let missing = Fault::Contradiction("an index names no passkey");
        row(self.read, Table::Passkeys, &key)?.map(Some).ok_or(missing)
    }

    pub fn passkey_owner(&self, user: &str) -> Result<Option<PasskeyOwner>, Fault> {
        row(self.read, Table::PasskeyOwners, user.as_bytes())
    }
}
