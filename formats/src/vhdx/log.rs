//! The log: what was promised to the image's tables before it was written there.
//!
//! A ring of entries of whole sectors of 4 KiB:
//! ```text
//!   0 "loge"     12 tail              32 log id                  64 descriptors, 32 bytes each,
//!   4 CRC-32C    16 sequence number   48 file size, on disk         to the end of a sector;
//!   8 length     24 descriptors       56 file size, at most         then sectors of data
//!
//!   "desc" last 4 bytes, first 8 bytes, offset, sequence     "data" high half of the sequence,
//!   "zero" 4 bytes, length, offset, sequence                 4084 bytes, low half
//! ```
//! The active sequence is the one with the highest number whose last entry names, as its tail, an
//! entry from which all numbers follow one another to the last ([MS-VHDX] 2.3.3).
//!
//! Invariants: replay is all or nothing; memory is bounded by the log's length, and work by
//! [`READS_MAX`] times that. A later read looks only at patches that meet it.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;

use super::crc32c::with_own_cleared;
use super::header::Header;
use super::{KIB, MIB};
use crate::bytes::{Little, array};
use crate::offset::HostOffset;
use crate::pages::read_source;
use crate::refusal::{OpenError, Refusal};
use crate::source::ReadAt;

const SECTOR_BYTES: usize = 4 * KIB as usize;
const ENTRY_HEADER_BYTES: usize = 64;
const DESCRIPTOR_BYTES: usize = 32;
/// How often each byte of the log may be read: stale entries overlap the current ones.
const READS_MAX: u64 = 8;
/// Pieces that are laid over the image.
const PATCHES_MAX: usize = 32_768;
/// How far a replay may lengthen the image.
const GROWTH_BYTES_MAX: u64 = 1024 * MIB;

/// What an entry says of itself.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// In bytes.
    length: u64,
    tail: u64,
    sequence: u64,
}

#[derive(Debug)]
enum Patch {
    Zero { at: u64, length: u64 },
    Sector { at: u64, bytes: Box<[u8; SECTOR_BYTES]> },
}

/// The image as it is once its log is replayed.
pub(super) struct Replayed<S> {
    source: S,
    length: u64,
    /// Sorted, disjoint, none of them empty.
    patches: Vec<Patch>,
}

impl<S: ReadAt> Replayed<S> {
    pub fn new(source: S, header: &Header) -> Result<Self, OpenError> {
        let length = source.len();
        let mut replayed = Self { source, length, patches: Vec::new() };
        if header.log_id != [0; 16] {
            replayed.replay(header)?;
        }
        Ok(replayed)
    }

    fn replay(&mut self, header: &Header) -> Result<(), OpenError> {
        let log = Log { source: &self.source, header };
        let entries = log.entries()?;
        let active = log.active(&entries).ok_or(Refusal::CorruptLog("it has no valid entry"))?;
        let mut patches = Vec::new();
        let mut length = self.length;
        for at in active {
            let bytes = log.read(at, entries[&at].length)?;
            let fields = Little(&bytes);
            let (flushed, last) = (fields.u64(48), fields.u64(56));
            if flushed > self.length {
                return Err(Refusal::Truncated("what its log says was written").into());
            }
            if last > self.length.saturating_add(GROWTH_BYTES_MAX) {
                return Err(Refusal::TooLarge("its log lengthens it by more than 1 GiB").into());
            }
            length = length.max(last);
            apply(&bytes, &mut patches)?;
        }
        for patch in &patches {
            let end = patch.range().end;
            if end > length {
                return Err(Refusal::CorruptLog("it writes past the image's end").into());
            }
        }
        (self.length, self.patches) = (length, settled(patches));
        Ok(())
    }
}

struct Log<'a> {
    source: &'a dyn ReadAt,
    header: &'a Header,
}

