//! Writes a disk in any writable format from its recipe, on the fly.
//!
//! An [`Export`] describes the file: its exact length, and what each range of it is made of. Range
//! requests need no file and no temporary space, and two exports of one recipe are equal byte for
//! byte.
//!
//! Invariant: memory is bounded by the recipe's and a fixed multiple of its extents; content is
//! asked for by chunk, and never for a hole.
//! Non-goals: fetching chunks; syncing what was written.

mod adler32;
mod file;
pub(crate) mod layout;
pub(crate) mod part;
pub(crate) mod runs;
mod target;

use std::io;
use std::sync::Arc;

use shoal_content::{Extent, Recipe, RecipeKind};
use thiserror::Error;

pub use adler32::Adler32;
pub use file::{ExportProgress, WRITE_BYTES_MAX, write_file};
pub(crate) use file::{drop_content, write_while};
pub use target::{Target, TargetError};

use crate::{ova, qcow2, vhd, vhdx, vmdk};
use layout::{FileLayout, Identity};
use part::Part;

/// A part of an exported file, in file order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Bytes of the format's own: headers and tables. At most 64 KiB, at least 1.
    Bytes(Vec<u8>),
    /// This many zero bytes, which a file may leave as a hole.
    Zero(u64),
    /// Bytes `from..from + length` of the content of chunk number `chunk` of the recipe; the guest
    /// sees them at `guest`.
    Chunk { chunk: u32, from: u32, length: u32, guest: u64 },
    /// Bytes `from..from + length` of the Adler-32 of `of` guest bytes from `guest` on, which
    /// [`Export::guest_pieces`] lists.
    Adler32 { guest: u64, of: u32, from: u8, length: u8 },
}

impl Piece {
    /// Bytes of the file that it stands for.
    pub fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Zero(length) => *length,
            Self::Chunk { length, .. } => u64::from(*length),
            Self::Adler32 { length, .. } => u64::from(*length),
        }
    }
}

/// Why a disk could not be exported.
#[derive(Debug, Error)]
pub enum ExportError {
    #[error("the recipe is of a blob, not of a disk")]
    NotADisk,
    #[error("a disk of {0} bytes is larger than the format can hold")]
    TooLarge(u64),
    #[error("bytes {at} to {end} are not all within the exported file's {length} bytes")]
    Range { at: u64, end: u64, length: u64 },
    #[error("reading guest bytes at {at} failed")]
    Content {
        /// Guest bytes from the disk's start.
        at: u64,
        #[source]
        error: io::Error,
    },
    #[error("writing the exported file at {at} failed")]
    Write {
        /// Bytes from the file's start.
        at: u64,
        #[source]
        error: io::Error,
    },
    #[error("the export was cancelled")]
    Cancelled,
}

impl ExportError {
    /// Whether the same call may work later.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Content { .. } | Self::Write { .. })
    }
}

/// Fills a buffer with guest bytes from an offset, all of them inside one chunk of the recipe.
pub type Content<'a> = dyn FnMut(u64, &mut [u8]) -> io::Result<()> + 'a;

/// See the module's documentation. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Export {
    recipe: Arc<Recipe>,
    target: Target,
    layout: Arc<dyn FileLayout>,
}

impl Export {
    /// # Errors
    /// [`ExportError::NotADisk`] or [`TooLarge`](ExportError::TooLarge).
    pub fn new(target: impl Into<Target>, recipe: Arc<Recipe>) -> Result<Self, ExportError> {
        if recipe.kind() != RecipeKind::Disk {
            return Err(ExportError::NotADisk);
        }
        let target = target.into();
        let layout = layout_of(target, &recipe).ok_or(ExportError::TooLarge(recipe.length()))?;
        Ok(Self { recipe, target, layout })
    }

    pub fn target(&self) -> Target {
        self.target
    }

    pub fn recipe(&self) -> &Arc<Recipe> {
        &self.recipe
    }

    /// The exact length of the file, in bytes.
    pub fn len(&self) -> u64 {
        self.layout.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the file's bytes `offset..offset + length` are made of, in order and without a gap;
    /// clipped to the file's end.
    pub fn pieces(&self, offset: u64, length: u64) -> Pieces<'_> {
        let end = offset.saturating_add(length).min(self.len());
        Pieces { export: self, at: offset, end }
    }

