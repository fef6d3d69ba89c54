//! What every handler is given: the node's parts, put together once at the start.

use std::sync::Arc;

use shoal_content::{ClusterId, NodeId, Timestamp};
use shoal_metadata::{AuditResult, Cluster, Command, KeyPurpose, Refusal, Response, SecretPlace};
use shoal_p2p::identity::KeyPair;
use shoal_raft::{ProposeError, Raft, ReadError, View};
use tracing::instrument;

use crate::api::Services;
use crate::audit::named;
use crate::authorities::Authorities;
use crate::clock;
use crate::config::Config;
use crate::encryption::{DataKeys, VaultError};
use crate::http::auth::directory::Directory;
use crate::http::auth::issuer::Issuers;
use crate::http::auth::{Accounts, Lockout, TokenUses, Verified};
use crate::http::rates::Rates;
use crate::http::{Drain, Readiness};
use crate::keys::Keyring;
use crate::metrics::Metrics;
use crate::registry::Intake;
use crate::store::BlobStore;
use crate::upstreams::Upstreams;

/// Cloning is cheap; clones are the same node.
#[derive(Clone)]
pub struct App {
    inner: Arc<Parts>,
}

/// The parts. All fields are shared by every request.
pub struct Parts {
    pub node: NodeId,
    pub config: Config,
    pub raft: Raft,
    pub store: Arc<dyn BlobStore>,
    pub keys: Keys,
    pub accounts: Accounts,
    pub verified: Verified,
    pub token_uses: Arc<TokenUses>,
    pub lockout: Arc<Lockout>,
    /// Who else vouches for people and programs.
    pub issuers: Issuers,
    pub directory: Directory,
    pub rates: Rates,
    pub intake: Intake,
    /// Where objects are sealed, or can be.
    pub encryption: Option<DataKeys>,
    /// Other registries, whose images are pulled through.
    pub upstreams: Upstreams,
    pub metrics: Metrics,
    pub drain: Drain,
    pub readiness: Readiness,
    /// What `/api/v1` works with.
    pub services: Services,
    /// Which life of a restored cluster this is.
    pub lineage: Option<String>,
}

/// The cluster's keys, read from the replicated metadata at the start.
#[derive(Debug)]
pub struct Keys {
    pub cluster: ClusterId,
    pub authorities: Authorities,
    /// Those that sign.
    pub ring: Keyring,
    /// What is stored or sent to be read here again is sealed with what derives from this one: the
    /// first key for tokens. It stays while those that sign change.
    pub sealing: KeyPair,
    pub network: [u8; 32],
}

impl Keys {
    /// With what opens them where they are sealed: that of `ring`.
    ///
    /// # Errors
    /// Where the cluster's row holds something else than keys, or they cannot be opened.
    pub fn from_row(
        row: &Cluster,
        ring: Keyring,
        authorities: Authorities,
    ) -> Result<Self, KeysError> {
        let open = |place, secret| ring.vault().open(place, secret);
        let first_token = SecretPlace::Signing(KeyPurpose::Token, 0);
        let network = open(SecretPlace::Network, &row.network_key)?;
        Ok(Self {
            cluster: row.id,
            authorities,
            sealing: KeyPair::from_pkcs8_der(&open(first_token, &row.token_key)?)?,
            network: <[u8; 32]>::try_from(&network[..])
                .map_err(|_| shoal_p2p::identity::Error::Key)?,
            ring,
        })
    }
}

/// Why the cluster's keys cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error(transparent)]
    Identity(#[from] shoal_p2p::identity::Error),
    #[error(transparent)]
    Sealed(#[from] VaultError),
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("node", &self.node).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("node", &self.inner.node).finish_non_exhaustive()
    }
}

impl std::ops::Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.inner
    }
}

impl App {
    pub fn new(parts: Parts) -> Self {
        Self { inner: Arc::new(parts) }
    }

    pub fn now(&self) -> Timestamp {
        clock::now()
    }

    /// Proposes a command with the time of now, on behalf of whoever sent the request.
    ///
    /// # Errors
    /// See [`ProposeError`]; a refusal is among them.
    #[instrument(name = "metadata.propose", level = "debug", skip_all)]
    pub async fn propose(&self, command: Command) -> Result<Response, ProposeError> {
        let audit = &self.services.audit;
        let named = audit.source().and_then(|_| named(self.raft.local().query(), &command));
        let command = if named.is_some() { audit.signed(command) } else { command };
        let answer = self.raft.propose(self.now(), command).await;
        if let (Err(ProposeError::Refused(refusal)), Some((action, target))) = (&answer, named)
            // Nobody was refused anything: it is put together anew.
            && !matches!(refusal, Refusal::Changed(_))
        {
            audit.note(action, target, AuditResult::Refused(refusal.to_string()));
        }
        if let Err(ProposeError::Refused(Refusal::Quota(exceeded))) = &answer {
            self.metrics.refused_by_quota(exceeded.kind);
        }
        answer
    }

    /// A linearizable view of the metadata.
    ///
    /// # Errors
    /// Where no majority answers in time.
    #[instrument(name = "metadata.read", level = "debug", skip_all)]
    pub async fn view(&self) -> Result<View, ReadError> {
        self.raft.read().await
    }
}
