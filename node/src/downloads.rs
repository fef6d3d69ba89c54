//! How often images are downloaded.
//!
//! Downloads are counted in memory and written down together once an interval (see `pulls`). A batch
//! whose answer did not come is sent again as it was, and counts once. What a crash loses is what
//! was not written down; what of a batch in flight is lost, no answer tells.
//!
//! Invariant: memory is bounded by [`COUNTED_VERSIONS_MAX`] versions; downloads of others are lost,
//! and counted as such.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use shoal_content::{Digest, ImageId, NodeId};
use shoal_metadata::{COUNTED_MAX, Command, DownloadBatch, command_version};
use shoal_raft::{ProposeError, Raft};

use crate::clock;

/// Versions that wait to be written down.
const COUNTED_VERSIONS_MAX: usize = 50_000;

#[derive(Debug)]
pub struct Downloads {
    node: NodeId,
    run: u64,
    counted: Mutex<Counted>,
    /// One batch at a time.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Counted {
    images: BTreeMap<ImageId, BTreeMap<Digest, u64>>,
    versions: usize,
    /// The number of the next batch.
    batch: u64,
    /// One whose answer did not come.
    sent: Option<DownloadBatch>,
}

impl Counted {
    /// Whether there was room for it.
    fn count(&mut self, image: ImageId, digest: &Digest) -> bool {
        let known = self.images.get_mut(&image).and_then(|versions| versions.get_mut(digest));
        if let Some(count) = known {
            *count = count.saturating_add(1);
            return true;
        }
        if self.versions >= COUNTED_VERSIONS_MAX {
            return false;
        }
        self.images.entry(image).or_default().insert(digest.clone(), 1);
        self.versions += 1;
        true
    }

    /// At most `limit` versions, or the batch whose answer did not come.
    fn next(&mut self, node: NodeId, run: u64, limit: usize) -> Option<DownloadBatch> {
        if let Some(sent) = &self.sent {
            return Some(sent.clone());
        }
        let mut downloads: BTreeMap<ImageId, BTreeMap<Digest, u64>> = BTreeMap::new();
        for _ in 0..limit {
            let Some(mut entry) = self.images.first_entry() else { break };
            let image = *entry.key();
            if let Some((digest, count)) = entry.get_mut().pop_first() {
                downloads.entry(image).or_default().insert(digest, count);
                self.versions -= 1;
            }
            if entry.get().is_empty() {
                entry.remove();
            }
        }
        if downloads.is_empty() {
            return None;
        }
        let batch = DownloadBatch { node, run, batch: self.batch, downloads };
        self.batch += 1;
        self.sent = Some(batch.clone());
        Some(batch)
    }
}

impl Downloads {
    pub fn new(node: NodeId) -> Self {
        let run = clock::now().as_millis();
        Self { node, run, counted: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }

    /// Counts one; says whether there was room for it.
    pub fn count(&self, image: ImageId, digest: &Digest) -> bool {
        self.counted.lock().count(image, digest)
    }

    /// Writes down what was counted, now.
    ///
    /// # Errors
    /// Where the metadata do not take it; it waits for the next time.
    pub async fn write_down(&self, raft: &Raft) -> Result<(), ProposeError> {
        let _turn = self.turn.lock().await;
        let needed = command_version(&Command::CountUsage);
        if !raft.local().query().level().is_ok_and(|level| level >= needed) {
            return Ok(());
        }
        loop {
            let batch = self.counted.lock().next(self.node, self.run, COUNTED_MAX);
            let Some(batch) = batch else { return Ok(()) };
            raft.propose(clock::now(), Command::NoteDownloads(batch)).await?;
            self.counted.lock().sent = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_the_same_until_its_answer_comes() {
        let (image, node) = (ImageId::from_bytes([1; 16]), NodeId::new(1));
        let digest = |number| Digest::sha256([number; 32]);
        let mut counted = Counted::default();
        for number in [1, 1, 2] {
            assert!(counted.count(image, &digest(number)));
        }
        let first = counted.next(node, 7, 1).unwrap();
        assert_eq!(first.downloads[&image], [(digest(1), 2)].into());
        assert!(counted.count(image, &digest(1)));
        assert_eq!(counted.next(node, 7, 10).unwrap(), first);
        counted.sent = None;
        let second = counted.next(node, 7, 10).unwrap();
        assert_eq!((second.batch, second.downloads[&image].len()), (1, 2));
        counted.sent = None;
        assert_eq!(counted.next(node, 7, 10), None);
        assert_eq!(counted.versions, 0);
    }
}
