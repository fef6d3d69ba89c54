//! Chunks that were moved: where what a recipe names lies now.
//!
//! A recipe is named by its content and says in which pack each chunk lies, so it cannot be changed
//! when a pack that is mostly garbage is written anew without it. What was moved is listed in another
//! recipe, the *placement*: chunks in the order of their ids, and no extents. Who reads a chunk of a
//! recipe that has a row here looks it up there first, and goes by the recipe itself where it finds
//! nothing.
//!
//! Versions count as referring to the placement and to the packs that it leads to, as they do to any
//! object; those that they need no more they let go of in the same command. A version of the same
//! recipe that is published later refers to what the recipe itself says: while there is a row, it
//! is read by that, and afterwards as the recipe says. One that is made of another version refers to
//! what that one does, and is refused where its chunks were moved meanwhile.
//!
//! Invariants: a row is there exactly while a version refers to its placement, and counts those that
//! do; what a version was read by stays referred to by it until the row says otherwise.
//! Non-goals: which packs are worth it, and writing them (the node's `compaction`).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use shoal_content::{Digest, ImageId, ObjectKey, RecipeId, Timestamp};

use crate::key;
use crate::query::Query;
use crate::table::{Fault, Read, Table};
use crate::transaction::{decoded, row};

/// Versions that one command moves.
pub const MOVED_VERSIONS_MAX: usize = 1000;
/// Objects that one command takes from versions, and that all its recipes together lead to.
pub const MOVED_OBJECTS_MAX: usize = 50_000;
/// References to objects that one command adds and drops.
pub const MOVED_REFERENCES_MAX: usize = 500_000;
/// Images that one command says are looked through.
pub const SETTLED_IMAGES_MAX: usize = 1000;

/// Where moved chunks of a recipe are found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relocation {
    pub placement: RecipeId,
    /// How many versions refer to the placement for this recipe.
    pub versions: u64,
}

/// Where a recipe's chunks are to be found from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moving {
    /// The placement that there was: compare-and-set.
    pub from: Option<RecipeId>,
    /// The new placement, and the packs that it leads to for this recipe.
    pub objects: BTreeSet<ObjectKey>,
}

/// Chunks that were written anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedChunks {
    pub placement: RecipeId,
    /// Packs in which none of these recipes has a chunk any more.
    pub dropped: BTreeSet<ObjectKey>,
    pub recipes: BTreeMap<RecipeId, Moving>,
    /// Of these recipes. Each that refers to a placement of before has to be among them.
    pub versions: BTreeSet<(ImageId, Digest)>,
}

impl<R: Read> Query<'_, R> {
    /// Where chunks of the recipe were moved to, if any were.
    pub fn relocation(&self, recipe: RecipeId) -> Result<Option<Relocation>, Fault> {
        row(self.read, Table::Relocations, recipe.as_bytes())
    }

    /// Images that lost a disk version and may still hold what they need little of, with the time when
    /// they lost the last one; by id, of those after `after`, at most `limit`.
    pub fn thinned_images(
        &self,
        after: Option<ImageId>,
        limit: usize,
    ) -> Result<Vec<(ImageId, Timestamp)>, Fault> {
        let from = after.map(|after| key::after(key::image(after).to_vec())).unwrap_or_default();
        let rows = self.read.scan(Table::ThinnedImages, &from, b"", limit)?;
        rows.iter()
            .map(|(key, bytes)| {
                let image = ImageId::from_bytes(key::read_id(key, 0)?);
                Ok((image, decoded(Table::ThinnedImages, bytes)?))
            })
            .collect()
    }
}
