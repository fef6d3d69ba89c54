//! Packs that versions of several images refer to: which they are, so that all are moved together.
//!
//! No row leads from a pack to its versions, so whoever holds the packs that an image would rather do
//! without is found by reading the rows of all disks, once for all packs of a look. What is found so
//! only says which images to look at together: the look at these counts anew, in one view.
//!
//! An image stays marked while it refers to packs of which it needs little and others need more, since
//! the one that lets go of such a pack may be another. What was judged is remembered with the packs'
//! counts, so that it is looked at again when one of these changes.
//!
//! Invariants: a pack is moved only where the versions of one group are all that refer to it; where
//! data keys are there, a group is of one project, so that what one project alone needs never comes to
//! lie under another one's key. Packs, references and groups are bounded; what is beyond waits for the
//! next look.
//! Non-goals: packs that a delta bundle refers to as well: they are left until that is dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use shoal_content::{ImageId, ObjectKey, Timestamp};
use shoal_metadata::{Fault, ImageKind, Query, Read};
use tokio::task::spawn_blocking;
use tracing::warn;

use super::moving::{Pace, owner_of};
use super::{Compactor, Error};
use crate::http::problem::chain;

/// Packs whose holders are looked for in one look.
const PACKS_MAX: usize = 1024;
/// Images that are looked at together.
const GROUP_IMAGES_MAX: usize = 64;
/// Images' references to packs, in one look and in what is remembered.
const REFERENCES_MAX: usize = 100_000;
/// What was judged counts for so long: one reference may have come for another that went.
const REMEMBERED_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// Images whose versions are read in one view.
const PAGE_IMAGES: usize = 100;

/// Images that are looked at together, and the packs that they share, with their lengths in bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Group {
    pub images: BTreeSet<ImageId>,
    pub packs: BTreeMap<ObjectKey, u64>,
}

/// What an image would do without and others hold, as it was when that was last judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Judged {
    /// When it had lost a version last.
    since: Timestamp,
    at: Instant,
    /// How many referred to each pack.
    counts: BTreeMap<ObjectKey, u64>,
    /// There is nothing else to be judged.
    is_all: bool,
}

impl Judged {
    /// Whether nothing is to be looked at again.
    pub fn is_all(&self) -> bool {
        self.is_all
    }

    /// Without the packs that others refer to `now`.
    fn still(mut self, now: &BTreeMap<ObjectKey, u64>) -> Self {
        let before = self.counts.len();
        self.counts.retain(|pack, count| now.get(pack) == Some(count));
        self.is_all &= self.counts.len() == before;
        self
    }
}

/// What was judged, of images that are still marked: at most [`REFERENCES_MAX`] packs of them.
#[derive(Debug, Default)]
pub(super) struct Memory {
    images: BTreeMap<ImageId, Judged>,
    references: usize,
}

impl Memory {
    /// What is still true of an image that has lost no version since.
    fn take(&mut self, image: ImageId, since: Timestamp) -> Option<Judged> {
        let judged = self.images.remove(&image)?;
        self.references -= judged.counts.len();
        Some(judged).filter(|one| one.since == since && one.at.elapsed() < REMEMBERED_FOR)
    }

    /// Whether there was room for it.
    pub fn keep(&mut self, image: ImageId, judged: Judged) -> bool {
        let references = self.references + judged.counts.len();
        if references > REFERENCES_MAX {
            return false;
        }
        self.references = references;
        self.images.insert(image, judged);
        true
    }
}

/// An image that shares thin packs.
#[derive(Debug)]
struct Sharer {
    since: Timestamp,
    /// When the first of what is known was judged.
    judged_at: Option<Instant>,
    /// Judged before, with what referred to them then as now.
    known: BTreeMap<ObjectKey, u64>,
    /// To be judged.
    packs: BTreeSet<ObjectKey>,
    /// There are more packs.
    is_cut: bool,
}

/// What one look comes upon that several images share.
#[derive(Debug, Default)]
pub(super) struct Sharing {
    sharers: BTreeMap<ImageId, Sharer>,
    /// Their lengths in bytes.
    packs: BTreeMap<ObjectKey, u64>,
    references: usize,
}

impl Sharing {
    pub fn images(&self) -> usize {
        self.sharers.len()
    }

