//! Asks others: chunks of a transfer, and recipes.
//!
//! Invariants: nothing is kept or reported before its hash was checked; what is received and not
//! yet written never exceeds the budget; a length is checked before its bytes are read.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use quinn::RecvStream;
use shoal_content::{Chunk, ChunkId, PeerId, RECIPE_BYTES_MAX, Recipe, RecipeId, Ticket};
use shoal_swarm::frames::{Answer, Ask};
use shoal_swarm::{Contact, Event, RequestEnd, RequestId};
use thiserror::Error;
use tokio::io::AsyncReadExt as _;
use tracing::{debug, warn};

use crate::bulk::{self, Exchange};
use crate::channel::{Head, Source};
use crate::compression::ZstdFrame;
use crate::link::{self, Link};
use crate::metrics;
use crate::store::StoreError;
use crate::swarm::Shared;
use crate::transfer::Running;
use crate::wire::{self, WireError};

/// Below this, decompressing and hashing in place is cheaper than another thread.
const HASH_OFF_BYTES: usize = 64 * 1024;
const RECIPE_TIMEOUT: Duration = Duration::from_secs(60);
/// So long one may take to be reached before the next is asked for a recipe beside it.
const DIAL_PATIENCE: Duration = Duration::from_millis(300);
/// The same of one that was reached, and has not answered.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// A recipe is read in pieces of so many bytes: memory grows with what came, not with a claim.
const RECIPE_PIECE_BYTES: usize = 1024 * 1024;

#[derive(Debug, Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("busy")]
    Busy,
    #[error("not held there")]
    Absent,
    #[error("the ticket was refused")]
    Forbidden,
    #[error("an answer that is none")]
    Malformed,
    #[error("the answer ended too early")]
    Short,
    #[error("wrong content for chunk {0}")]
    Wrong(ChunkId),
    #[error("the content is not the recipe's")]
    WrongRecipe,
    #[error("no answer in time")]
    Late,
    #[error("{0}")]
    Unreachable(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<quinn::ReadExactError> for Failure {
    fn from(error: quinn::ReadExactError) -> Self {
        Self::Wire(error.into())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Wire(error.into())
    }
}

/// What came for a chunk: as it is, or as a frame.
struct Received {
    head: Head,
    bytes: Bytes,
}

/// A chunk's content, and the frame that it came as.
type Opened = (Bytes, Option<ZstdFrame>);

impl Received {
    /// Whether so many bytes may be this chunk. A frame that saves nothing is none.
    fn may_be(head: Head, chunk: &Chunk) -> bool {
        match head {
            Head::Raw(bytes) => bytes == chunk.length,
            Head::Zstd(bytes) => bytes < chunk.length,
        }
    }

    /// The content, where it is the chunk's.
    async fn opened(self, chunk: Chunk) -> Option<Opened> {
        if (chunk.length as usize) < HASH_OFF_BYTES {
            return self.open(&chunk);
        }
        tokio::task::spawn_blocking(move || self.open(&chunk)).await.ok().flatten()
    }

    fn open(self, chunk: &Chunk) -> Option<Opened> {
        let (content, frame) = match self.head {
            Head::Raw(_) => (self.bytes, None),
            Head::Zstd(_) => {
                let frame = ZstdFrame::parse(self.bytes, chunk.length)?;
                (frame.content().ok()?, Some(frame))
            }
        };
        chunk.id.verifies(&content).then_some((content, frame))
    }
}

async fn ask(connection: &quinn::Connection, ask: &Ask) -> Result<RecvStream, Failure> {
    let opened = connection.open_bi().await.map_err(quinn::WriteError::from);
    let (mut sender, mut receiver) = opened.map_err(WireError::from)?;
    wire::write(&mut sender, ask).await?;
    let _ = sender.finish();
    accepted(receiver.read_u8().await?)?;
    Ok(receiver)
}

/// Whether content follows the first byte of an answer.
fn accepted(answer: u8) -> Result<(), Failure> {
    match Answer::from_byte(answer) {
        Some(Answer::Content) => Ok(()),
        Some(Answer::Busy) => Err(Failure::Busy),
        Some(Answer::Absent) => Err(Failure::Absent),
        Some(Answer::Forbidden) => Err(Failure::Forbidden),
        None => Err(Failure::Malformed),
    }
}

/// One request for chunks, told to the core to its end; with the chunks comes whether it insists.
pub(crate) async fn chunks(
    shared: Arc<Shared>,
    link: Arc<Link>,
    running: Arc<Running>,
    request: RequestId,
    wanted: (Vec<u32>, bool),
) {
    link.touch();
    let outcome = receive(&shared, &link, &running, request, wanted).await;
    link.touch();
    let peer: PeerId = link.peer;
    let end = match outcome {
        Ok(()) => RequestEnd::Done,
        Err(Failure::Busy) => RequestEnd::Busy,
        Err(Failure::Absent) => RequestEnd::Absent,
        Err(Failure::Wrong(chunk)) => {
            warn!(%peer, %chunk, "a peer sent wrong content and is banned");
            running.trouble(format!("{peer} sent wrong content for chunk {chunk}"));
            shared.metrics.refused(metrics::WRONG_CONTENT);
            shared.tell(Event::Wrong { request }).await;
            return;
        }
        Err(Failure::Store(error)) => {
            shared.metrics.refused(metrics::NO_STORAGE);
            running.end(Err(error.into()));
            shared.tell(Event::Stop { recipe: running.id }).await;
            return;
        }
        Err(failure) => {
            // It did not know the key yet that signed the ticket, or knows it no longer.
            if matches!(failure, Failure::Forbidden) {
                shared.join(&link, running.id);
            }
            debug!(%peer, recipe = %running.id, %failure, "a request failed");
            running.trouble(format!("{peer}: {failure}"));
            RequestEnd::Failed
        }
    };
    shared.tell(Event::Ended { request, end }).await;
}

/// Over a lane where there is one; what that does not bring, since it broke off, comes by QUIC.
async fn receive(
    shared: &Arc<Shared>,
    link: &Arc<Link>,
    running: &Running,
    request: RequestId,
    (indices, insists): (Vec<u32>, bool),
) -> Result<(), Failure> {
    let mut asked = Asked { shared, link, running, request, insists, rest: indices.into() };
    if let Some(mut exchange) = bulk::take(shared, link) {
        let outcome = tokio::select! {
            outcome = asked.over(&mut exchange) => outcome,
            error = link.connection.closed() => Err(Failure::Unreachable(error.to_string())),
        };
        match outcome {
            Err(Failure::Wire(error)) => {
                debug!(peer = %link.peer, %error, "a bulk connection broke off; QUIC goes on");
                exchange.fail();
            }
            outcome => return outcome,
        }
    }
    if asked.rest.is_empty() {
        return Ok(());
    }
    let mut stream = ask(&link.connection, &asked.message()).await?;
    asked.take(&mut stream).await
}

/// A request for chunks under way.
struct Asked<'a> {
    shared: &'a Shared,
    link: &'a Link,
    running: &'a Running,
    request: RequestId,
    insists: bool,
    /// What is yet to come, in this order.
    rest: VecDeque<u32>,
}

