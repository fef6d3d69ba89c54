//! `shoal-agent setup ENGINE`: makes this host's container engine pull the cluster's images, and those
//! of the registries that the cluster pulls through, through this agent, and takes it back.
//!
//! Whatever an engine is told names the agent first and the registry itself after it, so that a
//! pull goes on when the agent is down. Each engine's files are worked out as a [`Plan`] from what
//! they hold now; a plan is shown as a diff before it is carried out, and what it changed is noted
//! in the agent's data folder, so that it can be undone to the byte.
//!
//! Invariants: a file is written beside and renamed, so that an engine reads the old or the new;
//! the note is written before the first file; a file that somebody has changed since is never
//! overwritten or removed. Non-goal: restarting engines; what is needed is said.

mod containerd;
mod docker;
mod plan;
mod podman;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use shoal_content::ProjectName;
use thiserror::Error;

use crate::config::Config;
use crate::enrolment::{self, Known};
use crate::mirror::{Upstream, read_upstreams};

pub use plan::{Plan, Undo};

/// Whose configuration is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// Debian's docker.io, Docker Engine
    Docker,
    /// containerd, also below Kubernetes (CRI)
    Containerd,
    /// podman, buildah, skopeo and CRI-O
    Podman,
}

impl Engine {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::Podman => "podman",
        }
    }
}

/// Why an engine cannot be set up, or set back.
#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    Folder(#[from] enrolment::Error),
    #[error("this host has not joined a cluster yet; see: shoal-agent join --help")]
    NotJoined,
    #[error("mirror.enabled is false, so there is nothing to pull through")]
    NoMirror,
    #[error("no node is known yet; run the agent once, or give --registry HOST:PORT")]
    NoRegistry,
    #[error("{0:?} is no HOST or HOST:PORT")]
    Registry(String),
    #[error("{path} is no JSON object: {message}")]
    Json { path: PathBuf, message: String },
    #[error("{path} is not TOML: {message}")]
    Malformed { path: PathBuf, message: String },
    #[error(
        "{path} has {key}, which containerd refuses together with config_path; \
         move it into files below /etc/containerd/certs.d first"
    )]
    OldMirrors { path: PathBuf, key: String },
    #[error("{0} was changed since it was set up; take back what was changed, or edit it by hand")]
    Changed(PathBuf),
    #[error("{path} leads out of {root}, so it is none of that image's files")]
    Outside { path: PathBuf, root: PathBuf },
    #[error("{0} is no text, and is left alone")]
    NoText(PathBuf),
    #[error("{doing} {path} failed")]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },
}

impl Error {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }
}

/// What engines are told.
#[derive(Debug)]
pub struct Facts {
    /// HOST:PORT of every node, as image names begin with.
    registries: BTreeSet<String>,
    /// Where this agent's mirror answers on this host.
    mirror: SocketAddr,
    mirror_has_tls: bool,
    /// The cluster's authority, PEM.
    authority: String,
    /// Other registries that are pulled through the cluster.
    upstreams: Vec<Upstream>,
    /// Where this agent answers for Docker Hub.
    hub: Option<SocketAddr>,
}

impl Facts {
    /// From the settings and from what the join brought; works beside a running daemon.
    ///
    /// # Errors
    /// Where this host belongs to no cluster, or no registry is known.
    pub fn gather(config: &Config, registries: &[String]) -> Result<Self, Error> {
        if !config.mirror.enabled {
            return Err(Error::NoMirror);
        }
        let known = Known::read(&config.agent.data_dir)?;
        let enrolment = known.enrolment.ok_or(Error::NotJoined)?;
        let urls = known.nodes.iter().map(|node| node.api_url.as_str());
        let urls = urls.chain(config.nodes.urls.iter().map(String::as_str));
        let registries: BTreeSet<String> = if registries.is_empty() {
            urls.filter_map(authority_of).collect()
        } else {
            registries.iter().map(|name| registry(name)).collect::<Result<_, _>>()?
        };
        if registries.is_empty() {
            return Err(Error::NoRegistry);
        }
        let upstreams = read_upstreams(&config.agent.data_dir, &config.mirror.upstreams)?;
        Ok(Self {
            registries,
            mirror: on_this_host(config.mirror.listen),
            mirror_has_tls: config.mirror.certificate_file.is_some(),
            authority: enrolment.authority_pem,
            upstreams,
            hub: config.mirror.hub_listen.map(on_this_host),
        })
    }

    fn url(&self, address: SocketAddr) -> String {
        let scheme = if self.mirror_has_tls { "https" } else { "http" };
        format!("{scheme}://{address}")
    }

    /// The hosts of other registries by which engines pull, each with the registry. What cannot be
    /// a host's name, or a project's, is left out: it becomes part of files.
    fn upstream_hosts(&self) -> impl Iterator<Item = (&str, &Upstream)> {
        let is_sound = |upstream: &&Upstream| upstream.name.parse::<ProjectName>().is_ok();
        let all = self.upstreams.iter().filter(is_sound);
        let hosts = all.flat_map(|upstream| upstream.hosts().map(move |host| (host, upstream)));
        hosts.filter(|(host, _)| registry(host).is_ok())
    }

    /// What `engine` has to read for these facts. Files are looked up below `root`.
    ///
    /// # Errors
    /// Where its present configuration cannot be read, or stands in the way.
    pub fn plan(&self, engine: Engine, root: &Path) -> Result<Plan, Error> {
        let mut plan = Plan::new(engine, root);
        match engine {
            Engine::Docker => docker::plan(self, &mut plan)?,
            Engine::Containerd => containerd::plan(self, &mut plan)?,
            Engine::Podman => podman::plan(self, &mut plan)?,
        }
        Ok(plan)
    }

    /// The folder `certs.d/HOST:PORT` of docker and podman, with the cluster's authority. Who is trusted
    /// there already still is: a node may show clients a certificate of the operator's.
    fn trust(&self, folder: &str, plan: &mut Plan) -> Result<(), Error> {
        let ours = &self.authority;
        for registry in &self.registries {
            plan.write(&format!("{folder}/{registry}/ca.crt"), |before| {
                Ok(match before {
                    Some(before) if before.contains(ours.trim_end()) => before.to_owned(),
                    Some(before) if !before.trim_end().is_empty() => {
                        format!("{}\n{ours}", before.trim_end())
                    }
                    _ => ours.clone(),
                })
            })?;
        }
        Ok(())
    }
}

/// As this host's own programs reach what listens there.
fn on_this_host(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

/// HOST:PORT of a URL, with the port that image names need.
fn authority_of(url: &str) -> Option<String> {
    let url = reqwest::Url::parse(url).ok()?;
    let host = url.host_str()?;
    Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

/// Checks a registry that was given by hand: it becomes a folder's name and part of files.
fn registry(name: &str) -> Result<String, Error> {
    let wrong = || Error::Registry(name.to_owned());
    let plain = |letter: char| letter.is_ascii_alphanumeric() || ".-:[]".contains(letter);
    if name.starts_with('.') || !name.chars().all(plain) {
        return Err(wrong());
    }
    authority_of(&format!("https://{name}")).filter(|found| found == name).ok_or_else(wrong)
}

#[cfg(test)]
mod tests;
