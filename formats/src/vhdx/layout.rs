//! Lays a disk out as a dynamic VHDX, without making the file.
//!
//! In this order, each at a multiple of 1 MiB: identifier, headers and region tables; an empty log;
//! metadata; the block table; blocks in guest order. A block without content is marked as zero.
//!
//! Invariant: the same allocation gives the same bytes, for ever; see `qcow2::layout`.
//! Non-goals: content, logical sectors of 4 KiB.

use std::ops::Range;

use super::crc32c::with_own_cleared;
use super::header::{HEADER_BYTES, HEADERS_AT, SIGNATURE};
use super::region::{
    ENTRY_BYTES as REGION_BYTES, METADATA_SIGNATURE, REGION_TABLES_AT, SIGNATURE as REGIONS,
    TABLE_BYTES,
};
use super::{
    BAT, DISK_ID, FILE_PARAMETERS, IDENTIFIER, KIB, LOGICAL_SECTOR, METADATA, MIB, PHYSICAL_SECTOR,
    VIRTUAL_SIZE,
};
use crate::export::layout::{FileLayout, Identity};
use crate::export::part::Part;
use crate::export::runs::Runs;

const LOG_AT: u64 = MIB;
const METADATA_AT: u64 = 2 * MIB;
const BAT_AT: u64 = 3 * MIB;
/// The items follow the table of the metadata.
const ITEMS_AT: u64 = METADATA_AT + TABLE_BYTES;
const ITEM_BYTES: u64 = 16;
const SECTOR_BYTES: u64 = 512;
const PHYSICAL_SECTOR_BYTES: u32 = 4096;
const ENTRY_BYTES: u64 = 8;
const STATE_ZERO: u64 = 2;
const STATE_PRESENT: u64 = 6;
/// Blocks of 1 MiB up to 1 TiB; larger ones for larger disks, so that the table stays small.
const BLOCKS_MAX: u64 = MIB;
const STEP_BYTES: u64 = 64 * KIB;
const REQUIRED: u32 = 1;
/// Flags of a metadata item: the disk's, not the file's; to be understood.
const OF_DISK: u32 = 1 << 1;
const ITEM_REQUIRED: u32 = 1 << 2;
const CREATOR: &str = "Shoal";

/// See the module's documentation. Places are in bytes.
#[derive(Debug)]
pub(crate) struct Layout {
    virtual_bytes: u64,
    block_bytes: u64,
    identity: Identity,
    runs: Runs,
    data: u64,
}

impl Layout {
    /// `virtual_bytes` is at most the format's.
    pub fn new(
        virtual_bytes: u64,
        used: impl Iterator<Item = Range<u64>>,
        identity: Identity,
    ) -> Self {
        let virtual_bytes = virtual_bytes.next_multiple_of(SECTOR_BYTES);
        let block_bytes = virtual_bytes.div_ceil(BLOCKS_MAX).next_power_of_two().max(MIB);
        let runs = Runs::new(block_bytes, used);
        let mut layout = Self { virtual_bytes, block_bytes, identity, runs, data: 0 };
        layout.data = BAT_AT + (layout.entries() * ENTRY_BYTES).next_multiple_of(MIB).max(MIB);
        layout
    }

    const fn ratio(&self) -> u64 {
        (1 << 23) * SECTOR_BYTES / self.block_bytes
    }

    /// Entries of the block table; those of bitmaps stand between the others only.
    const fn entries(&self) -> u64 {
        let blocks = self.virtual_bytes.div_ceil(self.block_bytes);
        blocks + blocks.saturating_sub(1) / self.ratio()
    }

