//! Versions come to live in other packs, since their chunks were moved.
//!
//! Nothing is refused because of a version that was published meanwhile: it refers to what its
//! recipe names, and so keeps it. What it could have taken away from it is marked as being deleted,
//! and then it is refused itself.

use std::collections::{BTreeMap, BTreeSet};

use shoal_content::{Digest, ImageId, ObjectKey, RecipeId, Timestamp};

use super::manifest::OBJECTS_PER_VERSION_MAX;
use super::{Step, Stop};
use crate::command::{Refusal, Response, Subject};
use crate::key;
use crate::record::{Disk, Version};
use crate::relocation::{
    MOVED_OBJECTS_MAX, MOVED_REFERENCES_MAX, MOVED_VERSIONS_MAX, MovedChunks, Moving, Relocation,
    SETTLED_IMAGES_MAX,
};
use crate::table::{Fault, Read, Table};
use crate::transaction::row;

impl<R: Read> Step<'_, R> {
    /// Versions that are gone are passed over; it is refused where none is left.
    pub(super) fn move_chunks(&mut self, moved: &MovedChunks) -> Result<Response, Stop> {
        check_moved(moved)?;
        let objects: BTreeSet<&ObjectKey> =
            moved.recipes.values().flat_map(|moving| &moving.objects).collect();
        for object in objects {
            self.check_object(object)?;
        }
        let (mut counts, mut there) = (BTreeMap::<RecipeId, Counted>::new(), Vec::new());
        for (image, digest) in &moved.versions {
            let version = self.query().version(*image, digest)?;
            let Some(disk) = version.and_then(|version| version.disk) else { continue };
            let Some(moving) = moved.recipes.get(&disk.recipe) else { continue };
            if disk.objects.len() + moving.objects.len() > OBJECTS_PER_VERSION_MAX {
                let text = format!("{OBJECTS_PER_VERSION_MAX} objects of one version");
                return Err(Refusal::Limit(text).into());
            }
            let counted = counts.entry(disk.recipe).or_default();
            counted.all += 1;
            counted.moved_before += u64::from(refers_to(&disk, moving.from));
            there.push((*image, digest));
        }
        if there.is_empty() {
            return Err(Refusal::NotFound(Subject::Version).into());
        }
        for (recipe, counted) in &counts {
            let row = self.query().relocation(*recipe)?;
            let from = moved.recipes.get(recipe).and_then(|moving| moving.from);
            let is_whole = match &row {
                None => from.is_none(),
                Some(row) => {
                    from == Some(row.placement)
                        && row.placement != moved.placement
                        && row.versions == counted.moved_before
                }
            };
            if !is_whole {
                return Err(Refusal::Changed(Subject::Version).into());
            }
        }

        for (image, digest) in there {
            self.move_version(image, digest, moved)?;
        }
        for (recipe, counted) in counts {
            let row = Relocation { placement: moved.placement, versions: counted.all };
            self.rows.put(Table::Relocations, recipe.as_bytes(), &row);
        }
        Ok(Response::Done)
    }

    fn move_version(
        &mut self,
        image: ImageId,
        digest: &Digest,
        moved: &MovedChunks,
    ) -> Result<(), Fault> {
        let gone = || Fault::Contradiction("a version that was just there is gone");
        let mut version: Version = self.query().version(image, digest)?.ok_or_else(gone)?;
        let disk = version.disk.as_mut().ok_or_else(gone)?;
        let Moving { from, objects } = moved.recipes.get(&disk.recipe).ok_or_else(gone)?;
        let from = from.map(ObjectKey::Recipe);
        for object in objects {
            if disk.objects.insert(*object) {
                self.hold_object(object)?;
            }
        }
        for object in moved.dropped.iter().chain(&from) {
            if disk.objects.remove(object) {
                self.release_object(object)?;
            }
        }
        self.rows.put(Table::Versions, key::image_digest(image, digest), &version);
        Ok(())
    }

    /// To be asked before a version comes: it may be made of another one, which refers to a placement,
    /// and has to refer to the one that there is.
    pub(super) fn check_placement(&self, disk: &Disk) -> Result<(), Stop> {
        let own = ObjectKey::Recipe(disk.recipe);
        let is_placement =
            |object: &&ObjectKey| matches!(object, ObjectKey::Recipe(_)) && **object != own;
        let mut named = disk.objects.iter().filter(is_placement).peekable();
        if named.peek().is_none() {
            return Ok(());
        }
        let row = self.query().relocation(disk.recipe)?;
        let known = row.map(|row| ObjectKey::Recipe(row.placement));
        match named.all(|object| Some(*object) == known) {
            true => Ok(()),
            false => Err(Refusal::Changed(Subject::Version).into()),
        }
    }

    /// After a disk version came.
    pub(super) fn join_relocation(&mut self, disk: &Disk) -> Result<(), Fault> {
        if let Some(row) = self.query().relocation(disk.recipe)?
            && refers_to(disk, Some(row.placement))
        {
            let row = Relocation { versions: row.versions + 1, ..row };
            self.rows.put(Table::Relocations, disk.recipe.as_bytes(), &row);
        }
        Ok(())
    }

    /// After a disk version went.
    pub(super) fn leave_relocation(&mut self, image: ImageId, disk: &Disk) -> Result<(), Fault> {
        if let Some(row) = self.query().relocation(disk.recipe)?
            && refers_to(disk, Some(row.placement))
        {
            let key = disk.recipe.as_bytes();
            match row.versions.checked_sub(1) {
                None => return Err(Fault::Contradiction("a placement that nothing refers to")),
                Some(0) => self.rows.remove(Table::Relocations, key),
                Some(versions) => {
                    self.rows.put(Table::Relocations, key, &Relocation { versions, ..row });
                }
            }
        }
        if self.keeps_catalog()? {
            self.rows.put(Table::ThinnedImages, key::image(image), &self.at);
        }
        Ok(())
    }

    /// One that lost another version since then is to be looked through again.
    pub(super) fn settle_images(
        &mut self,
        images: &BTreeMap<ImageId, Timestamp>,
    ) -> Result<Response, Stop> {
        if images.len() > SETTLED_IMAGES_MAX {
            return Err(Refusal::Limit(format!("{SETTLED_IMAGES_MAX} images at once")).into());
        }
        for (image, since) in images {
            let key = key::image(*image);
            let noted: Option<Timestamp> = row(&self.rows, Table::ThinnedImages, &key)?;
            if noted == Some(*since) {
                self.rows.remove(Table::ThinnedImages, key);
            }
        }
        Ok(Response::Done)
    }
}

