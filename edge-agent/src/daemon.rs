//! `shoal-agent run`: puts the parts together and takes them apart again.
//!
//! Start: folder locked, enrolment read, cache opened, swarm up, listeners bound; only then is the
//! agent healthy. Stop (SIGTERM or SIGINT): orders are laid down, unreported, so that they come again
//! with the next start and go on at the chunk; peers are told to ask others; what clients and peers
//! have begun may end within `agent.drain_seconds`; then what the cache copies and hashes, then the
//! swarm, then a last checkpoint of the cache. A kill at any time costs no more than unsynced chunks,
//! which are hashed at the next start.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum_server::tls_rustls::RustlsConfig;
use prometheus_client::registry::Registry;
use shoal_api::NodeAddress;
use shoal_content::{PeerId, RecipeId, Zone};
use shoal_p2p::identity::{Credentials, KeyPair};
use shoal_p2p::{BanStatus, DiscoveryConfig, PeerRole, Swarm, TicketKey, TicketKeys};
use socket2::{SockRef, TcpKeepalive};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::cache::{self, Cache};
use crate::catalogue::Catalogue;
use crate::config::{self, Config, Role};
use crate::control::{self, BanReport, Control, LimitsReport, PeerReport, StatusReport};
use crate::deploy::{ClusterChanged, ClusterNews, Deployments};
use crate::enrolment::{self, DataFolder, Enrolment};
use crate::fetch::Fetcher;
use crate::fetch::download::Downloads;
use crate::metrics::Metrics;
use crate::mirror::{self, Front, Logins, Mirror, Rights, Upstreams};
use crate::nodes::addresses::{Addresses, members};
use crate::nodes::{self, NodeClient, chain};
use crate::transfers::Transfers;
use crate::{advertise, authority, blocking, certificate, limits, offers, status, ticket_keys};

/// Orders read from the stream that nobody has taken yet.
const ORDERS_MAX: usize = 64;
/// A client whose connection is silent is asked whether it is still there, and given up where it
/// answers nothing for so long, or takes nothing of what it is to get.
const PROBE_AFTER: Duration = Duration::from_secs(60);
const VANISHED_AFTER: Duration = Duration::from_secs(300);

/// Why the daemon could not run.
#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    Folder(#[from] enrolment::Error),
    #[error(
        "this agent has joined no cluster: run 'shoal-agent join', or give run a --join-token and --node"
    )]
    NotEnrolled,
    #[error("the enrolment in the data folder is damaged: {0}")]
    Enrolment(String),
    #[error(transparent)]
    Cache(#[from] cache::Error),
    #[error(transparent)]
    Nodes(#[from] nodes::Error),
    #[error("the swarm could not start: {0}")]
    Swarm(String),
    #[error("listening on {address} for the {what} failed")]
    Listen { what: &'static str, address: String, source: std::io::Error },
    #[error("the mirror's certificate cannot be used: {0}")]
    MirrorCertificate(std::io::Error),
    #[error(
        "nothing leads from {0} to a node or anywhere else; set peer.advertise, or peer.listen"
    )]
    Advertise(SocketAddr),
}