    /// Where guest byte `guest` lies in the file, and how many bytes follow it there in guest
    /// order; `None` where the file keeps no room for it. A writer that gets chunks in any order
    /// puts each where it belongs with this, and the rest by [`pieces`](Self::pieces).
    pub fn locate(&self, guest: u64) -> Option<(u64, u64)> {
        let left = self.recipe.length().checked_sub(guest).filter(|&left| left > 0)?;
        self.layout.locate(guest).map(|(at, follow)| (at, follow.min(left)))
    }

    /// What `length` guest bytes from `guest` on are made of: holes and chunks, in order. Past the
    /// disk's end they are zero.
    pub fn guest_pieces(&self, guest: u64, length: u64) -> impl Iterator<Item = Piece> {
        let end = guest.saturating_add(length);
        let mut at = guest;
        std::iter::from_fn(move || {
            let most = end.checked_sub(at).filter(|&most| most > 0)?;
            let piece = self.guest_piece(at, most);
            at += piece.length();
            Some(piece)
        })
    }

    /// The Adler-32 of `of` guest bytes from `guest` on.
    fn adler32(
        &self,
        guest: u64,
        of: u32,
        content: &mut Content<'_>,
    ) -> Result<[u8; 4], ExportError> {
        let mut sum = Adler32::default();
        let mut buffer = Vec::new();
        for piece in self.guest_pieces(guest, u64::from(of)) {
            match piece {
                Piece::Chunk { guest, length, .. } => {
                    buffer.resize(length as usize, 0);
                    content(guest, &mut buffer)
                        .map_err(|error| ExportError::Content { at: guest, error })?;
                    sum.update(&buffer);
                }
                hole => sum.zeros(hole.length()),
            }
        }
        Ok(sum.to_bytes())
    }

    /// Fills `buf` with the file's bytes from `offset`. `content` is asked for guest bytes, within
    /// one chunk at a time.
    ///
    /// # Errors
    /// [`ExportError::Range`], or [`ExportError::Content`] with what `content` returned.
    pub fn read_at(
        &self,
        offset: u64,
        buf: &mut [u8],
        content: &mut Content<'_>,
    ) -> Result<(), ExportError> {
        let length = self.len();
        let end = offset.checked_add(buf.len() as u64).filter(|&end| end <= length);
        if end.is_none() {
            let end = offset.saturating_add(buf.len() as u64);
            return Err(ExportError::Range { at: offset, end, length });
        }
        let mut rest = buf;
        for piece in self.pieces(offset, rest.len() as u64) {
            let (part, after) = rest.split_at_mut(piece.length() as usize);
            rest = after;
            match piece {
                Piece::Bytes(bytes) => part.copy_from_slice(&bytes),
                Piece::Zero(_) => part.fill(0),
                Piece::Chunk { guest, .. } => content(guest, part)
                    .map_err(|error| ExportError::Content { at: guest, error })?,
                Piece::Adler32 { guest, of, from, length } => {
                    let sum = self.adler32(guest, of, content)?;
                    part.copy_from_slice(&sum[usize::from(from)..usize::from(from + length)]);
                }
            }
        }
        Ok(())
    }

    /// The piece that starts at `at`, which is before the end, and is at most `most` bytes long.
    fn piece(&self, at: u64, most: u64) -> Piece {
        match self.layout.part(at, most) {
            Part::Bytes(bytes) => Piece::Bytes(bytes),
            Part::Zero(length) => Piece::Zero(length),
            Part::Guest { guest, length } => self.guest_piece(guest, length),
            // It fits: a grain has 64 KiB.
            Part::Adler32 { guest, of, from, length } => {
                Piece::Adler32 { guest, of: of as u32, from, length }
            }
        }
    }

