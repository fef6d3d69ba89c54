//! Raw disks: the image's bytes are the guest's.
//!
//! Invariant: any bytes that no detector knows are a raw disk of exactly their length.
//! Holes that the source knows are zero without being read; other zeros are found by reading.

use crate::disk::{
    Details, Disk, ExtentKind, Format, MapExtent, ReadError, Stored, StoredExtent, check_range,
};
use crate::source::ReadAt;

pub(crate) struct RawDisk<S> {
    source: S,
    length: u64,
}

impl<S: ReadAt> RawDisk<S> {
    pub fn new(source: S) -> Self {
        let length = source.len();
        Self { source, length }
    }
}

impl<S: ReadAt + Send> Disk for RawDisk<S> {
    fn format(&self) -> Format {
        Format::Raw
    }

    fn virtual_bytes(&self) -> u64 {
        self.length
    }

    fn next_extent(&mut self, offset: u64) -> Result<MapExtent, ReadError> {
        check_range(offset, 1, self.length)?;
        let hole = self.source.hole(offset).filter(|hole| hole.start < self.length);
        let (end, kind) = match hole {
            Some(hole) if hole.start <= offset => (hole.end.min(self.length), ExtentKind::Zero),
            Some(hole) => (hole.start, ExtentKind::Data),
            None => (self.length, ExtentKind::Data),
        };
        Ok(MapExtent { offset, length: end - offset, kind })
    }

    fn next_stored(&mut self, offset: u64) -> Result<StoredExtent, ReadError> {
        let MapExtent { offset, length, kind } = self.next_extent(offset)?;
        let stored = match kind {
            ExtentKind::Data => Stored::At(offset),
            ExtentKind::Zero => Stored::NOTHING,
        };
        Ok(StoredExtent { offset, length, stored })
    }

    fn details(&self) -> Details {
        Details::default()
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        check_range(offset, buf.len(), self.length)?;
        self.source.read_at(offset, buf).map_err(|error| ReadError::Source { at: offset, error })
    }

    fn unpacked_bytes(&self) -> u64 {
        0
    }
}