/// Versions of one recipe.
#[derive(Debug, Default)]
struct Counted {
    all: u64,
    /// Of those, so many refer to the placement that there was.
    moved_before: u64,
}

fn refers_to(disk: &Disk, placement: Option<RecipeId>) -> bool {
    placement.is_some_and(|placement| disk.objects.contains(&ObjectKey::Recipe(placement)))
}

fn check_moved(moved: &MovedChunks) -> Result<(), Refusal> {
    let limit = |most: usize, what: &str| Err(Refusal::Limit(format!("{most} {what} at once")));
    if moved.versions.len() > MOVED_VERSIONS_MAX {
        return limit(MOVED_VERSIONS_MAX, "versions");
    }
    let lengths = moved.recipes.values().map(|moving| moving.objects.len());
    let all = lengths.clone().fold(moved.dropped.len(), usize::saturating_add);
    if all > MOVED_OBJECTS_MAX {
        return limit(MOVED_OBJECTS_MAX, "objects");
    }
    let longest = lengths.max().unwrap_or(0) + moved.dropped.len();
    if longest.saturating_mul(moved.versions.len()) > MOVED_REFERENCES_MAX {
        return limit(MOVED_REFERENCES_MAX, "references");
    }
    let placement = ObjectKey::Recipe(moved.placement);
    let is_pack = |object: &ObjectKey| matches!(object, ObjectKey::Pack(_));
    let sound = moved.dropped.iter().all(is_pack)
        && moved.recipes.values().all(|Moving { from, objects }| {
            *from != Some(moved.placement)
                && objects.contains(&placement)
                && objects.iter().all(|one| is_pack(one) || *one == placement)
                && objects.is_disjoint(&moved.dropped)
        })
        && !moved.recipes.contains_key(&moved.placement);
    match sound {
        true => Ok(()),
        false => Err(Refusal::Changed(Subject::Version)),
    }
}
