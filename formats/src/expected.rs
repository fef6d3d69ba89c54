//! Where a disk has content, said by whoever has all of it at hand to whoever reads it while it comes in.
//!
//! A raw disk, a VHD and a VHDX do not tell which of their bytes are zero, and the file that a disk is
//! hashed as begins with tables of just that (see `foreseen`). Whoever sends the disk can look.
//!
//! Invariants: what is said is believed nothing: it may cost the digest that it was to bring early, never
//! a byte; a map is at most [`CONTENT_RUNS_MAX`] numbers.

use std::ops::Range;

use crate::disk::{Disk, ReadError};
use crate::filesystem::survey;
use crate::foreseen::used_ranges;
use crate::qcow2::CLUSTER_BYTES;
use crate::zero::is_zero;

/// Numbers in one map.
pub const CONTENT_RUNS_MAX: usize = 100_000;
/// Read at once, in bytes; a multiple of a cluster.
const READ_BYTES: u64 = 1024 * 1024;

/// See the module's documentation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContentMap {
    /// Clusters of 64 KiB from the disk's start: by turns how many have no content, and how many have some.
    runs: Vec<u32>,
    /// The cluster after all of them.
    end: u64,
}

impl ContentMap {
    /// Of `runs` as they are said: by turns how many clusters of 64 KiB have no content, and how many
    /// have some, from the disk's start. `None` where there are more than [`CONTENT_RUNS_MAX`]. What
    /// comes after all of them is not known.
    pub fn new(runs: Vec<u32>) -> Option<Self> {
        let end = runs.iter().map(|&run| u64::from(run)).sum();
        (runs.len() <= CONTENT_RUNS_MAX).then_some(Self { runs, end })
    }