    /// `packs` are thin by what the image needs, and `before` is what was judged of it and is still so.
    pub fn add(
        &mut self,
        image: ImageId,
        since: Timestamp,
        packs: Vec<(ObjectKey, u64)>,
        before: Option<Judged>,
    ) {
        let judged_at = before.as_ref().map(|before| before.at);
        let before = before.map(|before| before.counts).unwrap_or_default();
        let (known, new) = (BTreeMap::new(), BTreeSet::new());
        let mut sharer = Sharer { since, judged_at, known, packs: new, is_cut: false };
        for (pack, length) in packs {
            if let Some(count) = before.get(&pack) {
                sharer.known.insert(pack, *count);
                continue;
            }
            let is_room = self.packs.len() < PACKS_MAX || self.packs.contains_key(&pack);
            if !is_room || self.references == REFERENCES_MAX {
                sharer.is_cut = true;
                continue;
            }
            self.references += 1;
            self.packs.insert(pack, length);
            sharer.packs.insert(pack);
        }
        self.sharers.insert(image, sharer);
    }
}

/// Who refers to a pack.
#[derive(Debug, Default)]
struct Holders {
    references: u64,
    /// One more than may be in a group, at most.
    images: BTreeSet<ImageId>,
}

impl Holders {
    fn note(&mut self, image: ImageId) {
        self.references += 1;
        if self.images.len() <= GROUP_IMAGES_MAX {
            self.images.insert(image);
        }
    }
}

/// What the groups of a look came to.
#[derive(Debug)]
struct Verdict {
    /// How many referred to each pack before its holders were looked for.
    counts: BTreeMap<ObjectKey, u64>,
    /// Not judged: rows changed, or something could not be read.
    open: BTreeSet<ObjectKey>,
}

impl Compactor {
    /// What was judged of an image, as far as it is still so for all that this node knows.
    pub(super) fn recall(
        &self,
        image: ImageId,
        since: Timestamp,
        memory: &mut Memory,
    ) -> Result<Option<Judged>, Fault> {
        let Some(judged) = memory.take(image, since) else { return Ok(None) };
        let now = counts_of(self.raft.local().query(), &judged.counts)?;
        Ok(Some(judged.still(&now)))
    }

    /// Moves what is needed of shared packs that are thin for all who share them. Gives the images of
    /// which nothing is left to be done; the others are remembered.
    pub(super) async fn compact_shared(
        &self,
        sharing: Sharing,
        dry_run: bool,
        pace: &mut Pace,
        memory: &mut Memory,
    ) -> Result<BTreeMap<ImageId, Timestamp>, Error> {
        let verdict = self.judge(&sharing.packs, dry_run, pace).await?;
        if dry_run {
            return Ok(BTreeMap::new());
        }
        let now = counts_of(self.raft.read().await?.query(), &sharing.packs)?;
        let mut settled = BTreeMap::new();
        for (image, sharer) in sharing.sharers {
            let since = sharer.since;
            let judged = verdict.of(sharer, &now);
            let is_done = judged.is_all && judged.counts.is_empty();
            // Without room it is as an image that shares nothing.
            if is_done || !memory.keep(image, judged) {
                settled.insert(image, since);
            }
        }
        Ok(settled)
    }

    async fn judge(
        &self,
        packs: &BTreeMap<ObjectKey, u64>,
        dry_run: bool,
        pace: &mut Pace,
    ) -> Result<Verdict, Error> {
        let mut verdict = Verdict { counts: BTreeMap::new(), open: BTreeSet::new() };
        if packs.is_empty() {
            return Ok(verdict);
        }
        // Before the holders: who comes or goes meanwhile makes a difference then.
        verdict.counts = counts_of(self.raft.read().await?.query(), packs)?;
        let holders = self.holders(packs).await?;
        let shared = closed(self.raft.read().await?.query(), holders, &verdict.counts)?;
        for group in joined(shared, packs) {
            let images = group.images.len();
            match self.compact_group(&group, dry_run, pace).await {
                Ok(true) => {}
                Ok(false) => verdict.open.extend(group.packs.keys()),
                // It would be so each time.
                Err(error @ Error::TooManyChunks) => {
                    warn!(
                        images,
                        error = chain(&error),
                        "the packs that they share stay as they are"
                    );
                }
                Err(error) if error.concerns_all() => return Err(error),
                Err(error) => {
                    warn!(images, error = chain(&error), "what they share cannot be compacted");
                    self.note_failure(&error);
                    verdict.open.extend(group.packs.keys());
                }
            }
        }
        Ok(verdict)
    }

