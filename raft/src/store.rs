//! The state's database: the rows of the metadata, and what Raft knows about them.
//!
//! Keys: a table's number, then the row's key (see `shoal_metadata::Table`). Number 0 is Raft's:
//! ```text
//! 0 "applied"           the id of the last applied entry
//! 0 "membership"        the last applied membership
//! 0 "r" index (8 bytes) the proposal in that entry, and the answer to it
//! 0 "p" id              the answer to a proposal, while the cluster's level is 1
//! 0 "o" index (8 bytes) the id of the proposal in that entry, likewise
//! ```
//! Invariant: rows, applied id, membership and answers of a batch are written in one piece. They are
//! in memory until RocksDB flushes: after a crash the state is an earlier one, and the log, which is
//! synced, gives the rest again. Entries leave the log only behind a checkpoint, which is synced.

use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rocksdb::{
    BlockBasedOptions, DB, Direction, IteratorMode, Options, ReadOptions, WriteBatch, WriteOptions,
};
use rustc_hash::FxHashMap;
use serde::Serialize;
use serde::de::DeserializeOwned;
use shoal_metadata::{FIRST_LEVEL, Fault, Read, Rows, Table, Writes, encode_bare};

use crate::error::{Error, storage};
use crate::folder::Scratch;
use crate::memo::Kept;
use crate::proposal::{Applied, LogId, Membership};
use crate::view::StoredRow;

const RAFT: u8 = 0;
const APPLIED: &[u8] = b"applied";
const MEMBERSHIP: &[u8] = b"membership";
const WAL_BYTES_MAX: u64 = 64 * 1024 * 1024;
const WRITE_BUFFER_BYTES: usize = 32 * 1024 * 1024;
/// RocksDB's levels of files.
const LEVELS: usize = 7;
/// One key in a hundred that is not there is looked for all the same.
const FILTER_BITS_PER_KEY: f64 = 10.0;
/// Of the write buffer.
const MEMTABLE_FILTER_RATIO: f64 = 0.02;

/// Options that both databases have.
pub fn options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_max_total_wal_size(WAL_BYTES_MAX);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    // What is flushed is merged soon, or dropped: only what stays is worth compressing.
    let mut compression = [rocksdb::DBCompressionType::Lz4; LEVELS];
    compression[0] = rocksdb::DBCompressionType::None;
    options.set_compression_per_level(&compression);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(4 * 1024 * 1024);
    options.set_log_level(rocksdb::LogLevel::Warn);
    options
}

/// Options of the state's database: most of what a command looks for is not there, since it is to
/// be made, and most of the rest was written lately.
fn state_options() -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_bloom_filter(FILTER_BITS_PER_KEY, false);
    let mut options = options();
    options.set_block_based_table_factory(&table);
    options.set_memtable_whole_key_filtering(true);
    options.set_memtable_prefix_bloom_ratio(MEMTABLE_FILTER_RATIO);
    options
}

/// An open state database. Its folder is removed once it was retired and nobody reads it any more.
#[derive(Debug)]
pub struct Store {
    // Dropped in this order: first the database is closed, then its folder goes.
    db: DB,
    folder: Arc<Scratch>,
    /// The proposals whose answers are remembered, and in which entry they were: nearly all that
    /// come are new, and need not be looked for on the disk. The ids are random, so a quick hash
    /// does.
    remembered: Mutex<FxHashMap<u128, u64>>,
    /// What the last batch has read, brought up to date.
    kept: Mutex<Kept>,
}

/// How the answers to proposals are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerForm {
    /// In a row for the id and one for the order. Programs of the first level know no other.
    TwoRows,
    OneRow,
}

impl AnswerForm {
    /// That of a cluster at this level.
    pub fn at(level: u8) -> Self {
        if level <= FIRST_LEVEL { Self::TwoRows } else { Self::OneRow }
    }
}

/// A proposal that is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remembered {
    pub index: u64,
    pub id: u128,
    pub form: AnswerForm,
}

