//! Who has an account, and whom a limit is for; as text in requests and keys.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use shoal_content::{AccountName, ProjectName};
use thiserror::Error;

/// Somebody whom content is counted to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Payer {
    Cluster,
    /// By the name that rows carry.
    User(String),
    Group {
        organization: AccountName,
        group: AccountName,
    },
    Organization(AccountName),
    Project(ProjectName),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PayerKind {
    Cluster,
    User,
    Group,
    Organization,
    Project,
}

/// What a limit is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum QuotaOf {
    One(Payer),
    /// Everyone of the kind who has no limit of its own.
    Each(PayerKind),
}

/// Why a text names nobody who can have a quota.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "'{0}' has no quota: it is user:NAME, group:ORGANIZATION/NAME, organization:NAME, \
     project:NAME or cluster, or default: and one of user, group, organization, project"
)]
pub struct PayerError(String);

impl PayerKind {
    /// Those of whom there is more than one.
    const MANY: [Self; 4] = [Self::User, Self::Group, Self::Organization, Self::Project];

    fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::User => "user",
            Self::Group => "group",
            Self::Organization => "organization",
            Self::Project => "project",
        }
    }
}

impl Payer {
    pub fn kind(&self) -> PayerKind {
        match self {
            Self::Cluster => PayerKind::Cluster,
            Self::User(_) => PayerKind::User,
            Self::Group { .. } => PayerKind::Group,
            Self::Organization(_) => PayerKind::Organization,
            Self::Project(_) => PayerKind::Project,
        }
    }
}

impl fmt::Display for Payer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster => f.write_str("cluster"),
            Self::User(name) => write!(f, "user:{name}"),
            Self::Group { organization, group } => write!(f, "group:{organization}/{group}"),
            Self::Organization(name) => write!(f, "organization:{name}"),
            Self::Project(name) => write!(f, "project:{name}"),
        }
    }
}

impl fmt::Display for QuotaOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(payer) => payer.fmt(f),
            Self::Each(kind) => write!(f, "default:{}", kind.as_str()),
        }
    }
}

impl FromStr for Payer {
    type Err = PayerError;

    fn from_str(text: &str) -> Result<Self, PayerError> {
        let account = |text: &str| text.parse::<AccountName>().ok();
        let parsed = match text.split_once(':') {
            None => (text == "cluster").then_some(Self::Cluster),
            Some(("user", name)) => account(name).map(|name| Self::User(name.to_string())),
            Some(("organization", name)) => account(name).map(Self::Organization),
            Some(("project", name)) => name.parse().ok().map(Self::Project),
            Some(("group", rest)) => rest.split_once('/').and_then(|(organization, group)| {
                Some(Self::Group { organization: account(organization)?, group: account(group)? })
            }),
            Some(_) => None,
        };
        parsed
            .ok_or_else(|| PayerError(text.chars().filter(|c| !c.is_control()).take(80).collect()))
    }
}

impl FromStr for QuotaOf {
    type Err = PayerError;

    fn from_str(text: &str) -> Result<Self, PayerError> {
        match text.strip_prefix("default:") {
            None => text.parse().map(Self::One),
            Some(kind) => {
                let found = PayerKind::MANY.into_iter().find(|one| one.as_str() == kind);
                found.map(Self::Each).ok_or_else(|| PayerError(text.chars().take(80).collect()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_a_limit_is_for_is_read_as_it_is_written() {
        for text in [
            "cluster",
            "user:alice",
            "group:acme/dev",
            "organization:acme",
            "project:shop",
            "default:project",
            "default:group",
        ] {
            assert_eq!(text.parse::<QuotaOf>().unwrap().to_string(), text);
        }
        for bad in ["", "alice", "user:", "user:A", "group:acme", "default:cluster", "robot:x"] {
            assert!(bad.parse::<QuotaOf>().is_err(), "{bad}");
        }
    }
}
