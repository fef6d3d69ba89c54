//! Counts of how many rows refer to an object of central storage.
//!
//! Invariants: an object has a row from its first reference, or from when it was found in storage
//! without one, until it is swept; while its count is
//! zero, the row says since when, and the index of unreferenced objects has it. From then until it
//! is forgotten it is being deleted, and nothing can refer to it: packs and recipes are named by
//! their content, so the same name may be wanted again while its bytes are on their way out.

use std::collections::BTreeSet;

use shoal_content::{ObjectKey, Timestamp};

use super::{Step, Stop};
use crate::command::{Refusal, Response};
use crate::key;
use crate::record::ObjectUse;
use crate::table::{Fault, Read, Table};
use crate::transaction::row;

/// The most objects one command of collection names.
const SWEEP_OBJECTS_MAX: usize = 10_000;

impl<R: Read> Step<'_, R> {
    /// To be asked before [`Self::hold_object`].
    pub(super) fn check_object(&self, object: &ObjectKey) -> Result<(), Stop> {
        if self.rows.has(Table::DeletingObjects, &key::object(object))? {
            return Err(Refusal::BeingDeleted(*object).into());
        }
        Ok(())
    }

    pub(super) fn hold_object(&mut self, object: &ObjectKey) -> Result<(), Fault> {
        let old = self.query().object(object)?;
        if let Some(since) = old.as_ref().and_then(|old| old.unreferenced_since) {
            self.rows.remove(Table::UnreferencedObjects, key::unreferenced(since, object));
        }
        let count = old.map_or(0, |old| old.count) + 1;
        let row = ObjectUse { count, unreferenced_since: None };
        self.rows.put(Table::Objects, key::object(object), &row);
        Ok(())
    }

    pub(super) fn release_object(&mut self, object: &ObjectKey) -> Result<(), Fault> {
        let missing = Fault::Contradiction("an object in use has no count");
        let old = self.query().object(object)?.ok_or(missing)?;
        let count = old.count.checked_sub(1).ok_or(Fault::Contradiction("a count below zero"))?;
        let unreferenced_since = (count == 0).then_some(self.at);
        if let Some(since) = unreferenced_since {
            self.rows.mark(Table::UnreferencedObjects, key::unreferenced(since, object));
        }
        let row = ObjectUse { count, unreferenced_since };
        self.rows.put(Table::Objects, key::object(object), &row);
        Ok(())
    }

    pub(super) fn sweep_objects(
        &mut self,
        candidates: &BTreeSet<ObjectKey>,
        before: Timestamp,
    ) -> Result<Response, Stop> {
        check_bound(candidates)?;
        let mut swept = BTreeSet::new();
        for object in candidates {
            let Some(ObjectUse { count: 0, unreferenced_since: Some(since) }) =
                self.query().object(object)?
            else {
                continue;
            };
            if since < before {
                self.rows.remove(Table::Objects, key::object(object));
                self.rows.remove(Table::UnreferencedObjects, key::unreferenced(since, object));
                self.rows.remove(Table::HandedKeys, key::object(object));
                self.rows.put(Table::DeletingObjects, key::object(object), &self.at);
                swept.insert(*object);
            }
        }
        Ok(Response::Swept(swept))
    }

    pub(super) fn adopt_objects(
        &mut self,
        objects: &BTreeSet<ObjectKey>,
    ) -> Result<Response, Stop> {
        check_bound(objects)?;
        let mut adopted = 0;
        for object in objects {
            let deleting = self.rows.has(Table::DeletingObjects, &key::object(object))?;
            if deleting || self.query().object(object)?.is_some() {
                continue;
            }
            let row = ObjectUse { count: 0, unreferenced_since: Some(self.at) };
            self.rows.put(Table::Objects, key::object(object), &row);
            self.rows.mark(Table::UnreferencedObjects, key::unreferenced(self.at, object));
            adopted += 1;
        }
        Ok(Response::Adopted(adopted))
    }

    pub(super) fn retry_deletion(
        &mut self,
        objects: &BTreeSet<ObjectKey>,
    ) -> Result<Response, Stop> {
        check_bound(objects)?;
        let mut again = BTreeSet::new();
        for object in objects {
            if self.rows.has(Table::DeletingObjects, &key::object(object))? {
                self.rows.put(Table::DeletingObjects, key::object(object), &self.at);
                again.insert(*object);
            }
        }
        Ok(Response::Swept(again))
    }

    pub(super) fn forget_objects(
        &mut self,
        objects: &BTreeSet<ObjectKey>,
        before: Timestamp,
    ) -> Result<Response, Stop> {
        check_bound(objects)?;
        for object in objects {
            let since: Option<Timestamp> =
                row(&self.rows, Table::DeletingObjects, &key::object(object))?;
            if since.is_some_and(|since| since < before) {
                self.rows.remove(Table::DeletingObjects, key::object(object));
            }
        }
        Ok(Response::Done)
    }
}

fn check_bound(objects: &BTreeSet<ObjectKey>) -> Result<(), Refusal> {
    if objects.len() > SWEEP_OBJECTS_MAX {
        return Err(Refusal::Limit(format!("{SWEEP_OBJECTS_MAX} objects at once")));
    }
    Ok(())
}
