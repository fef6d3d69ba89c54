//! What is needed of thin packs, written into others, and said to lie there.
//!
//! Order: packs, the placement, a look that all of it is in storage, the command. Whoever dies in
//! between leaves objects that no row knows, which the scrub finds; the next one makes the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use shoal_content::{
    Chunk, ChunkId, ImageId, ObjectKey, PackId, Recipe, RecipeId, RecipeKind, SourceObject,
};
use shoal_formats::{PACK_BYTES, decode_chunk};
use shoal_metadata::{
    Command, Fault, KeyOwner, MOVED_OBJECTS_MAX, MOVED_REFERENCES_MAX, MOVED_VERSIONS_MAX,
    MovedChunks, Moving, Query, Read,
};
use shoal_raft::ProposeError;
use tokio::task::spawn_blocking;
use tracing::{debug, info, warn};

use super::survey::{Held, Survey, ThinPack};
use super::{Compactor, Error};
use crate::clock;
use crate::collection::{PUBLISH_WINDOW, first_missing};
use crate::http::problem::chain;
use crate::origin::{Place, Windows};
use crate::store::{BlobStore, StoreError, put_and_see};

/// Of the packs that are read.
const READ_CACHE_BYTES_MAX: u64 = PACK_BYTES as u64;
/// Chunks in one placement: about 40 MB, and three times as much while it is made.
const PLACED_CHUNKS_MAX: usize = 1_000_000;

/// What became of the packs of a survey.
#[derive(Debug, Default)]
pub(super) struct Moved {
    /// In which nothing of these versions lies any more.
    pub packs: u64,
    /// Of them, what was written anew.
    pub written_bytes: u64,
    /// Their lengths.
    pub dropped_bytes: u64,
    /// Could not be read: they stay as they are.
    pub unreadable: BTreeSet<ObjectKey>,
    /// Rows were changed meanwhile, so that it is to be looked at again.
    pub is_overtaken: bool,
}

/// What is read stays under so many bytes a second.
#[derive(Debug)]
pub(super) struct Pace {
    began: Instant,
    bytes: u64,
    bytes_per_second: u64,
}

impl Pace {
    pub fn new(bytes_per_second: u64) -> Self {
        Self { began: Instant::now(), bytes: 0, bytes_per_second }
    }

    /// Waits until as much may be read.
    async fn spend(&mut self, bytes: u64) {
        self.bytes += bytes;
        let millis = u128::from(self.bytes) * 1000 / u128::from(self.bytes_per_second.max(1));
        let due = Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX));
        tokio::time::sleep(due.saturating_sub(self.began.elapsed())).await;
    }
}

/// Chunks in new packs, one after the other.
struct Writer<'a> {
    store: &'a dyn BlobStore,
    under: KeyOwner,
    open: Vec<u8>,
    open_chunks: Vec<Chunk>,
    placed: BTreeMap<ChunkId, Place>,
    written_bytes: u64,
}

impl Writer<'_> {
    async fn append(&mut self, chunk: &Chunk, stored: &[u8]) -> Result<(), StoreError> {
        if self.open.len() + stored.len() > PACK_BYTES {
            self.close().await?;
        }
        if self.open.is_empty() {
            self.open.reserve_exact(PACK_BYTES);
        }
        self.open_chunks.push(Chunk { at: self.open.len() as u64, ..*chunk });
        self.open.extend_from_slice(stored);
        Ok(())
    }

    async fn close(&mut self) -> Result<(), StoreError> {
        if self.open.is_empty() {
            return Ok(());
        }
        let bytes = Bytes::from(std::mem::take(&mut self.open));
        let key = ObjectKey::Pack(PackId::of(&bytes));
        let object = SourceObject { key, length: bytes.len() as u64 };
        put_and_see(self.store, key, &self.under, bytes).await?;
        self.written_bytes += object.length;
        for chunk in self.open_chunks.drain(..) {
            self.placed.insert(chunk.id, Place { object, chunk });
        }
        Ok(())
    }
}

