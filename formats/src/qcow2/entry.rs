//! Entries of the L1 and L2 tables.
//!
//! A standard L2 entry has the cluster's offset in bits 9 to 55, bit 0 for "reads as zero"
//! (version 3), bit 62 for "compressed". An extended one is followed by two bitmaps of 32
//! subclusters: allocated in the low half, zero in the high half.
//!
//! Invariant: a decoded entry is aligned as its kind requires; it may still point anywhere.
//! Non-goals: whether an entry lies inside the image, or meets another (see `check`).

use super::header::{Header, SECTOR_BYTES};
use crate::bytes::Big;
use crate::offset::HostOffset;
use crate::refusal::Refusal;

const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
pub(super) const SUBCLUSTERS: u32 = 32;

/// What an L2 entry says of its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cluster {
    /// Reads as zero. The image may still keep a cluster for it.
    Zero {
        kept: Option<HostOffset>,
    },
    Data(HostOffset),
    /// At most `bytes` bytes from `at`, which is not aligned, hold the compressed cluster.
    Compressed {
        at: HostOffset,
        bytes: u32,
    },
    /// Subcluster `n` is data where bit `n` of `allocated` is set, and zero elsewhere.
    Partial {
        at: HostOffset,
        allocated: u32,
    },
}

/// The L2 table that an L1 entry points to, if any.
pub(super) fn l2_table(entry: u64, header: &Header) -> Result<Option<HostOffset>, Refusal> {
    let at = HostOffset(entry & OFFSET_MASK);
    if !at.is_aligned(header.cluster_bytes()) {
        return Err(Refusal::CorruptTables("an L2 table does not start at a cluster"));
    }
    Ok((at.0 != 0).then_some(at))
}

/// Decodes entry number `index` of an L2 table.
pub(super) fn decode(table: &[u8], index: usize, header: &Header) -> Result<Cluster, Refusal> {
    let word = |at: usize| u64::from_be_bytes(table[at..at + 8].try_into().expect("eight bytes"));
    let at = index * header.entry_bytes() as usize;
    let entry = word(at);
    if entry & COMPRESSED != 0 {
        return Ok(compressed(entry, header.cluster_bits));
    }
    let offset = HostOffset(entry & OFFSET_MASK);
    if !offset.is_aligned(header.cluster_bytes()) {
        return Err(Refusal::CorruptTables("a data cluster is not aligned"));
    }
    let place = (offset.0 != 0).then_some(offset);
    if header.extended_l2 {
        return subclusters(place, word(at + 8));
    }
    match place {
        _ if entry & ZERO != 0 => {
            if header.version < 3 {
                return Err(Refusal::CorruptTables("a zero cluster in a version 2 image"));
            }
            Ok(Cluster::Zero { kept: place })
        }
        None => Ok(Cluster::Zero { kept: None }),
        Some(offset) => Ok(Cluster::Data(offset)),
    }
}

/// Of which subclusters entry number `index` says that they are zero, a bit for each; where there are
/// none, of all or of none.
pub(super) fn said_zero(table: &[u8], index: usize, header: &Header) -> u32 {
    let fields = Big(table);
    let at = index * header.entry_bytes() as usize;
    let entry = fields.u64(at);
    match entry {
        _ if entry & COMPRESSED != 0 => 0,
        _ if header.extended_l2 => (fields.u64(at + 8) >> SUBCLUSTERS) as u32,
        _ if entry & ZERO != 0 => u32::MAX,
        _ => 0,
    }
}

/// The offset has `62 - (cluster_bits - 8)` bits; the rest counts further sectors.
const fn compressed(entry: u64, cluster_bits: u32) -> Cluster {
    let size_bits = cluster_bits - 8;
    let offset_bits = 62 - size_bits;
    let at = entry & ((1 << offset_bits) - 1);
    let sectors = (entry >> offset_bits) & ((1 << size_bits) - 1);
    let bytes = (sectors + 1) * SECTOR_BYTES - at % SECTOR_BYTES;
    Cluster::Compressed { at: HostOffset(at), bytes: bytes as u32 }
}

fn subclusters(place: Option<HostOffset>, bitmap: u64) -> Result<Cluster, Refusal> {
    let (allocated, zero) = (bitmap as u32, (bitmap >> SUBCLUSTERS) as u32);
    if allocated & zero != 0 {
        return Err(Refusal::CorruptTables("a subcluster is both data and zero"));
    }
    match place {
        None if allocated != 0 => {
            Err(Refusal::CorruptTables("a subcluster has data, but no place"))
        }
        None => Ok(Cluster::Zero { kept: None }),
        Some(_) if allocated == 0 => Ok(Cluster::Zero { kept: place }),
        Some(at) if allocated == u32::MAX => Ok(Cluster::Data(at)),
        Some(at) => Ok(Cluster::Partial { at, allocated }),
    }
}
