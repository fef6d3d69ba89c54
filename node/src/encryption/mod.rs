//! Encryption at rest: data keys by project, wrapped by a master key that only the nodes have.
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
mod master;
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
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use crate::clock::now;
use crate::config;
use crate::store::{BlobStore, SealedStore, StoreError};

pub use keys::DataKeys;
pub use master::{MasterKey, MasterKeyError, MasterKeys};
pub use rotation::{rotate_data_key, rotate_master_key};
pub use shredding::Shredder;
pub use vault::{Vault, VaultError};

/// How often it is looked at whether sealing can begin.
const INTERVAL: Duration = Duration::from_secs(2);
/// How often a node without a master key looks whether sealing has begun.
const KEYLESS_INTERVAL: Duration = Duration::from_millis(250);

#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    Master(#[from] MasterKeyError),
    #[error(
        "objects of this cluster are sealed, and this node has no master key: set [encryption] \
         master_key_file to the file of {0}"
    )]
    NoMaster(String),
    #[error(
        "data keys of this cluster are wrapped by the master key {wanted}, and this node has {has}: \
         name its file in [encryption] master_key_file or previous_master_key_files"
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

/// The keys of a node that seals, or reads what others have sealed; `None` where nothing is sealed
/// and the settings name no master key.
///
/// # Errors
/// Where what is sealed could not be read by this node, or others might think that it could.
pub async fn open(
    settings: &config::Encryption,
    raft: &Raft,
    node: NodeId,
) -> Result<Option<DataKeys>, Error> {
    let masters = MasterKeys::read(settings)?;
    take_back(raft, node, masters.as_ref().map(MasterKeys::ids).unwrap_or_default()).await?;
    // From here on sealing does not begin before this node has said that it has the key.
    let begun = raft.read().await?.query().master_key()?;
    match (begun, masters) {
        (None, None) => Ok(None),
        (Some(wanted), None) => Err(Error::NoMaster(wanted)),
        (_, Some(masters)) => {
            let keys = DataKeys::of_cluster(raft.clone(), masters, settings.seal);
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
    settings: &config::Encryption,
    rows: Memory,
    store: Arc<dyn BlobStore>,
) -> Result<Arc<dyn BlobStore>, Error> {
    let wanted = shoal_metadata::Query::new(&rows).master_key()?;
    let Some(wanted) = wanted else { return Ok(store) };
    let masters = MasterKeys::read(settings)?.ok_or(Error::NoMaster(wanted))?;
    let keys = DataKeys::of_backup(rows, masters, settings.seal);
    keys.check().await?;
    Ok(Arc::new(SealedStore::new(Arc::clone(&store), store, Arc::new(keys))))
}

/// Says which master keys this node has, begins to seal once all have them, seals the secrets that
/// are not, and forgets keys that were destroyed. Runs until it is dropped.
pub async fn keep(raft: Raft, keys: DataKeys, vault: Vault, node: NodeId) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut waits = false;
    loop {
        ticks.tick().await;
        keys.forget_destroyed();
        match look(&raft, &keys, &vault, node).await {
            Ok(()) => waits = false,
            // It comes again: what is missing is said once.
            Err(Error::Propose(ProposeError::Refused(refusal))) if !waits => {
                warn!(%refusal, "nothing is sealed yet");
                waits = true;
            }
            Err(error) => debug!(%error, "the data keys cannot be looked at now"),
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
