//! The node as a whole: its parts started in order, and stopped in the opposite one.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use prometheus_client::registry::Registry;
use shoal_content::NodeId;
use shoal_p2p::Swarm;
use shoal_p2p::identity::{Role, peer_of};
use shoal_raft::{Raft, Transport};
use tokio::task::JoinSet;
use tracing::info;
use zeroize::Zeroizing;

use crate::api::Services;
use crate::collection::{Collector, Timing};
use crate::config::{Config, StorageKind};
use crate::founding::{FIRST_NODE, Founding};
use crate::home::Home;
use crate::http::auth::Accounts;
use crate::http::{Certificates, Listening, serve};
use crate::metrics::Metrics;
use crate::origin::{follow_members, serve_peers};
use crate::registry::Intake;
use crate::scrub::{Limits, Scrubber};
use crate::state::{App, Keys, Parts};
use crate::store::{BlobStore, CachedStore, FolderStore, S3Settings, S3Store};

const RAFT_PROTOCOL: &[u8] = b"shoal-raft/1";
/// How long a node looks for a leader before it gives up reading the cluster's keys.
const KEYS_DEADLINE: Duration = Duration::from_secs(120);
const KEYS_INTERVAL: Duration = Duration::from_millis(200);

/// A running node.
#[derive(Debug)]
pub struct Server {
    app: App,
    https: Listening,
    plain: Option<Listening>,
    swarm: Swarm,
    /// What runs in the background; ends with it.
    _tasks: JoinSet<()>,
    _home: Home,
}

/// Founds a cluster of one node, and stops; gives the administrator's password.
///
/// # Errors
/// With what could not be done.
pub async fn found(config: &Config) -> Result<Zeroizing<String>> {
    let home = Home::open(&config.node.data_dir)?;
    let founding = Founding::begin(&home)?;
    let raft = start_raft(&home, config, NodeId::new(FIRST_NODE), &mut Registry::default()).await?;
    let password = founding.finish(&home, config, &raft).await?;
    raft.shutdown().await;
    Ok(password)
}

impl Server {
    /// Starts the node in its data folder. A node that is no member founds a cluster of its own
    /// first, and hands the password to `founded`.
    ///
    /// # Errors
    /// With what could not be started.
    pub async fn start(config: Config, founded: impl FnOnce(&str)) -> Result<Self> {
        let home = Home::open(&config.node.data_dir)?;
        let member = home.member()?;
        let founding = if member.is_none() { Some(Founding::begin(&home)?) } else { None };
        let id = member.map_or(NodeId::new(FIRST_NODE), |member| member.id());
        let mut registry = Registry::default();
        let store = open_store(&config, &home, &mut registry).await;
        let store = store.context("storage cannot be opened")?;
        let raft = start_raft(&home, &config, id, &mut registry).await?;
        if let Some(founding) = founding {
            founded(&founding.finish(&home, &config, &raft).await?);
        }
        let keys = read_keys(&raft).await?;
        let certificates = Certificates::load(&config, &keys)?;
        let seconds = |seconds| Duration::from_secs(seconds);
        let timing = Timing::new(
            seconds(config.collection.grace_seconds),
            seconds(config.collection.interval_seconds),
        );
        let collector =
            Collector::new(raft.clone(), Arc::clone(&store.front), timing, &mut registry);
        let limits = Limits::new(seconds(config.scrub.interval_seconds), config.scrub.sample_bytes);
        // What lies in a cache says nothing about storage.
        let scrubber = Scrubber::new(raft.clone(), store.behind, limits, &mut registry);
        let store = store.front;
        let key = Arc::clone(home.key());
        let services = Services::new(&raft, &store, id, &keys, key, collector, scrubber)?;
        services.disks.keep_free_space(config.disks.keep_free_space);
        let origin = services.origin.clone();
        let credentials = home.credentials()?;
        let swarm = serve_peers(&config, credentials, &keys, origin, &mut registry).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(follow_members(raft.clone(), swarm.clone()));
        services.start(&raft, &mut tasks);
        let app = App::new(Parts {
            node: id,
            raft,
            store,
            keys,
            accounts: Accounts::new().map_err(|error| anyhow::anyhow!("{error}"))?,
            intake: Intake::default(),
            metrics: Metrics::new(registry),
            services,
            config,
        });
        let https = serve(app.clone(), app.config.http.listen, Some(certificates.tls()?));
        tasks.spawn(certificates.follow());
        let plain = app.config.http.plain_listen.map(|address| serve(app.clone(), address, None));
        if https.address().await.is_none() {
            bail!("{} cannot be listened on; is another process there?", app.config.http.listen);
        }
        info!(node = %id, url = app.config.api_url(), "the node answers");
        Ok(Self { app, https, plain, swarm, _tasks: tasks, _home: home })
    }

