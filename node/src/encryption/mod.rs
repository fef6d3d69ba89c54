//! Encryption at rest: data keys by project, wrapped by a master key that only the nodes have, or a
//! service that they ask.
//!
//! Sealing begins when every node has said that it has the master key: then the leader makes the
//! cluster's own data key, and from then on no node starts that cannot open what is there. Until
//! then, and while `[encryption] seal` is off, objects are stored as they are.
//!
//! A node that has lost a master key says so before it serves anybody, so that sealing does not
//! begin without it. Should it begin all the same, a node that has none stops ([`Keyless`]).
//!
//! Invariants: once sealing has begun, what cannot be sealed is not stored, but for the rest of
//! uploads that were open then; a data key is in a node's memory only while its row has it.
//! Non-goals: the form of sealed objects (`store::sealed`), what the cluster agrees on
//! (`shoal-metadata`, `encryption`).

mod keys;
mod kms;
mod master;
mod program;
mod rotation;
mod shredding;
mod vault;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use shoal_content::NodeId;
use shoal_metadata::{Command, KeyOwner, Memory, Refusal, command_version};
use shoal_raft::{ProposeError, Raft, ReadError};
use thiserror::Error;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tracing::{debug, info, warn};

use crate::clock::now;
use crate::config;
use crate::store::{BlobStore, SealedStore, StoreError};

pub use keys::DataKeys;
pub use master::{MasterKey, MasterKeyError, MasterKeys};
pub use program::KmsError;
pub use rotation::{rotate_data_key, rotate_master_key};
pub use shredding::Shredder;
pub use vault::{Vault, VaultError};

/// How often it is looked at whether sealing can begin.
const INTERVAL: Duration = Duration::from_secs(2);
/// How often a node without a master key looks whether sealing has begun.
const KEYLESS_INTERVAL: Duration = Duration::from_millis(250);
/// How often a service is asked whether it has a new key.
const REFRESH_INTERVAL: Duration = Duration::from_secs(60);
/// How long a node that starts waits for a service that does not answer, and between two calls.
const SERVICE_DEADLINE: Duration = Duration::from_secs(120);
const SERVICE_INTERVAL: Duration = Duration::from_secs(2);

