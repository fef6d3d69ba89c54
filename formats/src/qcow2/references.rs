//! Holds an image's reference counts against what refers to its clusters, as `qemu-img check` does.
//!
//! What is read of a disk does not depend on them (see `check`); a program that writes to the image
//! goes by them, and where they are wrong it may write over content, or never use room again.
//!
//! Invariants: everything that may refer to a cluster is counted – tables and content of the active
//! state and of every snapshot, bitmaps, the counts themselves; memory is bounded by
//! [`CLUSTERS_MAX`], and work by [`TABLES_MAX`] tables.
//! Non-goal: mending anything.

use std::ops::ControlFlow;

use thiserror::Error;

use super::entry::{self, Cluster};
use super::header::{Header, L1_BYTES_MAX};
use crate::bytes::Big;
use crate::offset::HostOffset;
use crate::pages::read_part;
use crate::refusal::{OpenError, Refusal};
use crate::source::ReadAt;

/// Four bytes are kept for each.
const CLUSTERS_MAX: u64 = 64 << 20;
/// L2 tables that are read, of all snapshots together.
const TABLES_MAX: u64 = 4 << 20;
/// As in QEMU.
const SNAPSHOTS_MAX: u32 = 65_536;
const BITMAPS_MAX: u32 = 65_535;
/// "The cluster is referred to once".
const COPIED: u64 = 1 << 63;
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// A header of a snapshot, before what may follow it.
const SNAPSHOT_BYTES: u64 = 40;
const BITMAP_BYTES: u64 = 24;
const EXTENSION_END: u32 = 0;
const EXTENSION_BITMAPS: u32 = 0x2385_2875;
const AUTOCLEAR_BITMAPS: u64 = 1;
const V2_HEADER_BYTES: u64 = 72;

/// What is wrong with an image's reference counts, and how its clusters are used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct References {
    /// Clusters that nothing, or less, refers to than is counted: wasted room.
    pub leaks: u64,
    /// Clusters that more refers to than is counted, and entries that are none.
    pub corruptions: u64,
    /// Where the last cluster ends that is used, in bytes from the image's start.
    pub image_end: u64,
    /// That the guest's disk has.
    pub total_clusters: u64,
    /// Those that the active state has a place for.
    pub allocated_clusters: u64,
    /// Of these, such as do not stand behind the one before under the same table, and all that are
    /// compressed.
    pub fragmented_clusters: u64,
    pub compressed_clusters: u64,
}

/// Why references were not counted.
#[derive(Debug, Error)]
pub enum CheckError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("somebody wanted an end")]
    Cancelled,
}

impl From<Refusal> for CheckError {
    fn from(refusal: Refusal) -> Self {
        Self::Open(refusal.into())
    }
}

/// Looks at the whole qcow2 in `source`, which [`crate::open`] has opened before. `proceed` is asked
/// before each table, and ends it by [`ControlFlow::Break`].
///
/// # Errors
/// [`OpenError::Refused`] where it cannot be opened, or is too large to be looked at.
pub fn check_references(
    source: &dyn ReadAt,
    proceed: &mut dyn FnMut() -> ControlFlow<()>,
) -> Result<References, CheckError> {
    let header = Header::read(source)?;
    let clusters = source.len().div_ceil(header.cluster_bytes());
    if clusters > CLUSTERS_MAX {
        return Err(Refusal::TooLarge("it has more than 64 Mi clusters to be counted").into());
    }
    let none = vec![0; clusters as usize];
    let mut count = Count {
        source,
        counted: none.clone(),
        found: none,
        tables_left: TABLES_MAX,
        proceed,
        judged: References {
            total_clusters: header.virtual_bytes.div_ceil(header.cluster_bytes()),
            ..References::default()
        },
        header: &header,
    };
    count.refer(0, header.cluster_bytes());
    count.read_counts()?;
    count.state(header.l1_offset.0, header.l1_bytes, true)?;
    count.snapshots()?;
    count.bitmaps()?;
    Ok(count.judged())
}

