//! The log: entries and the vote.
//!
//! Keys: 0 and a name for single values, 1 and a big-endian index for entries. Values: postcard.
//!
//! What is appended can be read at once, from memory (see `tail`); the thread that writes gathers
//! whatever waits, writes and syncs it in one piece, and reports it (see `writer`). A vote and a
//! truncation are synced before they return. All goes through the one thread in the order in which
//! openraft asks for it.
//!
//! Invariant: what waits to be written is bounded; who appends more waits.
//! Non-goal: deciding what may be truncated or purged; openraft does.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures::Stream;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use parking_lot::RwLock;
use rocksdb::{DB, Direction, IteratorMode, Options, ReadOptions, WriteBatch};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::sleep;
use tracing::warn;

use crate::error::{Error, storage};
use crate::metrics::Metrics;
use crate::proposal::{Entry, LogId, TypeConfig, Vote};
use crate::store::{decode, encode, options};
use crate::tail::{self, Tail};
use crate::writer::{self, Done, Work};

/// What waits to be written, in KiB; a longer append waits until there is nothing else.
const ROOM_KIB: usize = 64 * 1024;

/// One read for replication ends after so many bytes of entries, but has at least one entry.
pub const READ_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How long a member that stops waits for its log to be closed, and how often it looks.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
const CLOSE_INTERVAL: Duration = Duration::from_millis(5);

/// The files of RocksDB's own log that are written over when they are done with, rather than
/// removed.
const FILES_RECYCLED: usize = 2;

const VALUE: u8 = 0;
const ENTRY: u8 = 1;
pub const VOTE: &[u8] = &[VALUE, b'v'];
pub const COMMITTED: &[u8] = &[VALUE, b'c'];
pub const PURGED: &[u8] = &[VALUE, b'p'];

/// The log; clones share it.
#[derive(Clone)]
pub struct LogStore {
    db: Arc<DB>,
    tail: Arc<RwLock<Tail>>,
    marks: Arc<RwLock<Marks>>,
    work: Sender<Work>,
    room: Arc<Semaphore>,
}

/// The end of the writer, which has the database last: clones give it up before they tell it.
pub struct Closing(JoinHandle<()>);

impl Closing {
    /// Waits until the last clone is gone and the database is closed, for [`CLOSE_TIMEOUT`] at most.
    /// A process that ends before takes RocksDB apart under the writer, and is aborted by it.
    pub async fn ended(self) {
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        while !self.0.is_finished() {
            if Instant::now() > deadline {
                return warn!("the log is still in use");
            }
            sleep(CLOSE_INTERVAL).await;
        }
        if self.0.join().is_err() {
            warn!("the log's writer had panicked");
        }
    }
}

/// What was asked for last, be it written yet or not.
#[derive(Default)]
struct Marks {
    purged: Option<LogId>,
    committed: Option<LogId>,
}

/// Entries of the database.
#[derive(Default)]
struct Written {
    entries: Vec<Entry>,
    bytes: usize,
    /// Whether there are more, for which there was no room.
    is_cut: bool,
}

impl LogStore {
    /// Opens or makes the log in `path`, and starts its writer, which ends with the last clone.
    pub fn open(path: &Path, metrics: Arc<Metrics>) -> Result<(Self, Closing), Error> {
        let refuse = |reason: String| Error::Open { path: path.to_owned(), reason };
        let db = DB::open(&log_options(), path).map_err(|error| refuse(error.to_string()))?;
        let (work, to_do) = channel();
        let log = Self {
            db: Arc::new(db),
            tail: Arc::default(),
            marks: Arc::default(),
            work,
            room: Arc::new(Semaphore::new(ROOM_KIB)),
        };
        let purged = log.value(PURGED).map_err(|error| refuse(error.to_string()))?;
        let committed = log.value(COMMITTED).map_err(|error| refuse(error.to_string()))?;
        *log.marks.write() = Marks { purged, committed: committed.flatten() };
        let (db, tail) = (log.db.clone(), log.tail.clone());
        let writer = std::thread::Builder::new()
            .name("raft-log".into())
            .spawn(move || writer::run(&db, &tail, &to_do, &metrics))
            .map_err(|error| refuse(error.to_string()))?;
        Ok((log, Closing(writer)))
    }

    fn value<T: DeserializeOwned>(&self, key: &[u8]) -> io::Result<Option<T>> {
        let bytes = self.db.get(key).map_err(storage("read the log"))?;
        bytes.map(|bytes| decode(&bytes)).transpose()
    }

    fn last_entry(&self) -> io::Result<Option<LogId>> {
        if let Some(last) = self.tail.read().last() {
            return Ok(Some(last));
        }
        let mut items = self.db.iterator(IteratorMode::From(&key(u64::MAX), Direction::Reverse));
        match items.next().transpose().map_err(storage("read the log"))? {
            Some((key, bytes)) if key.first() == Some(&ENTRY) => {
                Ok(Some(decode::<Entry>(&bytes)?.log_id()))
            }
            _ => Ok(None),
        }
    }

