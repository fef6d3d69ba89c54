//! Which packs of an image, or of several ones, are mostly garbage, and who needs what of them.
//!
//! Recipes are read one at a time: first for the least that each pack has to keep, then, of the packs
//! that may be thin, for the chunks themselves. Whatever is found is true of the recipes and
//! placements that were looked at, and of no other: versions that came meanwhile are not among those
//! that are given.
//!
//! Non-goals: which images share a pack, so that they are looked at together (see `shared`); packs that
//! a delta bundle refers to as well.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use shoal_content::{Digest, ImageId, ObjectKey, Recipe, RecipeId};
use shoal_metadata::{Disk, Fault, MOVED_VERSIONS_MAX, Query, Read};
use tokio::task::spawn_blocking;
use tracing::info;

use super::shared::Group;
use super::thin::{Needed, Tally, is_thin};
use super::{Compactor, Error};
use crate::origin::{Place, WINDOW_BYTES};
use crate::store::StoreError;

/// Packs of an image that are looked at.
const PACKS_MAX: usize = 200_000;

/// A pack that is mostly garbage.
#[derive(Debug)]
pub(super) struct ThinPack {
    /// In bytes.
    pub length: u64,
    /// What is needed of it, in the order in which it lies there.
    pub places: Vec<Place>,
}

impl ThinPack {
    pub fn needed_bytes(&self) -> u64 {
        self.places.iter().map(|place| u64::from(place.chunk.stored())).sum()
    }

    /// What is read of it for that, in whole windows.
    pub fn read_bytes(&self) -> u64 {
        let windows = self.places.iter().flat_map(|Place { chunk, .. }| {
            let end = chunk.at + u64::from(chunk.stored());
            chunk.at / WINDOW_BYTES..end.div_ceil(WINDOW_BYTES)
        });
        let windows: BTreeSet<u64> = windows.collect();
        (windows.len() as u64 * WINDOW_BYTES).min(self.length)
    }
}

/// A recipe that versions of the images have.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// As it was when the recipe was looked at.
    pub placement: Option<RecipeId>,
    pub versions: BTreeSet<(ImageId, Digest)>,
    /// Of these, so many refer to the placement.
    moved: u64,
    /// Versions are known to refer to the placement that are not among these, or there are too many.
    is_partial: bool,
}

/// What is to be moved.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// May be none, while there are others that were not looked at.
    pub packs: BTreeMap<ObjectKey, ThinPack>,
    /// Looked at, and to be left: recipes need different parts of them, or one of these recipes cannot
    /// be moved.
    pub left: BTreeSet<ObjectKey>,
    /// Whose versions refer to one of the packs.
    pub recipes: BTreeMap<RecipeId, Held>,
}

/// What became of looking at one image.
#[derive(Debug, Default)]
pub(super) struct Surveyed {
    /// `None` where there is nothing to be moved.
    pub survey: Option<Survey>,
    /// Thin by what this image needs of them, while others refer to them as well; with their lengths in
    /// bytes, those first where most may be saved.
    pub shared: Vec<(ObjectKey, u64)>,
}

/// What the rows say of some images.
#[derive(Debug, Default)]
struct Rows {
    /// How many of their versions refer to each pack.
    packs: BTreeMap<ObjectKey, u64>,
    recipes: BTreeMap<RecipeId, Held>,
}

/// Packs whose chunks are to be listed.
#[derive(Debug)]
struct Chosen {
    /// In bytes.
    lengths: BTreeMap<ObjectKey, u64>,
    /// Whose versions refer to one of them.
    recipes: BTreeMap<RecipeId, Held>,
    left: BTreeSet<ObjectKey>,
}

impl Compactor {
    /// At most `packs_max` packs that nobody else refers to, and none of `skip`.
    pub(super) async fn survey(
        &self,
        image: ImageId,
        skip: &BTreeSet<ObjectKey>,
        packs_max: usize,
    ) -> Result<Surveyed, Error> {
        let images = BTreeSet::from([image]);
        let Some(rows) = rows_of(self.raft.read().await?.query(), &images, |_| true)? else {
            info!(%image, "it lives in too many packs to be compacted");
            return Ok(Surveyed::default());
        };
        let Rows { packs, recipes } = rows;
        let mut tally = Tally::default();
        for (id, held) in &recipes {
            let (recipe, placement) = self.recipe_of(*id, held).await?;
            let add = move || {
                tally.add(&recipe, placement.as_deref());
                tally
            };
            tally = spawn_blocking(add).await.map_err(|_| Error::Interrupted)?;
        }
        let mut thin = Vec::new();
        for (pack, holders) in packs {
            if skip.contains(&pack) {
                continue;
            }
            let (length, needed) = match tally.of(&pack) {
                Some(tallied) => (tallied.length, tallied.needed_min),
                None => match self.store.length(pack).await? {
                    Some(length) => (length, 0),
                    None => continue,
                },
            };
            if is_thin(needed, length, self.limits.below_percent) {
                thin.push((length - needed, pack, length, holders));
            }
        }
        // Where most is saved comes first.
        thin.sort_unstable_by_key(|one| Reverse(*one));
        let mut shared = Vec::new();
        let chosen = {
            let view = self.raft.read().await?;
            let mut lengths = BTreeMap::new();
            for (_, pack, length, holders) in thin {
                let used = view.query().object(&pack)?.map_or(0, |used| used.count);
                if used != holders {
                    shared.push((pack, length));
                } else if lengths.len() < packs_max {
                    lengths.insert(pack, length);
                }
            }
            chosen(view.query(), &images, recipes, lengths)?
        };
        Ok(Surveyed { survey: self.list(chosen).await?, shared })
    }