    /// Reads all of `disk` that is neither free nor zero by its tables. `None` where it has too many runs.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn of(disk: &mut dyn Disk) -> Result<Option<Self>, ReadError> {
        let plan = survey(disk)?;
        let Some(used) = used_ranges(disk, plan.free())? else { return Ok(None) };
        let (mut map, mut buffer) = (Self::default(), Vec::new());
        for range in used {
            let mut at = range.start;
            while at < range.end {
                let end = (at / READ_BYTES + 1).saturating_mul(READ_BYTES).min(range.end);
                buffer.resize((end - at) as usize, 0);
                disk.read(at, &mut buffer)?;
                if !map.add(at, &buffer) {
                    return Ok(None);
                }
                at = end;
            }
        }
        Ok(Some(map))
    }

    pub fn into_runs(self) -> Vec<u32> {
        self.runs
    }

    /// Guest bytes without content, ascending and disjoint.
    pub(crate) fn zeros(&self) -> impl Iterator<Item = Range<u64>> {
        let mut at = 0u64;
        let ranges = self.runs.iter().map(move |&run| {
            let start = at;
            at = at.saturating_add(u64::from(run).saturating_mul(CLUSTER_BYTES));
            start..at
        });
        let by_turns = ranges.enumerate();
        by_turns.filter(|(turn, zeros)| turn % 2 == 0 && !zeros.is_empty()).map(|(_, zeros)| zeros)
    }

    /// Takes guest bytes, in order. `false` where there would be too many runs.
    fn add(&mut self, offset: u64, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        let mut at = offset;
        while !rest.is_empty() {
            let room = CLUSTER_BYTES - at % CLUSTER_BYTES;
            let (head, behind) = rest.split_at(rest.len().min(room as usize));
            let cluster = at / CLUSTER_BYTES;
            // What is known to have some is not looked at again.
            if cluster >= self.end && !is_zero(head) && !self.mark(cluster) {
                return false;
            }
            (at, rest) = (at + head.len() as u64, behind);
        }
        true
    }

    /// A cluster after all that were marked.
    fn mark(&mut self, cluster: u64) -> bool {
        let Ok(gap) = u32::try_from(cluster - self.end) else { return false };
        self.end = cluster + 1;
        match self.runs.last_mut() {
            Some(run) if gap == 0 && *run < u32::MAX => *run += 1,
            _ => self.runs.extend([gap, 1]),
        }
        self.runs.len() <= CONTENT_RUNS_MAX
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::raw::RawDisk;
    use crate::{DiskIngest, ForeseenFile, Ingested};

    const CLUSTER: usize = CLUSTER_BYTES as usize;

    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    /// Content in clusters 1 and 2, 5, and from 100 to within 420, the last.
    fn sample() -> Vec<u8> {
        let mut disk = vec![0; 420 * CLUSTER + 1000];
        for (from, to) in [(CLUSTER + 9000, 3 * CLUSTER), (100 * CLUSTER, 420 * CLUSTER + 1000)] {
            disk[from..to].copy_from_slice(&noise(from as u64, to - from));
        }
        // No whole cluster is empty here.
        disk[200 * CLUSTER..202 * CLUSTER].fill(0);
        for at in [5 * CLUSTER + 1, 200 * CLUSTER, 202 * CLUSTER - 1] {
            disk[at] = 1;
        }
        disk
    }

    fn map_of(disk: Vec<u8>) -> Vec<u32> {
        ContentMap::of(&mut RawDisk::new(disk)).unwrap().unwrap().into_runs()
    }

    /// The file as it is foreseen by a map, or found by reading again.
    fn file(disk: Vec<u8>, map: Option<Vec<u32>>, again: bool) -> Option<ForeseenFile> {
        let mut ingest = DiskIngest::new(|_, _: Vec<u8>| Ok(())).foresee_file();
        if let Some(map) = map {
            ingest = ingest.expect_content(&ContentMap::new(map).unwrap());
        }
        let ingest = ingest.read_again_for_file(if again { u64::MAX } else { 0 });
        let mut go_on = |_| ControlFlow::Continue(());
        let done = ingest.run(&mut RawDisk::new(disk), &mut |_| None, &mut go_on).unwrap();
        let Ingested { file, .. } = done;
        file
    }

    #[test]
    fn a_map_says_which_clusters_have_content() {
        assert_eq!(map_of(sample()), [1, 2, 2, 1, 94, 321]);
        assert!(map_of(vec![0; 10 * CLUSTER]).is_empty());
        assert_eq!(map_of(vec![1; 3 * CLUSTER + 1]), [0, 4]);
        let map = ContentMap::new(vec![1, 2, 0, 1, u32::MAX, 1]).unwrap();
        let zeros: Vec<_> = map.zeros().collect();
        let from = 4 * CLUSTER_BYTES;
        assert_eq!(zeros, [0..CLUSTER_BYTES, from..from + u64::from(u32::MAX) * CLUSTER_BYTES]);
    }

    #[test]
    fn a_disk_that_is_as_its_map_says_has_its_file_hashed_as_it_comes() {
        let disk = sample();
        let found = file(disk.clone(), None, true);
        assert!(found.is_some());
        assert_eq!(file(disk.clone(), None, false), None, "it says so itself");
        let map = map_of(disk.clone());
        assert_eq!(file(disk.clone(), Some(map.clone()), false), found);
        // What is left out at its end is not known to be empty, and here it is not.
        let shorter = map[..map.len() - 1].to_vec();
        assert_eq!(file(disk, Some(shorter), false), found);
    }

    #[test]
    fn a_map_that_is_wrong_brings_no_digest_and_no_other_one() {
        let disk = sample();
        let found = file(disk.clone(), None, true);
        let wrong: [Vec<u32>; 7] = [
            vec![],
            vec![1],
            vec![0, 1000],
            vec![1, 1, 3, 1, 94, 321],
            vec![1, 3, 1, 1, 94, 321],
            vec![1, 2, 2, 1, 94, 320, 1],
            vec![u32::MAX; 1000],
        ];
        for map in wrong {
            assert_eq!(file(disk.clone(), Some(map.clone()), false), None, "{map:?}");
            assert_eq!(file(disk.clone(), Some(map.clone()), true), found, "{map:?}");
        }
    }

    #[test]
    fn a_map_has_so_many_runs_at_most() {
        assert!(ContentMap::new(vec![1; CONTENT_RUNS_MAX]).is_some());
        assert_eq!(ContentMap::new(vec![1; CONTENT_RUNS_MAX + 1]), None);
        let mut map = ContentMap::default();
        let marked = (0u64..).take_while(|&number| map.mark(2 * number)).count();
        assert_eq!(marked, CONTENT_RUNS_MAX / 2);
    }
}
