//! A snapshot's way over the network: files, in bounded pieces, on a stream of their own.
//!
//! ```text
//! request  kind SnapshotFiles, length, postcard of `Offer`: each file's name, length, BLAKE3
//! answer   length, postcard of Result<Wanted, Failure>: the files that the receiver has not
//! request  the bytes of each wanted file, one after another, in the order of the offer
//! answer   length, postcard of Result<SnapshotResponse, Failure>
//! ```
//! The receiver writes into a folder below `incoming`, compares each file with its hash, syncs it,
//! in the end syncs the folder and looks whether the database holds what was offered, and only then
//! hands it to openraft.
//!
//! A transfer that breaks off leaves the files that had come in whole, until the next offer: what
//! that names by the same hash is not sent again, though it be of another snapshot, since most
//! files of two snapshots are the same. A restart of the receiver leaves nothing.
//!
//! Invariants: one snapshot is received at a time; no piece is larger than [`PIECE_BYTES`]; a
//! transfer in which nothing moves for [`STALL_TIMEOUT`] ends; no file counts as received before it
//! is compared and synced.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use openraft::raft::SnapshotResponse;
use openraft::storage::Snapshot;
use quinn::{Connection, RecvStream, SendStream};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tracing::{debug, info};

use crate::core::Core;
use crate::folder::{Scratch, sync_folder};
use crate::log::blocking;
use crate::metrics::Metrics;
use crate::proposal::{SnapshotMeta, TypeConfig, Vote};
use crate::snapshot::{Checkpoint, StateSnapshot, inspect};
use crate::space::{DISK_FULL, Space};
use crate::store::{decode, encode};
use crate::wire::{Failure, Kind, receive_body, receive_length, send_frame, send_request};

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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedFile {
    pub name: String,
    pub length: u64,
    pub blake3: [u8; 32],
}

/// For each offered file, in order, whether its bytes are wanted.
type Wanted = Vec<bool>;

/// What comes back in the end.
pub type Installed = Result<SnapshotResponse<TypeConfig>, Failure>;

/// What has come in of snapshots that did not come in whole.
#[derive(Debug, Default)]
pub struct Partial {
    folder: Option<Arc<Scratch>>,
    /// Files in the folder that are whole, by name.
    whole: BTreeMap<String, OfferedFile>,
}

