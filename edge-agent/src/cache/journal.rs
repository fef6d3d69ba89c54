//! What an entry of the cache remembers of its verified chunks across a crash.
//!
//! Layout; integers are little-endian:
//! ```text
//! header, 64 bytes:
//!   magic "SHOALJNL"   8
//!   version            4, 1
//!   chunk count        4
//!   recipe id         32
//!   zero               8
//!   check              8, the first bytes of BLAKE3 over the 56 before it
//! then records of 16 bytes:
//!   kind               4: 1 = written, 2 = dropped, 3 = checkpoint
//!   first, length      4 + 4: a run of chunk indices; for a checkpoint how many records it covers
//!   check              4, the first bytes of BLAKE3 over recipe id, record number and the 12 before
//! ```
//! Write order: the chunk's bytes go to the content file, then `written` is appended without a
//! sync. A checkpoint notes how many records there are, syncs the content file, then appends
//! `checkpoint` with that number and syncs the journal. So what a checkpoint covers is on the disk
//! for certain; what came later is in the page cache of a system that may have lost it, and
//! [`Replay::doubtful`] is hashed again before it is believed.
//!
//! The first record that does not check ends the journal: a torn append loses only itself.
//! Rewriting ([`Journal::rewrite`]) goes through a file beside it, a sync and a rename.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use shoal_content::RecipeId;

use super::held::Held;

const MAGIC: &[u8; 8] = b"SHOALJNL";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 64;
const RECORD_BYTES: usize = 16;
/// The longest journal that is read: so many records that a rewrite should have come long ago.
const JOURNAL_BYTES_MAX: u64 = 1 << 30;

const WRITTEN: u32 = 1;
const DROPPED: u32 = 2;
const CHECKPOINT: u32 = 3;

/// What a journal says after a restart.
#[derive(Debug)]
pub struct Replay {
    /// Synced before a checkpoint.
    pub trusted: Held,
    /// Written after the last checkpoint; to be hashed before it counts.
    pub doubtful: Held,
    /// Whether a rewrite would make it smaller or end a torn tail.
    pub wants_rewrite: bool,
}

/// An open journal; its owner serialises the calls.
#[derive(Debug)]
pub struct Journal {
    file: File,
    recipe: RecipeId,
    records: u32,
}

impl Journal {
    /// Makes an empty one, synced, in place of whatever is there.
    pub fn create(path: &Path, recipe: RecipeId, chunks: u32) -> io::Result<Self> {
        Self::rewrite(path, recipe, &Held::empty(chunks), &Held::empty(chunks))
    }