    fn guest_piece(&self, guest: u64, most: u64) -> Piece {
        let extents = self.recipe.extents();
        let next = extents.partition_point(|extent| reach(&self.recipe, extent) <= guest);
        match extents.get(next) {
            None => Piece::Zero(most),
            Some(extent) if extent.offset > guest => Piece::Zero(most.min(extent.offset - guest)),
            Some(extent) => Piece::Chunk {
                chunk: extent.chunk,
                // Both fit: a chunk has at most 256 KiB.
                from: (guest - extent.offset) as u32,
                length: most.min(reach(&self.recipe, extent) - guest) as u32,
                guest,
            },
        }
    }
}

/// `None` where the disk is larger than the format can hold.
fn layout_of(target: Target, recipe: &Recipe) -> Option<Arc<dyn FileLayout>> {
    let length = recipe.length();
    let used = || recipe.extents().iter().map(|extent| extent.offset..reach(recipe, extent));
    let identity = || identity(recipe);
    let limit = match target {
        Target::Raw => u64::MAX,
        Target::Qcow2 => qcow2::VIRTUAL_BYTES_MAX,
        Target::Vmdk | Target::VmdkStream | Target::Ova => vmdk::VIRTUAL_BYTES_MAX,
        Target::Vhd | Target::VhdFixed => vhd::VIRTUAL_BYTES_MAX,
        Target::Vhdx => vhdx::VIRTUAL_BYTES_MAX,
    };
    if length > limit {
        return None;
    }
    Some(match target {
        Target::Raw => Arc::new(RawLayout { length }),
        Target::Qcow2 => Arc::new(qcow2::Layout::new(length, used())),
        Target::Vmdk => Arc::new(vmdk::SparseLayout::new(length, used(), identity())?),
        Target::VmdkStream => Arc::new(vmdk::StreamLayout::new(length, used(), identity())?),
        Target::Vhd => Arc::new(vhd::DynamicLayout::new(length, used(), identity())),
        Target::VhdFixed => Arc::new(vhd::FixedLayout::new(length, identity())),
        Target::Vhdx => Arc::new(vhdx::Layout::new(length, used(), identity())),
        Target::Ova => Arc::new(ova::Layout::new(length, used(), identity())?),
    })
}

/// Of the content alone: chunks that were stored anew are the same disk.
fn identity(recipe: &Recipe) -> Identity {
    let mut hash = blake3::Hasher::new();
    hash.update(&recipe.length().to_le_bytes());
    for extent in recipe.extents() {
        hash.update(&extent.offset.to_le_bytes());
        hash.update(recipe.chunks()[extent.chunk as usize].id.as_bytes());
    }
    let mut identity = [0; 16];
    identity.copy_from_slice(&hash.finalize().as_bytes()[..16]);
    Identity(identity)
}

/// The guest's bytes as they are.
#[derive(Debug)]
struct RawLayout {
    length: u64,
}

impl FileLayout for RawLayout {
    fn len(&self) -> u64 {
        self.length
    }

    fn locate(&self, guest: u64) -> Option<(u64, u64)> {
        let left = self.length.checked_sub(guest).filter(|&left| left > 0)?;
        Some((guest, left))
    }

    fn part(&self, at: u64, most: u64) -> Part {
        Part::Guest { guest: at, length: most }
    }
}

/// The guest offset after the extent.
fn reach(recipe: &Recipe, extent: &Extent) -> u64 {
    extent.offset + u64::from(recipe.chunks()[extent.chunk as usize].length)
}

