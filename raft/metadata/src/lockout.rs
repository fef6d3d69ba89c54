//! Who guesses, and is let in no more for a while.
//!
//! Nodes note failures in batches, and accounts that people ask for one by one; the times of the last ones are kept here, so that guesses at
//! several nodes add up and a window is exact wherever it begins. What is too much is a block, for
//! an account (names that nobody has are treated alike, and tell nothing) or an address.
//!
//! Invariants: every row has an end in the index of expiries, but blocks without an end; there are
//! at most [`SUSPICIONS_MAX`] rows of failures and [`BLOCKS_MAX`] blocks, whatever comes.
//! Non-goal: looking at a password; see the node's `http::auth`.

use core::net::{IpAddr, Ipv6Addr};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use shoal_content::Timestamp;
use thiserror::Error;

use crate::key;
use crate::query::Query;
use crate::table::{Fault, Read, Table};
use crate::transaction::{decoded, row};

/// Rows of failures; with one more, those that end first go.
pub const SUSPICIONS_MAX: u64 = 100_000;
/// Blocks; of one more, the one that ends first goes, which may be that itself. Those without an
/// end stay.
pub const BLOCKS_MAX: u64 = 100_000;
/// Different failures of one command.
pub const FAILURES_MAX: usize = 10_000;
/// The longest name that is kept as it is; others are known by their hash.
const NAME_BYTES_MAX: usize = 64;
/// The most of one kind that rules may allow: so many times are kept.
pub const TIMES_MAX: u32 = 1000;

/// Who is suspected.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Suspect {
    /// By the name that was tried, whether somebody has it or not.
    Account(String),
    Address(IpAddr),
}

/// What somebody brought that was wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Failure {
    Password {
        account: Suspect,
        /// `None` is one that is never blocked.
        address: Option<Suspect>,
    },
    /// A token or a robot's secret that nobody has.
    Token { address: Suspect },
}

/// What is too much, and for how long nobody is let in then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockoutRules {
    /// Wrong passwords for one account within `account_window_ms`.
    pub account_failures: u32,
    pub account_window_ms: u64,
    pub account_block_ms: u64,
    /// Accounts that one address fails for within `address_window_ms`: blocked without an end.
    pub address_accounts: u32,
    pub address_window_ms: u64,
    /// Wrong tokens of one address within `token_window_ms`.
    pub token_failures: u32,
    pub token_window_ms: u64,
    pub token_block_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockReason {
    Passwords,
    Accounts,
    Tokens,
    Registrations,
}

impl fmt::Display for BlockReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passwords => "too many wrong passwords",
            Self::Accounts => "wrong passwords for too many accounts",
            Self::Tokens => "too many wrong tokens",
            Self::Registrations => "too many accounts asked for",
        })
    }
}

/// Somebody who is not let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    pub since: Timestamp,
    /// `None` is until an administrator ends it.
    pub until: Option<Timestamp>,
    pub reason: BlockReason,
}

impl Block {
    pub fn holds(&self, at: Timestamp) -> bool {
        self.until.is_none_or(|until| until > at)
    }
}

/// The last failures of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Suspicion {
    /// When something failed; for an address that tries accounts, by the hash of the name.
    pub times: BTreeMap<u64, Timestamp>,
    /// What the next one is kept under.
    pub next: u64,
    pub ends: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{0}' is nobody who can be blocked: it is account:NAME or address:IP")]
pub struct SuspectError(String);

impl Suspect {
    /// By the name that somebody typed in, which may be anything.
    pub fn account(name: &str) -> Self {
        let plain = |c: char| c.is_ascii_graphic();
        if name.len() <= NAME_BYTES_MAX && !name.is_empty() && name.chars().all(plain) {
            return Self::Account(name.to_owned());
        }
        Self::Account(format!("#{}", &blake3::hash(name.as_bytes()).to_hex()[..32]))
    }

    pub fn address(address: IpAddr) -> Self {
        Self::Address(Self::network(address))
    }

    /// Of IPv6, a whole /64: whoever has one address of it has all.
    pub fn network(address: IpAddr) -> IpAddr {
        const HOST_BITS: u32 = 64;
        match address.to_canonical() {
            IpAddr::V4(address) => IpAddr::V4(address),
            IpAddr::V6(address) => {
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> HOST_BITS << HOST_BITS))
            }
        }
    }
}

impl fmt::Display for Suspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Account(name) => write!(f, "account:{name}"),
            Self::Address(address) => write!(f, "address:{address}"),
        }
    }
}

impl FromStr for Suspect {
    type Err = SuspectError;

    fn from_str(text: &str) -> Result<Self, SuspectError> {
        let parsed = match text.split_once(':') {
            Some(("account", name)) if !name.is_empty() => Some(Self::account(name)),
            Some(("address", address)) => address.parse().ok().map(Self::address),
            _ => None,
        };
        let shown = || text.chars().filter(|c| !c.is_control()).take(80).collect();
        parsed.ok_or_else(|| SuspectError(shown()))
    }
}

impl<R: Read> Query<'_, R> {
    /// The block that holds for somebody at `at`.
    pub fn block(&self, suspect: &Suspect, at: Timestamp) -> Result<Option<Block>, Fault> {
        let block: Option<Block> = row(self.read, Table::Blocks, &key::suspect(suspect))?;
        Ok(block.filter(|block| block.holds(at)))
    }

    /// All that hold at `at`.
    pub fn blocks(&self, at: Timestamp) -> Result<Vec<(Suspect, Block)>, Fault> {
        let mut found = Vec::new();
        for (key, bytes) in self.rows(Table::Blocks, b"")? {
            let suspect = key::read_text(&key, 0)?.parse();
            let suspect = suspect.map_err(|_| Fault::Contradiction("a block of nobody"))?;
            let block: Block = decoded(Table::Blocks, &bytes)?;
            if block.holds(at) {
                found.push((suspect, block));
            }
        }
        Ok(found)
    }

    /// How many wrong passwords for an account are known since `since`.
    pub fn password_failures(&self, account: &Suspect, since: Timestamp) -> Result<u32, Fault> {
        let found: Option<Suspicion> =
            row(self.read, Table::Suspicions, &key::suspicion(key::PASSWORDS, account))?;
        let times = found.map(|found| found.times).unwrap_or_default();
        let recent = times.values().filter(|at| **at > since).count();
        Ok(u32::try_from(recent).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_one_suspect_and_a_name_is_kept_only_where_it_is_one() {
        let address = |text: &str| Suspect::address(text.parse().unwrap()).to_string();
        assert_eq!(address("10.0.0.1"), "address:10.0.0.1");
        assert_eq!(address("::ffff:10.0.0.1"), "address:10.0.0.1");
        assert_eq!(address("2001:db8:1:2:3:4:5:6"), "address:2001:db8:1:2::");
        for text in ["account:alice", "address:10.0.0.1", "address:2001:db8::"] {
            assert_eq!(text.parse::<Suspect>().unwrap().to_string(), text);
        }
        let typed = Suspect::account("my secret password");
        assert!(typed.to_string().starts_with("account:#"), "{typed}");
        assert_eq!(typed.to_string().parse::<Suspect>().unwrap(), typed);
        for bad in ["alice", "account:", "address:x", "robot:x"] {
            assert!(bad.parse::<Suspect>().is_err(), "{bad}");
        }
    }
}