#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    Master(#[from] MasterKeyError),
    #[error(
        "objects of this cluster are sealed, and this node has no master key: set [encryption] \
         master_key_file to the file of {0}, or kms_command to the program of its service (kms-…)"
    )]
    NoMaster(String),
    #[error(
        "data keys of this cluster are wrapped by the master key {wanted}, and this node has {has}: \
         name its file in [encryption] master_key_file or previous_master_key_files, or the program \
         of its service (kms-…) in kms_command or previous_kms_command"
    )]
    OtherMaster { wanted: String, has: String },
    #[error(
        "the cluster counts on a master key that this node has no more, and that cannot be taken \
         back now"
    )]
    TakeBack(#[source] ProposeError),
    #[error("nothing is sealed yet: {0}")]
    NotSealing(&'static str),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the metadata cannot be read")]
    Rows(#[from] shoal_metadata::Fault),
    #[error(transparent)]
    Propose(#[from] ProposeError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The master keys that the settings name. A service that is away is waited for, as storage is.
///
/// # Errors
/// Where there is one that cannot be used, or a service does not come back in time.
pub async fn masters(settings: &config::Encryption) -> Result<Option<MasterKeys>, MasterKeyError> {
    let deadline = Instant::now() + SERVICE_DEADLINE;
    loop {
        match MasterKeys::read(settings).await {
            Err(error) if error.is_retryable() && Instant::now() < deadline => {
                warn!(%error, "the master key cannot be had yet");
                sleep(SERVICE_INTERVAL).await;
            }
            read => return read,
        }
    }
}

/// Sees whether the master key that the settings name can be used, before a node becomes a member of
/// anything. Nothing is waited for.
///
/// # Errors
/// Where it cannot.
pub async fn prove(settings: &config::Encryption) -> Result<(), MasterKeyError> {
    match MasterKeys::read(settings).await? {
        Some(masters) => masters.prove().await,
        None => Ok(()),
    }
}

/// The keys of a node that seals, or reads what others have sealed; `None` where nothing is sealed
/// and the settings name no master key. `seals` is that new objects are to be sealed.
///
/// # Errors
/// Where what is sealed could not be read by this node, or others might think that it could.
pub async fn open(
    masters: Option<MasterKeys>,
    seals: bool,
    raft: &Raft,
    node: NodeId,
) -> Result<Option<DataKeys>, Error> {
    take_back(raft, node, masters.as_ref().map(MasterKeys::ids).unwrap_or_default()).await?;
    // From here on sealing does not begin before this node has said that it has the key.
    let begun = raft.read().await?.query().master_key()?;
    match (begun, masters) {
        (None, None) => Ok(None),
        (Some(wanted), None) => Err(Error::NoMaster(wanted)),
        (_, Some(masters)) => {
            let keys = DataKeys::of_cluster(raft.clone(), masters, seals);
            keys.check().await?;
            Ok(Some(keys))
        }
    }
}

/// Says which master keys the node has, where it has said in an earlier run that it had others.
async fn take_back(raft: &Raft, node: NodeId, masters: BTreeSet<String>) -> Result<(), Error> {
    let said = raft.read().await?.query().node_master_keys(node)?;
    if said.is_subset(&masters) {
        return Ok(());
    }
    let note = Command::NoteMasterKeys { node, masters };
    match raft.propose(now(), note).await {
        // One that was removed has no row, and nobody counts on it.
        Ok(_) | Err(ProposeError::Refused(Refusal::NotFound(_))) => Ok(()),
        Err(error) => Err(Error::TakeBack(error)),
    }
}

/// Watches over a node that has no master key.
#[derive(Debug)]
pub struct Keyless(Raft);

impl Keyless {
    pub fn new(raft: Raft) -> Self {
        Self(raft)
    }

    /// Waits until objects of the cluster are sealed: this node would store what nobody should
    /// read, and give as content what it cannot open.
    pub async fn sealed(&self) -> Error {
        let mut ticks = interval(KEYLESS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self.0.local().query().master_key() {
                Ok(Some(master)) => return Error::NoMaster(master),
                Ok(None) => {}
                Err(error) => debug!(%error, "whether objects are sealed cannot be looked at now"),
            }
        }
    }
}

/// Storage as the cluster whose rows these are would read it.
///
/// # Errors
/// Where its objects are sealed, and this node could not read them.
pub async fn restored(
    masters: Option<MasterKeys>,
    seals: bool,
    rows: Memory,
    store: Arc<dyn BlobStore>,
) -> Result<Arc<dyn BlobStore>, Error> {
    let wanted = shoal_metadata::Query::new(&rows).master_key()?;
    let Some(wanted) = wanted else { return Ok(store) };
    let masters = masters.ok_or(Error::NoMaster(wanted))?;
    let keys = DataKeys::of_backup(rows, masters, seals);
    keys.check().await?;
    Ok(Arc::new(SealedStore::new(Arc::clone(&store), store, Arc::new(keys))))
}

/// Says which master keys this node has, begins to seal once all have them, seals the secrets that
/// are not, and forgets keys that were destroyed. Runs until it is dropped.
pub async fn keep(raft: Raft, keys: DataKeys, vault: Vault, node: NodeId) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut waits, mut is_away) = (false, false);
    let mut refreshed = Instant::now();
    loop {
        ticks.tick().await;
        keys.forget_destroyed();
        if refreshed.elapsed() >= REFRESH_INTERVAL {
            is_away = refresh(keys.masters(), is_away).await;
            refreshed = Instant::now();
        }
        match look(&raft, &keys, &vault, node).await {
            Ok(()) => waits = false,
            Err(Error::Master(error)) if !waits => {
                warn!(%error, "the data keys cannot be looked at now");
                waits = true;
            }
            // It comes again: what is missing is said once.
            Err(Error::Propose(ProposeError::Refused(refusal))) if !waits => {
                warn!(%refusal, "nothing is sealed yet");
                waits = true;
            }
            Err(error) => debug!(%error, "the data keys cannot be looked at now"),
        }
    }
}

/// Says once that a service is away; gives whether it is.
async fn refresh(masters: &MasterKeys, was_away: bool) -> bool {
    match masters.refresh().await {
        Ok(()) => false,
        Err(error) => {
            if !was_away {
                warn!(%error, "what keys the service has cannot be seen; those from before count");
            }
            true
        }
    }
}

async fn look(raft: &Raft, keys: &DataKeys, vault: &Vault, node: NodeId) -> Result<(), Error> {
    let masters = keys.masters().ids();
    let (said, level, begun) = {
        let view = raft.local();
        let query = view.query();
        // One that was removed has no row, and does not come back by itself.
        if query.node(node)?.is_none() {
            return Ok(());
        }
        (query.node_master_keys(node)?, query.level()?, query.master_key()?.is_some())
    };
    let note = Command::NoteMasterKeys { node, masters };
    if level < command_version(&note) {
        return Ok(());
    }
    if said != keys.masters().ids() {
        raft.propose(now(), note).await?;
    }
    vault.unlock(raft).await?;
    if !keys.seals() || !raft.status().is_leader {
        return Ok(());
    }
    if begun {
        let command = vault.to_seal(raft.local().query())?;
        if let Some(command) = command {
            raft.propose(now(), keys::recorded(raft, command)).await?;
            info!("the cluster's secrets among the metadata are sealed");
        }
        return Ok(());
    }
    let master = keys.masters().newest().id().to_owned();
    match keys.make(&KeyOwner::Cluster, &master).await {
        Ok(()) => {
            info!(master, "objects are sealed from now on");
            Ok(())
        }
        Err(Error::Propose(ProposeError::Refused(Refusal::Exists(_)))) => Ok(()),
        made => made,
    }
}
