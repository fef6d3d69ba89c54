//! Secrets that programs bring instead of a person's password.
//!
//! Invariant: a row keeps the BLAKE3 of a secret of at least 128 random bits, never the secret.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use shoal_content::{AccountName, ProjectName, Timestamp};

/// What a personal token may be used for: never more than its user may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Scope {
    /// Pull and list.
    Read,
    /// Push.
    Write,
    /// Delete versions, tags and images.
    Delete,
    /// Everything else that the user may.
    Admin,
}

impl Scope {
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Delete, Self::Admin];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "repo:read",
            Self::Write => "repo:write",
            Self::Delete => "repo:delete",
            Self::Admin => "admin",
        }
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|scope| scope.as_str() == text);
        found.ok_or_else(|| {
            let known = Self::ALL.map(Self::as_str).join(", ");
            format!("a scope is one of {known}")
        })
    }
}

/// A person's own token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersonalToken {
    /// Public; unique in the cluster.
    pub id: String,
    pub user: AccountName,
    /// What its user calls it.
    pub name: String,
    pub secret_hash: [u8; 32],
    pub scopes: BTreeSet<Scope>,
    pub created_at: Timestamp,
    /// `None` is never.
    pub expires_at: Option<Timestamp>,
    /// To the minute or so: uses are written down in batches.
    pub last_used_at: Option<Timestamp>,
}

impl PersonalToken {
    /// What it is besides whose, for the trail: ` scopes=repo:read created=… expires=… used=… name=…`, with
    /// times in milliseconds since 1970. What its user calls it comes last, since it may be anything.
    pub(crate) fn described(&self) -> String {
        let at = |time: Option<Timestamp>| {
            time.map_or_else(|| "never".to_owned(), |time| time.as_millis().to_string())
        };
        let scopes: Vec<&str> = self.scopes.iter().copied().map(Scope::as_str).collect();
        format!(
            " scopes={} created={} expires={} used={} name={}",
            scopes.join(","),
            self.created_at.as_millis(),
            at(self.expires_at),
            at(self.last_used_at),
            self.name
        )
    }
}

/// `robot$PROJECT+NAME`: an account of one project, for programs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RobotName {
    pub project: ProjectName,
    pub name: AccountName,
}

impl fmt::Display for RobotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "robot${}+{}", self.project, self.name)
    }
}

impl FromStr for RobotName {
    type Err = shoal_content::NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || shoal_content::NameError::Account(text.chars().take(64).collect());
        let rest = text.strip_prefix("robot$").ok_or_else(bad)?;
        let (project, name) = rest.split_once('+').ok_or_else(bad)?;
        Ok(Self { project: project.parse()?, name: name.parse()? })
    }
}

/// A robot account: what it may do, and where in its project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Robot {
    pub name: RobotName,
    pub description: String,
    pub secret_hash: [u8; 32],
    /// Any of read, write and delete.
    pub scopes: BTreeSet<Scope>,
    /// Repositories by their whole names; empty is all of the project.
    pub repositories: BTreeSet<shoal_content::RepositoryName>,
    pub created_at: Timestamp,
    pub created_by: String,
    /// `None` is never.
    pub expires_at: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn robots_are_named_as_docker_logs_them_in() {
        let name: RobotName = "robot$shop+ci".parse().unwrap();
        assert_eq!((name.project.as_str(), name.name.as_str()), ("shop", "ci"));
        assert_eq!(name.to_string(), "robot$shop+ci");
        for bad in ["robot$shop", "robot$+ci", "shop+ci", "robot$a/b+c"] {
            assert!(bad.parse::<RobotName>().is_err(), "{bad}");
        }
    }
}