impl Compactor {
    /// Moves what is needed out of the packs of a survey of these images.
    pub(super) async fn move_chunks(
        &self,
        images: &BTreeSet<ImageId>,
        survey: Survey,
        pace: &mut Pace,
    ) -> Result<Moved, Error> {
        let Survey { packs, recipes, .. } = survey;
        let Some(under) = owner_of(self.raft.local().query(), images)? else {
            return Ok(Moved { is_overtaken: true, ..Moved::default() });
        };
        let windows = Windows::with_capacity(self.store.clone(), READ_CACHE_BYTES_MAX);
        let mut writer = Writer {
            store: &*self.store,
            under: under.clone(),
            open: Vec::new(),
            open_chunks: Vec::new(),
            placed: BTreeMap::new(),
            written_bytes: 0,
        };
        let (mut moved, mut dropped) = (Moved::default(), BTreeSet::new());
        // Which may lie in several of the packs.
        let mut taken: BTreeSet<ChunkId> = BTreeSet::new();
        for (pack, thin) in packs {
            let (length, read_bytes) = (thin.length, thin.read_bytes());
            match self.read_needed(&windows, thin).await {
                Ok(chunks) => {
                    for (place, stored) in chunks {
                        if taken.insert(place.chunk.id) {
                            writer.append(&place.chunk, &stored).await?;
                        }
                    }
                    dropped.insert(pack);
                    moved.dropped_bytes += length;
                }
                Err(error) if error.is_damage() => {
                    warn!(%pack, error = chain(&error), "a pack that is mostly garbage is damaged");
                    moved.unreadable.insert(pack);
                }
                Err(error) => return Err(error),
            }
            pace.spend(read_bytes).await;
        }
        writer.close().await?;
        let Writer { placed, written_bytes, .. } = writer;
        moved.written_bytes = written_bytes;
        if dropped.is_empty() {
            return Ok(moved);
        }
        let placed = self.place(placed, &recipes, &dropped, &under).await?;
        moved.packs = dropped.len() as u64;
        moved.is_overtaken = !self.tell((images, &under), placed, recipes, dropped).await?;
        if !moved.is_overtaken {
            let Moved { packs, written_bytes, dropped_bytes, .. } = &moved;
            let ids: Vec<String> = images.iter().map(ImageId::to_string).collect();
            let images = ids.join(" ");
            info!(
                images,
                packs, written_bytes, dropped_bytes, "moved chunks out of mostly garbage"
            );
        }
        Ok(moved)
    }

    /// The stored bytes of what is needed of a pack, each compared with its chunk.
    async fn read_needed(
        &self,
        windows: &Windows,
        thin: ThinPack,
    ) -> Result<Vec<(Place, Bytes)>, Error> {
        let mut chunks = Vec::with_capacity(thin.places.len());
        for place in thin.places {
            let stored = u64::from(place.chunk.stored());
            let read = windows.read(place.object, place.chunk.at, stored).await;
            chunks.push((place, read.map_err(Error::Read)?));
        }
        let compare = move || -> Result<_, Error> {
            for (place, stored) in &chunks {
                decode_chunk(&place.chunk, stored).map_err(Error::Chunk)?;
            }
            Ok(chunks)
        };
        spawn_blocking(compare).await.map_err(|_| Error::Interrupted)?
    }

    /// Lists where the chunks of the recipes lie from now on that lie elsewhere than these say.
    async fn place(
        &self,
        mut placed: BTreeMap<ChunkId, Place>,
        recipes: &BTreeMap<RecipeId, Held>,
        dropped: &BTreeSet<ObjectKey>,
        under: &KeyOwner,
    ) -> Result<(RecipeId, Recipe), Error> {
        // What was moved before, and stays where it is.
        for (id, held) in recipes {
            let (recipe, Some(before)) = self.recipe_of(*id, held).await? else { continue };
            let dropped = dropped.clone();
            let add = move || {
                for chunk in recipe.chunks() {
                    if let Some(place) = Place::moved(&before, chunk)
                        && !dropped.contains(&place.object.key)
                    {
                        placed.entry(chunk.id).or_insert(place);
                    }
                }
                placed
            };
            placed = spawn_blocking(add).await.map_err(|_| Error::Interrupted)?;
            if placed.len() > PLACED_CHUNKS_MAX {
                return Err(Error::TooManyChunks);
            }
        }
        let before: BTreeSet<RecipeId> =
            recipes.values().filter_map(|held| held.placement).collect();
        let listed = spawn_blocking(move || listed(placed, &before));
        let (placement, encoded) = listed.await.map_err(|_| Error::Interrupted)??;
        let id = RecipeId::of(&encoded);
        put_and_see(&*self.store, ObjectKey::Recipe(id), under, encoded).await?;
        Ok((id, placement))
    }

