//! Makes a bundle: finds old content for each segment, compresses, and packs the result.
//!
//! The bundle is cut like a blob and lies in packs, so that it is stored, found orphaned, verified
//! and spread like everything else.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

use shoal_content::{
    CHUNK_BYTES_MAX, Chunk, ChunkId, Encoding, Extent, Recipe, RecipeId, RecipeKind,
};
use zstd::zstd_safe::{CCtx, CParameter, compress_bound, get_error_name};

use super::index::put_runs;
use super::similar::Samples;
use super::{DeltaError, DeltaLimits, INDEX_BYTES_MAX, MAGIC, Side, VERSION};
use crate::pack::{PACK_BYTES, PackBuilder, PackSink, SinkError};

/// As chunks are compressed.
const COMPRESSION_LEVEL: i32 = 3;
/// Finds matches of this many bytes anywhere in the dictionary; zstd's own default is 64.
const FAR_MATCH_BYTES_MIN: u32 = 32;
/// One position in so many is remembered for that, as a power of two.
const FAR_RATE_LOG: u32 = 4;
/// Entries of the tables for near and far matches, as powers of two.
const NEAR_TABLE_LOG: u32 = 21;
const FAR_TABLE_LOG: u32 = 22;
/// Old content that is looked through at most, over the new content: reading it takes time.
const OLD_OVER_NEW_MAX: usize = 8;

/// Appends the content of a chunk of either version.
pub type ReadChunk<'a> = dyn FnMut(Side, u32, &mut Vec<u8>) -> Result<(), SinkError> + 'a;

/// How making a bundle ended.
#[derive(Debug)]
pub enum DeltaEnd<S> {
    Made(MadeDelta<S>),
    /// It would have been longer than it may.
    TooLong,
}

#[derive(Debug)]
pub struct MadeDelta<S> {
    /// The bundle's own, of a blob in packs.
    pub recipe: Recipe,
    /// Content of the chunks that can be made with it, in bytes.
    pub content_bytes: u64,
    pub sink: S,
}

/// The chunks of `new` that `old` lacks, ascending.
pub fn fresh_chunks(old: &Recipe, new: &Recipe) -> Vec<u32> {
    let known: HashSet<ChunkId> = old.chunks().iter().map(|chunk| chunk.id).collect();
    let all = (0u32..).zip(new.chunks());
    all.filter(|(_, chunk)| !known.contains(&chunk.id)).map(|(at, _)| at).collect()
}

/// Makes the bundle from `old` to `new`, unless it would be longer than `bytes_max`.
///
/// `read` appends the content of a chunk, and is asked for a chunk of the new version once and for
/// one of the old version a few times; `go_on` is asked after each of them.
///
/// # Errors
/// Where a chunk cannot be read or a pack not be stored; packs handed over until then are nobody's.
pub fn make_delta<S: PackSink>(
    old: (RecipeId, &Recipe),
    new: (RecipeId, &Recipe),
    limits: DeltaLimits,
    bytes_max: u64,
    read: &mut ReadChunk<'_>,
    go_on: &mut dyn FnMut() -> ControlFlow<()>,
    sink: S,
) -> Result<DeltaEnd<S>, DeltaError> {
    let mut reader = Reader { read, go_on };
    let fresh = fresh_chunks(old.1, new.1);
    let candidates = candidates(old.1, new.1, &fresh);
    let samples = sample(old.1, &candidates, &mut reader)?;
    let mut bundle = Bundle::new(sink);
    bundle.append(MAGIC)?;
    bundle.append(&[VERSION])?;
    bundle.append(old.0.as_bytes())?;
    bundle.append(new.0.as_bytes())?;
    let mut content_bytes = 0;
    for chunks in segments(new.1, &fresh, limits.segment_bytes) {
        let mut content = Vec::with_capacity(length_of(new.1, chunks));
        for &chunk in chunks {
            reader.append(Side::New, new.1, chunk, &mut content)?;
        }
        let chosen = choose(&samples, &content, old.1, limits.reference_bytes);
        let mut reference = Vec::with_capacity(length_of(old.1, &chosen));
        for &chunk in &chosen {
            reader.append(Side::Old, old.1, chunk, &mut reference)?;
        }
        let mut index = Vec::new();
        put_runs(&mut index, &chosen);
        put_runs(&mut index, chunks);
        let frame = compress(&content, &reference).map_err(DeltaError::Compress)?;
        content_bytes += content.len() as u64;
        drop((content, reference));
        bundle.append(&(index.len() as u32).to_le_bytes())?;
        bundle.append(&(frame.len() as u32).to_le_bytes())?;
        bundle.append(&index)?;
        bundle.append(&frame)?;
        if bundle.length > bytes_max {
            return Ok(DeltaEnd::TooLong);
        }
    }
    let (recipe, sink) = bundle.finish()?;
    Ok(DeltaEnd::Made(MadeDelta { recipe, content_bytes, sink }))
}

