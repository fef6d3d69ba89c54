//! Other registries, whose images are pulled through this cluster: `NAME/path` here is `path` at the
//! upstream that the operator calls NAME, and so is `path` with `?ns=NAME`.
//!
//! Each upstream is a project of its name: who may pull is the project's to say, what is held counts
//! for its quota and goes by its policy. A manifest is a version once somebody has asked for it; it
//! awaits what it refers to, and a blob comes when somebody asks for that (`raft/metadata`,
//! `apply/awaited.rs`). Only what a manifest of that very repository refers to is asked for.
//!
//! A tag is looked up again when it was not for a while; an upstream that does not answer, or takes
//! no more requests, leaves what is known as it is, and who asks is told so. Of all who ask for the
//! same at a node one asks the upstream, and of all nodes one: which, follows from the digest
//! (rendezvous hashing); the others ask that node, and the upstream only where it does not give it.
//!
//! Invariants: nothing is given before the asker was let in here; nothing is kept whose digest is
//! another; nobody can push to such a project; what is remembered is bounded.
//! Non-goals: lists of tags and referrers that are not here yet.

mod blobs;
mod challenge;
mod client;
mod error;
mod flight;
mod manifests;
mod projects;
mod proxy;
mod standing;
mod whole;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;
use shoal_content::{Digest, NodeId, Pin, ProjectName, RepositoryName, TagName};
use shoal_metadata::Pattern;
use thiserror::Error as ThisError;

pub use blobs::Wanted;
pub(crate) use challenge::check_challenge;
pub use client::ClientError;
pub use error::Error;
pub use manifests::Brought;
pub use projects::keep_projects;
pub use standing::{Shown, UpstreamMetrics};
pub use whole::Lacking;

use crate::config;
use crate::deploy::Siblings;
use crate::registry::Intake;
use crate::state::App;
use client::Client;
use flight::Flights;
use standing::Standing;

/// Tags whose last look is remembered, of one upstream.
const TAGS_MAX: u64 = 20_000;
/// What an upstream was found not to have is remembered so long, and so much of it.
const ABSENT_TTL: Duration = Duration::from_secs(30);
const ABSENT_MAX: u64 = 10_000;
/// A blob that came as something else so often in a row is not asked for again for a while: each time
/// costs all of its bytes, and clients ask on and on. Once may be a line that spoils what it carries.
const SPOILT_MAX: u32 = 2;
const SPOILT_TTL: Duration = Duration::from_secs(300);
/// Who asks for a manifest that just came is behind by less.
const FETCHED_TTL: Duration = Duration::from_secs(2);
/// Who asks what an image lacks is behind by less.
const LACKING_TTL: Duration = Duration::from_secs(1);
/// By which Docker Hub's own images are known without a namespace.
const DOCKER_HUB: &str = "docker.io";
const DOCKER_LIBRARY: &str = "library";

/// Why a node cannot start with its upstreams.
#[derive(Debug, ThisError)]
pub enum SetupError {
    #[error("[upstreams.\"{name}\"]")]
    Client { name: String, source: ClientError },
    #[error("the folder {path} cannot be made")]
    Folder { path: PathBuf, source: std::io::Error },
}

/// A blob's pin is its digest, too.
type AbsentKey = (RepositoryName, Pin);

/// A version, for a platform.
type LackingKey = (RepositoryName, Digest, Option<String>);

/// One of them.
#[derive(Debug)]
pub struct Upstream {
    pub name: ProjectName,
    pub settings: config::Upstream,
    allow: Vec<Pattern>,
    client: Client,
    standing: Arc<Standing>,
    /// Looked at within the settings' time.
    tags: Cache<(RepositoryName, TagName), ()>,
    /// Single flight, mainly.
    fetched: Cache<(RepositoryName, Digest), ()>,
    absent: moka::sync::Cache<AbsentKey, Error>,
    /// Blobs that came as something else: how often in a row, and what was wrong the last time.
    spoilt: moka::sync::Cache<AbsentKey, (u32, Error)>,
    /// What of an image was not here a moment ago: of many hosts that wait for it one looks.
    lacking: Cache<LackingKey, Lacking>,
}

/// All of them. Clones are the same.
#[derive(Debug, Clone)]
pub struct Upstreams {
    all: Arc<BTreeMap<ProjectName, Arc<Upstream>>>,
    /// In lower case.
    names: Arc<HashMap<String, ProjectName>>,
    node: NodeId,
    siblings: Siblings,
    flights: Flights,
    /// Room for what comes, beside that of uploads and bounded as theirs is (`INTAKE_BYTES_MAX`): an
    /// upstream that is slow to fill a part keeps nobody from pushing.
    intake: Intake,
}

