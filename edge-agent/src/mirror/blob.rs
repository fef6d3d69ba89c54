//! Blobs: streamed in order while the swarm still fetches them.
//!
//! The stream asks the swarm for a window of chunks ahead of where it is ([`WINDOW_CHUNKS`]), waits
//! for the next one to be verified and in the cache, and sends it. A client that goes away ends
//! the stream at once; the download lingers a little for its next try (see `fetch::download`).
//!
//! Invariant: no length is announced before the recipe and the room for it were found. What the cache
//! has no room for, a node streams (`passed`).

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::response::Builder;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use shoal_api::BlobGrant;
use shoal_content::{Digest, Recipe, RepositoryName};
use shoal_p2p::ChunkStore;
use thiserror::Error as ThisError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, warn};

use super::error::Error;
use super::login::Caller;
use super::range::{self, Part};
use super::{Mirror, passed};
use crate::cache::{Entry, Lease};
use crate::fetch::download::{self, Download, Wanted};
use crate::nodes::chain;
use crate::transfers::{Purpose, Tracked};

/// Chunks asked for ahead of the reader: 16 MiB.
const WINDOW_CHUNKS: u32 = 64;
/// The window is asked for anew each time the reader moved this far.
const WINDOW_STEP_CHUNKS: u32 = 16;
/// Chunks ready for the client that it has not taken yet.
const READY_CHUNKS_MAX: usize = 4;
/// A chunk found corrupt while it is served is fetched again so often.
const REFETCHES_MAX: u32 = 2;
/// A client that takes nothing for so long is cut off.
const CLIENT_STALL_MAX: Duration = Duration::from_secs(120);

/// Why a blob could not be served, or not to its end.
#[derive(Debug, ThisError)]
enum Broken {
    #[error(transparent)]
    Download(#[from] Arc<download::Error>),
    #[error(transparent)]
    Cache(#[from] crate::cache::Error),
    #[error("the cache lost the blob while it was served")]
    Lost,
    #[error("the client went away or takes nothing")]
    Client,
}

impl Broken {
    /// Whether the cache is too small for the blob, be it for now or for good.
    fn lacks_room(&self) -> bool {
        match self {
            Self::Download(error) => error.lacks_room(),
            Self::Cache(error) => error.lacks_room(),
            Self::Lost | Self::Client => false,
        }
    }
}

/// Answers GET and HEAD of `/v2/NAME/blobs/DIGEST`.
pub async fn serve(
    mirror: Arc<Mirror>,
    caller: &Caller,
    name: RepositoryName,
    digest: Digest,
    head: bool,
    headers: &HeaderMap,
) -> Result<Response, Error> {
    let grant = match grant(&mirror, &name, &digest).await {
        // A node may get it from where the cluster pulls it through.
        Err(Error::UnknownBlob) => {
            return passed::serve(&mirror, caller, &name, &digest, head, headers).await;
        }
        grant => grant?,
    };
    let length = grant.size_bytes;
    let asked = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let (status, part) = match range::parse(asked, length) {
        Part::Whole => (StatusCode::OK, 0..length),
        Part::Bytes(part) => (StatusCode::PARTIAL_CONTENT, part),
        Part::Unsatisfiable => return Err(Error::Range { length }),
    };
    // Nothing is promised before it is known where it comes from.
    let source = if head || part.is_empty() {
        None
    } else {
        match Source::find(&mirror, &grant).await {
            Ok(source) => Some(source),
            Err(broken) if broken.lacks_room() => {
                let why = chain(&broken);
                warn!(%name, %digest, error = why, "a blob is passed on and not kept");
                let passed = passed::serve(&mirror, caller, &name, &digest, head, headers).await;
                return passed.map_err(|error| match error {
                    Error::NoSource(nodes) => Error::NoSource(format!("{why}; {nodes}")),
                    error => error,
                });
            }
            Err(broken) => return Err(Error::NoSource(chain(&broken))),
        }
    };
    let response = promise(status, &part, length, &digest);
    let body = match source {
        Some(source) => stream(mirror, format!("{name}@{digest}"), grant, part, source),
        None => Body::empty(),
    };
    response.body(body).map_err(|_| Error::UnknownBlob)
}

/// The headers for `part` of a blob of `length` bytes.
fn promise(status: StatusCode, part: &Range<u64>, length: u64, digest: &Digest) -> Builder {
    let response = Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, part.end - part.start)
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::ETAG, format!("\"{digest}\""))
        .header("docker-content-digest", digest.to_string());
    if status != StatusCode::PARTIAL_CONTENT {
        return response;
    }
    let range = format!("bytes {}-{}/{length}", part.start, part.end - 1);
    response.header(header::CONTENT_RANGE, range)
}

/// A valid right to the blob: the one that came with the manifest, else a new one from a node.
async fn grant(
    mirror: &Mirror,
    name: &RepositoryName,
    digest: &Digest,
) -> Result<BlobGrant, Error> {
    let catalogue = &mirror.fetcher.catalogue;
    let known = catalogue.blob(name, digest);
    if let Some(grant) = known.filter(|grant| mirror.entitles(grant.recipe, &grant.ticket)) {
        return Ok(grant);
    }
    let reference = catalogue.any_reference(name).ok_or(Error::UnknownBlob)?;
    let resolution =
        mirror.fetcher.nodes.resolve_once(&reference, Some(vec![digest.clone()])).await.map_err(
            |error| {
                if error.is_retryable() {
                    Error::Unavailable(error.to_string())
                } else {
                    Error::UnknownBlob
                }
            },
        )?;
    resolution.blobs.into_iter().find(|blob| blob.digest == *digest).ok_or(Error::UnknownBlob)
}

