//! A file that is written mostly front to back.
//!
//! Invariant: what was put is in the file after [`Sink::flush`]; at most [`BUFFER_BYTES`] are not,
//! before. What nobody puts is a hole.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::CompressError;

const BUFFER_BYTES: usize = 1024 * 1024;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Sink<'a> {
    file: &'a File,
    /// Where the buffer belongs.
    at: u64,
    buffer: Vec<u8>,
}

impl<'a> Sink<'a> {
    pub fn new(file: &'a File) -> Self {
        Self { file, at: 0, buffer: Vec::with_capacity(BUFFER_BYTES) }
    }

    /// Writes `bytes` to `at`; writes that follow each other are gathered.
    pub fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), CompressError> {
        let follows = at == self.at + self.buffer.len() as u64;
        if !follows || self.buffer.len() + bytes.len() > BUFFER_BYTES {
            self.flush()?;
            self.at = at;
        }
        if bytes.len() > BUFFER_BYTES {
            self.at = at + bytes.len() as u64;
            return self.write(at, bytes);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    pub fn flush(&mut self) -> Result<(), CompressError> {
        self.write(self.at, &self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), CompressError> {
        self.file.write_all_at(bytes, at).map_err(|error| CompressError::Write { at, error })
    }
}
