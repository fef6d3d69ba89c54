//! Where a disk's content is cut.
//!
//! The cutter is told of each stretch of the disk before its bytes ([`Stretch`]; see
//! `filesystem`), and cuts along it:
//! - A large stretch – a run of one file, or whatever is not known – is cut by itself, where its
//!   content says so (FastCDC, 2020 variant): bytes put in or taken out move few cuts, and a file
//!   that moved as a whole is cut as before. Files mostly change as a whole or not at all, so that
//!   theirs are longer.
//! - Small ones are gathered into groups, which end after a stretch whose own content says so
//!   ([`ends_group`]): the same small files next to each other make the same groups, and one that
//!   changes, goes or comes disturbs only its own.
//! - Metadata among them are mostly directories, and change wherever a disk is made anew: one file
//!   more shifts the numbers of all that follow. So enough bytes of files between two pieces of
//!   metadata make groups of their own, and only where fewer lie there do they share one.
//! - Nothing goes across a border of a volume, and blocks are counted from there.
//!
//! What is large, and how long a group is at least, follows from a [`Grain`].
//!
//! Zero runs of at least [`HOLE_BYTES_MIN`] are holes, counted in blocks of 4 KiB; shorter ones
//! stay in the chunks, where they compress to nothing.
//!
//! Invariants: a cut depends on the stretches and the content since the last hole or border, never
//! on how the bytes were handed in; cuts ascend, do not overlap, and cover every byte that is not
//! zero.
//! Non-goals: file systems; deciding what is free.

use fastcdc::v2020::FastCDC;
use shoal_content::CHUNK_BYTES_MAX;

use crate::filesystem::{Stretch, StretchKind};
use crate::grain::Grain;
use crate::zero::is_zero;

/// Minimum and average of what is not known.
const UNKNOWN_BYTES: (usize, usize) = (16 * 1024, 64 * 1024);
/// Minimum and average of large files.
const FILE_BYTES: (usize, usize) = (64 * 1024, 128 * 1024);
const CHUNK_MAX: usize = CHUNK_BYTES_MAX as usize;
/// The unit in which zeros are looked for.
const BLOCK_BYTES: u64 = 4096;
/// A shorter run of zeros is content.
const HOLE_BYTES_MIN: u64 = 32 * 1024;
/// One stretch of so many ends a group that is long enough.
const GROUP_ENDS_ONE_OF: u64 = 3;

/// One chunk to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Guest bytes from the disk's start.
    pub offset: u64,
    /// From 1 byte to [`CHUNK_BYTES_MAX`].
    pub content: Vec<u8>,
}

/// How the open run is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Manner {
    /// By content, nothing being known.
    #[default]
    Unknown,
    /// By content, a run of one file.
    File,
    Group,
}

/// See the module's documentation. Holds a few chunks and what was handed in at once.
#[derive(Debug, Default)]
pub struct Cutter {
    grain: Grain,
    /// Guest bytes passed, but for those in `part`.
    position: u64,
    /// The start of a block whose end has not come yet.
    part: Vec<u8>,
    /// Where blocks are counted from.
    anchor: u64,
    /// Zeros passed since the last byte of the run.
    zeros: u64,
    /// The uncut end of the run that is open.
    run: Vec<u8>,
    /// Where `run` starts.
    run_offset: u64,
    manner: Manner,
    /// Where in `run` the open stretch of a group starts.
    member: usize,
    member_is_metadata: bool,
    /// Where in `run` the last metadata of a group end; 0 where it has none.
    metadata_end: usize,
}

impl Cutter {
    /// Starts at guest byte 0, with content of which nothing is known.
    pub fn new(grain: Grain) -> Self {
        Self { grain, ..Self::default() }
    }

    /// Says what the bytes are that come next, up to the next stretch.
    pub fn stretch(&mut self, stretch: &Stretch, cuts: &mut Vec<Cut>) {
        self.end_part(true, cuts);
        if stretch.at_border {
            self.end_run(cuts);
            self.anchor = stretch.offset;
        }
        let manner = match stretch.kind {
            _ if stretch.length < self.grain.large_bytes_min() => Manner::Group,
            StretchKind::File { .. } => Manner::File,
            StretchKind::Directory | StretchKind::Free | StretchKind::Other => Manner::Unknown,
        };
        let is_metadata = matches!(stretch.kind, StretchKind::Directory | StretchKind::Other);
        if self.manner == Manner::Group && manner == Manner::Group {
            self.end_member(is_metadata, cuts);
        } else {
            self.end_run(cuts);
        }
        self.manner = manner;
        self.member_is_metadata = is_metadata;
    }