/// Runs until `stop` turns true.
pub async fn run(
    config: Config,
    folder: DataFolder,
    limit_settings: watch::Receiver<config::Limits>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), Error> {
    let enrolment = folder.enrolment()?.ok_or(Error::NotEnrolled)?;
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let (cache_config, cache_metrics) = (config.cache.clone(), metrics.cache.clone());
    let cache = Cache::open(&folder.cache_path(), &cache_config, cache_metrics)?;
    let removals = cache.removals();
    let catalogue = Catalogue::open(&folder.catalogue_path())?;
    let known = folder.nodes()?;
    let key = KeyPair::load_or_create(&folder.key_path())
        .map_err(|error| Error::Enrolment(chain(&error)))?;
    let key = Arc::new(key);
    let client = Arc::new(node_client(&config, &enrolment, &key, &known, &metrics)?);
    let swarm = start_swarm(
        &config,
        &enrolment,
        &key,
        Known {
            nodes: &known,
            members: folder.members_path(),
            ticket_keys: ticket_keys::known(&folder, &enrolment)?,
        },
        &cache,
        &mut registry,
    )
    .await?;
    swarm.set_expelled(folder.expelled());
    let (nodes, lists) = watch::channel(known.clone());
    let mut addresses = Addresses::new(swarm.clone(), lists, config.peer.listen);
    addresses.look_up().await;
    let downloads = Downloads::new(cache.clone(), swarm.clone());
    downloads.set_nodes(&known);
    let limits_shown = limits::Shown::default();
    let fetcher = Fetcher {
        cache: cache.clone(),
        catalogue,
        nodes: client.clone(),
        downloads: downloads.clone(),
        delta: crate::fetch::delta::Means {
            config: config.delta.clone(),
            limits: limits_shown.clone(),
        },
    };
    let transfers = Transfers::new(metrics.agent.clone(), limits_shown.clone());
    let deployments = Deployments::new(fetcher.clone(), transfers.clone(), limits_shown.clone());
    let parts = Parts {
        config,
        enrolment,
        folder: Arc::new(folder),
        metrics,
        cache,
        client,
        swarm,
        fetcher,
        transfers,
        deployments,
        limit_settings,
        limits_shown,
        nodes,
    };
    let (mut servers, mut background) = (JoinSet::new(), JoinSet::new());
    let drain = parts.listen(&mut servers, &mut background, Arc::new(registry), &key).await?;
    parts.background(&mut background, addresses, removals);
    info!(peer = %key.peer_id(), address = %parts.swarm.local_address(), "agent running");

    // An error means that nobody can ask for a stop any more.
    let _ = stop.wait_for(|stop| *stop).await;
    info!("stopping");
    background.shutdown().await;
    parts.take_down(servers, &drain).await;
    info!("stopped");
    Ok(())
}

/// What the running agent is made of.
struct Parts {
    config: Config,
    enrolment: Enrolment,
    folder: Arc<DataFolder>,
    metrics: Metrics,
    cache: Cache,
    client: Arc<NodeClient>,
    swarm: Swarm,
    fetcher: Fetcher,
    transfers: Transfers,
    deployments: Deployments,
    limit_settings: watch::Receiver<config::Limits>,
    limits_shown: limits::Shown,
    /// The list of now.
    nodes: watch::Sender<Vec<NodeAddress>>,
}

impl Parts {
    /// Binds everything that listens, and serves it.
    async fn listen(
        &self,
        servers: &mut JoinSet<()>,
        background: &mut JoinSet<()>,
        registry: Arc<Registry>,
        key: &KeyPair,
    ) -> Result<axum_server::Handle<SocketAddr>, Error> {
        let drain = axum_server::Handle::new();
        if self.config.status.enabled {
            let listener = bind("status", self.config.status.listen).await?;
            serve(servers, listener, None, status::router(registry), &drain)?;
        }
        if self.config.mirror.enabled {
            let config = &self.config.mirror;
            let tls = match (&config.certificate_file, &config.key_file) {
                (Some(certificate), Some(key)) => {
                    let loaded = RustlsConfig::from_pem_file(certificate, key).await;
                    let loaded = loaded.map_err(Error::MirrorCertificate)?;
                    let files = (certificate.clone(), key.clone());
                    let hangups = self.limit_settings.clone();
                    background.spawn(read_again(loaded.clone(), files, hangups));
                    Some(loaded)
                }
                _ => None,
            };
            let upstreams = Upstreams::open(self.folder.path(), &config.upstreams);
            let upstreams = Arc::new(upstreams);
            background.spawn(Arc::clone(&upstreams).follow(self.client.clone()));
            let mirror = Arc::new(Mirror {
                fetcher: self.fetcher.clone(),
                transfers: self.transfers.clone(),
                metrics: self.metrics.agent.clone(),
                peer: key.peer_id(),
                ticket_keys: self.swarm.ticket_keys().clone(),
                scheme: if tls.is_some() { "https" } else { "http" },
                rights: Rights::new(
                    Duration::from_secs(config.rights_seconds),
                    Duration::from_secs(config.rights_offline_seconds),
                ),
                logins: Logins::default(),
                upstreams,
            });
            if let Some(address) = config.hub_listen {
                let listener = bind("mirror of Docker Hub", address).await?;
                let router = mirror::router(mirror.clone(), Front::Hub);
                serve(servers, listener, tls.clone(), router, &drain)?;
            }
            let listener = bind("mirror", config.listen).await?;
            serve(servers, listener, tls, mirror::router(mirror, Front::Cluster), &drain)?;
        }
        let socket = self.config.control_socket();
        let listener = control::bind(&socket).map_err(|source| Error::Listen {
            what: "control socket",
            address: socket.display().to_string(),
            source,
        })?;
        let swarm = self.swarm.clone();
        let control = Arc::new(Control {
            fetcher: self.fetcher.clone(),
            transfers: self.transfers.clone(),
            status: self.status_report(key),
            swarm_status: Box::new(move || {
                serde_json::to_value(swarm.status()).unwrap_or(serde_json::Value::Null)
            }),
        });
        background.spawn(control.serve(listener));
        Ok(drain)
    }

