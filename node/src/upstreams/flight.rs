//! A blob on its way from an upstream: one writer, any number of readers.
//!
//! What comes lies in a file without a name, so that each reader goes at its own pace and from
//! wherever it wants, memory is bounded, and a crash leaves nothing.
//!
//! Invariants: the last byte is given to nobody before the whole has the digest that was asked for;
//! whose upstream is slow gives its turn to those who wait, and goes on at its next one.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt, try_unfold};
use parking_lot::Mutex;
use shoal_content::{Digest, RepositoryName};
use tokio::sync::{Semaphore, SemaphorePermit, watch};

use super::Error;
use crate::registry::contention::{self, Contention};

/// Read at once for one reader.
const READ_BYTES: u64 = 256 * 1024;
/// Of the folder's disk, what is never filled.
const RESERVE_BYTES: u64 = 64 * 1024 * 1024;
/// Blobs that are waited for, with those that wait for their turn; each has an open file.
const UNDER_WAY_MAX: usize = 256;

/// Blobs that come at once, at this node.
pub const TURNS: usize = 32;
/// A turn is kept for so long, whoever waits.
const TURN_MIN: Duration = Duration::from_secs(60);
/// Nobody could be told to come again: those who read would have to begin anew.
const TURN_WAIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// How far it is.
#[derive(Debug, Clone)]
pub enum Progress {
    /// The upstream has not answered.
    Opening,
    /// So many bytes may be read.
    Read(u64),
    Failed(Error),
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Flight {
    file: Arc<File>,
    size: u64,
    progress: watch::Receiver<Progress>,
}

/// The writer's end.
#[derive(Debug)]
pub struct Writer {
    file: Arc<File>,
    pub progress: watch::Sender<Progress>,
}

type Key = (RepositoryName, Digest);

/// All that are under way at this node. Clones are the same.
#[derive(Debug, Clone)]
pub struct Flights {
    folder: Arc<PathBuf>,
    under_way: Arc<Mutex<HashMap<Key, Arc<Flight>>>>,
    turns: Arc<Semaphore>,
    contention: Arc<Contention>,
}

/// Held by whoever asks an upstream.
pub type Turn<'a> = contention::Held<SemaphorePermit<'a>>;

/// Ends a flight when it is dropped, however its task ends.
#[derive(Debug)]
pub struct Landing {
    flights: Flights,
    key: Key,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.flights.under_way.lock().remove(&self.key);
    }
}

impl Flights {
    /// At most `turns` of them come at once.
    pub fn new(folder: PathBuf, turns: usize) -> Self {
        let (turns, contention) =
            (Arc::new(Semaphore::new(turns)), Contention::new(TURN_MIN, TURN_WAIT_MAX));
        Self { folder: Arc::new(folder), under_way: Arc::default(), turns, contention }
    }

    /// Waits for a turn; they come in the order in which they are waited for.
    ///
    /// # Errors
    /// [`Error::Busy`] where the node stops, or none came in a day.
    pub async fn turn(&self) -> Result<Turn<'_>, Error> {
        let permit = match self.turns.try_acquire() {
            Ok(permit) => Ok(permit),
            Err(_) => {
                let turn = self.contention.wait(1, self.turns.acquire()).await;
                turn.ok_or(Error::Busy("others have all its turns"))?
            }
        };
        let permit = permit.map_err(|_| Error::Busy("it is stopping"))?;
        Ok(self.contention.hold(1, permit))
    }

    /// The flight of a blob of `size` bytes; with the writer's end for whoever is to begin it.
    ///
    /// # Errors
    /// Where the disk has no room for it and all that is coming, or too much is waited for.
    pub async fn join(
        &self,
        key: &Key,
        size: u64,
    ) -> Result<(Arc<Flight>, Option<(Writer, Landing)>), Error> {
        if let Some(flight) = self.under_way.lock().get(key) {
            return Ok((Arc::clone(flight), None));
        }
        let folder = Arc::clone(&self.folder);
        let file = tokio::task::spawn_blocking(move || {
            let stat = nix::sys::statvfs::statvfs(folder.as_path())?;
            let free = stat.blocks_available() as u64 * stat.fragment_size() as u64;
            Ok::<_, io::Error>((tempfile::tempfile_in(folder.as_path())?, free))
        });
        let file = file.await.map_err(|_| Error::Busy("it is stopping"))?;
        let (file, free) = file.map_err(|_| Error::Busy("its data folder cannot be written to"))?;
        let mut under_way = self.under_way.lock();
        // Somebody may have been quicker.
        if let Some(flight) = under_way.get(key) {
            return Ok((Arc::clone(flight), None));
        }
        if under_way.len() >= UNDER_WAY_MAX {
            return Err(Error::Busy("too many blobs are on their way"));
        }
        let coming = under_way.values().map(|flight| flight.missing()).fold(0, u64::saturating_add);
        if free < coming.saturating_add(size).saturating_add(RESERVE_BYTES) {
            return Err(Error::Busy("its disk has no room for a blob of that size"));
        }
        let file = Arc::new(file);
        let (sender, progress) = watch::channel(Progress::Opening);
        let flight = Arc::new(Flight { file: Arc::clone(&file), size, progress });
        under_way.insert(key.clone(), Arc::clone(&flight));
        let landing = Landing { flights: self.clone(), key: key.clone() };
        Ok((flight, Some((Writer { file, progress: sender }, landing))))
    }
}

