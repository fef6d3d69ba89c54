//! The parts of an upload, read as the one file that they are.
//!
//! A part is read whole when the first byte of it is wanted, and compared with the checksum that was
//! acknowledged to whoever sent it. What is read of it again must be what it was then. So a file
//! that is read in order is read once, and of what nobody wants nothing is read at all. Who goes over
//! the file a second time has each next window fetched while it takes the one before.
//!
//! Used from blocking threads only: a read waits for storage, and for a part that is still to come
//! (see `arrivals`). Invariants: no byte is given but of a part as it was acknowledged, though another
//! node should store other bytes late; memory is bounded by [`SOURCE_CACHE_BYTES_MAX`], a few windows
//! on their way, and 32 bytes for each window.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use shoal_content::{ObjectKey, UploadId};
use shoal_formats::ReadAt;
use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinHandle};

use super::Running;
use super::arrivals::Arrivals;
use crate::origin::WINDOW_BYTES;
use crate::store::{self, BlobStore, StoreError};

/// What one ingest keeps of the uploaded file.
pub const SOURCE_CACHE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Windows of a part that are asked for at once.
const WINDOWS_AHEAD: usize = 4;

/// A part's number, and which window of it.
type Place = (u64, u64);

/// What the session says of the file.
#[derive(Debug, Clone)]
pub(super) struct Uploaded {
    pub upload: UploadId,
    pub total_bytes: u64,
    /// At least 1.
    pub part_bytes: u64,
}

/// What is seen of a source by whoever has given it to a format's reader.
#[derive(Debug, Default)]
pub(super) struct Observed {
    damaged: OnceLock<u64>,
    is_cut: AtomicBool,
    is_again: AtomicBool,
}

impl Observed {
    /// A part that is not what was acknowledged. All reads fail from then on.
    pub fn damaged(&self) -> Option<u64> {
        self.damaged.get().copied()
    }

    /// From now on somebody else tells how far the ingest is.
    pub fn begin_cut(&self) {
        self.is_cut.store(true, Ordering::Relaxed);
    }

    /// From now on what was read is read once more, in order. All that came of it is safe: a part that
    /// is another by now fails that, and is not damaged.
    pub fn read_again(&self) {
        self.is_again.store(true, Ordering::Relaxed);
    }

