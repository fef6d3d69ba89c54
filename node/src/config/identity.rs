//! Settings of who else vouches for people and programs.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::http::auth::issuer::is_fit_address;

/// Tokens of one other issuer that are taken as they are (JWT, RS256 or ES256).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Jwt {
    /// As its tokens have it; empty is none.
    pub issuer: String,
    /// What its tokens have to be for.
    pub audience: String,
    /// Where its keys are.
    pub jwks_url: String,
    /// Whether who comes for the first time gets an account.
    pub create_accounts: bool,
    /// The claim that such an account is called by.
    pub account_claim: String,
}

impl Default for Jwt {
    fn default() -> Self {
        Self {
            issuer: String::new(),
            audience: String::new(),
            jwks_url: String::new(),
            create_accounts: false,
            account_claim: "sub".to_owned(),
        }
    }
}

impl Jwt {
    pub(super) fn check(&self) -> Option<(&'static str, &'static str)> {
        if self.issuer.is_empty() {
            return None;
        }
        if self.audience.is_empty() {
            return Some(("audience", "tokens have to be for somebody; say for whom"));
        }
        if !is_fit_address(&self.jwks_url) {
            return Some(("jwks_url", "it begins with https://"));
        }
        None
    }
}

/// How the issuer of [`Oidc`] says who somebody is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// OpenID Connect.
    #[default]
    Openid,
    /// OAuth 2, and GitHub's own API.
    Github,
}

/// A login at another issuer.
#[derive(Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Oidc {
    pub protocol: Protocol,
    /// As its description has it; empty is none.
    pub issuer: String,
    /// GitHub's; where empty, it follows from the issuer.
    pub api_url: String,
    pub client_id: String,
    #[serde(skip_serializing)]
    pub client_secret: String,
    /// Holds the secret, in place of `client_secret`.
    pub client_secret_file: Option<PathBuf>,
    /// Besides `openid`.
    pub scopes: Vec<String>,
    pub create_accounts: bool,
    pub account_claim: String,
    pub groups_claim: String,
    /// Whoever is in one of these administers the cluster, and nobody else who logs in so.
    pub admin_groups: Vec<String>,
    /// Nobody else is let in than who is in one of these; empty is everybody.
    pub required_groups: Vec<String>,
    /// Groups there and here, `engineering=acme/dev`: who logs in is a member here while there.
    pub groups: Vec<String>,
}

impl Default for Oidc {
    fn default() -> Self {
        Self {
            protocol: Protocol::Openid,
            issuer: String::new(),
            api_url: String::new(),
            client_id: String::new(),
            client_secret: String::new(),
            client_secret_file: None,
            scopes: vec!["profile".to_owned(), "groups".to_owned()],
            create_accounts: true,
            account_claim: "preferred_username".to_owned(),
            groups_claim: "groups".to_owned(),
            admin_groups: Vec::new(),
            required_groups: Vec::new(),
            groups: Vec::new(),
        }
    }
}

impl std::fmt::Debug for Oidc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Oidc").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

impl Oidc {
    pub(super) fn check(&self) -> Option<(&'static str, &'static str)> {
        if self.issuer.is_empty() {
            return None;
        }
        if !is_fit_address(&self.issuer) {
            return Some(("issuer", "it begins with https://"));
        }
        if self.client_id.is_empty() {
            return Some(("client_id", "the issuer knows this cluster by it"));
        }
        if self.protocol == Protocol::Github {
            if self.client_secret.is_empty() && self.client_secret_file.is_none() {
                return Some(("client_secret", "GitHub gives nobody a token without it"));
            }
            if !is_fit_address(&self.api_url()) {
                return Some(("api_url", "it begins with https://"));
            }
            let of_everybody = self.issuer.trim_end_matches('/') == "https://github.com";
            if of_everybody && self.create_accounts && self.required_groups.is_empty() {
                let text = "anybody has an account at github.com: name the organizations or teams \
                            whose members are let in, or set create_accounts = false";
                return Some(("required_groups", text));
            }
        }
        if self.mapped().is_none() {
            return Some(("groups", "each is THERE=ORGANIZATION/GROUP"));
        }
        None
    }

    /// Without a slash at its end.
    pub fn api_url(&self) -> String {
        let issuer = self.issuer.trim_end_matches('/');
        match self.api_url.trim_end_matches('/') {
            "" if issuer == "https://github.com" => "https://api.github.com".to_owned(),
            "" => format!("{issuer}/api/v3"),
            url => url.to_owned(),
        }
    }

    /// Whether it matters in which groups somebody is.
    pub fn uses_groups(&self) -> bool {
        !self.admin_groups.is_empty() || !self.required_groups.is_empty() || !self.groups.is_empty()
    }

    /// Groups there with those here; nothing where one cannot be read.
    pub fn mapped(&self) -> Option<Vec<(&str, shoal_metadata::Place)>> {
        mapped(&self.groups)
    }
}

/// `THERE=ORGANIZATION/GROUP`, each; nothing where one cannot be read.
pub fn mapped(groups: &[String]) -> Option<Vec<(&str, shoal_metadata::Place)>> {
    let mut mapped = Vec::with_capacity(groups.len());
    for text in groups {
        let (there, here) = text.split_once('=')?;
        let (organization, group) = here.split_once('/')?;
        let (organization, group) = (organization.parse().ok()?, group.parse().ok()?);
        mapped.push((there, shoal_metadata::Place::Group { organization, group }));
    }
    Some(mapped)
}

/// Whose workloads may act as robots, by the rules of each project.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Workload {
    /// `https://token.actions.githubusercontent.com`, `https://gitlab.example`.
    pub issuers: Vec<String>,
    /// What their tokens have to be for; the node's own URL where empty.
    pub audience: String,
}

impl Workload {
    pub(super) fn check(&self) -> Option<(&'static str, &'static str)> {
        let fit = self.issuers.iter().all(|issuer| is_fit_address(issuer));
        (!fit).then_some(("issuers", "each begins with https://"))
    }
}
