//! From a disk to chunks in packs, and the recipe that puts them together again.
//!
//! Invariants: the recipe reproduces the disk byte for byte, but for bytes that a file system left
//! clean calls free, which are zero unless they are to be kept; the same disk with the same answers
//! of `known` gives the same recipe and packs on every machine; memory is bounded by
//! [`INGEST_BYTES_MAX`] beside the recipe, whatever the disk's size.
//! Non-goals: storing packs (see [`PackSink`]), deciding what storage has.

use std::collections::HashMap;
use std::io;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, Scope, ScopedJoinHandle};

use shoal_content::{Chunk, ChunkId, Encoding, Extent, Recipe, RecipeKind, SourceObject};
use thiserror::Error;

use crate::again::{NoFile, hash_again};
use crate::cutter::{Cut, Cutter};
use crate::disk::{Disk, ExtentKind, MapExtent, ReadError};
use crate::expected::ContentMap;
use crate::filesystem::{Plan, StretchKind, survey};
use crate::foreseen::{Foreseen, ForeseenFile};
use crate::grain::Grain;
use crate::pack::{PACK_BYTES, PackBuilder, PackSink, Place, SinkError};

/// Guest bytes read at once.
const WINDOW_BYTES: u64 = 2 * 1024 * 1024;
/// Guest bytes read at once at least, where as many follow.
const READ_BYTES_MIN: u64 = 256 * 1024;
/// Cut content that is hashed and compressed together, over all cores; while one batch is compressed
/// the next one is read.
const BATCH_BYTES: usize = 16 * 1024 * 1024;
/// zstd's default: beyond it, time grows faster than what is saved.
const COMPRESSION_LEVEL: i32 = 3;

/// Bytes an ingest holds at once, beside the recipe it makes (about 150 for each chunk).
pub const INGEST_BYTES_MAX: usize = 192 * 1024 * 1024;

/// Where a chunk that storage has already lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredChunk {
    pub object: SourceObject,
    /// Bytes from the object's start.
    pub at: u64,
    pub encoding: Encoding,
    /// Bytes of content.
    pub length: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IngestProgress {
    /// Guest bytes passed, holes included.
    pub bytes_done: u64,
    /// Whether all of the disk was cut, and `bytes_done` counts anew: it is read once more, for its
    /// file's digest.
    pub is_again: bool,
    /// Guest bytes in all.
    pub bytes_total: u64,
    /// Bytes that a file system calls free and that count as zero for it, so far.
    pub free_bytes: u64,
    /// Bytes that are not in holes, so far.
    pub content_bytes: u64,
    /// Content of chunks that neither this disk nor storage had, so far.
    pub new_bytes: u64,
    /// Bytes added to packs so far.
    pub stored_bytes: u64,
}

/// The result.
#[derive(Debug)]
pub struct Ingested<S> {
    pub recipe: Recipe,
    /// The last progress.
    pub totals: IngestProgress,
    /// The packs this ingest made, in the order they were handed over.
    pub packs: Vec<SourceObject>,
    /// The disk as a qcow2 file, where that was asked for, and could be foreseen or found by reading
    /// the disk again.
    pub file: Option<ForeseenFile>,
    pub sink: S,
}

