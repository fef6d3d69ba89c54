//! The digest of a disk as a qcow2 file, by reading the disk once more.
//!
//! What such a file begins with follows from where all of the disk's content lies (see `foreseen`). Where
//! that was not foreseen, the bytes are taken from the disk again, and not from packs: there they would
//! have to be decompressed, which takes longer than hashing them. One thread reads while another hashes.
//!
//! Invariants: a digest that is given is that of the file which [`Export`](crate::Export) describes, as
//! long as the disk gives the same bytes as before; memory is bounded by [`BUFFERS`] buffers of
//! [`BUFFER_BYTES`], whatever the disk's size.
//! Non-goal: to see that what was stored can be read.

use std::ops::{ControlFlow, Range};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use sha2::{Digest, Sha256};
use shoal_content::Recipe;

use crate::disk::{Disk, ReadError};
use crate::export::layout::FileLayout;
use crate::export::part::Part;
use crate::foreseen::{ForeseenFile, layout_of};
use crate::qcow2::VIRTUAL_BYTES_MAX;

/// Read, hashed and told of at once, in bytes.
const BUFFER_BYTES: usize = 2 * 1024 * 1024;
/// One is filled, one is hashed, and the others wait.
const BUFFERS: usize = 4;

/// Some of the file's bytes.
struct Buffer {
    /// Always [`BUFFER_BYTES`] long.
    bytes: Vec<u8>,
    filled: usize,
}

/// Why there is no digest.
#[derive(Debug)]
pub(crate) enum NoFile {
    /// The disk is too large for such a file, or was not read to its end.
    Unreadable,
    /// `progress` said so.
    Cancelled,
}

/// The file of `recipe`, which was made of `disk`; of what it gave, `free` counts as zero: ascending and
/// disjoint. `progress` is told of the guest offset that it is at.
///
/// # Errors
/// See [`NoFile`].
pub(crate) fn hash_again(
    disk: &mut dyn Disk,
    free: &[Range<u64>],
    recipe: &Recipe,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<ForeseenFile, NoFile> {
    if recipe.length() > VIRTUAL_BYTES_MAX {
        return Err(NoFile::Unreadable);
    }
    let layout = layout_of(recipe);
    thread::scope(|scope| {
        // All buffers fit into the first, so that only a lack of empty ones makes the reader wait.
        let (full, to_hash) = sync_channel(BUFFERS);
        let (emptied, empty) = channel();
        for _ in 0..BUFFERS {
            // The other end is here.
            let _ = emptied.send(Buffer { bytes: vec![0; BUFFER_BYTES], filled: 0 });
        }
        let hashing = scope.spawn(move || hash(&to_hash, &emptied));
        let mut file = File { layout: &layout, at: 0, guest: 0 };
        // However it ends, the other end of `full` goes, and so does the thread.
        file.fill_all(&mut Guest { disk, free }, (&empty, full), progress)?;
        let sha256 = hashing.join().expect("hashing does not panic");
        Ok(ForeseenFile { sha256, length: layout.len() })
    })
}

fn hash(full: &Receiver<Buffer>, empty: &Sender<Buffer>) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for buffer in full {
        hasher.update(&buffer.bytes[..buffer.filled]);
        // Nobody reads any more where this is the last.
        let _ = empty.send(buffer);
    }
    hasher.finalize().into()
}

/// The file, up to where it was written into buffers.
struct File<'a> {
    layout: &'a crate::qcow2::Layout,
    at: u64,
    /// The guest offset that was read last.
    guest: u64,
}

