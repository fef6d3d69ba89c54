//! Lays a disk out as a `streamOptimized` VMDK, without making the file.
//!
//! In this order: header, descriptor, up to sector 128; then for each grain table that maps
//! anything its grains and the table; the grain directory, the footer, the end-of-stream marker.
//! Each table of tables stands behind a marker sector.
//!
//! A grain is a zlib stream of two *stored* blocks of 32 KiB. So its length is known before its
//! content, any range of the file can be answered on its own, and no version of a compressor can
//! change the bytes. The price is that the file is as long as its content; content that should
//! travel compressed travels as chunks.
//!
//! Invariant: the same allocation gives the same bytes, for ever; see `qcow2::layout`.
//! Non-goals: content and its Adler-32, which the export asks for.

use std::ops::Range;

use super::SECTOR_BYTES;
use super::header::{
    AT_END, DEFLATE, FLAG_COMPRESSED, FLAG_MARKERS, FLAG_NEWLINES, MARKER_DIRECTORY, MARKER_END,
    MARKER_FOOTER, MARKER_TABLE,
};
use super::sparse_layout::{
    GRAIN_BYTES, GRAIN_SECTORS, Header, TABLE_BYTES, TABLE_ENTRIES, TABLE_SECTORS, grain_table,
    header, words,
};
use super::text::descriptor;
use crate::export::layout::{FileLayout, Identity};
use crate::export::part::Part;
use crate::export::runs::Runs;

/// Sectors before the first grain.
pub(super) const OVERHEAD: u64 = 128;
const STORED_BYTES: u64 = 32 * 1024;
/// Marker, zlib header, header of a stored block.
const BEFORE_FIRST: u64 = 12 + 2 + 5;
const BEFORE_SECOND: u64 = BEFORE_FIRST + STORED_BYTES + 5;
const ADLER_AT: u64 = BEFORE_SECOND + STORED_BYTES;
const PACKED_END: u64 = ADLER_AT + 4;
const PACKED_SECTORS: u64 = PACKED_END.div_ceil(SECTOR_BYTES);
const PACKED_BYTES: u64 = PACKED_SECTORS * SECTOR_BYTES;
/// A marker and its table.
const MARKED_TABLE_SECTORS: u64 = 1 + TABLE_SECTORS;
/// "Deflate with a window of 32 KiB", and "not compressed much", which makes it a multiple of 31.
const ZLIB_HEADER: [u8; 2] = [0x78, 0x01];
const STEP_BYTES: u64 = 64 * 1024;

/// See the module's documentation. Places are in sectors.
#[derive(Debug)]
pub(crate) struct StreamLayout {
    sectors: u64,
    descriptor: Vec<u8>,
    runs: Runs,
    /// Numbers of the tables that map anything, ascending.
    tables: Vec<u64>,
    /// Of the whole directory.
    directory_entries: u64,
    /// Where the directory's marker stands.
    directory: u64,
    footer: u64,
}

impl StreamLayout {
    /// `None` where the file needs more sectors than 32 bits count.
    pub fn new(
        virtual_bytes: u64,
        used: impl Iterator<Item = Range<u64>>,
        identity: Identity,
    ) -> Option<Self> {
        let sectors = virtual_bytes.div_ceil(SECTOR_BYTES);
        let runs = Runs::new(GRAIN_BYTES, used);
        let mut tables: Vec<u64> = Vec::new();
        for run in runs.iter() {
            let first = run.guest / TABLE_ENTRIES;
            let first = tables.last().map_or(first, |&last| first.max(last + 1));
            tables.extend(first..(run.guest + run.count).div_ceil(TABLE_ENTRIES));
        }
        let grains = runs.blocks().checked_mul(PACKED_SECTORS)?;
        let directory = OVERHEAD + tables.len() as u64 * MARKED_TABLE_SECTORS;
        let directory = directory.checked_add(grains)?;
        let directory_entries = virtual_bytes.div_ceil(GRAIN_BYTES * TABLE_ENTRIES);
        let footer = directory + 1 + (directory_entries * 4).div_ceil(SECTOR_BYTES);
        u32::try_from(footer + 3).ok()?;
        let descriptor = descriptor("streamOptimized", sectors, identity);
        Some(Self { sectors, descriptor, runs, tables, directory_entries, directory, footer })
    }

    /// Where the first grain of the table that stands at `index` of `tables` starts.
    fn group(&self, index: usize) -> u64 {
        let rank = match self.tables.get(index) {
            Some(number) => self.runs.rank(number * TABLE_ENTRIES),
            None => self.runs.blocks(),
        };
        OVERHEAD + rank * PACKED_SECTORS + index as u64 * MARKED_TABLE_SECTORS
    }

    /// Where the grain of rank `rank`, which is mapped by the table at `index`, starts.
    fn grain(&self, index: usize, rank: u64) -> u64 {
        OVERHEAD + rank * PACKED_SECTORS + index as u64 * MARKED_TABLE_SECTORS
    }

    /// The index of the table whose grains, or which itself, stand at `sector`.
    fn group_at(&self, sector: u64) -> usize {
        let (mut low, mut high) = (0, self.tables.len());
        while high - low > 1 {
            let middle = usize::midpoint(low, high);
            if self.group(middle) <= sector { low = middle } else { high = middle }
        }
        low
    }

