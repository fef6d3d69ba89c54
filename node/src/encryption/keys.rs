//! Data keys as a node has them: opened once with a master key, looked up in the rows each time.
//!
//! Invariants: whether a key seals, opens or is destroyed, the row says at that moment; what is
//! remembered is its bytes. A node whose rows are behind stores nothing as it is for longer than
//! [`PLAIN_TTL`] after the cluster has begun to seal.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use shoal_content::{DataKeyId, ObjectKey};
use shoal_metadata::{
    AuditSource, Command, DataKeyState, Fault, HandedKey, KeyOwner, Memory, Query, Refusal, Secret,
};
use shoal_raft::{ProposeError, Raft};
use tokio::time::Instant;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{Error, MasterKeys};
use crate::clock::now;
use crate::http::problem::chain;
use crate::store::StoreError;
use crate::store::sealed::{DataKey, FoundKey, KEY_BYTES, KeySource};

/// Data keys that are looked at at once.
pub(super) const PAGE_KEYS: usize = 500;
/// How often a key is made for an owner that others give a key, too, or take its keys from.
const TRIES_MAX: usize = 4;
/// How long it counts that the cluster has said that it does not seal yet.
const PLAIN_TTL: Duration = Duration::from_secs(1);

/// See the module's documentation. Clones are the same.
#[derive(Debug, Clone)]
pub struct DataKeys {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    rows: Rows,
    masters: MasterKeys,
    seals: bool,
    opened: Mutex<HashMap<DataKeyId, Arc<DataKey>>>,
    /// When the cluster was asked last, and did not seal yet.
    plain_at: Mutex<Option<Instant>>,
}

#[derive(Debug)]
enum Rows {
    Cluster(Raft),
    /// What a backup brings; nothing is added to it.
    Backup(Memory),
}

type Row = shoal_metadata::DataKey;

impl Rows {
    fn data_key(&self, id: DataKeyId) -> Result<Option<Row>, Fault> {
        match self {
            Self::Cluster(raft) => raft.local().query().data_key(id),
            Self::Backup(rows) => Query::new(rows).data_key(id),
        }
    }

    fn current(&self, owner: &KeyOwner) -> Result<Option<Row>, Fault> {
        match self {
            Self::Cluster(raft) => raft.local().query().current_data_key(owner),
            Self::Backup(rows) => Query::new(rows).current_data_key(owner),
        }
    }

    fn handed(&self, object: &ObjectKey) -> Result<Option<HandedKey>, Fault> {
        match self {
            Self::Cluster(raft) => raft.local().query().handed_key(object),
            Self::Backup(rows) => Query::new(rows).handed_key(object),
        }
    }

    fn page(&self, after: Option<DataKeyId>) -> Result<Vec<Row>, Fault> {
        match self {
            Self::Cluster(raft) => raft.local().query().data_keys(after, PAGE_KEYS),
            Self::Backup(rows) => Query::new(rows).data_keys(after, PAGE_KEYS),
        }
    }
}

impl DataKeys {
    pub fn of_cluster(raft: Raft, masters: MasterKeys, seals: bool) -> Self {
        Self::new(Rows::Cluster(raft), masters, seals)
    }

    pub fn of_backup(rows: Memory, masters: MasterKeys, seals: bool) -> Self {
        Self::new(Rows::Backup(rows), masters, seals)
    }

    fn new(rows: Rows, masters: MasterKeys, seals: bool) -> Self {
        let (opened, plain_at) = (Mutex::default(), Mutex::default());
        Self { inner: Arc::new(Inner { rows, masters, seals, opened, plain_at }) }
    }

    pub fn masters(&self) -> &MasterKeys {
        &self.inner.masters
    }

    /// Whether the settings want objects sealed.
    pub fn seals(&self) -> bool {
        self.inner.seals
    }

