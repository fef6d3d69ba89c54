//! Sends the parts that are missing, several at once, and waits until the disk has been read. What is
//! read of a disk before the rest goes first.
//!
//! Invariant: at most `parallel` parts are in memory. Which parts are safe is what the node says.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use reqwest::Method;
use reqwest::header::HeaderValue;
use sha2::{Digest, Sha256};
use shoal_api::UploadStatus;
use shoal_formats::read_first;
use tokio::time::Instant;

use crate::client::{Body, Client, Request};
use crate::copy::RemoteDisk;
use crate::error::Error;
use crate::resume::{Session, Source};
use crate::screen::{Progress, Screen};

pub const CHECKSUM_HEADER: &str = "x-shoal-checksum";
/// How often a node is asked whether it has read the disk: at first, and later.
const POLL_FIRST: Duration = Duration::from_millis(100);
const POLL_MAX: Duration = Duration::from_secs(2);
/// A node that shows no progress with a disk for so long is waited for no more.
const PROCESSING_STALL_MAX: Duration = Duration::from_secs(900);
/// Nodes read no shorter files while they come in, in bytes.
pub const READ_AHEAD_BYTES_MIN: u64 = 32 << 20;
const BAR_INTERVAL: Duration = Duration::from_millis(100);

/// Where the bytes of an upload come from.
pub enum Content<'a> {
    File(Arc<File>),
    Download(RemoteDisk<'a>),
}

impl Content<'_> {
    async fn read(&self, start: u64, length: u64, path: &Path) -> Result<Vec<u8>, Error> {
        let file = match self {
            Self::Download(disk) => return disk.read(start, length).await,
            Self::File(file) => file.clone(),
        };
        let read = tokio::task::spawn_blocking(move || {
            let mut part = vec![0; usize::try_from(length).map_err(std::io::Error::other)?];
            file.read_exact_at(&mut part, start)?;
            Ok(part)
        });
        let read = read.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        read.map_err(Error::file("reading", path))
    }

    /// Refuses a file that somebody wrote to while it was sent: its parts are of two disks. What
    /// another cluster gives is held by its entity tag.
    fn check_unwritten(&self, source: &Source) -> Result<(), Error> {
        let Self::File(file) = self else { return Ok(()) };
        let now = file.metadata().map_err(Error::file("looking at", &source.path))?;
        if source.is_unwritten(&now) {
            return Ok(());
        }
        let reason = format!(
            "{} was written to meanwhile; upload it when nobody does, not under a running machine",
            source.path.display()
        );
        Err(Error::Failed { what: "the upload".into(), reason })
    }
}

/// What one upload needs at every step.
pub struct Sender<'a> {
    pub client: &'a Client,
    pub content: &'a Content<'a>,
    pub session: Session,
    pub screen: Screen,
}

/// The parts that the node does not have, in order.
pub fn missing(status: &UploadStatus) -> Vec<u32> {
    let received: BTreeSet<_> = status.received_chunks.iter().collect();
    (0..status.total_chunks).filter(|index| !received.contains(index)).collect()
}

/// The parts that are `missing`, in order, but those first that are read first.
pub fn in_turn(missing: Vec<u32>, first: &[u64]) -> Vec<u32> {
    let wanted: BTreeSet<u32> = missing.iter().copied().collect();
    let first = first.iter().filter_map(|&part| u32::try_from(part).ok());
    let (mut turn, mut begun) = (Vec::with_capacity(missing.len()), BTreeSet::new());
    for part in first.filter(|part| wanted.contains(part)).chain(missing) {
        if begun.insert(part) {
            turn.push(part);
        }
    }
    turn
}

/// Where part `index` begins and how long it is.
pub fn part_range(index: u32, status: &UploadStatus) -> (u64, u64) {
    let start = u64::from(index) * status.chunk_size;
    (start, status.chunk_size.min(status.total_size_bytes.saturating_sub(start)))
}

/// How much of the file is safe.
pub fn received_bytes(status: &UploadStatus) -> u64 {
    let gaps = missing(status).into_iter().map(|index| part_range(index, status).1);
    status.total_size_bytes.saturating_sub(gaps.sum())
}