    /// Says so, some recipes with each command; gives whether all of it was taken.
    async fn tell(
        &self,
        group: (&BTreeSet<ImageId>, &KeyOwner),
        (id, placement): (RecipeId, Recipe),
        recipes: BTreeMap<RecipeId, Held>,
        dropped: BTreeSet<ObjectKey>,
    ) -> Result<bool, Error> {
        let placement = Arc::new(placement);
        let none = || MovedChunks {
            placement: id,
            dropped: dropped.clone(),
            recipes: BTreeMap::new(),
            versions: BTreeSet::new(),
        };
        let (mut next, mut size, mut is_whole) = (none(), Size::default(), true);
        for (of, held) in recipes {
            let (recipe, _) = self.recipe_of(of, &held).await?;
            let placement = Arc::clone(&placement);
            let find = move || led_to(&recipe, &placement);
            let mut objects = spawn_blocking(find).await.map_err(|_| Error::Interrupted)?;
            objects.insert(ObjectKey::Recipe(id));
            let one =
                Size { versions: held.versions.len(), all: objects.len(), longest: objects.len() };
            if !one.fits(dropped.len()) {
                return Err(Error::TooManyChunks);
            }
            if !size.with(one).fits(dropped.len()) {
                is_whole &= self.propose(group, std::mem::replace(&mut next, none())).await?;
                size = Size::default();
            }
            size = size.with(one);
            next.versions.extend(held.versions);
            next.recipes.insert(of, Moving { from: held.placement, objects });
        }
        if !next.recipes.is_empty() {
            is_whole &= self.propose(group, next).await?;
        }
        Ok(is_whole)
    }