/// Both numbers of a cluster stop at the largest that is kept of them.
struct Count<'a> {
    header: &'a Header,
    source: &'a dyn ReadAt,
    /// As the image has it.
    counted: Vec<u16>,
    /// As what refers to the cluster makes it.
    found: Vec<u16>,
    tables_left: u64,
    proceed: &'a mut dyn FnMut() -> ControlFlow<()>,
    judged: References,
}

impl Count<'_> {
    fn go_on(&mut self) -> Result<(), CheckError> {
        match (self.proceed)() {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(CheckError::Cancelled),
        }
    }

    /// Something refers to these bytes.
    fn refer(&mut self, at: u64, bytes: u64) {
        let bits = self.header.cluster_bits;
        let end = at.saturating_add(bytes).div_ceil(1 << bits).min(self.found.len() as u64);
        for number in (at >> bits)..end {
            let found = &mut self.found[number as usize];
            *found = found.saturating_add(1);
        }
    }

    fn is_inside(&self, at: u64, bytes: u64) -> bool {
        let end = at.checked_add(bytes);
        at.is_multiple_of(self.header.cluster_bytes())
            && end.is_some_and(|end| end <= self.source.len())
    }

    fn read_counts(&mut self) -> Result<(), CheckError> {
        let (at, cluster) = (self.header.refcount_offset.0, self.header.cluster_bytes());
        self.refer(at, self.header.refcount_bytes);
        // Where the image ends before it, no count is there.
        let there = self.header.refcount_bytes.min(self.source.len().saturating_sub(at));
        let table = read_part(self.source, at, there / 8 * 8, "its refcount table")?;
        let in_block = cluster * 8 / u64::from(self.header.refcount_bits);
        for (number, entry) in table.as_chunks::<8>().0.iter().enumerate() {
            let block = u64::from_be_bytes(*entry) & !0x1ff;
            if block == 0 {
                continue;
            }
            self.go_on()?;
            if !self.is_inside(block, cluster) {
                self.judged.corruptions += 1;
                continue;
            }
            self.refer(block, cluster);
            let first = (number as u64).saturating_mul(in_block);
            let end = first.saturating_add(in_block).min(self.counted.len() as u64);
            if first >= end {
                continue;
            }
            let bytes = read_part(self.source, block, cluster, "a refcount block")?;
            for cluster in first..end {
                let index = (cluster - first) as usize;
                self.counted[cluster as usize] = width(&bytes, index, self.header.refcount_bits);
            }
        }
        Ok(())
    }

    /// An L1 table and all that it leads to. What else refers to a cluster of the active state is
    /// said in its entries.
    fn state(&mut self, at: u64, bytes: u64, is_active: bool) -> Result<(), CheckError> {
        self.go_on()?;
        if bytes == 0 {
            return Ok(());
        }
        if bytes > L1_BYTES_MAX || !self.is_inside(at, bytes) {
            self.judged.corruptions += 1;
            return Ok(());
        }
        self.refer(at, bytes);
        let l1 = read_part(self.source, at, bytes, "the end of an L1 table")?;
        for entry in l1.as_chunks::<8>().0 {
            let entry = u64::from_be_bytes(*entry);
            match entry::l2_table(entry, self.header) {
                Ok(None) => {}
                Ok(Some(HostOffset(table)))
                    if self.is_inside(table, self.header.cluster_bytes()) =>
                {
                    let left = self.tables_left.checked_sub(1);
                    self.tables_left =
                        left.ok_or(Refusal::TooLarge("its snapshots have more than 4 Mi tables"))?;
                    self.refer(table, self.header.cluster_bytes());
                    if is_active {
                        self.check_copied(entry, table);
                    }
                    self.table(table, is_active)?;
                }
                Ok(Some(_)) | Err(_) => self.judged.corruptions += 1,
            }
        }
        Ok(())
    }

    fn table(&mut self, at: u64, is_active: bool) -> Result<(), CheckError> {
        self.go_on()?;
        let mut expected = None;
        let cluster_bytes = self.header.cluster_bytes();
        let table = read_part(self.source, at, cluster_bytes, "the end of an L2 table")?;
        for index in 0..self.header.l2_entries() as usize {
            let entry = Big(&table).u64(index * self.header.entry_bytes() as usize);
            match entry::decode(&table, index, self.header) {
                Ok(Cluster::Zero { kept: None }) => {}
                Ok(
                    Cluster::Zero { kept: Some(HostOffset(at)) }
                    | Cluster::Data(HostOffset(at))
                    | Cluster::Partial { at: HostOffset(at), .. },
                ) => {
                    self.refer(at, cluster_bytes);
                    if is_active {
                        self.check_copied(entry, at);
                        self.judged.allocated_clusters += 1;
                        let is_elsewhere = expected.is_some_and(|expected| expected != at);
                        self.judged.fragmented_clusters += u64::from(is_elsewhere);
                        expected = Some(at.saturating_add(cluster_bytes));
                    }
                }
                Ok(Cluster::Compressed { at: HostOffset(at), bytes }) => {
                    self.refer(at, u64::from(bytes));
                    if entry & COPIED != 0 {
                        self.judged.corruptions += 1;
                    }
                    if is_active {
                        self.judged.allocated_clusters += 1;
                        self.judged.fragmented_clusters += 1;
                        self.judged.compressed_clusters += 1;
                    }
                }
                Err(_) => self.judged.corruptions += 1,
            }
        }
        Ok(())
    }

    /// Who believes the entry writes to the cluster in its place.
    fn check_copied(&mut self, entry: u64, at: u64) {
        let number = at >> self.header.cluster_bits;
        let counted = usize::try_from(number).ok().and_then(|number| self.counted.get(number));
        if counted.is_some_and(|&counted| (counted == 1) != (entry & COPIED != 0)) {
            self.judged.corruptions += 1;
        }
    }

    fn snapshots(&mut self) -> Result<(), CheckError> {
        let fields = read_part(self.source, 60, 12, "the end of its header")?;
        let (snapshots, start) = (Big(&fields).u32(0), Big(&fields).u64(4));
        if snapshots > SNAPSHOTS_MAX {
            self.judged.corruptions += 1;
            return Ok(());
        }
        let (mut at, mut end) = (start, start);
        for _ in 0..snapshots {
            let entry = read_part(self.source, at, SNAPSHOT_BYTES, "the end of its snapshots")?;
            let fields = Big(&entry);
            let names = u64::from(fields.u16(12)) + u64::from(fields.u16(14));
            end = at + SNAPSHOT_BYTES + names + u64::from(fields.u32(36));
            at = end.next_multiple_of(8);
            self.state(fields.u64(0), u64::from(fields.u32(8)) * 8, false)?;
        }
        if snapshots > 0 {
            self.refer(start, end - start);
        }
        Ok(())
    }

    fn bitmaps(&mut self) -> Result<(), CheckError> {
        let Some((bitmaps, bytes, start)) = self.bitmap_directory()? else { return Ok(()) };
        if bitmaps > BITMAPS_MAX || !self.is_inside(start, bytes) {
            self.judged.corruptions += 1;
            return Ok(());
        }
        self.refer(start, bytes);
        let cluster_bytes = self.header.cluster_bytes();
        let mut at = start;
        for _ in 0..bitmaps {
            self.go_on()?;
            let entry = read_part(self.source, at, BITMAP_BYTES, "the end of its bitmaps")?;
            let fields = Big(&entry);
            let more = u64::from(fields.u16(18)) + u64::from(fields.u32(20));
            at = (at + BITMAP_BYTES + more).next_multiple_of(8);
            let (table, length) = (fields.u64(0), u64::from(fields.u32(8)) * 8);
            if length > L1_BYTES_MAX || !self.is_inside(table, length) {
                self.judged.corruptions += 1;
                continue;
            }
            self.refer(table, length);
            let entries = read_part(self.source, table, length, "the end of a bitmap's table")?;
            for entry in entries.as_chunks::<8>().0 {
                let part = u64::from_be_bytes(*entry) & OFFSET_MASK;
                if part != 0 {
                    self.refer(part, cluster_bytes);
                }
            }
        }
        Ok(())
    }

    /// How many bitmaps there are, and the length and the place of their directory.
    fn bitmap_directory(&self) -> Result<Option<(u32, u64, u64)>, OpenError> {
        if self.header.version < 3 {
            return Ok(None);
        }
        let area = self.header.cluster_bytes().min(self.source.len());
        let area = read_part(self.source, 0, area, "the end of its header")?;
        // Whoever does not know of bitmaps clears the bit; then they mean nothing.
        if Big(&area).u64(88) & AUTOCLEAR_BITMAPS == 0 {
            return Ok(None);
        }
        let header_bytes = u64::from(Big(&area).u32(100)).max(V2_HEADER_BYTES) as usize;
        let mut rest = area.get(header_bytes..).unwrap_or_default();
        while let Some((head, data)) = rest.split_at_checked(8) {
            let (kind, length) = (Big(head).u32(0), Big(head).u32(4) as usize);
            match kind {
                EXTENSION_END => break,
                EXTENSION_BITMAPS if length >= 24 && data.len() >= 24 => {
                    let fields = Big(data);
                    return Ok(Some((fields.u32(0), fields.u64(8), fields.u64(16))));
                }
                _ => rest = data.get(length.next_multiple_of(8)..).unwrap_or_default(),
            }
        }
        Ok(None)
    }

    fn judged(&self) -> References {
        let (mut judged, mut end) = (self.judged, 1);
        for (number, (&counted, &found)) in self.counted.iter().zip(&self.found).enumerate() {
            judged.leaks += u64::from(counted > found);
            judged.corruptions += u64::from(counted < found);
            if counted.max(found) > 0 {
                end = number as u64 + 1;
            }
        }
        judged.image_end = end * self.header.cluster_bytes();
        judged
    }
}

