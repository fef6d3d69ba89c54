//! Reads a fixed or a dynamic disk.
//!
//! A dynamic disk has a copy of its footer at the start, a header, a table with the sector of each
//! block or [`HOLE`], blocks that begin with a bitmap of their sectors, and the footer.
//!
//! Invariant: after [`open`] all blocks lie inside the image, none of them where another starts.

use super::SECTOR_BYTES;
use super::footer::{
    COOKIE, FOOTER_BYTES_MIN, Footer, HEADER_CHECKSUM_AT, HEADER_COOKIE, Kind, checksum,
};
use crate::bytes::Big;
use crate::disk::{Disk, Format};
use crate::mapped::{MappedDisk, Place, Run, Tables};
use crate::occupied::{Occupied, meets};
use crate::offset::{GuestOffset, HostOffset};
use crate::pages::{Pages, read_part};
use crate::refusal::{OpenError, Refusal};
use crate::source::ReadAt;

const HOLE: u32 = u32::MAX;
const ENTRY_BYTES: u64 = 4;
const HEADER_BYTES: u64 = 1024;
const HEADER_VERSION: u32 = 0x0001_0000;
/// Of smaller ones the bitmap is a sector by the specification, and nothing to QEMU.
const BLOCK_BYTES_MIN: u64 = 4096;
/// The usual is 2 MiB.
const BLOCK_BYTES_MAX: u64 = 256 << 20;

/// Opens an image that has a footer at its start or at its end.
pub(crate) fn open(source: Box<dyn ReadAt + Send>) -> Result<Box<dyn Disk>, OpenError> {
    let (footer, end) = footer(&*source)?;
    let blocks = match footer.kind {
        Kind::Fixed => {
            if footer.virtual_bytes > end {
                return Err(Refusal::Truncated("the end of the disk").into());
            }
            Blocks::None
        }
        Kind::Dynamic(header) => Blocks::Table(Table::read(&*source, header, &footer)?),
    };
    let tables = Vhd { virtual_bytes: footer.virtual_bytes, blocks, pages: Pages::default() };
    Ok(Box::new(MappedDisk::new(source, tables)))
}

/// The footer, and where the bytes before it end. A dynamic disk has it twice, and one copy does
/// where the other is damaged or, as after a crash, the last is gone.
fn footer(source: &dyn ReadAt) -> Result<(Footer, u64), OpenError> {
    let length = source.len();
    let short = FOOTER_BYTES_MIN as u64;
    let mut last = None;
    for bytes in [SECTOR_BYTES, short] {
        let Some(at) = length.checked_sub(bytes) else { continue };
        let tail = read_part(source, at, bytes, "its footer")?;
        if tail.starts_with(COOKIE) {
            last = Some((Footer::parse(&tail)?, at));
            break;
        }
    }
    let head = read_part(source, 0, SECTOR_BYTES.min(length), "its footer")?;
    let is_footer = head.starts_with(COOKIE) && head.len() as u64 == SECTOR_BYTES;
    let first = if is_footer { Some(Footer::parse(&head)?) } else { None };
    let malformed = |what| Err(Refusal::MalformedHeader(what).into());
    match (first, last) {
        (None, None) => Err(Refusal::Truncated("its footer").into()),
        (None, Some((Some(Footer { kind: Kind::Dynamic(_), .. }), _))) => {
            malformed("a dynamic disk without a footer at its start")
        }
        (None, Some((Some(last), at))) => Ok((last, at)),
        (Some(Some(Footer { kind: Kind::Fixed, .. })), None) => {
            Err(Refusal::Truncated("its footer").into())
        }
        // A fixed disk that holds a dynamic one, or the other way round, cannot be told apart.
        (Some(Some(first)), Some((Some(last), _))) if first != last => {
            malformed("the footers at its start and its end differ")
        }
        (Some(Some(_)), Some((Some(last), at))) => Ok((last, at)),
        (Some(Some(first)), None) => Ok((first, length)),
        // A fixed disk has no copy: what its guest wrote at the start is no judge of the last one.
        (Some(Some(sound)), Some((None, at))) | (Some(None), Some((Some(sound), at)))
            if matches!(sound.kind, Kind::Dynamic(_)) =>
        {
            Ok((sound, at))
        }
        _ => malformed("the footer's checksum is wrong"),
    }
}

#[derive(Debug)]
struct Table {
    at: u64,
    block_bytes: u64,
    bitmap_bytes: u64,
}