#[derive(Debug, Error)]
pub enum IngestError {
    #[error("the disk could not be read")]
    Read(#[from] ReadError),
    #[error("a pack could not be stored")]
    Sink(#[source] SinkError),
    #[error("the disk has more content than one recipe can list")]
    TooLarge,
    #[error("compressing failed")]
    Compress(#[source] io::Error),
    #[error("the ingest was cancelled")]
    Cancelled,
}

/// What becomes of bytes that a file system does not use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FreeSpace {
    /// They read as zero, where the file system was left clean.
    #[default]
    Zero,
    /// They are content like any other.
    Keep,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct DiskIngest<S> {
    sink: S,
    free_space: FreeSpace,
    foresees: bool,
    again_bytes_max: u64,
    zeros: Vec<Range<u64>>,
}

impl<S: PackSink> DiskIngest<S> {
    pub fn new(sink: S) -> Self {
        let (free_space, zeros) = (FreeSpace::default(), Vec::new());
        Self { sink, free_space, foresees: false, again_bytes_max: 0, zeros }
    }

    /// Hashes the disk as a qcow2 file on the way, as far as its length and its tables can be foreseen.
    #[must_use]
    pub fn foresee_file(mut self) -> Self {
        self.foresees = true;
        self
    }

    /// That file is foreseen by what `map` says of the disk. Where that is wrong, it is not.
    #[must_use]
    pub fn expect_content(mut self, map: &ContentMap) -> Self {
        self.zeros = map.zeros().collect();
        self
    }

    /// Where that file cannot be foreseen, and all of the disk is in packs of this ingest, a disk of at
    /// most so many bytes of content is read once more for it, while the last packs are stored. That
    /// it cannot be read again is no failure.
    #[must_use]
    pub fn read_again_for_file(mut self, content_bytes_max: u64) -> Self {
        self.again_bytes_max = content_bytes_max;
        self
    }

    #[must_use]
    pub fn free_space(mut self, free_space: FreeSpace) -> Self {
        self.free_space = free_space;
        self
    }

    /// Reads `disk` to its end. `known` is asked once for each distinct chunk, in order;
    /// `progress` is told about every 16 MiB and cancels with `Break`.
    ///
    /// # Errors
    /// See [`IngestError`]. Packs handed over until then are nobody's.
    pub fn run(
        self,
        disk: &mut dyn Disk,
        known: &mut dyn FnMut(ChunkId) -> Option<StoredChunk>,
        progress: &mut dyn FnMut(IngestProgress) -> ControlFlow<()>,
    ) -> Result<Ingested<S>, IngestError> {
        let mut plan = survey(disk)?;
        if self.free_space == FreeSpace::Keep {
            plan = plan.keeping_free_space();
        }
        let foreseen = if self.foresees { Foreseen::new(disk, &plan, &self.zeros)? } else { None };
        let again_bytes_max = if self.foresees { self.again_bytes_max } else { 0 };
        // What is compressed in the background is waited for, whatever happens here.
        thread::scope(|scope| {
            let builder = RecipeBuilder::new(self.sink);
            Run { scope, builder, foreseen, again_bytes_max, known, progress }.through(disk, &plan)
        })
    }
}

/// One ingest under way.
struct Run<'scope, 'env, 'a, S> {
    scope: &'scope Scope<'scope, 'env>,
    builder: RecipeBuilder<'scope, S>,
    foreseen: Option<Foreseen>,
    again_bytes_max: u64,
    known: &'a mut dyn FnMut(ChunkId) -> Option<StoredChunk>,
    progress: &'a mut dyn FnMut(IngestProgress) -> ControlFlow<()>,
}

impl<S: PackSink> Run<'_, '_, '_, S> {
    fn through(mut self, disk: &mut dyn Disk, plan: &Plan) -> Result<Ingested<S>, IngestError> {
        let mut totals =
            IngestProgress { bytes_total: disk.virtual_bytes(), ..IngestProgress::default() };
        let (mut cutter, mut cuts) = (Cutter::new(Grain::fitting(plan)), Vec::new());
        let mut guest = Guest { disk, extent: None, window: Vec::new(), window_offset: 0 };
        for stretch in plan.walk() {
            cutter.stretch(&stretch, &mut cuts);
            let end = stretch.offset + stretch.length;
            while totals.bytes_done < end {
                let length = end - totals.bytes_done;
                let passed = if stretch.kind == StretchKind::Free {
                    totals.free_bytes += length;
                    cutter.zeros(length, &mut cuts);
                    length
                } else {
                    match guest.next(totals.bytes_done, length)? {
                        Part::Zeros(length) => {
                            cutter.zeros(length, &mut cuts);
                            length
                        }
                        Part::Bytes(bytes) => {
                            cutter.data(bytes, &mut cuts);
                            bytes.len() as u64
                        }
                    }
                };
                totals.bytes_done += passed;
                if cuts.iter().map(|cut| cut.content.len()).sum::<usize>() >= BATCH_BYTES {
                    let cuts = std::mem::take(&mut cuts);
                    self.foresee(&cuts);
                    self.builder.add(self.scope, cuts, self.known, &mut totals)?;
                    if (self.progress)(totals).is_break() {
                        return Err(IngestError::Cancelled);
                    }
                }
            }
        }
        cutter.finish(&mut cuts);
        self.foresee(&cuts);
        self.builder.add(self.scope, cuts, self.known, &mut totals)?;
        self.builder.settle(&mut totals)?;
        let is_new = self.builder.old.is_empty();
        let (recipe, packs, sink) = self.builder.finish(totals.bytes_total)?;
        let mut file = self.foreseen.and_then(|foreseen| foreseen.finish(&recipe));
        if (self.progress)(totals).is_break() {
            return Err(IngestError::Cancelled);
        }
        let is_short = (1..=self.again_bytes_max).contains(&totals.content_bytes);
        if file.is_none() && is_new && is_short {
            let mut at = |bytes_done| {
                (self.progress)(IngestProgress { bytes_done, is_again: true, ..totals })
            };
            if at(0).is_break() {
                return Err(IngestError::Cancelled);
            }
            file = match hash_again(disk, plan.free(), &recipe, &mut at) {
                Ok(file) => Some(file),
                Err(NoFile::Unreadable) => None,
                Err(NoFile::Cancelled) => return Err(IngestError::Cancelled),
            };
        }
        Ok(Ingested { recipe, totals, packs, file, sink })
    }

    /// While what was cut before is compressed.
    fn foresee(&mut self, cuts: &[Cut]) {
        let as_foreseen = |foreseen: &mut Foreseen| {
            cuts.iter().all(|cut| foreseen.content(cut.offset, &cut.content))
        };
        if !self.foreseen.as_mut().is_none_or(as_foreseen) {
            self.foreseen = None;
        }
    }
}

/// Reads a disk front to back, in windows that do not depend on where stretches end.
struct Guest<'a> {
    disk: &'a mut dyn Disk,
    extent: Option<MapExtent>,
    window: Vec<u8>,
    window_offset: u64,
}

