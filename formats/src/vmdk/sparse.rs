//! One sparse extent: a grain directory, grain tables, grains.
//!
//! An entry is a sector of the extent's file; 0 is a hole, and 1 reads as zero where the header
//! says so. A compressed grain is a marker – its first sector as 64 bits, its length as 32 – and a
//! zlib stream.
//!
//! Invariant: after [`Sparse::open`] all tables and grains lie inside the extent, and none of them
//! starts where another does.
//! Non-goal: the disk that the extent is part of (see `extents`).

use std::ops::Range;

use super::header::{Header, malformed};
use super::{DESCRIPTOR_BYTES_MAX, SECTOR_BYTES};
use crate::bytes::Little;
use crate::mapped::{Place, Run};
use crate::occupied::{Occupied, meets};
use crate::offset::HostOffset;
use crate::pages::{Pages, read_part, read_source};
use crate::refusal::{OpenError, Refusal};
use crate::source::{ReadAt, Slice};
use crate::unpack::{Method, Unpacker};

const ENTRY_BYTES: u64 = 4;
const ENTRY_ZERO: u32 = 1;
const MARKER_BYTES: u64 = 12;
/// Of one extent: 64 TiB need 2 Mi of the usual ones.
const TABLES_MAX: u64 = 4 << 20;
/// What deflate can add to bytes that do not compress, with room to spare: an eighth, and this.
const PACKED_SLACK_BYTES: u64 = 4096;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Sparse {
    header: Header,
    /// Where the extent's file lies in the image.
    at: u64,
    length: u64,
}

impl Sparse {
    /// `at..at + length` of `source` is the extent's file.
    pub fn open(source: &dyn ReadAt, at: u64, length: u64) -> Result<Self, OpenError> {
        let header = Header::read(&Slice::new(source, at, length))?;
        let extent = Self { header, at, length };
        extent.check(source)?;
        Ok(extent)
    }

    /// In guest bytes.
    pub const fn capacity(&self) -> u64 {
        self.header.capacity
    }

    /// The embedded descriptor's place in the extent.
    pub const fn descriptor(&self) -> Option<(u64, u64)> {
        self.header.descriptor
    }

    fn check(&self, source: &dyn ReadAt) -> Result<(), OpenError> {
        let header = &self.header;
        let directory_bytes = header.tables() * ENTRY_BYTES;
        let end = header.directory.checked_add(directory_bytes);
        let end = end.filter(|&end| end <= self.length);
        let end = end.ok_or(Refusal::Truncated("the end of its grain directory"))?;
        let directory = header.directory..end;
        if meets(&directory, &(0..SECTOR_BYTES)) && directory_bytes > 0 {
            return Err(Refusal::OverlappingTables("the grain directory").into());
        }
        let tables = self.tables(source, &directory)?;
        let mut grains = Grains::new(header, self.length)?;
        for (number, table) in tables {
            let at = self.at + u64::from(table) * SECTOR_BYTES;
            let bytes = read_part(source, at, header.table_bytes(), "the end of a grain table")?;
            self.check_table(&bytes, u64::from(number), &directory, &mut grains)?;
        }
        Ok(())
    }

    /// Numbers and sectors of all grain tables, in the order of the file.
    fn tables(
        &self,
        source: &dyn ReadAt,
        directory: &Range<u64>,
    ) -> Result<Vec<(u32, u32)>, OpenError> {
        if self.header.tables() > TABLES_MAX {
            return Err(Refusal::TooLarge("it has more than 4 Mi grain tables").into());
        }
        let mut pages = Pages::default();
        let mut tables = Vec::new();
        for number in 0..self.header.tables() {
            if let Some(table) = self.table(source, &mut pages, number)? {
                tables.push((number as u32, (table / SECTOR_BYTES) as u32));
            }
        }
        tables.sort_unstable_by_key(|&(_, sector)| sector);
        let mut before = SECTOR_BYTES;
        for &(_, sector) in &tables {
            let range = u64::from(sector) * SECTOR_BYTES..;
            let range = range.start..range.start + self.header.table_bytes();
            if range.end > self.length {
                return Err(Refusal::Truncated("the end of a grain table").into());
            }
            if range.start < before || meets(&range, directory) {
                return Err(Refusal::OverlappingTables("a grain table").into());
            }
            before = range.end;
        }
        Ok(tables)
    }

    fn check_table(
        &self,
        table: &[u8],
        number: u64,
        directory: &Range<u64>,
        grains: &mut Grains,
    ) -> Result<(), Refusal> {
        let header = &self.header;
        // One that is too long is refused when it is read.
        let descriptor = header.descriptor.filter(|&(_, length)| length <= DESCRIPTOR_BYTES_MAX);
        let descriptor = descriptor.map_or(0..0, |(at, length)| at..at.saturating_add(length));
        let mut left = header.capacity - number * header.table_span();
        for entry in table.as_chunks::<4>().0 {
            if left == 0 {
                break;
            }
            let seen = left.min(header.grain_bytes);
            left -= seen;
            let Some(at) = self.grain(u32::from_le_bytes(*entry)) else { continue };
            let needed = if header.compressed { MARKER_BYTES } else { seen };
            if at + needed > self.length {
                return Err(Refusal::Truncated("the end of a grain"));
            }
            let grain = at..at + needed;
            let is_taken = meets(&grain, directory) || meets(&grain, &descriptor);
            if at < SECTOR_BYTES || is_taken {
                return Err(Refusal::OverlappingTables("a grain"));
            }
            grains.take(at)?;
        }
        Ok(())
    }

