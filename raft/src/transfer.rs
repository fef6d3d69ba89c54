//! A snapshot's way over the network: files, in bounded pieces, on a stream of their own.
//!
//! ```text
//! request  kind Snapshot, length, postcard of `Offer`
//!          the bytes of each file, one after another, in the order of the offer
//! answer   postcard of Result<SnapshotResponse, Failure>
//! ```
//! The receiver writes into a new folder below `incoming`, syncs each file and the folder, opens
//! the database once to see that it holds what was offered, and only then hands it to openraft.
//! An interrupted transfer leaves nothing: its folder goes with it, or at the next start.
//!
//! Invariants: one snapshot is received at a time; no piece is larger than [`PIECE_BYTES`]; a
//! transfer in which nothing moves for [`STALL_TIMEOUT`] ends.

use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use openraft::raft::SnapshotResponse;
use openraft::storage::Snapshot;
use quinn::{Connection, RecvStream};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::core::Core;
use crate::folder::{Scratch, sync_folder};
use crate::log::blocking;
use crate::proposal::{SnapshotMeta, TypeConfig, Vote};
use crate::snapshot::{Checkpoint, StateSnapshot, inspect};
use crate::space::{DISK_FULL, Space};
use crate::store::{decode, encode};
use crate::wire::{Failure, Kind, receive_body, receive_length, send_request};

/// How much is read and sent at once.
const PIECE_BYTES: usize = 256 * 1024;

/// How long a transfer may stand still.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the receiver may take to install what it has got.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(120);

/// The most files of one snapshot.
const FILES_MAX: usize = 100_000;

const FILE_NAME_BYTES_MAX: usize = 128;

/// What is about to be sent.
#[derive(Debug, Serialize, Deserialize)]
pub struct Offer {
    pub vote: Vote,
    pub meta: SnapshotMeta,
    pub files: Vec<OfferedFile>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct OfferedFile {
    pub name: String,
    pub length: u64,
}

/// What comes back.
pub type Installed = Result<SnapshotResponse<TypeConfig>, Failure>;

/// Sends a snapshot and waits until it is installed.
pub async fn send(
    connection: &Connection,
    vote: Vote,
    snapshot: &StateSnapshot,
) -> io::Result<Installed> {
    let folder = snapshot.snapshot.folder.clone();
    let listed = folder.clone();
    let files = blocking(move || list(&listed)).await?;
    let offer = Offer { vote, meta: snapshot.meta.clone(), files };
    let (mut stream, mut answer) = connection.open_bi().await?;
    // Bulk goes behind everything else on the connection.
    stream.set_priority(-1).map_err(io::Error::other)?;
    send_request(&mut stream, Kind::Snapshot, &encode(&offer)?).await?;
    let mut piece = vec![0; PIECE_BYTES];
    for file in &offer.files {
        let mut source = tokio::fs::File::open(folder.path().join(&file.name)).await?;
        let mut left = file.length;
        while left > 0 {
            let want = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let got = source.read(&mut piece[..want]).await?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            stalled(timeout(STALL_TIMEOUT, stream.write_all(&piece[..got])).await)?;
            left -= got as u64;
        }
    }
    stream.finish().map_err(io::Error::other)?;
    let received = async {
        let length = receive_length(&mut answer).await?;
        receive_body(&mut answer, length).await
    };
    let body = match timeout(INSTALL_TIMEOUT, received).await {
        Ok(body) => body?,
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
    };
    decode(&body)
}

fn stalled<T, E: Into<io::Error>>(
    result: Result<Result<T, E>, tokio::time::error::Elapsed>,
) -> io::Result<T> {
    match result {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the transfer stands still")),
    }
}

fn list(folder: &Scratch) -> io::Result<Vec<OfferedFile>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder.path())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // What opening it once left behind belongs to no state.
        if entry.file_type()?.is_file() && name != "LOCK" && !name.starts_with("LOG") {
            files.push(OfferedFile { name, length: entry.metadata()?.len() });
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// Receives what was offered and has it installed.
pub async fn receive(
    core: &Core,
    space: &Space,
    offer: Offer,
    stream: &mut RecvStream,
) -> Result<SnapshotResponse<TypeConfig>, Failure> {
    let Ok(_only) = core.receiving.try_lock() else {
        return Err(Failure::Unavailable("another snapshot is coming in".into()));
    };
    check(&offer, space)?;
    let folder = Arc::new(Scratch::new(core.home.new_incoming()));
    let storage = |error: io::Error| Failure::Storage(error.to_string());
    store_files(&folder, &offer, stream).await.map_err(storage)?;
    let looked = folder.clone();
    let meta = blocking(move || inspect(looked.path())).await.map_err(storage)?;
    if meta != offer.meta {
        return Err(Failure::Storage("the snapshot holds something else than was offered".into()));
    }
    let snapshot = Snapshot { meta, snapshot: Checkpoint { folder } };
    let installed = core.engine.install_full_snapshot(offer.vote, snapshot).await;
    installed.map_err(|error| Failure::Unavailable(error.to_string()))
}

fn check(offer: &Offer, space: &Space) -> Result<(), Failure> {
    let odd = |file: &OfferedFile| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        file.name.is_empty()
            || file.name.len() > FILE_NAME_BYTES_MAX
            || file.name.starts_with('.')
            || !file.name.bytes().all(plain)
    };
    if offer.files.len() > FILES_MAX || offer.files.iter().any(odd) {
        return Err(Failure::Storage("the snapshot's list of files is refused".into()));
    }
    let total = offer.files.iter().try_fold(0u64, |sum, file| sum.checked_add(file.length));
    match total {
        Some(total) if space.fits(total) => Ok(()),
        _ => Err(Failure::Storage(DISK_FULL.into())),
    }
}

async fn store_files(folder: &Scratch, offer: &Offer, stream: &mut RecvStream) -> io::Result<()> {
    tokio::fs::create_dir(folder.path()).await?;
    for file in &offer.files {
        // A name that comes twice is no snapshot of ours.
        let mut target = tokio::fs::File::create_new(folder.path().join(&file.name)).await?;
        let mut left = file.length;
        while left > 0 {
            let want = PIECE_BYTES.min(usize::try_from(left).unwrap_or(usize::MAX));
            let chunk = timeout(STALL_TIMEOUT, stream.read_chunk(want, true)).await;
            let Some(chunk) = stalled(chunk)? else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };
            target.write_all(&chunk.bytes).await?;
            left -= chunk.bytes.len() as u64;
        }
        target.sync_all().await?;
    }
    let path = folder.path().to_owned();
    blocking(move || sync_folder(&path)).await
}