    fn group_part(&self, at: u64, most: u64) -> Part {
        let index = self.group_at(at / SECTOR_BYTES);
        let start = self.group(index);
        let marker = self.group(index + 1) - MARKED_TABLE_SECTORS;
        if at < marker * SECTOR_BYTES {
            let inside = at - start * SECTOR_BYTES;
            let rank = self.runs.rank(self.tables[index] * TABLE_ENTRIES) + inside / PACKED_BYTES;
            let (block, _) = self.runs.at_rank(rank);
            return grain_part(block, inside % PACKED_BYTES, most);
        }
        let inside = at - marker * SECTOR_BYTES;
        if inside < SECTOR_BYTES {
            return Part::of(marked(TABLE_SECTORS, MARKER_TABLE), inside, SECTOR_BYTES, most);
        }
        let table = grain_table(&self.runs, self.tables[index], |rank| self.grain(index, rank));
        Part::of(table, inside - SECTOR_BYTES, TABLE_BYTES, most)
    }

    fn directory_part(&self, at: u64, most: u64) -> Part {
        let sectors = self.footer - self.directory - 1;
        if at < SECTOR_BYTES {
            return Part::of(marked(sectors, MARKER_DIRECTORY), at, SECTOR_BYTES, most);
        }
        let at = at - SECTOR_BYTES;
        let step = at / STEP_BYTES * STEP_BYTES;
        let end = (step + STEP_BYTES).min(sectors * SECTOR_BYTES);
        let numbers = step / 4..(end / 4).min(self.directory_entries);
        let from = self.tables.partition_point(|&number| number < numbers.start);
        let mut entries = Vec::new();
        for (index, &number) in self.tables.iter().enumerate().skip(from) {
            if number >= numbers.end {
                break;
            }
            entries.resize(((number - numbers.start) * 4) as usize, 0);
            let table = self.group(index + 1) - TABLE_SECTORS;
            entries.extend(words(std::iter::once(table)));
        }
        Part::of(entries, at - step, end - step, most)
    }
}

impl FileLayout for StreamLayout {
    fn len(&self) -> u64 {
        (self.footer + 3) * SECTOR_BYTES
    }

    fn locate(&self, guest: u64) -> Option<(u64, u64)> {
        let (rank, within, _) = self.runs.find(guest)?;
        let index = self.tables.binary_search(&(guest / (GRAIN_BYTES * TABLE_ENTRIES))).ok()?;
        let start = self.grain(index, rank) * SECTOR_BYTES;
        let left = STORED_BYTES - within % STORED_BYTES;
        let before = if within < STORED_BYTES { BEFORE_FIRST } else { BEFORE_SECOND };
        Some((start + before + within % STORED_BYTES, left))
    }

    fn part(&self, at: u64, most: u64) -> Part {
        let sector = at / SECTOR_BYTES;
        if sector == 0 {
            return Part::of(stream_header(AT_END, self.sectors), at, SECTOR_BYTES, most);
        }
        if sector < OVERHEAD {
            let end = (OVERHEAD - 1) * SECTOR_BYTES;
            return Part::of(self.descriptor.clone(), at - SECTOR_BYTES, end, most);
        }
        if sector < self.directory {
            return self.group_part(at, most);
        }
        if sector < self.footer {
            return self.directory_part(at - self.directory * SECTOR_BYTES, most);
        }
        let bytes = match sector - self.footer {
            0 => marked(1, MARKER_FOOTER),
            1 => stream_header(self.directory + 1, self.sectors),
            _ => marked(0, MARKER_END),
        };
        Part::of(bytes, at % SECTOR_BYTES, SECTOR_BYTES, most)
    }
}

/// Of a disk of `sectors` sectors, with its directory at sector `directory`.
pub(super) fn stream_header(directory: u64, sectors: u64) -> Vec<u8> {
    let fields = Header {
        version: 3,
        flags: FLAG_NEWLINES | FLAG_COMPRESSED | FLAG_MARKERS,
        redundant: 0,
        directory,
        overhead: OVERHEAD,
        compression: DEFLATE,
    };
    header(&fields, sectors)
}

/// The marker of `sectors` sectors that follow it.
pub(super) fn marked(sectors: u64, kind: u32) -> Vec<u8> {
    let mut marker = sectors.to_le_bytes().to_vec();
    marker.extend_from_slice(&[0; 4]); // not a grain's
    marker.extend_from_slice(&kind.to_le_bytes());
    marker
}

/// The part from byte `at` of the packed grain that holds guest block `block`.
fn grain_part(block: u64, at: u64, most: u64) -> Part {
    let guest = block * GRAIN_BYTES;
    if at < BEFORE_FIRST {
        let mut start = (block * GRAIN_SECTORS).to_le_bytes().to_vec();
        start.extend_from_slice(&((PACKED_END - 12) as u32).to_le_bytes());
        start.extend_from_slice(&ZLIB_HEADER);
        start.extend_from_slice(&stored(false));
        return Part::of(start, at, BEFORE_FIRST, most);
    }
    if at < BEFORE_FIRST + STORED_BYTES {
        let inside = at - BEFORE_FIRST;
        return Part::Guest { guest: guest + inside, length: (STORED_BYTES - inside).min(most) };
    }
    if at < BEFORE_SECOND {
        let from = at - (BEFORE_SECOND - 5);
        return Part::of(stored(true).to_vec(), from, 5, most);
    }
    if at < ADLER_AT {
        let inside = at - BEFORE_SECOND;
        let length = (STORED_BYTES - inside).min(most);
        return Part::Guest { guest: guest + STORED_BYTES + inside, length };
    }
    if at < PACKED_END {
        let from = at - ADLER_AT;
        let length = (4 - from).min(most) as u8;
        return Part::Adler32 { guest, of: GRAIN_BYTES, from: from as u8, length };
    }
    Part::Zero((PACKED_BYTES - at).min(most))
}

/// The header of a stored block of [`STORED_BYTES`]: whether it is the last, its length, and the
/// complement of that.
fn stored(last: bool) -> [u8; 5] {
    let [low, high] = (STORED_BYTES as u16).to_le_bytes();
    [u8::from(last), low, high, !low, !high]
}