    /// Reads the rows of all disks.
    async fn holders(
        &self,
        packs: &BTreeMap<ObjectKey, u64>,
    ) -> Result<BTreeMap<ObjectKey, Holders>, Error> {
        let mut found: BTreeMap<ObjectKey, Holders> =
            packs.keys().map(|pack| (*pack, Holders::default())).collect();
        let mut after = None;
        loop {
            let view = self.raft.read().await?;
            let look = move || -> Result<_, Fault> {
                let images = view.query().images_by_id(after, PAGE_IMAGES)?;
                for image in images.iter().filter(|image| image.kind == ImageKind::Disk) {
                    view.query().find_version(image.id, |version| {
                        for object in version.disk.iter().flat_map(|disk| &disk.objects) {
                            if let Some(holders) = found.get_mut(object) {
                                holders.note(image.id);
                            }
                        }
                        Ok(None::<()>)
                    })?;
                }
                Ok((found, images.last().map(|image| image.id)))
            };
            let (seen, last) = spawn_blocking(look).await.map_err(|_| Error::Interrupted)??;
            found = seen;
            if last.is_none() {
                return Ok(found);
            }
            after = last;
        }
    }
}

impl Verdict {
    /// What is to be remembered of an image, where so many refer to each pack `now`.
    fn of(&self, sharer: Sharer, now: &BTreeMap<ObjectKey, u64>) -> Judged {
        let Sharer { since, judged_at, known, packs, is_cut } = sharer;
        let (mut counts, mut is_all) = (known, !is_cut);
        for pack in packs {
            // Zero where it was moved, or everybody has let go of it.
            let Some(&count) = now.get(&pack).filter(|count| **count > 0) else { continue };
            if !self.open.contains(&pack) && self.counts.get(&pack) == Some(&count) {
                counts.insert(pack, count);
            } else {
                is_all = false;
            }
        }
        Judged { since, at: judged_at.unwrap_or_else(Instant::now), counts, is_all }
    }
}

/// How many refer to each of them.
fn counts_of<R: Read>(
    query: Query<'_, R>,
    packs: &BTreeMap<ObjectKey, u64>,
) -> Result<BTreeMap<ObjectKey, u64>, Fault> {
    let count = |pack: &ObjectKey| query.object(pack).map(|used| used.map_or(0, |used| used.count));
    packs.keys().map(|pack| Ok((*pack, count(pack)?))).collect()
}

/// The images of packs that nobody but versions of these images refers to, where they are not too many;
/// where data keys are there, only such as are of one project.
fn closed<R: Read>(
    query: Query<'_, R>,
    holders: BTreeMap<ObjectKey, Holders>,
    counts: &BTreeMap<ObjectKey, u64>,
) -> Result<BTreeMap<ObjectKey, BTreeSet<ImageId>>, Fault> {
    let mut closed = BTreeMap::new();
    for (pack, Holders { references, images }) in holders {
        let is_whole = references > 0 && counts.get(&pack) == Some(&references);
        let is_few = images.len() <= GROUP_IMAGES_MAX;
        if is_whole && is_few && owner_of(query, &images)?.is_some() {
            closed.insert(pack, images);
        }
    }
    Ok(closed)
}

/// Images that share packs, together with those that these share others with, as far as that is not too
/// many; each pack is in one group.
fn joined(
    shared: BTreeMap<ObjectKey, BTreeSet<ImageId>>,
    lengths: &BTreeMap<ObjectKey, u64>,
) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (pack, images) in shared {
        let Some(&length) = lengths.get(&pack) else { continue };
        if let Some(group) = groups.iter_mut().find(|group| images.is_subset(&group.images)) {
            group.packs.insert(pack, length);
            continue;
        }
        let touches = |group: &Group| !images.is_disjoint(&group.images);
        let mut all = images.clone();
        all.extend(groups.iter().filter(|group| touches(group)).flat_map(|group| &group.images));
        let mut new = Group { images, packs: BTreeMap::from([(pack, length)]) };
        if all.len() <= GROUP_IMAGES_MAX {
            let touched = groups.extract_if(.., |group| !new.images.is_disjoint(&group.images));
            let packs: Vec<_> = touched.flat_map(|group| group.packs).collect();
            new.packs.extend(packs);
            new.images = all;
        }
        groups.push(new);
    }
    groups
}

