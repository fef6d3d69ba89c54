//! The ordered list of chunks of a disk or a blob, with where each lies.
//!
//! Encoded layout, version 1; integers are LEB128 varints unless a width is named:
//! ```text
//! magic "SHOALRCP"   8 bytes
//! version            1 byte, 1
//! kind               1 byte: 0 = blob, 1 = disk
//! length             bytes of content, holes included
//! object count, then for each: key text length, key text, object length in bytes
//! chunk count, then for each:
//!   id               32 bytes, BLAKE3 of the content
//!   length           bytes of content, 1 to CHUNK_BYTES_MAX
//!   object           index into the objects
//!   at               bytes from the end of the previous chunk in this object, zigzag
//!   encoding         0 = raw, 1 = zstd; for zstd the stored length follows
//! extent count, then for each:
//!   gap              bytes of hole since the end of the previous extent
//!   chunk            index relative to the last one plus one, zigzag
//! ```
//! Nothing may follow. Bytes that no extent covers read as zero.
//!
//! Invariants of every [`Recipe`]: extents ascend and do not overlap or pass `length`; every index
//! is in range; every stored range lies inside its object; each chunk id stands once.
//! Non-goals: making one (see `shoal-formats`), reading chunks.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::chunk::{CHUNK_BYTES_MAX, ChunkId};
use crate::object::{ObjectKey, RecipeId};

const MAGIC: &[u8; 8] = b"SHOALRCP";
const VERSION: u8 = 1;
/// The longest encoded recipe that is read, in bytes: about half a TiB of distinct content.
pub const RECIPE_BYTES_MAX: usize = 384 * 1024 * 1024;
/// The longest object key, in bytes.
const KEY_BYTES_MAX: u64 = 256;
/// A chunk takes at least this many encoded bytes, an extent at least two, an object at least two:
/// no count can make the decoder allocate more than a fixed multiple of what was sent.
const CHUNK_ENCODED_BYTES_MIN: usize = 36;
const EXTENT_ENCODED_BYTES_MIN: usize = 2;

/// What a recipe's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RecipeKind {
    /// An OCI blob, byte for byte; it has no holes.
    Blob,
    /// What a guest sees of a disk.
    Disk,
}

/// How a chunk's bytes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Encoding {
    /// As they are; the stored length is the chunk's.
    Raw,
    /// One zstd frame of this many bytes.
    Zstd { stored: u32 },
}

/// An object that chunks lie in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceObject {
    pub key: ObjectKey,
    /// In bytes.
    pub length: u64,
}

/// One distinct chunk, and where it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    pub id: ChunkId,
    /// Bytes of content, from 1 to [`CHUNK_BYTES_MAX`].
    pub length: u32,
    /// Index into [`Recipe::objects`].
    pub object: u32,
    /// Where the stored bytes start in the object.
    pub at: u64,
    pub encoding: Encoding,
}

impl Chunk {
    /// Bytes it takes in its object.
    pub const fn stored(&self) -> u32 {
        match self.encoding {
            Encoding::Raw => self.length,
            Encoding::Zstd { stored } => stored,
        }
    }
}

/// A place in the content where a chunk stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes from the content's start.
    pub offset: u64,
    /// Index into [`Recipe::chunks`].
    pub chunk: u32,
}

/// Why bytes or parts are no recipe.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RecipeError {
    #[error("not a recipe: it does not start with the magic bytes")]
    Magic,
    #[error("recipe version {0} is newer than this program; upgrade it")]
    Version(u8),
    #[error("the recipe ends early or has a number out of range at byte {0}")]
    Malformed(usize),
    #[error("bytes follow the recipe's end")]
    Trailing,
    #[error("the recipe is longer than {RECIPE_BYTES_MAX} bytes")]
    TooLong,
    #[error("the recipe is inconsistent: {0}")]
    Inconsistent(&'static str),
}

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    kind: RecipeKind,
    length: u64,
    objects: Vec<SourceObject>,
    chunks: Vec<Chunk>,
    extents: Vec<Extent>,
}

