//! What a project keeps, and what nobody may change in it.
//!
//! A [`Policy`] is one row for a project. Its retention rules are or-ed: a name is dropped where at
//! least one rule is for it and none keeps it; a name that no rule is for is not touched. Its
//! immutability rules hold in `apply`, against everyone. `judge` decides; `apply::retire` carries
//! out, and looks again at what may have changed since.
//!
//! A name is a tag. The number of a disk's version is a name, too: it was pushed when the version
//! was, it cannot move, and dropping it drops the version.

mod judge;
mod pattern;
mod query;
mod untagged;

use serde::{Deserialize, Serialize};
use shoal_content::{ProjectName, RepositoryName, Timestamp};
use thiserror::Error;

pub use judge::{
    JudgeError, JudgedName, JudgedVersion, Judgement, NAMES_JUDGED_MAX, NameKind, Reason,
    VERSIONS_JUDGED_MAX, Verdict, judge,
};
pub use pattern::{PATTERN_BYTES_MAX, Pattern, PatternError};
pub use query::NameUse;
pub(crate) use query::PULLS_SINCE;

/// Rules of one kind in one policy: each is tried against each name.
pub const RULES_MAX: usize = 32;
/// The longest time that a rule is about, in days: a hundred years.
pub const DAYS_MAX: u32 = 36_525;
/// The most versions that a rule keeps by their number.
pub const NEWEST_MAX: u32 = 100_000;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// Why rules are no policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum PolicyError {
    #[error("a policy has at most {RULES_MAX} rules of a kind")]
    Rules,
    #[error("a rule is about at most {DAYS_MAX} days")]
    Days,
    #[error("a rule keeps from 1 to {NEWEST_MAX} versions")]
    Newest,
}

/// The names that a rule is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Over what follows the project in the repository's name; that is nothing where the
    /// repository is named as the project is.
    pub repositories: Pattern,
    pub tags: Pattern,
}

impl Selection {
    pub fn has_repository(&self, name: &RepositoryName) -> bool {
        let rest = name.as_str().split_once('/').map_or("", |(_, rest)| rest);
        self.repositories.matches(rest)
    }
}

/// What a rule keeps of the names that it is for, in each repository by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Keep {
    /// The names of the versions that were pushed last, so many: several names of one version count
    /// once. A push under a name counts also where the version was there before.
    Newest(u32),
    /// Pushed in the last so many days.
    PushedWithin {
        days: u32,
    },
    /// Pulled in the last so many days, by this name or by the digest of the version it names. A
    /// push counts as a pull, and so does the moment since when the cluster notes pulls.
    PulledWithin {
        days: u32,
    },
    Always,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetentionRule {
    pub selection: Selection,
    pub keep: Keep,
}

/// What people write.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRules {
    /// Whether it is carried out at every interval; else only when somebody says so.
    pub automatic: bool,
    pub retention: Vec<RetentionRule>,
    /// Container versions without a tag go when they were not pushed, untagged or pulled for so
    /// many days, unless something that stays needs them.
    pub untagged_days: Option<u32>,
    /// Matching names can be made, and then neither moved nor deleted; neither can what they name.
    pub immutable: Vec<Selection>,
}

impl PolicyRules {
    /// # Errors
    /// Where a limit is exceeded.
    pub fn check(&self) -> Result<(), PolicyError> {
        if self.retention.len() > RULES_MAX || self.immutable.len() > RULES_MAX {
            return Err(PolicyError::Rules);
        }
        for rule in &self.retention {
            match rule.keep {
                Keep::Newest(count) if count == 0 || count > NEWEST_MAX => {
                    return Err(PolicyError::Newest);
                }
                Keep::PushedWithin { days } | Keep::PulledWithin { days } if days > DAYS_MAX => {
                    return Err(PolicyError::Days);
                }
                _ => {}
            }
        }
        match self.untagged_days {
            Some(days) if days > DAYS_MAX => Err(PolicyError::Days),
            _ => Ok(()),
        }
    }

    /// Whether what is dropped depends on when it was pulled.
    pub fn looks_at_pulls(&self) -> bool {
        let by_pull = |rule: &RetentionRule| matches!(rule.keep, Keep::PulledWithin { .. });
        self.untagged_days.is_some() || self.retention.iter().any(by_pull)
    }

    /// What is immutable in one repository.
    pub fn immutability(&self, name: &RepositoryName) -> Immutability {
        let here = self.immutable.iter().enumerate().filter(|(_, of)| of.has_repository(name));
        Immutability { rules: here.map(|(at, of)| (at, of.tags.clone())).collect() }
    }
}

/// The patterns of names that nobody may change, in one repository.
#[derive(Debug, Clone, Default)]
pub struct Immutability {
    /// With the rule's place in the policy.
    rules: Vec<(usize, Pattern)>,
}

impl Immutability {
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The rule that holds a name, if any.
    pub fn rule(&self, name: &str) -> Option<usize> {
        self.rules.iter().find(|(_, pattern)| pattern.matches(name)).map(|(at, _)| *at)
    }

    pub fn holds(&self, name: &str) -> bool {
        self.rule(name).is_some()
    }
}

/// The policy of one project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    pub project: ProjectName,
    pub rules: PolicyRules,
    /// Another one after each change, also where it was removed in between.
    pub revision: u64,
    pub updated_at: Timestamp,
    pub updated_by: String,
}

/// `days` before `at`.
fn days_before(at: Timestamp, days: u32) -> Timestamp {
    Timestamp::from_millis(at.as_millis().saturating_sub(u64::from(days) * DAY_MS))
}
