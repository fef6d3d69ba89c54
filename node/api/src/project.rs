//! Projects, their members and robots, and what is granted for one image.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shoal_content::{AccountName, ImageId, ProjectName, RepositoryName};

use crate::{Hidden, Usage};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Project {
    pub name: ProjectName,
    /// `user:NAME` or `organization:NAME`.
    pub owner: String,
    /// `public`, `organization` or `private`.
    pub visibility: String,
    pub description: String,
    pub created_at: String,
    pub updated_at: String,
    #[serde(default)]
    pub usage: Usage,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CreateProject {
    pub name: ProjectName,
    /// The organization that owns it; whoever asks, where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub organization: Option<AccountName>,
    #[serde(default = "private")]
    pub visibility: String,
    #[serde(default)]
    pub description: String,
}

fn private() -> String {
    "private".to_owned()
}

/// What is to change; the rest stays.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct UpdateProject {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visibility: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// `user:NAME` or `organization:NAME`; only administrators of the cluster give projects away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// Somebody's right at a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Member {
    /// `user:NAME`, `group:ORGANIZATION/NAME` or `organization:NAME`.
    pub grantee: String,
    /// In a project `limited-guest`, `guest`, `developer`, `maintainer` or `admin`; for an image
    /// `read`, `write` or `admin`; in an organization `member` or `owner`.
    pub role: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct PutMember {
    pub role: String,
}

/// `POST /api/v1/images/{id}/permissions`: a right for one image, in the words of systems that know
/// kinds of principals.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct GrantPermission {
    /// `user`, `user_group` or `organization`.
    pub principal_type: String,
    /// A name; of a group `ORGANIZATION/NAME`.
    pub principal_id: String,
    /// `read`, `write` or `admin`.
    pub permission_level: String,
}

/// Somebody's right for one image, in the same words and as a [`Member`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Permission {
    /// What `DELETE …/permissions/{id}` takes it back by.
    pub id: String,
    pub principal: PermissionHolder,
    /// The principal's type and id again.
    #[serde(default)]
    pub principal_type: String,
    #[serde(default)]
    pub principal_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_id: Option<ImageId>,
    /// `read`, `write` or `admin`.
    pub permission_level: String,
    /// When it was given, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// On whose behalf; empty where that is not known.
    #[serde(default)]
    pub created_by: String,
    /// When its level was last said, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<String>,
    /// The id again.
    pub grantee: String,
    /// The level again.
    pub role: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PermissionHolder {
    /// `user`, `user_group` or `organization`.
    #[serde(rename = "type")]
    pub kind: String,
    pub id: String,
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Robot {
    /// `robot$PROJECT+NAME`: what it logs in as.
    pub name: String,
    pub description: String,
    pub scopes: BTreeSet<String>,
    /// Empty is all of the project.
    pub repositories: BTreeSet<RepositoryName>,
    pub created_at: String,
    pub created_by: String,
    pub expires_at: Option<String>,
}

/// Makes a robot, or gives the one of that name a new secret and these rights.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CreateRobot {
    pub name: AccountName,
    #[serde(default)]
    pub description: String,
    /// `repo:read`, `repo:write`, `repo:delete`; reading alone where none is given, and with writing
    /// and deleting in any case.
    #[serde(default)]
    pub scopes: BTreeSet<String>,
    #[serde(default)]
    pub repositories: BTreeSet<RepositoryName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct RobotCreated {
    #[serde(flatten)]
    pub robot: Robot,
    /// Shown this once.
    pub secret: Hidden,
}

/// Which tokens of another issuer act as a robot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkloadRule {
    pub name: AccountName,
    /// As its tokens have it; one of those in the node's settings.
    pub issuer: String,
    /// Of the claim `sub`; `*` is any characters.
    pub subject: String,
    /// Further claims, with the text that each has to be.
    #[serde(default)]
    pub claims: std::collections::BTreeMap<String, String>,
    /// Of the same project, without `robot$PROJECT+`.
    pub robot: AccountName,
    #[serde(default)]
    pub created_at: String,
    #[serde(default)]
    pub created_by: String,
}

/// `POST /api/v1/auth/workload`.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct WorkloadLogin {
    pub project: ProjectName,
    /// Where several rules take the token: which robot is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub robot: Option<AccountName>,
    /// The other issuer's.
    pub token: String,
}

impl std::fmt::Debug for WorkloadLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkloadLogin").field("project", &self.project).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct WorkloadToken {
    /// What to log in as, where a client wants a name.
    pub username: String,
    pub token: Hidden,
    pub expires_at: String,
}