enum Part<'a> {
    Zeros(u64),
    Bytes(&'a [u8]),
}

impl Guest<'_> {
    /// What is at `offset`: at least one byte, and at most `length`.
    fn next(&mut self, offset: u64, length: u64) -> Result<Part<'_>, ReadError> {
        let inside = |from: u64, count: u64| (from..from + count).contains(&offset);
        let extent = match self.extent {
            Some(extent) if inside(extent.offset, extent.length) => extent,
            _ => *self.extent.insert(self.disk.next_extent(offset)?),
        };
        let length = length.min(extent.offset + extent.length - offset);
        if extent.kind == ExtentKind::Zero {
            return Ok(Part::Zeros(length));
        }
        if !inside(self.window_offset, self.window.len() as u64) {
            let ahead = (extent.offset + extent.length - offset).min(WINDOW_BYTES);
            // What is free behind a short stretch need not be read: no further than twice.
            let ahead = ahead.min(length.saturating_mul(2).max(READ_BYTES_MIN));
            self.window.resize(ahead as usize, 0);
            self.window_offset = offset;
            self.disk.read(offset, &mut self.window)?;
        }
        let from = (offset - self.window_offset) as usize;
        let count = length.min((self.window.len() - from) as u64) as usize;
        Ok(Part::Bytes(&self.window[from..from + count]))
    }
}

/// Where a chunk of the recipe lies: the packs' ids are known only when they are closed.
#[derive(Debug)]
enum Home {
    New(Place),
    /// Index into the objects that storage has already.
    Old {
        object: u32,
        at: u64,
    },
}

#[derive(Debug)]
struct Listed {
    id: ChunkId,
    length: u32,
    encoding: Encoding,
    home: Home,
}

/// New chunks, which threads take one after the other, each when it is done with one.
#[derive(Debug, Default)]
struct Fresh {
    contents: Vec<Vec<u8>>,
    next: AtomicUsize,
}

/// A thread that compresses them: the numbers of those that it took, and what became of each.
type Compressing<'scope> = ScopedJoinHandle<'scope, Vec<(usize, Compressed)>>;
/// `None` where compressing saves less than a sixteenth: reading raw bytes is cheaper.
type Compressed = io::Result<Option<Vec<u8>>>;

#[derive(Debug)]
struct RecipeBuilder<'scope, S> {
    packs: PackBuilder<S>,
    /// The batch that is compressed while the next one is read, and where in `chunks` its chunks
    /// stand.
    fresh: Arc<Fresh>,
    compressing: Vec<Compressing<'scope>>,
    waiting: Vec<usize>,
    chunks: Vec<Listed>,
    indices: HashMap<ChunkId, u32>,
    extents: Vec<Extent>,
    old: Vec<SourceObject>,
    old_indices: HashMap<shoal_content::ObjectKey, u32>,
}

impl<'scope, S: PackSink> RecipeBuilder<'scope, S> {
    fn new(sink: S) -> Self {
        Self {
            packs: PackBuilder::new(sink, PACK_BYTES),
            fresh: Arc::default(),
            compressing: Vec::new(),
            waiting: Vec::new(),
            chunks: Vec::new(),
            indices: HashMap::new(),
            extents: Vec::new(),
            old: Vec::new(),
            old_indices: HashMap::new(),
        }
    }

