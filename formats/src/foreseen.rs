//! The digest of a disk as a qcow2 file, taken while the disk is cut.
//!
//! Such a file begins with its tables, which say where the disk has content, and that is known only at
//! the disk's end. But most formats say so in tables of their own, and file systems what of it is free;
//! of the rest whoever has all of the disk may say so (see `expected`).
//! So the file's layout is foreseen, its bytes are hashed as content comes, and at the end the layout
//! is compared with the real one. Where it turns out otherwise there is no digest, and who wants one
//! reads the disk once more (see `again`).
//!
//! Invariants: a digest that is given is that of the file which [`Export`](crate::Export) describes;
//! memory is bounded by [`RANGES_MAX`]. Nothing more is hashed once the layout is found to be wrong by
//! a whole cluster.
//! Non-goal: formats whose layout depends on what the content is.

use std::ops::Range;

use sha2::{Digest, Sha256};
use shoal_content::Recipe;

use crate::disk::{Disk, ExtentKind, ReadError};
use crate::export::layout::FileLayout;
use crate::export::part::Part;
use crate::filesystem::Plan;
use crate::qcow2::{CLUSTER_BYTES, Layout, VIRTUAL_BYTES_MAX};

/// Parts of a disk that have content, at 16 bytes each.
const RANGES_MAX: usize = 1 << 20;
/// In so many bytes there is a whole cluster, wherever they lie.
const EMPTY_BYTES_MAX: u64 = 2 * CLUSTER_BYTES;
static ZEROS: [u8; CLUSTER_BYTES as usize] = [0; CLUSTER_BYTES as usize];

/// A disk as a qcow2 file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForeseenFile {
    pub sha256: [u8; 32],
    /// In bytes.
    pub length: u64,
}

/// See the module's documentation.
pub(crate) struct Foreseen {
    layout: Layout,
    hasher: Sha256,
    /// Bytes of the file that were hashed.
    at: u64,
}

impl Foreseen {
    /// What `disk` says of itself, but for `zeros`, which somebody says are zero: ascending and disjoint.
    /// `None` where that is too much, or no such file can be.
    pub fn new(
        disk: &mut dyn Disk,
        plan: &Plan,
        zeros: &[Range<u64>],
    ) -> Result<Option<Self>, ReadError> {
        let virtual_bytes = disk.virtual_bytes();
        if virtual_bytes > VIRTUAL_BYTES_MAX {
            return Ok(None);
        }
        let mut empty = [plan.free(), zeros].concat();
        empty.sort_by_key(|range| range.start);
        let Some(used) = used_ranges(disk, &empty)? else { return Ok(None) };
        let layout = Layout::new(virtual_bytes, used.into_iter());
        Ok(Some(Self { layout, hasher: Sha256::new(), at: 0 }))
    }

    /// Takes content, in guest order. Gives whether it lies where it was foreseen; where it does not,
    /// nothing comes of the rest.
    #[must_use]
    pub fn content(&mut self, mut guest: u64, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            if self.at >= self.layout.len() {
                return false;
            }
            match self.layout.part(self.at, u64::MAX) {
                Part::Guest { guest: start, .. } if start > guest => return false,
                Part::Guest { guest: start, length } if start < guest => {
                    if !self.nothing(length.min(guest - start)) {
                        return false;
                    }
                }
                Part::Guest { length, .. } => {
                    let count = length.min(bytes.len() as u64);
                    let (now, rest) = bytes.split_at(count as usize);
                    self.hasher.update(now);
                    self.at += count;
                    (guest, bytes) = (guest + count, rest);
                }
                part => {
                    if !self.own(&part) {
                        return false;
                    }
                }
            }
        }
        true
    }

    /// The file of `recipe`, where it is as it was foreseen and all of its content was taken.
    pub fn finish(mut self, recipe: &Recipe) -> Option<ForeseenFile> {
        while self.at < self.layout.len() {
            let holds = match self.layout.part(self.at, u64::MAX) {
                Part::Guest { length, .. } => self.nothing(length),
                part => self.own(&part),
            };
            if !holds {
                return None;
            }
        }
        let length = self.layout.len();
        let is_so = layout_of(recipe) == self.layout;
        is_so.then(|| ForeseenFile { sha256: self.hasher.finalize().into(), length })
    }

    /// Guest bytes without content, in a cluster that has some; `false` where that cannot be.
    fn nothing(&mut self, length: u64) -> bool {
        let can_be = length < EMPTY_BYTES_MAX;
        if can_be {
            self.zeros(length);
        }
        can_be
    }

    /// What is the format's own.
    fn own(&mut self, part: &Part) -> bool {
        match part {
            Part::Bytes(bytes) => {
                self.hasher.update(bytes);
                self.at += bytes.len() as u64;
            }
            Part::Zero(length) => self.zeros(*length),
            Part::Guest { .. } | Part::Adler32 { .. } => return false,
        }
        true
    }

    fn zeros(&mut self, length: u64) {
        let mut left = length;
        while left > 0 {
            let count = left.min(ZEROS.len() as u64);
            self.hasher.update(&ZEROS[..count as usize]);
            left -= count;
        }
        self.at += length;
    }
}

