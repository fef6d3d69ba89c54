//! Writes an export into a file that is there already, leaving holes where the content does.
//!
//! Invariant: when it returns without an error, the file is the export, byte for byte; it is not
//! synced. After an error the file's content is unspecified.
//! Non-goals: naming, syncing and publishing the file (its owner's); resuming.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use super::{Export, ExportError, Piece};
use crate::overlap::{BUFFERS, Filled, Filling, overlapped};

/// File bytes between two calls of the progress callback, as far as pieces allow.
const PROGRESS_STEP_BYTES: u64 = 4 * 1024 * 1024;

/// What is read before it is written, in bytes: a few chunks.
const PIECE_BYTES: usize = 1024 * 1024;

/// What [`write_file`] holds besides the recipe and its layout, in bytes.
pub const WRITE_BYTES_MAX: usize = BUFFERS * PIECE_BYTES;

/// How far [`write_file`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExportProgress {
    /// File bytes done, holes included.
    pub bytes_done: u64,
    /// The file's length.
    pub bytes_total: u64,
    /// Guest content written so far, in bytes.
    pub content_done: u64,
}

/// Writes the whole file, replacing what is in it. `content` fills in guest bytes, within one
/// chunk at a time, in the order of the file, on a thread of its own: it reads what comes next while
/// this one writes. `progress` is told about every 4 MiB and at the end, and stops the export by
/// [`ControlFlow::Break`].
///
/// # Errors
/// [`ExportError::Content`], [`ExportError::Write`] or [`ExportError::Cancelled`].
pub fn write_file(
    export: &Export,
    file: &File,
    content: &mut (dyn FnMut(u64, &mut [u8]) -> io::Result<()> + Send),
    progress: &mut dyn FnMut(ExportProgress) -> ControlFlow<()>,
) -> Result<(), ExportError> {
    let total = export.len();
    let read = |filling: &Filling<ExportProgress>| {
        let mut gathering = Gathering::new(filling, total);
        for piece in export.pieces(0, total) {
            if gathering.add(export, piece, content)?.is_none() {
                break;
            }
        }
        gathering.end();
        Ok(())
    };
    write_while(file, total, read, progress)
}

/// Makes a file of `total` bytes of what `read` passes, on a thread of its own, and says how far it is.
pub(crate) fn write_while(
    file: &File,
    total: u64,
    read: impl FnOnce(&Filling<ExportProgress>) -> Result<(), ExportError> + Send,
    progress: &mut dyn FnMut(ExportProgress) -> ControlFlow<()>,
) -> Result<(), ExportError> {
    empty(file, total).map_err(|error| ExportError::Write { at: 0, error })?;
    let mut told = 0;
    overlapped(read, |filled| {
        write_runs(file, filled).map_err(|(at, error)| ExportError::Write { at, error })?;
        let state = filled.mark;
        if state.bytes_done - told >= PROGRESS_STEP_BYTES || state.bytes_done == total {
            told = state.bytes_done;
            if progress(state).is_break() {
                return Err(ExportError::Cancelled);
            }
        }
        Ok(())
    })
}

/// Leaves nothing of what a file was, so that what is not written is a hole and reads as zero.
fn empty(file: &File, length: u64) -> io::Result<()> {
    drop_content(file)?;
    file.set_len(length)
}

/// A file that is empty is left alone: of one that was cut to nothing, ext4 writes all to the disk
/// when it is closed (`auto_da_alloc` in ext4(5)), whether somebody wants it synced or not.
pub(crate) fn drop_content(file: &File) -> io::Result<()> {
    match file.metadata()?.len() {
        0 => Ok(()),
        _ => file.set_len(0),
    }
}

/// Gives where it failed.
fn write_runs<M>(file: &File, filled: &Filled<M>) -> Result<(), (u64, io::Error)> {
    for run in &filled.runs {
        let at = filled.at + run.start as u64;
        file.write_all_at(&filled.bytes[run.clone()], at).map_err(|error| (at, error))?;
    }
    Ok(())
}

/// Puts pieces without a hole between them together.
struct Gathering<'a> {
    filling: &'a Filling<ExportProgress>,
    /// What is gathered, and how much of it.
    bytes: Vec<u8>,
    length: usize,
    state: ExportProgress,
}

impl<'a> Gathering<'a> {
    fn new(filling: &'a Filling<ExportProgress>, total: u64) -> Self {
        let state = ExportProgress { bytes_total: total, ..ExportProgress::default() };
        Self { filling, bytes: Vec::new(), length: 0, state }
    }

    /// `None` once the writer has given up.
    fn add(
        &mut self,
        export: &Export,
        piece: Piece,
        content: &mut (dyn FnMut(u64, &mut [u8]) -> io::Result<()> + Send),
    ) -> Result<Option<()>, ExportError> {
        let length = piece.length();
        if let Piece::Zero(_) = piece {
            let passed = self.pass();
            self.state.bytes_done += length;
            return Ok(passed);
        }
        // It is in memory, or at most as long as a chunk.
        let Some(part) = self.part(length as usize) else { return Ok(None) };
        match piece {
            Piece::Zero(_) => {}
            Piece::Bytes(bytes) => part.copy_from_slice(&bytes),
            Piece::Chunk { guest, .. } => {
                content(guest, part).map_err(|error| ExportError::Content { at: guest, error })?;
                self.state.content_done += length;
            }
            Piece::Adler32 { guest, of, from, length } => {
                let sum = export.adler32(guest, of, content)?;
                part.copy_from_slice(&sum[usize::from(from)..usize::from(from + length)]);
            }
        }
        self.state.bytes_done += length;
        Ok(Some(()))
    }

    /// Room for the next `length` bytes.
    fn part(&mut self, length: usize) -> Option<&mut [u8]> {
        if self.length > 0 && self.length + length > self.bytes.len() {
            self.pass()?;
        }
        if self.length == 0 {
            self.bytes = self.filling.buffer(length.max(PIECE_BYTES))?;
        }
        let start = self.length;
        self.length += length;
        self.bytes.get_mut(start..self.length)
    }

    /// Hands over what is gathered, if there is anything.
    fn pass(&mut self) -> Option<()> {
        if self.length == 0 {
            return Some(());
        }
        let length = std::mem::take(&mut self.length);
        self.filling.pass(Filled {
            at: self.state.bytes_done - length as u64,
            bytes: std::mem::take(&mut self.bytes),
            runs: std::iter::once(0..length).collect(),
            mark: self.state,
        })
    }

    /// Hands over what is left, and that the end is reached.
    fn end(mut self) {
        if self.pass().is_some() {
            let (at, mark) = (self.state.bytes_done, self.state);
            // A writer that has given up need not hear of the end.
            let _ = self.filling.pass(Filled { at, bytes: Vec::new(), runs: Vec::new(), mark });
        }
    }
}