impl Log<'_> {
    /// Bytes from `at` of the ring on.
    fn read(&self, at: u64, length: u64) -> Result<Vec<u8>, OpenError> {
        let mut bytes = vec![0; length as usize];
        let first = (self.header.log_bytes - at).min(length) as usize;
        let (start, rest) = bytes.split_at_mut(first);
        read_source(self.source, HostOffset(self.header.log_at + at), start)?;
        read_source(self.source, HostOffset(self.header.log_at), rest)?;
        Ok(bytes)
    }

    /// All valid entries of this log, by their places in the ring.
    fn entries(&self) -> Result<HashMap<u64, Entry>, OpenError> {
        let mut entries = HashMap::new();
        let mut left = self.header.log_bytes * READS_MAX;
        for at in (0..self.header.log_bytes).step_by(SECTOR_BYTES) {
            let start = self.read(at, ENTRY_HEADER_BYTES as u64)?;
            let fields = Little(&start);
            let length = u64::from(fields.u32(8));
            let plausible = start.starts_with(b"loge")
                && array::<16>(&start, 32) == self.header.log_id
                && length.is_multiple_of(SECTOR_BYTES as u64)
                && (1..=self.header.log_bytes).contains(&length);
            if !plausible {
                continue;
            }
            left = left
                .checked_sub(length)
                .ok_or(Refusal::CorruptLog("its entries overlap many times"))?;
            if with_own_cleared(&self.read(at, length)?) == fields.u32(4) {
                let (tail, sequence) = (u64::from(fields.u32(12)), fields.u64(16));
                entries.insert(at, Entry { length, tail, sequence });
            }
        }
        Ok(entries)
    }

    /// Places of the entries to replay, in order.
    fn active(&self, entries: &HashMap<u64, Entry>) -> Option<Vec<u64>> {
        let mut heads: Vec<(u64, u64)> =
            entries.iter().map(|(&at, entry)| (entry.sequence, at)).collect();
        heads.sort_unstable_by(|a, b| b.cmp(a));
        heads.into_iter().find_map(|(_, head)| self.sequence(entries, head))
    }

    /// The entries from the tail that the one at `head` names to itself.
    fn sequence(&self, entries: &HashMap<u64, Entry>, head: u64) -> Option<Vec<u64>> {
        let mut at = entries[&head].tail;
        let mut places = vec![at];
        while at != head {
            let entry = entries.get(&at)?;
            let next = (at + entry.length) % self.header.log_bytes;
            // Numbers rise, so that this ends.
            if entries.get(&next)?.sequence != entry.sequence.checked_add(1)? {
                return None;
            }
            places.push(next);
            at = next;
        }
        // A part of a longer one is no sequence: its end was written, and means something else.
        let end = (head + entries[&head].length) % self.header.log_bytes;
        let follows = |next: &Entry| entries[&head].sequence.checked_add(1) == Some(next.sequence);
        if entries.get(&end).is_some_and(follows) {
            return None;
        }
        // One that starts where the ring was passed more than once is no sequence.
        let total: u64 = places.iter().map(|place| entries[place].length).sum();
        (total <= self.header.log_bytes).then_some(places)
    }
}

/// Adds what the entry writes.
fn apply(entry: &[u8], patches: &mut Vec<Patch>) -> Result<(), Refusal> {
    let corrupt = |what| Err(Refusal::CorruptLog(what));
    let (count, sequence) = (Little(entry).u32(24) as usize, Little(entry).u64(16));
    let end = count
        .checked_mul(DESCRIPTOR_BYTES)
        .and_then(|bytes| bytes.checked_add(ENTRY_HEADER_BYTES))
        .filter(|&end| end <= entry.len());
    let Some(end) = end else { return corrupt("an entry has more descriptors than room") };
    let (descriptors, _) = entry[ENTRY_HEADER_BYTES..end].as_chunks::<DESCRIPTOR_BYTES>();
    let mut data = entry[end.next_multiple_of(SECTOR_BYTES)..].chunks_exact(SECTOR_BYTES);
    for descriptor in descriptors {
        if patches.len() == PATCHES_MAX {
            return Err(Refusal::TooLarge("its log has more than 32 Ki writes"));
        }
        let fields = Little(descriptor);
        let at = fields.u64(16);
        if fields.u64(24) != sequence || !at.is_multiple_of(SECTOR_BYTES as u64) {
            return corrupt("a descriptor does not belong to its entry");
        }
        match &descriptor[..4] {
            b"zero" => {
                let length = fields.u64(8);
                if at.checked_add(length).is_none() {
                    return corrupt("it writes past the image's end");
                }
                if !length.is_multiple_of(SECTOR_BYTES as u64) {
                    return corrupt("it makes a part of a sector zero");
                }
                patches.push(Patch::Zero { at, length });
            }
            b"desc" => {
                let Some(stored) = data.next() else {
                    return corrupt("an entry has fewer data than descriptors");
                };
                let torn = !stored.starts_with(b"data")
                    || u64::from(Little(stored).u32(4)) != sequence >> 32
                    || Little(stored).u32(SECTOR_BYTES - 4) != sequence as u32;
                if torn {
                    return corrupt("data does not belong to its entry");
                }
                let mut bytes = Box::new(array::<SECTOR_BYTES>(stored, 0));
                bytes[..8].copy_from_slice(&descriptor[8..16]);
                bytes[SECTOR_BYTES - 4..].copy_from_slice(&descriptor[4..8]);
                patches.push(Patch::Sector { at, bytes });
            }
            _ => return corrupt("an unknown descriptor"),
        }
    }
    Ok(())
}

/// What is left of patches, each of whole sectors, once all are written in their order: of two that
/// meet the later one stands.
fn settled(patches: Vec<Patch>) -> Vec<Patch> {
    let (mut covered, mut settled) = (BTreeMap::new(), Vec::new());
    for patch in patches.into_iter().rev() {
        let gaps = cover(&mut covered, patch.range());
        match patch {
            Patch::Zero { .. } => {
                let zero =
                    |gap: Range<u64>| Patch::Zero { at: gap.start, length: gap.end - gap.start };
                settled.extend(gaps.into_iter().map(zero));
            }
            // One sector is covered or not.
            Patch::Sector { .. } if gaps.is_empty() => {}
            Patch::Sector { .. } => settled.push(patch),
        }
    }
    settled.sort_unstable_by_key(|patch| patch.range().start);
    settled
}

