//! Writes an export into a file that is there already, leaving holes where the content does.
//!
//! Invariant: when it returns without an error, the file is the export, byte for byte; it is not
//! synced. After an error the file's content is unspecified.
//! Non-goals: naming, syncing and publishing the file (its owner's); resuming.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use super::{Content, Export, ExportError, Piece};

/// File bytes between two calls of the progress callback, as far as pieces allow.
const PROGRESS_STEP_BYTES: u64 = 4 * 1024 * 1024;

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
/// chunk at a time, in the order of the file; `progress` is told about every 4 MiB and at the end, and stops
/// the export by [`ControlFlow::Break`].
///
/// # Errors
/// [`ExportError::Content`], [`ExportError::Write`] or [`ExportError::Cancelled`].
pub fn write_file(
    export: &Export,
    file: &File,
    content: &mut Content<'_>,
    progress: &mut dyn FnMut(ExportProgress) -> ControlFlow<()>,
) -> Result<(), ExportError> {
    let failed_at = |at| move |error| ExportError::Write { at, error };
    // Emptied first, so that what is skipped below is a hole and reads as zero.
    file.set_len(0).map_err(failed_at(0))?;
    file.set_len(export.len()).map_err(failed_at(0))?;
    let mut state = ExportProgress { bytes_total: export.len(), ..ExportProgress::default() };
    let mut told = 0;
    let mut buffer = Vec::new();
    for piece in export.pieces(0, export.len()) {
        let at = state.bytes_done;
        match &piece {
            Piece::Zero(_) => {}
            Piece::Bytes(bytes) => file.write_all_at(bytes, at).map_err(failed_at(at))?,
            Piece::Chunk { guest, length, .. } => {
                buffer.resize(*length as usize, 0);
                content(*guest, &mut buffer)
                    .map_err(|error| ExportError::Content { at: *guest, error })?;
                file.write_all_at(&buffer, at).map_err(failed_at(at))?;
                state.content_done += u64::from(*length);
            }
            Piece::Adler32 { guest, of, from, length } => {
                let sum = export.adler32(*guest, *of, content)?;
                let bytes = &sum[usize::from(*from)..usize::from(*from + *length)];
                file.write_all_at(bytes, at).map_err(failed_at(at))?;
            }
        }
        state.bytes_done += piece.length();
        if state.bytes_done - told >= PROGRESS_STEP_BYTES || state.bytes_done == export.len() {
            told = state.bytes_done;
            if progress(state).is_break() {
                return Err(ExportError::Cancelled);
            }
        }
    }
    Ok(())
}
