//! Writes a qcow2 file of compressed clusters, front to back.
//!
//! Clusters of 64 KiB: the header first, then what the guest wrote, in its order. Compressed
//! clusters stand behind one another without regard to the file's clusters; one that does not
//! become shorter by a sixteenth stands as it is, in a cluster of its own, and the rest of the
//! cluster before it is still filled where something fits. Behind the last cluster that an L2 table
//! maps stands that table, behind the last one that a block of reference counts counts that block;
//! at the end the L1 table, the last blocks and the refcount table.
//!
//! A cluster of the file counts one reference for each compressed cluster that reaches into it, by
//! whole sectors; all else one.
//!
//! Invariants: the same clusters give the same file (see `compressed`); of tables it holds the L1
//! table, the refcount table, one L2 table and two blocks of reference counts.
//! Non-goals: compressing, knowing zeros.

use std::collections::BTreeMap;

use super::header::SECTOR_BYTES;
use super::layout::{
    CLUSTER_BYTES, COPIED, ENTRY_BYTES, HeaderFields, L2_ENTRIES, REFCOUNTS_PER_BLOCK, header,
    l1_entries, words,
};
use crate::compressed::{self, CompressError, Sink, UNIT_BYTES};

const COMPRESSED: u64 = 1 << 62;
/// Where the sectors of a compressed cluster stand in its entry: the first not counted.
const SECTORS_SHIFT: u32 = 62 - (super::layout::CLUSTER_BITS - 8);
/// A compressed cluster is not longer: reading it as it is would be cheaper.
const PACKED_BYTES_MAX: usize = UNIT_BYTES - UNIT_BYTES / 16;

/// See the module's documentation. Places are bytes of the file.
#[derive(Debug)]
pub(crate) struct Packer<'a> {
    sink: Sink<'a>,
    virtual_bytes: u64,
    zstd: bool,
    /// Where the next compressed cluster goes, if it fits before `packed_end` or may pass it.
    packed: u64,
    /// The end of the cluster that `packed` is in.
    packed_end: u64,
    /// The first cluster that is not taken.
    end: u64,
    l1: Vec<u64>,
    /// Index and entries of the L2 table that is being filled.
    table: Option<(u64, Vec<u64>)>,
    counts: Counts,
}

/// Reference counts of the file's clusters.
#[derive(Debug, Default)]
struct Counts {
    /// Blocks that may still change, by number.
    open: BTreeMap<u64, Vec<u16>>,
    /// Where the blocks from 0 on stand, that cannot change any more.
    placed: Vec<u64>,
}

impl Counts {
    fn add(&mut self, cluster: u64) {
        let (block, place) = (cluster / REFCOUNTS_PER_BLOCK, cluster % REFCOUNTS_PER_BLOCK);
        let counts = || vec![0; REFCOUNTS_PER_BLOCK as usize];
        // It cannot overflow: no cluster compresses to a byte.
        self.open.entry(block).or_insert_with(counts)[place as usize] += 1;
    }
}

impl<'a> Packer<'a> {
    /// `zstd` or deflate.
    pub fn new(virtual_bytes: u64, zstd: bool, sink: Sink<'a>) -> Self {
        let virtual_bytes = virtual_bytes.next_multiple_of(SECTOR_BYTES);
        let l1 = vec![0; l1_entries(virtual_bytes) as usize];
        let (packed, packed_end, end) = (CLUSTER_BYTES, CLUSTER_BYTES, CLUSTER_BYTES);
        let mut counts = Counts::default();
        counts.add(0);
        Self { sink, virtual_bytes, zstd, packed, packed_end, end, l1, table: None, counts }
    }

    /// Takes as many clusters as `bytes` need, and puts them there.
    fn append(&mut self, bytes: &[u8]) -> Result<u64, CompressError> {
        let at = self.end;
        self.end += (bytes.len() as u64).next_multiple_of(CLUSTER_BYTES).max(CLUSTER_BYTES);
        (at / CLUSTER_BYTES..self.end / CLUSTER_BYTES).for_each(|it| self.counts.add(it));
        self.sink.put(at, bytes)?;
        Ok(at)
    }

    /// The entry of a compressed cluster, which it puts.
    fn append_packed(&mut self, bytes: &[u8]) -> Result<u64, CompressError> {
        let length = bytes.len() as u64;
        if self.packed + length > self.packed_end {
            if self.packed_end != self.end {
                self.packed = self.end;
            }
            self.packed_end = (self.packed + length).next_multiple_of(CLUSTER_BYTES);
            self.end = self.packed_end;
        }
        let at = self.packed;
        self.packed += length;
        let last = at + length - 1;
        (at / CLUSTER_BYTES..=last / CLUSTER_BYTES).for_each(|it| self.counts.add(it));
        self.sink.put(at, bytes)?;
        let sectors = last / SECTOR_BYTES - at / SECTOR_BYTES;
        Ok(COMPRESSED | sectors << SECTORS_SHIFT | at)
    }

