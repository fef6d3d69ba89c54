//! What a node is told: one TOML file, overridden by environment variables, overridden by flags.
//!
//! Invariants: every setting has a default that gives a complete single node; an unknown key is
//! refused with its line and the nearest known key; [`SETTINGS`] is the whole list, and a test
//! holds it against the types.
//! Non-goal: what founding or joining a cluster brings (identity, certificates); see `identity`.

mod collection;
mod delta;
mod directory;
mod encryption;
mod guard;
mod identity;
mod images;
mod limits;
mod names;
mod passkeys;
mod program;
mod registry;
mod scanner;
mod upstreams;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use shoal_content::Zone;
use shoal_p2p::Bulk;
use shoal_settings::Schema;

use crate::http::cors;

pub use collection::Collection;
pub use delta::Delta;
pub use directory::{DN, Ldap, USER};
pub use encryption::Encryption;
pub use guard::{Accounts, Audit, Keys, Lockout, Orders, Rates, Registration, Sessions};
pub use identity::{Jwt, Oidc, Protocol, Workload, mapped};
pub use images::{Images, Import};
pub use limits::{LimitHours, Limits};
pub use names::SETTINGS;
pub use passkeys::Passkeys;
pub use program::Program;
pub use registry::Registry;
pub use scanner::{BlockSeverity, Scanner};
pub use shoal_settings::Error;
pub use upstreams::{UPSTREAM_SETTINGS, Upstream, Upstreams};

const SCHEMA: Schema = Schema {
    default_path: "/etc/shoal/node.toml",
    prefix: "SHOAL_NODE_",
    sections: SETTINGS,
    named_sections: &[("upstreams", UPSTREAM_SETTINGS)],
    other_variables: &["SHOAL_NODE_CONFIG", "SHOAL_NODE_JOIN_TOKEN", program::VARIABLE],
};

/// The whole of it; `shoal-node config` prints it as it is in force.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub node: Node,
    pub http: Http,
    pub acme: Acme,
    pub drain: Drain,
    pub cors: Cors,
    pub raft: Raft,
    pub peer: Peer,
    pub limits: Limits,
    pub discovery: Discovery,
    pub storage: Storage,
    pub registry: Registry,
    pub upstreams: Upstreams,
    pub disks: Disks,
    pub delta: Delta,
    pub images: Images,
    pub import: Import,
    pub scanner: Scanner,
    pub collection: Collection,
    pub scrub: Scrub,
    pub retention: Retention,
    pub audit: Audit,
    pub lockout: Lockout,
    pub rates: Rates,
    pub keys: Keys,
    pub encryption: Encryption,
    pub sessions: Sessions,
    pub accounts: Accounts,
    pub passkeys: Passkeys,
    pub jwt: Jwt,
    pub oidc: Oidc,
    pub ldap: Box<Ldap>,
    pub workload: Workload,
    pub metrics: Metrics,
    pub traces: Traces,
    pub log: Log,
    #[doc(hidden)]
    #[serde(skip)]
    pub program: Program,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Node {
    /// Unique in the cluster.
    pub name: String,
    pub data_dir: PathBuf,
    pub zone: Zone,
}

impl Default for Node {
    fn default() -> Self {
        let data_dir = "/var/lib/shoal-node".into();
        Self { name: "node-1".into(), data_dir, zone: Zone::default() }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// HTTPS: registry, REST API, console.
    pub listen: SocketAddr,
    /// What others are told; `https://LISTEN` where missing.
    pub url: Option<String>,
    /// Names and addresses in the certificate besides those of `listen` and `url`.
    pub names: Vec<String>,
    /// A certificate chain of your own, PEM; else the cluster's authority makes one.
    pub certificate_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// HTTP without TLS; on loopback only.
    pub plain_listen: Option<SocketAddr>,
    /// Networks of proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 5000)),
            url: None,
            names: Vec::new(),
            certificate_file: None,
            key_file: None,
            plain_listen: None,
            trusted_proxies: Vec::new(),
        }
    }
}

/// How a node stops when it is told to (SIGTERM).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Drain {
    /// How long it says that it is about to stop, and serves on: so long a load balancer takes to
    /// look at `/ready`.
    pub notice_seconds: u64,
    /// How long requests under way may take then.
    pub deadline_seconds: u64,
}

