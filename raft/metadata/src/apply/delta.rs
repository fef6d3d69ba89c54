//! Bundles between versions: claimed, made, used, dropped.
//!
//! Invariant: a bundle is made by the node whose claim stands, and by one at a time in the cluster.

use std::collections::{BTreeMap, BTreeSet};

use shoal_content::{ImageId, NodeId, RecipeId, Timestamp};

use super::{Step, Stop};
use crate::command::{Event, Refusal, Response, Subject};
use crate::delta::{
    DELTAS_AT_ONCE_MAX, DELTAS_PER_IMAGE_MAX, Delta, DeltaBundle, DeltaKey, DeltaState,
};
use crate::key;
use crate::table::{Fault, Read, Table};

impl<R: Read> Step<'_, R> {
    /// Takes the work of making a bundle, or renews that.
    pub(super) fn claim_delta(
        &mut self,
        of: DeltaKey,
        node: NodeId,
        lease_until: Timestamp,
    ) -> Result<Response, Stop> {
        let image = self.live_image(of.image)?;
        match self.query().delta(&of)?.map(|row| row.state) {
            None => {
                if of.old == of.new || !self.has_recipes(image.id, [of.old, of.new].into())? {
                    return Err(Refusal::NotFound(Subject::Version).into());
                }
                self.make_room_for_delta(image.id)?;
            }
            Some(DeltaState::Making { node: other, lease_until: until }) => {
                if other != node && until > self.at {
                    return Err(Refusal::Leased.into());
                }
            }
            Some(DeltaState::Made(_) | DeltaState::Useless) => {
                return Err(Refusal::Exists(Subject::Delta).into());
            }
        }
        let state = DeltaState::Making { node, lease_until };
        self.put_delta(&Delta { key: of, state, used_at: self.at });
        Ok(Response::Done)
    }

    /// Ends what was claimed: with a bundle, or without one that is worth it.
    pub(super) fn end_delta(
        &mut self,
        of: DeltaKey,
        node: NodeId,
        bundle: Option<DeltaBundle>,
    ) -> Result<Response, Stop> {
        let row = self.query().delta(&of)?.ok_or(Refusal::NotFound(Subject::Delta))?;
        match row.state {
            DeltaState::Making { node: of_node, .. } if of_node == node => {}
            DeltaState::Making { .. } => return Err(Refusal::Leased.into()),
            DeltaState::Made(_) | DeltaState::Useless => {
                return Err(Refusal::Exists(Subject::Delta).into());
            }
        }
        for object in bundle.iter().flat_map(|bundle| &bundle.objects) {
            self.check_object(object)?;
        }
        for object in bundle.iter().flat_map(|bundle| &bundle.objects) {
            self.hold_object(object)?;
        }
        let state = bundle.map_or(DeltaState::Useless, DeltaState::Made);
        self.put_delta(&Delta { key: of, state, used_at: self.at });
        Ok(Response::Done)
    }

    /// What is gone is passed over.
    pub(super) fn note_delta_uses(
        &mut self,
        uses: &BTreeMap<DeltaKey, Timestamp>,
    ) -> Result<Response, Stop> {
        check_bound(uses.len())?;
        for (of, at) in uses {
            if let Some(row) = self.query().delta(of)?
                && row.used_at < *at
            {
                self.rows.put(Table::Deltas, key::delta(of), &Delta { used_at: *at, ..row });
            }
        }
        Ok(Response::Done)
    }

    /// Drops those of them that nobody used since then.
    pub(super) fn drop_deltas(
        &mut self,
        deltas: &BTreeSet<DeltaKey>,
        unused_before: Timestamp,
    ) -> Result<Response, Stop> {
        check_bound(deltas.len())?;
        for of in deltas {
            if let Some(row) = self.query().delta(of)?
                && row.used_at < unused_before
            {
                self.drop_delta(&row)?;
            }
        }
        Ok(Response::Done)
    }

    /// After a version of the image went that had this recipe.
    pub(super) fn drop_deltas_of(&mut self, image: ImageId, recipe: RecipeId) -> Result<(), Fault> {
        let mut deltas = self.query().deltas(image)?;
        deltas.retain(|row| row.key.old == recipe || row.key.new == recipe);
        if deltas.is_empty() {
            return Ok(());
        }
        // The same content may have been published under another number.
        if self.has_recipes(image, [recipe].into())? {
            return Ok(());
        }
        deltas.iter().try_for_each(|row| self.drop_delta(row))
    }

    /// Before all of the image's versions go, so that none of them is looked at for each bundle.
    pub(super) fn drop_all_deltas(&mut self, image: ImageId) -> Result<(), Fault> {
        let deltas = self.query().deltas(image)?;
        deltas.iter().try_for_each(|row| self.drop_delta(row))
    }

    /// Whether the image has versions of all these contents.
    fn has_recipes(&self, image: ImageId, mut left: BTreeSet<RecipeId>) -> Result<bool, Fault> {
        let found = self.query().find_version(image, |version| {
            if let Some(disk) = version.disk {
                left.remove(&disk.recipe);
            }
            Ok(left.is_empty().then_some(()))
        })?;
        Ok(found.is_some())
    }

    fn make_room_for_delta(&mut self, image: ImageId) -> Result<(), Stop> {
        let mut deltas = self.query().deltas(image)?;
        if deltas.len() < DELTAS_PER_IMAGE_MAX {
            return Ok(());
        }
        deltas.retain(|row| match row.state {
            DeltaState::Making { lease_until, .. } => lease_until <= self.at,
            DeltaState::Made(_) | DeltaState::Useless => true,
        });
        let full = Refusal::Limit(format!("{DELTAS_PER_IMAGE_MAX} bundles of one image"));
        let oldest = deltas.iter().min_by_key(|row| (row.used_at, row.key)).ok_or(full)?;
        Ok(self.drop_delta(oldest)?)
    }

    fn put_delta(&mut self, row: &Delta) {
        self.rows.put(Table::Deltas, key::delta(&row.key), row);
        self.events.push(Event::DeltaChanged(row.key));
    }

    fn drop_delta(&mut self, row: &Delta) -> Result<(), Fault> {
        if let DeltaState::Made(bundle) = &row.state {
            for object in &bundle.objects {
                self.release_object(object)?;
            }
        }
        self.rows.remove(Table::Deltas, key::delta(&row.key));
        self.events.push(Event::DeltaChanged(row.key));
        Ok(())
    }
}

fn check_bound(count: usize) -> Result<(), Refusal> {
    if count > DELTAS_AT_ONCE_MAX {
        return Err(Refusal::Limit(format!("{DELTAS_AT_ONCE_MAX} bundles at once")));
    }
    Ok(())
}