fn stream(
    mirror: Arc<Mirror>,
    what: String,
    grant: BlobGrant,
    part: Range<u64>,
    source: Source,
) -> Body {
    let (sender, receiver) = mpsc::channel(READY_CHUNKS_MAX);
    tokio::spawn(async move {
        let tracked = mirror.transfers.start(what.clone(), Purpose::Mirror);
        match send(&mirror, &grant, part, source, &sender, &tracked).await {
            Ok(()) => drop(tracked.done()),
            Err(broken) => {
                let text = chain(&broken);
                match broken {
                    Broken::Client => debug!(%what, "the client broke off"),
                    _ => warn!(%what, error = text, "a blob could not be served to its end"),
                }
                tracked.failed(&text);
                // The client sees a body shorter than announced, and asks again.
                let error = std::io::Error::other(text);
                let _ = sender.send_timeout(Err(error), CLIENT_STALL_MAX).await;
            }
        }
    });
    Body::from_stream(ReceiverStream::new(receiver))
}

type Ready = mpsc::Sender<Result<Bytes, std::io::Error>>;

/// Sends bytes `part` of the blob, chunk by chunk.
async fn send(
    mirror: &Mirror,
    grant: &BlobGrant,
    part: Range<u64>,
    mut source: Source,
    ready: &Ready,
    tracked: &Tracked,
) -> Result<(), Broken> {
    let recipe = source.recipe.clone();
    let extents = recipe.extents_in(part.start, part.end - part.start);
    for (position, extent) in (0u32..).zip(extents) {
        if position % WINDOW_STEP_CHUNKS == 0 {
            source.demand(extent.chunk..extent.chunk.saturating_add(WINDOW_CHUNKS));
        }
        let content = source.chunk(mirror, grant, extent.chunk).await?;
        let from = part.start.saturating_sub(extent.offset) as usize;
        let to = (part.end - extent.offset).min(content.len() as u64) as usize;
        mirror.metrics.mirror_bytes.inc_by((to - from) as u64);
        ready
            .send_timeout(Ok(content.slice(from..to)), CLIENT_STALL_MAX)
            .await
            .map_err(|_| Broken::Client)?;
        tracked.update(source.progress());
    }
    tracked.update(source.progress());
    Ok(())
}

/// Where chunks come from: the cache, with a download beside it where it is not complete.
struct Source {
    recipe: Arc<Recipe>,
    entry: Arc<Entry>,
    download: Option<Download>,
    total: u64,
    /// Nothing of it is evicted meanwhile.
    _lease: Lease,
}

impl Source {
    async fn find(mirror: &Mirror, grant: &BlobGrant) -> Result<Self, Broken> {
        let (cache, total) = (&mirror.fetcher.cache, grant.size_bytes);
        let lease = cache.lease(grant.recipe);
        if let Some(entry) = cache.entry(grant.recipe)
            && entry.is_complete()
            && let Ok(Some(recipe)) = ChunkStore::recipe(cache, grant.recipe).await
        {
            return Ok(Self { recipe, entry, download: None, total, _lease: lease });
        }
        let mut download = mirror.fetcher.downloads.start(wanted(grant));
        let recipe = download.recipe().await?;
        // The entry is made by the store's `open`, at the start of the transfer.
        let (store, id, opened) = (cache.clone(), grant.recipe, recipe.clone());
        let entry = crate::blocking(move || store.open_entry(id, &opened)).await;
        let entry = entry.ok_or(Broken::Lost)??;
        Ok(Self { recipe, entry, download: Some(download), total, _lease: lease })
    }

    fn demand(&self, chunks: Range<u32>) {
        if let Some(download) = &self.download {
            let end = chunks.end.min(self.recipe.chunks().len() as u32);
            download.demand(chunks.start..end);
        }
    }

    /// Waits for chunk `index` to be verified and reads it.
    async fn chunk(
        &mut self,
        mirror: &Mirror,
        grant: &BlobGrant,
        index: u32,
    ) -> Result<Bytes, Broken> {
        for _ in 0..=REFETCHES_MAX {
            self.wait_for(index).await?;
            let (cache, entry) = (mirror.fetcher.cache.clone(), self.entry.clone());
            let read = crate::blocking(move || cache.read_chunk(&entry, index)).await;
            if let Some(content) = read.ok_or(Broken::Lost)?? {
                return Ok(content);
            }
            // It did not check and was dropped: the swarm brings it again.
            self.download = Some(mirror.fetcher.downloads.start(wanted(grant)));
            self.demand(index..index + 1);
        }
        Err(Broken::Lost)
    }

    async fn wait_for(&mut self, index: u32) -> Result<(), Broken> {
        let mut changes = self.entry.watch();
        loop {
            changes.borrow_and_update();
            if self.entry.contains(index) {
                return Ok(());
            }
            let Some(download) = &mut self.download else { return Ok(()) };
            tokio::select! {
                _ = changes.changed() => {}
                outcome = download.outcome() => {
                    outcome?;
                    if !self.entry.contains(index) {
                        return Err(Broken::Lost);
                    }
                }
            }
        }
    }

    fn progress(&self) -> shoal_api::TransferProgress {
        match &self.download {
            Some(download) => download.latest(),
            None => shoal_api::TransferProgress {
                state: "running".into(),
                bytes_total: self.total,
                bytes_done: self.total,
                bytes_local: self.total,
                ..Default::default()
            },
        }
    }
}

fn wanted(grant: &BlobGrant) -> Wanted {
    let (recipe, bytes) = (grant.recipe, grant.size_bytes);
    Wanted { recipe, ticket: grant.ticket.clone(), bytes, delta: None }
}
