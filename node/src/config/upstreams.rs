//! Other registries, whose images are pulled through this cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use reqwest::Url;
use serde::{Deserialize, Serialize};
use shoal_content::ProjectName;
use shoal_metadata::{DAYS_MAX, Pattern, Visibility};

/// The keys of one of them.
pub const UPSTREAM_SETTINGS: &[&str] = &[
    "url",
    "aliases",
    "username",
    "password_file",
    "ca_file",
    "login_hosts",
    "allow",
    "visibility",
    "tag_seconds",
    "keep_days",
];

/// As the first parts of names that clients pull by: `docker.io`, `ghcr.io`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Upstreams(pub BTreeMap<String, Upstream>);

/// One of them; the same settings belong on every node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Upstream {
    /// Where it answers: `https://registry-1.docker.io`.
    pub url: String,
    /// By what else clients name it in `?ns=`: `registry.example:5000`.
    pub aliases: Vec<String>,
    /// Its login; empty is nobody.
    pub username: String,
    /// Holds the password; read for each login.
    pub password_file: Option<PathBuf>,
    /// Its authorities, PEM; the system's where missing.
    pub ca_file: Option<PathBuf>,
    /// Hosts besides its own that may be told the login: where its tokens come from.
    pub login_hosts: Vec<String>,
    /// Patterns of its repositories that may be pulled.
    pub allow: Vec<String>,
    /// Who may pull without being a member of its project: `public`, `organization`, `private`.
    /// Of the project when it comes to be; later it is the project's own.
    pub visibility: String,
    /// How long a tag names what it named, before it is looked at again.
    pub tag_seconds: u64,
    /// What nobody has pulled for so long goes, by the project's policy; 0 is never. Of the project
    /// when it comes to be.
    pub keep_days: u32,
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            url: String::new(),
            aliases: Vec::new(),
            username: String::new(),
            password_file: None,
            ca_file: None,
            login_hosts: Vec::new(),
            allow: vec!["**".to_owned()],
            visibility: "private".to_owned(),
            tag_seconds: 300,
            keep_days: 30,
        }
    }
}

impl Upstream {
    /// `None` where it is none.
    pub fn parsed_visibility(&self) -> Option<Visibility> {
        match self.visibility.as_str() {
            "public" => Some(Visibility::Public),
            "organization" => Some(Visibility::Organization),
            "private" => Some(Visibility::Private),
            _ => None,
        }
    }

    fn mistake(&self) -> Option<(&'static str, &'static str)> {
        let url = self.url.parse::<Url>().ok();
        let fit = url.as_ref().is_some_and(|url| {
            let bare = url.username().is_empty() && url.password().is_none();
            let plain = url.query().is_none() && url.fragment().is_none();
            matches!(url.scheme(), "https" | "http") && url.has_host() && bare && plain
        });
        if !fit {
            return Some(("url", "where it answers: https://registry.example"));
        }
        if self.username.is_empty() != self.password_file.is_none() {
            return Some(("password_file", "username and password_file come together"));
        }
        if self.username.contains(':') {
            return Some(("username", "it has no colon"));
        }
        if self.allow.iter().any(|pattern| pattern.parse::<Pattern>().is_err()) {
            let text = "patterns over what follows the first part of names: library/*, **";
            return Some(("allow", text));
        }
        if self.parsed_visibility().is_none() {
            return Some(("visibility", "it is public, organization or private"));
        }
        if self.keep_days > DAYS_MAX {
            return Some(("keep_days", "at most a hundred years"));
        }
        None
    }
}

impl Upstreams {
    /// What is wrong with them: the key, and why.
    pub(super) fn mistake(&self) -> Option<(&'static str, String)> {
        let mut names = BTreeSet::new();
        for (name, upstream) in &self.0 {
            if name.parse::<ProjectName>().is_err() {
                let text = "a name is what images are pulled by, in lower case and without a port, \
                            which an alias may have";
                return Some(("name", format!("'{name}': {text}")));
            }
            if let Some((key, message)) = upstream.mistake() {
                return Some((key, format!("of '{name}': {message}")));
            }
            let mut all = std::iter::once(name).chain(&upstream.aliases);
            if let Some(twice) = all.find(|alias| !names.insert(alias.to_ascii_lowercase())) {
                return Some(("aliases", format!("'{twice}' is named twice")));
            }
        }
        None
    }
}