    /// Whether this node can open every key: it has each one's master key, and one of each opens.
    ///
    /// # Errors
    /// The first that it cannot.
    pub async fn check(&self) -> Result<(), Error> {
        let mut seen = std::collections::BTreeSet::new();
        let mut after = None;
        loop {
            let page = self.inner.rows.page(after)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.id);
            for key in page {
                let Some((master, wrapped)) = wrapped(&key.state) else { continue };
                if !seen.insert(master.clone()) {
                    continue;
                }
                let known = self.inner.masters.find(master)?;
                known.unwrap(key.id, &wrapped.0).await?;
            }
        }
    }

    /// Drops the bytes of keys that no row has any more.
    pub fn forget_destroyed(&self) {
        let known: Vec<DataKeyId> = self.inner.opened.lock().keys().copied().collect();
        for id in known {
            let row = self.inner.rows.data_key(id);
            if let Ok(row) = row
                && row.is_none_or(|row| wrapped(&row.state).is_none())
            {
                self.inner.opened.lock().remove(&id);
            }
        }
    }

    /// A key's bytes; `None` where it was destroyed.
    pub(super) async fn opened(&self, row: &Row) -> Result<Option<Arc<DataKey>>, Error> {
        let inner = &self.inner;
        let Some((master, wrapped)) = wrapped(&row.state) else { return Ok(None) };
        if let Some(key) = inner.opened.lock().get(&row.id) {
            return Ok(Some(Arc::clone(key)));
        }
        let known = inner.masters.find(master)?;
        let bytes = known.unwrap(row.id, &wrapped.0).await?;
        let key = Arc::new(DataKey { id: row.id, bytes });
        inner.opened.lock().insert(row.id, Arc::clone(&key));
        Ok(Some(key))
    }

    /// Gives `owner` its first key.
    ///
    /// # Errors
    /// Where the cluster refuses it, among others because another node was quicker.
    pub(super) async fn make(&self, owner: &KeyOwner, master: &str) -> Result<(), Error> {
        let Rows::Cluster(raft) = &self.inner.rows else {
            return Err(Error::NotSealing("a backup gets no new keys"));
        };
        let command = self.command(owner, None, master).await?;
        raft.propose(now(), recorded(raft, command)).await?;
        Ok(())
    }

    /// A new key for `owner` in place of `replaces`.
    ///
    /// # Errors
    /// Where this node does not have the master key, or that cannot be asked.
    pub(super) async fn command(
        &self,
        owner: &KeyOwner,
        replaces: Option<DataKeyId>,
        master: &str,
    ) -> Result<Command, Error> {
        let known = self.inner.masters.find(master)?;
        let id = DataKeyId::from_uuid(Uuid::new_v4());
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        aws_lc_rs::rand::fill(&mut bytes[..]).map_err(|_| StoreError::Unavailable {
            doing: "making a data key",
            cause: "the system has no randomness".to_owned(),
        })?;
        let wrapped = Secret(known.wrap(id, &bytes).await?);
        let (owner, master) = (owner.clone(), master.to_owned());
        Ok(Command::MakeDataKey { owner, id, replaces, master, wrapped })
    }

    /// The key that `owner` has now, made where it has none; `None` before sealing has begun.
    ///
    /// # Errors
    /// Where the metadata or the master key do not answer.
    pub async fn kept(&self, owner: &KeyOwner) -> Result<Option<Arc<DataKey>>, Error> {
        let raft = match &self.inner.rows {
            Rows::Cluster(raft) => raft,
            // What is restored belongs to whom the rows say; the cluster's own key opens it, too.
            Rows::Backup(_) => {
                let row = self.inner.rows.current(&KeyOwner::Cluster)?;
                return match row {
                    Some(row) => self.opened(&row).await,
                    None => Ok(None),
                };
            }
        };
        for _ in 0..TRIES_MAX {
            if let Some(row) = self.inner.rows.current(owner)? {
                return self.opened(&row).await;
            }
            let Some(master) = raft.local().query().master_key()? else {
                if self.is_plain(raft).await? {
                    return Ok(None);
                }
                continue;
            };
            match self.make(owner, &master).await {
                // Another node was quicker, or has another master key wrap from now on.
                Ok(())
                | Err(Error::Propose(ProposeError::Refused(
                    Refusal::Exists(_) | Refusal::OtherMasterKey(_),
                ))) => {}
                Err(error) => return Err(error),
            }
            // Until this node has applied it.
            drop(raft.read().await?);
        }
        Err(StoreError::Unavailable {
            doing: "making a data key",
            cause: format!("the keys of {owner} change too often"),
        }
        .into())
    }

    /// Whether the cluster does not seal yet, by more than the rows that this node has.
    async fn is_plain(&self, raft: &Raft) -> Result<bool, Error> {
        let said = *self.inner.plain_at.lock();
        if said.is_some_and(|at| at.elapsed() < PLAIN_TTL) {
            return Ok(true);
        }
        let asked_at = Instant::now();
        let is_plain = raft.read().await?.query().master_key()?.is_none();
        *self.inner.plain_at.lock() = is_plain.then_some(asked_at);
        Ok(is_plain)
    }

    fn raft(&self) -> Option<&Raft> {
        match &self.inner.rows {
            Rows::Cluster(raft) => Some(raft),
            Rows::Backup(_) => None,
        }
    }
}

