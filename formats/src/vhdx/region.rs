//! The region table and the metadata: where the block table is, and what the disk is like.
//! ```text
//!   0 "regi"     8 entries     0 "metadata"            item: id, 16 bytes
//!   4 CRC-32C                  10 entries, 16 bits        16 offset    20 length
//!  16 region: id, 16 bytes     32 items                   24 flags
//!     16 offset  24 length
//!     28 required
//! ```
//!
//! Invariant: regions lie in the image, apart from each other and from the headers; sizes are
//! those that the specification allows.

use std::ops::Range;

use super::crc32c::with_own_cleared;
use super::{
    BAT, DISK_ID, FILE_PARAMETERS, HAS_PARENT, KIB, LOGICAL_SECTOR, METADATA, MIB, PARENT_LOCATOR,
    PHYSICAL_SECTOR, VIRTUAL_BYTES_MAX, VIRTUAL_SIZE,
};
use crate::bytes::{Little, array};
use crate::occupied::meets;
use crate::pages::read_part;
use crate::refusal::{OpenError, Refusal};
use crate::source::ReadAt;

pub(super) const REGION_TABLES_AT: [u64; 2] = [192 * KIB, 256 * KIB];
pub(super) const TABLE_BYTES: u64 = 64 * KIB;
pub(super) const ENTRY_BYTES: usize = 32;
pub(super) const SIGNATURE: &[u8; 4] = b"regi";
pub(super) const METADATA_SIGNATURE: &[u8; 8] = b"metadata";
const ENTRIES_MAX: u32 = 2047;
const REQUIRED: u32 = 1;
const ITEM_REQUIRED: u32 = 1 << 2;
/// The longest item this reader looks at has 16 bytes.
const ITEM_BYTES_MAX: u64 = 64;

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Regions {
    pub bat: Range<u64>,
    pub metadata: Range<u64>,
}

impl Regions {
    /// `log` is taken already.
    pub fn read(source: &dyn ReadAt, log: &Range<u64>) -> Result<Self, OpenError> {
        for at in REGION_TABLES_AT {
            let bytes = read_part(source, at, TABLE_BYTES, "the end of its region tables")?;
            let sound =
                bytes.starts_with(SIGNATURE) && Little(&bytes).u32(4) == with_own_cleared(&bytes);
            if sound {
                return Ok(Self::parse(&bytes, source.len(), log)?);
            }
        }
        Err(Refusal::MalformedHeader("both region tables are damaged").into())
    }

    fn parse(bytes: &[u8], length: u64, log: &Range<u64>) -> Result<Self, Refusal> {
        let count = Little(bytes).u32(8);
        if count > ENTRIES_MAX {
            return Err(Refusal::MalformedHeader("the number of regions"));
        }
        let mut taken = vec![0..MIB, log.clone()];
        let (mut bat, mut metadata) = (None, None);
        for entry in bytes[16..].chunks_exact(ENTRY_BYTES).take(count as usize) {
            let fields = Little(entry);
            let place = match array::<16>(entry, 0) {
                BAT => &mut bat,
                METADATA => &mut metadata,
                _ if fields.u32(28) & REQUIRED != 0 => {
                    return Err(Refusal::UnknownFeature(fields.u64(0)));
                }
                _ => continue,
            };
            let at = fields.u64(16);
            let end = at.checked_add(u64::from(fields.u32(24))).filter(|&end| end <= length);
            let region = at..end.ok_or(Refusal::Truncated("the end of a region"))?;
            if !at.is_multiple_of(MIB) || region.is_empty() {
                return Err(Refusal::MalformedHeader("the place of a region"));
            }
            if taken.iter().any(|other| meets(other, &region)) {
                return Err(Refusal::OverlappingTables("a region"));
            }
            taken.push(region.clone());
            if place.replace(region).is_some() {
                return Err(Refusal::MalformedHeader("a region stands there twice"));
            }
        }
        match (bat, metadata) {
            (Some(bat), Some(metadata)) => Ok(Self { bat, metadata }),
            _ => Err(Refusal::MalformedHeader("a region that every disk has is missing")),
        }
    }
}

