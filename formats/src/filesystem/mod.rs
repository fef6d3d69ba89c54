//! What partition tables and file systems say of a disk: where files lie, and what is free.
//!
//! A [`Plan`] guides the cutter. Readers here know maps only, no names and no contents: ext2/3/4,
//! XFS, NTFS, FAT and Btrfs, on partitions (MBR, GPT) and linear logical volumes (LVM2).
//!
//! Invariants: nothing that is read is trusted, so that wrong metadata make worse cuts and nothing
//! else; reads, memory and recursion are bounded ([`volume::Budget`], [`map`]); bytes are free only
//! where one file system that was left clean says so, no file of it and no other volume claims
//! them, and nothing says that somebody else may need them ([`caution`]).
//! Non-goals: repairing, mounting, names, contents, volumes over several disks.

mod btrfs;
mod caution;
mod ext;
mod fat;
mod fields;
mod lvm;
mod map;
mod ntfs;
mod partition;
mod plan;
mod volume;
mod xfs;

use std::ops::Range;

use thiserror::Error;

pub use plan::{FoundVolume, Plan, Stretch, StretchKind};

use self::map::{Piece, VolumeMap};
use self::volume::{Budget, Layout, Volume};
use crate::disk::{Disk, ReadError};

/// Why a reader stopped.
#[derive(Debug, Error)]
enum Stop {
    #[error("the disk could not be read")]
    Read(#[from] ReadError),
    #[error("the metadata make no sense")]
    Malformed,
    #[error("the metadata are more than a survey reads")]
    Budget,
}

/// The file systems that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileSystem {
    /// ext2, ext3 or ext4.
    Ext,
    Xfs,
    Btrfs,
    Ntfs,
    /// FAT12, FAT16 or FAT32.
    Fat,
}

impl FileSystem {
    /// As people call it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ext => "ext",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Ntfs => "ntfs",
            Self::Fat => "fat",
        }
    }

    fn survey(self, volume: &mut Volume<'_>, map: &mut VolumeMap) -> Result<(), Stop> {
        match self {
            Self::Ext => ext::survey(volume, map),
            Self::Xfs => xfs::survey(volume, map),
            Self::Btrfs => btrfs::survey(volume, map),
            Self::Ntfs => ntfs::survey(volume, map),
            Self::Fat => fat::survey(volume, map),
        }
    }
}

/// Bytes from a volume's start in which every file system shows its signature.
const HEAD_BYTES: u64 = 68 * 1024;

/// Surveys `disk`.
///
/// # Errors
/// Where the disk itself cannot be read; whatever the metadata say is no error.
pub fn survey(disk: &mut dyn Disk) -> Result<Plan, ReadError> {
    let virtual_bytes = disk.virtual_bytes();
    let mut survey = Survey { disk, budget: Budget::new(virtual_bytes), found: Vec::new() };
    match survey.whole(virtual_bytes) {
        // Volumes that were found before the end of the budget are as good as ever.
        Ok(()) | Err(Stop::Malformed | Stop::Budget) => Ok(Plan::new(virtual_bytes, survey.found)),
        Err(Stop::Read(error)) => Err(error),
    }
}

/// A volume with what its file system says, in guest bytes.
#[derive(Debug)]
struct Surveyed {
    layout: Layout,
    file_system: Option<FileSystem>,
    /// Sorted and disjoint; empty where there is no trust.
    free: Vec<Range<u64>>,
    pieces: Vec<Piece>,
}

struct Survey<'a> {
    disk: &'a mut dyn Disk,
    budget: Budget,
    found: Vec<Surveyed>,
}