impl Upstreams {
    /// `folder` is for what is on its way; it is emptied by the system.
    ///
    /// # Errors
    /// Where an authority's file cannot be used, or the folder cannot be made.
    pub fn new(
        config: &config::Config,
        folder: PathBuf,
        node: NodeId,
        siblings: Siblings,
        metrics: &UpstreamMetrics,
    ) -> Result<Self, SetupError> {
        let (mut all, mut names) = (BTreeMap::new(), HashMap::new());
        for (name, settings) in &config.upstreams.0 {
            let networks = &config.import.allowed_networks;
            let standing = Arc::new(Standing::new(name, metrics.clone()));
            let client = Client::new(name, settings, networks, Arc::clone(&standing))
                .map_err(|source| SetupError::Client { name: name.clone(), source })?;
            // Both were looked at when the settings were read.
            let Ok(project) = name.parse::<ProjectName>() else { continue };
            let allow = settings.allow.iter().filter_map(|text| text.parse().ok()).collect();
            for alias in std::iter::once(name).chain(&settings.aliases) {
                names.insert(alias.to_ascii_lowercase(), project.clone());
            }
            let fresh = Duration::from_secs(settings.tag_seconds).max(Duration::from_millis(1));
            let upstream = Upstream {
                name: project.clone(),
                settings: settings.clone(),
                allow,
                client,
                standing,
                tags: Cache::builder().max_capacity(TAGS_MAX).time_to_live(fresh).build(),
                fetched: Cache::builder().max_capacity(TAGS_MAX).time_to_live(FETCHED_TTL).build(),
                absent: moka::sync::Cache::builder()
                    .max_capacity(ABSENT_MAX)
                    .time_to_live(ABSENT_TTL)
                    .build(),
                spoilt: moka::sync::Cache::builder()
                    .max_capacity(ABSENT_MAX)
                    .time_to_live(SPOILT_TTL)
                    .build(),
                lacking: Cache::builder().max_capacity(TAGS_MAX).time_to_live(LACKING_TTL).build(),
            };
            all.insert(project, Arc::new(upstream));
        }
        if !all.is_empty() {
            std::fs::create_dir_all(&folder)
                .map_err(|source| SetupError::Folder { path: folder.clone(), source })?;
        }
        let flights = Flights::new(folder, flight::TURNS);
        Ok(Self {
            all: Arc::new(all),
            names: Arc::new(names),
            node,
            siblings,
            flights,
            intake: Intake::of_fetches(),
        })
    }

    /// By name.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.all.values()
    }

    /// Whose images the repository's project holds.
    pub fn of(&self, repository: &RepositoryName) -> Option<&Arc<Upstream>> {
        if self.all.is_empty() {
            return None;
        }
        self.all.get(&repository.project())
    }

    pub fn of_project(&self, project: &ProjectName) -> Option<&Arc<Upstream>> {
        self.all.get(project)
    }

    /// What a client means that asks for `repository`, of `namespace` where it says so (`?ns=`).
    /// A namespace that is no upstream's says nothing.
    pub fn meant(&self, repository: RepositoryName, namespace: Option<&str>) -> RepositoryName {
        if self.all.is_empty() {
            return repository;
        }
        let named = namespace.and_then(|name| self.names.get(&name.to_ascii_lowercase()));
        // Too long a name is nobody's here.
        let joined = named.and_then(|name| format!("{name}/{repository}").parse().ok());
        let repository: RepositoryName = joined.unwrap_or(repository);
        match repository.as_str().split_once('/') {
            Some((DOCKER_HUB, image)) if !image.contains('/') && self.of(&repository).is_some() => {
                let whole = format!("{DOCKER_HUB}/{DOCKER_LIBRARY}/{image}");
                whole.parse().unwrap_or(repository)
            }
            _ => repository,
        }
    }

    /// The node that asks upstreams for `digest`, where that is another one.
    fn keeper(&self, app: &App, digest: &Digest) -> Option<shoal_metadata::Node> {
        let nodes = app.raft.local().query().nodes().unwrap_or_default();
        let weight = |node: &shoal_metadata::Node| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(node.id.to_string().as_bytes()).update(b" ").update(digest.as_bytes());
            *hasher.finalize().as_bytes()
        };
        nodes.into_iter().max_by_key(weight).filter(|node| node.id != self.node)
    }
}

impl Upstream {
    pub fn shown(&self) -> Shown {
        self.standing.shown()
    }

    /// What it answered makes no sense; noted.
    fn odd(&self, why: impl Into<String>) -> Error {
        let error = Error::Odd { name: self.name.to_string(), why: why.into() };
        self.standing.note(Err(&error));
        error
    }

    /// The repository's name at the upstream.
    ///
    /// # Errors
    /// Where the operator does not let it be pulled.
    fn path<'a>(&self, repository: &'a RepositoryName) -> Result<&'a str, Error> {
        let path = repository.as_str().split_once('/').map_or("", |(_, path)| path);
        match self.allow.iter().any(|pattern| pattern.matches(path)) && !path.is_empty() {
            true => Ok(path),
            false => Err(Error::Forbidden(repository.to_string())),
        }
    }
}