impl Asked<'_> {
    fn message(&self) -> Ask {
        let indices = self.rest.iter().copied().collect();
        Ask::Chunks { recipe: self.running.id, indices, insists: self.insists }
    }

    async fn over(&mut self, exchange: &mut Exchange) -> Result<(), Failure> {
        let (answer, source) = exchange.ask(&self.message(), self.rest.len()).await?;
        accepted(answer)?;
        self.take(source).await?;
        match source.head().await? {
            None => Ok(()),
            Some(_) => Err(Failure::Malformed),
        }
    }

    async fn take<S: Source>(&mut self, source: &mut S) -> Result<(), Failure> {
        while let Some(&index) = self.rest.front() {
            self.take_one(index, source).await?;
            self.rest.pop_front();
        }
        Ok(())
    }

    async fn take_one<S: Source>(&self, index: u32, source: &mut S) -> Result<(), Failure> {
        let Self { shared, link, running, request, .. } = *self;
        let Some(chunk) = running.recipe.chunks().get(index as usize) else { return Ok(()) };
        let head = source.head().await?.ok_or(Failure::Short)?;
        if head == Head::Raw(0) && link.node {
            let mut by = [0; 32];
            source.read_exact(&mut by).await?;
            let by = PeerId::from_public_key(by);
            shared.tell(Event::Elsewhere { request, index, by }).await;
            return Ok(());
        }
        if !Received::may_be(head, chunk) {
            return Err(Failure::Wrong(chunk.id));
        }
        let beside = if matches!(head, Head::Zstd(_)) { head.bytes() } else { 0 };
        let permit = shared.budget.acquire_many(chunk.length + beside).await;
        let mut bytes = vec![0; head.bytes() as usize];
        source.read_exact(&mut bytes).await?;
        let received = Received { head, bytes: bytes.into() };
        let Some((content, frame)) = received.opened(*chunk).await else {
            return Err(Failure::Wrong(chunk.id));
        };
        let bytes = head.bytes();
        shared.tell(Event::Landed { request, index, bytes }).await;
        shared.store.write(running.id, index, content).await?;
        drop(permit);
        if let Some(frame) = frame {
            shared.relay.keep(shared.began.elapsed(), running.id, index, frame);
        }
        let saved = u64::from(chunk.length - bytes);
        shared.metrics.received(link.node, u64::from(chunk.length));
        shared.metrics.received_by(S::PATH, u64::from(chunk.length));
        shared.metrics.saved(metrics::RECEIVED, saved);
        bulk::arrived(shared, u64::from(bytes));
        running.arrived(link, u64::from(chunk.length), saved);
        shared.tell(Event::Arrived { request, index, bytes }).await;
        Ok(())
    }
}

