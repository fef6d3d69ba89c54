//! The other registries whose images the cluster pulls through, by the names that engines have for
//! them.
//!
//! What the settings name, else what a node says, asked again now and then and kept in the data
//! folder for when none answers and for `setup`. `?ns=NAME` means the image `NAME/…` of the cluster.
//! A namespace that is no upstream's means the cluster's own images, as does none: by what names engines
//! have the cluster, only they know. Nobody in the cluster may answer for another registry's images,
//! though: what was an upstream once, and Docker Hub, means nothing then. At the listener of Docker Hub
//! (`mirror.hub_listen`) a name without a namespace is Docker Hub's: docker says none to its
//! `registry-mirrors`.
//!
//! Invariant: bounded, whatever a node says.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use shoal_api::UpstreamInfo;
use shoal_content::RepositoryName;
use tracing::{debug, info, warn};

use crate::enrolment::{self, read_json, write_json};
use crate::nodes::NodeClient;

/// How often a node is asked.
const INTERVAL: Duration = Duration::from_secs(60);
/// The same until one has answered.
const FIRST_INTERVAL: Duration = Duration::from_secs(2);
const UPSTREAMS_MAX: usize = 256;
const FILE: &str = "upstreams.json";
/// By which image names without a host are pulled.
pub const DOCKER_HUB: &str = "docker.io";
/// By what else engines may have it.
const DOCKER_HUB_HOSTS: [&str; 3] = [DOCKER_HUB, "index.docker.io", "registry-1.docker.io"];
const DOCKER_LIBRARY: &str = "library";

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// What its images' names begin with in the cluster.
    pub name: String,
    /// By what else engines may name it.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Where it answers itself, as far as that is known.
    #[serde(default)]
    pub url: Option<String>,
    /// Whether anyone may pull its images.
    #[serde(default)]
    pub public: bool,
    /// Whether it is one no more. Engines on this host may still be told to ask here for it.
    #[serde(default)]
    pub gone: bool,
}

impl Upstream {
    fn named(name: &str) -> Self {
        Self { name: name.to_owned(), aliases: Vec::new(), url: None, public: false, gone: false }
    }

    /// Every name by which engines may have it, that can be a host's.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        let all = std::iter::once(&self.name).chain(&self.aliases).map(String::as_str);
        all.filter(|name| name.contains(['.', ':']) || *name == "localhost")
    }

    fn is_called(&self, name: &str) -> bool {
        let mut all = std::iter::once(&self.name).chain(&self.aliases);
        all.any(|one| one.eq_ignore_ascii_case(name))
    }
}