    /// Proposes right after all that it names was seen in storage; gives whether it was taken.
    async fn propose(
        &self,
        (images, under): (&BTreeSet<ImageId>, &KeyOwner),
        moved: MovedChunks,
    ) -> Result<bool, Error> {
        let objects: BTreeSet<ObjectKey> =
            moved.recipes.values().flat_map(|moving| moving.objects.iter().copied()).collect();
        let objects: Vec<ObjectKey> = objects.into_iter().collect();
        let began = Instant::now();
        if let Some(missing) = first_missing(&self.store, &objects).await? {
            debug!(%missing, "what chunks were moved to is gone");
            return Ok(false);
        }
        // Several projects' chunks lie together only where nothing was sealed when they were stored.
        let owner = owner_of(self.raft.read().await?.query(), images)?;
        if owner.as_ref() != Some(under) || began.elapsed() > PUBLISH_WINDOW / 2 {
            return Ok(false);
        }
        match self.raft.propose(clock::now(), Command::MoveChunks(moved)).await {
            Ok(_) => Ok(true),
            Err(ProposeError::Refused(refusal)) => {
                debug!(%refusal, "chunks stay where they were");
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Whose key what is moved of these images is sealed with. `None` where they belong to several projects
/// and data keys are there: what one of them needs alone must be readable with its keys alone, and go
/// with them.
pub(super) fn owner_of<R: Read>(
    query: Query<'_, R>,
    images: &BTreeSet<ImageId>,
) -> Result<Option<KeyOwner>, Fault> {
    let mut owners = BTreeSet::new();
    for image in images {
        owners.insert(query.key_owner(*image)?);
    }
    if owners.len() > 1 && query.master_key()?.is_some() {
        return Ok(None);
    }
    Ok(owners.into_iter().next())
}

/// How much one command moves.
#[derive(Debug, Clone, Copy, Default)]
struct Size {
    versions: usize,
    /// Objects that its recipes are led to, all together.
    all: usize,
    /// Of these, the most for one recipe.
    longest: usize,
}

impl Size {
    fn with(self, other: Self) -> Self {
        Self {
            versions: self.versions + other.versions,
            all: self.all + other.all,
            longest: self.longest.max(other.longest),
        }
    }

    fn fits(self, dropped: usize) -> bool {
        self.versions <= MOVED_VERSIONS_MAX
            && self.all + dropped <= MOVED_OBJECTS_MAX
            && (self.longest + dropped).saturating_mul(self.versions) <= MOVED_REFERENCES_MAX
    }
}

/// A placement, and its bytes: another one than any of `before`. It would list the same where a version
/// came with what its recipe names, and the others of that content are where it is to be.
fn listed(
    placed: BTreeMap<ChunkId, Place>,
    before: &BTreeSet<RecipeId>,
) -> Result<(Recipe, Bytes), Error> {
    let mut numbers: BTreeMap<ObjectKey, u32> = BTreeMap::new();
    let (mut objects, mut chunks) = (Vec::new(), Vec::with_capacity(placed.len()));
    for Place { object, chunk } in placed.into_values() {
        let number = *numbers.entry(object.key).or_insert_with(|| {
            objects.push(object);
            objects.len() as u32 - 1
        });
        chunks.push(Chunk { object: number, ..chunk });
    }
    let mut placement = Recipe::new(RecipeKind::Disk, 0, objects, chunks, Vec::new())?;
    loop {
        let (id, encoded) = placement.encode_with_id();
        if !before.contains(&id) {
            return Ok((placement, Bytes::from(encoded)));
        }
        // Nobody goes by its length.
        let (length, objects) = (placement.length() + 1, placement.objects().to_vec());
        let chunks = placement.chunks().to_vec();
        placement = Recipe::new(RecipeKind::Disk, length, objects, chunks, Vec::new())?;
    }
}

/// The packs that a placement leads to for a recipe.
fn led_to(recipe: &Recipe, placement: &Recipe) -> BTreeSet<ObjectKey> {
    let places = recipe.chunks().iter().filter_map(|chunk| Place::moved(placement, chunk));
    places.map(|place| place.object.key).collect()
}

#[cfg(test)]
mod tests {
    use shoal_content::{Encoding, Extent};

    use super::*;
    use crate::origin::WINDOW_BYTES;

    fn place(content: u8, pack: u8, at: u64) -> Place {
        let key = ObjectKey::Pack(PackId::of(&[pack]));
        let (id, encoding) = (ChunkId::of(&[content]), Encoding::Zstd { stored: 100 });
        let chunk = Chunk { id, length: 300, object: 7, at, encoding };
        Place { object: SourceObject { key, length: 1000 }, chunk }
    }

    #[test]
    fn a_placement_finds_the_chunks_that_it_lists_and_no_other() {
        let places: Vec<Place> =
            (0..200).map(|n| place(n, n % 3, u64::from(n % 9) * 100)).collect();
        let placed = places.iter().map(|place| (place.chunk.id, *place)).collect();
        let (placement, encoded) = listed(placed, &BTreeSet::new()).unwrap();
        assert_eq!(Recipe::decode(&encoded).unwrap(), placement);
        for place in &places {
            let found = Place::moved(&placement, &place.chunk).unwrap();
            assert_eq!(found.object, place.object);
            assert_eq!(Chunk { object: 7, ..found.chunk }, place.chunk);
        }
        assert_eq!(Place::moved(&placement, &place(201, 0, 0).chunk), None);
    }

    #[test]
    fn a_placement_that_lists_what_one_before_did_is_another() {
        let placed: BTreeMap<ChunkId, Place> =
            [place(1, 1, 0), place(2, 2, 0)].map(|place| (place.chunk.id, place)).into();
        let mut before = BTreeSet::new();
        for _ in 0..3 {
            let (placement, encoded) = listed(placed.clone(), &before).unwrap();
            assert_eq!(Recipe::decode(&encoded).unwrap(), placement);
            for place in placed.values() {
                let found = Place::moved(&placement, &place.chunk);
                assert_eq!(found.map(|found| found.object), Some(place.object));
            }
            assert!(before.insert(RecipeId::of(&encoded)), "it was there before");
        }
    }

    #[test]
    fn what_is_read_of_a_pack_is_windows() {
        let far = |at| Place { chunk: Chunk { at, ..place(1, 1, 0).chunk }, ..place(1, 1, 0) };
        let read = |places: &[u64], length| {
            ThinPack { length, places: places.iter().copied().map(far).collect() }.read_bytes()
        };
        assert_eq!(read(&[], 8 * WINDOW_BYTES), 0);
        assert_eq!(read(&[0, 500], 8 * WINDOW_BYTES), WINDOW_BYTES);
        assert_eq!(read(&[WINDOW_BYTES - 1], 8 * WINDOW_BYTES), 2 * WINDOW_BYTES);
        assert_eq!(read(&[0, 7 * WINDOW_BYTES], 7 * WINDOW_BYTES + 100), WINDOW_BYTES * 2);
        assert_eq!(read(&[0], 100), 100);
    }

    #[test]
    fn a_recipe_is_led_to_the_packs_of_its_own_chunks_alone() {
        let places = [place(1, 1, 0), place(2, 2, 0), place(3, 2, 100)];
        let placed = places.iter().map(|place| (place.chunk.id, *place)).collect();
        let (placement, _) = listed(placed, &BTreeSet::new()).unwrap();
        let own = place(2, 9, 500);
        let chunks = vec![Chunk { object: 0, ..own.chunk }];
        let extents = vec![Extent { offset: 0, chunk: 0 }];
        let recipe = Recipe::new(RecipeKind::Disk, 300, vec![own.object], chunks, extents).unwrap();
        assert_eq!(led_to(&recipe, &placement), BTreeSet::from([places[1].object.key]));
        assert_eq!(Place::find(&recipe, Some(&placement), &recipe.chunks()[0]).chunk.at, 0);
        assert_eq!(Place::find(&recipe, None, &recipe.chunks()[0]).chunk.at, 500);
    }
}
