//! Lays a disk out as a qcow2 file, version 3, without making the file.
//!
//! Clusters of 64 KiB, in this order: header, refcount table, refcount blocks, L1 table, those L2
//! tables that map anything, then the data clusters in guest order. A cluster without content is
//! not allocated. Every cluster of the file is used once, so that all reference counts are 1 and
//! every part of the file follows from its offset.
//!
//! Invariant: the same allocation gives the same bytes, for ever: digests of exported files are
//! published. A change here is a new format version for its users.
//! Non-goals: content (the export's), compression, other cluster sizes.

use std::ops::Range;

use super::header::{INCOMPATIBLE_COMPRESSION, SECTOR_BYTES};
use crate::export::layout::FileLayout;
use crate::export::part::Part;
use crate::export::runs::Runs;
use crate::qcow2::MAGIC;

pub(super) const CLUSTER_BITS: u32 = 16;
pub(crate) const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;
const HEADER_BYTES: usize = 112;
pub(super) const ENTRY_BYTES: u64 = 8;
pub(super) const L2_ENTRIES: u64 = CLUSTER_BYTES / ENTRY_BYTES;
/// A reference count has 16 bits.
const REFCOUNT_ORDER: u32 = 4;
pub(super) const REFCOUNTS_PER_BLOCK: u64 = CLUSTER_BYTES / 2;
/// "The reference count is exactly one", in L1 and L2 entries.
pub(super) const COPIED: u64 = 1 << 63;
/// The largest disk: as many L1 entries as QEMU reads.
pub(crate) const VIRTUAL_BYTES_MAX: u64 =
    super::header::L1_BYTES_MAX / ENTRY_BYTES * L2_ENTRIES * CLUSTER_BYTES;

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    virtual_bytes: u64,
    runs: Runs,
    /// L1 indices that have an L2 table, ascending; they stand in the file in this order.
    tables: Vec<u64>,
    /// Numbers of clusters in the file where each section starts.
    refcount_table: u64,
    refcount_blocks: u64,
    l1: u64,
    l2: u64,
    data: u64,
    end: u64,
}

impl Layout {
    /// `used` gives the guest bytes that have content: ascending, neither empty nor overlapping,
    /// all before `virtual_bytes`, which is at most [`VIRTUAL_BYTES_MAX`].
    pub fn new(virtual_bytes: u64, used: impl Iterator<Item = Range<u64>>) -> Self {
        let virtual_bytes = virtual_bytes.next_multiple_of(SECTOR_BYTES);
        let runs = Runs::new(CLUSTER_BYTES, used);
        let mut tables: Vec<u64> = Vec::new();
        for run in runs.iter() {
            let first = run.guest / L2_ENTRIES;
            let first = tables.last().map_or(first, |&last| first.max(last + 1));
            tables.extend(first..(run.guest + run.count).div_ceil(L2_ENTRIES));
        }
        let data_clusters = runs.blocks();
        let l1_clusters = l1_entries(virtual_bytes).div_ceil(L2_ENTRIES);
        let others = 1 + l1_clusters + tables.len() as u64 + data_clusters;
        let (table_clusters, blocks) = refcounts(others);
        let refcount_table = 1;
        let refcount_blocks = refcount_table + table_clusters;
        let l1 = refcount_blocks + blocks;
        let l2 = l1 + l1_clusters;
        let data = l2 + tables.len() as u64;
        let end = data + data_clusters;
        Self { virtual_bytes, runs, tables, refcount_table, refcount_blocks, l1, l2, data, end }
    }
}

impl FileLayout for Layout {
    fn len(&self) -> u64 {
        self.end * CLUSTER_BYTES
    }

    fn locate(&self, guest: u64) -> Option<(u64, u64)> {
        let (rank, within, left) = self.runs.find(guest)?;
        Some(((self.data + rank) * CLUSTER_BYTES + within, left))
    }

    fn part(&self, at: u64, most: u64) -> Part {
        let cluster = at / CLUSTER_BYTES;
        if cluster >= self.data {
            return self.data_part(at, most);
        }
        Part::of(self.metadata_cluster(cluster), at % CLUSTER_BYTES, CLUSTER_BYTES, most)
    }
}

impl Layout {
    fn data_part(&self, at: u64, most: u64) -> Part {
        let (guest, count) = self.runs.at_rank(at / CLUSTER_BYTES - self.data);
        let within = at % CLUSTER_BYTES;
        let length = (count * CLUSTER_BYTES - within).min(most);
        Part::Guest { guest: guest * CLUSTER_BYTES + within, length }
    }

    /// The bytes of a cluster before the data, without the zeros at its end.
    fn metadata_cluster(&self, cluster: u64) -> Vec<u8> {
        if cluster < self.refcount_table {
            header(&HeaderFields {
                virtual_bytes: self.virtual_bytes,
                l1: self.l1 * CLUSTER_BYTES,
                refcount_table: self.refcount_table * CLUSTER_BYTES,
                refcount_table_clusters: (self.refcount_blocks - self.refcount_table) as u32,
                zstd: false,
            })
        } else if cluster < self.refcount_blocks {
            let first = (cluster - self.refcount_table) * L2_ENTRIES;
            let blocks = self.l1 - self.refcount_blocks;
            let entries = first.min(blocks)..(first + L2_ENTRIES).min(blocks);
            words(entries.map(|block| (self.refcount_blocks + block) * CLUSTER_BYTES))
        } else if cluster < self.l1 {
            let first = (cluster - self.refcount_blocks) * REFCOUNTS_PER_BLOCK;
            let counted = (self.end - first).min(REFCOUNTS_PER_BLOCK);
            1u16.to_be_bytes().repeat(counted as usize)
        } else if cluster < self.l2 {
            self.l1_cluster((cluster - self.l1) * L2_ENTRIES)
        } else {
            self.l2_table(self.tables[(cluster - self.l2) as usize])
        }
    }