/// What `disk` does not call zero, without what is `empty`: ranges that begin in order, and may overlap.
/// `None` where that is too much.
pub(crate) fn used_ranges(
    disk: &mut dyn Disk,
    mut empty: &[Range<u64>],
) -> Result<Option<Vec<Range<u64>>>, ReadError> {
    let (mut used, mut at) = (Vec::new(), 0);
    while at < disk.virtual_bytes() {
        let extent = disk.next_extent(at)?;
        let end = extent.offset + extent.length;
        if extent.kind == ExtentKind::Data && !add(&mut used, at..end, &mut empty) {
            return Ok(None);
        }
        at = end;
    }
    Ok(Some(used))
}

/// Of a disk that is no larger than such a file can be.
pub(crate) fn layout_of(recipe: &Recipe) -> Layout {
    let chunks = recipe.chunks();
    let used = recipe.extents().iter().map(|extent| {
        extent.offset..extent.offset + u64::from(chunks[extent.chunk as usize].length)
    });
    Layout::new(recipe.length(), used)
}

/// Adds what of `range` is not free. Of `free`, what ends before is dropped: ranges come in order.
/// `false` where there are too many.
fn add(used: &mut Vec<Range<u64>>, range: Range<u64>, free: &mut &[Range<u64>]) -> bool {
    let mut at = range.start;
    while at < range.end {
        while let Some((first, rest)) = free.split_first()
            && first.end <= at
        {
            *free = rest;
        }
        let (from, to) = match free.first() {
            Some(next) if next.start <= at => {
                at = next.end;
                continue;
            }
            Some(next) => (at, next.start.min(range.end)),
            None => (at, range.end),
        };
        if let Some(last) = used.last_mut().filter(|last| last.end == from) {
            last.end = to;
        } else if used.len() == RANGES_MAX {
            return false;
        } else {
            used.push(from..to);
        }
        at = to;
    }
    true
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::sync::Arc;

    use super::*;
    use crate::{
        Details, DiskIngest, Export, Format, Ingested, MapExtent, Stored, StoredExtent, Target,
    };

    /// A disk that says which of its clusters have content.
    struct Mapped {
        content: Vec<u8>,
        /// One that is said to have some.
        also: Option<u64>,
    }

    impl Mapped {
        fn kind(&self, cluster: u64) -> ExtentKind {
            let from = (cluster * CLUSTER_BYTES) as usize;
            let to = (from + CLUSTER_BYTES as usize).min(self.content.len());
            let is_data =
                self.also == Some(cluster) || !crate::zero::is_zero(&self.content[from..to]);
            if is_data { ExtentKind::Data } else { ExtentKind::Zero }
        }
    }

    impl Disk for Mapped {
        fn format(&self) -> Format {
            Format::Qcow2
        }

        fn virtual_bytes(&self) -> u64 {
            self.content.len() as u64
        }

        fn next_extent(&mut self, offset: u64) -> Result<MapExtent, ReadError> {
            let kind = self.kind(offset / CLUSTER_BYTES);
            let mut end = offset;
            while end < self.virtual_bytes() && self.kind(end / CLUSTER_BYTES) == kind {
                end = ((end / CLUSTER_BYTES + 1) * CLUSTER_BYTES).min(self.virtual_bytes());
            }
            Ok(MapExtent { offset, length: end - offset, kind })
        }

        fn next_stored(&mut self, offset: u64) -> Result<StoredExtent, ReadError> {
            let MapExtent { offset, length, kind } = self.next_extent(offset)?;
            let is_data = kind == ExtentKind::Data;
            let stored = if is_data { Stored::At(offset) } else { Stored::NOTHING };
            Ok(StoredExtent { offset, length, stored })
        }

        fn details(&self) -> Details {
            Details::default()
        }

        fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
            buf.copy_from_slice(&self.content[offset as usize..][..buf.len()]);
            Ok(())
        }

        fn unpacked_bytes(&self) -> u64 {
            0
        }
    }

    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    /// Content here and there, and twice the same, in 40 MiB and a bit.
    fn sample() -> Vec<u8> {
        let mut disk = vec![0; (40 << 20) + 1536];
        for (at, length) in [(0, 5000), (70_000, 1), (3 << 20, 18 << 20), (39 << 20, 300_000)] {
            disk[at..at + length].copy_from_slice(&noise(at as u64, length));
        }
        disk.copy_within(3 << 20..5 << 20, 30 << 20);
        // A gap that is no whole cluster.
        disk[(4 << 20) + 1000..(4 << 20) + 60_000].fill(0);
        let end = disk.len();
        disk[end - 1] = 1;
        disk
    }

    fn ingest(disk: &mut dyn Disk) -> (Recipe, Option<ForeseenFile>) {
        let ingest = DiskIngest::new(|_, _: Vec<u8>| Ok(())).foresee_file();
        let run = ingest.run(disk, &mut |_| None, &mut |_| ControlFlow::Continue(()));
        let Ingested { recipe, file, .. } = run.unwrap();
        (recipe, file)
    }

    fn file_of(recipe: Recipe, content: &[u8]) -> ForeseenFile {
        let export = Export::new(Target::Qcow2, Arc::new(recipe)).unwrap();
        let mut file = vec![0; export.len() as usize];
        let mut read = |guest: u64, part: &mut [u8]| -> std::io::Result<()> {
            part.copy_from_slice(&content[guest as usize..][..part.len()]);
            Ok(())
        };
        export.read_at(0, &mut file, &mut read).unwrap();
        ForeseenFile { sha256: Sha256::digest(&file).into(), length: export.len() }
    }

    #[test]
    fn a_disk_that_says_where_its_content_lies_has_its_file_hashed() {
        let mut disk = Mapped { content: sample(), also: None };
        let (recipe, file) = ingest(&mut disk);
        assert_eq!(file, Some(file_of(recipe, &disk.content)));
        let mut empty = Mapped { content: vec![0; 1 << 20], also: None };
        let (recipe, file) = ingest(&mut empty);
        assert_eq!(file, Some(file_of(recipe, &empty.content)));
    }

    #[test]
    fn a_disk_whose_map_says_too_much_has_no_digest() {
        for cluster in [2, 40, 600, 639] {
            let mut disk = Mapped { content: sample(), also: Some(cluster) };
            let is_empty = disk.kind(cluster) == ExtentKind::Data
                && Mapped { content: sample(), also: None }.kind(cluster) == ExtentKind::Zero;
            assert!(is_empty, "cluster {cluster} has content");
            assert_eq!(ingest(&mut disk).1, None, "{cluster}");
        }
    }

    #[test]
    fn who_does_not_ask_gets_none() {
        let mut disk = Mapped { content: sample(), also: None };
        let ingest = DiskIngest::new(|_, _: Vec<u8>| Ok(()));
        let done = ingest.run(&mut disk, &mut |_| None, &mut |_| ControlFlow::Continue(()));
        assert_eq!(done.unwrap().file, None);
    }

    #[test]
    fn what_is_free_is_not_used() {
        let mut used = Vec::new();
        let ranges = [10..20, 30..40, 50..60];
        let mut free = &ranges[..];
        for range in [0..5, 5..12, 15..18, 19..35, 38..70] {
            assert!(add(&mut used, range, &mut free));
        }
        assert_eq!(used, [0..10, 20..30, 40..50, 60..70]);
    }
}