    /// Takes the next guest bytes.
    pub fn data(&mut self, mut bytes: &[u8], cuts: &mut Vec<Cut>) {
        while !bytes.is_empty() {
            let (head, rest) = bytes.split_at(bytes.len().min(self.room()));
            bytes = rest;
            if self.part.is_empty() && head.len() == self.room() {
                self.block(head, cuts);
            } else {
                self.part.extend_from_slice(head);
                self.end_part(self.room() == BLOCK_BYTES as usize, cuts);
            }
        }
    }

    /// Takes `length` zero bytes without their being spelled out.
    pub fn zeros(&mut self, mut length: u64, cuts: &mut Vec<Cut>) {
        if !self.part.is_empty() || self.room() < BLOCK_BYTES as usize {
            let fill = length.min(self.room() as u64);
            self.part.resize(self.part.len() + fill as usize, 0);
            self.end_part(self.room() == BLOCK_BYTES as usize, cuts);
            length -= fill;
        }
        let rest = length % BLOCK_BYTES;
        self.zero_run(length - rest, cuts);
        self.part.resize(self.part.len() + rest as usize, 0);
    }

    /// The disk ends here.
    pub fn finish(mut self, cuts: &mut Vec<Cut>) {
        self.end_part(true, cuts);
        self.end_run(cuts);
    }

    /// Bytes up to the block's end.
    fn room(&self) -> usize {
        let inside = self.position - self.anchor + self.part.len() as u64;
        (BLOCK_BYTES - inside % BLOCK_BYTES) as usize
    }

    fn end_part(&mut self, ends: bool, cuts: &mut Vec<Cut>) {
        if ends && !self.part.is_empty() {
            let mut part = std::mem::take(&mut self.part);
            self.block(&part, cuts);
            part.clear();
            self.part = part;
        }
    }

    fn zero_run(&mut self, length: u64, cuts: &mut Vec<Cut>) {
        self.position += length;
        self.zeros += length;
        if self.zeros >= HOLE_BYTES_MIN {
            self.end_run(cuts);
        }
    }

    fn block(&mut self, block: &[u8], cuts: &mut Vec<Cut>) {
        if is_zero(block) {
            return self.zero_run(block.len() as u64, cuts);
        }
        if self.run.is_empty() {
            // The zeros before a run are a hole, however few: nothing is open to keep them.
            self.zeros = 0;
            self.run_offset = self.position;
        }
        // Fewer than make a hole, or the run would have ended.
        self.run.resize(self.run.len() + self.zeros as usize, 0);
        self.zeros = 0;
        self.run.extend_from_slice(block);
        self.position += block.len() as u64;
        match self.manner {
            // In steps of several chunks: what was cut is moved out of the run each time.
            Manner::Group if self.run.len() > CHUNK_MAX => self.cut_group(self.member, cuts),
            Manner::Group => {}
            _ if self.run.len() >= 8 * CHUNK_MAX => self.cut(CHUNK_MAX, cuts),
            _ => {}
        }
    }

    /// A stretch of a group ends here, and another one of it begins.
    fn end_member(&mut self, next_is_metadata: bool, cuts: &mut Vec<Cut>) {
        self.cut_metadata(cuts);
        let member = &self.run[self.member.min(self.run.len())..];
        let is_long = self.run.len() >= self.grain.group_bytes_min();
        // The content of metadata is no sign: it is not the same in the next version.
        let is_sign = self.member_is_metadata || ends_group(member);
        let ends = is_long && !member.is_empty() && is_sign;
        if ends || next_is_metadata && self.files_bytes() >= self.grain.apart_bytes_min() {
            self.cut_group(self.run.len(), cuts);
        }
        self.member = self.run.len();
    }

    /// Cuts the open group behind its metadata, where enough of files follow.
    fn cut_metadata(&mut self, cuts: &mut Vec<Cut>) {
        if self.member_is_metadata && self.run.len() > self.member {
            self.metadata_end = self.run.len();
        }
        if self.metadata_end > 0 && self.files_bytes() >= self.grain.apart_bytes_min() {
            self.cut_group(self.metadata_end, cuts);
        }
    }

    /// The open group's length behind its metadata.
    fn files_bytes(&self) -> usize {
        self.run.len() - self.metadata_end
    }

    fn end_run(&mut self, cuts: &mut Vec<Cut>) {
        match self.manner {
            Manner::Group => {
                self.cut_metadata(cuts);
                self.cut_group(self.run.len(), cuts);
            }
            Manner::File | Manner::Unknown => self.cut(1, cuts),
        }
        self.zeros = 0;
    }

    /// Makes one chunk of the run's first `length` bytes. Zeros after it are a hole.
    fn cut_group(&mut self, length: usize, cuts: &mut Vec<Cut>) {
        if length > 0 {
            // Copied, so that the next run need not grow anew.
            cuts.push(Cut { offset: self.run_offset, content: self.run[..length].to_vec() });
            self.run.drain(..length);
            self.run_offset += length as u64;
        }
        self.member = self.member.saturating_sub(length);
        self.metadata_end = self.metadata_end.saturating_sub(length);
    }