/// What a node does with keys by itself, for the audit trail.
pub(super) fn recorded(raft: &Raft, command: Command) -> Command {
    let node = raft.status().id.number();
    let source = AuditSource { who: "cluster".to_owned(), node, ..AuditSource::default() };
    Command::Audited { source, command: Box::new(command) }
}

/// The id of the master key that wrapped a key, and what it made of it.
pub(super) fn wrapped(state: &DataKeyState) -> Option<(&String, &Secret)> {
    match state {
        DataKeyState::Kept { master, wrapped } | DataKeyState::Retired { master, wrapped, .. } => {
            Some((master, wrapped))
        }
        DataKeyState::Destroyed { .. } => None,
    }
}

fn store_error(error: Error) -> StoreError {
    match error {
        Error::Store(error) => error,
        Error::OtherMaster { .. } | Error::NoMaster(_) => {
            StoreError::Refused { doing: "opening a data key", cause: error.to_string() }
        }
        error => StoreError::Unavailable { doing: "opening a data key", cause: chain(&error) },
    }
}

#[async_trait]
impl KeySource for DataKeys {
    async fn current(&self, owner: &KeyOwner) -> Result<Option<Arc<DataKey>>, StoreError> {
        if !self.inner.seals {
            return Ok(None);
        }
        self.kept(owner).await.map_err(store_error)
    }

    async fn catch_up(&self) -> Result<(), StoreError> {
        if let Some(raft) = self.raft() {
            drop(raft.read().await.map_err(|error| store_error(error.into()))?);
        }
        Ok(())
    }

    async fn find(&self, id: DataKeyId) -> Result<FoundKey, StoreError> {
        let failed = |error| store_error(error);
        let row = self.inner.rows.data_key(id).map_err(|fault| failed(fault.into()))?;
        let row = match (row, self.raft()) {
            // It may have been made a moment ago at another node.
            (None, Some(raft)) => {
                let view = raft.read().await.map_err(|error| failed(error.into()))?;
                view.query().data_key(id).map_err(|fault| failed(fault.into()))?
            }
            (row, _) => row,
        };
        let Some(row) = row else { return Ok(FoundKey::Unknown) };
        let Some(key) = self.opened(&row).await.map_err(failed)? else {
            return Ok(FoundKey::Destroyed);
        };
        Ok(match row.state {
            DataKeyState::Kept { .. } => FoundKey::Kept(key),
            DataKeyState::Retired { .. } => FoundKey::Retired(key),
            DataKeyState::Destroyed { .. } => FoundKey::Destroyed,
        })
    }

    async fn handed(&self, object: ObjectKey) -> Result<Option<HandedKey>, StoreError> {
        self.inner.rows.handed(&object).map_err(|fault| store_error(fault.into()))
    }
}