    fn header(&self, sequence: u64) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&sequence.to_le_bytes());
        bytes.extend_from_slice(&self.identity.uuid("vhdx file"));
        bytes.extend_from_slice(&self.identity.uuid("vhdx data"));
        bytes.extend_from_slice(&[0; 16]); // the log is empty
        bytes.extend_from_slice(&0u16.to_le_bytes());
        bytes.extend_from_slice(&1u16.to_le_bytes());
        bytes.extend_from_slice(&(MIB as u32).to_le_bytes());
        bytes.extend_from_slice(&LOG_AT.to_le_bytes());
        bytes.resize(HEADER_BYTES as usize, 0);
        sealed(bytes)
    }

    fn regions(&self) -> Vec<u8> {
        let mut bytes = REGIONS.to_vec();
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&2u64.to_le_bytes());
        let bat_bytes = self.data - BAT_AT;
        for (id, at, length) in [(BAT, BAT_AT, bat_bytes), (METADATA, METADATA_AT, MIB)] {
            bytes.extend_from_slice(&id);
            bytes.extend_from_slice(&at.to_le_bytes());
            bytes.extend_from_slice(&(length as u32).to_le_bytes());
            bytes.extend_from_slice(&REQUIRED.to_le_bytes());
        }
        bytes.resize(TABLE_BYTES as usize, 0);
        sealed(bytes)
    }

    fn items(&self) -> [([u8; 16], u32, Vec<u8>); 5] {
        let mut parameters = (self.block_bytes as u32).to_le_bytes().to_vec();
        parameters.extend_from_slice(&[0; 4]);
        let disk = OF_DISK | ITEM_REQUIRED;
        [
            (FILE_PARAMETERS, ITEM_REQUIRED, parameters),
            (VIRTUAL_SIZE, disk, self.virtual_bytes.to_le_bytes().to_vec()),
            (DISK_ID, disk, self.identity.uuid("vhdx disk").to_vec()),
            (LOGICAL_SECTOR, disk, (SECTOR_BYTES as u32).to_le_bytes().to_vec()),
            (PHYSICAL_SECTOR, disk, PHYSICAL_SECTOR_BYTES.to_le_bytes().to_vec()),
        ]
    }

    fn metadata(&self) -> Vec<u8> {
        let items = self.items();
        let mut bytes = METADATA_SIGNATURE.to_vec();
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&(items.len() as u16).to_le_bytes());
        bytes.resize(REGION_BYTES, 0);
        for (number, (id, flags, item)) in items.iter().enumerate() {
            let at = TABLE_BYTES + number as u64 * ITEM_BYTES;
            bytes.extend_from_slice(id);
            bytes.extend_from_slice(&(at as u32).to_le_bytes());
            bytes.extend_from_slice(&(item.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&flags.to_le_bytes());
            bytes.extend_from_slice(&[0; 4]);
        }
        bytes
    }

    fn item_values(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (_, _, mut item) in self.items() {
            item.resize(ITEM_BYTES as usize, 0);
            bytes.extend_from_slice(&item);
        }
        bytes
    }

    /// The sections before the block table: where each starts and what it holds. What lies between
    /// them is zero.
    fn section(&self, index: usize) -> (u64, Vec<u8>) {
        match index {
            0 => {
                let mut bytes = IDENTIFIER.to_vec();
                bytes.extend(CREATOR.encode_utf16().flat_map(u16::to_le_bytes));
                (0, bytes)
            }
            1 => (HEADERS_AT[0], self.header(0)),
            2 => (HEADERS_AT[1], self.header(1)),
            3 => (REGION_TABLES_AT[0], self.regions()),
            4 => (REGION_TABLES_AT[1], self.regions()),
            5 => (METADATA_AT, self.metadata()),
            _ => (ITEMS_AT, self.item_values()),
        }
    }

    fn section_part(&self, at: u64, most: u64) -> Part {
        const STARTS: [u64; 8] = [
            0,
            HEADERS_AT[0],
            HEADERS_AT[1],
            REGION_TABLES_AT[0],
            REGION_TABLES_AT[1],
            METADATA_AT,
            ITEMS_AT,
            BAT_AT,
        ];
        let index = STARTS.partition_point(|&start| start <= at) - 1;
        let (start, bytes) = self.section(index);
        Part::of(bytes, at - start, STARTS[index + 1] - start, most)
    }

    /// The part from byte `at` of the block table on.
    fn bat_part(&self, at: u64, most: u64) -> Part {
        let step = at / STEP_BYTES * STEP_BYTES;
        let end = (step + STEP_BYTES).min(self.data - BAT_AT);
        let first = step / ENTRY_BYTES;
        let last = (end / ENTRY_BYTES).min(self.entries());
        if first >= last {
            return Part::Zero((end - at).min(most));
        }
        let ratio = self.ratio();
        let payload = |entry: u64| entry - entry / (ratio + 1);
        let mut table = vec![0; ((last - first) * ENTRY_BYTES) as usize];
        let blocks = payload(first)..payload(last - 1) + 1;
        let mut runs = self.runs.within(blocks).peekable();
        for (place, entry) in table.as_chunks_mut::<8>().0.iter_mut().zip(first..last) {
            if entry % (ratio + 1) == ratio {
                continue; // a bitmap, which is not there
            }
            let block = payload(entry);
            while runs.next_if(|run| run.guest + run.count <= block).is_some() {}
            let value = match runs.peek() {
                Some(run) if run.guest <= block => {
                    let rank = run.rank + block - run.guest;
                    (self.data + rank * self.block_bytes) | STATE_PRESENT
                }
                _ => STATE_ZERO,
            };
            *place = value.to_le_bytes();
        }
        Part::of(table, at - step, end - step, most)
    }
}

/// With its checksum at 4.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = with_own_cleared(&bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    bytes
}

impl FileLayout for Layout {
    fn len(&self) -> u64 {
        self.data + self.runs.blocks() * self.block_bytes
    }

    fn locate(&self, guest: u64) -> Option<(u64, u64)> {
        let (rank, within, left) = self.runs.find(guest)?;
        Some((self.data + rank * self.block_bytes + within, left))
    }

    fn part(&self, at: u64, most: u64) -> Part {
        if at < BAT_AT {
            return self.section_part(at, most);
        }
        if at < self.data {
            return self.bat_part(at - BAT_AT, most);
        }
        let at = at - self.data;
        let (block, count) = self.runs.at_rank(at / self.block_bytes);
        let within = at % self.block_bytes;
        let length = (count * self.block_bytes - within).min(most);
        Part::Guest { guest: block * self.block_bytes + within, length }
    }
}
