//! People, their tokens, and the organizations that they are in.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shoal_content::AccountName;

/// A text that no log and no `Debug` output shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline, extend("format" = "password"))]
pub struct Hidden(pub String);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hidden(…)")
    }
}

/// A person's account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct User {
    pub username: String,
    /// `admin`, `auditor` or `user`.
    pub role: String,
    /// Where it gets mail, if that was said.
    #[serde(default)]
    pub email: Option<String>,
    pub created_at: String,
}

/// The answer gives the account; where no password was sent, with one that was made up.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CreateUser {
    pub username: AccountName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Hidden>,
    /// In place of the password, its hash by bcrypt (`$2y$…`), as htpasswd files have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_hash: Option<Hidden>,
    #[serde(default = "user_role")]
    pub role: String,
    /// Where it gets mail. Shown to itself, and to who administers what it owns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
}

fn user_role() -> String {
    "user".to_owned()
}

/// `POST /api/v1/auth/register`: an account for whoever asks.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Register {
    pub username: AccountName,
    pub password: Hidden,
    /// Where it gets mail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct UserCreated {
    #[serde(flatten)]
    pub user: User,
    /// Shown this once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Hidden>,
}

/// `POST /api/v1/users/{user}/recovery`: how an administrator logs in from now on, and what is over.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct AccountRecovered {
    pub username: String,
    /// Shown this once.
    pub password: Hidden,
    /// Whether there was one.
    pub second_factor_removed: bool,
    pub passkeys_removed: u64,
    pub sessions_ended: u64,
    /// Personal tokens, which go on.
    pub tokens_kept: u64,
}

/// What is to change; the rest stays.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct UpdateUser {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Hidden>,
    /// An empty text takes it away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
}

/// One's own password; the current one proves that it is.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ChangePassword {
    pub current_password: Hidden,
    pub new_password: Hidden,
}

/// Where one gets mail oneself; an empty text is nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChangeEmail {
    pub email: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecondFactor {
    /// Whether a code is asked for at login.
    pub enabled: bool,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed_at: Option<String>,
    pub recovery_codes_left: u64,
}

/// The password proves that it is not somebody at an open browser.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct BeginSecondFactor {
    pub current_password: Hidden,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct SecondFactorBegun {
    /// Base 32, for authenticators that take it typed. Shown this once.
    pub secret: Hidden,
    /// `otpauth://totp/…`, for a QR code.
    pub address: Hidden,
}

/// A code of the authenticator, or a recovery code.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Code {
    pub code: Hidden,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct RecoveryCodes {
    /// Each is good once. Shown this once.
    pub codes: Vec<Hidden>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PersonalToken {
    pub id: String,
    pub name: String,
    pub scopes: BTreeSet<String>,
    pub created_at: String,
    /// `None` is never.
    pub expires_at: Option<String>,
    pub last_used_at: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CreatePersonalToken {
    pub name: String,
    /// `repo:read`, `repo:write`, `repo:delete`, `admin`; reading alone where none is given, and with
    /// writing and deleting in any case.
    #[serde(default)]
    pub scopes: BTreeSet<String>,
    /// `None` is never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct PersonalTokenCreated {
    #[serde(flatten)]
    pub info: PersonalToken,
    /// Shown this once.
    pub token: Hidden,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Organization {
    pub name: AccountName,
    pub description: String,
    pub created_at: String,
    #[serde(default)]
    pub usage: crate::Usage,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CreateOrganization {
    pub name: AccountName,
    #[serde(default)]
    pub description: String,
    /// A user; whoever asks, where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<AccountName>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Group {
    pub name: AccountName,
    pub description: String,
    pub members: Vec<AccountName>,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CreateGroup {
    pub name: AccountName,
    #[serde(default)]
    pub description: String,
}

/// Somebody whom another issuer vouches for, and who is this user here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Identity {
    pub issuer: String,
    /// The claim `sub`.
    pub subject: String,
    #[serde(default)]
    pub linked_at: String,
}

/// When an account is removed that its user has asked to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Deletion {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_at: Option<String>,
}

/// All that the cluster keeps about a person, for it to take along.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct AccountExport {
    pub user: User,
    pub second_factor: SecondFactor,
    #[serde(default)]
    pub passkeys: Vec<crate::Passkey>,
    pub sessions: Vec<crate::Session>,
    pub tokens: Vec<PersonalToken>,
    pub identities: Vec<Identity>,
    /// `organization:NAME`, `group:ORGANIZATION/NAME`, `project:NAME`, `image:NAME`: what it is a
    /// member of or has a grant for.
    pub places: Vec<String>,
    pub owned_projects: Vec<String>,
    /// What it did, as far as the trail has it; the newest first.
    pub audit: Vec<crate::AuditEntry>,
    /// Whether there is more of it than `audit` has.
    pub audit_truncated: bool,
    #[serde(flatten)]
    pub deletion: Deletion,
}
