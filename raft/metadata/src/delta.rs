//! Bundles that lead from one version of a disk to another: which there are, and who makes one.
//!
//! Found by the image and the two recipes. A row without a bundle remembers that none is worth its
//! bytes, so that nobody makes it again.
//!
//! Invariants: what a row names in storage counts as referred to by it; a row is gone when either of
//! its versions is.
//! Non-goal: what is in a bundle; see `shoal-formats`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use shoal_content::{ImageId, NodeId, ObjectKey, RecipeId, Timestamp};

use crate::key;
use crate::query::Query;
use crate::table::{Fault, Read, Table};
use crate::transaction::row;

/// Bundles of one image; the one that was not used for longest makes room for another.
pub const DELTAS_PER_IMAGE_MAX: usize = 64;
/// Bundles that one command notes or drops.
pub const DELTAS_AT_ONCE_MAX: usize = 1000;

/// Which bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeltaKey {
    pub image: ImageId,
    /// Of the version that its user has.
    pub old: RecipeId,
    /// Of the one that it makes.
    pub new: RecipeId,
}

/// A bundle in storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeltaBundle {
    /// The bundle's own.
    pub recipe: RecipeId,
    /// How long it is.
    pub bytes: u64,
    /// Content of the chunks that it makes, in bytes.
    pub content_bytes: u64,
    /// What the same chunks take in storage, in bytes.
    pub stored_bytes: u64,
    /// Its packs and its recipe.
    pub objects: BTreeSet<ObjectKey>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeltaState {
    /// Whoever finds the lease run out may make it.
    Making {
        node: NodeId,
        lease_until: Timestamp,
    },
    Made(DeltaBundle),
    /// It would save too little.
    Useless,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    pub key: DeltaKey,
    pub state: DeltaState,
    /// About when somebody was last given it, or it came to be.
    pub used_at: Timestamp,
}

impl<R: Read> Query<'_, R> {
    pub fn delta(&self, key: &DeltaKey) -> Result<Option<Delta>, Fault> {
        row(self.read, Table::Deltas, &key::delta(key))
    }

    /// An image's, by their recipes; [`DELTAS_PER_IMAGE_MAX`] at most.
    pub fn deltas(&self, image: ImageId) -> Result<Vec<Delta>, Fault> {
        self.all(Table::Deltas, &key::image(image))
    }

    /// Those of all images behind `after`, at most `limit`.
    pub fn deltas_after(
        &self,
        after: Option<&DeltaKey>,
        limit: usize,
    ) -> Result<Vec<Delta>, Fault> {
        let from = after.map(|after| key::after(key::delta(after))).unwrap_or_default();
        let rows = self.read.scan(Table::Deltas, &from, b"", limit)?;
        rows.iter().map(|(_, bytes)| crate::transaction::decoded(Table::Deltas, bytes)).collect()
    }
}