    fn end_table(&mut self) -> Result<(), CompressError> {
        if let Some((index, entries)) = self.table.take() {
            self.l1[index as usize] = self.append(&words(entries.into_iter()))? | COPIED;
        }
        Ok(())
    }

    /// Places the blocks of reference counts that lie behind everything that is still to come.
    fn end_blocks(&mut self) -> Result<(), CompressError> {
        while self.end / CLUSTER_BYTES / REFCOUNTS_PER_BLOCK > self.counts.placed.len() as u64 {
            // What is left of a cluster so far back is given up.
            if self.packed / CLUSTER_BYTES / REFCOUNTS_PER_BLOCK <= self.counts.placed.len() as u64
            {
                (self.packed, self.packed_end) = (self.end, self.end);
            }
            let block = self.counts.open.remove(&(self.counts.placed.len() as u64));
            let at = self.append(&count_bytes(&block.unwrap_or_default()))?;
            self.counts.placed.push(at);
        }
        Ok(())
    }
}

fn count_bytes(counts: &[u16]) -> Vec<u8> {
    counts.iter().flat_map(|count| count.to_be_bytes()).collect()
}

impl compressed::Packer for Packer<'_> {
    fn put(&mut self, block: u64, raw: &[u8], packed: &[u8]) -> Result<(), CompressError> {
        let index = block / L2_ENTRIES;
        if self.table.as_ref().is_some_and(|&(known, _)| known != index) {
            self.end_table()?;
        }
        let entry = if packed.len() <= PACKED_BYTES_MAX {
            self.append_packed(packed)?
        } else {
            self.append(raw)? | COPIED
        };
        let (_, entries) = self.table.get_or_insert_with(|| (index, vec![0; L2_ENTRIES as usize]));
        entries[(block % L2_ENTRIES) as usize] = entry;
        self.end_blocks()
    }

    fn finish(&mut self) -> Result<u64, CompressError> {
        self.end_table()?;
        let l1 = words(std::mem::take(&mut self.l1).into_iter());
        let l1 = self.append(&l1)?;
        self.end_blocks()?;
        // The last blocks count themselves and the table: all are placed before any is written.
        let blocks = (self.end / CLUSTER_BYTES).div_ceil(REFCOUNTS_PER_BLOCK) + 1;
        let table_clusters = (blocks * ENTRY_BYTES).div_ceil(CLUSTER_BYTES);
        let table = self.end;
        for _ in 0..table_clusters {
            self.append(&[])?;
        }
        let mut last = Vec::new();
        while let Some((&number, _)) =
            self.counts.open.range(self.counts.placed.len() as u64..).next()
        {
            let at = self.append(&[])?;
            self.counts.placed.push(at);
            last.push((number, at));
        }
        for (number, at) in last {
            let block = self.counts.open.remove(&number).unwrap_or_default();
            self.sink.put(at, &count_bytes(&block))?;
        }
        self.sink.put(table, &words(self.counts.placed.iter().copied()))?;
        let fields = HeaderFields {
            virtual_bytes: self.virtual_bytes,
            l1,
            refcount_table: table,
            refcount_table_clusters: table_clusters as u32,
            zstd: self.zstd,
        };
        self.sink.put(0, &header(&fields))?;
        self.sink.flush()?;
        Ok(self.end)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::compressed::Packer as _;

    /// Clusters around the border between two blocks of reference counts, some compressed and some
    /// not, are counted as qemu-img counts them; so is a border that is passed by the last tables.
    #[test]
    fn reference_counts_are_right_where_their_blocks_meet() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made.qcow2");
        let raw = vec![1; UNIT_BYTES];
        for before in [1, 2, 3, 4, 5, 9, 30] {
            let file = std::fs::File::create(&path).unwrap();
            let mut packer = Packer::new(1 << 40, true, Sink::new(&file));
            for block in 0..9u64 {
                packer.put(block, &raw, &raw[..20_000]).unwrap();
            }
            // What is passed over is counted by nobody and referred to by nobody: free.
            packer.end = (REFCOUNTS_PER_BLOCK - before) * CLUSTER_BYTES;
            for block in 9..27u64 {
                let length = if block % 3 == 0 { UNIT_BYTES } else { 33_000 };
                packer.put(block + block / 20 * L2_ENTRIES, &raw, &raw[..length]).unwrap();
            }
            let end = packer.finish().unwrap();
            file.set_len(end).unwrap();
            let check = Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(&path).output();
            let check = check.expect("install qemu-utils");
            let text = String::from_utf8_lossy(&check.stdout);
            assert!(check.status.success() && text.contains("No errors"), "{before}: {text}");
        }
    }
}
