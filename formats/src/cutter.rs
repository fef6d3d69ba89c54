//! Where a disk's content is cut.
//!
//! Content-defined cutting (FastCDC, 2020 variant) of each run of data, so that bytes put in or
//! taken out move few cuts. Zero runs are holes: of at least [`HOLE_BYTES_MIN`], counted in blocks
//! of 4 KiB of guest addresses; shorter ones stay in the chunks, where they compress to nothing.
//!
//! Invariants: a cut depends on the content of its run alone, never on how the bytes were handed
//! in; cuts ascend, do not overlap, and cover every byte that is not zero.
//! Non-goal: file systems; their maps will only add places where a run ends.

use fastcdc::v2020::FastCDC;
use shoal_content::CHUNK_BYTES_MAX;

use crate::zero::is_zero;

const CHUNK_BYTES_MIN: usize = 16 * 1024;
const CHUNK_BYTES_AVERAGE: usize = 64 * 1024;
const CHUNK_MAX: usize = CHUNK_BYTES_MAX as usize;
/// The unit in which zeros are looked for.
const BLOCK_BYTES: u64 = 4096;
/// A shorter run of zeros is content.
const HOLE_BYTES_MIN: u64 = 32 * 1024;

/// One chunk to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Guest bytes from the disk's start.
    pub offset: u64,
    /// From 1 byte to [`CHUNK_BYTES_MAX`].
    pub content: Vec<u8>,
}

/// See the module's documentation. Holds at most one chunk and what was handed in at once.
#[derive(Debug, Default)]
pub struct Cutter {
    /// Guest bytes passed.
    position: u64,
    /// Zeros passed since the last byte of the run.
    zeros: u64,
    /// The uncut end of the run that is open.
    run: Vec<u8>,
    /// Where `run` starts.
    run_offset: u64,
}

impl Cutter {
    /// Starts at guest byte 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next guest bytes.
    pub fn data(&mut self, mut bytes: &[u8], cuts: &mut Vec<Cut>) {
        while !bytes.is_empty() {
            let to_border = BLOCK_BYTES - self.position % BLOCK_BYTES;
            let length = bytes.len().min(to_border as usize);
            let (block, rest) = bytes.split_at(length);
            bytes = rest;
            if is_zero(block) {
                self.zeros(length as u64, cuts);
            } else {
                self.block(block, cuts);
            }
        }
    }

    /// Takes `length` zero bytes without their being spelled out.
    pub fn zeros(&mut self, length: u64, cuts: &mut Vec<Cut>) {
        self.position += length;
        self.zeros += length;
        if self.zeros >= HOLE_BYTES_MIN {
            self.end_run(cuts);
        }
    }

    /// The disk ends here.
    pub fn finish(mut self, cuts: &mut Vec<Cut>) {
        self.end_run(cuts);
    }

    fn block(&mut self, block: &[u8], cuts: &mut Vec<Cut>) {
        if self.run.is_empty() && self.zeros > 0 {
            // The zeros before a run are a hole, however few: nothing is open to keep them.
            self.zeros = 0;
        }
        if self.run.is_empty() {
            self.run_offset = self.position;
        }
        // Fewer than make a hole, or the run would have ended.
        self.run.resize(self.run.len() + self.zeros as usize, 0);
        self.zeros = 0;
        self.run.extend_from_slice(block);
        self.position += block.len() as u64;
        // In steps of several chunks: what was cut is moved out of the run each time.
        if self.run.len() >= 8 * CHUNK_MAX {
            self.cut(CHUNK_MAX, cuts);
        }
    }

    fn end_run(&mut self, cuts: &mut Vec<Cut>) {
        self.cut(1, cuts);
    }

    /// Cuts while at least `least` bytes are uncut. A cut is settled where a whole chunk's bytes
    /// were in sight, or the run's end.
    fn cut(&mut self, least: usize, cuts: &mut Vec<Cut>) {
        let mut from = 0;
        let search = FastCDC::new(&self.run, CHUNK_BYTES_MIN, CHUNK_BYTES_AVERAGE, CHUNK_MAX);
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
        let (mut cutter, mut cuts) = (Cutter::new(), Vec::new());
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
            // Steps that keep to the blocks' borders; a block is looked at whole.
            let step = step.next_multiple_of(BLOCK_BYTES as usize);
            prop_assert_eq!(cut_all(&disk, step), whole);
        }
    }
}
