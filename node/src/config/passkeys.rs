//! Settings of passkeys.

use serde::{Deserialize, Serialize};

use crate::http::auth::passkey::{host, is_within};

/// How long somebody may take to answer at most.
const CHALLENGE_SECONDS_MAX: u64 = 3600;

/// Logins with WebAuthn; the same settings belong on every node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Passkeys {
    /// That passkeys are for: the host of `http.url`, or what that ends with. Empty is the host. What
    /// was registered for another one is not found any more.
    pub domain: String,
    /// How long somebody may take to answer.
    pub challenge_seconds: u64,
}

impl Default for Passkeys {
    fn default() -> Self {
        Self { domain: String::new(), challenge_seconds: 300 }
    }
}

impl Passkeys {
    /// What is wrong with it: the key, and why.
    pub(super) fn check(&self, url: &str) -> Option<(&'static str, &'static str)> {
        if !(1..=CHALLENGE_SECONDS_MAX).contains(&self.challenge_seconds) {
            return Some(("challenge_seconds", "from 1 to 3600"));
        }
        let fits =
            self.domain.is_empty() || host(url).is_some_and(|host| is_within(&host, &self.domain));
        (!fits).then_some(("domain", "the host of [http] url, which is a name, or its end"))
    }
}
