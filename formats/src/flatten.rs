//! Writes a disk of any format as a raw file, in one pass, leaving holes where it is zero.
//!
//! Invariant: when it returns without an error, the file is what the guest sees, byte for byte; it
//! is not synced. After an error the file's content is unspecified.
//! Non-goals: other formats, whose tables stand before the content (see `export`); naming, syncing
//! and publishing the file (its owner's).

use std::fs::File;
use std::ops::{ControlFlow, Range};

use crate::disk::{Disk, ExtentKind, ReadError};
use crate::export::{ExportError, ExportProgress, write_while};
use crate::overlap::{BUFFERS, Filled, Filling};
use crate::zero::is_zero;

/// What is read at once, in bytes: compressed blocks enough for all cores.
const PIECE_BYTES: usize = 4 * 1024 * 1024;

/// The buffers of [`flatten`], in bytes; the disk's own come on top.
pub const FLATTEN_BYTES_MAX: usize = BUFFERS * PIECE_BYTES;

/// So many zero bytes, and at such places, are left out.
const HOLE_BYTES: usize = 64 * 1024;

/// Writes all guest bytes into `file`, replacing what is in it. What comes next is read while this
/// thread writes. `progress` is told about every 4 MiB and at the end, and stops by
/// [`ControlFlow::Break`].
///
/// # Errors
/// [`ExportError::Content`] with a [`ReadError`], [`ExportError::Write`] or
/// [`ExportError::Cancelled`].
pub fn flatten(
    disk: &mut dyn Disk,
    file: &File,
    progress: &mut dyn FnMut(ExportProgress) -> ControlFlow<()>,
) -> Result<(), ExportError> {
    let total = disk.virtual_bytes();
    write_while(file, total, |filling| read(disk, filling), progress)
}

fn read(disk: &mut dyn Disk, filling: &Filling<ExportProgress>) -> Result<(), ExportError> {
    let total = disk.virtual_bytes();
    let mut state = ExportProgress { bytes_total: total, ..ExportProgress::default() };
    let failed = |at| {
        move |error: ReadError| ExportError::Content { at, error: std::io::Error::other(error) }
    };
    let mut at = 0;
    while at < total {
        let extent = disk.next_extent(at).map_err(failed(at))?;
        let end = at + extent.length;
        while extent.kind == ExtentKind::Data && at < end {
            let length = (end - at).min(PIECE_BYTES as u64) as usize;
            let Some(mut bytes) = filling.buffer(PIECE_BYTES) else { return Ok(()) };
            disk.read(at, &mut bytes[..length]).map_err(failed(at))?;
            let runs = occupied(&bytes[..length]);
            state.bytes_done = at + length as u64;
            state.content_done += runs.iter().map(|run| run.len() as u64).sum::<u64>();
            if filling.pass(Filled { at, bytes, runs, mark: state }).is_none() {
                return Ok(());
            }
            at += length as u64;
        }
        at = end;
    }
    state.bytes_done = total;
    // A writer that has given up need not hear of the end.
    let _ = filling.pass(Filled { at, bytes: Vec::new(), runs: Vec::new(), mark: state });
    Ok(())
}

/// The parts that are not zero, in blocks of [`HOLE_BYTES`].
fn occupied(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (number, block) in bytes.chunks(HOLE_BYTES).enumerate() {
        if is_zero(block) {
            continue;
        }
        let start = number * HOLE_BYTES;
        let end = start + block.len();
        match runs.last_mut() {
            Some(run) if run.end == start => run.end = end,
            _ => runs.push(start..end),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_blocks_are_left_out() {
        let mut bytes = vec![0; 5 * HOLE_BYTES + 100];
        assert_eq!(occupied(&bytes), []);
        for at in [HOLE_BYTES, 3 * HOLE_BYTES - 1, 5 * HOLE_BYTES + 99] {
            bytes[at] = 1;
        }
        let expected = [HOLE_BYTES..3 * HOLE_BYTES, 5 * HOLE_BYTES..5 * HOLE_BYTES + 100];
        assert_eq!(occupied(&bytes), expected);
    }
}
