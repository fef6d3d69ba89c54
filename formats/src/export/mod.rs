//! skeleton
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use shoal_content::Recipe;
use thiserror::Error;

use crate::disk::Format;

/// A part of an exported file, in file order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Bytes of the format's own: headers and tables. At most 64 KiB.
    Bytes(Vec<u8>),
    /// This many zero bytes, which a file may leave as a hole.
    Zero(u64),
    /// Content of chunk `chunk` (its index in the recipe), bytes `from..from + length` of it,
    /// which the guest sees at `guest`.
    Chunk { chunk: u32, from: u32, length: u32, guest: u64 },
}

#[derive(Debug, Error)]
pub enum ExportError {
    #[error("{0} cannot be written yet")]
    Unsupported(Format),
    #[error("the recipe is of a blob, not of a disk")]
    NotADisk,
    #[error("a disk of {0} bytes is larger than the format can hold")]
    TooLarge(u64),
    #[error("bytes {at} to {end} are not all within the exported file's {length} bytes")]
    Range { at: u64, end: u64, length: u64 },
    #[error("reading guest bytes at {at} failed")]
    Content {
        at: u64,
        #[source]
        error: io::Error,
    },
    #[error("writing the exported file at {at} failed")]
    Write {
        at: u64,
        #[source]
        error: io::Error,
    },
    #[error("the export was cancelled")]
    Cancelled,
}

/// How far [`write_file`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportProgress {
    /// File bytes done, holes included.
    pub bytes_done: u64,
    pub bytes_total: u64,
    /// Guest content written so far, in bytes.
    pub content_done: u64,
}

/// A disk in a format, not made but described.
#[derive(Debug, Clone)]
pub struct Export {
    recipe: Arc<Recipe>,
    format: Format,
}

impl Export {
    pub fn new(format: Format, recipe: Arc<Recipe>) -> Result<Self, ExportError> {
        Ok(Self { recipe, format })
    }
    pub fn format(&self) -> Format {
        self.format
    }
    pub fn recipe(&self) -> &Arc<Recipe> {
        &self.recipe
    }
    /// The exact length of the file, in bytes.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        todo!()
    }
    /// What file bytes `offset..offset + length` are made of; clipped to the file's end.
    pub fn pieces(&self, offset: u64, length: u64) -> impl Iterator<Item = Piece> + '_ {
        let _ = (offset, length);
        std::iter::empty()
    }
    /// Fills `buf` with file bytes; `content(guest offset, part of buf)` fills in guest bytes; never asked for holes.
    pub fn read_at(
        &self,
        offset: u64,
        buf: &mut [u8],
        content: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> Result<(), ExportError> {
        let _ = (offset, buf, content);
        todo!()
    }
    /// Where guest bytes lie in the file: (file offset, bytes that lie there in one piece); None in a hole.
    pub fn locate(&self, guest: u64) -> Option<(u64, u64)> {
        let _ = guest;
        todo!()
    }
}

/// Writes the whole file (empty at first), sparse; `content` as for `Export::read_at`.
pub fn write_file(
    export: &Export,
    file: &File,
    content: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>,
    progress: &mut dyn FnMut(ExportProgress) -> ControlFlow<()>,
) -> Result<(), ExportError> {
    let _ = (export, file, content, progress);
    todo!()
}
