//! Writes a disk in any writable format from its recipe, on the fly.
//!
//! An [`Export`] describes the file: its exact length, and what each range of it is made of. Range
//! requests need no file and no temporary space, and two exports of one recipe are equal byte for
//! byte.
//!
//! Invariant: memory is bounded by the recipe's and a fixed multiple of its extents; content is
//! asked for by chunk, and never for a hole.
//! Non-goals: fetching chunks; syncing what was written.

mod file;

use std::io;
use std::sync::Arc;

use shoal_content::{Extent, Recipe, RecipeKind};
use thiserror::Error;

pub use file::{ExportProgress, write_file};

use crate::disk::Format;
use crate::qcow2::{self, Part};

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
}

impl Piece {
    /// Bytes of the file that it stands for.
    pub fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Zero(length) => *length,
            Self::Chunk { length, .. } => u64::from(*length),
        }
    }
}

/// Why a disk could not be exported.
#[derive(Debug, Error)]
pub enum ExportError {
    #[error("writing {0} images is not supported yet")]
    Unsupported(Format),
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

#[derive(Debug, Clone)]
enum Layout {
    Raw,
    Qcow2(Arc<qcow2::Layout>),
}

/// See the module's documentation. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Export {
    recipe: Arc<Recipe>,
    layout: Layout,
}

impl Export {
    /// # Errors
    /// [`ExportError::Unsupported`], [`NotADisk`](ExportError::NotADisk) or
    /// [`TooLarge`](ExportError::TooLarge).
    pub fn new(format: Format, recipe: Arc<Recipe>) -> Result<Self, ExportError> {
        if recipe.kind() != RecipeKind::Disk {
            return Err(ExportError::NotADisk);
        }
        let layout = match format {
            Format::Raw => Layout::Raw,
            Format::Qcow2 => {
                if recipe.length() > qcow2::VIRTUAL_BYTES_MAX {
                    return Err(ExportError::TooLarge(recipe.length()));
                }
                let used = recipe.extents().iter().map(|e| e.offset..reach(&recipe, e));
                Layout::Qcow2(Arc::new(qcow2::Layout::new(recipe.length(), used)))
            }
            Format::Vmdk | Format::Vhd | Format::Vhdx => {
                return Err(ExportError::Unsupported(format));
            }
        };
        Ok(Self { recipe, layout })
    }

    pub fn format(&self) -> Format {
        match self.layout {
            Layout::Raw => Format::Raw,
            Layout::Qcow2(_) => Format::Qcow2,
        }
    }

    pub fn recipe(&self) -> &Arc<Recipe> {
        &self.recipe
    }

    /// The exact length of the file, in bytes.
    pub fn len(&self) -> u64 {
        match &self.layout {
            Layout::Raw => self.recipe.length(),
            Layout::Qcow2(layout) => layout.len(),
        }
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
        match &self.layout {
            Layout::Raw => Some((guest, left)),
            Layout::Qcow2(layout) => {
                layout.locate(guest).map(|(at, follow)| (at, follow.min(left)))
            }
        }
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
            }
        }
        Ok(())
    }

    /// The piece that starts at `at`, which is before the end, and is at most `most` bytes long.
    fn piece(&self, at: u64, most: u64) -> Piece {
        match &self.layout {
            Layout::Raw => self.guest_piece(at, most),
            Layout::Qcow2(layout) => match layout.part(at, most) {
                Part::Bytes(bytes) => Piece::Bytes(bytes),
                Part::Zero(length) => Piece::Zero(length),
                Part::Guest { guest, length } => self.guest_piece(guest, length),
            },
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
        let recipe = recipe(1_000_001, &[0, 60_000, 65_000, 500_000, 995_001]);
        for format in [Format::Raw, Format::Qcow2] {
            let export = Export::new(format, Arc::clone(&recipe)).unwrap();
            let mut whole = vec![1; export.len() as usize];
            export.read_at(0, &mut whole, &mut fill).unwrap();
            for (offset, length) in [(0, 1), (111, 2), (65_530, 70_000), (whole.len() - 9, 9)] {
                let mut part = vec![2; length];
                export.read_at(offset as u64, &mut part, &mut fill).unwrap();
                assert_eq!(part, whole[offset..offset + length], "{format} at {offset}");
            }
            let past = export.read_at(export.len(), &mut [0], &mut fill);
            assert!(matches!(past, Err(ExportError::Range { .. })));
        }
    }

    #[test]
    fn a_chunk_can_be_placed_before_the_rest_is_there() {
        let recipe = recipe(1 << 40, &[0, 1 << 30, (1 << 40) - 5000]);
        for format in [Format::Raw, Format::Qcow2] {
            let export = Export::new(format, Arc::clone(&recipe)).unwrap();
            for extent in recipe.extents() {
                let (at, follow) = export.locate(extent.offset).unwrap();
                assert!(follow >= 5000);
                let piece = export.pieces(at, 5000).next().unwrap();
                let guest = extent.offset;
                assert_eq!(piece, Piece::Chunk { chunk: 0, from: 0, length: 5000, guest });
            }
        }
    }

    #[test]
    fn refuses_what_it_cannot_write() {
        let disk = recipe(10_000, &[0]);
        for format in [Format::Vmdk, Format::Vhd, Format::Vhdx] {
            assert!(!format.is_writable());
            let refused = Export::new(format, Arc::clone(&disk));
            assert!(matches!(refused, Err(ExportError::Unsupported(named)) if named == format));
        }
        let huge = Export::new(Format::Qcow2, recipe(u64::MAX, &[]));
        assert!(matches!(huge, Err(ExportError::TooLarge(u64::MAX))));
    }

    #[test]
    fn a_failing_source_is_named_with_its_place() {
        let export = Export::new(Format::Raw, recipe(10_000, &[3000])).unwrap();
        let mut broken = |_: u64, _: &mut [u8]| Err(io::Error::other("gone"));
        let error = export.read_at(0, &mut [0; 4000], &mut broken).unwrap_err();
        assert!(matches!(error, ExportError::Content { at: 3000, .. }));
    }
}