impl File<'_> {
    fn fill_all(
        &mut self,
        guest: &mut Guest<'_>,
        (empty, full): (&Receiver<Buffer>, SyncSender<Buffer>),
        progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), NoFile> {
        while self.at < self.layout.len() {
            let Ok(mut buffer) = empty.recv() else { return Err(NoFile::Unreadable) };
            self.fill(&mut buffer, guest).map_err(|_| NoFile::Unreadable)?;
            if full.send(buffer).is_err() {
                return Err(NoFile::Unreadable);
            }
            if progress(self.guest).is_break() {
                return Err(NoFile::Cancelled);
            }
        }
        Ok(())
    }

    fn fill(&mut self, buffer: &mut Buffer, guest: &mut Guest<'_>) -> Result<(), ReadError> {
        buffer.filled = 0;
        while buffer.filled < BUFFER_BYTES && self.at < self.layout.len() {
            let rest = &mut buffer.bytes[buffer.filled..];
            // What is asked for fits in, and so does what comes.
            let count = match self.layout.part(self.at, rest.len() as u64) {
                Part::Bytes(bytes) => {
                    rest[..bytes.len()].copy_from_slice(&bytes);
                    bytes.len()
                }
                // A qcow2 has no sums.
                Part::Zero(length) | Part::Adler32 { of: length, .. } => {
                    rest[..length as usize].fill(0);
                    length as usize
                }
                Part::Guest { guest: from, length } => {
                    guest.read(from, &mut rest[..length as usize])?;
                    self.guest = from + length;
                    length as usize
                }
            };
            buffer.filled += count;
            self.at += count as u64;
        }
        Ok(())
    }
}

/// The disk as the recipe has it.
struct Guest<'a> {
    disk: &'a mut dyn Disk,
    free: &'a [Range<u64>],
}

