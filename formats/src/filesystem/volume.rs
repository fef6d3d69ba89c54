//! A stretch of the disk that a file system may lie on, read within a budget.
//!
//! Invariants: nothing outside the volume is read; what one survey reads, in bytes and in calls, and
//! what the disk decompresses for it, is bounded by [`Budget`], whatever the metadata say.
//! Non-goal: knowing what the bytes mean.

use std::ops::Range;

use super::Stop;
use crate::disk::Disk;

/// Bytes of metadata that one survey reads at most.
const READ_BYTES_MAX: u64 = 2 << 30;
/// Reads that any disk may take, however small.
const READS_MIN: u64 = 20_000;
/// Reads that no disk may pass. Each may cost one range request to storage.
const READS_MAX: u64 = 400_000;
/// Bytes of disk for each further read.
const BYTES_PER_READ: u64 = 256 * 1024;

/// Bytes that the disk decompresses for one survey at most, but for those of the last read: where
/// blocks are of 32 MiB, a read of one sector may cost as much as the disk likes.
const UNPACKED_BYTES_MAX: u64 = 8 << 30;

/// What a survey may still read.
#[derive(Debug)]
pub(super) struct Budget {
    bytes: u64,
    reads: u64,
    unpacked: u64,
}

impl Budget {
    /// For a disk of `virtual_bytes`.
    pub fn new(virtual_bytes: u64) -> Self {
        let reads = (READS_MIN + virtual_bytes / BYTES_PER_READ).min(READS_MAX);
        Self { bytes: READ_BYTES_MAX, reads, unpacked: UNPACKED_BYTES_MAX }
    }

    /// Before `bytes` are read.
    fn spend(&mut self, bytes: u64) -> Result<(), Stop> {
        if self.unpacked == 0 {
            return Err(Stop::Budget);
        }
        self.bytes = self.bytes.checked_sub(bytes).ok_or(Stop::Budget)?;
        self.reads = self.reads.checked_sub(1).ok_or(Stop::Budget)?;
        Ok(())
    }

    /// After the disk decompressed `bytes` for a read. What is spent then, the next read notices.
    fn unpacked(&mut self, bytes: u64) {
        self.unpacked = self.unpacked.saturating_sub(bytes);
    }
}

/// Where a part of a volume lies on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    /// Bytes from the volume's start.
    pub inside: u64,
    /// Guest bytes from the disk's start.
    pub offset: u64,
    /// In bytes.
    pub length: u64,
}

/// The segments of a volume: one for a partition, any number for a logical volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    /// Without gaps, from the volume's byte 0.
    segments: Vec<Segment>,
    length: u64,
}

impl Layout {
    /// The guest bytes of `range` and nothing else.
    pub fn plain(range: Range<u64>) -> Self {
        let length = range.end - range.start;
        Self { segments: vec![Segment { inside: 0, offset: range.start, length }], length }
    }

    /// `None` where the segments leave a gap or overlap inside the volume.
    pub fn new(mut segments: Vec<Segment>) -> Option<Self> {
        segments.sort_unstable_by_key(|segment| segment.inside);
        let mut length = 0u64;
        for segment in &segments {
            if segment.inside != length {
                return None;
            }
            segment.offset.checked_add(segment.length)?;
            length = length.checked_add(segment.length)?;
        }
        (length > 0).then_some(Self { segments, length })
    }

    /// In bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Where `range` of the volume lies on the disk, piece by piece; nothing where it passes the
    /// volume's end.
    pub fn on_disk(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let within = range.start < range.end && range.end <= self.length;
        let first = self.segments.partition_point(|s| s.inside + s.length <= range.start);
        let touched = self.segments[first..].iter().take_while(move |s| s.inside < range.end);
        touched.filter(move |_| within).map(move |segment| {
            let from = range.start.max(segment.inside) - segment.inside;
            let to = range.end.min(segment.inside + segment.length) - segment.inside;
            segment.offset + from..segment.offset + to
        })
    }
}

/// See the module's documentation.
pub(super) struct Volume<'a> {
    disk: &'a mut dyn Disk,
    budget: &'a mut Budget,
    layout: &'a Layout,
}

impl<'a> Volume<'a> {
    pub fn new(disk: &'a mut dyn Disk, budget: &'a mut Budget, layout: &'a Layout) -> Self {
        Self { disk, budget, layout }
    }

    /// In bytes.
    pub fn length(&self) -> u64 {
        self.layout.length
    }

    /// Fills `buf` from byte `offset` of the volume.
    pub fn read_into(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), Stop> {
        let end = offset.checked_add(buf.len() as u64).ok_or(Stop::Malformed)?;
        if end > self.layout.length {
            return Err(Stop::Malformed);
        }
        let mut filled = 0;
        for part in self.layout.on_disk(offset..end) {
            let length = (part.end - part.start) as usize;
            if part.end > self.disk.virtual_bytes() {
                return Err(Stop::Malformed);
            }
            self.budget.spend(length as u64)?;
            let before = self.disk.unpacked_bytes();
            self.disk.read(part.start, &mut buf[filled..filled + length])?;
            self.budget.unpacked(self.disk.unpacked_bytes() - before);
            filled += length;
        }
        Ok(())
    }

