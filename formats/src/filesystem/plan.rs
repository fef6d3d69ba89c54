//! The survey of all volumes as one list along the disk.
//!
//! Invariants: free ranges and pieces ascend and do not overlap, each among themselves or with the
//! other; what two volumes claim is free in neither.

use std::ops::Range;

use super::map::{Owner, Piece, join};
use super::{FileSystem, Surveyed};

/// See the module's documentation.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    virtual_bytes: u64,
    /// Where volumes start and end, sorted.
    borders: Vec<u64>,
    free: Vec<Range<u64>>,
    pieces: Vec<Piece>,
    volumes: Vec<FoundVolume>,
}

/// One volume that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundVolume {
    /// Where it starts on the disk, in guest bytes.
    pub offset: u64,
    /// In bytes.
    pub length: u64,
    /// `None` where it is not recognised.
    pub file_system: Option<FileSystem>,
    /// Bytes that are known to be free.
    pub free_bytes: u64,
}

/// What a part of the disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StretchKind {
    /// No file system needs it.
    Free,
    /// A run of one file's bytes, from byte `position` of the file.
    File { position: u64 },
    /// A run of a directory's bytes, where the file system's reader tells them from a file's.
    Directory,
    /// Other metadata, or not known.
    Other,
}

/// A part of the disk that is of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Guest bytes from the disk's start.
    pub offset: u64,
    /// In bytes, at least 1.
    pub length: u64,
    pub kind: StretchKind,
    /// A volume starts or ends where the stretch starts.
    pub at_border: bool,
}

impl Plan {
    pub(super) fn new(virtual_bytes: u64, mut volumes: Vec<Surveyed>) -> Self {
        distrust_overlap(&mut volumes);
        let mut plan = Self { virtual_bytes, ..Self::default() };
        for volume in volumes {
            let Surveyed { layout, file_system, mut free, mut pieces } = volume;
            pieces.sort_unstable_by_key(|piece| (piece.start, piece.position));
            if overlap(&free, &pieces) {
                // The bitmap and the inodes disagree: one of them is wrong.
                free.clear();
            }
            plan.volumes.push(FoundVolume {
                offset: layout.segments().first().map_or(0, |segment| segment.offset),
                length: layout.length(),
                file_system,
                free_bytes: free.iter().map(|range| range.end - range.start).sum(),
            });
            for segment in layout.segments() {
                plan.borders.extend([segment.offset, segment.offset + segment.length]);
            }
            plan.free.append(&mut free);
            plan.pieces.append(&mut pieces);
        }
        plan.borders.sort_unstable();
        plan.borders.dedup();
        join(&mut plan.free);
        plan.pieces.sort_unstable_by_key(|piece| (piece.start, piece.position));
        let mut end = 0;
        plan.pieces.retain_mut(|piece| {
            // Of two claims to the same bytes the first stands.
            let skip = end.max(piece.start) - piece.start;
            let left = piece.length > skip;
            if left {
                piece.start += skip;
                piece.length -= skip;
                piece.position = piece.position.saturating_add(skip);
                end = piece.start + piece.length;
            }
            left
        });
        plan
    }

    /// A disk of nothing but files: starts and lengths.
    #[cfg(test)]
    pub(crate) fn of_files(pieces: Vec<(u64, u64)>) -> Self {
        let virtual_bytes = pieces.last().map_or(0, |(start, length)| start + length);
        let piece = |(start, length)| Piece { owner: Owner::File, start, length, position: 0 };
        let pieces = pieces.into_iter().map(piece).collect();
        Self { virtual_bytes, pieces, ..Self::default() }
    }

    /// The same plan, in which the files of `length` bytes are directories.
    #[cfg(test)]
    pub(crate) fn with_directories_of(mut self, length: u64) -> Self {
        for piece in self.pieces.iter_mut().filter(|piece| piece.length == length) {
            piece.owner = Owner::Directory;
        }
        self
    }

    /// The same plan with nothing free.
    #[must_use]
    pub fn keeping_free_space(mut self) -> Self {
        self.free.clear();
        self
    }

    /// The volumes, in the order of their tables.
    pub fn volumes(&self) -> &[FoundVolume] {
        &self.volumes
    }

    /// What no file system needs, in guest bytes, ascending and disjoint.
    pub fn free(&self) -> &[Range<u64>] {
        &self.free
    }

    /// Starts at guest byte 0.
    pub fn walk(&self) -> Walk<'_> {
        Walk { plan: self, at: 0, border: 0, free: 0, piece: 0 }
    }
}

/// Volumes that share bytes lose what they call free.
fn distrust_overlap(volumes: &mut [Surveyed]) {
    let mut all = Vec::new();
    for (number, volume) in volumes.iter().enumerate() {
        let segments = volume.layout.segments().iter();
        all.extend(segments.map(|s| (s.offset, s.offset + s.length, number)));
    }
    all.sort_unstable();
    let (mut end, mut last) = (0, 0usize);
    for (start, stop, number) in all {
        if start < end {
            volumes[last].free.clear();
            volumes[number].free.clear();
        }
        // The later end stays in sight: a long volume may overlap several.
        if stop > end {
            (end, last) = (stop, number);
        }
    }
}