impl Guest<'_> {
    /// Fills `buf` from `offset`, beyond the disk's end with zeros.
    fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let end = offset + buf.len() as u64;
        let mut at = offset;
        let first = self.free.partition_point(|free| free.end <= at);
        let zeros = self.free[first..].iter().cloned();
        let behind = self.disk.virtual_bytes()..u64::MAX;
        for zeros in zeros.chain([behind]) {
            let (start, stop) = (zeros.start.clamp(at, end), zeros.end.clamp(at, end));
            let (from, to) = ((at - offset) as usize, (start - offset) as usize);
            if from < to {
                self.disk.read(at, &mut buf[from..to])?;
            }
            buf[to..(stop - offset) as usize].fill(0);
            at = stop;
            if at == end {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::raw::RawDisk;
    use crate::source::ReadAt;
    use crate::{DiskIngest, Export, IngestProgress, Ingested, StoredChunk, Target};

    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    /// Content here and there, of more than all buffers have together, up to a last byte that ends no
    /// cluster.
    fn sample() -> Vec<u8> {
        let mut disk = vec![0; (40 << 20) + 1536];
        for (at, length) in [(0, 5000), (70_000, 1), (3 << 20, 18 << 20), (39 << 20, 300_000)] {
            disk[at..at + length].copy_from_slice(&noise(at as u64, length));
        }
        let end = disk.len();
        disk[end - 1] = 1;
        disk
    }

    /// A file of which nothing can be read once it is `gone`.
    struct Passing {
        bytes: Vec<u8>,
        gone: Arc<AtomicBool>,
    }

    impl ReadAt for Passing {
        fn len(&self) -> u64 {
            self.bytes.len() as u64
        }

        fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
            if self.gone.load(Ordering::Relaxed) {
                return Err(io::Error::other("gone"));
            }
            self.bytes.read_at(offset, buf)
        }
    }

    /// `again` is told where the reader is the second time, and may stop it.
    fn ingest(
        source: impl ReadAt + Send,
        content_bytes_max: u64,
        known: &mut dyn FnMut(shoal_content::ChunkId) -> Option<StoredChunk>,
        again: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Option<Ingested<()>> {
        let sink = |_, _: Vec<u8>| Ok(());
        let ingest = DiskIngest::new(sink).foresee_file().read_again_for_file(content_bytes_max);
        let mut progress = |progress: IngestProgress| match progress.is_again {
            true => again(progress.bytes_done),
            false => ControlFlow::Continue(()),
        };
        let done = ingest.run(&mut RawDisk::new(source), known, &mut progress).ok()?;
        let Ingested { recipe, totals, packs, file, .. } = done;
        Some(Ingested { recipe, totals, packs, file, sink: () })
    }

    fn file_of(recipe: &Recipe, content: &[u8]) -> ForeseenFile {
        let export = Export::new(Target::Qcow2, Arc::new(recipe.clone())).unwrap();
        let mut file = vec![0; export.len() as usize];
        let mut read = |guest: u64, part: &mut [u8]| -> io::Result<()> {
            part.copy_from_slice(&content[guest as usize..][..part.len()]);
            Ok(())
        };
        export.read_at(0, &mut file, &mut read).unwrap();
        ForeseenFile { sha256: Sha256::digest(&file).into(), length: export.len() }
    }

    #[test]
    fn a_raw_disk_has_its_file_hashed_when_it_is_read_again() {
        let disk = sample();
        let mut told = Vec::new();
        let mut again = |at: u64| {
            told.push(at);
            ControlFlow::Continue(())
        };
        let done = ingest(disk.clone(), u64::MAX, &mut |_| None, &mut again).unwrap();
        assert_eq!(done.file, Some(file_of(&done.recipe, &disk)));
        assert!(told.len() > BUFFERS && told.is_sorted(), "{told:?}");
        assert_eq!(done.totals.bytes_done, disk.len() as u64);
        assert!(!done.totals.is_again);
    }

    #[test]
    fn no_disk_is_read_again_that_is_long_or_partly_elsewhere() {
        let mut never = |_: u64| -> ControlFlow<()> { panic!("it is read again") };
        let done = ingest(sample(), 1 << 20, &mut |_| None, &mut never).unwrap();
        assert_eq!(done.file, None);
        let (chunk, object) = (done.recipe.chunks()[0], done.recipe.objects()[0]);
        let shoal_content::Chunk { id, at, encoding, length, .. } = chunk;
        let stored = StoredChunk { object, at, encoding, length };
        let mut known = |it| (it == id).then_some(stored);
        assert_eq!(ingest(sample(), u64::MAX, &mut known, &mut never).unwrap().file, None);
    }

    #[test]
    fn what_cannot_be_read_again_costs_the_digest_alone() {
        let gone = Arc::<AtomicBool>::default();
        let source = Passing { bytes: sample(), gone: Arc::clone(&gone) };
        let mut again = |_| {
            gone.store(true, Ordering::Relaxed);
            ControlFlow::Continue(())
        };
        let done = ingest(source, u64::MAX, &mut |_| None, &mut again).unwrap();
        assert_eq!(done.file, None);
        assert!(!done.recipe.extents().is_empty());
    }

    #[test]
    fn who_reads_again_can_be_stopped() {
        let mut left = 3;
        let mut again = |_| {
            left -= 1;
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        assert!(ingest(sample(), u64::MAX, &mut |_| None, &mut again).is_none());
        assert_eq!(left, 0);
    }

    #[test]
    fn what_is_free_counts_as_zero() {
        let clean = sample();
        let done = ingest(clean.clone(), 0, &mut |_| None, &mut |_| ControlFlow::Break(()));
        let recipe = done.unwrap().recipe;
        // In a cluster that has content, over the borders of such clusters, and up to the end.
        let free = [5000..6000, 60_000..70_000, 70_001..3 << 20, 21 << 20..39 << 20];
        let end = clean.len() as u64;
        let free = free.into_iter().chain(std::iter::once((39 << 20) + 300_000..end - 1));
        let free: Vec<Range<u64>> = free.collect();
        let mut disk = clean.clone();
        for free in &free {
            disk[free.start as usize..free.end as usize].fill(0xee);
        }
        let mut disk = RawDisk::new(disk);
        let mut go_on = |_| ControlFlow::Continue(());
        let file = hash_again(&mut disk, &free, &recipe, &mut go_on).unwrap();
        assert_eq!(file, file_of(&recipe, &clean));
        let file = hash_again(&mut disk, &[], &recipe, &mut go_on).unwrap();
        assert_ne!(file, file_of(&recipe, &clean));
    }
}
