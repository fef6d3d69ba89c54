//! Lays a disk out as a `monolithicSparse` VMDK, without making the file.
//!
//! In this order: header, descriptor, the redundant grain directory with its tables, the grain
//! directory with its tables, grains of 64 KiB in guest order from the next 64 KiB on. All tables
//! are there, as VMware makes them; a grain without content is not.
//!
//! Invariant: the same allocation gives the same bytes, for ever; see `qcow2::layout`.
//! Non-goals: content, compression (see `stream_layout`).

use std::ops::Range;

use super::SECTOR_BYTES;
use super::header::{FLAG_NEWLINES, MAGIC, NEWLINES};
use super::text::{DESCRIPTOR_SECTORS, descriptor};
use crate::export::layout::{FileLayout, Identity};
use crate::export::part::Part;
use crate::export::runs::Runs;

pub(super) const GRAIN_SECTORS: u64 = 128;
pub(super) const GRAIN_BYTES: u64 = GRAIN_SECTORS * SECTOR_BYTES;
pub(super) const TABLE_ENTRIES: u64 = 512;
pub(super) const TABLE_SECTORS: u64 = 4;
pub(super) const TABLE_BYTES: u64 = TABLE_SECTORS * SECTOR_BYTES;
const ENTRY_BYTES: u64 = 4;
/// Flag 1: the redundant directory is there.
const FLAG_REDUNDANT: u32 = 1 << 1;
/// A table of the file is handed out in steps of this many bytes.
const STEP_BYTES: u64 = 64 * 1024;

/// See the module's documentation. Places are in sectors.
#[derive(Debug)]
pub(crate) struct SparseLayout {
    sectors: u64,
    descriptor: Vec<u8>,
    runs: Runs,
    tables: u64,
    /// Where the first directory starts, and the second.
    directories: [u64; 2],
    /// Of one directory.
    directory_sectors: u64,
    grains: u64,
}

impl SparseLayout {
    /// `None` where the file needs more sectors than 32 bits count.
    pub fn new(
        virtual_bytes: u64,
        used: impl Iterator<Item = Range<u64>>,
        identity: Identity,
    ) -> Option<Self> {
        let sectors = virtual_bytes.div_ceil(SECTOR_BYTES);
        let runs = Runs::new(GRAIN_BYTES, used);
        let tables = virtual_bytes.div_ceil(GRAIN_BYTES * TABLE_ENTRIES);
        let directory_sectors = (tables * ENTRY_BYTES).div_ceil(SECTOR_BYTES);
        let first = 1 + DESCRIPTOR_SECTORS;
        let second = first + directory_sectors + tables * TABLE_SECTORS;
        let end = second + directory_sectors + tables * TABLE_SECTORS;
        let grains = end.next_multiple_of(GRAIN_SECTORS);
        let fits = grains.checked_add(runs.blocks().checked_mul(GRAIN_SECTORS)?)?;
        u32::try_from(fits).ok()?;
        let descriptor = descriptor("monolithicSparse", sectors, identity);
        let directories = [first, second];
        Some(Self { sectors, descriptor, runs, tables, directories, directory_sectors, grains })
    }

    fn header(&self) -> Vec<u8> {
        header(
            &Header {
                version: 1,
                flags: FLAG_NEWLINES | FLAG_REDUNDANT,
                redundant: self.directories[0],
                directory: self.directories[1],
                overhead: self.grains,
                compression: 0,
            },
            self.sectors,
        )
    }

    /// The part from byte `at` of the directory that starts at sector `first`, or of its tables.
    fn directory_part(&self, first: u64, at: u64, most: u64) -> Part {
        let directory_bytes = self.directory_sectors * SECTOR_BYTES;
        let tables = first + self.directory_sectors;
        if at < directory_bytes {
            let step = at / STEP_BYTES * STEP_BYTES;
            let end = (step + STEP_BYTES).min(directory_bytes);
            let numbers = step / ENTRY_BYTES..(end / ENTRY_BYTES).min(self.tables);
            let entries = numbers.map(|number| tables + number * TABLE_SECTORS);
            return Part::of(words(entries), at - step, end - step, most);
        }
        let at = at - directory_bytes;
        let number = at / TABLE_BYTES;
        let next = self.runs.within(number * TABLE_ENTRIES..u64::MAX).next();
        let next = next.map_or(self.tables, |run| run.guest / TABLE_ENTRIES);
        if next > number {
            return Part::Zero((next * TABLE_BYTES - at).min(most));
        }
        let table = grain_table(&self.runs, number, |rank| self.grains + rank * GRAIN_SECTORS);
        Part::of(table, at % TABLE_BYTES, TABLE_BYTES, most)
    }
}