impl Table {
    fn read(source: &dyn ReadAt, header: u64, footer: &Footer) -> Result<Self, OpenError> {
        let bytes = read_part(source, header, HEADER_BYTES, "the end of its header")?;
        let fields = Big(&bytes);
        let malformed = |what| Err(Refusal::MalformedHeader(what).into());
        if !bytes.starts_with(HEADER_COOKIE) {
            return malformed("there is no header where the footer says");
        }
        if fields.u32(HEADER_CHECKSUM_AT) != checksum(&bytes, HEADER_CHECKSUM_AT) {
            return malformed("the header's checksum is wrong");
        }
        if fields.u32(24) != HEADER_VERSION {
            return Err(Refusal::UnknownVersion(fields.u32(24)).into());
        }
        let block_bytes = u64::from(fields.u32(32));
        if !block_bytes.is_power_of_two() || block_bytes < BLOCK_BYTES_MIN {
            return malformed("the block size is no power of two from 4096 bytes on");
        }
        if block_bytes > BLOCK_BYTES_MAX {
            return Err(Refusal::TooLarge("its blocks are above 256 MiB").into());
        }
        let blocks = footer.virtual_bytes.div_ceil(block_bytes);
        if blocks > u64::from(fields.u32(28)) {
            return malformed("the table is too short for the disk's size");
        }
        let bitmap_bytes = (block_bytes / SECTOR_BYTES).div_ceil(8).next_multiple_of(SECTOR_BYTES);
        let table = Self { at: fields.u64(16), block_bytes, bitmap_bytes };
        if !table.at.is_multiple_of(SECTOR_BYTES) {
            return malformed("the table does not start at a sector");
        }
        table.check(source, header, footer.virtual_bytes, blocks)?;
        Ok(table)
    }

    fn check(
        &self,
        source: &dyn ReadAt,
        header: u64,
        virtual_bytes: u64,
        blocks: u64,
    ) -> Result<(), OpenError> {
        let length = source.len();
        let end = self.at.checked_add(blocks * ENTRY_BYTES).filter(|&end| end <= length);
        let end = end.ok_or(Refusal::Truncated("the end of its table"))?;
        let taken = [0..SECTOR_BYTES, header..header + HEADER_BYTES, self.at..end];
        if taken[..2].iter().any(|range| meets(range, &taken[2])) {
            return Err(Refusal::OverlappingTables("the table").into());
        }
        let mut occupied = Occupied::new(length, self.bitmap_bytes + self.block_bytes)?;
        let mut pages = Pages::default();
        for number in 0..blocks {
            let Some(at) = self.block(source, &mut pages, number)? else { continue };
            let seen = (virtual_bytes - number * self.block_bytes).min(self.block_bytes);
            let block = at..at + self.bitmap_bytes + seen;
            if block.end > length {
                return Err(Refusal::Truncated("the end of a block").into());
            }
            if taken.iter().any(|range| meets(range, &block)) {
                return Err(Refusal::OverlappingTables("a block").into());
            }
            occupied.take(HostOffset(at), "a block")?;
        }
        Ok(())
    }

    /// Where block `number` starts, with its bitmap.
    fn block(
        &self,
        source: &dyn ReadAt,
        pages: &mut Pages,
        number: u64,
    ) -> Result<Option<u64>, OpenError> {
        let at = HostOffset(self.at + number * ENTRY_BYTES);
        let sector = u32::from_be_bytes(pages.word(source, at)?);
        Ok((sector != HOLE).then_some(u64::from(sector) * SECTOR_BYTES))
    }
}

#[derive(Debug)]
enum Blocks {
    /// The disk lies in the image as it is.
    None,
    Table(Table),
}

#[derive(Debug)]
struct Vhd {
    virtual_bytes: u64,
    blocks: Blocks,
    pages: Pages,
}

impl Tables for Vhd {
    fn format(&self) -> Format {
        Format::Vhd
    }

    fn virtual_bytes(&self) -> u64 {
        self.virtual_bytes
    }

    fn unit_bytes(&self) -> Option<u64> {
        match &self.blocks {
            Blocks::None => None,
            Blocks::Table(table) => Some(table.block_bytes),
        }
    }

    fn run(&mut self, source: &dyn ReadAt, guest: GuestOffset) -> Result<Run, OpenError> {
        let Blocks::Table(table) = &self.blocks else {
            let place = Place::Host(HostOffset(guest.0));
            return Ok(Run { bytes: self.virtual_bytes - guest.0, place });
        };
        let (number, skip) = (guest.0 / table.block_bytes, guest.0 % table.block_bytes);
        let place = match table.block(source, &mut self.pages, number)? {
            Some(at) => Place::Host(HostOffset(at + table.bitmap_bytes + skip)),
            None => Place::Zero,
        };
        Ok(Run { bytes: table.block_bytes - skip, place })
    }

    fn stored(
        &mut self,
        _: &dyn ReadAt,
        _: GuestOffset,
        _: HostOffset,
        _: u64,
    ) -> Result<Option<Vec<u8>>, OpenError> {
        unreachable!("a VHD has nothing compressed")
    }

    fn unpack(
        &mut self,
        _: &dyn ReadAt,
        _: GuestOffset,
        _: HostOffset,
        _: u64,
        _: &mut [u8],
    ) -> Result<u64, OpenError> {
        unreachable!("a VHD has nothing compressed")
    }
}