impl Survey<'_> {
    fn volume<'v>(&'v mut self, layout: &'v Layout) -> Volume<'v> {
        Volume::new(self.disk, &mut self.budget, layout)
    }

    fn whole(&mut self, virtual_bytes: u64) -> Result<(), Stop> {
        if virtual_bytes == 0 {
            return Ok(());
        }
        let layout = Layout::plain(0..virtual_bytes);
        let mut whole = self.volume(&layout);
        // An ISO may have partitions that lie inside its files.
        let cautious = caution::has_another_user(&mut whole)?;
        let partitions = partition::partitions(&mut whole)?;
        if partitions.is_empty() {
            return self.on(layout, !cautious);
        }
        let head = whole.read(0, virtual_bytes.min(HEAD_BYTES) as usize)?;
        // Of a table and a file system over the whole disk, one is left over from earlier.
        let ambiguous = !recognise(&head).is_empty();
        let sealed = partitions.iter().any(|partition| partition.sealed);
        let trusted = !cautious && !ambiguous && !sealed;
        for partition in partitions {
            self.on(Layout::plain(partition.range), trusted)?;
        }
        Ok(())
    }

    /// A partition, or a disk without any.
    fn on(&mut self, layout: Layout, trusted: bool) -> Result<(), Stop> {
        let group = match lvm::find(&mut self.volume(&layout)) {
            Err(Stop::Malformed) => None,
            group => group?,
        };
        let Some(group) = group else { return self.file_system(layout, trusted) };
        for inside in group.volumes {
            let segments = inside.segments().iter().flat_map(|segment| {
                let on_disk = layout.on_disk(segment.offset..segment.offset + segment.length);
                on_disk.map(|range| volume::Segment {
                    inside: segment.inside,
                    offset: range.start,
                    length: range.end - range.start,
                })
            });
            // A segment that passes the partition's end is not there, and leaves a gap.
            if let Some(volume) = Layout::new(segments.collect()) {
                self.file_system(volume, trusted && group.all_linear)?;
            }
        }
        Ok(())
    }

    fn file_system(&mut self, layout: Layout, trusted: bool) -> Result<(), Stop> {
        let mut volume = self.volume(&layout);
        let head = volume.read(0, layout.length().min(HEAD_BYTES) as usize)?;
        let kinds = recognise(&head);
        let trusted = trusted && kinds.len() == 1 && !caution::has_another_user(&mut volume)?;
        let pieces = self.found.iter().map(|volume| volume.pieces.len()).sum();
        let free = self.found.iter().map(|volume| volume.free.len()).sum();
        let mut volume = self.volume(&layout);
        let mut map = VolumeMap::new(layout.length()).beside(pieces, free);
        let file_system = kinds.first().copied();
        match file_system.map_or(Ok(()), |kind| kind.survey(&mut volume, &mut map)) {
            // What was noted before the budget ended is as good as the rest would be.
            Ok(()) | Err(Stop::Budget) => {}
            Err(Stop::Malformed) => map.distrust(),
            Err(stop @ Stop::Read(_)) => return Err(stop),
        }
        if !trusted {
            map.distrust();
        }
        self.found.push(on_disk(layout, file_system, map));
        Ok(())
    }
}

type Sign = fn(&[u8]) -> bool;

/// The file systems whose signature stands in `head`: more than one where one is left over.
fn recognise(head: &[u8]) -> Vec<FileSystem> {
    let signs: [(Sign, FileSystem); 5] = [
        (ext::is_ext, FileSystem::Ext),
        (xfs::is_xfs, FileSystem::Xfs),
        (btrfs::is_btrfs, FileSystem::Btrfs),
        (ntfs::is_ntfs, FileSystem::Ntfs),
        (fat::is_fat, FileSystem::Fat),
    ];
    signs.into_iter().filter(|(is, _)| is(head)).map(|(_, kind)| kind).collect()
}

/// Moves a map from its volume to the disk.
fn on_disk(layout: Layout, file_system: Option<FileSystem>, map: VolumeMap) -> Surveyed {
    let mut free: Vec<_> =
        map.free.into_iter().flat_map(|range| layout.on_disk(range).collect::<Vec<_>>()).collect();
    map::join(&mut free);
    let mut pieces = Vec::with_capacity(map.pieces.len());
    for piece in map.pieces {
        let mut position = piece.position;
        for range in layout.on_disk(piece.start..piece.start + piece.length) {
            let length = range.end - range.start;
            pieces.push(Piece { start: range.start, length, position, ..piece });
            position = position.saturating_add(length);
        }
    }
    Surveyed { layout, file_system, free, pieces }
}
