//! Data keys: made, wrapped anew, retired with their project, destroyed.

use std::collections::{BTreeMap, BTreeSet};

use shoal_content::{DataKeyId, NodeId, ObjectKey, Timestamp};

use super::{Step, Stop};
use crate::command::{Refusal, Response, Subject};
use crate::encryption::{
    DATA_KEY_BYTES_MAX, DATA_KEYS_PER_OWNER_MAX, DataKey, DataKeyState, HandedKey, KEY_BATCH_MAX,
    KeyOwner, MASTER_KEY_ID_BYTES_MAX, MASTER_KEYS_MAX,
};
use crate::key;
use crate::record::Secret;
use crate::table::{Fault, Read, Table};

impl<R: Read> Step<'_, R> {
    /// Refused where the owner has another key than `replaces`: of two nodes that make one at once
    /// one does.
    pub(super) fn make_data_key(
        &mut self,
        owner: KeyOwner,
        id: DataKeyId,
        replaces: Option<DataKeyId>,
        (master, wrapped): (String, Secret),
    ) -> Result<Response, Stop> {
        check_wrapped(&master, &wrapped)?;
        let mut ids = self.query().data_key_ids(&owner)?;
        if ids.last() != replaces.as_ref() || self.query().data_key(id)?.is_some() {
            return Err(Refusal::Exists(Subject::DataKey).into());
        }
        if ids.len() >= DATA_KEYS_PER_OWNER_MAX {
            let text = format!("{DATA_KEYS_PER_OWNER_MAX} data keys of one project");
            return Err(Refusal::Limit(text).into());
        }
        match self.query().master_key()? {
            Some(wraps) if wraps != master => return Err(Refusal::OtherMasterKey(wraps).into()),
            Some(_) => {}
            // From now on no node starts without it.
            None if owner == KeyOwner::Cluster => self.check_master_key(&master)?,
            None => return Err(Refusal::NotFound(Subject::DataKey).into()),
        }
        ids.push(id);
        let state = DataKeyState::Kept { master, wrapped };
        self.rows.put(Table::OwnerDataKeys, key::key_owner(&owner), &ids);
        self.put_data_key(&DataKey { id, owner, created_at: self.at, state });
        Ok(Response::Done)
    }

    pub(super) fn wrap_data_keys(
        &mut self,
        master: &str,
        keys: BTreeMap<DataKeyId, Secret>,
    ) -> Result<Response, Stop> {
        check_batch(keys.len())?;
        self.check_master_key(master)?;
        for wrapped in keys.values() {
            check_wrapped(master, wrapped)?;
        }
        for (id, wrapped) in keys {
            let Some(key) = self.query().data_key(id)? else { continue };
            let master = master.to_owned();
            let state = match key.state {
                DataKeyState::Kept { .. } => DataKeyState::Kept { master, wrapped },
                DataKeyState::Retired { since, .. } => {
                    DataKeyState::Retired { master, wrapped, since }
                }
                DataKeyState::Destroyed { .. } => continue,
            };
            self.put_data_key(&DataKey { state, ..key });
        }
        Ok(Response::Done)
    }

    /// Every node has to have said that it has it.
    fn check_master_key(&self, master: &str) -> Result<(), Stop> {
        match self.query().node_without_master(master)? {
            Some(node) => Err(Refusal::MasterKeyMissing { node, master: master.to_owned() }.into()),
            None => Ok(()),
        }
    }

    fn put_data_key(&mut self, key: &DataKey) {
        self.rows.put(Table::DataKeys, key::data_key(key.id), key);
    }

    /// Who gets the name later gets keys of its own.
    pub(super) fn retire_data_keys(&mut self, owner: &KeyOwner) -> Result<(), Fault> {
        for id in self.query().data_key_ids(owner)? {
            let Some(key) = self.query().data_key(id)? else { continue };
            if let DataKeyState::Kept { master, wrapped } = key.state {
                let state = DataKeyState::Retired { master, wrapped, since: self.at };
                self.put_data_key(&DataKey { state, ..key });
            }
        }
        self.rows.remove(Table::OwnerDataKeys, key::key_owner(owner));
        Ok(())
    }

    /// Only what is in use goes over, and only to a key that stays. One of a project that is not
    /// there (it was removed, and an upload to it went on) would retire with nothing.
    pub(super) fn hand_over_objects(
        &mut self,
        objects: &BTreeMap<ObjectKey, HandedKey>,
    ) -> Result<Response, Stop> {
        check_batch(objects.len())?;
        for handed in objects.values() {
            check_length(&handed.sealed)?;
        }
        for (object, handed) in objects {
            let used = self.query().object(object)?.is_some_and(|used| used.count > 0);
            if used && self.stays(handed.to)? {
                self.rows.put(Table::HandedKeys, key::object(object), handed);
            }
        }
        Ok(Response::Done)
    }

    fn stays(&self, id: DataKeyId) -> Result<bool, Fault> {
        let Some(key) = self.query().data_key(id)? else { return Ok(false) };
        let there = match &key.owner {
            KeyOwner::Cluster => true,
            KeyOwner::Project(name) => self.query().project(name)?.is_some(),
        };
        Ok(there && matches!(key.state, DataKeyState::Kept { .. }))
    }

    pub(super) fn destroy_data_keys(
        &mut self,
        keys: &BTreeSet<DataKeyId>,
        retired_before: Timestamp,
    ) -> Result<Response, Stop> {
        check_batch(keys.len())?;
        for id in keys {
            let Some(key) = self.query().data_key(*id)? else { continue };
            if let DataKeyState::Retired { since, .. } = key.state
                && since < retired_before
            {
                let state = DataKeyState::Destroyed { at: self.at };
                self.put_data_key(&DataKey { state, ..key });
            }
        }
        Ok(Response::Done)
    }

    /// A node that says that it has none is as one that has never said anything.
    pub(super) fn note_master_keys(
        &mut self,
        node: NodeId,
        masters: &BTreeSet<String>,
    ) -> Result<Response, Stop> {
        if self.query().node(node)?.is_none() {
            return Err(Refusal::NotFound(Subject::Node).into());
        }
        if masters.len() > MASTER_KEYS_MAX
            || masters.iter().any(|id| id.len() > MASTER_KEY_ID_BYTES_MAX)
        {
            return Err(Refusal::Limit(format!("{MASTER_KEYS_MAX} master keys")).into());
        }
        match masters.is_empty() {
            true => self.rows.remove(Table::NodeMasterKeys, key::node(node)),
            false => self.rows.put(Table::NodeMasterKeys, key::node(node), masters),
        }
        Ok(Response::Done)
    }
}

fn check_batch(length: usize) -> Result<(), Refusal> {
    match length {
        0..=KEY_BATCH_MAX => Ok(()),
        _ => Err(Refusal::Limit(format!("{KEY_BATCH_MAX} at once"))),
    }
}

fn check_length(secret: &Secret) -> Result<(), Refusal> {
    match secret.0.len() {
        1..=DATA_KEY_BYTES_MAX => Ok(()),
        _ => Err(Refusal::Limit(format!("{DATA_KEY_BYTES_MAX} bytes of a key"))),
    }
}

fn check_wrapped(master: &str, wrapped: &Secret) -> Result<(), Refusal> {
    if master.len() > MASTER_KEY_ID_BYTES_MAX {
        return Err(Refusal::Limit(format!("{MASTER_KEY_ID_BYTES_MAX} bytes of a key's id")));
    }
    check_length(wrapped)
}