impl Store {
    /// Opens the database in `path`, or makes it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let folder = Arc::new(Scratch::new(path.to_owned()));
        folder.keep();
        Self::open_in(folder)
    }

    fn open_in(folder: Arc<Scratch>) -> Result<Self, Error> {
        let refuse = |reason: String| Error::Open { path: folder.path().to_owned(), reason };
        let db = DB::open(&state_options(), folder.path());
        let db = db.map_err(|error| refuse(error.to_string()))?;
        let (remembered, kept) = (Mutex::default(), Mutex::default());
        let mut store = Self { db, folder: folder.clone(), remembered, kept };
        let all = store.proposals(0, u64::MAX).map_err(|error| refuse(error.to_string()))?;
        store.remembered = Mutex::new(all.into_iter().map(|one| (one.id, one.index)).collect());
        Ok(store)
    }

    /// What the state in a complete folder, which stays as it is, says of itself.
    pub fn inspect(path: &Path) -> io::Result<(Option<LogId>, Membership)> {
        let doing = storage("look into a checkpoint");
        let db = DB::open_for_read_only(&options(), path, false).map_err(&doing)?;
        let row = |key: &[u8]| db.get(raft_key(key)).map_err(&doing);
        let applied = row(APPLIED)?.map(|bytes| decode(&bytes)).transpose()?;
        let membership = row(MEMBERSHIP)?.map(|bytes| decode(&bytes)).transpose()?;
        Ok((applied, membership.unwrap_or_default()))
    }

    /// Brings all that was written to the disk.
    pub fn flush(&self) -> io::Result<()> {
        self.db.flush().map_err(storage("flush the state"))
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn db(&self) -> &DB {
        &self.db
    }

    /// The folder goes when the last reader does.
    pub fn retire(&self) {
        self.folder.retire();
    }

    pub fn applied(&self) -> io::Result<Option<LogId>> {
        self.raft_row(APPLIED)
    }

    pub fn membership(&self) -> io::Result<Membership> {
        Ok(self.raft_row(MEMBERSHIP)?.unwrap_or_default())
    }

    /// What was answered to a proposal, if that is remembered and its entry not below `since`.
    pub fn answer(&self, id: u128, since: u64) -> io::Result<Option<Applied>> {
        let index = self.remembered.lock().get(&id).copied();
        let Some(index) = index.filter(|index| *index >= since) else { return Ok(None) };
        let row: Option<(u128, Applied)> = self.raft_row(&one_row_key(index))?;
        match row {
            Some((_, answer)) => Ok(Some(answer)),
            None => self.raft_row(&answer_key(id)),
        }
    }

    /// The proposals in the entries of `start..end` that are remembered.
    pub fn proposals(&self, start: u64, end: u64) -> io::Result<Vec<Remembered>> {
        let two = self.indexed(order_key, (start, end), decode::<u128>)?;
        let id = |bytes: &[u8]| Ok(decode::<(u128, Applied)>(bytes)?.0);
        let one = self.indexed(one_row_key, (start, end), id)?;
        let of = |form| move |(index, id)| Remembered { index, id, form };
        let two = two.into_iter().map(of(AnswerForm::TwoRows));
        Ok(two.chain(one.into_iter().map(of(AnswerForm::OneRow))).collect())
    }

    /// What `read` makes of the rows that `key` gives to the indices in `start..end`.
    fn indexed<T>(
        &self,
        key: fn(u64) -> Vec<u8>,
        (start, end): (u64, u64),
        read: impl Fn(&[u8]) -> io::Result<T>,
    ) -> io::Result<Vec<(u64, T)>> {
        let doing = storage("read the state");
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(raft_key(&key(end)));
        let start = raft_key(&key(start));
        let mode = IteratorMode::From(&start, Direction::Forward);
        let torn = || io::Error::new(io::ErrorKind::InvalidData, "the key of a proposal");
        let mut found = Vec::new();
        for item in self.db.iterator_opt(mode, options) {
            let (key, row) = item.map_err(&doing)?;
            let index = key.last_chunk::<8>().ok_or_else(torn)?;
            found.push((u64::from_be_bytes(*index), read(&row)?));
        }
        Ok(found)
    }

    fn raft_row<T: DeserializeOwned>(&self, key: &[u8]) -> io::Result<Option<T>> {
        let bytes = self.db.get(raft_key(key)).map_err(storage("read the state"))?;
        bytes.map(|bytes| decode(&bytes)).transpose()
    }

    /// Writes a batch in one piece.
    pub fn write(&self, batch: Batch) -> io::Result<()> {
        let Batch { inner, new, old } = batch;
        // There is one log already, and one column family, so that what a flush keeps is whole.
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        // Whoever knows what is in the batch puts it back.
        drop(self.take_kept());
        self.db.write_opt(inner, &options).map_err(storage("write the state"))?;
        let mut remembered = self.remembered.lock();
        // In this order: what is forgotten and remembered again at once is remembered.
        for id in old {
            remembered.remove(&id);
        }
        remembered.extend(new);
        Ok(())
    }

    /// What was read by the one who wrote last, if it was put back.
    pub fn take_kept(&self) -> Kept {
        std::mem::take(&mut *self.kept.lock())
    }

    /// For the one who writes next.
    pub fn put_kept(&self, kept: Kept) {
        *self.kept.lock() = kept;
    }

    /// A copy of the whole state at one moment, in a new folder, mostly of hard links. It is made
    /// of synced files alone.
    pub fn checkpoint(&self, path: &Path) -> io::Result<()> {
        let doing = storage("make a checkpoint");
        let checkpoint = rocksdb::checkpoint::Checkpoint::new(&self.db).map_err(&doing)?;
        checkpoint.create_checkpoint(path).map_err(&doing)
    }
}

