//! Makes the databases of a new group of one member, out of rows that are given.
//!
//! For a restore from a backup: the rows are the old cluster's, the group is a new one, with a log
//! of its own that begins behind one entry that nobody has: index and term are given, the
//! membership is this node alone. To openraft it looks like a member that installed a snapshot.
//!
//! Crash order: everything is written into a folder that is not there before, flushed and synced,
//! and only a finished one has a name that a member starts with: whoever calls renames it. A folder
//! that was not finished holds no vote and no membership.
//!
//! Non-goals: which rows come along (`shoal_metadata::carry`), what they lie in (`shoal-formats`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use openraft::BasicNode;
use openraft::vote::RaftLeaderId;
use rocksdb::{DB, WriteBatch, WriteOptions};
use shoal_content::NodeId;
use shoal_metadata::Table;

use crate::error::Error;
use crate::folder::{Home, sync_folder};
use crate::log;
use crate::proposal::{LogId, Membership, Vote};
use crate::store::{Batch, Store, options};

/// Rows are written in pieces of about so many bytes.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// The first term of the group is the one after.
const TERM: u64 = 1;

type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;

/// Databases that are being made. All calls block.
#[derive(Debug)]
pub struct Restoring {
    directory: PathBuf,
    home: Home,
    store: Store,
    batch: Batch,
    bytes: usize,
    rows: u64,
}

impl Restoring {
    /// Begins in `directory`, which must not be there.
    ///
    /// # Errors
    /// [`Error::Exists`], or what the file system or RocksDB says.
    pub fn begin(directory: &Path) -> Result<Self, Error> {
        if directory.exists() {
            return Err(Error::Exists { path: directory.to_owned() });
        }
        let home = Home::open(directory)?;
        let path = home.state().map_err(|source| failed("read", directory, source))?;
        let store = Store::open(&path)?;
        let directory = directory.to_owned();
        Ok(Self { directory, home, store, batch: Batch::default(), bytes: 0, rows: 0 })
    }

    /// Adds a row; one that is given twice is the later one.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn put(&mut self, table: Table, key: &[u8], row: &[u8]) -> Result<(), Error> {
        self.batch.row(table, key, row);
        self.bytes += key.len() + row.len();
        self.rows += 1;
        if self.bytes >= BATCH_BYTES {
            self.write()?;
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), Error> {
        self.bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        self.store.write(batch).map_err(|source| failed("write", &self.directory, source))
    }

    /// Makes it the state at `index` of a group in which `node`, which others reach at
    /// `raft_address`, is alone. Answers how many rows were put.
    ///
    /// # Errors
    /// Where it cannot be written and synced.
    pub fn finish(mut self, node: NodeId, raft_address: &str, index: u64) -> Result<u64, Error> {
        let written = self.write_group(node.number(), raft_address, index);
        written.map_err(|source| failed("write", &self.directory, source))?;
        Ok(self.rows)
    }

    fn write_group(&mut self, node: u64, raft_address: &str, index: u64) -> io::Result<()> {
        let last = LogId::new(LeaderId::new(TERM, node).to_committed(), index);
        let nodes = BTreeMap::from([(node, BasicNode::new(raft_address))]);
        let members = openraft::Membership::new(vec![BTreeSet::from([node])], nodes);
        let members = members.map_err(|error| io::Error::other(error.to_string()))?;
        self.batch.applied(&last)?;
        self.batch.membership(&Membership::new(Some(last), members))?;
        self.store.write(std::mem::take(&mut self.batch))?;
        self.store.flush()?;
        sync_folder(self.store.path())?;

        let mut batch = WriteBatch::default();
        log::put_start(&mut batch, &last, &Vote::new_committed(TERM, node))?;
        let path = self.home.log();
        let failed = |error: rocksdb::Error| io::Error::other(error.to_string());
        let db = DB::open(&options(), &path).map_err(failed)?;
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        db.write_opt(batch, &synced).map_err(failed)?;
        db.flush().map_err(failed)?;
        drop(db);
        sync_folder(&path)?;
        File::open(self.home.directory())?.sync_all()
    }
}

fn failed(doing: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Files { doing, path: path.to_owned(), source }
}