impl Default for Drain {
    fn default() -> Self {
        Self { notice_seconds: 2, deadline_seconds: 20 }
    }
}

/// A certificate for HTTPS from an ACME server (RFC 8555), which the nodes order and renew; the
/// same settings belong on every node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Acme {
    /// Names and addresses that it is for; none switches ACME off.
    pub domains: Vec<String>,
    /// The server's directory.
    pub directory_url: String,
    /// `mailto:operator@example`
    pub contact: Vec<String>,
    /// That the server's terms of service were read and are agreed to.
    pub terms_of_service_agreed: bool,
    /// The authorities of a private server, PEM; the system's where missing.
    pub ca_file: Option<PathBuf>,
    /// HTTP without TLS, for the server's questions and redirects to HTTPS: port 80 of every name
    /// leads here.
    pub listen: SocketAddr,
}

impl Default for Acme {
    fn default() -> Self {
        Self {
            domains: Vec::new(),
            directory_url: "https://acme-v02.api.letsencrypt.org/directory".into(),
            contact: Vec::new(),
            terms_of_service_agreed: false,
            ca_file: None,
            listen: SocketAddr::from(([0, 0, 0, 0], 80)),
        }
    }
}

impl Acme {
    /// What is wrong with it: the key, and why.
    fn check(&self, has_certificate: bool) -> Option<(&'static str, &'static str)> {
        let odd = |name: &String| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-:".contains(&byte);
            name.is_empty() || !name.bytes().all(plain)
        };
        if self.domains.is_empty() {
            return None;
        }
        if has_certificate {
            return Some(("domains", "there is an [http] certificate_file already"));
        }
        if self.domains.iter().any(odd) {
            return Some(("domains", "names and addresses, without ports, paths or wildcards"));
        }
        if !self.directory_url.starts_with("https://") {
            return Some(("directory_url", "it begins with https://"));
        }
        if self.contact.iter().any(|contact| !contact.contains(':')) {
            return Some(("contact", "each is a URL: mailto:operator@example"));
        }
        if !self.terms_of_service_agreed {
            let text = "read the server's terms of service; then say that you agree";
            return Some(("terms_of_service_agreed", text));
        }
        None
    }
}

/// Which web pages may call this node; `*` is any.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cors {
    /// `https://console.example`; empty switches CORS off.
    pub allowed_origins: Vec<String>,
    pub allowed_methods: Vec<String>,
    pub allowed_headers: Vec<String>,
}

impl Default for Cors {
    fn default() -> Self {
        let any = || vec!["*".to_owned()];
        Self { allowed_origins: Vec::new(), allowed_methods: any(), allowed_headers: any() }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Raft {
    /// QUIC between nodes.
    pub listen: SocketAddr,
    /// `host:port` that the other nodes dial; `listen` where missing.
    pub advertise: Option<String>,
    /// Whether the cluster's level rises by itself once every node knows more; where not,
    /// `shoal cluster upgrade` raises it. Behind its level there is no way back.
    pub auto_upgrade: bool,
}

impl Default for Raft {
    fn default() -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], 5001));
        Self { listen, advertise: None, auto_upgrade: true }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Peer {
    /// QUIC for chunks, with agents and nodes; with `bulk` TLS over TCP at the same port, too.
    pub listen: SocketAddr,
    pub advertise: Option<String>,
    /// The ways that chunks may go.
    pub bulk: Bulk,
}

impl Default for Peer {
    fn default() -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], 5002));
        Self { listen, advertise: None, bulk: Bulk::default() }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Discovery {
    pub enabled: bool,
    /// libp2p over TCP.
    pub listen: SocketAddr,
    pub advertise: Option<String>,
    pub mdns: bool,
}

impl Default for Discovery {
    fn default() -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], 5003));
        Self { enabled: true, listen, advertise: None, mdns: false }
    }
}