    /// Writes a journal that trusts exactly `held` and doubts `doubtful`, syncs it and puts it in place
    /// of the old one: whoever is killed meanwhile has the one or the other, whole. The content of
    /// `held` must have been synced before.
    pub fn rewrite(
        path: &Path,
        recipe: RecipeId,
        held: &Held,
        doubtful: &Held,
    ) -> io::Result<Self> {
        let beside = path.with_extension("new");
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&beside)?;
        let runs = held.runs();
        let covered = runs.len() as u32;
        let written = |(first, length)| (WRITTEN, first, length);
        let records: Vec<_> = runs
            .into_iter()
            .map(written)
            .chain([(CHECKPOINT, covered, 0)])
            .chain(doubtful.runs().into_iter().map(written))
            .collect();
        let mut bytes = header(recipe, held.count()).to_vec();
        for (number, (kind, first, length)) in (0..).zip(&records) {
            bytes.extend_from_slice(&record(recipe, number, *kind, *first, *length));
        }
        file.write_all_at(&bytes, 0)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        super::sync_parent(path)?;
        Ok(Self { file, recipe, records: records.len() as u32 })
    }

    /// Opens and reads one. `Ok(None)` where the bytes are no journal of this recipe.
    pub fn open(path: &Path, recipe: RecipeId) -> io::Result<Option<(Self, Replay)>> {
        let mut file = OpenOptions::new().read(true).write(true).open(path)?;
        if file.metadata()?.len() > JOURNAL_BYTES_MAX {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let Some(chunks) = read_header(&bytes, recipe) else { return Ok(None) };
        let (replay, records) = replay(&bytes[HEADER_BYTES..], recipe, chunks);
        Ok(Some((Self { file, recipe, records }, replay)))
    }

    /// How many records there are: what the next checkpoint will cover, when its content was
    /// synced after this was read.
    pub fn records(&self) -> u32 {
        self.records
    }

    pub fn append_written(&mut self, index: u32) -> io::Result<()> {
        self.append(WRITTEN, index, 1)
    }

    pub fn append_dropped(&mut self, index: u32) -> io::Result<()> {
        self.append(DROPPED, index, 1)
    }

    /// Appends a checkpoint over the first `covered` records. The caller has synced their content
    /// and syncs the journal itself, by [`Journal::syncer`], outside of its lock.
    pub fn append_checkpoint(&mut self, covered: u32) -> io::Result<()> {
        self.append(CHECKPOINT, covered, 0)
    }

    /// A second handle, to sync the file without holding the journal.
    pub fn syncer(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// A failed append leaves the record count as it was, so the next one overwrites its remains.
    fn append(&mut self, kind: u32, first: u32, length: u32) -> io::Result<()> {
        let bytes = record(self.recipe, self.records, kind, first, length);
        let at = HEADER_BYTES as u64 + u64::from(self.records) * RECORD_BYTES as u64;
        self.file.write_all_at(&bytes, at)?;
        self.records += 1;
        Ok(())
    }
}

fn header(recipe: RecipeId, chunks: u32) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&chunks.to_le_bytes());
    bytes[16..48].copy_from_slice(recipe.as_bytes());
    let check = blake3::hash(&bytes[..56]);
    bytes[56..].copy_from_slice(&check.as_bytes()[..8]);
    bytes
}

/// The chunk count, where the header is sound and of this recipe.
fn read_header(bytes: &[u8], recipe: RecipeId) -> Option<u32> {
    let found = bytes.get(..HEADER_BYTES)?;
    let chunks = number(&found[12..16]);
    (found == header(recipe, chunks)).then_some(chunks)
}

fn record(recipe: RecipeId, at: u32, kind: u32, first: u32, length: u32) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[4..8].copy_from_slice(&first.to_le_bytes());
    bytes[8..12].copy_from_slice(&length.to_le_bytes());
    let mut checked = [0; 48];
    checked[..32].copy_from_slice(recipe.as_bytes());
    checked[32..36].copy_from_slice(&at.to_le_bytes());
    checked[36..].copy_from_slice(&bytes[..12]);
    bytes[12..].copy_from_slice(&blake3::hash(&checked).as_bytes()[..4]);
    bytes
}

fn number(bytes: &[u8]) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[..4]);
    u32::from_le_bytes(four)
}

