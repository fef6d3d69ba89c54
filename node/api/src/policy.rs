//! What a project keeps, what nobody may change in it, and what that comes to.
//!
//! In patterns, `?` is any one character but `/`, `*` any number of them, `**` any number of any;
//! a `!` at the start turns the meaning round. A repository's pattern is about what follows the
//! project in its name.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shoal_content::{Digest, ProjectName, RepositoryName};

/// A name goes where a rule is for it and none keeps it; a name that no rule is for stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Whether it is carried out at every interval; else only when somebody says so.
    #[serde(default)]
    pub automatic: bool,
    /// Container versions without a tag go when they were not pushed, untagged or pulled for so
    /// many days, unless something that stays needs them. Without it they all stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untagged_after_days: Option<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retention: Vec<RetentionRule>,
    /// Names that can be made, and then neither moved nor deleted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub immutable: Vec<Selection>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RetentionRule {
    #[serde(default = "everything")]
    pub repositories: String,
    /// Of tags, and of disks' version numbers.
    #[serde(default = "everything")]
    pub tags: String,
    pub keep: Keep,
}

/// What a rule keeps in each repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// The names of the versions that were pushed last, so many.
    Newest(u32),
    PushedWithinDays(u32),
    /// A push counts as a pull.
    PulledWithinDays(u32),
    Always,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Selection {
    #[serde(default = "everything")]
    pub repositories: String,
    #[serde(default = "everything")]
    pub tags: String,
}

fn everything() -> String {
    "**".to_owned()
}

/// `GET /api/v1/projects/{project}/policy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProjectPolicy {
    pub project: ProjectName,
    pub policy: Policy,
    /// Another one after each change.
    pub revision: u64,
    pub updated_at: String,
    pub updated_by: String,
}

/// `PUT` of the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PutPolicy {
    pub policy: Policy,
    /// Refused where the policy is not of this revision any more; 0 is where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
}

/// `POST …/retention/dry-run`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DryRun {
    /// In place of the project's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
}

/// What a run would do now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RetentionReport {
    pub project: ProjectName,
    pub judged_at: String,
    /// Tags and version numbers.
    pub names: Decided,
    pub untagged: Decided,
    /// What goes comes first.
    pub entries: Vec<RetentionEntry>,
    /// Whether there is more than `entries` has.
    pub truncated: bool,
    /// Repositories with too many names, which are left alone.
    pub skipped: Vec<RepositoryName>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Decided {
    pub drop: u64,
    pub keep: u64,
    pub untouched: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RetentionEntry {
    pub repository: RepositoryName,
    /// `tag`, `number` (of a disk's version) or `untagged`.
    pub kind: String,
    /// Of a tag or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub digest: Digest,
    /// When it was last pushed; where it is untagged, since when it is without use.
    pub pushed_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pulled_at: Option<String>,
    /// `drop`, `keep` or `untouched`.
    pub decision: String,
    /// For people.
    pub reason: String,
    /// The retention rule that keeps it, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<u64>,
}

/// `POST …/retention/run`: what was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RetentionDone {
    pub project: ProjectName,
    pub repositories: u64,
    pub tags: u64,
    pub versions: u64,
    /// What was to go, and was pushed, pulled or needed meanwhile.
    pub changed: u64,
    pub skipped: Vec<RepositoryName>,
}