    /// `length` is bounded by the caller.
    pub fn read(&mut self, offset: u64, length: usize) -> Result<Vec<u8>, Stop> {
        if offset.checked_add(length as u64).is_none_or(|end| end > self.layout.length) {
            return Err(Stop::Malformed);
        }
        let mut buf = vec![0; length];
        self.read_into(offset, &mut buf)?;
        Ok(buf)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use flate2::Compression;
    use flate2::write::ZlibEncoder;

    use super::*;
    use crate::raw::RawDisk;
    use crate::source::ReadAt;

    fn segment(inside: u64, offset: u64, length: u64) -> Segment {
        Segment { inside, offset, length }
    }

    #[test]
    fn a_volume_in_two_segments_reads_as_one() {
        let mut disk = RawDisk::new((0..100).collect::<Vec<u8>>());
        let layout = Layout::new(vec![segment(10, 20, 5), segment(0, 50, 10)]).unwrap();
        let mut budget = Budget::new(100);
        let mut volume = Volume::new(&mut disk, &mut budget, &layout);
        assert_eq!(volume.read(8, 4).unwrap(), [58, 59, 20, 21]);
        assert_eq!(volume.read(14, 1).unwrap(), [24]);
        assert!(matches!(volume.read(14, 2), Err(Stop::Malformed)));
        assert_eq!(layout.on_disk(0..15).collect::<Vec<_>>(), [50..60, 20..25]);
        assert_eq!(layout.on_disk(0..16).count(), 0);
    }

    #[test]
    fn segments_with_a_gap_or_past_the_disk_are_no_volume() {
        assert_eq!(Layout::new(vec![segment(0, 0, 5), segment(6, 5, 5)]), None);
        assert_eq!(Layout::new(vec![segment(0, u64::MAX, 5)]), None);
        let layout = Layout::new(vec![segment(0, 90, 20)]).unwrap();
        let (mut disk, mut budget) = (RawDisk::new(vec![0; 100]), Budget::new(100));
        let mut volume = Volume::new(&mut disk, &mut budget, &layout);
        assert!(matches!(volume.read(5, 10), Err(Stop::Malformed)));
    }

    #[test]
    fn a_spent_budget_ends_the_survey() {
        let (mut disk, layout) = (RawDisk::new(vec![0; 100]), Layout::plain(0..100));
        let mut budget = Budget { bytes: 15, ..Budget::new(100) };
        let mut volume = Volume::new(&mut disk, &mut budget, &layout);
        assert!(volume.read(0, 10).is_ok());
        assert!(matches!(volume.read(0, 10), Err(Stop::Budget)));
    }

    const GRAIN_BYTES: u64 = 32 << 20;

    /// A VMDK of two compressed grains of zeros, and where the first one's stream starts, which is
    /// as long as the other's.
    fn two_grains() -> (Vec<u8>, u64) {
        let mut packer = ZlibEncoder::new(Vec::new(), Compression::fast());
        packer.write_all(&vec![0; GRAIN_BYTES as usize]).unwrap();
        let packed = packer.finish().unwrap();
        let sectors = (12 + packed.len()).div_ceil(512) as u32;
        let mut image = vec![0; 512 * (7 + 2 * sectors as usize)];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"KDMV\x03\0\0\0\0\0\x03\0");
        let grain = (GRAIN_BYTES / 512) as u32;
        // Capacity, grain size, descriptor; entries of a table; the directory; deflate.
        for (at, field) in [(12, 2 * grain), (20, grain), (28, 1), (36, 1), (44, 512), (56, 2)] {
            put(at, &field.to_le_bytes());
        }
        put(77, &[1]);
        put(512, b"# Disk DescriptorFile\nRW 131072 SPARSE \"a.vmdk\"\n");
        put(2 * 512, &[3]);
        for number in [0, 1] {
            let sector = 7 + number * sectors;
            let at = sector as usize * 512;
            put(3 * 512 + 4 * number as usize, &sector.to_le_bytes());
            put(at, &u64::from(number * grain).to_le_bytes());
            put(at + 8, &(packed.len() as u32).to_le_bytes());
            put(at + 12, &packed);
        }
        (image, 7 * 512 + 12)
    }

    /// Counts the reads of compressed grains.
    struct Counted {
        image: Vec<u8>,
        first: u64,
        count: Arc<AtomicU64>,
    }

    impl ReadAt for Counted {
        fn len(&self) -> u64 {
            self.image.len() as u64
        }

        fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
            let second = self.first + (self.len() - 7 * 512) / 2;
            let is_grain = buf.len() > 12 && (offset == self.first || offset == second);
            self.count.fetch_add(u64::from(is_grain), Ordering::Relaxed);
            self.image.read_at(offset, buf)
        }
    }

    #[test]
    fn small_reads_here_and_there_do_not_decompress_large_blocks_without_end() {
        let count = Arc::new(AtomicU64::new(0));
        let (image, first) = two_grains();
        let source = Counted { image, first, count: Arc::clone(&count) };
        let mut disk = crate::detect::open(Box::new(source), None).unwrap();
        assert_eq!(disk.virtual_bytes(), 2 * GRAIN_BYTES);
        let layout = Layout::plain(0..2 * GRAIN_BYTES);
        let mut budget = Budget { unpacked: 8 * GRAIN_BYTES, ..Budget::new(layout.length()) };
        let mut volume = Volume::new(&mut *disk, &mut budget, &layout);
        for at in 0..100 {
            assert_eq!(volume.read(at * 4096, 512).unwrap(), [0; 512]);
        }
        assert_eq!(count.load(Ordering::Relaxed), 1, "one grain is decompressed once");
        let ended =
            (0..100).position(|read| volume.read((read + 1) % 2 * GRAIN_BYTES, 512).is_err());
        assert_eq!(ended, Some(7));
        assert_eq!(count.load(Ordering::Relaxed), 8);
        assert!(matches!(volume.read(0, 1), Err(Stop::Budget)));
        assert_eq!(count.load(Ordering::Relaxed), 8, "what is spent stays spent");
    }
}
