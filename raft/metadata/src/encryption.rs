//! The keys that objects in storage are sealed with: data keys, each a project's or the cluster's
//! own, as a master key has wrapped them. The master key itself is never here.
//!
//! A project gets its key with its first object. A rotated one stays for what it has sealed. When
//! the project is removed, its keys retire: nothing new is sealed with them, the objects that other
//! projects refer to are handed over, which leaves their bytes as they are and makes a row with the
//! object's own key, sealed with another data key; then they are destroyed.
//!
//! Invariants: the first data key is the cluster's own, made when every node has the master key;
//! all later ones are wrapped by the same master key, until every node has another. An id is never
//! used twice, and its row stays when the key is destroyed, so that what it sealed is known to be
//! gone for good. The last in an owner's list is the one that seals.
//! Non-goals: ciphers, and who may rotate; here a key is bytes. Keys that were destroyed stay in
//! older snapshots, logs and backups, where only a master key opens them.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use shoal_content::{DataKeyId, ImageId, NodeId, ObjectKey, ProjectName, Timestamp};

use crate::key;
use crate::query::Query;
use crate::record::Secret;
use crate::table::{Fault, Read, Table};
use crate::transaction::{decoded, row};

/// Of a wrapped key; a service that holds master keys may answer more than it was given.
pub const DATA_KEY_BYTES_MAX: usize = 1024;
/// Keys of one owner, rotated ones among them.
pub const DATA_KEYS_PER_OWNER_MAX: usize = 256;
/// Keys, or objects, of one command.
pub const KEY_BATCH_MAX: usize = 1000;
/// Of the id of a master key.
pub const MASTER_KEY_ID_BYTES_MAX: usize = 256;
/// Master keys that one node has.
pub const MASTER_KEYS_MAX: usize = 16;

/// Whose key an object is sealed with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum KeyOwner {
    /// For what belongs to no project.
    Cluster,
    Project(ProjectName),
}

impl fmt::Display for KeyOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster => f.write_str("the cluster"),
            Self::Project(name) => name.fmt(f),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataKey {
    pub id: DataKeyId,
    pub owner: KeyOwner,
    pub created_at: Timestamp,
    pub state: DataKeyState,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DataKeyState {
    /// It seals, or opens what it has sealed; as `master` has wrapped it.
    Kept { master: String, wrapped: Secret },
    /// Its project was removed: it seals nothing any more.
    Retired { master: String, wrapped: Secret, since: Timestamp },
    /// What it sealed cannot be read any more by anyone.
    Destroyed { at: Timestamp },
}

/// An object's own key, as another data key has sealed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedKey {
    /// Which the object is sealed with; where it is another one by now, this counts for nothing.
    pub from: DataKeyId,
    pub to: DataKeyId,
    pub sealed: Secret,
}

impl<R: Read> Query<'_, R> {
    pub fn data_key(&self, id: DataKeyId) -> Result<Option<DataKey>, Fault> {
        row(self.read, Table::DataKeys, &key::data_key(id))
    }

    /// The key that objects of `owner` are sealed with now.
    pub fn current_data_key(&self, owner: &KeyOwner) -> Result<Option<DataKey>, Fault> {
        let Some(id) = self.data_key_ids(owner)?.pop() else { return Ok(None) };
        let missing = Fault::Contradiction("an owner's data key is not there");
        self.data_key(id)?.ok_or(missing).map(Some)
    }

    /// The one that the cluster got first.
    pub fn first_cluster_key(&self) -> Result<Option<DataKey>, Fault> {
        let Some(&id) = self.data_key_ids(&KeyOwner::Cluster)?.first() else { return Ok(None) };
        self.data_key(id)
    }

    /// Whose key what belongs to an image is sealed with.
    pub fn key_owner(&self, image: ImageId) -> Result<KeyOwner, Fault> {
        let image = self.image(image)?;
        Ok(image.map_or(KeyOwner::Cluster, |image| KeyOwner::Project(image.name.project())))
    }

    /// Oldest first.
    pub(crate) fn data_key_ids(&self, owner: &KeyOwner) -> Result<Vec<DataKeyId>, Fault> {
        Ok(row(self.read, Table::OwnerDataKeys, key::key_owner(owner))?.unwrap_or_default())
    }

    /// A page of all data keys by id, of those after `after`.
    pub fn data_keys(&self, after: Option<DataKeyId>, limit: usize) -> Result<Vec<DataKey>, Fault> {
        let from = after.map(|after| key::after(key::data_key(after).to_vec())).unwrap_or_default();
        let rows = self.read.scan(Table::DataKeys, &from, b"", limit)?;
        rows.iter().map(|(_, bytes)| decoded(Table::DataKeys, bytes)).collect()
    }

    /// The master key that wraps new data keys; `None` before the first data key.
    pub fn master_key(&self) -> Result<Option<String>, Fault> {
        let key = self.current_data_key(&KeyOwner::Cluster)?;
        Ok(key.and_then(|key| match key.state {
            DataKeyState::Kept { master, .. } => Some(master),
            DataKeyState::Retired { .. } | DataKeyState::Destroyed { .. } => None,
        }))
    }

    pub fn handed_key(&self, object: &ObjectKey) -> Result<Option<HandedKey>, Fault> {
        row(self.read, Table::HandedKeys, &key::object(object))
    }

    /// The master keys that a node has said to have.
    pub fn node_master_keys(&self, node: NodeId) -> Result<BTreeSet<String>, Fault> {
        Ok(row(self.read, Table::NodeMasterKeys, &key::node(node))?.unwrap_or_default())
    }

    /// The first node that has not said that it has the master key.
    pub fn node_without_master(&self, master: &str) -> Result<Option<NodeId>, Fault> {
        for node in self.nodes()? {
            if !self.node_master_keys(node.id)?.contains(master) {
                return Ok(Some(node.id));
            }
        }
        Ok(None)
    }
}
