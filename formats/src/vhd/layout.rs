//! Lays a disk out as a dynamic VHD, without making the file.
//!
//! In this order: a copy of the footer, the header, the table, blocks of 2 MiB in guest order with
//! a bitmap of one sector each, the footer. A block without content is not there.
//!
//! Invariant: the same allocation gives the same bytes, for ever; see `qcow2::layout`.
//! Non-goals: content; blocks of other sizes, which not all programs read.

use std::ops::Range;

use super::SECTOR_BYTES;
use super::footer::{HEADER_CHECKSUM_AT, HEADER_COOKIE, Kind, checksum, footer};
use crate::export::layout::{FileLayout, Identity};
use crate::export::part::Part;
use crate::export::runs::Runs;

const BLOCK_BYTES: u64 = 2 << 20;
/// One bit for each sector fills one sector.
const BITMAP_BYTES: u64 = 512;
const STRIDE_BYTES: u64 = BITMAP_BYTES + BLOCK_BYTES;
const HEADER_AT: u64 = 512;
const HEADER_BYTES: u64 = 1024;
const TABLE_AT: u64 = HEADER_AT + HEADER_BYTES;
const ENTRY_BYTES: u64 = 4;
/// The table is handed out in steps of this many bytes.
const STEP_BYTES: u64 = 64 * 1024;

/// See the module's documentation. Places are in bytes.
#[derive(Debug)]
pub(crate) struct DynamicLayout {
    runs: Runs,
    footer: Vec<u8>,
    /// Blocks of the disk, allocated or not.
    blocks: u64,
    /// Where the first block stands, and the footer.
    data: u64,
    end: u64,
}

impl DynamicLayout {
    /// `virtual_bytes` is at most the format's.
    pub fn new(
        virtual_bytes: u64,
        used: impl Iterator<Item = Range<u64>>,
        identity: Identity,
    ) -> Self {
        let virtual_bytes = virtual_bytes.next_multiple_of(SECTOR_BYTES);
        let runs = Runs::new(BLOCK_BYTES, used);
        let blocks = virtual_bytes.div_ceil(BLOCK_BYTES);
        let data = TABLE_AT + (blocks * ENTRY_BYTES).next_multiple_of(SECTOR_BYTES);
        let end = data + runs.blocks() * STRIDE_BYTES;
        let footer = footer(virtual_bytes, Kind::Dynamic(HEADER_AT), identity);
        Self { runs, footer, blocks, data, end }
    }

    fn header(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES as usize);
        bytes.extend_from_slice(HEADER_COOKIE);
        bytes.extend_from_slice(&u64::MAX.to_be_bytes()); // no further header
        bytes.extend_from_slice(&TABLE_AT.to_be_bytes());
        bytes.extend_from_slice(&0x0001_0000_u32.to_be_bytes());
        bytes.extend_from_slice(&(self.blocks as u32).to_be_bytes());
        bytes.extend_from_slice(&(BLOCK_BYTES as u32).to_be_bytes());
        bytes.resize(HEADER_BYTES as usize, 0);
        let sum = checksum(&bytes, HEADER_CHECKSUM_AT);
        bytes[HEADER_CHECKSUM_AT..HEADER_CHECKSUM_AT + 4].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// The part from byte `at` of the table, which is padded with holes.
    fn table_part(&self, at: u64, most: u64) -> Part {
        let step = at / STEP_BYTES * STEP_BYTES;
        let end = (step + STEP_BYTES).min(self.data - TABLE_AT);
        let (first, last) = (step / ENTRY_BYTES, end / ENTRY_BYTES);
        let mut table = vec![0xff; (end - step) as usize];
        for run in self.runs.within(first..last) {
            let places = &mut table[((run.guest - first) * ENTRY_BYTES) as usize..];
            for (place, rank) in
                places.as_chunks_mut::<4>().0.iter_mut().zip(run.rank..run.rank + run.count)
            {
                let sector = (self.data + rank * STRIDE_BYTES) / SECTOR_BYTES;
                // It fits: 2040 GiB of blocks and their bitmaps have fewer sectors.
                *place = (sector as u32).to_be_bytes();
            }
        }
        Part::of(table, at - step, end - step, most)
    }
}

impl FileLayout for DynamicLayout {
    fn len(&self) -> u64 {
        self.end + SECTOR_BYTES
    }

    fn locate(&self, guest: u64) -> Option<(u64, u64)> {
        let (rank, within, _) = self.runs.find(guest)?;
        let at = self.data + rank * STRIDE_BYTES + BITMAP_BYTES + within;
        Some((at, BLOCK_BYTES - within))
    }

    fn part(&self, at: u64, most: u64) -> Part {
        if at < HEADER_AT {
            return Part::of(self.footer.clone(), at, SECTOR_BYTES, most);
        }
        if at < TABLE_AT {
            return Part::of(self.header(), at - HEADER_AT, HEADER_BYTES, most);
        }
        if at < self.data {
            return self.table_part(at - TABLE_AT, most);
        }
        if at >= self.end {
            return Part::of(self.footer.clone(), at - self.end, SECTOR_BYTES, most);
        }
        let inside = (at - self.data) % STRIDE_BYTES;
        if inside < BITMAP_BYTES {
            return Part::of(vec![0xff; BITMAP_BYTES as usize], inside, BITMAP_BYTES, most);
        }
        let (block, _) = self.runs.at_rank((at - self.data) / STRIDE_BYTES);
        let within = inside - BITMAP_BYTES;
        let guest = block * BLOCK_BYTES + within;
        Part::Guest { guest, length: (BLOCK_BYTES - within).min(most) }
    }
}
