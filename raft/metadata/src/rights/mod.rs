//! The rows that say who may do what: organizations, groups, projects, and the rights in them.
//!
//! Every membership and grant is one relation, a [`Right`] that a [`Grantee`] has at a [`Place`];
//! it is stored under the place, and marked under the grantee, so that both can be listed and
//! whoever leaves takes nothing along.
//! Non-goal: what a right allows; see `permission`.

mod audience;
mod credential;
mod holder;
mod permission;
mod query;
mod visible;
mod workload;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use shoal_content::{AccountName, ImageId, ProjectName, Timestamp};
use thiserror::Error;

pub use audience::Audience;
pub use credential::{PersonalToken, Robot, RobotName, Scope};
pub use holder::{first_holder, holder};
pub use permission::{Action, Decision, Denial, Ground, What, Who, permission};
pub use visible::Visible;
pub use workload::{SUBJECT_BYTES_MAX, WORKLOAD_RULES_MAX, WorkloadRule};

/// A company or a team that owns projects and has members and groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Organization {
    pub name: AccountName,
    pub description: String,
    pub created_at: Timestamp,
}

/// Members of an organization under one name, so that a right is given once for all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub organization: AccountName,
    pub name: AccountName,
    pub description: String,
    pub created_at: Timestamp,
}

/// Whose a project is: its owner is its administrator, whatever its members are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Owner {
    /// By the name that rows carry; one that is no account's any more owns nothing.
    User(String),
    Organization(AccountName),
}

/// Who may pull from a project without being a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Visibility {
    /// Anyone, also without an account.
    Public,
    /// The members of the organization that owns it.
    Organization,
    Private,
}

/// The first part of repositories' names, and what holds for all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    pub name: ProjectName,
    pub owner: Owner,
    pub visibility: Visibility,
    pub description: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// What a member of a project is; each can do what those before it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ProjectRole {
    /// Pulls what it knows the name of.
    LimitedGuest,
    /// Pulls and lists.
    Guest,
    /// Pushes besides, but to a public project only reads.
    Developer,
    /// Pushes and deletes.
    Maintainer,
    /// Settings, members and robots besides.
    Admin,
}

/// What somebody may do with one image, whatever the project says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Access {
    Read,
    Write,
    Admin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum OrganizationRole {
    Member,
    /// Administers it and every project that it owns.
    Owner,
}

/// Who has a right.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Grantee {
    User(AccountName),
    Group {
        organization: AccountName,
        group: AccountName,
    },
    /// All its members.
    Organization(AccountName),
}

/// Why a text names no grantee.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{0}' names nobody: it is user:NAME, group:ORGANIZATION/NAME or organization:NAME")]
pub struct GranteeError(String);

impl fmt::Display for Grantee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => write!(f, "user:{name}"),
            Self::Group { organization, group } => write!(f, "group:{organization}/{group}"),
            Self::Organization(name) => write!(f, "organization:{name}"),
        }
    }
}

impl FromStr for Grantee {
    type Err = GranteeError;

    fn from_str(text: &str) -> Result<Self, GranteeError> {
        let account = |text: &str| text.parse::<AccountName>().ok();
        let parsed = match text.split_once(':') {
            Some(("user", name)) => account(name).map(Self::User),
            Some(("organization", name)) => account(name).map(Self::Organization),
            Some(("group", rest)) => rest.split_once('/').and_then(|(organization, group)| {
                Some(Self::Group { organization: account(organization)?, group: account(group)? })
            }),
            _ => None,
        };
        let shown = || text.chars().filter(|c| !c.is_control()).take(80).collect();
        parsed.ok_or_else(|| GranteeError(shown()))
    }
}

/// Where a right holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Place {
    Project(ProjectName),
    Image(ImageId),
    Organization(AccountName),
    Group { organization: AccountName, group: AccountName },
}

impl Place {
    /// What kind of place it is, which begins its key.
    pub(crate) fn kind(&self) -> PlaceKind {
        match self {
            Self::Project(_) => PlaceKind::Project,
            Self::Image(_) => PlaceKind::Image,
            Self::Organization(_) => PlaceKind::Organization,
            Self::Group { .. } => PlaceKind::Group,
        }
    }
}

/// The first byte of a place's key; never used again for another kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum PlaceKind {
    Project = 1,
    Image = 2,
    Organization = 3,
    Group = 4,
}

/// What a grantee has at a place. Each kind of place has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Right {
    Project(ProjectRole),
    Image(Access),
    Organization(OrganizationRole),
    /// Membership; a group has no roles.
    Group,
}

/// How a right came to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// `None` where it was there before this was kept.
    pub given_at: Option<Timestamp>,
    /// On whose behalf; empty where that is not known.
    pub given_by: String,
    /// When it was last said, as what it was or as another one.
    pub changed_at: Timestamp,
}

impl Right {
    /// Whether such a right can be had at such a place.
    pub fn fits(self, place: &Place, grantee: &Grantee) -> bool {
        match (self, place) {
            (Self::Project(_), Place::Project(_)) | (Self::Image(_), Place::Image(_)) => true,
            // People are members; nothing is nested.
            (Self::Organization(_), Place::Organization(_))
            | (Self::Group, Place::Group { .. }) => {
                matches!(grantee, Grantee::User(_))
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grantees_are_read_as_they_are_written() {
        for text in ["user:alice", "group:acme/dev-ops", "organization:acme"] {
            assert_eq!(text.parse::<Grantee>().unwrap().to_string(), text);
        }
        for bad in ["alice", "user:", "user:a/b", "group:acme", "group:a/b/c", "robot:x", "user:A"]
        {
            assert!(bad.parse::<Grantee>().is_err(), "{bad}");
        }
    }
}