/// Sends a snapshot and waits until it is installed.
pub async fn send(
    connection: &Connection,
    vote: Vote,
    snapshot: &StateSnapshot,
) -> io::Result<Installed> {
    let checkpoint = snapshot.snapshot.clone();
    let files = blocking(move || checkpoint.files()).await?;
    let folder = snapshot.snapshot.folder.clone();
    let offer = Offer { vote, meta: snapshot.meta.clone(), files: files.to_vec() };
    let (mut stream, mut answers) = connection.open_bi().await?;
    // Bulk goes behind everything else on the connection.
    stream.set_priority(-1).map_err(io::Error::other)?;
    send_request(&mut stream, Kind::SnapshotFiles, encode(&offer)?).await?;
    let wanted: Wanted = match receive_answer(&mut answers, STALL_TIMEOUT).await? {
        Ok(wanted) => wanted,
        Err(failure) => return Ok(Err(failure)),
    };
    let mut piece = vec![0; PIECE_BYTES];
    for (file, _) in offer.files.iter().zip(wanted).filter(|(_, wanted)| *wanted) {
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
    receive_answer(&mut answers, INSTALL_TIMEOUT).await
}

async fn receive_answer<T: DeserializeOwned>(
    answers: &mut RecvStream,
    limit: Duration,
) -> io::Result<T> {
    let received = async {
        let length = receive_length(answers).await?;
        receive_body(answers, length).await
    };
    match timeout(limit, received).await {
        Ok(body) => decode(&body?),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn stalled<T, E: Into<io::Error>>(
    result: Result<Result<T, E>, tokio::time::error::Elapsed>,
) -> io::Result<T> {
    match result {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the transfer stands still")),
    }
}

/// The files of a checkpoint with their hashes.
pub fn list(folder: &Path) -> io::Result<Vec<OfferedFile>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // What looking into it left behind belongs to no state.
        if entry.file_type()?.is_file() && name != "LOCK" && !name.starts_with("LOG") {
            let mut hasher = blake3::Hasher::new();
            let length = io::copy(&mut File::open(entry.path())?, &mut hasher)?;
            files.push(OfferedFile { name, length, blake3: *hasher.finalize().as_bytes() });
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// Receives what was offered and has it installed.
pub async fn receive(
    core: &Core,
    space: &Space,
    metrics: &Metrics,
    offer: Offer,
    answers: &mut SendStream,
    stream: &mut RecvStream,
) -> Installed {
    let Ok(mut partial) = core.receiving.try_lock() else {
        return Err(Failure::Unavailable("another snapshot is coming in".into()));
    };
    check_names(&offer)?;
    let storage = |error: io::Error| Failure::Storage(error.to_string());
    let folder = match &partial.folder {
        Some(folder) => folder.clone(),
        None => {
            let folder = Arc::new(Scratch::new(core.home.new_incoming()));
            fs::create_dir(folder.path()).map_err(storage)?;
            partial.folder = Some(folder.clone());
            folder
        }
    };
    keep_offered(&folder, &mut partial.whole, &offer).map_err(storage)?;
    let wanted: Wanted =
        offer.files.iter().map(|file| !partial.whole.contains_key(&file.name)).collect();
    check_space(&offer, &wanted, space)?;
    let kept = partial.whole.len();
    if kept > 0 {
        metrics.snapshot_files_resumed.inc_by(kept as u64);
        info!(files = offer.files.len(), kept, "a snapshot that broke off goes on");
    }
    let answer: Result<&Wanted, Failure> = Ok(&wanted);
    let answer = encode(&answer).map_err(storage)?;
    send_frame(answers, answer).await.map_err(storage)?;
    for (file, _) in offer.files.iter().zip(&wanted).filter(|(_, wanted)| **wanted) {
        store_file(&folder, file, stream).await.map_err(storage)?;
        partial.whole.insert(file.name.clone(), file.clone());
    }
    // From here on it is openraft's, or it goes.
    *partial = Partial::default();
    let looked = folder.clone();
    let meta = blocking(move || {
        sync_folder(looked.path())?;
        inspect(looked.path())
    });
    let meta = meta.await.map_err(storage)?;
    if meta != offer.meta {
        return Err(Failure::Storage("the snapshot holds something else than was offered".into()));
    }
    let snapshot = Snapshot { meta, snapshot: Checkpoint::new(folder) };
    let installed = core.engine.install_full_snapshot(offer.vote, snapshot).await;
    installed.map_err(|error| Failure::Unavailable(error.to_string()))
}

/// Removes from the folder what the offer does not name, or names otherwise.
fn keep_offered(
    folder: &Scratch,
    whole: &mut BTreeMap<String, OfferedFile>,
    offer: &Offer,
) -> io::Result<()> {
    let offered: BTreeMap<&str, &OfferedFile> =
        offer.files.iter().map(|file| (file.name.as_str(), file)).collect();
    whole.retain(|name, file| offered.get(name.as_str()) == Some(&&*file));
    for entry in fs::read_dir(folder.path())? {
        let entry = entry?;
        if !whole.contains_key(entry.file_name().to_string_lossy().as_ref()) {
            debug!(path = %entry.path().display(), "a file of another snapshot, or half of one");
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

pub fn check_names(offer: &Offer) -> Result<(), Failure> {
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
    Ok(())
}

fn check_space(offer: &Offer, wanted: &Wanted, space: &Space) -> Result<(), Failure> {
    let to_come = offer.files.iter().zip(wanted).filter(|(_, wanted)| **wanted);
    let total = to_come.map(|(file, _)| file.length);
    let total = total.into_iter().try_fold(0u64, u64::checked_add);
    match total {
        Some(total) if space.fits(total) => Ok(()),
        _ => Err(Failure::Storage(DISK_FULL.into())),
    }
}

async fn store_file(
    folder: &Scratch,
    file: &OfferedFile,
    stream: &mut RecvStream,
) -> io::Result<()> {
    // A name that comes twice is no snapshot of ours.
    let mut target = tokio::fs::File::create_new(folder.path().join(&file.name)).await?;
    let (mut left, mut hasher) = (file.length, blake3::Hasher::new());
    while left > 0 {
        let want = PIECE_BYTES.min(usize::try_from(left).unwrap_or(usize::MAX));
        let chunk = timeout(STALL_TIMEOUT, stream.read_chunk(want, true)).await;
        let Some(chunk) = stalled(chunk)? else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        hasher.update(&chunk.bytes);
        target.write_all(&chunk.bytes).await?;
        left -= chunk.bytes.len() as u64;
    }
    if *hasher.finalize().as_bytes() != file.blake3 {
        let text = format!("{} of the snapshot was damaged on its way", file.name);
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    // A write may still be under way, and only this says that it has failed.
    target.flush().await?;
    target.sync_all().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(files: &[(&str, &[u8])]) -> Offer {
        let files = files.iter().map(|(name, bytes)| OfferedFile {
            name: (*name).to_owned(),
            length: bytes.len() as u64,
            blake3: *blake3::hash(bytes).as_bytes(),
        });
        Offer { vote: Vote::new(1, 1), meta: SnapshotMeta::default(), files: files.collect() }
    }

    #[test]
    fn of_a_transfer_that_broke_off_only_what_is_still_wanted_and_whole_is_kept() {
        let root = tempfile::tempdir().unwrap();
        let folder = Scratch::new(root.path().join("1"));
        fs::create_dir(folder.path()).unwrap();
        let mut whole = BTreeMap::new();
        for file in &offer(&[("a.sst", b"same"), ("b.sst", b"old"), ("CURRENT", b"old")]).files {
            whole.insert(file.name.clone(), file.clone());
        }
        for name in ["a.sst", "b.sst", "CURRENT", "half.sst", "LOG"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        let next = offer(&[("CURRENT", b"new"), ("a.sst", b"same"), ("c.sst", b"new")]);
        keep_offered(&folder, &mut whole, &next).unwrap();
        assert_eq!(whole.keys().collect::<Vec<_>>(), ["a.sst"]);
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1);
    }

    #[test]
    fn a_name_that_leaves_the_folder_is_refused() {
        for name in ["", "..", "../x", "a/b", ".hidden", "a\0b"] {
            assert!(check_names(&offer(&[(name, b"")])).is_err(), "{name:?}");
        }
        assert!(check_names(&offer(&[("000012.sst", b""), ("MANIFEST-000001", b"")])).is_ok());
    }
}