/// Count number `index` of a block, each of `bits` bits.
fn width(block: &[u8], index: usize, bits: u32) -> u16 {
    let count = match bits {
        64 => Big(block).u64(index * 8),
        32 => u64::from(Big(block).u32(index * 4)),
        16 => return Big(block).u16(index * 2),
        8 => return u16::from(block[index]),
        // Of several in a byte, the first has the lowest bits.
        few => {
            let in_byte = 8 / few as usize;
            let byte = u16::from(block[index / in_byte]);
            return (byte >> (index % in_byte * few as usize)) & ((1 << few) - 1);
        }
    };
    u16::try_from(count).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_every_width_are_read() {
        let block = [0b1110_0100, 0x12, 0x34, 0x56, 0, 0, 0, 7, 0xff, 0, 0, 0, 0, 0, 0, 0];
        let all = |bits: u32, count: usize| -> Vec<u16> {
            (0..count).map(|index| width(&block, index, bits)).collect()
        };
        assert_eq!(all(1, 8), [0, 0, 1, 0, 0, 1, 1, 1]);
        assert_eq!(all(2, 4), [0, 1, 2, 3]);
        assert_eq!(all(4, 3), [4, 14, 2]);
        assert_eq!(all(8, 3), [0xe4, 0x12, 0x34]);
        assert_eq!(all(16, 2), [0xe412, 0x3456]);
        assert_eq!(all(32, 3), [u16::MAX, 7, u16::MAX]);
        assert_eq!(all(64, 2), [u16::MAX, u16::MAX]);
    }
}