/// Where objects lie.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StorageKind {
    #[default]
    Folder,
    S3,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Storage {
    pub kind: StorageKind,
    /// Of a folder; `DATA_DIR/storage` where missing.
    pub path: Option<PathBuf>,
    /// Of a folder: free space that is never used.
    pub reserve_bytes: u64,
    /// How much it may hold, for the metrics; 0 is what storage says itself, where it does.
    pub capacity_bytes: u64,
    pub endpoint: String,
    pub region: String,
    pub bucket: String,
    pub access_key: String,
    #[serde(skip_serializing)]
    pub secret_key: String,
    /// Holds the secret key, in place of `secret_key`.
    pub secret_key_file: Option<PathBuf>,
    pub path_style: bool,
    /// Of S3: what this node keeps of it in `DATA_DIR/cache`; 0 is nothing.
    pub cache_bytes: u64,
    /// Of S3: clients from these networks are sent to storage itself for a blob's bytes.
    pub redirect_networks: Vec<IpNet>,
    /// Of S3: where those clients reach it; `endpoint` where missing.
    pub redirect_endpoint: Option<String>,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            kind: StorageKind::default(),
            path: None,
            reserve_bytes: crate::store::RESERVE_BYTES_DEFAULT,
            capacity_bytes: 0,
            endpoint: String::new(),
            region: "default".into(),
            bucket: "shoal".into(),
            access_key: String::new(),
            secret_key: String::new(),
            secret_key_file: None,
            path_style: true,
            cache_bytes: 8 * 1024 * 1024 * 1024,
            redirect_networks: Vec::new(),
            redirect_endpoint: None,
        }
    }
}

impl std::fmt::Debug for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Storage").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// How uploaded disks are read.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Disks {
    /// Whether bytes that a cleanly unmounted file system does not use are stored as they are;
    /// else they read as zero.
    pub keep_free_space: bool,
}

/// When all of storage is looked through.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scrub {
    pub interval_seconds: u64,
    /// How much is read each time, on average, and compared with its name.
    pub sample_bytes: u64,
}

impl Default for Scrub {
    fn default() -> Self {
        Self { interval_seconds: 24 * 3600, sample_bytes: 1024 * 1024 * 1024 }
    }
}

/// When projects' policies are carried out.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    pub interval_seconds: u64,
    /// How often it is written down when images were last pulled.
    pub pulls_interval_seconds: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { interval_seconds: 3600, pulls_interval_seconds: 60 }
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Whether `/metrics` answers without a login.
    pub public: bool,
}

/// OpenTelemetry.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Traces {
    /// Where a collector takes OTLP over HTTP, in protobuf: `http://HOST:4318/v1/traces`. Without
    /// it nothing is traced.
    pub endpoint: Option<String>,
    /// Of the requests that come without a trace of their own, this share is traced: 0 to 1.
    pub sample_ratio: f64,
}

impl Default for Traces {
    fn default() -> Self {
        Self { endpoint: None, sample_ratio: 1.0 }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// As `RUST_LOG`, which wins.
    pub filter: String,
    /// `text` or `json`.
    pub format: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info,openraft=warn".into(), format: "text".into() }
    }
}

