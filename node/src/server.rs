//! The node as a whole: its parts started in order, and stopped in the opposite one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::Router;
use axum_server::tls_rustls::RustlsConfig;
use futures::future::{BoxFuture, LocalBoxFuture};
use prometheus_client::registry::Registry;
use shoal_metadata::AuditPhase;
use shoal_p2p::Swarm;
use shoal_p2p::identity::{Credentials, Role, peer_of};
use shoal_raft::{Raft, Transport};
use thiserror::Error;
use tokio::task::JoinSet;
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::acme::{self, Acme};
use crate::api::{Services, Upkeep};
use crate::audit::Audit;
use crate::authorities::{self, Authorities};
use crate::collection::{Collector, Timing};
use crate::compaction::{self, Compactor};
use crate::config::{Config, StorageKind};
use crate::deploy::{Terms, keep_deadlines, keep_warm};
use crate::encryption::{self, Keyless, MasterKeys, Shredder, Vault};
use crate::founding::{Founding, node_row};
use crate::home::{Home, Member};
use crate::http::auth::directory::Directory;
use crate::http::auth::issuer::Issuers;
use crate::http::auth::{Accounts, Lockout, TokenUses, Verified};
use crate::http::rates::Rates;
use crate::http::{Certificates, Drain, Listening, Readiness, router};
use crate::keys::{self, Keyring};
use crate::leaving;
use crate::level;
use crate::metrics::{CacheReads, Metrics, StorageGauges, show_images};
use crate::origin::{Origin, follow_members, keep_limits, serve_peers};
use crate::ownership::Ownership;
use crate::pulls::Pulls;
use crate::registry::Intake;
use crate::remote::Remote;
use crate::renewal;
use crate::restore;
use crate::retention::Retainer;
use crate::scrub::{Limits, Scrubber};
use crate::state::{App, Keys, Parts};
use crate::stores::{Stores, open_store};
use crate::trash::Trash;
use crate::upstreams::{UpstreamMetrics, Upstreams, keep_projects};
use crate::verification::Verifier;

/// How long a node looks for a leader before it gives up reading the cluster's keys.
const KEYS_DEADLINE: Duration = Duration::from_secs(120);
/// How long a stop waits for the last pulls to be written down.
const PULLS_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a stop waits for what it ends in the background.
const TASKS_TIMEOUT: Duration = Duration::from_secs(5);
const KEYS_INTERVAL: Duration = Duration::from_millis(200);

/// Takes the password of a cluster that was founded.
type Founded<'a> = Box<dyn FnOnce(&str) + Send + 'a>;

/// Why a node cannot go on.
#[derive(Debug, Error)]
pub enum Failure {
    #[error("the HTTP server failed")]
    Http(#[source] std::io::Error),
    #[error(transparent)]
    Encryption(encryption::Error),
}

/// What a node has when its Raft member runs.
struct Ground<'a> {
    config: Config,
    home: Arc<Home>,
    member: Member,
    /// Where the cluster is yet to be founded.
    founding: Option<Founding>,
    founded: Founded<'a>,
    masters: Option<MasterKeys>,
    stores: Stores,
    ownership: Ownership,
    credentials: Credentials,
    raft: Raft,
    registry: Registry,
    cache_reads: CacheReads,
}

/// What else runs of a node that does not answer yet.
#[derive(Default)]
struct Begun {
    swarm: Option<Swarm>,
    tasks: JoinSet<()>,
}

impl Begun {
    /// Of a node that cannot go on: whoever starts on its folder next finds nobody there.
    async fn end(mut self, raft: &Raft) {
        if let Some(swarm) = &self.swarm {
            swarm.shutdown().await;
        }
        let _ = tokio::time::timeout(TASKS_TIMEOUT, self.tasks.shutdown()).await;
        raft.shutdown().await;
    }
}

/// A running node.
///
/// Its calls give boxed futures: who polls one that is not boxed compiles the whole node again.
#[derive(Debug)]
pub struct Server {
    app: App,
    https: Listening,
    plain: Option<Listening>,
    /// For an ACME server.
    challenges: Option<Listening>,
    swarm: Swarm,
    /// Of a node without a master key.
    keyless: Option<Keyless>,
    /// What runs in the background; ends with it.
    tasks: JoinSet<()>,
    home: Arc<Home>,
}

/// Founds a cluster of one node, and stops; gives the administrator's password.
///
/// # Errors
/// With what could not be done.
pub fn found(config: &Config) -> BoxFuture<'_, Result<Zeroizing<String>>> {
    Box::pin(found_here(config))
}