fn overlap(free: &[Range<u64>], pieces: &[Piece]) -> bool {
    let mut next = 0;
    pieces.iter().any(|piece| {
        while free.get(next).is_some_and(|range| range.end <= piece.start) {
            next += 1;
        }
        free.get(next).is_some_and(|range| range.start < piece.start + piece.length)
    })
}

/// The stretches of a disk in ascending order; together they are all of it.
#[derive(Debug)]
pub struct Walk<'a> {
    plan: &'a Plan,
    at: u64,
    border: usize,
    free: usize,
    piece: usize,
}

impl Iterator for Walk<'_> {
    type Item = Stretch;

    fn next(&mut self) -> Option<Stretch> {
        let (plan, at) = (self.plan, self.at);
        if at >= plan.virtual_bytes {
            return None;
        }
        let mut at_border = false;
        while plan.borders.get(self.border).is_some_and(|border| *border <= at) {
            at_border |= plan.borders[self.border] == at;
            self.border += 1;
        }
        let mut end = plan.borders.get(self.border).map_or(u64::MAX, |border| *border);
        end = end.min(plan.virtual_bytes);
        let mut kind = StretchKind::Other;
        while plan.pieces.get(self.piece).is_some_and(|piece| piece.start + piece.length <= at) {
            self.piece += 1;
        }
        match plan.pieces.get(self.piece) {
            Some(piece) if piece.start <= at => {
                let position = piece.position.saturating_add(at - piece.start);
                kind = match piece.owner {
                    Owner::File => StretchKind::File { position },
                    Owner::Directory => StretchKind::Directory,
                };
                end = end.min(piece.start + piece.length);
            }
            Some(piece) => end = end.min(piece.start),
            None => {}
        }
        while plan.free.get(self.free).is_some_and(|range| range.end <= at) {
            self.free += 1;
        }
        match plan.free.get(self.free) {
            Some(range) if range.start <= at => {
                kind = StretchKind::Free;
                end = end.min(range.end);
            }
            Some(range) => end = end.min(range.start),
            None => {}
        }
        self.at = end;
        Some(Stretch { offset: at, length: end - at, kind, at_border })
    }
}

#[cfg(test)]
mod tests {
    use super::super::volume::Layout;
    use super::*;

    fn volume(range: Range<u64>, free: &[(u64, u64)], pieces: &[(u64, u64)]) -> Surveyed {
        let pieces = pieces.iter().map(|(start, length)| Piece {
            owner: Owner::File,
            start: *start,
            length: *length,
            position: 0,
        });
        Surveyed {
            layout: Layout::plain(range),
            file_system: None,
            free: free.iter().map(|(start, end)| *start..*end).collect(),
            pieces: pieces.collect(),
        }
    }

    #[test]
    fn a_walk_covers_the_disk_without_overlap() {
        let plan = Plan::new(
            100,
            vec![
                volume(10..50, &[(20, 30)], &[(12, 4), (14, 6)]),
                volume(50..90, &[(60, 90)], &[]),
            ],
        );
        let mut at = 0;
        let mut kinds = Vec::new();
        for stretch in plan.walk() {
            assert_eq!(stretch.offset, at);
            at += stretch.length;
            kinds.push((stretch.offset, stretch.kind, stretch.at_border));
        }
        assert_eq!(at, 100);
        let file = |position| StretchKind::File { position };
        assert_eq!(
            kinds,
            [
                (0, StretchKind::Other, false),
                (10, StretchKind::Other, true),
                (12, file(0), false),
                (16, file(2), false),
                (20, StretchKind::Free, false),
                (30, StretchKind::Other, false),
                (50, StretchKind::Other, true),
                (60, StretchKind::Free, false),
                (90, StretchKind::Other, true),
            ]
        );
    }

    #[test]
    fn what_two_volumes_claim_is_free_in_neither() {
        let volumes = vec![
            volume(0..90, &[(1, 3)], &[]),
            volume(5..10, &[(6, 8)], &[]),
            volume(20..30, &[(21, 25)], &[]),
        ];
        assert_eq!(Plan::new(100, volumes).free(), []);
        let apart = vec![volume(0..50, &[(1, 3)], &[]), volume(50..60, &[(52, 58)], &[])];
        assert_eq!(Plan::new(100, apart).free(), [1..3, 52..58]);
    }

    #[test]
    fn a_file_in_free_space_costs_the_volume_its_trust() {
        let plan = Plan::new(100, vec![volume(0..100, &[(10, 20), (40, 50)], &[(45, 10)])]);
        assert_eq!(plan.free(), []);
        assert_eq!(plan.volumes()[0].free_bytes, 0);
    }
}
