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
    "proxy",
    "proxy_username",
    "proxy_password_file",
    "proxy_hosts",
    "silence_seconds",
    "allow",
    "visibility",
    "tag_seconds",
    "keep_days",
];

/// Longer than any registry needs.
const SILENCE_SECONDS_MAX: u64 = 600;

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
    /// The proxy by which it is reached, `http://proxy.example:3128`; the environment is not asked.
    pub proxy: Option<String>,
    /// Its login; empty is nobody.
    pub proxy_username: String,
    /// Holds the password; read when the node starts.
    pub proxy_password_file: Option<PathBuf>,
    /// Other hosts that the proxy may be asked for, where the upstream sends there: `cdn.example`,
    /// `*.cdn.example`, `*`. The proxy looks them up, so that it is its rules that keep private
    /// addresses out.
    pub proxy_hosts: Vec<String>,
    /// An upstream that sends nothing for so long is given up, or asked for the rest.
    pub silence_seconds: u64,
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
            proxy: None,
            proxy_username: String::new(),
            proxy_password_file: None,
            proxy_hosts: Vec::new(),
            silence_seconds: 30,
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
        if parsed(&self.url).is_none() {
            return Some(("url", "where it answers: https://registry.example"));
        }
        if self.username.is_empty() != self.password_file.is_none() {
            return Some(("password_file", "username and password_file come together"));
        }
        if self.username.contains(':') {
            return Some(("username", "it has no colon"));
        }
        if let Some(mistake) = self.proxy_mistake() {
            return Some(mistake);
        }
        if !(1..=SILENCE_SECONDS_MAX).contains(&self.silence_seconds) {
            return Some(("silence_seconds", "from 1 to 600"));
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

impl Upstream {
    fn proxy_mistake(&self) -> Option<(&'static str, &'static str)> {
        let Some(proxy) = &self.proxy else {
            let names_none = self.proxy_username.is_empty()
                && self.proxy_password_file.is_none()
                && self.proxy_hosts.is_empty();
            return (!names_none).then_some(("proxy", "what is said of a proxy needs one"));
        };
        if parsed(proxy).is_none_or(|url| url.path() != "/") {
            let text = "http://proxy.example:3128 or https://…, without a login in it";
            return Some(("proxy", text));
        }
        if self.proxy_username.is_empty() != self.proxy_password_file.is_none() {
            let text = "proxy_username and proxy_password_file come together";
            return Some(("proxy_password_file", text));
        }
        if self.proxy_username.contains(':') {
            return Some(("proxy_username", "it has no colon"));
        }
        if self.proxy_hosts.iter().any(|host| host.contains(['/', ':']) || host.is_empty()) {
            return Some(("proxy_hosts", "names without ports: cdn.example, *.cdn.example, *"));
        }
        None
    }
}

/// The address of a server, without a login or anything that is not kept.
fn parsed(text: &str) -> Option<Url> {
    let url = text.parse::<Url>().ok()?;
    let bare = url.username().is_empty() && url.password().is_none();
    let plain = url.query().is_none() && url.fragment().is_none();
    let fits = matches!(url.scheme(), "https" | "http") && url.has_host() && bare && plain;
    fits.then_some(url)
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