    /// Cuts while at least `least` bytes are uncut. A cut is settled where a whole chunk's bytes
    /// were in sight, or the run's end.
    fn cut(&mut self, least: usize, cuts: &mut Vec<Cut>) {
        let mut from = 0;
        let (least_chunk, average) =
            if self.manner == Manner::File { FILE_BYTES } else { UNKNOWN_BYTES };
        let search = FastCDC::new(&self.run, least_chunk, average, CHUNK_MAX);
        while self.run.len() - from >= least {
            let (_, end) = search.cut(from, self.run.len() - from);
            let offset = self.run_offset + from as u64;
            cuts.push(Cut { offset, content: self.run[from..end].to_vec() });
            from = end;
        }
        self.run.drain(..from);
        self.run_offset += from as u64;
    }
}

/// Whether the group ends after a stretch of these bytes.
fn ends_group(member: &[u8]) -> bool {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let (words, rest) = member.as_chunks::<8>();
    let mix = |sum: u64, word: u64| (sum.rotate_left(23) ^ word).wrapping_mul(FACTOR);
    let sum = words.iter().fold(0, |sum, word| mix(sum, u64::from_le_bytes(*word)));
    let sum = rest.iter().fold(sum, |sum, byte| mix(sum, u64::from(*byte)));
    // The upper bits depend on all of the bytes.
    (sum >> 32) % GROUP_ENDS_ONE_OF == 0
}
#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn cut_all(disk: &[u8], step: usize) -> Vec<Cut> {
        let (mut cutter, mut cuts) = (Cutter::default(), Vec::new());
        disk.chunks(step).for_each(|part| cutter.data(part, &mut cuts));
        cutter.finish(&mut cuts);
        cuts
    }

    fn rebuild(cuts: &[Cut], length: usize) -> Vec<u8> {
        let mut disk = vec![0; length];
        for cut in cuts {
            let at = cut.offset as usize;
            disk[at..at + cut.content.len()].copy_from_slice(&cut.content);
        }
        disk
    }

    #[test]
    fn long_zero_runs_are_holes_and_short_ones_are_not() {
        let mut disk = noise(1, 200_000);
        disk.resize(200_000 + 5000, 0);
        disk.extend(noise(2, 50_000));
        disk.resize(disk.len() + 100_000, 0);
        disk.extend(noise(3, 1));
        let cuts = cut_all(&disk, 70_000);
        assert_eq!(rebuild(&cuts, disk.len()), disk);
        let covered: usize = cuts.iter().map(|cut| cut.content.len()).sum();
        assert!((255_001..255_001 + 4096 * 3).contains(&covered), "{covered}");
        assert!(cut_all(&vec![0; 1 << 20], 4096).is_empty());
        assert!(cut_all(&[], 1).is_empty());
    }

    #[test]
    fn bytes_put_in_leave_most_chunks_as_they_were() {
        let old = noise(4, 8 << 20);
        let mut new = old.clone();
        new.splice(1_000_000..1_000_000, noise(5, 4096));
        let before: std::collections::BTreeSet<Vec<u8>> =
            cut_all(&old, 1 << 20).into_iter().map(|cut| cut.content).collect();
        let after = cut_all(&new, 1 << 20);
        let kept = after.iter().filter(|cut| before.contains(&cut.content)).count();
        assert!(kept * 10 >= after.len() * 9, "{kept} of {} chunks were kept", after.len());
    }

    /// Files that lie one after the other, from byte `start` of the disk.
    fn cut_files(files: &[Vec<u8>], start: u64) -> Vec<Cut> {
        let file = |content: &Vec<u8>| (StretchKind::File { position: 0 }, content.clone());
        cut_stretches(files.iter().map(file), start)
    }

    fn cut_stretches(
        stretches: impl IntoIterator<Item = (StretchKind, Vec<u8>)>,
        start: u64,
    ) -> Vec<Cut> {
        let (mut cutter, mut cuts) = (Cutter::default(), Vec::new());
        cutter.zeros(start, &mut cuts);
        let mut offset = start;
        for (number, (kind, content)) in stretches.into_iter().enumerate() {
            let length = content.len() as u64;
            let at_border = number == 0;
            cutter.stretch(&Stretch { offset, length, kind, at_border }, &mut cuts);
            cutter.data(&content, &mut cuts);
            offset += length;
        }
        cutter.finish(&mut cuts);
        cuts
    }

    fn contents(cuts: Vec<Cut>) -> std::collections::BTreeSet<Vec<u8>> {
        cuts.into_iter().map(|cut| cut.content).collect()
    }

    #[test]
    fn a_file_that_goes_disturbs_only_its_neighbours() {
        let mut files: Vec<_> = (0..400).map(|n| noise(n, 4096 * (1 + n as usize % 4))).collect();
        files.insert(200, noise(1000, 700_000));
        let before = contents(cut_files(&files, 0));
        files.remove(100);
        let after = contents(cut_files(&files, 0));
        let new: usize = after.difference(&before).map(Vec::len).sum();
        assert!(new <= 250_000, "{new} of 4.7 MB are new");
        // The large file is cut by itself, wherever it lies.
        let alone = contents(cut_files(&files[199..200], 4096 * 7));
        assert!(alone.is_subset(&after));
    }

    /// Directories of 4 KiB, each with as many files, of which the lengths are given.
    fn tree(seed: u64, directories: u64, files: &[usize]) -> Vec<(StretchKind, Vec<u8>)> {
        let with_files = |number: u64| {
            let directory = (StretchKind::Directory, noise(seed + number, 4096));
            let file = move |(place, &length): (usize, &usize)| {
                let content = noise(1000 * (number + 1) + place as u64, length);
                (StretchKind::File { position: 0 }, content)
            };
            std::iter::once(directory).chain(files.iter().enumerate().map(file))
        };
        (0..directories).flat_map(with_files).collect()
    }

    #[test]
    fn directories_that_change_take_few_files_with_them() {
        let files = [4096, 8192, 12_288, 16_384, 4096, 20_480, 4096];
        // The last one's files are followed by a large one.
        let cut = |seed| {
            let mut disk = tree(seed, 40, &files);
            disk.push((StretchKind::File { position: 0 }, noise(1, 300_000)));
            contents(cut_stretches(disk, 0))
        };
        let (before, after) = (cut(1_000_000), cut(2_000_000));
        let new: Vec<usize> = after.difference(&before).map(Vec::len).collect();
        // A group may end just before a directory's last file, which is then left to the next.
        assert_eq!(new.len(), 40);
        assert!(new.iter().sum::<usize>() < 40 * 8192, "{new:?}");
    }

    #[test]
    fn directories_with_few_bytes_between_them_share_groups() {
        let cuts = cut_stretches(tree(1_000_000, 100, &[8192]), 0);
        let (last, others) = cuts.split_last().unwrap();
        let lengths = 32 * 1024..=48 * 1024;
        assert!(others.iter().all(|cut| lengths.contains(&cut.content.len())), "{}", cuts.len());
        assert_eq!(last.offset + last.content.len() as u64, 100 * 12_288);
    }

    #[test]
    fn a_partition_is_cut_alike_at_any_sector() {
        let files: Vec<_> = (0..60).map(|n| noise(n, 5000 + 3000 * n as usize)).collect();
        assert!(contents(cut_files(&files, 63 * 512)) == contents(cut_files(&files, 2048 * 512)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn how_bytes_are_handed_in_changes_nothing(
            pieces in proptest::collection::vec((any::<u64>(), 1..300_000usize, any::<bool>()), 1..6),
            step in 1..200_000usize,
        ) {
            let mut disk = Vec::new();
            for (seed, length, zero) in pieces {
                if zero { disk.resize(disk.len() + length, 0) } else { disk.extend(noise(seed, length)) }
            }
            let whole = cut_all(&disk, disk.len());
            prop_assert_eq!(rebuild(&whole, disk.len()), disk.clone());
            prop_assert!(whole.iter().all(|cut| (1..=CHUNK_MAX).contains(&cut.content.len())));
            prop_assert_eq!(cut_all(&disk, step), whole);
        }

        /// One format spells zeros out where another leaves a hole, of any granularity.
        #[test]
        fn whether_zeros_are_spelled_out_changes_nothing(
            pieces in proptest::collection::vec((1..90_000u64, 0..3u8), 1..12),
            anchor in 0..8u64,
            step in 1..9000usize,
        ) {
            let cut = |spelled: bool| {
                let (mut cutter, mut cuts) = (Cutter::default(), Vec::new());
                let mut offset = anchor * 512;
                cutter.zeros(offset, &mut cuts);
                let kind = StretchKind::Other;
                let length = pieces.iter().map(|piece| piece.0).sum();
                cutter.stretch(&Stretch { offset, length, kind, at_border: true }, &mut cuts);
                for (length, fill) in &pieces {
                    let content = if *fill == 0 {
                        vec![0; *length as usize]
                    } else {
                        noise(*length, *length as usize)
                    };
                    offset += length;
                    match (*fill, spelled) {
                        (0, false) => cutter.zeros(*length, &mut cuts),
                        (_, true) => content.chunks(step).for_each(|part| cutter.data(part, &mut cuts)),
                        _ => cutter.data(&content, &mut cuts),
                    }
                }
                cutter.finish(&mut cuts);
                cuts
            };
            prop_assert_eq!(cut(true), cut(false));
        }
    }
}
