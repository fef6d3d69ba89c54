//! What the agent is told: one TOML file, overridden by environment variables, overridden by
//! flags.
//!
//! Invariants: every setting has a default that works on one host; an unknown key is refused with
//! its line and the nearest known key; [`SETTINGS`] is the whole list, and a test holds it against
//! the types.
//! Non-goal: what a join brings (identity, certificate, nodes); that is `enrolment`.

mod bytes;
mod limits;

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shoal_content::{Labels, Zone};
use shoal_p2p::Bulk;
use shoal_settings::{Rate, Schema};

pub use bytes::{ByteSize, ByteSizeError};
pub use limits::{LimitHours, Limits};
pub use shoal_settings::Error;

/// Unix socket paths end here (`sun_path`, with its closing zero byte).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// What is revoked is gone within a minute wherever a node can be asked.
const RIGHTS_SECONDS_MAX: u64 = 60;
const RIGHTS_OFFLINE_SECONDS_MAX: u64 = 86_400;
/// Whoever waits longer for a stop kills.
const DRAIN_SECONDS_MAX: u64 = 600;
/// Ten years.
const DAYS_MAX: u32 = 3650;

/// Whoever waits longer had better fetch chunks.
const DELTA_WAIT_SECONDS_MAX: u64 = 3600;

/// Every section with its keys, in the order of the documentation.
pub const SETTINGS: &[(&str, &[&str])] = &[
    ("agent", &["name", "data_dir", "control_socket", "zone", "labels", "role", "drain_seconds"]),
    ("nodes", &["urls", "authority_file"]),
    ("peer", &["listen", "advertise", "bulk"]),
    ("limits", &["upload", "download", "schedule"]),
    ("discovery", &["enabled", "listen", "mdns"]),
    (
        "cache",
        &[
            "max_bytes",
            "low_percent",
            "min_free_bytes",
            "max_idle_days",
            "scrub_days",
            "scrub_rate",
            "index_chunks_max",
        ],
    ),
    ("delta", &["enabled", "wait_seconds"]),
    (
        "mirror",
        &[
            "enabled",
            "listen",
            "certificate_file",
            "key_file",
            "rights_seconds",
            "rights_offline_seconds",
            "upstreams",
            "hub_listen",
        ],
    ),
    ("status", &["enabled", "listen"]),
    ("traces", &["endpoint", "sample_ratio"]),
    ("log", &["filter", "format"]),
];

const SCHEMA: Schema = Schema {
    default_path: "/etc/shoal/agent.toml",
    prefix: "SHOAL_AGENT_",
    sections: SETTINGS,
    named_sections: &[],
    other_variables: &["SHOAL_AGENT_CONFIG", "SHOAL_AGENT_JOIN_TOKEN"],
};

/// The whole of it; see `shoal-agent --help` for the file's form.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub agent: Agent,
    pub nodes: Nodes,
    pub peer: Peer,
    pub limits: Limits,
    pub discovery: Discovery,
    pub cache: Cache,
    pub delta: Delta,
    pub mirror: Mirror,
    pub status: Status,
    pub traces: Traces,
    pub log: Log,
}

/// What kind of member this process is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A compute host.
    #[default]
    Host,
    /// An edge room's cache: bigger, preferred by its zone.
    Cache,
}

