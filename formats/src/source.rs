//! The bytes of an image, as the caller has them: a file, memory, or parts in storage.
//!
//! Invariant: a reader of this crate sees nothing but the one source it is given, and the source
//! is taken not to change while it is read.
//! Non-goal: writing, and sources of unknown length.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// Bytes of known length that can be read anywhere.
pub trait ReadAt {
    /// In bytes; the same at every call.
    fn len(&self) -> u64;

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] where the range passes the end, else what the source says;
    /// `buf` is then in an unspecified state.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first hole at `offset` or after it: bytes that are known to read as zero without being
    /// read. A source that says nothing is read to its end, which costs time and nothing else.
    fn hole(&self, _offset: u64) -> Option<Range<u64>> {
        None
    }
}

impl ReadAt for File {
    /// A file whose length cannot be asked for is empty to a reader.
    fn len(&self) -> u64 {
        self.metadata().map_or(0, |metadata| metadata.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buf, offset)
    }

    /// Moves the file's own position, which nothing here reads from.
    fn hole(&self, offset: u64) -> Option<Range<u64>> {
        let length = ReadAt::len(self);
        let seek = |from: u64, whence| {
            let from = i64::try_from(from).map_err(|_| Errno::EINVAL)?;
            lseek(self, from, whence).map(i64::unsigned_abs)
        };
        let start = seek(offset, Whence::SeekHole).ok().filter(|&start| start < length)?;
        let end = match seek(start, Whence::SeekData) {
            Ok(end) => end.min(length),
            Err(Errno::ENXIO) => length,
            Err(_) => return None,
        };
        (start >= offset && start < end).then_some(start..end)
    }
}

impl ReadAt for [u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(self.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl ReadAt for Vec<u8> {
    fn len(&self) -> u64 {
        ReadAt::len(self.as_slice())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.as_slice().read_at(offset, buf)
    }
}

macro_rules! read_through {
    ($($pointer:ty),*) => {$(
        impl<T: ReadAt + ?Sized> ReadAt for $pointer {
            fn len(&self) -> u64 {
                (**self).len()
            }

            fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
                (**self).read_at(offset, buf)
            }

            fn hole(&self, offset: u64) -> Option<Range<u64>> {
                (**self).hole(offset)
            }
        }
    )*};
}
read_through!(&T, Box<T>, Arc<T>);

/// A part of a source, as a source of its own: a file in an archive.
#[derive(Debug, Clone)]
pub(crate) struct Slice<S> {
    source: S,
    at: u64,
    length: u64,
}

impl<S: ReadAt> Slice<S> {
    /// `at..at + length` lies inside `source`.
    pub const fn new(source: S, at: u64, length: u64) -> Self {
        Self { source, at, length }
    }
}

impl<S: ReadAt> ReadAt for Slice<S> {
    fn len(&self) -> u64 {
        self.length
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match offset.checked_add(buf.len() as u64) {
            Some(end) if end <= self.length => self.source.read_at(self.at + offset, buf),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn hole(&self, offset: u64) -> Option<Range<u64>> {
        let hole = self.source.hole(self.at.checked_add(offset)?)?;
        let (start, end) = (hole.start - self.at, (hole.end - self.at).min(self.length));
        (start < end).then_some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_refuses_to_read_past_its_end() {
        let bytes: &[u8] = b"shoal";
        let mut buf = [0; 2];
        bytes.read_at(3, &mut buf).unwrap();
        assert_eq!(&buf, b"al");
        for offset in [4, 5, 6, u64::MAX] {
            let error = bytes.read_at(offset, &mut buf).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn a_file_tells_of_its_holes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(16 << 20).unwrap();
        file.write_all_at(&[1; 4096], 8 << 20).unwrap();
        file.sync_all().unwrap();
        let first = ReadAt::hole(&file, 5).unwrap();
        assert!(first.start == 5 && first.end <= 8 << 20, "{first:?}");
        let second = ReadAt::hole(&file, 8 << 20).unwrap();
        assert!(second.start > 8 << 20 && second.end == 16 << 20, "{second:?}");
        assert_eq!(ReadAt::hole(&file, 16 << 20), None);
        let slice = Slice::new(&file, 1 << 20, 2 << 20);
        assert_eq!(slice.hole(4096), Some(4096..2 << 20));
        assert_eq!(slice.hole(2 << 20), None);
    }
}
