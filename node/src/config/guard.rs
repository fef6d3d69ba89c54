//! Settings against guessing and floods.
//!
//! Non-goal: settings that allow no limit at all to be met by mistake: 0 turns a rate off, and
//! nothing turns the lock-out off.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use shoal_metadata::{LockoutRules, TIMES_MAX};

/// The keys that tokens and tickets are signed with.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Keys {
    /// A key is replaced when it has signed for so long; 0 is never.
    pub rotate_days: u32,
}

impl Default for Keys {
    fn default() -> Self {
        Self { rotate_days: 30 }
    }
}

impl Keys {
    pub fn rotate_ms(&self) -> Option<u64> {
        (self.rotate_days > 0).then(|| u64::from(self.rotate_days) * 24 * 3600 * 1000)
    }
}

/// Who is not let in after too many wrong passwords or tokens.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lockout {
    /// Wrong passwords for one account, within the window.
    pub account_failures: u32,
    pub account_window_seconds: u64,
    /// So long nobody gets into the account by its password.
    pub account_block_seconds: u64,
    /// Accounts that one address brings wrong passwords for; it is blocked until it is let in.
    pub address_accounts: u32,
    pub address_window_seconds: u64,
    /// Wrong tokens from one address.
    pub token_failures: u32,
    pub token_window_seconds: u64,
    pub token_block_seconds: u64,
    /// Accounts that one address asks for, where people make their own; it is blocked until it is let in.
    pub address_registrations: u32,
    pub registration_window_seconds: u64,
    /// Addresses that are never blocked and have no rates: load balancers, and this machine.
    pub exempt_networks: Vec<IpNet>,
}

impl Default for Lockout {
    fn default() -> Self {
        let loopback = [
            Ipv4Net::new([127, 0, 0, 0].into(), 8).map(IpNet::V4),
            Ipv6Net::new([0, 0, 0, 0, 0, 0, 0, 1].into(), 128).map(IpNet::V6),
        ];
        Self {
            account_failures: 10,
            account_window_seconds: 60,
            account_block_seconds: 24 * 3600,
            address_accounts: 100,
            address_window_seconds: 3600,
            token_failures: 100,
            token_window_seconds: 60,
            token_block_seconds: 15 * 60,
            address_registrations: 10,
            registration_window_seconds: 3600,
            exempt_networks: loopback.into_iter().flatten().collect(),
        }
    }
}

impl Lockout {
    /// What the cluster goes by.
    pub fn rules(&self) -> LockoutRules {
        let ms = |seconds: u64| seconds.saturating_mul(1000);
        LockoutRules {
            account_failures: self.account_failures,
            account_window_ms: ms(self.account_window_seconds),
            account_block_ms: ms(self.account_block_seconds),
            address_accounts: self.address_accounts,
            address_window_ms: ms(self.address_window_seconds),
            token_failures: self.token_failures,
            token_window_ms: ms(self.token_window_seconds),
            token_block_ms: ms(self.token_block_seconds),
        }
    }

    /// What is wrong with it, if something is.
    pub fn mistake(&self) -> Option<String> {
        let counts = [
            self.account_failures,
            self.address_accounts,
            self.token_failures,
            self.address_registrations,
        ];
        let wrong = counts.iter().any(|count| *count == 0 || *count > TIMES_MAX);
        wrong.then(|| format!("counts are from 1 to {TIMES_MAX}"))
    }
}

/// Logins of people.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sessions {
    /// How long one lasts; its tokens are renewed meanwhile.
    pub lifetime_seconds: u64,
    /// With one more, a person's oldest one ends.
    pub per_person: u32,
}

impl Default for Sessions {
    fn default() -> Self {
        Self { lifetime_seconds: 7 * 24 * 3600, per_person: 20 }
    }
}

/// Who may make an account for itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Registration {
    /// Nobody: administrators make accounts, or an issuer or a directory vouches for people.
    #[default]
    Closed,
    /// Whoever reaches a node.
    Open,
}

/// Who may order versions onto hosts, once or by a warm-up policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Orders {
    /// Every account, what it may pull.
    Everyone,
    Administrators,
}

/// People's accounts.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Accounts {
    /// How long somebody who asked to be removed may change its mind.
    pub deletion_grace_seconds: u64,
    pub registration: Registration,
    /// Whether accounts may come with hashes of another program's, which are compared then.
    pub bcrypt: bool,
    /// Everyone, where nothing is said; and that must be said where anybody may have an account.
    pub orders: Option<Orders>,
}

impl Default for Accounts {
    fn default() -> Self {
        Self {
            deletion_grace_seconds: 72 * 3600,
            registration: Registration::Closed,
            bcrypt: false,
            orders: None,
        }
    }
}

/// How many requests are answered; others are told when to come again.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rates {
    /// Of one address, at one node; 0 is any number.
    pub address_per_second: u32,
    /// Of one person or robot.
    pub principal_per_second: u32,
    /// So many seconds' worth may come at once.
    pub burst_seconds: u32,
}

impl Default for Rates {
    fn default() -> Self {
        Self { address_per_second: 20_000, principal_per_second: 20_000, burst_seconds: 5 }
    }
}

/// How long the audit trail is kept at hand.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Audit {
    /// Older entries are moved to storage.
    pub keep_days: u32,
    pub archive_interval_seconds: u64,
}

impl Default for Audit {
    fn default() -> Self {
        Self { keep_days: 90, archive_interval_seconds: 3600 }
    }
}