    /// At most `packs_max` of the packs that images share, and that nobody else refers to, and none of
    /// `skip`; `None` where there is nothing to be moved.
    pub(super) async fn survey_shared(
        &self,
        group: &Group,
        skip: &BTreeSet<ObjectKey>,
        packs_max: usize,
    ) -> Result<Option<Survey>, Error> {
        let chosen = {
            let view = self.raft.read().await?;
            let wanted = |pack: &ObjectKey| group.packs.contains_key(pack) && !skip.contains(pack);
            let Some(rows) = rows_of(view.query(), &group.images, wanted)? else { return Ok(None) };
            let mut lengths = BTreeMap::new();
            for (pack, holders) in rows.packs {
                let used = view.query().object(&pack)?.map_or(0, |used| used.count);
                if used == holders
                    && lengths.len() < packs_max
                    && let Some(length) = group.packs.get(&pack)
                {
                    lengths.insert(pack, *length);
                }
            }
            chosen(view.query(), &group.images, rows.recipes, lengths)?
        };
        self.list(chosen).await
    }

    /// The chunks that are needed of the packs, where those are thin after all.
    async fn list(&self, chosen: Chosen) -> Result<Option<Survey>, Error> {
        let Chosen { lengths, recipes, mut left } = chosen;
        let mut needed = Needed::of(lengths.keys().copied().collect());
        for (id, held) in &recipes {
            let (recipe, placement) = self.recipe_of(*id, held).await?;
            let add = move || {
                needed.add(&recipe, placement.as_deref());
                needed
            };
            needed = spawn_blocking(add).await.map_err(|_| Error::Interrupted)?;
        }
        let mut packs = BTreeMap::new();
        for (pack, places) in needed.into_packs() {
            let Some(&length) = lengths.get(&pack) else { continue };
            let thin = ThinPack { length, places };
            if is_thin(thin.needed_bytes(), length, self.limits.below_percent) {
                packs.insert(pack, thin);
            } else {
                left.insert(pack);
            }
        }
        let is_nothing = packs.is_empty() && left.is_empty();
        Ok((!is_nothing).then_some(Survey { packs, left, recipes }))
    }

    /// A recipe, and the placement that it had when the rows were looked at.
    pub(super) async fn recipe_of(
        &self,
        id: RecipeId,
        held: &Held,
    ) -> Result<(Arc<Recipe>, Option<Arc<Recipe>>), Error> {
        let recipe = self.origin.load_recipe(id).await?;
        let placement = match held.placement {
            None => None,
            // Many recipes have the same.
            Some(placement) => {
                let missing = || StoreError::NotFound(ObjectKey::Recipe(placement));
                Some(self.origin.recipe(placement).await?.ok_or_else(missing)?)
            }
        };
        Ok((recipe, placement))
    }
}

/// What the images' versions refer to of the packs that are `wanted`; `None` where that is too much.
fn rows_of<R: Read>(
    query: Query<'_, R>,
    images: &BTreeSet<ImageId>,
    wanted: impl Fn(&ObjectKey) -> bool,
) -> Result<Option<Rows>, Fault> {
    let mut rows = Rows::default();
    for image in images {
        let too_many = query.find_version(*image, |version| {
            let Some(disk) = version.disk else { return Ok(None) };
            for pack in packs_of(&disk) {
                if wanted(&pack) {
                    *rows.packs.entry(pack).or_default() += 1;
                }
            }
            let held = rows.recipes.entry(disk.recipe).or_default();
            if held.versions.is_empty() {
                held.placement = query.relocation(disk.recipe)?.map(|row| row.placement);
            }
            let moved = held.placement.map(ObjectKey::Recipe);
            held.moved += u64::from(moved.is_some_and(|moved| disk.objects.contains(&moved)));
            held.versions.insert((*image, version.digest));
            Ok((rows.packs.len() > PACKS_MAX).then_some(()))
        })?;
        if too_many.is_some() {
            return Ok(None);
        }
    }
    for (id, held) in &mut rows.recipes {
        let known = query.relocation(*id)?.map_or(0, |row| row.versions);
        held.is_partial = known != held.moved || held.versions.len() > MOVED_VERSIONS_MAX;
    }
    Ok(Some(rows))
}

/// Of the packs those that can be moved, and the recipes whose versions refer to one of them.
fn chosen<R: Read>(
    query: Query<'_, R>,
    images: &BTreeSet<ImageId>,
    recipes: BTreeMap<RecipeId, Held>,
    mut lengths: BTreeMap<ObjectKey, u64>,
) -> Result<Chosen, Fault> {
    let mut holders: BTreeMap<ObjectKey, BTreeSet<RecipeId>> = BTreeMap::new();
    let mut left = BTreeSet::new();
    for image in images {
        query.find_version(*image, |version| {
            let Some(disk) = version.disk else { return Ok(None) };
            let named = (*image, version.digest);
            let held = recipes.get(&disk.recipe).filter(|held| held.versions.contains(&named));
            for pack in packs_of(&disk) {
                if !lengths.contains_key(&pack) {
                    continue;
                }
                if held.is_some_and(|held| !held.is_partial) {
                    holders.entry(pack).or_default().insert(disk.recipe);
                    continue;
                }
                lengths.remove(&pack);
                // Else it came meanwhile.
                if held.is_some() {
                    left.insert(pack);
                }
            }
            Ok(None::<()>)
        })?;
    }
    let holding: BTreeSet<RecipeId> =
        lengths.keys().filter_map(|pack| holders.get(pack)).flatten().copied().collect();
    let recipes = recipes.into_iter().filter(|(id, _)| holding.contains(id)).collect();
    Ok(Chosen { lengths, recipes, left })
}

fn packs_of(disk: &Disk) -> impl Iterator<Item = ObjectKey> {
    disk.objects.iter().copied().filter(|object| matches!(object, ObjectKey::Pack(_)))
}