/// What the disk is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parameters {
    pub block_bytes: u64,
    pub virtual_bytes: u64,
    pub sector_bytes: u64,
}

impl Parameters {
    pub fn read(source: &dyn ReadAt, region: &Range<u64>) -> Result<Self, OpenError> {
        let malformed = |what| Err(Refusal::MalformedHeader(what).into());
        if region.end - region.start < TABLE_BYTES {
            return malformed("the metadata are shorter than their table");
        }
        let table = read_part(source, region.start, TABLE_BYTES, "the end of its metadata")?;
        if !table.starts_with(METADATA_SIGNATURE) {
            return malformed("there are no metadata where the regions say");
        }
        let count = Little(&table).u16(10);
        if u32::from(count) > ENTRIES_MAX {
            return malformed("the number of metadata items");
        }
        let (mut file, mut size, mut sector) = (None, None, None);
        for entry in table[ENTRY_BYTES..].chunks_exact(ENTRY_BYTES).take(usize::from(count)) {
            let fields = Little(entry);
            let (place, needed) = match array::<16>(entry, 0) {
                FILE_PARAMETERS => (&mut file, 8),
                VIRTUAL_SIZE => (&mut size, 8),
                LOGICAL_SECTOR => (&mut sector, 4),
                DISK_ID | PHYSICAL_SECTOR => continue,
                PARENT_LOCATOR => return Err(Refusal::Parent.into()),
                _ if fields.u32(24) & ITEM_REQUIRED != 0 => {
                    return Err(Refusal::UnknownFeature(fields.u64(0)).into());
                }
                _ => continue,
            };
            let (at, length) = (u64::from(fields.u32(16)), u64::from(fields.u32(20)));
            let inside = at >= TABLE_BYTES && at + length <= region.end - region.start;
            if !inside || length < needed || length > ITEM_BYTES_MAX {
                return malformed("the place of a metadata item");
            }
            let bytes = read_part(source, region.start + at, length, "the end of its metadata")?;
            if place.replace(bytes).is_some() {
                return malformed("a metadata item stands there twice");
            }
        }
        let (Some(file), Some(size), Some(sector)) = (file, size, sector) else {
            return malformed("a metadata item that every disk has is missing");
        };
        if Little(&file).u32(4) & HAS_PARENT != 0 {
            return Err(Refusal::Parent.into());
        }
        let parameters = Self {
            block_bytes: u64::from(Little(&file).u32(0)),
            virtual_bytes: Little(&size).u64(0),
            sector_bytes: u64::from(Little(&sector).u32(0)),
        };
        parameters.check()?;
        Ok(parameters)
    }

    fn check(&self) -> Result<(), Refusal> {
        let blocks = MIB..=256 * MIB;
        if !self.block_bytes.is_power_of_two() || !blocks.contains(&self.block_bytes) {
            return Err(Refusal::MalformedHeader("the block size is not between 1 and 256 MiB"));
        }
        if !matches!(self.sector_bytes, 512 | 4096) {
            return Err(Refusal::MalformedHeader("the sector size is neither 512 nor 4096"));
        }
        if self.virtual_bytes > VIRTUAL_BYTES_MAX {
            return Err(Refusal::TooLarge("its virtual size is above 64 TiB"));
        }
        if !self.virtual_bytes.is_multiple_of(self.sector_bytes) {
            return Err(Refusal::MalformedHeader("the disk's size is not a whole sector"));
        }
        Ok(())
    }

    /// Payload entries of the block table between two entries of bitmaps.
    pub const fn chunk_ratio(&self) -> u64 {
        (1 << 23) * self.sector_bytes / self.block_bytes
    }
}