    /// Entries of `start..end`, up to `bytes_max`, at least one where there is one.
    fn entries(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let purged = self.marks.read().purged.map_or(0, |purged| purged.index + 1);
        let start = start.max(purged);
        let (first, mut later) = {
            let tail = self.tail.read();
            (tail.first(), tail.read(start, end, bytes_max))
        };
        // Those of the tail were taken first: what leaves it meanwhile is in the database.
        let written = first.map_or(end, |first| first.min(end));
        if start >= written {
            return Ok(later);
        }
        let Written { mut entries, mut bytes, is_cut } = self.written(start, written, bytes_max)?;
        if !is_cut {
            let none = entries.is_empty();
            let fits = |(number, entry): &(usize, &Entry)| {
                bytes = bytes.saturating_add(tail::bytes(entry));
                bytes <= bytes_max || (none && *number == 0)
            };
            let count = later.iter().enumerate().take_while(fits).count();
            entries.extend(later.drain(..count));
        }
        Ok(entries)
    }

    /// As [`Self::entries`], from the database.
    fn written(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Written> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(key(end));
        let from = key(start);
        let items = self.db.iterator_opt(IteratorMode::From(&from, Direction::Forward), options);
        let mut found = Written::default();
        for item in items {
            let (_, bytes) = item.map_err(storage("read the log"))?;
            let total = found.bytes.saturating_add(bytes.len());
            if !found.entries.is_empty() && total > bytes_max {
                found.is_cut = true;
                break;
            }
            found.bytes = total;
            found.entries.push(decode(&bytes)?);
        }
        Ok(found)
    }

    fn ask(&self, work: Work) -> io::Result<()> {
        self.work.send(work).map_err(|_| ended())
    }

    /// Has it done, and waits until it is synced.
    async fn wait(&self, work: impl FnOnce(Done) -> Work) -> io::Result<()> {
        let (done, answer) = oneshot::channel();
        self.ask(work(done))?;
        answer.await.map_err(|_| ended())?
    }
}

/// Runs what blocks off the async threads.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(io::Error::other(error)),
    }
}

/// A sync of a file that is written over has no length and no blocks to record: it is one write,
/// without the file system's journal.
fn log_options() -> Options {
    let mut options = options();
    options.set_recycle_log_file_num(FILES_RECYCLED);
    options
}

fn ended() -> io::Error {
    io::Error::other("the writer of the log has ended")
}

pub fn key(index: u64) -> [u8; 9] {
    let mut key = [ENTRY; 9];
    key[1..].copy_from_slice(&index.to_be_bytes());
    key
}

pub fn put<T: Serialize>(batch: &mut WriteBatch, key: &[u8], value: &T) -> io::Result<()> {
    batch.put(key, encode(value)?);
    Ok(())
}

/// What a log has that begins behind `last`, which was voted for and is committed.
pub fn put_start(batch: &mut WriteBatch, last: &LogId, vote: &Vote) -> io::Result<()> {
    put(batch, PURGED, last)?;
    put(batch, COMMITTED, &Some(*last))?;
    put(batch, VOTE, vote)
}

/// The half-open range of indices that `range` names.
fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&start) => start + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&end) => end + 1,
        Bound::Excluded(&end) => end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let (start, end) = bounds(&range);
        self.entries(start, end, usize::MAX)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        self.value(VOTE)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.entries(start, end, READ_BYTES_MAX)
    }

    /// Piece by piece, so that a long stretch to apply is never in memory as a whole.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        let pieces = futures::stream::try_unfold((self.clone(), start), move |state| async move {
            let (log, next) = state;
            let entries = log.entries(next, end, READ_BYTES_MAX)?;
            if entries.is_empty() {
                return Ok::<_, io::Error>(None);
            }
            let next = next + entries.len() as u64;
            let piece = futures::stream::iter(entries.into_iter().map(Ok::<_, io::Error>));
            Ok(Some((piece, (log, next))))
        });
        Box::pin(futures::TryStreamExt::try_flatten(pieces))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let purged = self.marks.read().purged;
        Ok(LogState { last_purged_log_id: purged, last_log_id: self.last_entry()?.max(purged) })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.wait(|done| Work::Vote(*vote, done)).await
    }

    /// Not synced, nor waited for: the entries before it are written first.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.marks.write().committed = committed;
        self.ask(Work::Committed(committed))
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.marks.read().committed)
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let bytes: usize = entries.iter().map(tail::bytes).sum();
        let kib =
            u32::try_from(bytes.div_ceil(1024).clamp(1, ROOM_KIB)).map_err(io::Error::other)?;
        let room = self.room.clone().acquire_many_owned(kib).await.map_err(io::Error::other)?;
        {
            let mut tail = self.tail.write();
            for entry in &entries {
                let hole = |_| io::Error::other("an entry that does not follow the log's last");
                tail.push(entry.clone()).map_err(hole)?;
            }
        }
        self.ask(Work::Append { entries, flushed, room })
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let start = last.map_or(0, |last| last.index + 1);
        self.wait(|done| Work::Truncate(start, done)).await?;
        self.tail.write().truncate(start);
        Ok(())
    }

    /// Not waited for: what is purged is never asked for again.
    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.marks.write().purged = Some(upto);
        self.tail.write().purge(upto.index + 1);
        self.ask(Work::Purge(upto))
    }
}