/// The old chunks that new content is compared with. Those that are gone are most like it, and come
/// first; those that stayed are, too, where a file came beside an older one, as a kernel does.
fn candidates(old: &Recipe, new: &Recipe, fresh: &[u32]) -> Vec<u32> {
    let mut chosen = fresh_chunks(new, old);
    let all: Vec<u32> = (0..old.chunks().len() as u32).collect();
    if length_of(old, &all) / OLD_OVER_NEW_MAX <= length_of(new, fresh) {
        let gone: HashSet<u32> = chosen.iter().copied().collect();
        chosen.extend(all.into_iter().filter(|chunk| !gone.contains(chunk)));
    }
    chosen
}

/// Of the content of these chunks, in bytes.
fn length_of(recipe: &Recipe, chunks: &[u32]) -> usize {
    chunks.iter().map(|chunk| recipe.chunks()[*chunk as usize].length as usize).sum()
}

/// Reads chunks until it is told to stop.
struct Reader<'a, 'b> {
    read: &'a mut ReadChunk<'b>,
    go_on: &'a mut dyn FnMut() -> ControlFlow<()>,
}

impl Reader<'_, '_> {
    fn append(
        &mut self,
        side: Side,
        recipe: &Recipe,
        chunk: u32,
        to: &mut Vec<u8>,
    ) -> Result<(), DeltaError> {
        let start = to.len();
        (self.read)(side, chunk, to).map_err(DeltaError::Chunk)?;
        let Chunk { id, length, .. } = recipe.chunks()[chunk as usize];
        if to.len() - start != length as usize {
            return Err(DeltaError::Hash(id));
        }
        match (self.go_on)() {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(DeltaError::Cancelled),
        }
    }
}

fn sample(
    old: &Recipe,
    candidates: &[u32],
    reader: &mut Reader<'_, '_>,
) -> Result<Samples, DeltaError> {
    let lengths = candidates.iter().map(|at| u64::from(old.chunks()[*at as usize].length));
    let mut samples = Samples::new(lengths.sum());
    let mut content = Vec::new();
    for &chunk in candidates {
        content.clear();
        reader.append(Side::Old, old, chunk, &mut content)?;
        samples.remember(chunk, &content);
    }
    Ok(samples)
}

/// Consecutive chunks, as many as fit in a segment and its index.
fn segments<'a>(
    new: &Recipe,
    mut fresh: &'a [u32],
    bytes: usize,
) -> impl Iterator<Item = &'a [u32]> {
    /// Two varints of five bytes for each chunk, in either list.
    const CHUNKS_MAX: usize = INDEX_BYTES_MAX / 20 - 1;
    std::iter::from_fn(move || {
        let mut sum = 0;
        let fits = |chunk: &&u32| {
            sum += new.chunks()[**chunk as usize].length as usize;
            sum <= bytes
        };
        let count = fresh.iter().take(CHUNKS_MAX).take_while(fits).count();
        let (segment, rest) = fresh.split_at(count);
        fresh = rest;
        (count > 0).then_some(segment)
    })
}