impl FileLayout for SparseLayout {
    fn len(&self) -> u64 {
        self.grains * SECTOR_BYTES + self.runs.blocks() * GRAIN_BYTES
    }

    fn locate(&self, guest: u64) -> Option<(u64, u64)> {
        let (rank, within, left) = self.runs.find(guest)?;
        Some((self.grains * SECTOR_BYTES + rank * GRAIN_BYTES + within, left))
    }

    fn part(&self, at: u64, most: u64) -> Part {
        let sector = at / SECTOR_BYTES;
        if sector == 0 {
            return Part::of(self.header(), at, SECTOR_BYTES, most);
        }
        let [first, second] = self.directories;
        if sector < first {
            let end = (first - 1) * SECTOR_BYTES;
            return Part::of(self.descriptor.clone(), at - SECTOR_BYTES, end, most);
        }
        if sector < second {
            let left = second * SECTOR_BYTES - at;
            return self.directory_part(first, at - first * SECTOR_BYTES, most.min(left));
        }
        let end = second + self.directory_sectors + self.tables * TABLE_SECTORS;
        if sector < end {
            let left = end * SECTOR_BYTES - at;
            return self.directory_part(second, at - second * SECTOR_BYTES, most.min(left));
        }
        if sector < self.grains {
            return Part::Zero((self.grains * SECTOR_BYTES - at).min(most));
        }
        let at = at - self.grains * SECTOR_BYTES;
        let (block, count) = self.runs.at_rank(at / GRAIN_BYTES);
        let within = at % GRAIN_BYTES;
        let length = (count * GRAIN_BYTES - within).min(most);
        Part::Guest { guest: block * GRAIN_BYTES + within, length }
    }
}

/// What differs between the headers that are written. Places are in sectors.
pub(super) struct Header {
    pub version: u32,
    pub flags: u32,
    pub redundant: u64,
    pub directory: u64,
    pub overhead: u64,
    pub compression: u16,
}

pub(super) fn header(header: &Header, capacity: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SECTOR_BYTES as usize);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&header.version.to_le_bytes());
    bytes.extend_from_slice(&header.flags.to_le_bytes());
    bytes.extend_from_slice(&capacity.to_le_bytes());
    bytes.extend_from_slice(&GRAIN_SECTORS.to_le_bytes());
    bytes.extend_from_slice(&1u64.to_le_bytes()); // the descriptor
    bytes.extend_from_slice(&DESCRIPTOR_SECTORS.to_le_bytes());
    bytes.extend_from_slice(&(TABLE_ENTRIES as u32).to_le_bytes());
    bytes.extend_from_slice(&header.redundant.to_le_bytes());
    bytes.extend_from_slice(&header.directory.to_le_bytes());
    bytes.extend_from_slice(&header.overhead.to_le_bytes());
    bytes.push(0); // shut down cleanly
    bytes.extend_from_slice(NEWLINES);
    bytes.extend_from_slice(&header.compression.to_le_bytes());
    bytes
}

pub(super) fn words(sectors: impl Iterator<Item = u64>) -> Vec<u8> {
    // All sectors fit: the layouts refuse longer files.
    sectors.flat_map(|sector| (sector as u32).to_le_bytes()).collect()
}

/// Grain table `number`, without the holes at its end; `place` gives the sector of a grain's rank.
pub(super) fn grain_table(runs: &Runs, number: u64, place: impl Fn(u64) -> u64) -> Vec<u8> {
    let first = number * TABLE_ENTRIES;
    let mut bytes = Vec::with_capacity(TABLE_BYTES as usize);
    for run in runs.within(first..first + TABLE_ENTRIES) {
        bytes.resize(((run.guest - first) * ENTRY_BYTES) as usize, 0);
        bytes.extend(words((run.rank..run.rank + run.count).map(&place)));
    }
    bytes
}