impl Role {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Cache => "cache",
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Agent {
    /// Unique in the cluster; the host's name where missing.
    pub name: Option<String>,
    pub data_dir: PathBuf,
    /// `DATA_DIR/control.sock` where missing.
    pub control_socket: Option<PathBuf>,
    pub zone: Zone,
    pub labels: Labels,
    pub role: Role,
    /// Told to stop, it lets clients and other hosts end what they have begun for so long.
    pub drain_seconds: u64,
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            name: None,
            data_dir: "/var/lib/shoal-agent".into(),
            control_socket: None,
            zone: Zone::default(),
            labels: Labels::default(),
            role: Role::default(),
            drain_seconds: 10,
        }
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Nodes {
    /// Asked before those that the cluster named; rarely needed after a join.
    pub urls: Vec<String>,
    /// PEM certificates trusted for the nodes' HTTPS, besides the cluster's own authority.
    pub authority_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Peer {
    pub listen: SocketAddr,
    /// What other peers are told to dial; where missing, `listen`, or for an unspecified address
    /// the one that this host reaches the nodes from, or anything else where their names lead nowhere.
    pub advertise: Option<SocketAddr>,
    /// The ways that chunks may go.
    pub bulk: Bulk,
}

impl Default for Peer {
    fn default() -> Self {
        let listen = SocketAddr::from(([0, 0, 0, 0], 5002));
        Self { listen, advertise: None, bulk: Bulk::default() }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Discovery {
    /// Whether agents find each other by libp2p when no node answers.
    pub enabled: bool,
    pub listen: SocketAddr,
    pub mdns: bool,
}

impl Default for Discovery {
    fn default() -> Self {
        Self { enabled: true, listen: SocketAddr::from(([0, 0, 0, 0], 5003)), mdns: true }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cache {
    /// Eviction starts here. Where missing, four fifths of the file system.
    pub max_bytes: Option<ByteSize>,
    /// Eviction ends at this share of `max_bytes`.
    pub low_percent: u8,
    /// Left free on the file system. Where missing, a fiftieth of it, at most 10 GiB.
    pub min_free_bytes: Option<ByteSize>,
    /// What was not used for so many days leaves. Where missing, age alone is no reason.
    pub max_idle_days: Option<NonZeroU32>,
    /// What is held is hashed again every so many days; 0 is never.
    pub scrub_days: u32,
    /// Read for that in a second at most.
    pub scrub_rate: Rate,
    /// Chunks remembered for copying between images, about 20 bytes of memory each.
    pub index_chunks_max: usize,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            max_bytes: None,
            low_percent: 90,
            min_free_bytes: None,
            max_idle_days: None,
            scrub_days: 14,
            // Of a core, hashing so much takes a few thousandths.
            scrub_rate: Rate::of(Some(4 << 20)),
            index_chunks_max: 2_000_000,
        }
    }
}

/// Bundles in place of the new chunks of a disk that is here in another version.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Delta {
    pub enabled: bool,
    /// How long at most the agent waits for one that is being made, and never longer than the chunks
    /// would take.
    pub wait_seconds: u64,
}

impl Default for Delta {
    fn default() -> Self {
        Self { enabled: true, wait_seconds: 20 }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mirror {
    pub enabled: bool,
    pub listen: SocketAddr,
    /// PEM chain; with `key_file` the mirror speaks HTTPS, without them plain HTTP on loopback. Both
    /// are read anew at SIGHUP.
    pub certificate_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// How long a node's word holds that somebody may pull from a repository.
    pub rights_seconds: u64,
    /// How long it holds while no node answers.
    pub rights_offline_seconds: u64,
    /// The other registries that are pulled through the cluster, by name; none is what nodes say.
    pub upstreams: Vec<String>,
    /// Where docker's `registry-mirrors` are answered: names there are Docker Hub's. With TLS or on
    /// loopback, as `listen`.
    pub hub_listen: Option<SocketAddr>,
}

impl Default for Mirror {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: SocketAddr::from(([127, 0, 0, 1], 5055)),
            certificate_file: None,
            key_file: None,
            rights_seconds: 30,
            rights_offline_seconds: 3600,
            upstreams: Vec::new(),
            hub_listen: None,
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Status {
    pub enabled: bool,
    /// Plain HTTP for `/health` and `/metrics`; loopback only.
    pub listen: SocketAddr,
}

impl Default for Status {
    fn default() -> Self {
        Self { enabled: true, listen: SocketAddr::from(([127, 0, 0, 1], 5056)) }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// As `tracing-subscriber` reads it, for instance `info,shoal_p2p=debug`.
    pub filter: String,
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".into(), format: LogFormat::default() }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Traces {
    /// Where a collector takes OTLP over HTTP, in protobuf: `http://HOST:4318/v1/traces`. Without
    /// it nothing is traced.
    pub endpoint: Option<String>,
    /// Of the transfers, this share is traced: 0 to 1.
    pub sample_ratio: f64,
}

impl Default for Traces {
    fn default() -> Self {
        Self { endpoint: None, sample_ratio: 1.0 }
    }
}

impl Config {
    /// Reads the file (`path`, else [`DEFAULT_PATH`] where it exists), then `environment`, then
    /// `overrides` (`section.key`, value).
    ///
    /// # Errors
    /// Whatever is unknown, malformed or contradicts itself.
    pub fn load(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        overrides: &[(String, String)],
    ) -> Result<Self, Error> {
        let config: Self = SCHEMA.load(path, environment, overrides)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), Error> {
        let refuse = |section, key, message: &str| {
            Err(Error::Value { section, key, message: message.to_owned() })
        };
        if !(10..=100).contains(&self.cache.low_percent) {
            return refuse("cache", "low_percent", "from 10 to 100");
        }
        let days = self.cache.max_idle_days.map_or(0, NonZeroU32::get);
        if days.max(self.cache.scrub_days) > DAYS_MAX {
            return refuse("cache", "scrub_days", "and max_idle_days are at most 3650");
        }
        if self.agent.drain_seconds > DRAIN_SECONDS_MAX {
            return refuse("agent", "drain_seconds", "at most 600");
        }
        if self.delta.wait_seconds > DELTA_WAIT_SECONDS_MAX {
            return refuse("delta", "wait_seconds", "at most an hour (3600)");
        }
        if self.limits.schedule.len() > limits::SCHEDULE_MAX {
            return refuse("limits", "schedule", "at most 64 lines");
        }
        if !self.status.listen.ip().is_loopback() {
            return refuse(
                "status",
                "listen",
                "it speaks plain HTTP and so listens on a loopback address only",
            );
        }
        if self.mirror.rights_seconds > RIGHTS_SECONDS_MAX {
            return refuse("mirror", "rights_seconds", "at most 60: a right that ends, ends here");
        }
        if self.mirror.rights_offline_seconds > RIGHTS_OFFLINE_SECONDS_MAX {
            return refuse("mirror", "rights_offline_seconds", "at most a day (86400)");
        }
        if self.mirror.certificate_file.is_some() != self.mirror.key_file.is_some() {
            return refuse("mirror", "key_file", "needs certificate_file, and the other way round");
        }
        let odd = |name: &String| name.parse::<shoal_content::ProjectName>().is_err();
        if let Some(name) = self.mirror.upstreams.iter().find(|name| odd(name)) {
            let text = format!("'{name}' begins no image's name: docker.io, ghcr.io");
            return refuse("mirror", "upstreams", &text);
        }
        let hub = self.mirror.hub_listen;
        if hub.is_some_and(|hub| !hub.ip().is_loopback()) && self.mirror.certificate_file.is_none()
        {
            return refuse(
                "mirror",
                "hub_listen",
                "an address other than loopback needs certificate_file and key_file",
            );
        }
        if !self.mirror.listen.ip().is_loopback() && self.mirror.certificate_file.is_none() {
            return refuse(
                "mirror",
                "listen",
                "an address other than loopback needs certificate_file and key_file",
            );
        }
        let is_url = |text: &String| text.starts_with("http://") || text.starts_with("https://");
        if !self.traces.endpoint.as_ref().is_none_or(is_url) {
            let text = "it is http://HOST:4318/v1/traces or https://…";
            return refuse("traces", "endpoint", text);
        }
        if !(0.0..=1.0).contains(&self.traces.sample_ratio) {
            return refuse("traces", "sample_ratio", "it is 0 to 1");
        }
        if self.control_socket().as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return refuse(
                "agent",
                "control_socket",
                "the socket's path is longer than Unix sockets allow (107 bytes); set a shorter one",
            );
        }
        Ok(())
    }

    pub fn control_socket(&self) -> PathBuf {
        let default = || self.agent.data_dir.join("control.sock");
        self.agent.control_socket.clone().unwrap_or_else(default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        std::fs::write(&path, text).unwrap();
        let owned = environment.iter().map(|(key, value)| ((*key).into(), (*value).into()));
        Config::load(Some(&path), owned.collect::<Vec<_>>(), &[])
    }

    #[test]
    fn the_list_of_settings_is_what_the_types_have() {
        // Optional settings vanish where they are not set, so each gets a value first.
        let mut config = Config::default();
        config.agent.name = Some("a".into());
        config.agent.control_socket = Some("b".into());
        config.nodes.authority_file = Some("c".into());
        config.peer.advertise = Some(config.peer.listen);
        config.cache.max_bytes = Some(ByteSize::new(1));
        config.cache.min_free_bytes = Some(ByteSize::new(1));
        config.cache.max_idle_days = Some(NonZeroU32::MIN);
        config.mirror.certificate_file = Some("d".into());
        config.mirror.key_file = Some("e".into());
        config.mirror.hub_listen = Some(config.mirror.listen);
        config.traces.endpoint = Some("f".into());
        let table = toml::Table::try_from(&config).unwrap();
        let mut sections: Vec<_> = table.keys().map(String::as_str).collect();
        let mut known: Vec<_> = SETTINGS.iter().map(|(section, _)| *section).collect();
        sections.sort_unstable();
        known.sort_unstable();
        assert_eq!(sections, known);
        for (section, keys) in SETTINGS {
            let mut found: Vec<_> =
                table[*section].as_table().unwrap().keys().map(String::as_str).collect();
            let mut keys = keys.to_vec();
            found.sort_unstable();
            keys.sort_unstable();
            assert_eq!(found, keys, "[{section}]");
        }
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_the_nearest_one() {
        let error = load("[agent]\nname = \"x\"\ndata_dri = \"/x\"\n", &[]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("line 3") && text.contains("'data_dir'"), "{text}");
        let text = load("\n[cahce]\n", &[]).unwrap_err().to_string();
        assert!(text.contains("line 2") && text.contains("'cache'"), "{text}");
    }

    #[test]
    fn the_environment_overrides_the_file_and_flags_override_both() {
        let text =
            "[cache]\nmax_bytes = \"1GiB\"\nlow_percent = 50\n[peer]\nlisten = \"1.2.3.4:5\"";
        let environment =
            [("SHOAL_AGENT_CACHE_MAX_BYTES", "2GiB"), ("SHOAL_AGENT_CACHE_LOW_PERCENT", "60")];
        let config = load(text, &environment).unwrap();
        assert_eq!(config.cache.max_bytes, Some(ByteSize::new(2 << 30)));
        assert_eq!(config.cache.low_percent, 60);
        let flags = [("cache.low_percent".to_owned(), "70".to_owned())];
        let config = Config::load(None, Vec::new(), &flags).unwrap();
        assert_eq!(config.cache.low_percent, 70);
        let unknown = load("", &[("SHOAL_AGENT_CACHE_MAXBYTES", "1")]).unwrap_err().to_string();
        assert!(unknown.contains("SHOAL_AGENT_CACHE_MAX_BYTES"), "{unknown}");
    }

    #[test]
    fn chunks_go_by_a_way_that_there_is() {
        assert_eq!(load("", &[]).unwrap().peer.bulk, Bulk::Auto);
        assert_eq!(load("[peer]\nbulk = \"quic\"", &[]).unwrap().peer.bulk, Bulk::Quic);
        let text = load("[peer]\nbulk = \"tcp\"", &[]).unwrap_err().to_string();
        assert!(text.contains("bulk") || text.contains("tcp"), "{text}");
    }

    #[test]
    fn plain_http_stays_on_loopback() {
        assert!(load("[mirror]\nlisten = \"0.0.0.0:5055\"", &[]).is_err());
        assert!(load("[status]\nlisten = \"10.0.0.1:5056\"", &[]).is_err());
        assert!(load("[mirror]\nlisten = \"[::1]:5055\"", &[]).is_ok());
    }

    #[test]
    fn traces_go_to_an_address_and_a_share_is_one() {
        assert!(load("[traces]\nendpoint = \"http://collector:4318/v1/traces\"", &[]).is_ok());
        assert!(load("[traces]\nendpoint = \"collector:4318\"", &[]).is_err());
        assert!(load("[traces]\nsample_ratio = 1.5", &[]).is_err());
    }

    #[test]
    fn what_was_revoked_is_not_served_for_long() {
        assert!(load("[mirror]\nrights_seconds = 61", &[]).is_err());
        assert!(load("[mirror]\nrights_offline_seconds = 90000", &[]).is_err());
        assert!(load("[mirror]\nrights_seconds = 0\nrights_offline_seconds = 0", &[]).is_ok());
    }
}