async fn found_here(config: &Config) -> Result<Zeroizing<String>> {
    // A cluster that could not be run afterwards is none that anybody wants.
    encryption::prove(&config.encryption).await?;
    let home = Home::open(&config.node.data_dir)?;
    let founding = Founding::begin(&home)?;
    let member = founding.first_member();
    let credentials = home.credentials()?;
    let raft = start_raft(&home, &credentials, config, &member, &mut Registry::default()).await?;
    let password = founding.finish(&home, config, &raft).await;
    raft.shutdown().await;
    Ok(password?)
}

/// Makes a new cluster of one node out of a backup, and stops (see `restore`).
///
/// # Errors
/// With what could not be done; then nothing was made.
pub fn restore<'a>(
    config: &'a Config,
    plan: restore::Plan<'a>,
) -> LocalBoxFuture<'a, Result<restore::Restored>> {
    Box::pin(restore_here(config, plan))
}

async fn restore_here(config: &Config, plan: restore::Plan<'_>) -> Result<restore::Restored> {
    let open_store = async |home: &Home| {
        let reads = CacheReads::default();
        Ok(open_store(config, home, &reads, &mut Registry::default()).await?.behind)
    };
    let start_raft = async |home: &Home, member: &Member, registry: &mut Registry| {
        start_raft(home, &home.credentials()?, config, member, registry).await
    };
    Ok(Box::pin(restore::restore(config, plan, open_store, start_raft)).await?)
}