impl From<UpstreamInfo> for Upstream {
    fn from(info: UpstreamInfo) -> Self {
        let UpstreamInfo { name, aliases, url, public, .. } = info;
        Self { name, aliases, url: Some(url), public, gone: false }
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Upstreams {
    known: RwLock<Vec<Upstream>>,
    /// Where what nodes say is kept; not where the settings say it all.
    file: Option<PathBuf>,
}

impl Upstreams {
    /// `configured` are the settings' names; none is what nodes say.
    pub fn open(data_dir: &Path, configured: &[String]) -> Self {
        let file = configured.is_empty().then(|| data_dir.join(FILE));
        let known = match read_all(data_dir, configured) {
            Ok(known) => known,
            Err(error) => {
                warn!(%error, "the names of upstreams are asked for anew");
                Vec::new()
            }
        };
        Self { known: RwLock::new(known), file }
    }

    /// The cluster's name for what an engine calls `name`; `None` where it can be no image of the
    /// cluster's.
    pub fn meant(&self, namespace: Option<&str>, name: RepositoryName) -> Option<RepositoryName> {
        let Some(namespace) = namespace else { return Some(name) };
        let known = self.known.read();
        match known.iter().find(|one| one.is_called(namespace)) {
            Some(one) if one.gone => None,
            Some(one) => within(&one.name, &name),
            None if DOCKER_HUB_HOSTS.iter().any(|host| host.eq_ignore_ascii_case(namespace)) => {
                None
            }
            None => Some(name),
        }
    }

    /// The cluster's name for an image of Docker Hub's; `None` where that is not pulled through.
    pub fn of_hub(&self, name: &RepositoryName) -> Option<RepositoryName> {
        let known = self.known.read();
        let hub = known.iter().find(|one| one.is_called(DOCKER_HUB) && !one.gone)?;
        within(&hub.name, name)
    }

    /// Whether anyone may pull Docker Hub's images.
    pub fn hub_is_public(&self) -> bool {
        let known = self.known.read();
        known.iter().any(|one| one.is_called(DOCKER_HUB) && one.public && !one.gone)
    }

    fn put(&self, said: Vec<UpstreamInfo>) {
        let Some(file) = &self.file else { return };
        let said = said.into_iter().take(UPSTREAMS_MAX);
        let mut said: Vec<Upstream> = said.map(Upstream::from).collect();
        let before = self.known.read().clone();
        let is_known = |host: &str| said.iter().any(|one| one.is_called(host));
        let is_gone = |old: &Upstream| !is_known(&old.name) || !old.hosts().all(is_known);
        let gone: Vec<_> = before.iter().filter(|old| is_gone(old)).cloned().collect();
        // Behind the others, whose names come first.
        said.extend(gone.into_iter().map(|old| Upstream { gone: true, ..old }));
        said.truncate(UPSTREAMS_MAX);
        if before == said {
            return;
        }
        info!(upstreams = said.len(), "the list of upstreams changed");
        if let Err(error) = write_json(file, &said) {
            warn!(%error, "the list of upstreams could not be kept");
        }
        *self.known.write() = said;
    }

    /// Asks nodes, again and again, where the settings say nothing.
    pub async fn follow(self: Arc<Self>, nodes: Arc<NodeClient>) {
        if self.file.is_none() {
            return;
        }
        let mut interval = FIRST_INTERVAL;
        loop {
            match nodes.upstreams().await {
                Ok(said) => {
                    let all = Arc::clone(&self);
                    crate::blocking(move || all.put(said)).await;
                    interval = INTERVAL;
                }
                // Nodes of an earlier version know none.
                Err(error) => debug!(%error, "no node says which upstreams there are"),
            }
            tokio::time::sleep(interval).await;
        }
    }
}

/// What is known without asking: for `setup`.
///
/// # Errors
/// Where the data folder cannot be read.
pub fn read(data_dir: &Path, configured: &[String]) -> Result<Vec<Upstream>, enrolment::Error> {
    let mut known = read_all(data_dir, configured)?;
    known.retain(|one| !one.gone);
    Ok(known)
}

fn read_all(data_dir: &Path, configured: &[String]) -> Result<Vec<Upstream>, enrolment::Error> {
    if !configured.is_empty() {
        return Ok(configured.iter().map(|name| Upstream::named(name)).collect());
    }
    Ok(read_json(&data_dir.join(FILE))?.unwrap_or_default())
}

fn within(upstream: &str, name: &RepositoryName) -> Option<RepositoryName> {
    // Docker Hub's own images have no namespace where people write them.
    let bare = upstream == DOCKER_HUB && !name.as_str().contains('/');
    let library = if bare { format!("{DOCKER_LIBRARY}/") } else { String::new() };
    format!("{upstream}/{library}{name}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &str, aliases: &[&str]) -> UpstreamInfo {
        UpstreamInfo {
            name: name.into(),
            aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
            url: format!("https://{name}"),
            ..UpstreamInfo::default()
        }
    }

    #[test]
    fn a_namespace_means_its_upstream_and_what_never_was_one_the_cluster() {
        let folder = tempfile::tempdir().unwrap();
        let upstreams = Upstreams::open(folder.path(), &[]);
        let name: RepositoryName = "library/alpine".parse().unwrap();
        let meant = |upstreams: &Upstreams, namespace| {
            upstreams.meant(namespace, name.clone()).map(|name| name.to_string())
        };
        let is = |text: &str| Some(text.to_owned());
        assert_eq!(meant(&upstreams, Some("lab.example:5000")), is("library/alpine"));
        assert!(upstreams.of_hub(&name).is_none());
        // Whoever may push to a project "library" must not answer for it.
        for hub in ["docker.io", "Registry-1.docker.io"] {
            assert_eq!(meant(&upstreams, Some(hub)), None, "{hub}");
        }
        upstreams.put(vec![info("docker.io", &[]), info("lab", &["registry.lab:5000"])]);
        assert_eq!(meant(&upstreams, Some("docker.io")), is("docker.io/library/alpine"));
        assert_eq!(meant(&upstreams, Some("Registry.lab:5000")), is("lab/library/alpine"));
        assert_eq!(meant(&upstreams, Some("ghcr.io")), is("library/alpine"));
        assert_eq!(meant(&upstreams, None), is("library/alpine"));
        let bare = "alpine".parse().unwrap();
        assert_eq!(upstreams.of_hub(&bare).unwrap().as_str(), "docker.io/library/alpine");

        // After a restart, and for set-ups.
        let again = Upstreams::open(folder.path(), &[]);
        assert_eq!(meant(&again, Some("docker.io")), is("docker.io/library/alpine"));
        let known = read(folder.path(), &[]).unwrap();
        assert_eq!(known[1].hosts().collect::<Vec<_>>(), ["registry.lab:5000"]);

        // What was one once is not the cluster's now, and is one again when nodes say so.
        again.put(vec![info("docker.io", &[])]);
        let later = Upstreams::open(folder.path(), &[]);
        assert_eq!(meant(&later, Some("registry.lab:5000")), None);
        assert_eq!(read(folder.path(), &[]).unwrap().len(), 1);
        later.put(vec![info("lab", &["registry.lab:5000"])]);
        assert_eq!(meant(&later, Some("registry.lab:5000")), is("lab/library/alpine"));
        assert!(later.of_hub(&name).is_none());

        // The settings' word is the last one.
        let fixed = Upstreams::open(folder.path(), &["quay.io".to_owned()]);
        fixed.put(vec![info("docker.io", &[])]);
        assert_eq!(meant(&fixed, Some("docker.io")), None);
        assert_eq!(meant(&fixed, Some("quay.io")), is("quay.io/library/alpine"));
    }
}