/// Room for the rows of a batch of small commands, in bytes.
const BATCH_BYTES_USUAL: usize = 16 * 1024;

/// A batch of the state's rows under way.
pub struct Batch {
    inner: WriteBatch,
    /// Proposals that are remembered, and that are forgotten.
    new: Vec<(u128, u64)>,
    old: Vec<u128>,
}

impl Default for Batch {
    fn default() -> Self {
        let inner = WriteBatch::with_capacity_bytes(BATCH_BYTES_USUAL);
        Self { inner, new: Vec::new(), old: Vec::new() }
    }
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").field("rows", &self.inner.len()).finish()
    }
}

impl Batch {
    pub fn rows(&mut self, writes: &Writes) {
        for ((table, key), row) in writes {
            let key = row_key(*table, key);
            match row {
                Some(row) => self.inner.put(key, row),
                None => self.inner.delete(key),
            }
        }
    }

    pub fn row(&mut self, table: Table, key: &[u8], row: &[u8]) {
        self.inner.put(row_key(table, key), row);
    }

    pub fn applied(&mut self, id: &LogId) -> io::Result<()> {
        self.put(APPLIED, id)
    }

    pub fn membership(&mut self, membership: &Membership) -> io::Result<()> {
        self.put(MEMBERSHIP, membership)
    }

    pub fn remember(
        &mut self,
        index: u64,
        id: u128,
        answer: &Applied,
        form: AnswerForm,
    ) -> io::Result<()> {
        self.new.push((id, index));
        match form {
            AnswerForm::TwoRows => {
                self.put(&answer_key(id), answer)?;
                self.put(&order_key(index), &id)
            }
            AnswerForm::OneRow => self.put(&one_row_key(index), &(id, answer)),
        }
    }

    pub fn forget(&mut self, old: Remembered) {
        self.old.push(old.id);
        match old.form {
            AnswerForm::TwoRows => {
                self.inner.delete(raft_key(&answer_key(old.id)));
                self.inner.delete(raft_key(&order_key(old.index)));
            }
            AnswerForm::OneRow => self.inner.delete(raft_key(&one_row_key(old.index))),
        }
    }

    fn put<T: Serialize>(&mut self, key: &[u8], value: &T) -> io::Result<()> {
        self.inner.put(raft_key(key), encode(value)?);
        Ok(())
    }
}

fn answer_key(id: u128) -> Vec<u8> {
    [&b"p"[..], &id.to_be_bytes()].concat()
}

fn order_key(index: u64) -> Vec<u8> {
    [&b"o"[..], &index.to_be_bytes()].concat()
}

fn one_row_key(index: u64) -> Vec<u8> {
    [&b"r"[..], &index.to_be_bytes()].concat()
}

fn raft_key(key: &[u8]) -> Vec<u8> {
    [&[RAFT], key].concat()
}

fn row_key(table: Table, key: &[u8]) -> Vec<u8> {
    [&[table.number()], key].concat()
}