/// The recipe `id` from the first of `sources` that gives it: one that is not reached, or does not
/// answer, holds up nobody. Who fails is asked once more at the end, since its connection may have
/// lost to one that was dialled at the same time.
///
/// # Errors
/// With the last refusal.
pub(crate) async fn recipe_of_any(
    shared: &Shared,
    sources: &[Contact],
    id: RecipeId,
    ticket: &Ticket,
) -> Result<Recipe, String> {
    let (mut first, mut again) = (sources.iter().copied(), sources.iter().copied());
    let mut last = "no node or peer is known".to_owned();
    let mut asked = FuturesUnordered::new();
    let mut begun: Vec<(PeerId, Instant)> = Vec::new();
    loop {
        let is_linked = |peer: &PeerId| shared.links.lock().contains_key(peer);
        let waits =
            begun.iter().any(|(peer, at)| is_linked(peer) && at.elapsed() < ANSWER_PATIENCE);
        let next = match asked.is_empty() {
            true => first.next().or_else(|| again.next()),
            false if waits => None,
            false => first.next(),
        };
        if let Some(contact) = next {
            begun.push((contact.peer, Instant::now()));
            let ticket = ticket.clone();
            asked.push(async move { (contact.peer, recipe(shared, contact, id, ticket).await) });
        } else if asked.is_empty() {
            return Err(last);
        }
        tokio::select! {
            Some((peer, answer)) = asked.next() => match answer {
                Ok(recipe) => return Ok(recipe),
                Err(error) => {
                    begun.retain(|&(of, _)| of != peer);
                    last = format!("{peer}: {error}");
                }
            },
            () = tokio::time::sleep(DIAL_PATIENCE) => {}
        }
    }
}

/// The recipe `id` from one source, over the link there is or a connection of its own.
pub(crate) async fn recipe(
    shared: &Shared,
    contact: Contact,
    id: RecipeId,
    ticket: Ticket,
) -> Result<Recipe, Failure> {
    let fetch = async {
        let connection = match link::linked(shared, contact.peer) {
            Some(connection) => connection,
            None => link::establish(shared, contact).await.map_err(Failure::Unreachable)?,
        };
        // What is asked keeps it from being closed as idle.
        if let Some(link) = shared.links.lock().get(&contact.peer) {
            link.touch();
        }
        let mut stream = ask(&connection, &Ask::Recipe { recipe: id, ticket }).await?;
        let mut length = [0; 4];
        stream.read_exact(&mut length).await?;
        let length = u32::from_be_bytes(length) as usize;
        if length > RECIPE_BYTES_MAX {
            return Err(Failure::Malformed);
        }
        let mut encoded = Vec::new();
        while encoded.len() < length {
            let from = encoded.len();
            encoded.resize(length.min(from + RECIPE_PIECE_BYTES), 0);
            stream.read_exact(&mut encoded[from..]).await?;
        }
        let decode = move || {
            let right = RecipeId::of(&encoded) == id;
            right.then(|| Recipe::decode(&encoded).ok()).flatten()
        };
        let decoded = tokio::task::spawn_blocking(decode).await.ok().flatten();
        decoded.ok_or(Failure::WrongRecipe)
    };
    tokio::time::timeout(RECIPE_TIMEOUT, fetch).await.map_err(|_| Failure::Late)?
}
