//! Walks the tables once, when an image is opened.
//!
//! Invariant: after it, each cluster of the image has at most one use among the header, the L1
//! table, the refcount table, the L2 tables of the active state and their data; so no table can
//! loop, and the work for a whole disk is bounded by the image's real length. All data that the
//! guest can see lies inside the image.
//! Non-goal: reference counts; a program that only reads has no need of them.

use super::entry::{self, Cluster};
use super::header::{Header, SECTOR_BYTES};
use crate::offset::HostOffset;
use crate::pages::read_source;
use crate::refusal::{OpenError, Refusal};
use crate::source::ReadAt;

/// The most clusters an image may have: one bit for each is 32 MiB.
const CLUSTERS_MAX: u64 = 256 << 20;

/// One bit for each cluster of the image.
struct Clusters {
    bits: Vec<u64>,
    count: u64,
    cluster_bits: u32,
}

impl Clusters {
    fn new(length: u64, cluster_bits: u32) -> Result<Self, Refusal> {
        let count = length.div_ceil(1 << cluster_bits);
        if count > CLUSTERS_MAX {
            return Err(Refusal::TooLarge("it has more than 256 Mi clusters; use larger ones"));
        }
        Ok(Self { bits: vec![0; count.div_ceil(64) as usize], count, cluster_bits })
    }

    /// Numbers of the clusters that the range touches, as far as the image goes.
    fn range(&self, at: HostOffset, bytes: u64) -> std::ops::Range<u64> {
        let end = at.0.saturating_add(bytes).div_ceil(1 << self.cluster_bits);
        at.0 >> self.cluster_bits..end.min(self.count)
    }

    fn is_marked(&self, number: u64) -> bool {
        self.bits[(number / 64) as usize] & 1 << (number % 64) != 0
    }

    fn mark(&mut self, number: u64) {
        self.bits[(number / 64) as usize] |= 1 << (number % 64);
    }
}

struct Walk<'a> {
    header: &'a Header,
    length: u64,
    /// Clusters with one use.
    used: Clusters,
    /// Clusters that hold compressed data, which share clusters with each other.
    shared: Clusters,
    /// The least that the compressed clusters can take, in bytes.
    compressed_bytes: u64,
}

/// Checks the tables that `l1` leads to.
pub(super) fn check_tables(
    header: &Header,
    source: &dyn ReadAt,
    l1: &[u64],
) -> Result<(), OpenError> {
    let length = source.len();
    let mut walk = Walk {
        header,
        length,
        used: Clusters::new(length, header.cluster_bits)?,
        shared: Clusters::new(length, header.cluster_bits)?,
        compressed_bytes: 0,
    };
    walk.take(HostOffset(0), 1, "the header")?;
    walk.take(header.l1_offset, header.l1_bytes, "the L1 table")?;
    walk.take(header.refcount_offset, header.refcount_bytes, "the refcount table")?;
    let mut table = vec![0; header.cluster_bytes() as usize];
    for (number, &l1_entry) in l1.iter().enumerate() {
        let Some(at) = entry::l2_table(l1_entry, header)? else { continue };
        walk.inside(at, header.cluster_bytes(), "an L2 table")?;
        walk.take(at, header.cluster_bytes(), "an L2 table")?;
        read_source(source, at, &mut table)?;
        walk.table(&table, number as u64 * header.l2_span())?;
    }
    Ok(())
}

impl Walk<'_> {
    /// `guest` is what the table's first entry maps.
    fn table(&mut self, table: &[u8], guest: u64) -> Result<(), Refusal> {
        let cluster_bytes = self.header.cluster_bytes();
        let left = self.header.virtual_bytes - guest;
        let entries = left.div_ceil(cluster_bytes).min(self.header.l2_entries());
        for index in 0..entries {
            let seen = (left - index * cluster_bytes).min(cluster_bytes);
            match entry::decode(table, index as usize, self.header)? {
                Cluster::Zero { kept: None } => {}
                Cluster::Zero { kept: Some(at) } => {
                    if at.0 < self.length {
                        self.take(at, cluster_bytes, "a zero cluster")?;
                    }
                }
                Cluster::Data(at) => {
                    self.inside(at, seen, "a data cluster")?;
                    self.take(at, cluster_bytes, "a data cluster")?;
                }
                Cluster::Partial { at, allocated } => {
                    let last = u64::from(entry::SUBCLUSTERS - allocated.leading_zeros());
                    let end = last * (cluster_bytes / u64::from(entry::SUBCLUSTERS));
                    self.inside(at, end.min(seen), "a data cluster")?;
                    self.take(at, cluster_bytes, "a data cluster")?;
                }
                Cluster::Compressed { at, bytes } => self.compressed(at, bytes)?,
            }
        }
        Ok(())
    }

    fn inside(&self, at: HostOffset, bytes: u64, what: &'static str) -> Result<(), Refusal> {
        match at.checked_add(bytes) {
            Some(end) if end.0 <= self.length => Ok(()),
            _ => Err(Refusal::Truncated(what)),
        }
    }

    fn take(&mut self, at: HostOffset, bytes: u64, what: &'static str) -> Result<(), Refusal> {
        for number in self.used.range(at, bytes) {
            if self.used.is_marked(number) || self.shared.is_marked(number) {
                return Err(Refusal::OverlappingTables(what));
            }
            self.used.mark(number);
        }
        Ok(())
    }

    /// Compressed clusters lie close together, with shared sectors; so that they overlap is known
    /// only from their sum.
    fn compressed(&mut self, at: HostOffset, bytes: u32) -> Result<(), Refusal> {
        if at.0 >= self.length {
            return Err(Refusal::Truncated("a compressed cluster"));
        }
        self.compressed_bytes += (u64::from(bytes).saturating_sub(SECTOR_BYTES)).max(1);
        if self.compressed_bytes > self.length {
            return Err(Refusal::OverlappingTables("compressed clusters"));
        }
        for number in self.used.range(at, u64::from(bytes)) {
            if self.used.is_marked(number) {
                return Err(Refusal::OverlappingTables("a compressed cluster"));
            }
            self.shared.mark(number);
        }
        Ok(())
    }
}
