//! How people log in: second factors, and the sessions that a login begins.
//!
//! Invariants: the secret of a second factor is sealed by the node that made it, and rows, logs and
//! listings never have it in clear; a code or a recovery code is good once, whichever node it is
//! brought to; a session goes with its user, and a user has at most so many.
//! Non-goals: what a code is (see the node's `http::auth`), passkeys (see `passkey`).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use shoal_content::Timestamp;

use crate::key;
use crate::query::Query;
use crate::record::Secret;
use crate::table::{Fault, Read, Table};
use crate::transaction::row;

/// Recovery codes of one user.
pub const RECOVERY_CODES_MAX: usize = 32;
/// Of what a browser or program calls itself, in bytes.
pub const SESSION_AGENT_BYTES_MAX: usize = 200;

/// A user's second factor: codes by time (RFC 6238), and codes for when the device is lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecondFactor {
    /// Sealed.
    pub secret: Secret,
    pub created_at: Timestamp,
    /// When its user showed that its device has it; before, nothing is asked for.
    pub confirmed_at: Option<Timestamp>,
    /// The time step of the last code that was taken; none before or at it is taken again.
    pub last_step: u64,
    /// BLAKE3 of those that are left.
    pub recovery: BTreeSet<[u8; 32]>,
}

/// What is brought as a second factor. That it is right was found by the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Proof {
    /// A code of this time step.
    Step(u64),
    /// BLAKE3 of a recovery code.
    Recovery([u8; 32]),
}

/// A login that is not over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Public; unique among its user's.
    pub id: String,
    pub user: String,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    /// Where the login came from; empty where that is not known.
    pub address: String,
    /// What the browser or program called itself.
    pub agent: String,
    /// How the user showed who it is.
    pub means: LoginMeans,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoginMeans {
    Password,
    PasswordAndCode,
    PasswordAndRecoveryCode,
    /// Another issuer's word.
    Issuer(String),
    /// A passkey, whose authenticator asked for a PIN or a finger: two factors at once.
    Passkey,
    PasswordAndPasskey,
}

/// Somebody whom another issuer vouches for, and the account that it is here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub issuer: String,
    /// The issuer's own name for it, which it never gives to another one.
    pub subject: String,
    pub user: String,
    pub linked_at: Timestamp,
}

/// Somebody who has asked to be removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaving {
    pub user: String,
    pub due: Timestamp,
}

/// Of an issuer or a subject, in bytes.
pub const IDENTITY_BYTES_MAX: usize = 512;
/// Of one user.
pub const IDENTITIES_MAX: usize = 16;
/// Of an e-mail address, in bytes (RFC 5321, 4.5.3.1.3, without its brackets).
pub const EMAIL_BYTES_MAX: usize = 254;

/// Whether it may be an e-mail address; whether mail comes there is nobody's to know here.
pub fn is_email(text: &str) -> bool {
    let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '<' | '>' | ',' | ';');
    let parts = text.rsplit_once('@').filter(|(name, host)| !name.is_empty() && !host.is_empty());
    parts.is_some() && text.len() <= EMAIL_BYTES_MAX && !text.contains(odd)
}

impl<R: Read> Query<'_, R> {
    pub fn leaving(&self, user: &str) -> Result<Option<Leaving>, Fault> {
        row(self.read, Table::Leavings, user.as_bytes())
    }

    /// Where a user gets mail, if that was said.
    pub fn email(&self, user: &str) -> Result<Option<String>, Fault> {
        row(self.read, Table::Emails, user.as_bytes())
    }

    /// By name.
    pub fn leavings(&self) -> Result<Vec<Leaving>, Fault> {
        self.all(Table::Leavings, b"")
    }

    pub fn identity(&self, issuer: &str, subject: &str) -> Result<Option<Identity>, Fault> {
        row(self.read, Table::Identities, &key::identity(issuer, subject))
    }

    pub fn identities_of(&self, user: &str) -> Result<Vec<Identity>, Fault> {
        let keys: Vec<Vec<u8>> = self.all(Table::UserIdentities, &key::sessions(user))?;
        let missing = Fault::Contradiction("an index names no identity");
        let rows: Result<Option<Vec<_>>, Fault> =
            keys.iter().map(|key| row(self.read, Table::Identities, key)).collect();
        rows?.ok_or(missing)
    }

    pub fn second_factor(&self, user: &str) -> Result<Option<SecondFactor>, Fault> {
        row(self.read, Table::SecondFactors, user.as_bytes())
    }

    /// Whether a password alone does not let the user in.
    pub fn needs_second_factor(&self, user: &str) -> Result<bool, Fault> {
        let factor = self.second_factor(user)?;
        if factor.is_some_and(|factor| factor.confirmed_at.is_some()) {
            return Ok(true);
        }
        Ok(self.passkeys(user)?.iter().any(|passkey| passkey.second_factor))
    }

    pub fn session(&self, user: &str, id: &str) -> Result<Option<Session>, Fault> {
        row(self.read, Table::Sessions, &key::session(user, id))
    }

    /// A user's sessions, the oldest first, with those that are over.
    pub fn sessions(&self, user: &str) -> Result<Vec<Session>, Fault> {
        let mut sessions: Vec<Session> = self.all(Table::Sessions, &key::sessions(user))?;
        sessions
            .sort_by(|one, other| (one.created_at, &one.id).cmp(&(other.created_at, &other.id)));
        Ok(sessions)
    }
}