/// A value as it is stored or sent.
pub fn encode<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    encode_bare(value).map_err(|error| io::Error::other(format!("encode: {error}")))
}

pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    postcard::from_bytes(bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("decode: {error}")))
}

/// Reads the newest rows. Only the one that writes them may use it: it is no consistent view
/// beside a writer.
impl Read for Store {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        self.db.get(row_key(table, key)).map_err(fault)
    }

    fn scan(&self, table: Table, from: &[u8], prefix: &[u8], limit: usize) -> Result<Rows, Fault> {
        let (start, options) = range(table, from, prefix);
        let mode = IteratorMode::From(&start, Direction::Forward);
        collect(self.db.iterator_opt(mode, options), limit)
    }
}

/// Reads the rows of one moment.
pub struct Frozen<'a>(pub rocksdb::Snapshot<'a>);

impl Read for Frozen<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        self.0.get(row_key(table, key)).map_err(fault)
    }

    fn scan(&self, table: Table, from: &[u8], prefix: &[u8], limit: usize) -> Result<Rows, Fault> {
        let (start, options) = range(table, from, prefix);
        let mode = IteratorMode::From(&start, Direction::Forward);
        collect(self.0.iterator_opt(mode, options), limit)
    }
}

impl Frozen<'_> {
    /// Rows of all tables after `after`; see [`crate::View::page`].
    pub fn page(
        &self,
        after: Option<&(Table, Vec<u8>)>,
        bytes_max: usize,
    ) -> Result<Vec<StoredRow>, Fault> {
        let start = match after {
            // No key starts with another one's bytes and a zero byte without being after it.
            Some((table, key)) => [row_key(*table, key), vec![0]].concat(),
            None => vec![RAFT + 1],
        };
        let mut options = ReadOptions::default();
        // What is read once need not push out what is read often.
        options.fill_cache(false);
        let (mut rows, mut bytes) = (Vec::new(), 0);
        let mode = IteratorMode::From(&start, Direction::Forward);
        for item in self.0.iterator_opt(mode, options) {
            let (key, row) = item.map_err(fault)?;
            let unknown = || Fault::Contradiction("a row of no table");
            let (number, rest) = key.split_first().ok_or_else(unknown)?;
            let table = Table::from_number(*number).ok_or_else(unknown)?;
            bytes += key.len() + row.len();
            rows.push(StoredRow { table, key: rest.to_vec(), row: row.into_vec() });
            if bytes >= bytes_max {
                break;
            }
        }
        Ok(rows)
    }

    pub fn applied_index(&self) -> Result<u64, Fault> {
        let bytes = self.0.get(raft_key(APPLIED)).map_err(fault)?;
        let unreadable = |error: io::Error| Fault::Storage(error.to_string());
        let id: Option<LogId> =
            bytes.map(|bytes| decode(&bytes)).transpose().map_err(unreadable)?;
        Ok(id.map_or(0, |id| id.index))
    }
}

fn range(table: Table, from: &[u8], prefix: &[u8]) -> (Vec<u8>, ReadOptions) {
    let mut options = ReadOptions::default();
    let start = row_key(table, from.max(prefix));
    options.set_iterate_upper_bound(end_of(row_key(table, prefix)));
    (start, options)
}

/// The first key after all those that start with `prefix`. A table's number is below 255, so there
/// is one.
fn end_of(mut prefix: Vec<u8>) -> Vec<u8> {
    while prefix.last() == Some(&u8::MAX) {
        prefix.pop();
    }
    if let Some(last) = prefix.last_mut() {
        *last += 1;
    }
    prefix
}

type Item = Result<(Box<[u8]>, Box<[u8]>), rocksdb::Error>;

fn collect(items: impl Iterator<Item = Item>, limit: usize) -> Result<Rows, Fault> {
    items
        .take(limit)
        .map(|item| item.map(|(key, row)| (key[1..].to_vec(), row.into_vec())).map_err(fault))
        .collect()
}

fn fault(error: rocksdb::Error) -> Fault {
    Fault::Storage(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_after_all_of_it() {
        assert_eq!(end_of(vec![5]), [6]);
        assert_eq!(end_of(vec![5, 7, 255, 255]), [5, 8]);
    }
}