/// The iterator of [`Export::pieces`].
#[derive(Debug, Clone)]
pub struct Pieces<'a> {
    export: &'a Export,
    at: u64,
    end: u64,
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        let most = self.end.checked_sub(self.at).filter(|&most| most > 0)?;
        let piece = self.export.piece(self.at, most);
        self.at += piece.length();
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use shoal_content::{Chunk, ChunkId, Encoding, ObjectKey, PackId, SourceObject};

    use super::*;

    fn recipe(length: u64, offsets: &[u64]) -> Arc<Recipe> {
        let content = [7; 5000];
        let chunk = Chunk {
            id: ChunkId::of(&content),
            length: 5000,
            object: 0,
            at: 0,
            encoding: Encoding::Raw,
        };
        let key = ObjectKey::Pack(PackId::of(&content));
        let extents = offsets.iter().map(|&offset| Extent { offset, chunk: 0 }).collect();
        let objects = vec![SourceObject { key, length: 5000 }];
        Arc::new(Recipe::new(RecipeKind::Disk, length, objects, vec![chunk], extents).unwrap())
    }

    fn fill(_: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.fill(7);
        Ok(())
    }

    #[test]
    fn any_range_reads_as_it_does_in_the_whole() {
        let recipe = recipe(3_000_001, &[0, 60_000, 65_000, 500_000, 2_995_001]);
        for target in Target::ALL {
            let export = Export::new(target, Arc::clone(&recipe)).unwrap();
            let mut whole = vec![1; export.len() as usize];
            export.read_at(0, &mut whole, &mut fill).unwrap();
            let mut ranges = vec![(0, 1), (111, 2), (65_530, 70_000), (whole.len() - 9, 9)];
            // All borders that a layout can have are within a few bytes of these.
            ranges.extend((0..whole.len() - 700).step_by(509).map(|at| (at, 2)));
            ranges.extend((0..whole.len() - 700).step_by(32_768).map(|at| (at + 30, 600)));
            for (offset, length) in ranges {
                let mut part = vec![2; length];
                export.read_at(offset as u64, &mut part, &mut fill).unwrap();
                assert_eq!(part, whole[offset..offset + length], "{target} at {offset}");
            }
            let past = export.read_at(export.len(), &mut [0], &mut fill);
            assert!(matches!(past, Err(ExportError::Range { .. })));
        }
    }

    #[test]
    fn a_chunk_can_be_placed_before_the_rest_is_there() {
        let recipe = recipe(1 << 40, &[0, 1 << 30, (1 << 40) - 5000]);
        for target in Target::ALL {
            let export = Export::new(target, Arc::clone(&recipe)).unwrap();
            for extent in recipe.extents() {
                let (at, follow) = export.locate(extent.offset).unwrap();
                let piece = export.pieces(at, follow).next().unwrap();
                let length = follow.min(5000) as u32;
                let guest = extent.offset;
                assert_eq!(piece, Piece::Chunk { chunk: 0, from: 0, length, guest }, "{target}");
            }
        }
    }

    /// Digests of exported files are published: a change here is a new version of the writers.
    #[test]
    fn bytes_stay_as_they_are() {
        let recipe = recipe(70_000_001, &[0, 60_000, 65_000, 40_000_000, 69_995_001]);
        let digests = Target::ALL.map(|target| {
            let export = Export::new(target, Arc::clone(&recipe)).unwrap();
            let mut whole = vec![1; export.len() as usize];
            export.read_at(0, &mut whole, &mut fill).unwrap();
            format!("{target} {} {}", whole.len(), &blake3::hash(&whole).to_hex()[..16])
        });
        assert_eq!(digests, GOLDEN);
    }

    const GOLDEN: [&str; 8] = [
        "raw 70000001 498727b3a42b3b32",
        "qcow2 589824 2b7b656b69706a7e",
        "vmdk 327680 1d98a4ae965a0285",
        "vmdk-stream 339968 f6d519d844a5d26e",
        "vhd 6295552 23778d35b51d2e81",
        "vhd-fixed 70000640 d876bf35091fcc5d",
        "vhdx 7340032 b5933221f2313da4",
        "ova 344576 656b381e446dd189",
    ];

    #[test]
    fn refuses_what_is_too_large() {
        for target in Target::ALL {
            let huge = Export::new(target, recipe(u64::MAX, &[]));
            let refused = matches!(huge, Err(ExportError::TooLarge(u64::MAX)));
            assert_eq!(refused, target != Target::Raw, "{target}");
        }
    }

    #[test]
    fn a_failing_source_is_named_with_its_place() {
        let export = Export::new(Target::Raw, recipe(10_000, &[3000])).unwrap();
        let mut broken = |_: u64, _: &mut [u8]| Err(io::Error::other("gone"));
        let error = export.read_at(0, &mut [0; 4000], &mut broken).unwrap_err();
        assert!(matches!(error, ExportError::Content { at: 3000, .. }));
    }
}