impl Writer {
    /// Puts bytes at `offset`; nobody reads them before they are [published](Self::publish).
    pub async fn write(&self, offset: u64, bytes: Bytes) -> Result<(), Error> {
        let file = Arc::clone(&self.file);
        let written = tokio::task::spawn_blocking(move || file.write_all_at(&bytes, offset));
        match written.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Error::Busy("its disk does not take what comes")),
            Err(_) => Err(Error::Busy("it is stopping")),
        }
    }

    /// What was written there before.
    pub async fn read(&self, offset: u64, length: u64) -> Result<Bytes, Error> {
        let file = Arc::clone(&self.file);
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; length as usize];
            file.read_exact_at(&mut bytes, offset).map(|()| Bytes::from(bytes))
        });
        match read.await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(_)) => Err(Error::Busy("its disk does not give what came")),
            Err(_) => Err(Error::Busy("it is stopping")),
        }
    }

    pub fn publish(&self, bytes: u64) {
        self.progress.send_replace(Progress::Read(bytes));
    }
}

impl Flight {
    /// What its file has yet to take.
    fn missing(&self) -> u64 {
        match &*self.progress.borrow() {
            Progress::Opening => self.size,
            Progress::Read(bytes) => self.size.saturating_sub(*bytes),
            Progress::Failed(_) => 0,
        }
    }