impl Server {
    /// Starts the node in its data folder. A node that is no member founds a cluster of its own
    /// first, and hands the password to `founded`.
    ///
    /// # Errors
    /// With what could not be started.
    pub fn start<'a>(
        config: Config,
        founded: impl FnOnce(&str) + Send + 'a,
    ) -> BoxFuture<'a, Result<Self>> {
        Self::start_boxed(config, Box::new(founded))
    }

    fn start_boxed<'a>(config: Config, founded: Founded<'a>) -> BoxFuture<'a, Result<Self>> {
        Box::pin(Self::begin(config, founded))
    }

    async fn begin(config: Config, founded: Founded<'_>) -> Result<Self> {
        let masters = encryption::masters(&config.encryption).await?;
        let home = Arc::new(Home::open(&config.node.data_dir)?);
        let member = home.member()?;
        if let (None, Some(masters)) = (&member, &masters) {
            masters.prove().await?;
        }
        let founding = match &member {
            Some(_) => {
                home.drop_markers();
                None
            }
            None => Some(Founding::begin(&home)?),
        };
        let member = match (member, &founding) {
            (Some(member), _) => member,
            (None, Some(founding)) => founding.first_member(),
            (None, None) => bail!("the node is no member of a cluster"),
        };
        let mut registry = Registry::default();
        let cache_reads = CacheReads::default();
        let stores = open_store(&config, &home, &cache_reads, &mut registry).await;
        let stores = stores.context("storage cannot be opened")?;
        let behind = Arc::clone(&stores.behind);
        let ownership = Ownership::new(behind, member.cluster, member.lineage.clone());
        if !ownership.look_patiently().await? {
            home.check_new_storage(&member)?;
        }
        let credentials = home.credentials()?;
        home.check_raft(&member)?;
        let raft = start_raft(&home, &credentials, &config, &member, &mut registry).await?;
        let ground = Ground {
            config,
            home,
            member,
            founding,
            founded,
            masters,
            stores,
            ownership,
            credentials,
            raft: raft.clone(),
            registry,
            cache_reads,
        };
        let mut begun = Begun::default();
        let server = Box::pin(Self::begin_on(ground, &mut begun)).await;
        if server.is_err() {
            begun.end(&raft).await;
        }
        server
    }

    /// Where this fails, Raft and what is in `begun` are the caller's to end.
    async fn begin_on(ground: Ground<'_>, begun: &mut Begun) -> Result<Self> {
        let Ground { config, home, member, founding, founded, masters, stores, .. } = ground;
        let (raft, mut registry, cache_reads) = (ground.raft, ground.registry, ground.cache_reads);
        let (credentials, ownership) = (ground.credentials, ground.ownership);
        let Begun { swarm: begun_swarm, tasks } = begun;
        let id = member.id();
        let seals = config.encryption.seal;
        let vault = Vault::new(masters.clone(), seals);
        // These rows may be old: what cannot be opened by them is looked at again with the leader's.
        if let Err(error) = vault.unlock(&raft).await {
            warn!("the cluster's data key cannot be opened yet: {error}");
        }
        // Before anybody is asked: others may not let it in any more.
        renewal::renew(&raft, &vault, &credentials, &home);
        show_images(raft.clone(), &mut registry);
        if let Some(founding) = founding {
            founded(&founding.finish(&home, &config, &raft).await?);
        }
        let keys = read_keys(&raft, &vault).await?;
        // Not before a leader answered: who is in no cluster any more claims nothing.
        if ownership.begin().await? {
            home.note_storage(&member)?;
        }
        home.note_begun(&member)?;
        let encryption = encryption::open(masters, seals, &raft, id).await?;
        let keyless = encryption.is_none().then(|| Keyless::new(raft.clone()));
        let store = match &encryption {
            None => stores,
            Some(keys) => {
                let (stores, behind) = stores.sealed(keys);
                let after = Duration::from_secs(config.encryption.shred_after_seconds);
                let shredder =
                    Shredder::new(raft.clone(), behind, keys.clone(), after, &mut registry);
                tasks.spawn(shredder.run());
                tasks.spawn(encryption::keep(raft.clone(), keys.clone(), vault.clone(), id));
                stores
            }
        };
        let certificates = Certificates::load(&config, &keys)?;
        let authorities = keys.authorities.clone();
        registry.register_collector(Box::new(certificates.clone()));
        let seconds = |seconds| Duration::from_secs(seconds);
        let timing = Timing::new(
            seconds(config.collection.grace_seconds),
            seconds(config.collection.interval_seconds),
        );
        let (group, front) = (raft.clone(), Arc::clone(&store.front));
        let collector = Collector::new(group, front, ownership.clone(), timing, &mut registry);
        let limits = Limits::new(seconds(config.scrub.interval_seconds), config.scrub.sample_bytes);
        // What lies in a cache says nothing about storage.
        let Stores { front: store, behind } = store;
        let origin = Origin::new(Arc::clone(&store)).following(raft.clone());
        let compaction = compaction::Limits {
            below_percent: config.collection.compact_below_percent,
            bytes_per_second: config.collection.compact_bytes_per_second,
            grace: timing.grace,
            interval: timing.interval,
        };
        let (group, front) = (raft.clone(), Arc::clone(&store));
        let compactor = Compactor::new(group, front, origin.clone(), compaction, &mut registry);
        let verifier = Verifier::new(raft.clone(), Arc::clone(&behind));
        let (group, scrubbed) = (raft.clone(), Arc::clone(&behind));
        let scrubber = Scrubber::new(group, scrubbed, ownership, limits, &mut registry);
        let gauges = StorageGauges::default();
        gauges.register(&mut registry);
        tasks.spawn(gauges.follow(behind, scrubber.clone(), config.storage.capacity_bytes));
        let key = Arc::clone(home.key());
        let pulls_interval = seconds(config.retention.pulls_interval_seconds);
        let pulls = Pulls::new(raft.clone(), id, pulls_interval, &mut registry);
        let every = seconds(config.retention.interval_seconds);
        let retainer = Retainer::new(raft.clone(), pulls.clone(), every, &mut registry);
        let (group, front, settings) = (raft.clone(), Arc::clone(&store), &config.audit);
        let (waiting, life) = (home.audit_file(), member.life());
        let audit = Audit::new(group, id, front, settings, (&waiting, &life), &mut registry);
        let upkeep = Upkeep { collector, compactor, scrubber, verifier, pulls, retainer, audit };
        let trust = credentials.trust();
        let stored = (&store, origin.clone());
        let services = Services::new(&raft, stored, id, &keys, (key, trust), upkeep)?;
        services.disks.keep_free_space(config.disks.keep_free_space);
        services.disks.parts_are_near(config.storage.kind == StorageKind::Folder);
        services.disks.import_from(Remote::new(config.import.clone())?);
        services.deltas.begin(config.delta.clone(), &mut registry);
        services.disks.make_deltas(services.deltas.clone());
        let begun = services.scanner.begin(&config.scanner, home.scanner_folder(), &mut registry);
        begun.context("the scanner's folder cannot be used")?;
        services.disks.scan_pushed(services.scanner.clone());
        let upstream_metrics = UpstreamMetrics::default();
        upstream_metrics.register(&mut registry);
        let (folder, siblings) = (home.upstreams_folder(), services.siblings.clone());
        let upstreams = Upstreams::new(&config, folder, id, siblings, &upstream_metrics)?;
        let swarm = serve_peers(&config, credentials.clone(), &keys, origin, &mut registry).await?;
        *begun_swarm = Some(swarm.clone());
        let renewing = certificates.clone();
        let (group, folder) = (raft.clone(), Arc::clone(&home));
        tasks.spawn(renewal::keep(group, id, authorities, credentials, folder, renewing));
        tasks.spawn(authorities::rotation::keep(raft.clone(), vault.clone()));
        tasks.spawn(follow_members(raft.clone(), swarm.clone(), services.desk.clone()));
        tasks.spawn(keys::follow(raft.clone(), keys.ring.clone(), swarm.clone()));
        tasks.spawn(keys::rotation::keep(raft.clone(), config.keys.clone(), vault.clone()));
        tasks.spawn(keep_limits(swarm.clone(), config.limits.clone()));
        services.start(&raft, tasks);
        let keep = seconds(u64::from(config.images.deleted_keep_days) * 24 * 3600);
        let trash = Trash::new(raft.clone(), keep, timing.interval);
        tasks.spawn(trash.run());
        let token_uses = Arc::new(TokenUses::default());
        let (uses, group) = (Arc::clone(&token_uses), raft.clone());
        tasks.spawn(async move { uses.run(group).await });
        let lockout = Arc::new(Lockout::new(&config.lockout));
        tasks.spawn(Arc::clone(&lockout).run(raft.clone()));
        tasks.spawn(leaving::keep(raft.clone()));
        tasks.spawn(keep_deadlines(raft.clone()));
        let terms = Terms { scanner: services.scanner.clone(), orders: config.accounts.orders };
        let (audit, desk) = (services.audit.clone(), services.desk.clone());
        tasks.spawn(keep_warm(raft.clone(), audit, terms, desk));
        let row = node_row(&member, &home, &config);
        tasks.spawn(level::keep(raft.clone(), row, config.raft.auto_upgrade));
        let metrics = Metrics::new(registry, cache_reads);
        metrics.restore(&home.counters_file());
        let app = App::new(Parts {
            node: id,
            raft,
            store,
            keys,
            verified: Verified::default(),
            accounts: Accounts::new().map_err(|error| anyhow::anyhow!("{error}"))?,
            token_uses,
            lockout,
            issuers: Issuers::new()?,
            directory: Directory::new(&config.ldap)?,
            rates: Rates::new(&config.rates),
            intake: Intake::default(),
            encryption,
            upstreams,
            metrics,
            drain: Drain::default(),
            readiness: Readiness::default(),
            services,
            config,
            lineage: member.lineage,
        });
        if app.upstreams.all().next().is_some() {
            tasks.spawn(keep_projects(app.clone()));
        }
        let https =
            bind(router(app.clone()), app.config.http.listen, Some(certificates.tls()?)).await?;
        tasks.spawn(certificates.clone().follow());
        let acme = Acme::new(app.raft.clone(), vault, &app.config.acme);
        let challenges = match acme {
            Some(acme) => {
                tasks.spawn(acme.run());
                tasks.spawn(certificates.follow_issued(app.raft.clone()));
                let router = acme::router(app.raft.clone(), &app.config.api_url());
                Some(bind(router, app.config.acme.listen, None).await?)
            }
            None => None,
        };
        let plain = match app.config.http.plain_listen {
            Some(address) => Some(bind(router(app.clone()), address, None).await?),
            None => None,
        };
        info!(node = %id, url = app.config.api_url(), "the node answers");
        let tasks = std::mem::take(tasks);
        Ok(Self { app, https, plain, challenges, swarm, keyless, tasks, home })
    }

    pub fn app(&self) -> &App {
        &self.app
    }

    /// Waits for a reason not to go on.
    pub async fn failed(&mut self) -> Failure {
        let sealed = async {
            match &self.keyless {
                Some(keyless) => keyless.sealed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            error = self.https.failed() => Failure::Http(error),
            error = sealed => Failure::Encryption(error),
        }
    }

    /// Stops after a failure. Nothing under way is waited for: what a node without the master key
    /// still answers is wrong.
    ///
    /// # Errors
    /// Always the failure.
    pub fn fail(self, failure: Failure) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move {
            if matches!(failure, Failure::Encryption(_)) {
                warn!(%failure, "the node stops");
                self.stop_within(Duration::ZERO).await?;
            }
            Err(failure.into())
        })
    }

    /// Leaves the cluster to its other nodes: hands the leadership over, gives clients `notice` to
    /// go elsewhere, then stops.
    ///
    /// # Errors
    /// Where a part had failed before.
    pub fn leave(self, notice: Duration) -> BoxFuture<'static, Result<()>> {
        Box::pin(self.leave_here(notice))
    }

    async fn leave_here(self, notice: Duration) -> Result<()> {
        self.app.drain.give_notice();
        info!(notice_seconds = notice.as_secs(), "the node is about to stop");
        let (handed_over, ()) = tokio::join!(self.app.raft.hand_over(), tokio::time::sleep(notice));
        if let Err(error) = handed_over {
            warn!(%error, "the other nodes elect a leader when this one has stopped");
        }
        self.stop().await
    }

    /// Lets requests end, then stops.
    ///
    /// # Errors
    /// Where a part had failed before.
    pub fn stop(self) -> BoxFuture<'static, Result<()>> {
        let deadline = Duration::from_secs(self.app.config.drain.deadline_seconds);
        Box::pin(self.stop_within(deadline))
    }

    async fn stop_within(mut self, deadline: Duration) -> Result<()> {
        self.app.drain.give_notice();
        self.app.drain.cut_before(deadline);
        let (drain, intake) = (self.app.drain.clone(), self.app.intake.clone());
        tokio::spawn(async move {
            drain.cut().await;
            intake.close();
        });
        self.app.services.close();
        let others = self.plain.into_iter().chain(self.challenges);
        let others = futures::future::join_all(others.map(|other| other.stop(deadline)));
        tokio::join!(self.https.stop(deadline), others);
        self.swarm.shutdown().await;
        // The rest of the cluster may be gone already, and then nobody waits for this.
        let pulls = self.app.services.pulls.write_down();
        let audit = self.app.services.audit.flush(AuditPhase::Ends);
        let last = async { tokio::join!(pulls, audit) };
        let _ = tokio::time::timeout(PULLS_TIMEOUT, last).await;
        // Whoever starts on this folder next finds nobody who still writes there or holds its lock.
        let _ = tokio::time::timeout(TASKS_TIMEOUT, self.tasks.shutdown()).await;
        self.app.raft.shutdown().await;
        self.app.metrics.save(&self.home.counters_file());
        Ok(())
    }
}

