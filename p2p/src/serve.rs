//! Answers requests: a ticket was shown, a slot is free, the store has it.

use std::sync::Arc;
use std::time::Duration;

use quinn::{RecvStream, SendStream};
use shoal_content::{PeerId, RecipeId};
use shoal_swarm::frames::{Answer, Ask, Frame};
use shoal_swarm::{Admission, Member};
use tokio::sync::SemaphorePermit;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::channel::Outlet;
use crate::endpoint::SEND_WINDOW_BYTES;
use crate::link::Link;
use crate::metrics;
use crate::outgoing::Kept;
use crate::relay;
use crate::swarm::{PeerRole, Shared, wall_clock};
use crate::wire::{self, WireError};

/// Others that a busy process names.
const OTHERS_MAX: usize = 4;

/// How long a peer may take to take one chunk, or as much of a recipe.
pub(crate) const CHUNK_TIMEOUT: Duration = Duration::from_secs(20);
const RECIPE_PIECE_BYTES: usize = 256 * 1024;
/// As long what others keep of recipes may leave no room for another; then it is asked for elsewhere.
const RECIPE_ROOM_TIMEOUT: Duration = Duration::from_secs(5);
/// From writing a recipe's last byte until the peer has it; it does not wait for longer, either.
const RECIPE_TIMEOUT: Duration = Duration::from_secs(60);
/// From the end of an answer to its last acknowledgement: what a connection keeps comes within it over
/// a line of 1 Mbit/s.
const TAKEN_TIMEOUT: Duration = Duration::from_secs(90);
/// Says why a stream ends before its answer does.
const BROKEN_OFF: u32 = 1;

/// An upload slot, given back however the answer ends.
struct Slot<'a> {
    shared: &'a Shared,
    peer: PeerId,
}

impl<'a> Slot<'a> {
    /// A slot, or whether the peer should hear of others whom it may ask.
    fn take(shared: &'a Shared, link: &Link) -> Result<Self, bool> {
        let far = link.zone.room() != shared.config.zone.room() && !link.node;
        let admission = shared.uploads.lock().begin(shared.began.elapsed(), link.peer, far);
        match admission {
            Admission::Granted => Ok(Self { shared, peer: link.peer }),
            Admission::Busy { name_others } => {
                shared.call_later();
                Err(name_others)
            }
        }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.shared.uploads.lock().end(self.peer);
        self.shared.call_waiting();
        self.shared.call_later();
    }
}

/// An answer under way: whoever goes away waits for it.
pub(crate) struct Answering<'a>(&'a Shared);

impl<'a> Answering<'a> {
    pub(crate) fn begin(shared: &'a Shared) -> Self {
        shared.answers.send_modify(|answers| *answers += 1);
        Self(shared)
    }
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.0.answers.send_modify(|answers| *answers -= 1);
    }
}

/// A chunk entered in a node's ledger, and taken back where it is not sent.
struct Given<'a> {
    shared: &'a Shared,
    recipe: RecipeId,
    index: u32,
    to: PeerId,
}

impl<'a> Given<'a> {
    /// # Errors
    /// With the member that was given it before.
    fn enter(
        shared: &'a Shared,
        link: &Link,
        recipe: RecipeId,
        index: u32,
        insists: bool,
    ) -> Result<Self, PeerId> {
        let to = link.peer;
        if shared.config.role == PeerRole::Origin && !link.node {
            let now = shared.began.elapsed();
            shared.ledger.lock().give(now, recipe, index, to, insists)?;
        }
        Ok(Self { shared, recipe, index, to })
    }

    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Given<'_> {
    fn drop(&mut self) {
        self.shared.ledger.lock().take_back(self.recipe, self.index, self.to);
    }
}

pub(crate) async fn answer(
    shared: Arc<Shared>,
    link: Arc<Link>,
    mut sender: SendStream,
    mut receiver: RecvStream,
) {
    let peer = link.peer;
    let work = async {
        let ask = wire::read::<Ask>(&mut receiver).await?;
        let _answering = Answering::begin(&shared);
        let mut kept = Kept::nothing(&shared, &link);
        link.touch();
        match ask {
            Ask::Chunks { recipe, indices, insists } => {
                let wanted = (&indices[..], insists);
                chunks(&shared, &link, &mut sender, &mut kept, recipe, wanted).await?;
            }
            Ask::Recipe { recipe, ticket } => {
                if shared.entitled(&ticket, recipe, peer) {
                    let sent = send_recipe(&shared, &mut sender, recipe).await?;
                    if let Some(_kept) = sent {
                        let _ = sender.finish();
                        let ended = timeout(RECIPE_TIMEOUT, sender.stopped()).await;
                        let _ = ended.map_err(|_| WireError::Stalled)?;
                    }
                } else {
                    say(&mut sender, Answer::Forbidden).await?;
                }
            }
        }
        let _ = sender.finish();
        // The stream is dropped only when the peer has it all, else its end would be cut; and who does
        // not take it keeps room from others.
        let taken = timeout(TAKEN_TIMEOUT, sender.stopped()).await;
        let _ = taken.map_err(|_| WireError::Stalled)?;
        Ok::<(), WireError>(())
    };
    tokio::select! {
        done = work => if let Err(error) = done {
            debug!(%peer, %error, "an answer broke off");
            // Dropped only, the stream would keep what was written for as long as the connection stands,
            // and it counts no more.
            let _ = sender.reset(BROKEN_OFF.into());
        },
        () = shared.cancel.cancelled() => {}
    }
}