/// Reads records up to the first that does not check: the outcome, and how many there are.
fn replay(bytes: &[u8], recipe: RecipeId, chunks: u32) -> (Replay, u32) {
    let mut sound = Vec::new();
    for (at, found) in (0u32..).zip(bytes.chunks_exact(RECORD_BYTES)) {
        let (kind, first, length) = (number(found), number(&found[4..]), number(&found[8..]));
        if found != record(recipe, at, kind, first, length) {
            break;
        }
        sound.push((kind, first, length));
    }
    let checkpoints = sound.iter().filter(|(kind, ..)| *kind == CHECKPOINT);
    let covered = checkpoints.map(|(_, covered, _)| *covered).max().unwrap_or(0);
    let (mut trusted, mut doubtful) = (Held::empty(chunks), Held::empty(chunks));
    for (at, (kind, first, length)) in (0u32..).zip(&sound) {
        // A run past the end is cut here, so that no number in a file makes a long loop.
        for index in *first..first.saturating_add(*length).min(chunks) {
            match *kind {
                WRITTEN if at < covered => {
                    trusted.insert(index);
                }
                WRITTEN if !trusted.contains(index) => {
                    doubtful.insert(index);
                }
                DROPPED => {
                    trusted.remove(index);
                    doubtful.remove(index);
                }
                _ => {}
            }
        }
    }
    let records = sound.len() as u32;
    let torn = bytes.len() != sound.len() * RECORD_BYTES;
    let shortest = trusted.runs().len() + 1;
    let wants_rewrite = torn || !doubtful.is_empty() || sound.len() > 2 * shortest + 64;
    (Replay { trusted, doubtful, wants_rewrite }, records)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn recipe() -> RecipeId {
        RecipeId::of(b"journal")
    }

    #[test]
    fn trusts_what_a_checkpoint_covers_and_doubts_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let mut journal = Journal::create(&path, recipe(), 100).unwrap();
        journal.append_written(5).unwrap();
        let covered = journal.records();
        // Written while the content was being synced: not covered, although the checkpoint's
        // record comes after it.
        journal.append_written(6).unwrap();
        journal.append_checkpoint(covered).unwrap();
        journal.append_written(7).unwrap();
        drop(journal);
        let (_, replay) = Journal::open(&path, recipe()).unwrap().unwrap();
        assert_eq!(replay.trusted.runs(), [(5, 1)]);
        assert_eq!(replay.doubtful.runs(), [(6, 2)]);
        assert_eq!((replay.trusted.count(), replay.wants_rewrite), (100, true));
        assert!(Journal::open(&path, RecipeId::of(b"other")).unwrap().is_none());
    }

    #[test]
    fn a_dropped_chunk_stays_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let mut journal =
            Journal::rewrite(&path, recipe(), &Held::full(10), &Held::empty(10)).unwrap();
        journal.append_dropped(3).unwrap();
        drop(journal);
        let (_, replay) = Journal::open(&path, recipe()).unwrap().unwrap();
        assert_eq!(replay.trusted.runs(), [(0, 3), (4, 6)]);
        assert_eq!(replay.doubtful.len(), 0);
    }

    #[test]
    fn what_is_in_doubt_stays_so_in_a_journal_that_is_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (mut held, mut doubtful) = (Held::empty(10), Held::empty(10));
        for index in [0, 1, 5] {
            held.insert(index);
            doubtful.insert(index + 3);
        }
        drop(Journal::rewrite(&path, recipe(), &held, &doubtful).unwrap());
        let (mut journal, replay) = Journal::open(&path, recipe()).unwrap().unwrap();
        assert_eq!(replay.trusted.runs(), [(0, 2), (5, 1)]);
        assert_eq!(replay.doubtful.runs(), [(3, 2), (8, 1)]);
        journal.append_written(9).unwrap();
        journal.append_checkpoint(journal.records()).unwrap();
        let (_, replay) = Journal::open(&path, recipe()).unwrap().unwrap();
        assert_eq!(replay.trusted.runs(), [(0, 2), (3, 3), (8, 2)]);
        assert!(replay.doubtful.is_empty());
    }

    proptest! {
        /// Whatever happens to the bytes, nothing is trusted that was not written, and a torn
        /// tail costs no record before it.
        #[test]
        fn damage_only_loses(
            written in proptest::collection::vec(0u32..50, 1..40),
            at in any::<prop::sample::Index>(),
            value in any::<u8>(),
            truncate in any::<bool>(),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("journal");
            let mut journal = Journal::create(&path, recipe(), 50).unwrap();
            for index in &written {
                journal.append_written(*index).unwrap();
                journal.append_checkpoint(journal.records()).unwrap();
            }
            drop(journal);
            let mut bytes = std::fs::read(&path).unwrap();
            let at = at.index(bytes.len());
            if truncate { bytes.truncate(at) } else { bytes[at] = value }
            std::fs::write(&path, &bytes).unwrap();
            if let Some((_, replay)) = Journal::open(&path, recipe()).unwrap() {
                let whole = at.saturating_sub(HEADER_BYTES) / (2 * RECORD_BYTES);
                for index in written.iter().take(whole.saturating_sub(1)) {
                    prop_assert!(replay.trusted.contains(*index));
                }
                for index in replay.trusted.iter().chain(replay.doubtful.iter()) {
                    prop_assert!(written.contains(&index));
                }
            }
        }
    }
}
