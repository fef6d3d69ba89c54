//! Writes the log's database: one thread, one write and one sync for all that waits.
//!
//! Invariants: things are written in the order in which they were asked for. Nothing is reported as
//! done before it and all before it is synced, but for what needs no sync: how far the log is
//! committed and purged. After a write that failed nothing more is written, since it would leave a
//! hole: all that is asked for from then on fails, too.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use openraft::entry::RaftEntry;
use openraft::storage::IOFlushed;
use parking_lot::RwLock;
use rocksdb::{DB, WriteBatch, WriteOptions};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::error::storage;
use crate::log::{COMMITTED, PURGED, VOTE, key, put};
use crate::metrics::Metrics;
use crate::proposal::{Entry, LogId, TypeConfig, Vote};
use crate::tail::Tail;

/// What goes into one write; each append counts its entries' bytes besides.
const GROUP_MAX: usize = 1024;
const GROUP_KIB_MAX: usize = 16 * 1024;

/// What is to be written.
pub enum Work {
    Append {
        entries: Vec<Entry>,
        flushed: IOFlushed<TypeConfig>,
        /// Its bytes, in KiB; given back when they are written.
        room: OwnedSemaphorePermit,
    },
    Vote(Vote, Done),
    Committed(Option<LogId>),
    /// The entries from this index on go.
    Truncate(u64, Done),
    /// The entries up to this one go.
    Purge(LogId),
}

pub type Done = oneshot::Sender<io::Result<()>>;

/// Room for a group of small entries, in bytes.
const GROUP_BYTES_USUAL: usize = 16 * 1024;

/// One write.
struct Group {
    batch: WriteBatch,
    synced: bool,
    kib: usize,
    /// Behind the last entry.
    end: Option<u64>,
    flushed: Vec<IOFlushed<TypeConfig>>,
    done: Vec<Done>,
    rooms: Vec<OwnedSemaphorePermit>,
}

impl Group {
    fn new() -> Self {
        Self {
            batch: WriteBatch::with_capacity_bytes(GROUP_BYTES_USUAL),
            synced: false,
            kib: 0,
            end: None,
            flushed: Vec::new(),
            done: Vec::new(),
            rooms: Vec::new(),
        }
    }

    fn add(&mut self, work: Work) -> io::Result<()> {
        match work {
            Work::Append { entries, flushed, room } => {
                self.flushed.push(flushed);
                self.kib += room.num_permits();
                self.rooms.push(room);
                self.synced = true;
                for entry in entries {
                    let index = entry.log_id().index;
                    put(&mut self.batch, &key(index), &entry)?;
                    self.end = Some(index + 1);
                }
            }
            Work::Vote(vote, done) => {
                self.done.push(done);
                self.synced = true;
                put(&mut self.batch, VOTE, &vote)?;
            }
            Work::Committed(committed) => put(&mut self.batch, COMMITTED, &committed)?,
            Work::Truncate(start, done) => {
                self.done.push(done);
                self.synced = true;
                self.batch.delete_range(key(start), key(u64::MAX));
            }
            Work::Purge(upto) => {
                put(&mut self.batch, PURGED, &upto)?;
                self.batch.delete_range(key(0), key(upto.index + 1));
            }
        }
        Ok(())
    }

    fn report(self, result: &io::Result<()>) {
        let copy = || match result {
            Ok(()) => Ok(()),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        for flushed in self.flushed {
            flushed.io_completed(copy());
        }
        for done in self.done {
            // Who gave up waiting needs no answer.
            let _ = done.send(copy());
        }
    }
}

/// Runs until nobody can ask for anything any more.
pub fn run(db: &DB, tail: &Arc<RwLock<Tail>>, work: &Receiver<Work>, metrics: &Metrics) {
    let mut broken: Option<String> = None;
    while let Ok(first) = work.recv() {
        let mut group = Group::new();
        let mut filled = group.add(first);
        let mut count = 1;
        while filled.is_ok()
            && count < GROUP_MAX
            && group.kib < GROUP_KIB_MAX
            && let Ok(next) = work.try_recv()
        {
            filled = group.add(next);
            count += 1;
        }
        let result = match &broken {
            Some(reason) => Err(io::Error::other(format!("an earlier write failed: {reason}"))),
            None => filled.and_then(|()| write(db, &mut group, metrics)),
        };
        match (&result, group.end) {
            (Ok(()), Some(end)) => tail.write().written(end),
            (Ok(()), None) => {}
            (Err(error), _) => broken = broken.or_else(|| Some(error.to_string())),
        }
        group.report(&result);
    }
}

fn write(db: &DB, group: &mut Group, metrics: &Metrics) -> io::Result<()> {
    let mut options = WriteOptions::default();
    options.set_sync(group.synced);
    let begun = Instant::now();
    db.write_opt(std::mem::take(&mut group.batch), &options).map_err(storage("write the log"))?;
    if group.synced {
        metrics.log_sync_seconds.observe(begun.elapsed().as_secs_f64());
    }
    Ok(())
}
