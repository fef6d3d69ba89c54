//! Passkeys: what a page gives to `navigator.credentials` of its browser, and brings back.
//!
//! `options` are read by `PublicKeyCredential.parseCreationOptionsFromJSON` and
//! `parseRequestOptionsFromJSON`; a `credential` is what its `toJSON` gives (WebAuthn, level 3).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Hidden;

/// A passkey of somebody's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Passkey {
    pub id: String,
    pub name: String,
    /// Whether, while it is there, the password alone does not let its person in.
    pub second_factor: bool,
    pub created_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<String>,
}

/// Whoever has a password gives it: that shows that it is not somebody at an open browser.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct CurrentPassword {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_password: Option<Hidden>,
}

/// A question for an authenticator.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct PasskeyChallenge {
    /// Comes back with the answer, once.
    pub challenge: String,
    /// For `navigator.credentials`, as JSON.
    pub options: Map<String, Value>,
    pub expires_at: String,
}

impl std::fmt::Debug for PasskeyChallenge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PasskeyChallenge")
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// The passkey that an authenticator has made.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct RegisterPasskey {
    pub challenge: String,
    /// What its person calls it.
    pub name: String,
    /// See `Passkey`.
    #[serde(default)]
    pub second_factor: bool,
    /// As `toJSON` gives it.
    pub credential: Map<String, Value>,
}

impl std::fmt::Debug for RegisterPasskey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegisterPasskey").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What is to change; the rest stays.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct UpdatePasskey {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second_factor: Option<bool>,
    /// With `second_factor`, of whoever has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_password: Option<Hidden>,
}

/// Whose passkey is to answer: anybody's, a person's, or that of who gave its password before.
#[derive(Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct BeginPasskeyLogin {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Of `POST /api/v1/auth/login`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
}

impl std::fmt::Debug for BeginPasskeyLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BeginPasskeyLogin")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// What the authenticator answered.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct PasskeyLogin {
    pub challenge: String,
    /// As `toJSON` gives it.
    pub credential: Map<String, Value>,
}

impl std::fmt::Debug for PasskeyLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PasskeyLogin").finish_non_exhaustive()
    }
}
