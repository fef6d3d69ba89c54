//! Makes a backup of the metadata while everything goes on (the file: `shoal_formats::backup`).
//!
//! Invariants: all of it is of one moment, a view of the rows that stands still; memory holds a few
//! pieces, whatever the metadata's size; one backup is made at a time, and one that nobody takes
//! for [`STALL_TIMEOUT`] ends, since RocksDB keeps what a view shows.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shoal_content::ClusterId;
use shoal_formats::backup::{BackupError, Head, Row, Totals, Writer};
use shoal_metadata::{Fault, ROW_VERSION, Table};
use shoal_raft::View;
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tracing::{info, warn};

use crate::clock;
use crate::http::problem::chain;
use crate::needed::{self, Place};

/// Rows of one look, in bytes.
const PAGE_BYTES: usize = 1024 * 1024;
/// Pieces that are ready before they are asked for.
const PIECES_AHEAD: usize = 4;
/// How long a piece may wait to be taken.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a backup was not made, or broke off.
#[derive(Debug, Error)]
pub enum Error {
    #[error("another backup is being made at this node")]
    Busy,
    #[error("the metadata cannot be read")]
    Rows(#[from] Fault),
    #[error("the backup cannot be written")]
    Format(#[from] BackupError),
    #[error("whoever asked for the backup has gone, or stands still")]
    Abandoned,
}

/// What comes out, piece by piece. Where it ends with an error, or without the file's last frame,
/// there is no backup.
pub type Pieces = mpsc::Receiver<Result<Bytes, Error>>;

/// Makes backups. Clones share the place in line.
#[derive(Debug, Clone)]
pub struct BackupMaker {
    place: Arc<Semaphore>,
}

impl Default for BackupMaker {
    fn default() -> Self {
        Self { place: Arc::new(Semaphore::new(1)) }
    }
}

impl BackupMaker {
    /// Begins a backup of what `view` shows.
    ///
    /// # Errors
    /// [`Error::Busy`], or that the rows cannot be read.
    pub fn begin(&self, view: View, cluster: ClusterId) -> Result<(Head, Pieces), Error> {
        let place = self.place.clone().try_acquire_owned().map_err(|_| Error::Busy)?;
        let head = Head {
            cluster,
            made_at: clock::now(),
            index: view.applied_index()?,
            level: view.query().level()?,
            row_version: ROW_VERSION,
            tables: Table::ALL.len() as u8,
            program: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
        let (runtime, about) = (Handle::current(), head.clone());
        tokio::task::spawn_blocking(move || {
            let _place = place;
            match write(&view, &about, &Sink { runtime: runtime.clone(), sender: sender.clone() }) {
                Ok(Totals { rows, row_bytes, objects }) => {
                    info!(index = about.index, rows, row_bytes, objects, "a backup was made");
                }
                Err(error) => {
                    warn!(error = chain(&error), "a backup broke off");
                    // Nobody may be there to hear it.
                    let _ = runtime.block_on(sender.send_timeout(Err(error), STALL_TIMEOUT));
                }
            }
        });
        Ok((head, pieces))
    }
}

struct Sink {
    runtime: Handle,
    sender: mpsc::Sender<Result<Bytes, Error>>,
}

impl Sink {
    fn send(&self, bytes: Vec<u8>) -> Result<(), Error> {
        if bytes.is_empty() {
            return Ok(());
        }
        let sent = self.sender.send_timeout(Ok(bytes.into()), STALL_TIMEOUT);
        self.runtime.block_on(sent).map_err(|_| Error::Abandoned)
    }
}

fn write(view: &View, head: &Head, sink: &Sink) -> Result<Totals, Error> {
    let mut writer = Writer::new(head)?;
    let mut after = None;
    loop {
        let page = view.page(after, PAGE_BYTES)?;
        let Some(last) = page.last() else { break };
        after = Some((last.table, last.key.clone()));
        for row in &page {
            writer.row(Row { table: row.table.number(), key: &row.key, row: &row.row })?;
        }
        sink.send(writer.take())?;
    }
    let mut place = Place::START;
    while place != Place::End {
        let (objects, next) = needed::page(view.query(), place)?;
        for object in &objects {
            writer.object(object)?;
        }
        sink.send(writer.take())?;
        place = next;
    }
    let (last, totals) = writer.finish()?;
    sink.send(last)?;
    Ok(totals)
}