impl Sender<'_> {
    /// Gives how many bytes went over the network now.
    pub async fn send_missing(&self, status: &UploadStatus, parallel: usize) -> Result<u64, Error> {
        let there = received_bytes(status);
        let sent = Arc::new(AtomicU64::new(0));
        let mut progress = self.screen.progress("uploading", status.total_size_bytes);
        progress.begin(there, status.total_size_bytes);
        let parts = futures::stream::iter(self.turns(status).await)
            .map(|index| self.send_part(index, status, &sent))
            .buffer_unordered(parallel)
            .try_collect::<Vec<()>>();
        let sent_now = sent.clone();
        drawn(&mut progress, move || there + sent_now.load(Ordering::Relaxed), parts).await?;
        Ok(sent.load(Ordering::Relaxed))
    }

    /// The parts to send: a node reads a large disk while it comes in, as soon as what it looks at first
    /// is there.
    async fn turns(&self, status: &UploadStatus) -> Vec<u32> {
        let missing = missing(status);
        let Content::File(file) = self.content else { return missing };
        if status.total_size_bytes < READ_AHEAD_BYTES_MIN {
            return missing;
        }
        let (file, part_bytes) = (Arc::clone(file), status.chunk_size);
        let first = tokio::task::spawn_blocking(move || read_first(file, None, part_bytes)).await;
        match first {
            Ok(Ok(first)) => in_turn(missing, &first),
            // What is wrong with the file the node says.
            _ => missing,
        }
    }

    /// Refuses a file that is another by now.
    pub fn check_unwritten(&self) -> Result<(), Error> {
        self.content.check_unwritten(&self.session.source)
    }

    async fn send_part(
        &self,
        index: u32,
        status: &UploadStatus,
        sent: &Arc<AtomicU64>,
    ) -> Result<(), Error> {
        let (start, length) = part_range(index, status);
        let part = self.content.read(start, length, &self.session.source.path).await?;
        let hashed = tokio::task::spawn_blocking(move || {
            (format!("sha256:{}", hex::encode(Sha256::digest(&part))), Bytes::from(part))
        });
        let hashed = hashed.await.map_err(std::io::Error::other);
        let (checksum, part) = hashed.map_err(Error::file("hashing", &self.session.source.path))?;
        let path = format!("{}/chunks/{index}", self.session.path());
        let mut request = Request::new(Method::PUT, path, Body::Part(&part, sent));
        let value = HeaderValue::from_str(&checksum).map_err(|e| Error::Answer(e.to_string()))?;
        request.headers.insert(CHECKSUM_HEADER, value);
        self.client.send(&request).await.map(drop)
    }

    /// Asks for the version, and waits until the disk has been read; gives how that ended, `active`
    /// or `failed`.
    ///
    /// # Errors
    /// Where it is not known how it ends: the cluster goes on.
    pub async fn complete(&self) -> Result<UploadStatus, Error> {
        let path = self.session.path();
        let none = serde_json::json!({});
        let mut status: UploadStatus =
            match self.client.call(Method::POST, format!("{path}/complete"), &none).await {
                // The session says what became of it, also where only that answer was lost.
                Err(refused @ Error::Refused { .. }) => {
                    let status: Result<UploadStatus, Error> = self.client.get(path.as_str()).await;
                    status.ok().filter(|status| status.status == "failed").ok_or(refused)?
                }
                status => status?,
            };
        let mut progress = self.screen.progress("reading", status.total_size_bytes);
        let mut pause = POLL_FIRST;
        let (mut processed, mut moved) = (None, Instant::now());
        while !matches!(status.status.as_str(), "active" | "failed") {
            if moved.elapsed() > PROCESSING_STALL_MAX {
                let reason = "the node shows no progress; look at its log".into();
                return Err(Error::Failed { what: "reading the disk".into(), reason });
            }
            if status.processed_bytes != processed {
                (processed, moved) = (status.processed_bytes, Instant::now());
            }
            progress.set(processed.unwrap_or(0));
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(POLL_MAX);
            status = self.client.get(path.as_str()).await?;
        }
        Ok(status)
    }
}

/// Runs `work` while the progress follows `position`.
async fn drawn<T>(
    progress: &mut Progress,
    position: impl Fn() -> u64,
    work: impl Future<Output = T>,
) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        match tokio::time::timeout(BAR_INTERVAL, work.as_mut()).await {
            Ok(result) => return result,
            Err(_) => progress.set(position()),
        }
    }
}