    /// Waits until the upstream has answered, then gives `range` as it comes.
    ///
    /// # Errors
    /// What the upstream answered, where that is no blob.
    pub async fn read(
        self: Arc<Self>,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, Error> {
        let mut progress = self.progress.clone();
        let begun = progress.wait_for(|progress| !matches!(progress, Progress::Opening)).await;
        if let Progress::Failed(error) = &*begun.map_err(|_| Error::Busy("it is stopping"))? {
            return Err(error.clone());
        }
        let state = (self, progress, range);
        let pieces = try_unfold(state, |(flight, mut progress, mut range)| async move {
            if range.is_empty() {
                return Ok(None);
            }
            let at = range.start;
            let more = |progress: &Progress| match progress {
                Progress::Opening => false,
                Progress::Read(bytes) => *bytes > at,
                Progress::Failed(_) => true,
            };
            let end = match &*progress.wait_for(more).await.map_err(io::Error::other)? {
                Progress::Read(bytes) => (*bytes).min(range.end).min(at + READ_BYTES),
                Progress::Failed(error) => return Err(io::Error::other(error.to_string())),
                Progress::Opening => at,
            };
            let file = Arc::clone(&flight.file);
            let read = tokio::task::spawn_blocking(move || {
                let mut bytes = vec![0; (end - at) as usize];
                file.read_exact_at(&mut bytes, at).map(|()| Bytes::from(bytes))
            });
            let bytes = read.await.map_err(io::Error::other)??;
            range.start = end;
            Ok(Some((bytes, (flight, progress, range))))
        });
        Ok(pieces.boxed())
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;

    use super::*;

    fn flights() -> (tempfile::TempDir, Flights) {
        let folder = tempfile::tempdir().unwrap();
        let flights = Flights::new(folder.path().to_owned(), 1);
        (folder, flights)
    }

    fn key() -> Key {
        ("hub/app".parse().unwrap(), Digest::sha256([1; 32]))
    }

    #[tokio::test]
    async fn readers_come_when_they_like_and_read_what_is_published() {
        let (_folder, flights) = flights();
        let (first, writer) = flights.join(&key(), 6).await.unwrap();
        let (writer, landing) = writer.expect("the first one is to begin it");
        let (second, none) = flights.join(&key(), 6).await.unwrap();
        assert!(none.is_none());
        writer.write(0, Bytes::from_static(b"abc")).await.unwrap();
        writer.publish(3);
        let mut whole = first.read(0..6).await.unwrap();
        assert_eq!(whole.next().await.unwrap().unwrap(), "abc");
        writer.write(3, Bytes::from_static(b"def")).await.unwrap();
        writer.publish(5);
        assert_eq!(whole.next().await.unwrap().unwrap(), "de");
        writer.publish(6);
        drop(landing);
        assert_eq!(whole.next().await.unwrap().unwrap(), "f");
        assert!(whole.next().await.is_none());
        // Who has joined reads on; who comes now begins another.
        let part: Vec<Bytes> = second.read(2..4).await.unwrap().try_collect().await.unwrap();
        assert_eq!(part.concat(), b"cd");
        assert!(flights.join(&key(), 6).await.unwrap().1.is_some());
    }

    #[tokio::test]
    async fn a_failure_reaches_everyone_and_a_writer_that_is_gone_is_one() {
        let (_folder, flights) = flights();
        let (flight, writer) = flights.join(&key(), 6).await.unwrap();
        let (writer, _landing) = writer.unwrap();
        writer.publish(1);
        let mut pieces = flight.clone().read(1..6).await.unwrap();
        writer.progress.send_replace(Progress::Failed(Error::Unknown("hub".into())));
        assert!(pieces.next().await.unwrap().is_err());
        assert!(matches!(flight.clone().read(0..6).await, Err(Error::Unknown(_))));
        drop(writer);
        let (_folder, flights) = self::flights();
        let (flight, writer) = flights.join(&key(), 6).await.unwrap();
        drop(writer);
        assert!(flight.read(0..6).await.is_err());
    }

    #[tokio::test]
    async fn a_blob_that_does_not_fit_is_refused_before_it_comes() {
        let (folder, flights) = flights();
        assert!(matches!(flights.join(&key(), u64::MAX).await, Err(Error::Busy(_))));
        // What is on its way has its room already.
        let stat = nix::sys::statvfs::statvfs(folder.path()).unwrap();
        let free = stat.blocks_available() as u64 * stat.fragment_size() as u64;
        let most = free / 3 * 2;
        let (_flight, first) = flights.join(&key(), most).await.unwrap();
        let other = ("hub/other".parse().unwrap(), Digest::sha256([2; 32]));
        assert!(matches!(flights.join(&other, most).await, Err(Error::Busy(_))));
        let (writer, landing) = first.unwrap();
        drop((writer, landing));
        flights.join(&other, most).await.unwrap();
    }

    #[tokio::test]
    async fn what_waits_is_bounded() {
        let (_folder, flights) = flights();
        let mut begun = Vec::new();
        for number in 0..UNDER_WAY_MAX {
            let digest = Digest::sha256(std::array::from_fn(|at| (number >> (at % 2 * 8)) as u8));
            let joined = flights.join(&("hub/app".parse().unwrap(), digest), 1).await.unwrap();
            begun.push(joined.1.expect("a blob of its own"));
        }
        let more = ("hub/other".parse().unwrap(), Digest::sha256([1; 32]));
        assert!(matches!(flights.join(&more, 1).await, Err(Error::Busy(_))));
        begun.pop();
        flights.join(&more, 1).await.unwrap();
    }
}