    /// Hashes all cuts on all cores, asks for each new id, and has what is new compressed on all
    /// cores while the caller reads on. What was so before is appended in order: the packs do not
    /// depend on the number of cores.
    fn add(
        &mut self,
        scope: &'scope Scope<'scope, '_>,
        cuts: Vec<Cut>,
        known: &mut dyn FnMut(ChunkId) -> Option<StoredChunk>,
        totals: &mut IngestProgress,
    ) -> Result<(), IngestError> {
        let ids = on_all_cores(&cuts, |cut| ChunkId::of(&cut.content));
        let (mut fresh, mut waiting) = (Vec::new(), Vec::new());
        for (cut, id) in cuts.into_iter().zip(ids) {
            totals.content_bytes += cut.content.len() as u64;
            if let Some(&chunk) = self.indices.get(&id) {
                self.extents.push(Extent { offset: cut.offset, chunk });
                continue;
            }
            let chunk = u32::try_from(self.chunks.len()).map_err(|_| IngestError::TooLarge)?;
            self.indices.insert(id, chunk);
            self.extents.push(Extent { offset: cut.offset, chunk });
            let length = cut.content.len() as u32;
            let stored = known(id).filter(|stored| stored.length == length);
            let (encoding, home) = match stored {
                Some(stored) => {
                    let object = self.old_object(stored.object);
                    (stored.encoding, Home::Old { object, at: stored.at })
                }
                None => {
                    fresh.push(cut.content);
                    waiting.push(chunk as usize);
                    (Encoding::Raw, Home::New(Place { pack: 0, at: 0 }))
                }
            };
            self.chunks.push(Listed { id, length, encoding, home });
        }
        self.settle(totals)?;
        self.fresh = Arc::new(Fresh { contents: fresh, next: AtomicUsize::new(0) });
        for _ in 0..cores().min(self.fresh.contents.len()) {
            let fresh = Arc::clone(&self.fresh);
            self.compressing.push(scope.spawn(move || compress_all(&fresh)));
        }
        self.waiting = waiting;
        Ok(())
    }

    /// Waits for what is being compressed, and appends it.
    fn settle(&mut self, totals: &mut IngestProgress) -> Result<(), IngestError> {
        let threads = std::mem::take(&mut self.compressing).into_iter();
        let done = threads.flat_map(|it| it.join().expect("compressing does not panic"));
        let mut done: Vec<_> = done.collect();
        done.sort_unstable_by_key(|&(number, _)| number);
        let fresh = std::mem::take(&mut self.fresh);
        let chunks = std::mem::take(&mut self.waiting);
        for ((content, (_, compressed)), chunk) in fresh.contents.iter().zip(done).zip(chunks) {
            let compressed = compressed.map_err(IngestError::Compress)?;
            let (stored, encoding) = match &compressed {
                Some(bytes) => (bytes.as_slice(), Encoding::Zstd { stored: bytes.len() as u32 }),
                None => (content.as_slice(), Encoding::Raw),
            };
            let place = self.packs.append(stored).map_err(IngestError::Sink)?;
            totals.new_bytes += content.len() as u64;
            totals.stored_bytes += stored.len() as u64;
            self.chunks[chunk].encoding = encoding;
            self.chunks[chunk].home = Home::New(place);
        }
        Ok(())
    }

    fn old_object(&mut self, object: SourceObject) -> u32 {
        *self.old_indices.entry(object.key).or_insert_with(|| {
            self.old.push(object);
            (self.old.len() - 1) as u32
        })
    }

    fn finish(self, length: u64) -> Result<(Recipe, Vec<SourceObject>, S), IngestError> {
        let (sink, packs) = self.packs.finish().map_err(IngestError::Sink)?;
        let mut objects = self.old;
        let first_pack = objects.len();
        // A pack that storage has already, from an ingest that was cut off, is listed once.
        objects.extend(&packs);
        let chunks = self.chunks.into_iter().map(|listed| {
            let (object, at) = match listed.home {
                Home::Old { object, at } => (object, at),
                Home::New(place) => ((first_pack + place.pack) as u32, place.at),
            };
            let Listed { id, length, encoding, .. } = listed;
            Chunk { id, length, object, at, encoding }
        });
        let recipe = Recipe::new(RecipeKind::Disk, length, objects, chunks.collect(), self.extents)
            .expect("cuts ascend, and every chunk was placed in an object that is listed");
        Ok((recipe, packs, sink))
    }
}