/// The old chunks that `content` resembles most, ascending.
fn choose(samples: &Samples, content: &[u8], old: &Recipe, bytes_max: usize) -> Vec<u32> {
    const CHUNKS_MAX: usize = INDEX_BYTES_MAX / 20 - 1;
    let mut hits = HashMap::new();
    samples.count(content, &mut hits);
    let mut hits: Vec<(u32, u32)> = hits.into_iter().collect();
    hits.sort_unstable_by_key(|(chunk, count)| (std::cmp::Reverse(*count), *chunk));
    let mut sum = 0;
    let mut chosen: Vec<u32> = Vec::new();
    for (chunk, _) in hits.into_iter().take(CHUNKS_MAX) {
        sum += old.chunks()[chunk as usize].length as usize;
        if sum > bytes_max {
            break;
        }
        chosen.push(chunk);
    }
    chosen.sort_unstable();
    chosen
}

fn compress(content: &[u8], reference: &[u8]) -> Result<Vec<u8>, String> {
    let named = |code| get_error_name(code).to_owned();
    let window = (content.len() + reference.len()).next_power_of_two().ilog2().max(10);
    let mut context = CCtx::create();
    for parameter in [
        CParameter::CompressionLevel(COMPRESSION_LEVEL),
        CParameter::WindowLog(window),
        CParameter::HashLog(NEAR_TABLE_LOG),
        CParameter::ChainLog(NEAR_TABLE_LOG),
        CParameter::EnableLongDistanceMatching(true),
        CParameter::LdmMinMatch(FAR_MATCH_BYTES_MIN),
        CParameter::LdmHashRateLog(FAR_RATE_LOG),
        CParameter::LdmHashLog(FAR_TABLE_LOG),
    ] {
        context.set_parameter(parameter).map_err(named)?;
    }
    context.ref_prefix(reference).map_err(named)?;
    let mut frame = Vec::with_capacity(compress_bound(content.len()));
    context.compress2(&mut frame, content).map_err(named)?;
    Ok(frame)
}

/// Cuts the bundle into chunks and puts them into packs.
struct Bundle<S> {
    packs: PackBuilder<S>,
    /// Shorter than a chunk.
    rest: Vec<u8>,
    known: HashMap<ChunkId, u32>,
    chunks: Vec<Chunk>,
    extents: Vec<Extent>,
    length: u64,
}

impl<S: PackSink> Bundle<S> {
    fn new(sink: S) -> Self {
        Self {
            packs: PackBuilder::new(sink, PACK_BYTES),
            rest: Vec::new(),
            known: HashMap::new(),
            chunks: Vec::new(),
            extents: Vec::new(),
            length: 0,
        }
    }

    fn append(&mut self, mut bytes: &[u8]) -> Result<(), DeltaError> {
        self.length += bytes.len() as u64;
        while !bytes.is_empty() {
            let (head, tail) =
                bytes.split_at(bytes.len().min(CHUNK_BYTES_MAX as usize - self.rest.len()));
            self.rest.extend_from_slice(head);
            bytes = tail;
            if self.rest.len() == CHUNK_BYTES_MAX as usize {
                self.close_chunk()?;
            }
        }
        Ok(())
    }

    fn close_chunk(&mut self) -> Result<(), DeltaError> {
        let id = ChunkId::of(&self.rest);
        let offset = self.length_closed();
        let chunk = match self.known.get(&id) {
            Some(chunk) => *chunk,
            None => {
                let place = self.packs.append(&self.rest).map_err(DeltaError::Sink)?;
                let (length, object) = (self.rest.len() as u32, place.pack as u32);
                let encoding = Encoding::Raw;
                self.chunks.push(Chunk { id, length, object, at: place.at, encoding });
                let chunk = (self.chunks.len() - 1) as u32;
                self.known.insert(id, chunk);
                chunk
            }
        };
        self.extents.push(Extent { offset, chunk });
        self.rest.clear();
        Ok(())
    }

    /// Bytes before the chunk that is not closed yet.
    fn length_closed(&self) -> u64 {
        self.extents.len() as u64 * u64::from(CHUNK_BYTES_MAX)
    }

    fn finish(mut self) -> Result<(Recipe, S), DeltaError> {
        if !self.rest.is_empty() {
            self.close_chunk()?;
        }
        let (sink, objects) = self.packs.finish().map_err(DeltaError::Sink)?;
        let recipe = Recipe::new(RecipeKind::Blob, self.length, objects, self.chunks, self.extents)
            .expect("chunks of one length, each in a pack that is listed, and no hole");
        Ok((recipe, sink))
    }
}