impl Recipe {
    /// # Errors
    /// [`RecipeError::Inconsistent`] where the parts break an invariant of this type.
    pub fn new(
        kind: RecipeKind,
        length: u64,
        objects: Vec<SourceObject>,
        chunks: Vec<Chunk>,
        extents: Vec<Extent>,
    ) -> Result<Self, RecipeError> {
        let recipe = Self { kind, length, objects, chunks, extents };
        recipe.check()?;
        Ok(recipe)
    }

    fn check(&self) -> Result<(), RecipeError> {
        let ensure = |holds: bool, broken| {
            if holds { Ok(()) } else { Err(RecipeError::Inconsistent(broken)) }
        };
        let mut seen = HashSet::with_capacity(self.chunks.len());
        for chunk in &self.chunks {
            ensure((1..=CHUNK_BYTES_MAX).contains(&chunk.length), "a chunk's length")?;
            ensure(chunk.stored() > 0, "a stored length of zero")?;
            let object = self.objects.get(chunk.object as usize);
            let object = object.ok_or(RecipeError::Inconsistent("an object's index"))?;
            let end = chunk.at.checked_add(u64::from(chunk.stored()));
            ensure(end.is_some_and(|end| end <= object.length), "a chunk beyond its object")?;
            ensure(seen.insert(chunk.id), "a chunk listed twice")?;
        }
        let mut end = 0;
        for extent in &self.extents {
            let chunk = self.chunks.get(extent.chunk as usize);
            let chunk = chunk.ok_or(RecipeError::Inconsistent("a chunk's index"))?;
            ensure(extent.offset >= end, "extents that overlap")?;
            ensure(self.kind == RecipeKind::Disk || extent.offset == end, "a hole in a blob")?;
            end = extent.offset.saturating_add(u64::from(chunk.length));
            ensure(end <= self.length, "an extent beyond the content")?;
        }
        ensure(self.kind == RecipeKind::Disk || end == self.length, "a blob that ends in a hole")
    }

    pub fn kind(&self) -> RecipeKind {
        self.kind
    }

    /// Bytes of content, holes included.
    pub fn length(&self) -> u64 {
        self.length
    }

    pub fn objects(&self) -> &[SourceObject] {
        &self.objects
    }

    /// The distinct chunks; a chunk's index here is its index in a swarm.
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Bytes of distinct content: what a host with nothing must fetch.
    pub fn chunk_bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| u64::from(chunk.length)).sum()
    }

    /// The extents that touch `offset..offset + length`, found in logarithmic time.
    pub fn extents_in(&self, offset: u64, length: u64) -> &[Extent] {
        let end = offset.saturating_add(length);
        let reach =
            |extent: &Extent| extent.offset + u64::from(self.chunks[extent.chunk as usize].length);
        let first = self.extents.partition_point(|extent| reach(extent) <= offset);
        let last = self.extents.partition_point(|extent| extent.offset < end);
        &self.extents[first..last.max(first)]
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.chunks.len() * 44 + self.extents.len() * 3);
        out.extend_from_slice(MAGIC);
        out.push(VERSION);
        out.push(match self.kind {
            RecipeKind::Blob => 0,
            RecipeKind::Disk => 1,
        });
        put(&mut out, self.length);
        put(&mut out, self.objects.len() as u64);
        for object in &self.objects {
            let key = object.key.to_string();
            put(&mut out, key.len() as u64);
            out.extend_from_slice(key.as_bytes());
            put(&mut out, object.length);
        }
        put(&mut out, self.chunks.len() as u64);
        let mut ends = vec![0u64; self.objects.len()];
        for chunk in &self.chunks {
            out.extend_from_slice(chunk.id.as_bytes());
            put(&mut out, u64::from(chunk.length));
            put(&mut out, u64::from(chunk.object));
            let end = &mut ends[chunk.object as usize];
            put(&mut out, zigzag(chunk.at.wrapping_sub(*end) as i64));
            *end = chunk.at + u64::from(chunk.stored());
            match chunk.encoding {
                Encoding::Raw => out.push(0),
                Encoding::Zstd { stored } => {
                    out.push(1);
                    put(&mut out, u64::from(stored));
                }
            }
        }
        put(&mut out, self.extents.len() as u64);
        let (mut end, mut next) = (0, 0i64);
        for extent in &self.extents {
            put(&mut out, extent.offset - end);
            put(&mut out, zigzag(i64::from(extent.chunk) - next));
            end = extent.offset + u64::from(self.chunks[extent.chunk as usize].length);
            next = i64::from(extent.chunk) + 1;
        }
        out
    }

    /// Encodes, and names the result.
    pub fn encode_with_id(&self) -> (RecipeId, Vec<u8>) {
        let encoded = self.encode();
        (RecipeId::of(&encoded), encoded)
    }

    /// Memory is bounded by a fixed multiple of `bytes.len()`.
    ///
    /// # Errors
    /// Everything that is not exactly one recipe. The caller checks the [`RecipeId`] first where
    /// the bytes come from a stranger.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecipeError> {
        if bytes.len() > RECIPE_BYTES_MAX {
            return Err(RecipeError::TooLong);
        }
        let mut input = Input { bytes, at: 0 };
        if input.take(MAGIC.len()).ok() != Some(&MAGIC[..]) {
            return Err(RecipeError::Magic);
        }
        let version = input.byte()?;
        if version != VERSION {
            return Err(RecipeError::Version(version));
        }
        let kind = match input.byte()? {
            0 => RecipeKind::Blob,
            1 => RecipeKind::Disk,
            _ => return Err(input.malformed()),
        };
        let length = input.number()?;
        let objects = input.objects()?;
        let chunks = input.chunks(objects.len())?;
        let extents = input.extents(&chunks)?;
        if input.at != bytes.len() {
            return Err(RecipeError::Trailing);
        }
        Self::new(kind, length, objects, chunks, extents)
    }
}

fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

const fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

const fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

/// A cursor that never reads past its end.
struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn malformed(&self) -> RecipeError {
        RecipeError::Malformed(self.at)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], RecipeError> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| self.malformed())?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, RecipeError> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self) -> Result<u64, RecipeError> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(self.malformed());
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(self.malformed())
    }

    fn small(&mut self) -> Result<u32, RecipeError> {
        u32::try_from(self.number()?).map_err(|_| self.malformed())
    }

    /// A count of things that take at least `each` bytes: refused where so many cannot follow.
    fn count(&mut self, each: usize) -> Result<usize, RecipeError> {
        let count = usize::try_from(self.number()?).map_err(|_| self.malformed())?;
        if count > (self.bytes.len() - self.at) / each {
            return Err(self.malformed());
        }
        Ok(count)
    }

    fn objects(&mut self) -> Result<Vec<SourceObject>, RecipeError> {
        let count = self.count(2)?;
        let mut objects = Vec::with_capacity(count.min(1024));
        for _ in 0..count {
            let key_length = self.number()?;
            if key_length > KEY_BYTES_MAX {
                return Err(self.malformed());
            }
            let key = self.take(key_length as usize)?;
            let key = str::from_utf8(key).ok().and_then(|text| text.parse().ok());
            let key = key.ok_or_else(|| self.malformed())?;
            objects.push(SourceObject { key, length: self.number()? });
        }
        Ok(objects)
    }

    fn chunks(&mut self, objects: usize) -> Result<Vec<Chunk>, RecipeError> {
        let count = self.count(CHUNK_ENCODED_BYTES_MIN)?;
        let mut ends = vec![0u64; objects];
        let mut chunks = Vec::with_capacity(count);
        for _ in 0..count {
            let mut id = [0; 32];
            id.copy_from_slice(self.take(32)?);
            let length = self.small()?;
            let object = self.small()?;
            let step = unzigzag(self.number()?);
            let end = ends.get_mut(object as usize).ok_or(RecipeError::Malformed(self.at))?;
            let at = end.checked_add_signed(step).ok_or(RecipeError::Malformed(self.at))?;
            let encoding = match self.byte()? {
                0 => Encoding::Raw,
                1 => Encoding::Zstd { stored: self.small()? },
                _ => return Err(self.malformed()),
            };
            let chunk = Chunk { id: ChunkId::from_bytes(id), length, object, at, encoding };
            let stored = u64::from(chunk.stored());
            *end = at.checked_add(stored).ok_or(RecipeError::Malformed(self.at))?;
            chunks.push(chunk);
        }
        Ok(chunks)
    }

    fn extents(&mut self, chunks: &[Chunk]) -> Result<Vec<Extent>, RecipeError> {
        let count = self.count(EXTENT_ENCODED_BYTES_MIN)?;
        let mut extents = Vec::with_capacity(count);
        let (mut end, mut next) = (0u64, 0i64);
        for _ in 0..count {
            let gap = self.number()?;
            let offset = end.checked_add(gap).ok_or_else(|| self.malformed())?;
            let index = next.checked_add(unzigzag(self.number()?));
            let chunk = index.and_then(|index| u32::try_from(index).ok());
            let chunk = chunk.ok_or_else(|| self.malformed())?;
            let length = chunks.get(chunk as usize).ok_or_else(|| self.malformed())?.length;
            end = offset.checked_add(u64::from(length)).ok_or_else(|| self.malformed())?;
            next = i64::from(chunk) + 1;
            extents.push(Extent { offset, chunk });
        }
        Ok(extents)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::object::PackId;

    fn sample() -> Recipe {
        let objects =
            vec![SourceObject { key: ObjectKey::Pack(PackId::of(b"pack")), length: 1 << 20 }];
        let chunk = |n: u8, length, at, encoding| Chunk {
            id: ChunkId::of(&[n]),
            length,
            object: 0,
            at,
            encoding,
        };
        let chunks = vec![
            chunk(1, 65536, 1000, Encoding::Zstd { stored: 500 }),
            chunk(2, 4096, 0, Encoding::Raw),
        ];
        let extents = vec![
            Extent { offset: 512, chunk: 0 },
            Extent { offset: 1 << 30, chunk: 1 },
            Extent { offset: (1 << 30) + 4096, chunk: 1 },
        ];
        Recipe::new(RecipeKind::Disk, 1 << 40, objects, chunks, extents).unwrap()
    }

    #[test]
    fn decodes_what_it_encodes() {
        let recipe = sample();
        let (id, encoded) = recipe.encode_with_id();
        assert_eq!(id, RecipeId::of(&encoded));
        assert_eq!(Recipe::decode(&encoded), Ok(recipe));
    }

    #[test]
    fn finds_the_extents_of_a_range() {
        let recipe = sample();
        assert_eq!(recipe.extents_in(0, 512), &[]);
        assert_eq!(recipe.extents_in(0, 513).len(), 1);
        assert_eq!(recipe.extents_in(66047, 1).len(), 1);
        assert_eq!(recipe.extents_in(66048, 1 << 20), &[]);
        assert_eq!(recipe.extents_in((1 << 30) + 4095, 2).len(), 2);
    }

    #[test]
    fn refuses_parts_that_break_an_invariant() {
        let recipe = sample();
        let rebuilt = |change: fn(&mut Recipe)| {
            let mut parts = recipe.clone();
            change(&mut parts);
            Recipe::new(parts.kind, parts.length, parts.objects, parts.chunks, parts.extents)
        };
        assert!(rebuilt(|r| r.extents.swap(0, 1)).is_err());
        assert!(rebuilt(|r| r.length = 100).is_err());
        assert!(rebuilt(|r| r.chunks[1].length = CHUNK_BYTES_MAX + 1).is_err());
        assert!(rebuilt(|r| r.chunks[1].id = r.chunks[0].id).is_err());
        assert!(rebuilt(|r| r.chunks[0].at = u64::MAX).is_err());
        assert!(rebuilt(|r| r.kind = RecipeKind::Blob).is_err());
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_refused_without_a_panic(
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = sample().encode();
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            if let Ok(recipe) = Recipe::decode(&bytes) {
                prop_assert_eq!(Recipe::decode(&recipe.encode()), Ok(recipe));
            }
        }
    }
}