    fn status_report(&self, key: &KeyPair) -> Box<dyn Fn() -> StatusReport + Send + Sync> {
        let mirror = &self.config.mirror;
        let base = StatusReport {
            name: self.enrolment.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            peer: key.peer_id(),
            cluster: self.enrolment.cluster,
            peer_address: String::new(),
            mirror_address: mirror.enabled.then(|| mirror.listen.to_string()),
            orders_connected: false,
            nodes: Vec::new(),
            transfers_running: 0,
            cache_bytes: 0,
            cache_bytes_max: 0,
            recipes: 0,
            limits: LimitsReport::default(),
            banned: BTreeMap::new(),
            peers: Vec::new(),
        };
        let swarm = self.swarm.clone();
        let in_force = self.limits_shown.clone();
        let (cache, client) = (self.cache.clone(), self.client.clone());
        let (transfers, metrics) = (self.transfers.clone(), self.metrics.agent.clone());
        Box::new(move || StatusReport {
            peer_address: swarm.local_address().to_string(),
            orders_connected: metrics.orders_connected.get() == 1,
            nodes: client.urls(),
            transfers_running: transfers.running(),
            cache_bytes: cache.used_bytes(),
            cache_bytes_max: cache.limits().high,
            recipes: cache.holdings().len(),
            limits: {
                let limits = in_force.read();
                LimitsReport {
                    upload: limits.upload.to_string(),
                    download: limits.download.to_string(),
                    until: limits.until.clone(),
                }
            },
            banned: banned(&swarm),
            peers: swarm.status().peers.into_iter().map(PeerReport::from).collect(),
            ..base.clone()
        })
    }

    /// Everything that runs beside.
    fn background(
        &self,
        tasks: &mut JoinSet<()>,
        addresses: Addresses,
        removals: mpsc::UnboundedReceiver<RecipeId>,
    ) {
        tasks.spawn(self.cache.clone().keep_tended(self.config.cache.clone()));
        tasks.spawn(self.cache.clone().keep_scrubbing(self.config.cache.clone()));
        let moved = self.deployments.moved();
        tasks.spawn(offers::follow(self.cache.clone(), self.swarm.clone(), removals, moved));
        tasks.spawn(self.deployments.clone().keep());
        tasks.spawn(offers::begin(self.cache.clone(), self.swarm.clone()));
        tasks.spawn(addresses.follow(self.folder.clone()));
        let peer = &self.config.peer;
        if peer.advertise.is_none() && peer.listen.ip().is_unspecified() {
            let lists = self.nodes.subscribe();
            tasks.spawn(advertise::follow(self.swarm.clone(), peer.listen, lists));
        }
        let (sender, orders) = mpsc::channel(ORDERS_MAX);
        tasks.spawn(nodes::orders::follow(self.client.clone(), sender));
        let authority = authority::Keeper::new(
            self.swarm.clone(),
            self.client.clone(),
            self.folder.clone(),
            self.enrolment.clone(),
        );
        tasks.spawn(self.deployments.clone().serve(orders, self.on_news(authority.clone())));
        tasks.spawn(certificate::keep(self.swarm.clone(), self.client.clone(), authority));
        let (swarm, shown) = (self.swarm.clone(), self.limits_shown.clone());
        tasks.spawn(limits::keep(swarm, self.limit_settings.clone(), shown));
    }