async fn bind(router: Router, address: SocketAddr, tls: Option<RustlsConfig>) -> Result<Listening> {
    let listening = Listening::begin(router, address, tls).await;
    listening.with_context(|| format!("{address} cannot be listened on; is another process there?"))
}

async fn start_raft(
    home: &Home,
    credentials: &Credentials,
    config: &Config,
    member: &Member,
    registry: &mut Registry,
) -> Result<Raft> {
    let protocol = member.raft_protocol();
    let mut server = credentials.quinn_server(&protocol, &[Role::Node])?;
    server.transport_config(Arc::new(shoal_raft::quic_settings()));
    let endpoint = quinn::Endpoint::server(server, config.raft.listen)
        .with_context(|| format!("the Raft port {} cannot be listened on", config.raft.listen))?;
    let trust = credentials.trust().clone();
    let transport = Transport {
        endpoint,
        client: credentials.quinn_client(&protocol, &[Role::Node])?,
        server_name: Role::Node.server_name().to_owned(),
        authenticate: Arc::new(move |connection| match peer_of(connection) {
            Ok((peer, Role::Node)) if trust.believes(connection) => Some(peer),
            _ => None,
        }),
    };
    let command_version = config.program.command_version();
    let raft = shoal_raft::Config::new(member.id(), home.raft_folder());
    let config = shoal_raft::Config { command_version, ..raft };
    Ok(Raft::start(config, transport, registry).await?)
}

/// The cluster's keys, as soon as a leader answers.
async fn read_keys(raft: &Raft, vault: &Vault) -> Result<Keys> {
    let deadline = tokio::time::Instant::now() + KEYS_DEADLINE;
    loop {
        let error = match raft.read().await {
            Ok(view) => match view.query().cluster()? {
                Some(row) => {
                    // A member that has just joined has the rows only now.
                    let first = view.query().first_cluster_key()?;
                    vault.unlock_with(first).await?;
                    let ring = Keyring::read(view.query(), vault.clone())?;
                    let authorities = Authorities::read(view.query(), vault.clone())?;
                    return Ok(Keys::from_row(&row, ring, authorities)?);
                }
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