    pub fn app(&self) -> &App {
        &self.app
    }

    /// Waits for a part that ends by itself.
    pub async fn failed(&mut self) -> std::io::Error {
        self.https.failed().await
    }

    /// Lets requests end, then stops.
    ///
    /// # Errors
    /// Where a part had failed before.
    pub async fn stop(self) -> Result<()> {
        self.app.services.close();
        self.https.stop().await?;
        if let Some(plain) = self.plain {
            plain.stop().await?;
        }
        self.swarm.shutdown().await;
        self.app.raft.shutdown().await;
        Ok(())
    }
}

async fn start_raft(
    home: &Home,
    config: &Config,
    id: NodeId,
    registry: &mut Registry,
) -> Result<Raft> {
    let credentials = home.credentials()?;
    let server = credentials.quinn_server(RAFT_PROTOCOL, &[Role::Node])?;
    let endpoint = quinn::Endpoint::server(server, config.raft.listen)
        .with_context(|| format!("the Raft port {} cannot be listened on", config.raft.listen))?;
    let transport = Transport {
        endpoint,
        client: credentials.quinn_client(RAFT_PROTOCOL, &[Role::Node])?,
        server_name: Role::Node.server_name().to_owned(),
        authenticate: Arc::new(|connection| match peer_of(connection) {
            Ok((peer, Role::Node)) => Some(peer),
            _ => None,
        }),
    };
    let config = shoal_raft::Config::new(id, home.raft_folder());
    Ok(Raft::start(config, transport, registry).await?)
}

/// Storage as the node uses it, and itself, without a cache before it.
struct Stores {
    front: Arc<dyn BlobStore>,
    behind: Arc<dyn BlobStore>,
}

async fn open_store(config: &Config, home: &Home, registry: &mut Registry) -> Result<Stores> {
    let storage = &config.storage;
    Ok(match storage.kind {
        StorageKind::Folder => {
            let path = storage.path.clone().unwrap_or_else(|| home.storage_folder());
            let store = Arc::new(FolderStore::open(&path, storage.reserve_bytes)?);
            Stores { front: Arc::clone(&store) as Arc<dyn BlobStore>, behind: store }
        }
        StorageKind::S3 => {
            let secret_key = match &storage.secret_key_file {
                Some(path) => read_secret(path)?,
                None => Zeroizing::new(storage.secret_key.clone()),
            };
            let settings = S3Settings {
                endpoint: storage.endpoint.clone(),
                redirect_endpoint: storage.redirect_endpoint.clone(),
                region: storage.region.clone(),
                bucket: storage.bucket.clone(),
                access_key: storage.access_key.clone(),
                secret_key,
                path_style: storage.path_style,
            };
            let behind: Arc<dyn BlobStore> = Arc::new(S3Store::open(&settings).await?);
            let front: Arc<dyn BlobStore> = match storage.cache_bytes {
                0 => Arc::clone(&behind),
                most => {
                    let behind = Arc::clone(&behind);
                    Arc::new(CachedStore::open(behind, &home.cache_folder(), most, registry)?)
                }
            };
            Stores { front, behind }
        }
    })
}

fn read_secret(path: &Path) -> Result<Zeroizing<String>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("the secret key file {} cannot be read", path.display()))?;
    Ok(Zeroizing::new(text.trim().to_owned()))
}

/// The cluster's keys, as soon as a leader answers.
async fn read_keys(raft: &Raft) -> Result<Keys> {
    let deadline = tokio::time::Instant::now() + KEYS_DEADLINE;
    loop {
        let error = match raft.read().await {
            Ok(view) => match view.query().cluster()? {
                Some(row) => return Ok(Keys::from_row(&row)?),
                None => "the cluster was not founded".to_owned(),
            },
            Err(error) => error.to_string(),
        };
        if tokio::time::Instant::now() >= deadline {
            bail!("the cluster's keys cannot be read: {error}");
        }
        tokio::time::sleep(KEYS_INTERVAL).await;
    }
}
