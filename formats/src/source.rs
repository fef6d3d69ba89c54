//! The bytes of an image, as the caller has them: a file, memory, or parts in storage.
//!
//! Invariant: a reader of this crate sees nothing but the one source it is given, and the source
//! is taken not to change while it is read.
//! Non-goal: writing, and sources of unknown length.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

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
}

impl ReadAt for File {
    /// A file whose length cannot be asked for is empty to a reader.
    fn len(&self) -> u64 {
        self.metadata().map_or(0, |metadata| metadata.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buf, offset)
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
}