async fn say(outlet: &mut impl Outlet, answer: Answer) -> Result<(), WireError> {
    in_time(outlet.put(&[answer.byte()])).await
}

/// Whoever asks and does not read would keep the slot from others.
pub(crate) async fn in_time<E>(write: impl Future<Output = Result<(), E>>) -> Result<(), WireError>
where
    WireError: From<E>,
{
    Ok(timeout(CHUNK_TIMEOUT, write).await.map_err(|_| WireError::Stalled)??)
}

/// Answers a request for chunks, whichever way it came.
pub(crate) async fn chunks<O: Outlet>(
    shared: &Shared,
    link: &Link,
    sender: &mut O,
    kept: &mut Kept<'_>,
    recipe: RecipeId,
    (indices, insists): (&[u32], bool),
) -> Result<(), WireError> {
    if !link.granted(recipe, wall_clock()) {
        warn!(peer = %link.peer, %recipe, "chunks were asked for without a ticket");
        return say(sender, Answer::Forbidden).await;
    }
    let _slot = match Slot::take(shared, link) {
        Ok(slot) => slot,
        Err(name_others) => {
            if name_others {
                tell_others(shared, link, recipe);
            }
            return say(sender, Answer::Busy).await;
        }
    };
    kept.count(indices.len());
    let mut said = false;
    for &index in indices {
        let given = match Given::enter(shared, link, recipe, index, insists) {
            Ok(given) => given,
            Err(by) => {
                if !std::mem::replace(&mut said, true) {
                    say(sender, Answer::Content).await?;
                }
                let told = async {
                    sender.put(&0u32.to_be_bytes()).await?;
                    sender.put(by.as_public_key()).await
                };
                in_time(told).await?;
                continue;
            }
        };
        let chunk = match relay::read(shared, recipe, index).await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            Err(error) => {
                warn!(%recipe, index, %error, "a chunk cannot be read");
                break;
            }
        };
        if !std::mem::replace(&mut said, true) {
            say(sender, Answer::Content).await?;
        }
        let (bytes, wire_bytes) = (chunk.content_bytes(), chunk.wire_bytes());
        let pause = shared.uploads.lock().pause(shared.began.elapsed());
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        in_time(sender.chunk(chunk)).await?;
        given.keep();
        link.touch();
        shared.metrics.sent(link.node, bytes);
        shared.metrics.sent_by(O::PATH, bytes);
        shared.metrics.saved(metrics::SENT, bytes - wire_bytes);
        shared.uploads.lock().sent(shared.began.elapsed(), wire_bytes);
    }
    if said {
        return Ok(());
    }
    // Whoever lacks a chunk or two of it is no stranger to it.
    let some = shared.store.held(recipe).await.is_ok_and(|held| !held.is_empty());
    say(sender, if some { Answer::Content } else { Answer::Absent }).await
}

/// Names those who get something now: they have soon what others ask for. Only who is entitled to
/// the same recipe hears of them, and only of those who are.
fn tell_others(shared: &Shared, link: &Link, recipe: RecipeId) {
    let served: Vec<PeerId> = shared.uploads.lock().served().collect();
    let links = shared.links.lock();
    let others = served.iter().filter(|&&peer| peer != link.peer).filter_map(|at| links.get(at));
    let now = wall_clock();
    let members: Vec<Member> = others
        .filter(|other| !other.node && other.granted(recipe, now))
        .take(OTHERS_MAX)
        .map(|other| other.member())
        .collect();
    if !members.is_empty() {
        link.send(Frame::Peers { recipe, members });
    }
}

/// Gives what its last bytes take until the peer has them; nothing where none were sent.
async fn send_recipe<'a>(
    shared: &'a Shared,
    sender: &mut SendStream,
    id: RecipeId,
) -> Result<Option<SemaphorePermit<'a>>, WireError> {
    // Recipes are small and everything waits for them: they have a line of their own.
    let Ok(_turn) = shared.recipes.acquire().await else {
        return say(sender, Answer::Busy).await.map(|()| None);
    };
    let found = shared.store.recipe(id).await;
    let encoded = match found {
        Ok(Some(recipe)) => tokio::task::spawn_blocking(move || recipe.encode()).await.ok(),
        Ok(None) => None,
        Err(error) => {
            warn!(recipe = %id, %error, "a recipe cannot be read");
            None
        }
    };
    let Some(encoded) = encoded else {
        return say(sender, Answer::Absent).await.map(|()| None);
    };
    // Of one that is written the connection may keep so much.
    let kept = (encoded.len() as u64).min(SEND_WINDOW_BYTES) as u32;
    let Ok(Ok(kept)) = timeout(RECIPE_ROOM_TIMEOUT, shared.recipe_bytes.acquire_many(kept)).await
    else {
        return say(sender, Answer::Busy).await.map(|()| None);
    };
    say(sender, Answer::Content).await?;
    in_time(sender.write_all(&(encoded.len() as u32).to_be_bytes())).await?;
    for piece in encoded.chunks(RECIPE_PIECE_BYTES) {
        in_time(sender.write_all(piece)).await?;
    }
    Ok(Some(kept))
}
