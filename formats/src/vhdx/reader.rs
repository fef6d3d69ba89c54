//! Reads guest bytes through the block table.
//!
//! An entry has its block's state in bits 0 to 2 and its place in MiB in bits 20 to 63. After each
//! [`Parameters::chunk_ratio`] entries stands one of a bitmap, which only a difference uses.
//!
//! Invariant: after [`open`] all blocks lie inside the image as its log leaves it, apart from its
//! tables and from each other.

use std::ops::Range;

use super::header;
use super::log::Replayed;
use super::region::{Parameters, Regions};
use super::{IDENTIFIER, MIB};
use crate::disk::{Disk, Format};
use crate::mapped::{MappedDisk, Place, Run, Tables};
use crate::occupied::{Occupied, meets};
use crate::offset::{GuestOffset, HostOffset};
use crate::pages::{Pages, read_part};
use crate::refusal::{OpenError, Refusal};
use crate::source::ReadAt;

const ENTRY_BYTES: u64 = 8;
const STATE_MASK: u64 = 7;
const OFFSET_MASK: u64 = !(MIB - 1);
/// Not present, undefined, zero, unmapped, and what was "unmapped" before version 1.0.
const STATES_ZERO: [u64; 5] = [0, 1, 2, 3, 5];
const STATE_PRESENT: u64 = 6;
const STATE_PARTIAL: u64 = 7;

pub(crate) fn open(source: Box<dyn ReadAt + Send>) -> Result<Box<dyn Disk>, OpenError> {
    let identifier = read_part(&*source, 0, IDENTIFIER.len() as u64, "its identifier")?;
    if identifier != IDENTIFIER {
        return Err(Refusal::MalformedHeader("its identifier").into());
    }
    let header = header::read(&*source)?;
    let source = Replayed::new(source, &header)?;
    // Whether or not there is anything in it.
    let log = header.log_at..header.log_at.saturating_add(header.log_bytes);
    let regions = Regions::read(&source, &log)?;
    let parameters = Parameters::read(&source, &regions.metadata)?;
    let mut tables = Vhdx { parameters, bat: regions.bat.start, pages: Pages::default() };
    tables.check(&source, &[0..MIB, log, regions.bat, regions.metadata])?;
    Ok(Box::new(MappedDisk::new(source, tables)))
}

#[derive(Debug)]
struct Vhdx {
    parameters: Parameters,
    bat: u64,
    pages: Pages,
}

impl Vhdx {
    fn check(&mut self, source: &dyn ReadAt, taken: &[Range<u64>; 4]) -> Result<(), OpenError> {
        let Parameters { block_bytes, virtual_bytes, .. } = self.parameters;
        let blocks = virtual_bytes.div_ceil(block_bytes);
        if blocks > 0 {
            let end = self.entry(blocks - 1) + ENTRY_BYTES;
            if end > taken[2].end {
                let text = "the block table is too short for the disk's size";
                return Err(Refusal::MalformedHeader(text).into());
            }
        }
        let mut occupied = Occupied::new(source.len(), block_bytes)?;
        for number in 0..blocks {
            let Some(at) = self.block(source, number)? else { continue };
            let seen = (virtual_bytes - number * block_bytes).min(block_bytes);
            let block = at..at.saturating_add(seen);
            if block.end > source.len() {
                return Err(Refusal::Truncated("the end of a block").into());
            }
            if taken.iter().any(|range| meets(range, &block)) {
                return Err(Refusal::OverlappingTables("a block").into());
            }
            occupied.take(HostOffset(at), "a block")?;
        }
        Ok(())
    }

    /// Where the entry of payload block `number` stands in the image.
    fn entry(&self, number: u64) -> u64 {
        let bitmaps = number / self.parameters.chunk_ratio();
        self.bat + (number + bitmaps) * ENTRY_BYTES
    }

    fn block(&mut self, source: &dyn ReadAt, number: u64) -> Result<Option<u64>, OpenError> {
        let at = HostOffset(self.entry(number));
        let entry = u64::from_le_bytes(self.pages.word(source, at)?);
        match entry & STATE_MASK {
            STATE_PRESENT => Ok(Some(entry & OFFSET_MASK)),
            STATE_PARTIAL => Err(Refusal::Parent.into()),
            state if STATES_ZERO.contains(&state) => Ok(None),
            _ => Err(Refusal::CorruptTables("a block is in an unknown state").into()),
        }
    }
}

impl Tables for Vhdx {
    fn format(&self) -> Format {
        Format::Vhdx
    }

    fn virtual_bytes(&self) -> u64 {
        self.parameters.virtual_bytes
    }

    fn unit_bytes(&self) -> Option<u64> {
        Some(self.parameters.block_bytes)
    }

    fn run(&mut self, source: &dyn ReadAt, guest: GuestOffset) -> Result<Run, OpenError> {
        let block_bytes = self.parameters.block_bytes;
        let skip = guest.0 % block_bytes;
        let place = match self.block(source, guest.0 / block_bytes)? {
            Some(at) => Place::Host(HostOffset(at + skip)),
            None => Place::Zero,
        };
        Ok(Run { bytes: block_bytes - skip, place })
    }

    fn stored(
        &mut self,
        _: &dyn ReadAt,
        _: GuestOffset,
        _: HostOffset,
        _: u64,
    ) -> Result<Option<Vec<u8>>, OpenError> {
        unreachable!("a VHDX has nothing compressed")
    }

    fn unpack(
        &mut self,
        _: &dyn ReadAt,
        _: GuestOffset,
        _: HostOffset,
        _: u64,
        _: &mut [u8],
    ) -> Result<u64, OpenError> {
        unreachable!("a VHDX has nothing compressed")
    }
}