    fn l1_cluster(&self, first: u64) -> Vec<u8> {
        let from = self.tables.partition_point(|&index| index < first);
        let to = self.tables.partition_point(|&index| index < first + L2_ENTRIES);
        let mut bytes = Vec::new();
        for place in from..to {
            let at = ((self.tables[place] - first) * ENTRY_BYTES) as usize;
            let entry = ((self.l2 + place as u64) * CLUSTER_BYTES) | COPIED;
            bytes.resize(at, 0);
            bytes.extend_from_slice(&entry.to_be_bytes());
        }
        bytes
    }

    fn l2_table(&self, index: u64) -> Vec<u8> {
        let (first, end) = (index * L2_ENTRIES, (index + 1) * L2_ENTRIES);
        let mut bytes = Vec::new();
        for run in self.runs.within(first..end) {
            bytes.resize(((run.guest - first) * ENTRY_BYTES) as usize, 0);
            let hosts = self.data + run.rank..self.data + run.rank + run.count;
            bytes.extend_from_slice(&words(hosts.map(|host| (host * CLUSTER_BYTES) | COPIED)));
        }
        bytes
    }
}

/// What differs between the headers that are written. Places are bytes of the file.
pub(super) struct HeaderFields {
    pub virtual_bytes: u64,
    pub l1: u64,
    pub refcount_table: u64,
    pub refcount_table_clusters: u32,
    /// Whether compressed clusters are so, and not deflated.
    pub zstd: bool,
}

pub(super) fn header(fields: &HeaderFields) -> Vec<u8> {
    let mut header = Vec::with_capacity(HEADER_BYTES);
    let l1_entries = l1_entries(fields.virtual_bytes) as u32;
    let incompatible = if fields.zstd { INCOMPATIBLE_COMPRESSION } else { 0 };
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&3u32.to_be_bytes());
    header.extend_from_slice(&[0; 12]); // no backing file
    header.extend_from_slice(&CLUSTER_BITS.to_be_bytes());
    header.extend_from_slice(&fields.virtual_bytes.to_be_bytes());
    header.extend_from_slice(&0u32.to_be_bytes()); // no encryption
    header.extend_from_slice(&l1_entries.to_be_bytes());
    header.extend_from_slice(&fields.l1.to_be_bytes());
    header.extend_from_slice(&fields.refcount_table.to_be_bytes());
    header.extend_from_slice(&fields.refcount_table_clusters.to_be_bytes());
    header.extend_from_slice(&[0; 12]); // no snapshots
    header.extend_from_slice(&incompatible.to_be_bytes());
    header.extend_from_slice(&[0; 16]); // no features that may be ignored
    header.extend_from_slice(&REFCOUNT_ORDER.to_be_bytes());
    header.extend_from_slice(&(HEADER_BYTES as u32).to_be_bytes());
    header.push(u8::from(fields.zstd));
    header.resize(HEADER_BYTES, 0); // padding; then the end of the extensions
    header
}

/// At least one entry, as QEMU makes it for a disk of no bytes.
pub(super) fn l1_entries(virtual_bytes: u64) -> u64 {
    virtual_bytes.div_ceil(L2_ENTRIES * CLUSTER_BYTES).max(1)
}

pub(super) fn words(numbers: impl Iterator<Item = u64>) -> Vec<u8> {
    numbers.flat_map(u64::to_be_bytes).collect()
}

/// Clusters of the refcount table, and of the blocks, that count `others` clusters and themselves.
fn refcounts(others: u64) -> (u64, u64) {
    let (mut table, mut blocks) = (1, 1);
    loop {
        let blocks_needed = (others + table + blocks).div_ceil(REFCOUNTS_PER_BLOCK);
        let table_needed = blocks_needed.div_ceil(L2_ENTRIES);
        if (table_needed, blocks_needed) == (table, blocks) {
            return (table, blocks);
        }
        (table, blocks) = (table.max(table_needed), blocks.max(blocks_needed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_counts_count_themselves() {
        for others in (1..200_000).step_by(977).chain([32_765, 32_766, 32_767, 1 << 32]) {
            let (table, blocks) = refcounts(others);
            assert!(blocks * REFCOUNTS_PER_BLOCK >= others + table + blocks);
            assert!((blocks - 1) * REFCOUNTS_PER_BLOCK <= others + table + blocks);
            assert!(table * L2_ENTRIES >= blocks);
        }
    }

    #[test]
    fn every_allocated_guest_byte_is_found_where_it_is_laid() {
        let used = [0..1, 1 << 20..3 << 20, (5 << 30) - 7..(5 << 30) + 9];
        let layout = Layout::new(6 << 30, used.clone().into_iter());
        for guest in used.into_iter().flat_map(|range| [range.start, range.end - 1]) {
            let (at, left) = layout.locate(guest).unwrap();
            assert_eq!(layout.part(at, left), Part::Guest { guest, length: left });
        }
        assert_eq!(layout.locate(4 << 20), None);
        assert_eq!(layout.locate(6 << 30), None);
    }
}