#[cfg(test)]
mod tests {
    use openraft::EntryPayload;
    use openraft::storage::RaftLogStorageExt;
    use openraft::vote::RaftLeaderId;
    use prometheus_client::registry::Registry;
    use shoal_content::Timestamp;

    use super::*;
    use crate::proposal::Proposal;

    type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;

    const ENTRY_BYTES: usize = 2000;

    fn id(index: u64) -> LogId {
        LogId::new(LeaderId::new(1, 1).to_committed(), index)
    }

    fn entry(index: u64) -> Entry {
        let command = vec![index as u8; ENTRY_BYTES].into();
        let at = Timestamp::from_millis(index);
        let proposal = Proposal { id: u128::from(index), at, command };
        Entry::new(id(index), EntryPayload::Normal(proposal))
    }

    fn open(path: &Path) -> (LogStore, Closing) {
        LogStore::open(path, Metrics::new(&mut Registry::default())).unwrap()
    }

    /// Appends, and waits until it is synced.
    async fn append(log: &mut LogStore, indices: std::ops::Range<u64>) {
        log.blocking_append(indices.map(entry)).await.unwrap();
    }

    async fn read(log: &mut LogStore, start: u64, end: u64) -> Vec<u64> {
        let entries = log.try_get_log_entries(start..end).await.unwrap();
        assert!(entries.iter().all(|one| *one == entry(one.log_id().index)));
        entries.iter().map(|entry| entry.log_id().index).collect()
    }

    /// More than what is kept in memory, so that reads begin in the database and end in memory.
    #[tokio::test]
    async fn a_range_is_read_whole_wherever_it_lies_and_survives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, closing) = open(folder.path());
        for start in (1..5000).step_by(500) {
            append(&mut log, start..start + 500).await;
        }
        let all: Vec<u64> = (1..5001).collect();
        let first = log.tail.read().first().unwrap();
        assert!(first > 1000, "the first {first} entries are in memory, too");
        assert_eq!(read(&mut log, 0, u64::MAX).await, all);
        assert_eq!(read(&mut log, first - 2, first + 2).await.len(), 4);
        // Up to so many bytes, at least one entry, and never with a gap.
        let (mut next, mut reads) = (1, 0);
        while next <= 5000 {
            let piece = log.entries(next, 5001, 100 * ENTRY_BYTES).unwrap();
            assert!(!piece.is_empty() && piece.len() <= 100, "{} at {next}", piece.len());
            assert!(piece.iter().zip(next..).all(|(entry, index)| entry.log_id().index == index));
            next += piece.len() as u64;
            reads += 1;
        }
        assert!(reads < 60, "{reads} reads");
        assert_eq!(log.entries(first - 1, first + 1, 1).unwrap().len(), 1);

        log.truncate_after(Some(id(4990))).await.unwrap();
        append(&mut log, 4991..4995).await;
        log.purge(id(100)).await.unwrap();
        log.save_committed(Some(id(4000))).await.unwrap();
        let vote = Vote::new(3, 1);
        log.save_vote(&vote).await.unwrap();
        let reader = log.get_log_reader().await;
        drop(log);
        drop(reader);
        closing.ended().await;
        // RocksDB locks its folder, so this is closed.
        let (mut log, _) = open(folder.path());
        assert_eq!(read(&mut log, 0, u64::MAX).await, (101..4995).collect::<Vec<_>>());
        assert_eq!(log.read_vote().await.unwrap(), Some(vote));
        assert_eq!(log.read_committed().await.unwrap(), Some(id(4000)));
        let state = log.get_log_state().await.unwrap();
        let expected = (Some(id(100)), Some(id(4994)));
        assert_eq!((state.last_purged_log_id, state.last_log_id), expected);
    }

    #[tokio::test]
    async fn an_entry_that_does_not_follow_the_last_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, _) = open(folder.path());
        append(&mut log, 1..3).await;
        assert!(log.append(vec![entry(5)], IOFlushed::noop()).await.is_err());
        assert_eq!(read(&mut log, 0, 9).await, [1, 2]);
    }
}