    /// Ends what is left when nothing runs beside any more, in the order of the module's
    /// documentation.
    async fn take_down(&self, mut servers: JoinSet<()>, drain: &axum_server::Handle<SocketAddr>) {
        let bound = Duration::from_secs(self.config.agent.drain_seconds);
        self.deployments.lay_down();
        drain.graceful_shutdown(Some(bound));
        let clients = async { while servers.join_next().await.is_some() {} };
        let (ended, ()) = tokio::join!(self.swarm.retire(bound), clients);
        if !ended {
            warn!("some that other hosts had asked for could not be sent to its end");
        }
        // The swarm's end waits for what its store does.
        self.cache.stop();
        self.swarm.shutdown().await;
        let cache = self.cache.clone();
        if let Some(Err(error)) = blocking(move || cache.sync_all()).await {
            warn!(%error, "the last checkpoint failed; its chunks are hashed at the next start");
        }
    }

    /// Spreads what is new to all that use it, and keeps it.
    fn on_news(&self, authority: authority::Keeper) -> ClusterChanged {
        let keys = ticket_keys::Keeper::new(self.swarm.clone(), self.folder.clone());
        let (client, swarm, folder) =
            (self.client.clone(), self.swarm.clone(), self.folder.clone());
        let (downloads, nodes) = (self.fetcher.downloads.clone(), self.nodes.clone());
        Box::new(move |news| {
            let ClusterNews { nodes: list, ticket_keys, expelled, authorities } = news;
            if let Some(authorities) = authorities {
                authority.take(authorities);
            }
            keys.take(ticket_keys);
            if let Some(expelled) = expelled {
                expel(&swarm, &folder, expelled.into_iter().collect());
            }
            if list.is_empty() || *nodes.borrow() == list {
                return;
            }
            info!(nodes = list.len(), "the list of nodes changed");
            client.set_nodes(&list);
            downloads.set_nodes(&list);
            nodes.send_replace(list);
        })
    }
}

fn banned(swarm: &Swarm) -> BTreeMap<PeerId, BanReport> {
    let report = |(peer, ban): (PeerId, BanStatus)| {
        let BanStatus { reason, seconds_left } = ban;
        (peer, BanReport { reason: reason.to_owned(), seconds_left })
    };
    swarm.banned().into_iter().map(report).collect()
}

/// Has nothing to do with those who were removed from the cluster, in later lives either.
fn expel(swarm: &Swarm, folder: &Arc<DataFolder>, expelled: BTreeSet<PeerId>) {
    if swarm.expelled() == expelled {
        return;
    }
    info!(peers = expelled.len(), "the list of who was removed from the cluster changed");
    swarm.set_expelled(expelled);
    let folder = Arc::clone(folder);
    let swarm = swarm.clone();
    tokio::spawn(async move {
        // Whichever of two comes last, what is kept is what holds then.
        let kept = blocking(move || folder.save_expelled(|| swarm.expelled())).await;
        if let Some(Err(error)) = kept {
            warn!(%error, "the list of who was removed could not be kept");
        }
    });
}

fn node_client(
    config: &Config,
    enrolment: &Enrolment,
    key: &Arc<KeyPair>,
    known: &[NodeAddress],
    metrics: &Metrics,
) -> Result<NodeClient, Error> {
    let extra = match &config.nodes.authority_file {
        Some(path) => nodes::read_authorities(path)?,
        None => Vec::new(),
    };
    let authorities = [enrolment.authority_pem.as_bytes(), &extra];
    Ok(NodeClient::new(
        key.clone(),
        enrolment.cluster,
        &authorities,
        &config.nodes.urls,
        known,
        metrics.agent.clone(),
    )?)
}

/// What earlier runs leave behind of others: the nodes, and a file of other members.
struct Known<'a> {
    nodes: &'a [NodeAddress],
    members: PathBuf,
    ticket_keys: Vec<TicketKey>,
}