fn compress_all(fresh: &Fresh) -> Vec<(usize, Compressed)> {
    let mut compressor = zstd::bulk::Compressor::new(COMPRESSION_LEVEL);
    let mut done = Vec::new();
    loop {
        let number = fresh.next.fetch_add(1, Ordering::Relaxed);
        let Some(content) = fresh.contents.get(number) else { return done };
        let compressed = match &mut compressor {
            Ok(compressor) => compressor.compress(content),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        let is_worth = |bytes: &Vec<u8>| bytes.len() < content.len() - content.len() / 16;
        done.push((number, compressed.map(|bytes| Some(bytes).filter(is_worth))));
    }
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// `work` for each of `items`, results in their order.
fn on_all_cores<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let share = items.len().div_ceil(cores()).max(1);
    let work = &work;
    thread::scope(|scope| {
        let shares: Vec<_> = items
            .chunks(share)
            .map(|items| scope.spawn(move || items.iter().map(work).collect::<Vec<R>>()))
            .collect();
        let done = shares.into_iter().map(|share| share.join().expect("hashing does not panic"));
        done.flatten().collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::RawDisk;

    type Packs = HashMap<shoal_content::ObjectKey, Vec<u8>>;

    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn ingest(disk: &[u8], packs: &mut Packs, before: Option<&Recipe>) -> Ingested<()> {
        let mut old = HashMap::new();
        for chunk in before.map(Recipe::chunks).unwrap_or_default() {
            let object = before.unwrap().objects()[chunk.object as usize];
            let Chunk { at, encoding, length, .. } = *chunk;
            old.insert(chunk.id, StoredChunk { object, at, encoding, length });
        }
        let sink = |id, bytes: Vec<u8>| {
            packs.insert(shoal_content::ObjectKey::Pack(id), bytes);
            Ok(())
        };
        let mut source = RawDisk::new(disk.to_vec());
        let done = DiskIngest::new(sink)
            .run(&mut source, &mut |id| old.get(&id).copied(), &mut |_| ControlFlow::Continue(()))
            .unwrap();
        let Ingested { recipe, totals, packs, file, .. } = done;
        Ingested { recipe, totals, packs, file, sink: () }
    }

    fn read_back(recipe: &Recipe, packs: &Packs) -> Vec<u8> {
        let mut disk = vec![0; recipe.length() as usize];
        for extent in recipe.extents() {
            let chunk = recipe.chunks()[extent.chunk as usize];
            let pack = &packs[&recipe.objects()[chunk.object as usize].key];
            let stored = &pack[chunk.at as usize..][..chunk.stored() as usize];
            let content = crate::decode_chunk(&chunk, stored).unwrap();
            disk[extent.offset as usize..][..content.len()].copy_from_slice(&content);
        }
        disk
    }

    fn sample() -> Vec<u8> {
        let mut disk = vec![0; 1 << 20];
        disk.extend(noise(1, 5 << 20));
        disk.extend(b"the same line again and again\n".repeat(80_000));
        disk.resize(disk.len() + (3 << 20), 0);
        disk.extend_from_within(1 << 20..4 << 20);
        disk
    }

    #[test]
    fn a_disk_comes_back_as_it_went_in() {
        let (disk, mut packs) = (sample(), Packs::new());
        let done = ingest(&disk, &mut packs, None);
        assert!(read_back(&done.recipe, &packs) == disk);
        assert_eq!(done.totals.bytes_done, disk.len() as u64);
        assert!(done.totals.stored_bytes < 6 << 20, "text compresses, repeats are stored once");
        let again = ingest(&disk, &mut Packs::new(), None);
        assert_eq!(again.recipe, done.recipe, "the same disk gives the same recipe");
    }

    #[test]
    fn the_next_version_stores_only_what_changed() {
        let (disk, mut packs) = (sample(), Packs::new());
        let first = ingest(&disk, &mut packs, None);
        let mut changed = disk.clone();
        changed[2 << 20..][..1000].copy_from_slice(&noise(9, 1000));
        let second = ingest(&changed, &mut packs, Some(&first.recipe));
        assert!(read_back(&second.recipe, &packs) == changed);
        assert!(second.totals.new_bytes <= 3 * 256 * 1024, "{}", second.totals.new_bytes);
    }

    #[test]
    fn a_refusing_sink_and_a_cancel_end_it() {
        let refusing = |_, _: Vec<u8>| Err("the disk is full".into());
        let result =
            DiskIngest::new(refusing).run(&mut RawDisk::new(sample()), &mut |_| None, &mut |_| {
                ControlFlow::Continue(())
            });
        assert!(matches!(result, Err(IngestError::Sink(_))));
        let cancelled = DiskIngest::new(|_, _: Vec<u8>| Ok(())).run(
            &mut RawDisk::new(sample()),
            &mut |_| None,
            &mut |_| ControlFlow::Break(()),
        );
        assert!(matches!(cancelled, Err(IngestError::Cancelled)));
    }
}
