//! The log's database: entries and the vote.
//!
//! Keys: 0 and a name for single values, 1 and a big-endian index for entries. Values: postcard.
//!
//! An append is written to RocksDB, and so readable, at once; that it is durable is reported by a
//! thread of its own, the flusher, which gathers whatever reports are waiting and syncs once for
//! all of them. A vote is synced before `save_vote` returns. All writes go through one write-ahead
//! log in the order in which openraft asks for them, so that a sync covers what came before it.
//!
//! Non-goal: deciding what may be truncated or purged; openraft does.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use futures::Stream;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use rocksdb::{DB, Direction, IteratorMode, ReadOptions, WriteBatch, WriteOptions};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, storage};
use crate::metrics::Metrics;
use crate::proposal::{Entry, LogId, TypeConfig, Vote};
use crate::store::{decode, encode, options};

/// Reports that wait for the flusher; openraft's own pipeline is shorter.
const REPORTS_WAITING_MAX: usize = 4096;

/// One read for replication ends after so many bytes of entries, but has at least one entry.
pub const READ_BYTES_MAX: usize = 4 * 1024 * 1024;

const VALUE: u8 = 0;
const ENTRY: u8 = 1;
const VOTE: &[u8] = &[VALUE, b'v'];
const COMMITTED: &[u8] = &[VALUE, b'c'];
const PURGED: &[u8] = &[VALUE, b'p'];

/// The log; clones share it.
#[derive(Clone)]
pub struct LogStore {
    db: Arc<DB>,
    flusher: SyncSender<IOFlushed<TypeConfig>>,
}

impl LogStore {
    /// Opens or makes the log in `path`, and starts its flusher, which ends with the last clone.
    pub fn open(path: &Path, metrics: Arc<Metrics>) -> Result<Self, Error> {
        let refuse = |reason: String| Error::Open { path: path.to_owned(), reason };
        let db = DB::open(&options(), path).map_err(|error| refuse(error.to_string()))?;
        let db = Arc::new(db);
        let (flusher, reports) = sync_channel(REPORTS_WAITING_MAX);
        let flushed = db.clone();
        std::thread::Builder::new()
            .name("raft-flusher".into())
            .spawn(move || flush(&flushed, &reports, &metrics))
            .map_err(|error| refuse(error.to_string()))?;
        Ok(Self { db, flusher })
    }

    fn value<T: DeserializeOwned>(&self, key: &[u8]) -> io::Result<Option<T>> {
        let bytes = self.db.get(key).map_err(storage("read the log"))?;
        bytes.map(|bytes| decode(&bytes)).transpose()
    }

    fn last_entry(&self) -> io::Result<Option<Entry>> {
        let mut items = self.db.iterator(IteratorMode::From(&key(u64::MAX), Direction::Reverse));
        match items.next().transpose().map_err(storage("read the log"))? {
            Some((key, bytes)) if key.first() == Some(&ENTRY) => decode(&bytes).map(Some),
            _ => Ok(None),
        }
    }

    /// Entries of `start..end`, up to `bytes_max`, at least one where there is one.
    fn entries(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        if start >= end {
            return Ok(Vec::new());
        }
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(key(end));
        let from = key(start);
        let items = self.db.iterator_opt(IteratorMode::From(&from, Direction::Forward), options);
        let mut entries = Vec::new();
        let mut total = 0usize;
        for item in items {
            let (_, bytes) = item.map_err(storage("read the log"))?;
            total = total.saturating_add(bytes.len());
            if !entries.is_empty() && total > bytes_max {
                break;
            }
            entries.push(decode(&bytes)?);
        }
        Ok(entries)
    }

    async fn write_synced(&self, batch: WriteBatch, doing: &'static str) -> io::Result<()> {
        let db = self.db.clone();
        blocking(move || {
            let mut options = WriteOptions::default();
            options.set_sync(true);
            db.write_opt(batch, &options).map_err(storage(doing))
        })
        .await
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

/// One sync for all reports that wait; the order of the reports is kept.
fn flush(db: &DB, reports: &Receiver<IOFlushed<TypeConfig>>, metrics: &Metrics) {
    while let Ok(first) = reports.recv() {
        let mut waiting = vec![first];
        waiting.extend(reports.try_iter().take(REPORTS_WAITING_MAX));
        let begun = Instant::now();
        let result = db.flush_wal(true).map_err(storage("sync the log"));
        metrics.log_sync_seconds.observe(begun.elapsed().as_secs_f64());
        for report in waiting {
            report.io_completed(match &result {
                Ok(()) => Ok(()),
                Err(error) => Err(io::Error::other(error.to_string())),
            });
        }
    }
}

fn key(index: u64) -> [u8; 9] {
    let mut key = [ENTRY; 9];
    key[1..].copy_from_slice(&index.to_be_bytes());
    key
}

fn put<T: Serialize>(batch: &mut WriteBatch, key: &[u8], value: &T) -> io::Result<()> {
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
        let purged: Option<LogId> = self.value(PURGED)?;
        let last = self.last_entry()?.map(|entry| entry.log_id());
        Ok(LogState { last_purged_log_id: purged, last_log_id: last.or(purged) })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        put(&mut batch, VOTE, vote)?;
        self.write_synced(batch, "save the vote").await
    }

    /// Not synced: the entries before it are in the same write-ahead log.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        put(&mut batch, COMMITTED, &committed)?;
        self.db.write(batch).map_err(storage("save the commit index"))
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.value::<Option<LogId>>(COMMITTED)?.flatten())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut batch = WriteBatch::default();
        for entry in entries {
            put(&mut batch, &key(entry.log_id().index), &entry)?;
        }
        let db = self.db.clone();
        blocking(move || db.write(batch).map_err(storage("append to the log"))).await?;
        self.flusher
            .send(callback)
            .map_err(|_| io::Error::other("the flusher of the log has ended"))
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let from = last.map_or(0, |last| last.index + 1);
        let mut batch = WriteBatch::default();
        batch.delete_range(key(from), key(u64::MAX));
        self.write_synced(batch, "truncate the log").await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        put(&mut batch, PURGED, &upto)?;
        batch.delete_range(key(0), key(upto.index + 1));
        let db = self.db.clone();
        blocking(move || db.write(batch).map_err(storage("purge the log"))).await
    }
}