async fn start_swarm(
    config: &Config,
    enrolment: &Enrolment,
    key: &Arc<KeyPair>,
    known: Known<'_>,
    cache: &Cache,
    registry: &mut Registry,
) -> Result<Swarm, Error> {
    let authority_pem = enrolment.authority_pem.clone();
    let credentials = Credentials::new(key.clone(), &enrolment.certificate_pem, authority_pem)
        .map_err(|error| Error::Enrolment(chain(&error)))?;
    let discovery = if config.discovery.enabled {
        Some(DiscoveryConfig {
            listen: config.discovery.listen,
            network_key: fixed(&enrolment.network_key, "network key")?,
            bootstrap: members(known.nodes),
            mdns: config.discovery.mdns,
            memory: Some(known.members),
        })
    } else {
        None
    };
    // What a join was told by flags stands where the settings say nothing.
    let role = match (config.agent.role, enrolment.role) {
        (Role::Host, Role::Host) => PeerRole::Host,
        _ => PeerRole::Cache,
    };
    let swarm_config = shoal_p2p::Config {
        credentials,
        listen: config.peer.listen,
        advertise: advertised(config, known.nodes).await?,
        zone: zone(config, enrolment),
        role,
        ticket_keys: TicketKeys::new(known.ticket_keys),
        discovery,
        bulk: config.peer.bulk,
    };
    Swarm::start(swarm_config, Arc::new(cache.clone()), registry)
        .await
        .map_err(|error| Error::Swarm(chain(&error)))
}

fn zone(config: &Config, enrolment: &Enrolment) -> Zone {
    let configured = &config.agent.zone;
    if *configured == Zone::default() { enrolment.zone.clone() } else { configured.clone() }
}

/// The address that peers are told.
async fn advertised(config: &Config, known: &[NodeAddress]) -> Result<SocketAddr, Error> {
    if let Some(address) = config.peer.advertise {
        return Ok(address);
    }
    advertise::found(config.peer.listen, known).await.ok_or(Error::Advertise(config.peer.listen))
}

fn fixed(text: &str, what: &str) -> Result<[u8; 32], Error> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes)
        .map_err(|_| Error::Enrolment(format!("the {what} is not 64 hexadecimal digits")))?;
    Ok(bytes)
}

async fn bind(what: &'static str, address: SocketAddr) -> Result<std::net::TcpListener, Error> {
    let failed = |source| Error::Listen { what, address: address.to_string(), source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let failed = |source| Error::Listen { what, address: address.to_string(), source };
    // Accepted connections inherit them (tcp(7)).
    let socket = SockRef::from(&listener);
    let watched = socket
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(PROBE_AFTER))
        .and_then(|()| socket.set_tcp_user_timeout(Some(VANISHED_AFTER)));
    watched.and_then(|()| listener.into_std()).map_err(failed)
}

/// Reads the mirror's certificate anew whenever the settings are; one that cannot be used changes
/// nothing.
async fn read_again(
    tls: RustlsConfig,
    (certificate, key): (PathBuf, PathBuf),
    mut hangups: watch::Receiver<config::Limits>,
) {
    while hangups.changed().await.is_ok() {
        match tls.reload_from_pem_file(&certificate, &key).await {
            Ok(()) => info!("the mirror's certificate was read anew"),
            Err(error) => warn!(%error, "the mirror's certificate stays as it was"),
        }
    }
}

fn serve(
    tasks: &mut JoinSet<()>,
    listener: std::net::TcpListener,
    tls: Option<RustlsConfig>,
    router: axum::Router,
    drain: &axum_server::Handle<SocketAddr>,
) -> Result<(), Error> {
    let failed = |source| Error::Listen { what: "HTTP", address: String::new(), source };
    let (handle, service) = (drain.clone(), router.into_make_service());
    match tls {
        Some(tls) => {
            let server = axum_server::from_tcp_rustls(listener, tls).map_err(failed)?;
            tasks.spawn(async move {
                if let Err(error) = server.handle(handle).serve(service).await {
                    warn!(%error, "a listener ended");
                }
            });
        }
        None => {
            let server = axum_server::from_tcp(listener).map_err(failed)?;
            tasks.spawn(async move {
                if let Err(error) = server.handle(handle).serve(service).await {
                    warn!(%error, "a listener ended");
                }
            });
        }
    }
    Ok(())
}
