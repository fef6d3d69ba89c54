//! The node as a whole: its parts started in order, and stopped in the opposite one.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use prometheus_client::registry::Registry;
use shoal_p2p::Swarm;
use shoal_p2p::identity::{Role, peer_of};
use shoal_raft::{Raft, Transport};
use tokio::task::JoinSet;
use tracing::info;
use zeroize::Zeroizing;

use crate::api::{Services, Upkeep};
use crate::collection::{Collector, Timing};
use crate::config::{Config, StorageKind};
use crate::founding::{Founding, node_row};
use crate::home::{Home, Member};
use crate::http::auth::{Accounts, TokenUses};
use crate::http::{Certificates, Listening, serve};
use crate::level;
use crate::metrics::Metrics;
use crate::origin::{follow_members, serve_peers};
use crate::pulls::Pulls;
use crate::registry::Intake;
use crate::restore;
use crate::retention::Retainer;
use crate::scrub::{Limits, Scrubber};
use crate::state::{App, Keys, Parts};
use crate::store::{BlobStore, CachedStore, FolderStore, S3Settings, S3Store};
use crate::verification::Verifier;

/// How long a node looks for a leader before it gives up reading the cluster's keys.
const KEYS_DEADLINE: Duration = Duration::from_secs(120);
/// How long a stop waits for the last pulls to be written down.
const PULLS_TIMEOUT: Duration = Duration::from_secs(2);
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
    let member = founding.first_member();
    let raft = start_raft(&home, config, &member, &mut Registry::default()).await?;
    let password = founding.finish(&home, config, &raft).await?;
    raft.shutdown().await;
    Ok(password)
}

/// Makes a new cluster of one node out of a backup, and stops (see `restore`).
///
/// # Errors
/// With what could not be done; then nothing was made.
pub async fn restore(config: &Config, plan: restore::Plan<'_>) -> Result<restore::Restored> {
    let open_store =
        async |home: &Home| Ok(open_store(config, home, &mut Registry::default()).await?.behind);
    let start_raft = async |home: &Home, member: &Member, registry: &mut Registry| {
        start_raft(home, config, member, registry).await
    };
    Ok(Box::pin(restore::restore(config, plan, open_store, start_raft)).await?)
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
        let member = match (member, &founding) {
            (Some(member), _) => member,
            (None, Some(founding)) => founding.first_member(),
            (None, None) => bail!("the node is no member of a cluster"),
        };
        let id = member.id();
        let mut registry = Registry::default();
        let store = open_store(&config, &home, &mut registry).await;
        let store = store.context("storage cannot be opened")?;
        let raft = start_raft(&home, &config, &member, &mut registry).await?;
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
        let verifier = Verifier::new(raft.clone(), Arc::clone(&store.behind));
        let scrubber = Scrubber::new(raft.clone(), store.behind, limits, &mut registry);
        let store = store.front;
        let key = Arc::clone(home.key());
        let pulls_interval = seconds(config.retention.pulls_interval_seconds);
        let pulls = Pulls::new(raft.clone(), pulls_interval, &mut registry);
        let every = seconds(config.retention.interval_seconds);
        let retainer = Retainer::new(raft.clone(), pulls.clone(), every, &mut registry);
        let upkeep = Upkeep { collector, scrubber, verifier, pulls, retainer };
        let services = Services::new(&raft, &store, id, &keys, key, upkeep)?;
        let origin = services.origin.clone();
        let credentials = home.credentials()?;
        let swarm = serve_peers(&config, credentials, &keys, origin, &mut registry).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(follow_members(raft.clone(), swarm.clone()));
        services.start(&raft, &mut tasks);
        let token_uses = Arc::new(TokenUses::default());
        let (uses, group) = (Arc::clone(&token_uses), raft.clone());
        tasks.spawn(async move { uses.run(group).await });
        let row = node_row(&member, &home, &config);
        tasks.spawn(level::keep(raft.clone(), row, config.raft.auto_upgrade));
        let app = App::new(Parts {
            node: id,
            raft,
            store,
            keys,
            accounts: Accounts::new().map_err(|error| anyhow::anyhow!("{error}"))?,
            token_uses,
            intake: Intake::default(),
            metrics: Metrics::new(registry),
            services,
            config,
            lineage: member.lineage,
        });
        let cannot =
            |address| format!("{address} cannot be listened on; is another process there?");
        let address = app.config.http.listen;
        let https = serve(app.clone(), address, Some(certificates.tls()?));
        let https = https.with_context(|| cannot(address))?;
        tasks.spawn(certificates.follow());
        let plain = match app.config.http.plain_listen {
            Some(address) => {
                let plain = serve(app.clone(), address, None);
                Some(plain.with_context(|| cannot(address))?)
            }
            None => None,
        };
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
        // The rest of the cluster may be gone already, and then nobody waits for this.
        let pulls = self.app.services.pulls.write_down();
        let _ = tokio::time::timeout(PULLS_TIMEOUT, pulls).await;
        self.app.raft.shutdown().await;
        Ok(())
    }
}

async fn start_raft(
    home: &Home,
    config: &Config,
    member: &Member,
    registry: &mut Registry,
) -> Result<Raft> {
    let credentials = home.credentials()?;
    let protocol = member.raft_protocol();
    let server = credentials.quinn_server(&protocol, &[Role::Node])?;
    let endpoint = quinn::Endpoint::server(server, config.raft.listen)
        .with_context(|| format!("the Raft port {} cannot be listened on", config.raft.listen))?;
    let transport = Transport {
        endpoint,
        client: credentials.quinn_client(&protocol, &[Role::Node])?,
        server_name: Role::Node.server_name().to_owned(),
        authenticate: Arc::new(|connection| match peer_of(connection) {
            Ok((peer, Role::Node)) => Some(peer),
            _ => None,
        }),
    };
    let config = shoal_raft::Config::new(member.id(), home.raft_folder());
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
