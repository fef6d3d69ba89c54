//! Writes of large pieces past the page cache (`open(2)`, `O_DIRECT`).
//!
//! An object is acknowledged once it is on the disk, so a copy in the page cache makes nothing
//! safer: it only costs the copy, and the pages of blobs that hosts are reading. Whoever reads the
//! object first brings it there.
//!
//! Invariants: what was written is the same as by buffered writes, and so is what a sync promises; a
//! file system that cannot do it, or a piece that is short or does not lie at a block, is written
//! through the page cache.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;

/// Shorter pieces are not worth a second look at the file, in bytes.
const DIRECT_BYTES_MIN: usize = 256 * 1024;
/// Memory, length and place of a direct write are multiples of the disk's logical block; none is
/// known that is larger than this.
const BLOCK_BYTES: usize = 4096;
/// Copied and written at once, in bytes: enough to keep a disk busy.
const STAGE_BYTES: usize = 2 * 1024 * 1024;

/// Writes `bytes` at `offset` of `file`, which lies at `path`; nothing is synced.
///
/// # Errors
/// Where the disk refuses.
pub fn write_at(path: &Path, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let direct = if bytes.len() >= DIRECT_BYTES_MIN && offset.is_multiple_of(BLOCK_BYTES as u64) {
        write_direct(path, bytes, offset)?
    } else {
        0
    };
    file.write_all_at(&bytes[direct..], offset + direct as u64)
}

/// How much of the beginning was written.
fn write_direct(path: &Path, bytes: &[u8], offset: u64) -> io::Result<usize> {
    let opened = OpenOptions::new().write(true).custom_flags(OFlag::O_DIRECT.bits()).open(path);
    let file = match opened {
        Err(error) if cannot(&error) => return Ok(0),
        opened => opened?,
    };
    let whole = bytes.len() - bytes.len() % BLOCK_BYTES;
    let mut memory = vec![0; STAGE_BYTES.min(whole) + BLOCK_BYTES];
    let start = memory.as_ptr().align_offset(BLOCK_BYTES);
    let mut written = 0;
    for piece in bytes[..whole].chunks(STAGE_BYTES) {
        let stage = &mut memory[start..start + piece.len()];
        stage.copy_from_slice(piece);
        match file.write_all_at(stage, offset + written as u64) {
            Err(error) if cannot(&error) => return Ok(written),
            done => done?,
        }
        written += piece.len();
    }
    Ok(written)
}

/// Whether a file system said that it knows no such writes.
fn cannot(error: &io::Error) -> bool {
    let errors = [Errno::EINVAL, Errno::EOPNOTSUPP];
    errors.iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn pieces_of_any_length_at_any_place_are_written_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let lengths =
            [0, 1, 4096, DIRECT_BYTES_MIN, DIRECT_BYTES_MIN + 1, STAGE_BYTES + 4097, 5_000_000];
        for length in lengths {
            for offset in [0, 1, 4096, 8 << 20] {
                let bytes = noise(length);
                let file = File::create(&path).unwrap();
                write_at(&path, &file, &bytes, offset).unwrap();
                let read = std::fs::read(&path).unwrap();
                let expected = if length == 0 { 0 } else { offset as usize + length };
                assert_eq!(read.len(), expected, "{length} bytes at {offset}");
                assert!(read.get(offset as usize..).unwrap_or_default() == bytes);
            }
        }
    }
}