/// The parts of `range` that were not covered; now all of it is. `covered` holds starts with their
/// ends, disjoint. Each call adds one of them at most, so that all calls take few steps.
fn cover(covered: &mut BTreeMap<u64, u64>, range: Range<u64>) -> Vec<Range<u64>> {
    let (mut gaps, mut open, mut joined) = (Vec::new(), range.end, range.clone());
    if range.is_empty() {
        return gaps;
    }
    // From the last one that meets the range, or touches it, to the first.
    while let Some((&start, &end)) = covered.range(..=range.end).next_back()
        && end >= range.start
    {
        covered.remove(&start);
        if end < open {
            gaps.push(end..open);
        }
        open = open.min(start);
        joined = joined.start.min(start)..joined.end.max(end);
    }
    if range.start < open {
        gaps.push(range.start..open);
    }
    covered.insert(joined.start, joined.end);
    gaps
}

impl Patch {
    fn range(&self) -> Range<u64> {
        match self {
            Self::Zero { at, length } => *at..at + length,
            Self::Sector { at, .. } => *at..at.saturating_add(SECTOR_BYTES as u64),
        }
    }
}

impl<S: ReadAt> ReadAt for Replayed<S> {
    fn len(&self) -> u64 {
        self.length
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|&end| end <= self.length);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let there = self.source.len().saturating_sub(offset).min(buf.len() as u64) as usize;
        let (stored, grown) = buf.split_at_mut(there);
        if !stored.is_empty() {
            self.source.read_at(offset, stored)?;
        }
        grown.fill(0);
        let first = self.patches.partition_point(|patch| patch.range().end <= offset);
        for patch in &self.patches[first..] {
            let range = patch.range();
            let (from, to) = (range.start.max(offset), range.end.min(end));
            if from >= to {
                break;
            }
            let part = &mut buf[(from - offset) as usize..(to - offset) as usize];
            match patch {
                Patch::Zero { .. } => part.fill(0),
                Patch::Sector { at, bytes } => {
                    part.copy_from_slice(&bytes[(from - at) as usize..(to - at) as usize]);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECTOR: u64 = SECTOR_BYTES as u64;
    const SECTORS: u64 = 12;

    /// First sector, and a count of sectors to make zero or a value to fill one with.
    fn write() -> impl Strategy<Value = (u64, Result<u64, u8>)> {
        (0..SECTORS, prop_oneof![(0..6u64).prop_map(Ok), any::<u8>().prop_map(Err)])
    }

    fn patch((sector, what): (u64, Result<u64, u8>)) -> Patch {
        let at = sector * SECTOR;
        match what {
            Ok(count) => Patch::Zero { at, length: count.min(SECTORS - sector) * SECTOR },
            Err(value) => Patch::Sector { at, bytes: Box::new([value; SECTOR_BYTES]) },
        }
    }

    proptest! {
        #[test]
        fn what_settles_is_what_writing_in_order_gives(
            writes in proptest::collection::vec(write(), 0..20),
            offset in 0..SECTORS * SECTOR,
            length in 0..3 * SECTOR,
        ) {
            let mut expected = vec![0xee; (SECTORS * SECTOR) as usize];
            for &write in &writes {
                let patch = patch(write);
                let (start, end) = (patch.range().start as usize, patch.range().end as usize);
                expected[start..end].fill(write.1.err().unwrap_or(0));
            }
            let source = vec![0xee; expected.len()];
            let patches = settled(writes.into_iter().map(patch).collect());
            prop_assert!(patches.iter().all(|patch| !patch.range().is_empty()));
            let sorted = |pair: &[Patch]| pair[0].range().end <= pair[1].range().start;
            prop_assert!(patches.windows(2).all(sorted));
            let replayed = Replayed { length: SECTORS * SECTOR, source, patches };
            let length = length.min(SECTORS * SECTOR - offset) as usize;
            let mut found = vec![0; length];
            replayed.read_at(offset, &mut found).unwrap();
            prop_assert!(found == expected[offset as usize..offset as usize + length]);
        }
    }

    #[test]
    fn ranges_of_zeros_that_overlap_leave_few_pieces() {
        let zeros = |from: fn(u64) -> u64, to: fn(u64) -> u64| {
            let zero = |n| Patch::Zero { at: from(n), length: to(n) - from(n) };
            settled((0..PATCHES_MAX as u64).map(zero).collect())
        };
        let same = zeros(|n| n % 2 * SECTOR, |_| 1 << 40);
        assert!(matches!(same[..], [Patch::Zero { at: 0, length: SECTOR }, Patch::Zero { .. }]));
        let nested = zeros(|n| n * SECTOR, |n| (1 << 40) - n * SECTOR);
        assert_eq!(nested.len(), 2 * PATCHES_MAX - 1);
    }
}