    /// The byte of the extent that the entry points to.
    const fn grain(&self, entry: u32) -> Option<u64> {
        match entry {
            0 => None,
            ENTRY_ZERO if self.header.zero_grains => None,
            sector => Some(sector as u64 * SECTOR_BYTES),
        }
    }

    /// The byte of the extent where table `number` stands.
    fn table(
        &self,
        source: &dyn ReadAt,
        pages: &mut Pages,
        number: u64,
    ) -> Result<Option<u64>, OpenError> {
        let at = HostOffset(self.at + self.header.directory + number * ENTRY_BYTES);
        let sector = u32::from_le_bytes(pages.word(source, at)?);
        Ok((sector != 0).then_some(u64::from(sector) * SECTOR_BYTES))
    }

    /// The run from the extent's guest byte `guest` on.
    pub fn run(
        &self,
        source: &dyn ReadAt,
        pages: &mut Pages,
        guest: u64,
    ) -> Result<Run, OpenError> {
        let header = &self.header;
        let number = guest / header.table_span();
        let Some(table) = self.table(source, pages, number)? else {
            let bytes = header.table_span() - guest % header.table_span();
            return Ok(Run { bytes, place: Place::Zero });
        };
        let skip = guest % header.grain_bytes;
        let index = guest % header.table_span() / header.grain_bytes;
        let at = HostOffset(self.at + table + index * ENTRY_BYTES);
        let grain = self.grain(u32::from_le_bytes(pages.word(source, at)?));
        let place = match grain {
            None => Place::Zero,
            Some(grain) if header.compressed => {
                Place::Packed { at: HostOffset(self.at + grain), skip }
            }
            Some(grain) => Place::Host(HostOffset(self.at + grain + skip)),
        };
        Ok(Run { bytes: header.grain_bytes - skip, place })
    }

    pub const fn grain_bytes(&self) -> u64 {
        self.header.grain_bytes
    }

    /// What the grain at `at` of the image, which holds the extent's guest byte `guest`, is stored
    /// as; perhaps with more behind.
    pub fn stored(
        &self,
        source: &dyn ReadAt,
        at: HostOffset,
        guest: u64,
    ) -> Result<Vec<u8>, OpenError> {
        let header = &self.header;
        let first = guest - guest % header.grain_bytes;
        let there = self.at + self.length - at.0;
        let (skip, stored) = if header.markers {
            let marker = read_part(source, at.0, MARKER_BYTES, "a grain")?;
            if Little(&marker).u64(0) != first / SECTOR_BYTES {
                return Err(Refusal::CorruptTables("a grain belongs to another sector").into());
            }
            (MARKER_BYTES, u64::from(Little(&marker).u32(8)))
        } else {
            (0, there.min(most_packed(header.grain_bytes)))
        };
        if stored > most_packed(header.grain_bytes) {
            return Err(Refusal::CorruptTables("a compressed grain is longer than a grain").into());
        }
        if skip + stored > there {
            return Err(Refusal::Truncated("the end of a grain").into());
        }
        let mut packed = vec![0; stored as usize];
        read_source(source, HostOffset(at.0 + skip), &mut packed)?;
        Ok(packed)
    }

    /// Inflates that grain into `grain`, which then has a grain's length.
    pub fn unpack(
        &self,
        source: &dyn ReadAt,
        at: HostOffset,
        guest: u64,
        grain: &mut Vec<u8>,
    ) -> Result<(), OpenError> {
        let header = &self.header;
        let packed = self.stored(source, at, guest)?;
        grain.clear();
        grain.resize(header.grain_bytes as usize, 0);
        // The last grain may be cut where the disk ends.
        let first = guest - guest % header.grain_bytes;
        let needed = header.grain_bytes.min(header.capacity - first) as usize;
        Unpacker::default().unpack(Method::Zlib, &packed, grain, needed)?;
        Ok(())
    }
}

/// The grains of an extent that are in use. Packed ones have any length, but each starts in a
/// sector of its own.
struct Grains {
    /// None where there would be too many sectors; then only their number is held against the file.
    occupied: Option<Occupied>,
    left: u64,
}

impl Grains {
    fn new(header: &Header, length: u64) -> Result<Self, Refusal> {
        let unit = if header.compressed { SECTOR_BYTES } else { header.grain_bytes };
        let occupied = match Occupied::new(length, unit) {
            Ok(occupied) => Some(occupied),
            Err(_) if header.compressed => None,
            Err(refusal) => return Err(refusal),
        };
        Ok(Self { occupied, left: length / unit })
    }

    fn take(&mut self, at: u64) -> Result<(), Refusal> {
        let left = self.left.checked_sub(1);
        self.left = left.ok_or(Refusal::OverlappingTables("a grain"))?;
        match &mut self.occupied {
            Some(occupied) => occupied.take(HostOffset(at), "a grain"),
            None => Ok(()),
        }
    }
}

const fn most_packed(grain_bytes: u64) -> u64 {
    grain_bytes + grain_bytes / 8 + PACKED_SLACK_BYTES
}

/// The text embedded in the extent at `at`, if it has one.
pub(super) fn embedded(
    source: &dyn ReadAt,
    extent: &Sparse,
    at: u64,
) -> Result<Option<Vec<u8>>, OpenError> {
    let Some((offset, length)) = extent.descriptor() else { return Ok(None) };
    if length > DESCRIPTOR_BYTES_MAX {
        return Err(Refusal::TooLarge("its descriptor is above 1 MiB").into());
    }
    if offset < SECTOR_BYTES {
        return Err(malformed("the place of its descriptor").into());
    }
    let start = at.checked_add(offset).ok_or(malformed("the place of its descriptor"))?;
    Ok(Some(read_part(source, start, length, "the end of its descriptor")?))
}