    fn is_again(&self) -> bool {
        self.is_again.load(Ordering::Relaxed)
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct PartsSource {
    store: Arc<dyn BlobStore>,
    runtime: Handle,
    uploaded: Uploaded,
    arrivals: Arc<Arrivals>,
    running: Arc<Running>,
    observed: Arc<Observed>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Of each part that was compared: of its windows, in order.
    hashes: HashMap<u64, Vec<blake3::Hash>>,
    compared_bytes: u64,
    kept: Kept,
    /// What whoever reads again is about to want.
    ahead: Option<(Place, Fetch)>,
}

type Fetch = JoinHandle<Result<Bytes, StoreError>>;

impl PartsSource {
    pub fn new(
        store: Arc<dyn BlobStore>,
        runtime: Handle,
        (uploaded, arrivals): (Uploaded, Arc<Arrivals>),
        running: Arc<Running>,
    ) -> Self {
        let kept = Kept::new(SOURCE_CACHE_BYTES_MAX);
        let state = State { hashes: HashMap::new(), compared_bytes: 0, kept, ahead: None };
        let state = Mutex::new(state);
        Self { store, runtime, uploaded, arrivals, running, observed: Arc::default(), state }
    }

    pub fn arrivals(&self) -> Arc<Arrivals> {
        Arc::clone(&self.arrivals)
    }

    pub fn observed(&self) -> Arc<Observed> {
        Arc::clone(&self.observed)
    }

    fn key(&self, part: u64) -> ObjectKey {
        ObjectKey::UploadPart { upload: self.uploaded.upload, part: part as u32 }
    }

    fn part_length(&self, part: u64) -> u64 {
        let Uploaded { total_bytes, part_bytes, .. } = self.uploaded;
        part_bytes.min(total_bytes - part * part_bytes)
    }

    fn window(&self, place @ (part, number): Place) -> io::Result<Bytes> {
        if self.running.lost.load(Ordering::Relaxed) {
            return Err(io::Error::other("the lease on the disk is lost"));
        }
        if let Some(part) = self.observed.damaged() {
            return Err(self.damaged(part));
        }
        self.arrivals.at(part as u32);
        let mut state = self.state.lock();
        let compared = state.hashes.get(&part).map(|hashes| hashes[number as usize]);
        let kept = compared.and_then(|_| state.kept.take_up(place));
        drop(state);
        match (kept, compared) {
            (Some(window), _) => Ok(window),
            (None, Some(hash)) => self.read_again(place, hash),
            (None, None) => self.read_whole(place),
        }
    }

    /// Reads a part of which nothing was wanted yet, once it is there, and gives one window of it.
    fn read_whole(&self, (part, wanted): Place) -> io::Result<Bytes> {
        let acknowledged = self.arrivals.wait(part as u32)?;
        let length = self.part_length(part);
        // Of one that is longer than what may be kept, what follows is kept.
        let room = (self.state.lock().kept.bytes_max / WINDOW_BYTES).max(1);
        let numbers = 0..length.div_ceil(WINDOW_BYTES);
        let reads = numbers.map(|number| self.fetch((part, number)));
        let mut reads = futures::stream::iter(reads).buffered(WINDOWS_AHEAD);
        let (mut hasher, mut hashes, mut given) = (Sha256::new(), Vec::new(), None);
        while let Some(read) = self.runtime.block_on(reads.next()) {
            let (number, window) = (hashes.len() as u64, self.read(part, read)?);
            hasher.update(&window);
            hashes.push(blake3::hash(&window));
            if number == wanted {
                given = Some(window.clone());
            }
            if number < wanted + room {
                // Nobody gets it before the part's hashes are there.
                self.state.lock().kept.put((part, number), window);
            }
        }
        let sha256: [u8; 32] = hasher.finalize().into();
        if acknowledged.is_none_or(|acknowledged| acknowledged.sha256 != sha256) {
            return Err(self.damaged(part));
        }
        self.arrivals.read(part as u32);
        let mut state = self.state.lock();
        state.hashes.insert(part, hashes);
        state.compared_bytes += length;
        if !self.observed.is_cut.load(Ordering::Relaxed) {
            // Who waits sees that it goes on.
            self.running.processed_bytes.store(state.compared_bytes, Ordering::Relaxed);
        }
        given.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn read_again(&self, place @ (part, _): Place, hash: blake3::Hash) -> io::Result<Bytes> {
        let begun = self.state.lock().ahead.take().filter(|(begun, _)| *begun == place);
        let read = self.runtime.block_on(begun.map_or_else(|| self.fetch(place), |(_, it)| it));
        let window = self.read(part, read)?;
        if self.observed.is_again()
            && let Some(next) = self.next_again(place)
        {
            let fetch = self.fetch(next);
            self.state.lock().ahead = Some((next, fetch));
        }
        if blake3::hash(&window) != hash {
            return Err(self.damaged(part));
        }
        self.state.lock().kept.put(place, window.clone());
        Ok(window)
    }

    /// The window that follows, if it was read before and is not kept.
    fn next_again(&self, (part, number): Place) -> Option<Place> {
        let state = self.state.lock();
        let windows = state.hashes.get(&part)?.len() as u64;
        let next = if number + 1 < windows { (part, number + 1) } else { (part + 1, 0) };
        let is_wanted =
            state.hashes.contains_key(&next.0) && !state.kept.windows.contains_key(&next);
        is_wanted.then_some(next)
    }

    /// A task of its own, which goes on while another window is hashed.
    fn fetch(&self, (part, number): Place) -> Fetch {
        let (store, key) = (Arc::clone(&self.store), self.key(part));
        let start = number * WINDOW_BYTES;
        let end = (start + WINDOW_BYTES).min(self.part_length(part));
        self.runtime.spawn(async move { store::read(&*store, key, start..end).await })
    }

    fn read(
        &self,
        part: u64,
        read: Result<Result<Bytes, StoreError>, JoinError>,
    ) -> io::Result<Bytes> {
        match read.map_err(io::Error::other)? {
            Err(StoreError::Sealed(_)) => Err(self.damaged(part)),
            Err(error @ StoreError::Range { .. }) => {
                // It is too short, or storage broke off.
                let length = self.runtime.block_on(self.store.length(self.key(part)));
                match length.map_err(io::Error::other)? {
                    Some(length) if length != self.part_length(part) => Err(self.damaged(part)),
                    _ => Err(io::Error::other(error)),
                }
            }
            read => read.map_err(io::Error::other),
        }
    }

    fn damaged(&self, mut part: u64) -> io::Error {
        if !self.observed.is_again() {
            part = *self.observed.damaged.get_or_init(|| part);
        }
        io::Error::other(format!("part {part} is not what was acknowledged"))
    }
}

impl ReadAt for PartsSource {
    fn len(&self) -> u64 {
        self.uploaded.total_bytes
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let Uploaded { total_bytes, part_bytes, .. } = self.uploaded;
        let end = offset.checked_add(buf.len() as u64).filter(|&end| end <= total_bytes);
        if end.is_none() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let (part, inside) = (at / part_bytes, at % part_bytes);
            let window = self.window((part, inside / WINDOW_BYTES))?;
            let bytes = &window[(inside % WINDOW_BYTES) as usize..];
            let count = bytes.len().min(rest.len());
            let (filled, after) = rest.split_at_mut(count);
            filled.copy_from_slice(&bytes[..count]);
            (at, rest) = (at + count as u64, after);
        }
        Ok(())
    }
}

/// The windows that were wanted last, at most so many bytes of them at any time.
#[derive(Debug)]
struct Kept {
    bytes_max: u64,
    bytes: u64,
    /// Counts what was put or taken up.
    turn: u64,
    windows: HashMap<Place, (u64, Bytes)>,
    by_turn: BTreeMap<u64, Place>,
}

impl Kept {
    fn new(bytes_max: u64) -> Self {
        let (windows, by_turn) = (HashMap::new(), BTreeMap::new());
        Self { bytes_max, bytes: 0, turn: 0, windows, by_turn }
    }

    /// It is the last that goes from now on.
    fn take_up(&mut self, place: Place) -> Option<Bytes> {
        let window = self.windows.get(&place)?.1.clone();
        self.put(place, window.clone());
        Some(window)
    }

    fn put(&mut self, place: Place, window: Bytes) {
        self.turn += 1;
        self.bytes += window.len() as u64;
        self.by_turn.insert(self.turn, place);
        if let Some((turn, before)) = self.windows.insert(place, (self.turn, window)) {
            self.by_turn.remove(&turn);
            self.bytes -= before.len() as u64;
        }
        while self.bytes > self.bytes_max {
            let Some((_, first)) = self.by_turn.pop_first() else { break };
            if let Some((_, gone)) = self.windows.remove(&first) {
                self.bytes -= gone.len() as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use shoal_metadata::{KeyOwner, UploadPart};

    use super::*;
    use crate::store::disturbed::DisturbedStore;

    const PART: usize = 100;

    /// An upload of two parts and a half, of which so many bytes are kept.
    struct Parts {
        _folder: tempfile::TempDir,
        store: Arc<DisturbedStore>,
        content: Vec<u8>,
        running: Arc<Running>,
        source: Arc<PartsSource>,
    }

    impl Parts {
        async fn of(kept_bytes_max: u64) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = DisturbedStore::open(folder.path());
            let content: Vec<u8> = (0..250).map(|at| (at / 3) as u8).collect();
            let upload = "upload-00000000000000000000000000000001".parse().unwrap();
            let mut parts = BTreeMap::new();
            for (number, part) in content.chunks(PART).enumerate() {
                let sha256 = Sha256::digest(part).into();
                parts.insert(number as u32, UploadPart { bytes: part.len() as u64, sha256 });
            }
            let (total_bytes, part_bytes) = (content.len() as u64, PART as u64);
            let uploaded = Uploaded { upload, total_bytes, part_bytes };
            let parts = (uploaded, Arc::new(Arrivals::whole(parts)));
            let running = Arc::<Running>::default();
            let behind: Arc<dyn BlobStore> = store.clone();
            let source = PartsSource::new(behind, Handle::current(), parts, Arc::clone(&running));
            source.state.lock().kept = Kept::new(kept_bytes_max);
            let parts = Self { _folder: folder, store, content, running, source: Arc::new(source) };
            for number in 0..3 {
                parts.store(number, |_| {}).await;
            }
            parts
        }

        /// Stores a part as it was acknowledged, but for a change.
        async fn store(&self, number: usize, change: impl FnOnce(&mut Vec<u8>)) {
            let mut part = self.content.chunks(PART).nth(number).unwrap().to_vec();
            change(&mut part);
            let key = self.source.key(number as u64);
            self.store.put(key, &KeyOwner::Cluster, part.into()).await.unwrap();
        }

        async fn read(&self, at: u64, count: usize) -> io::Result<Vec<u8>> {
            let source = Arc::clone(&self.source);
            let read = tokio::task::spawn_blocking(move || {
                let mut bytes = vec![0; count];
                source.read_at(at, &mut bytes).map(|()| bytes)
            });
            read.await.unwrap()
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_file_that_is_read_in_order_is_read_once() {
        let parts = Parts::of(100).await;
        let mut back = Vec::new();
        for at in (0..250).step_by(25) {
            back.extend(parts.read(at, 25).await.unwrap());
        }
        assert_eq!((back, parts.store.reads()), (parts.content.clone(), 3));
        assert_eq!(parts.running.processed_bytes.load(Ordering::Relaxed), 250);
        assert_eq!(parts.read(50, 200).await.unwrap(), parts.content[50..]);
        assert!(parts.read(50, 201).await.is_err(), "more than there is");
        assert!(parts.source.state.lock().kept.bytes <= 100);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_part_that_is_not_what_was_acknowledged_is_given_to_nobody() {
        let changes: [fn(&mut Vec<u8>); 3] =
            [|part| part[99] ^= 1, |part| part.truncate(40), |part| part.clear()];
        for change in changes {
            let parts = Parts::of(1000).await;
            parts.store(1, change).await;
            assert_eq!(parts.read(0, 100).await.unwrap(), parts.content[..100]);
            assert_eq!(parts.source.observed().damaged(), None);
            // Of bytes that are as they were, too.
            assert!(parts.read(99, 2).await.is_err());
            assert_eq!(parts.source.observed().damaged(), Some(1));
            assert!(parts.read(0, 1).await.is_err(), "it goes on");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_part_that_changes_after_it_was_compared_is_found_out() {
        let parts = Parts::of(100).await;
        assert_eq!(parts.read(0, 250).await.unwrap(), parts.content);
        parts.store(0, |part| part[0] ^= 1).await;
        assert!(parts.read(50, 10).await.is_err());
        assert_eq!(parts.source.observed().damaged(), Some(0));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_reads_again_gets_the_same_or_nothing_and_no_part_is_damaged() {
        let parts = Parts::of(0).await;
        assert_eq!(parts.read(0, 250).await.unwrap(), parts.content);
        parts.source.observed().read_again();
        // Each is fetched once, whether it is wanted next or left out.
        assert_eq!(parts.read(0, 250).await.unwrap(), parts.content);
        assert_eq!(parts.store.reads(), 6);
        assert_eq!(parts.read(0, 100).await.unwrap(), parts.content[..100]);
        assert_eq!(parts.read(200, 50).await.unwrap(), parts.content[200..]);
        parts.store(1, |part| part[0] ^= 1).await;
        assert!(parts.read(90, 20).await.is_err());
        assert_eq!(parts.source.observed().damaged(), None);
        assert_eq!(parts.read(0, 100).await.unwrap(), parts.content[..100]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_is_read_for_a_lease_that_is_lost() {
        let parts = Parts::of(100).await;
        parts.running.lost.store(true, Ordering::Relaxed);
        assert!(parts.read(0, 1).await.is_err());
        assert_eq!((parts.store.reads(), parts.source.observed().damaged()), (0, None));
    }
}