impl Config {
    /// Reads `file` (or the default one, if it exists), the environment, then `overrides`.
    ///
    /// # Errors
    /// What is unknown, malformed or contradictory, with its place.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        overrides: &[(String, String)],
    ) -> Result<Self, Error> {
        let environment: Vec<_> = environment.into_iter().collect();
        let stands_for = environment.iter().find(|(name, _)| name == program::VARIABLE);
        let program = match stands_for {
            None => Program::default(),
            Some((_, text)) => Program::earlier(text).ok_or_else(|| Error::Syntax {
                origin: program::VARIABLE.into(),
                message: format!("there was no program {text}"),
            })?,
        };
        let config = Self { program, ..SCHEMA.load(file, environment, overrides)? };
        config.check()?;
        Ok(config)
    }

    /// Reads the `text` of a file alone.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let config: Self = SCHEMA.parse("the text", text)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), Error> {
        let value = |section, key, message: &str| {
            Err(Error::Value { section, key, message: message.to_owned() })
        };
        if self.http.plain_listen.is_some_and(|address| !address.ip().is_loopback()) {
            return value("http", "plain_listen", "HTTP without TLS is for loopback only");
        }
        if self.limits.schedule.len() > limits::SCHEDULE_MAX {
            return value("limits", "schedule", "at most 64 lines");
        }
        if self.http.certificate_file.is_some() != self.http.key_file.is_some() {
            return value("http", "key_file", "certificate_file and key_file come together");
        }
        if let Some((key, message)) = self.acme.check(self.http.certificate_file.is_some()) {
            return value("acme", key, message);
        }
        if let Some(message) = self.lockout.mistake() {
            return value("lockout", "account_failures", &message);
        }
        if let Some((key, message)) = self.delta.mistake() {
            return value("delta", key, message);
        }
        if let Some((key, message)) = self.import.mistake() {
            return value("import", key, message);
        }
        if let Some((key, message)) = self.scanner.mistake() {
            return value("scanner", key, message);
        }
        if let Some((key, message)) = self.upstreams.mistake() {
            return value("upstreams", key, &message);
        }
        if let Some((key, message)) = self.encryption.mistake() {
            return value("encryption", key, message);
        }
        if self.sessions.per_person == 0 || self.sessions.lifetime_seconds == 0 {
            return value("sessions", "per_person", "at least 1, and so is lifetime_seconds");
        }
        // Else whoever is quicker has the name of somebody who is known elsewhere.
        let elsewhere =
            [&self.ldap.url, &self.oidc.issuer, &self.jwt.issuer].iter().any(|url| !url.is_empty());
        if self.accounts.registration == Registration::Open && elsewhere {
            let text =
                "people come from [ldap], [oidc] or [jwt]; \"open\" is for clusters without them";
            return value("accounts", "registration", text);
        }
        if self.accounts.registration == Registration::Open && self.accounts.orders.is_none() {
            let text = "anybody may have an account: say who may order images onto hosts, \
                        \"administrators\" or \"everyone\"";
            return value("accounts", "orders", text);
        }
        let foreign = [
            ("jwt", self.jwt.check()),
            ("oidc", self.oidc.check()),
            ("ldap", self.ldap.check()),
            ("workload", self.workload.check()),
            ("passkeys", self.passkeys.check(&self.api_url())),
        ];
        for (section, mistake) in foreign {
            if let Some((key, message)) = mistake {
                return value(section, key, message);
            }
        }
        if let Some((key, message)) = cors::check(&self.cors) {
            return value("cors", key, &message);
        }
        if self.storage.kind == StorageKind::S3 && self.storage.endpoint.is_empty() {
            return value("storage", "endpoint", "S3 needs the address of its service");
        }
        if let Some((key, message)) = self.collection.mistake() {
            return value("collection", key, message);
        }
        if self.scrub.interval_seconds == 0 {
            return value("scrub", "interval_seconds", "at least 1");
        }
        if self.retention.interval_seconds == 0 {
            return value("retention", "interval_seconds", "at least 1");
        }
        if self.retention.pulls_interval_seconds == 0 {
            return value("retention", "pulls_interval_seconds", "at least 1");
        }
        let is_url = |text: &String| text.starts_with("http://") || text.starts_with("https://");
        if !self.traces.endpoint.as_ref().is_none_or(is_url) {
            return value("traces", "endpoint", "it is http://HOST:4318/v1/traces or https://…");
        }
        if !(0.0..=1.0).contains(&self.traces.sample_ratio) {
            return value("traces", "sample_ratio", "it is 0 to 1");
        }
        if !matches!(self.log.format.as_str(), "text" | "json") {
            return value("log", "format", "it is text or json");
        }
        Ok(())
    }

    /// What others are told to reach the HTTP API by.
    pub fn api_url(&self) -> String {
        self.http.url.clone().unwrap_or_else(|| format!("https://{}", self.http.listen))
    }

    pub fn raft_address(&self) -> String {
        self.raft.advertise.clone().unwrap_or_else(|| self.raft.listen.to_string())
    }

    pub fn peer_address(&self) -> String {
        self.peer.advertise.clone().unwrap_or_else(|| self.peer.listen.to_string())
    }

    pub fn discovery_address(&self) -> String {
        self.discovery.advertise.clone().unwrap_or_else(|| self.discovery.listen.to_string())
    }
}

#[cfg(test)]
mod tests;