#[cfg(test)]
mod tests {
    use shoal_content::PackId;
    use uuid::Uuid;

    use super::*;

    fn image(number: usize) -> ImageId {
        ImageId::from_uuid(Uuid::from_u128(number as u128))
    }

    fn pack(number: usize) -> ObjectKey {
        ObjectKey::Pack(PackId::of(&number.to_be_bytes()))
    }

    fn packs(numbers: impl IntoIterator<Item = usize>) -> Vec<(ObjectKey, u64)> {
        numbers.into_iter().map(|number| (pack(number), 1000)).collect()
    }

    fn counts(of: &[(usize, u64)]) -> BTreeMap<ObjectKey, u64> {
        of.iter().map(|(number, count)| (pack(*number), *count)).collect()
    }

    fn since(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn judged(of: &[(usize, u64)]) -> Judged {
        Judged { since: since(1), at: Instant::now(), counts: counts(of), is_all: true }
    }

    /// The groups' images and packs.
    fn groups(of: &[(usize, &[usize])]) -> BTreeSet<(Vec<ImageId>, BTreeSet<ObjectKey>)> {
        let shared = of.iter().map(|(number, images)| {
            (pack(*number), images.iter().copied().map(image).collect::<BTreeSet<_>>())
        });
        let lengths = packs(of.iter().map(|(number, _)| *number)).into_iter().collect();
        joined(shared.collect(), &lengths)
            .into_iter()
            .map(|group| {
                assert!(group.packs.values().all(|length| *length == 1000));
                (group.images.into_iter().collect(), group.packs.into_keys().collect())
            })
            .collect()
    }

    fn group(images: &[usize], packs: &[usize]) -> (Vec<ImageId>, BTreeSet<ObjectKey>) {
        let images = images.iter().copied().map(image).collect();
        (images, packs.iter().copied().map(pack).collect())
    }

    #[test]
    fn images_are_joined_by_what_they_share() {
        let apart = groups(&[(1, &[1, 2]), (2, &[1, 2]), (3, &[3, 4])]);
        assert_eq!(apart, [group(&[1, 2], &[1, 2]), group(&[3, 4], &[3])].into());
        for bridge in [1, 2, 3] {
            let mut chain: [(usize, &[usize]); 3] = [(1, &[1, 2]), (2, &[3, 4]), (3, &[5, 6])];
            chain[bridge - 1].1 = &[2, 3, 4, 5];
            let ends: &[usize] = match bridge {
                1 => &[2, 3, 4, 5, 6],
                2 => &[1, 2, 3, 4, 5, 6],
                _ => &[1, 2, 3, 4, 5],
            };
            assert_eq!(groups(&chain), [group(ends, &[1, 2, 3])].into(), "{bridge}");
        }
    }

    #[test]
    fn a_group_that_would_be_too_large_stays_apart() {
        let (first, second): (Vec<usize>, Vec<usize>) =
            ((0..GROUP_IMAGES_MAX).collect(), (GROUP_IMAGES_MAX..2 * GROUP_IMAGES_MAX).collect());
        let bridge = [0, GROUP_IMAGES_MAX];
        let of: &[(usize, &[usize])] = &[(1, &first[..]), (2, &second), (3, &bridge), (4, &bridge)];
        let found = groups(of);
        let all: Vec<ObjectKey> = found.iter().flat_map(|(_, packs)| packs).copied().collect();
        assert_eq!(all.len(), 4, "each pack is in one group");
        assert!(found.iter().all(|(images, _)| images.len() <= GROUP_IMAGES_MAX));
        for (number, images) in of {
            let held = found.iter().find(|(_, packs)| packs.contains(&pack(*number)));
            let (together, _) = held.expect("a pack that is in no group");
            assert!(images.iter().all(|number| together.contains(&image(*number))), "{number}");
        }
    }

    #[test]
    fn what_is_beyond_the_bounds_waits() {
        let mut sharing = Sharing::default();
        sharing.add(image(1), since(1), packs(0..PACKS_MAX - 1), None);
        assert!(!sharing.sharers[&image(1)].is_cut);
        sharing.add(image(2), since(1), packs([0, PACKS_MAX, PACKS_MAX + 1]), None);
        sharing.add(image(3), since(1), packs([PACKS_MAX, 1]), None);
        let second = &sharing.sharers[&image(2)];
        assert_eq!((second.packs.len(), second.is_cut), (2, true));
        assert!(!sharing.sharers[&image(3)].is_cut);
        assert_eq!((sharing.packs.len(), sharing.references), (PACKS_MAX, PACKS_MAX + 3));
        // Whose turn comes once the others are known.
        let before = judged(&[(0, 7), (PACKS_MAX, 8), (PACKS_MAX + 9, 1)]);
        let mut next = Sharing::default();
        next.add(image(2), since(1), packs([0, PACKS_MAX, PACKS_MAX + 1]), Some(before));
        let second = &next.sharers[&image(2)];
        assert_eq!(second.packs, [pack(PACKS_MAX + 1)].into());
        assert_eq!(
            (second.known.clone(), second.is_cut),
            (counts(&[(0, 7), (PACKS_MAX, 8)]), false)
        );
    }

    #[test]
    fn what_was_left_is_remembered_until_somebody_lets_go_of_it() {
        let mut sharing = Sharing::default();
        sharing.add(image(1), since(1), packs([1, 2, 3]), None);
        let sharer = sharing.sharers.remove(&image(1)).unwrap();
        let mut verdict =
            Verdict { counts: counts(&[(1, 2), (2, 2), (3, 2)]), open: BTreeSet::new() };
        // The second one was moved, and somebody came to the third one.
        let found = verdict.of(sharer, &counts(&[(1, 2), (2, 0), (3, 3)]));
        assert_eq!((&found.counts, found.is_all), (&counts(&[(1, 2)]), false));

        let mut again = Sharing::default();
        again.add(image(1), since(1), packs([1, 3]), Some(found));
        let sharer = again.sharers.remove(&image(1)).unwrap();
        verdict.counts = counts(&[(3, 3)]);
        let found = verdict.of(sharer, &counts(&[(3, 3)]));
        assert_eq!((&found.counts, found.is_all), (&counts(&[(1, 2), (3, 3)]), true));
        let same = found.clone().still(&counts(&[(1, 2), (3, 3)]));
        assert_eq!(same, found);
        let other = found.still(&counts(&[(1, 1), (3, 3)]));
        assert_eq!((&other.counts, other.is_all), (&counts(&[(3, 3)]), false));

        let mut open = Sharing::default();
        open.add(image(1), since(1), packs([1]), None);
        let sharer = open.sharers.remove(&image(1)).unwrap();
        verdict = Verdict { counts: counts(&[(1, 2)]), open: [pack(1)].into() };
        let found = verdict.of(sharer, &counts(&[(1, 2)]));
        assert_eq!((found.counts.len(), found.is_all), (0, false));
    }

    #[test]
    fn memory_is_bounded_and_ends_with_another_loss() {
        let mut memory = Memory::default();
        assert!(memory.keep(image(1), judged(&[(1, 2), (2, 2)])));
        assert_eq!(memory.take(image(1), since(2)), None, "it lost another version");
        assert_eq!(memory.references, 0);
        assert!(memory.keep(image(1), judged(&[(1, 2)])));
        let many: Vec<(usize, u64)> = (0..REFERENCES_MAX).map(|number| (number, 1)).collect();
        let mut many = judged(&many);
        assert!(!memory.keep(image(2), many.clone()));
        assert_eq!(memory.take(image(2), since(1)), None);
        many.counts.pop_first();
        assert!(memory.keep(image(2), many));
        let found = memory.take(image(1), since(1)).map(|judged| judged.counts);
        assert_eq!(found, Some(counts(&[(1, 2)])));
        assert_eq!(memory.references, REFERENCES_MAX - 1);
    }
}
