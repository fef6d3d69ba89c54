//! Settings of a directory (LDAP) that people's passwords are checked at.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::identity::mapped;

/// What stands for the name that somebody typed.
pub const USER: &str = "{user}";
/// What stands for the distinguished name that was found for it.
pub const DN: &str = "{dn}";

/// A login at a directory: the name is searched for, then bound with the password.
#[derive(Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ldap {
    /// `ldaps://HOST:PORT`, or `ldap://` with `starttls`; empty is none.
    pub url: String,
    pub starttls: bool,
    /// The authorities of a private server, PEM; the system's where missing.
    pub ca_file: Option<PathBuf>,
    /// Who searches; empty is nobody.
    pub bind_dn: String,
    #[serde(skip_serializing)]
    pub bind_password: String,
    /// Holds the password, in place of `bind_password`.
    pub bind_password_file: Option<PathBuf>,
    /// Where people are, and what finds one of them.
    pub user_base: String,
    pub user_filter: String,
    /// What an account here is called by.
    pub account_attribute: String,
    /// By which somebody stays the same under another name; the distinguished name where empty.
    pub subject_attribute: String,
    /// Whether who comes for the first time gets an account.
    pub create_accounts: bool,
    /// Where groups are, empty is nowhere; and what finds those of somebody.
    pub group_base: String,
    pub group_filter: String,
    /// What a group is called by in the lists below.
    pub group_attribute: String,
    /// Whoever is in one of these administers the cluster, and nobody else who logs in so.
    pub admin_groups: Vec<String>,
    /// Groups there and here, `engineering=acme/dev`: who logs in is a member here while there.
    pub groups: Vec<String>,
    /// How long the whole of a check may take.
    pub timeout_seconds: u64,
    /// A password that was right is not asked about again for this long; nor is one who is gone.
    pub remember_seconds: u64,
}

impl Default for Ldap {
    fn default() -> Self {
        Self {
            url: String::new(),
            starttls: false,
            ca_file: None,
            bind_dn: String::new(),
            bind_password: String::new(),
            bind_password_file: None,
            user_base: String::new(),
            user_filter: "(uid={user})".to_owned(),
            account_attribute: "uid".to_owned(),
            subject_attribute: "entryUUID".to_owned(),
            create_accounts: true,
            group_base: String::new(),
            group_filter: "(member={dn})".to_owned(),
            group_attribute: "cn".to_owned(),
            admin_groups: Vec::new(),
            groups: Vec::new(),
            timeout_seconds: 5,
            remember_seconds: 60,
        }
    }
}

impl std::fmt::Debug for Ldap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ldap").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Ldap {
    /// Whether people are found there by what their accounts are called here, and not by an address
    /// or the like.
    pub fn finds_by_account(&self) -> bool {
        self.user_filter.contains(&format!("({}={USER})", self.account_attribute))
    }

    pub(super) fn check(&self) -> Option<(&'static str, &'static str)> {
        if self.url.is_empty() {
            return None;
        }
        let url = reqwest::Url::parse(&self.url).ok();
        let host = url.as_ref().and_then(reqwest::Url::host_str).unwrap_or_default();
        let scheme = url.as_ref().map(reqwest::Url::scheme).unwrap_or_default();
        let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
        let local = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
        if host.is_empty() || !["ldap", "ldaps"].contains(&scheme) {
            return Some(("url", "ldaps://HOST, or ldap://HOST with starttls"));
        }
        if scheme == "ldaps" && self.starttls {
            return Some(("starttls", "ldaps:// is encrypted from its first byte; use ldap://"));
        }
        if scheme == "ldap" && !self.starttls && !local {
            return Some(("starttls", "passwords are not sent in the clear; set starttls"));
        }
        if self.user_base.is_empty() {
            return Some(("user_base", "people are searched for below it"));
        }
        if !self.user_filter.contains(USER) || self.user_filter.contains(DN) {
            return Some(("user_filter", "{user} stands for the name, as in (uid={user})"));
        }
        let finds = self.group_filter.contains(USER) || self.group_filter.contains(DN);
        if !self.group_base.is_empty() && !finds {
            return Some(("group_filter", "{dn} or {user} stands for whom they are of"));
        }
        if self.account_attribute.is_empty() || self.group_attribute.is_empty() {
            return Some(("account_attribute", "it and group_attribute name an attribute"));
        }
        if self.bind_dn.is_empty()
            != (self.bind_password.is_empty() && self.bind_password_file.is_none())
        {
            return Some(("bind_password", "a bind_dn has a password, which is not empty"));
        }
        if mapped(&self.groups).is_none() {
            return Some(("groups", "each is THERE=ORGANIZATION/GROUP"));
        }
        if self.timeout_seconds == 0 || self.timeout_seconds > 60 {
            return Some(("timeout_seconds", "from 1 to 60"));
        }
        if self.remember_seconds > 600 {
            return Some(("remember_seconds", "at most 600"));
        }
        None
    }

    /// What identities of this directory name as their issuer: the place where people are, not the
    /// server, which may change.
    pub fn issuer(&self) -> String {
        format!("ldap:{}", self.user_base.to_lowercase())
    }
}
