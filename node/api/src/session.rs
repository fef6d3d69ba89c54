//! Logging in.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `POST /api/v1/auth/login`.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct LoginRequest {
    pub username: String,
    pub password: String,
}

impl std::fmt::Debug for LoginRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoginRequest").field("username", &self.username).finish_non_exhaustive()
    }
}

#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct LoginResponse {
    pub token: String,
    pub expires_at: String,
}

impl std::fmt::Debug for LoginResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoginResponse")
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// What `POST /api/v1/auth/login` answers (202) where the password is right and a code or a
/// passkey is to come.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct LoginPending {
    /// For `POST /api/v1/auth/login/code` or `POST /api/v1/auth/passkey`.
    pub ticket: String,
    pub expires_at: String,
    /// What may be brought now: `code` (or a recovery code), `passkey`.
    #[serde(default)]
    pub methods: Vec<String>,
}

impl std::fmt::Debug for LoginPending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoginPending").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

/// Either answer to a login.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum LoginStep {
    Done(LoginResponse),
    Pending(LoginPending),
}

/// `POST /api/v1/auth/login/code`.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct LoginCode {
    pub ticket: String,
    /// Of the authenticator, or a recovery code.
    pub code: String,
}

impl std::fmt::Debug for LoginCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoginCode").finish_non_exhaustive()
    }
}

/// `POST /api/v1/auth/oidc/redeem`: the end of a login at another issuer, by a program on the same
/// machine as the browser.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct OidcRedeem {
    /// What the browser brought back.
    pub ticket: String,
    /// What the `challenge` at the beginning was the SHA-256 of.
    pub verifier: String,
}

impl std::fmt::Debug for OidcRedeem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OidcRedeem").finish_non_exhaustive()
    }
}

/// A login that is not over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Session {
    pub id: String,
    pub created_at: String,
    pub expires_at: String,
    /// Where it was begun from.
    pub address: String,
    /// What the browser or program called itself.
    pub agent: String,
    /// `password`, `password+code`, `password+recovery-code`, `passkey`, `password+passkey`, or
    /// `issuer:URL`.
    pub means: String,
    /// Whether it is the one that asks.
    pub current: bool,
}

/// `GET /api/v1/auth/me`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Me {
    pub username: String,
    /// `admin`, `auditor`, `user`, `robot`, `agent` or `node`.
    pub role: String,
}

/// Somebody who is not let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Block {
    /// `account:NAME` or `address:IP`.
    pub who: String,
    pub since: String,
    /// Without it, until an administrator ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    pub reason: String,
}
