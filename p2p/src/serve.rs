//! Answers requests: a ticket was shown, a slot is free, the store has it.

use std::sync::Arc;
use std::time::Duration;

use quinn::{RecvStream, SendStream};
use shoal_content::{PeerId, RecipeId};
use shoal_swarm::frames::{Answer, Ask};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::link::Link;
use crate::swarm::{Shared, wall_clock};
use crate::wire::{self, WireError};

/// How long a peer may take to take one chunk.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(20);

/// An upload slot, given back however the answer ends.
struct Slot<'a> {
    shared: &'a Shared,
    peer: PeerId,
}

impl<'a> Slot<'a> {
    fn take(shared: &'a Shared, peer: PeerId) -> Option<Self> {
        shared.uploads.lock().begin(peer).then_some(Self { shared, peer })
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.shared.uploads.lock().end(self.peer);
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
        match wire::read::<Ask>(&mut receiver).await? {
            Ask::Chunks { recipe, indices } => {
                chunks(&shared, &link, &mut sender, recipe, &indices).await?;
            }
            Ask::Recipe { recipe, ticket } => {
                if shared.entitled(&ticket, recipe, peer) {
                    send_recipe(&shared, peer, &mut sender, recipe).await?;
                } else {
                    say(&mut sender, Answer::Forbidden).await?;
                }
            }
        }
        let _ = sender.finish();
        // The stream is dropped only when the peer has it all, else its end would be cut.
        let _ = sender.stopped().await;
        Ok::<(), WireError>(())
    };
    tokio::select! {
        done = work => if let Err(error) = done {
            debug!(%peer, %error, "an answer broke off");
        },
        () = shared.cancel.cancelled() => {}
    }
}

async fn say(sender: &mut SendStream, answer: Answer) -> Result<(), WireError> {
    Ok(sender.write_all(&[answer.byte()]).await?)
}

async fn chunks(
    shared: &Shared,
    link: &Link,
    sender: &mut SendStream,
    recipe: RecipeId,
    indices: &[u32],
) -> Result<(), WireError> {
    if !link.granted(recipe, wall_clock()) {
        warn!(peer = %link.peer, %recipe, "chunks were asked for without a ticket");
        return say(sender, Answer::Forbidden).await;
    }
    let Some(_slot) = Slot::take(shared, link.peer) else {
        return say(sender, Answer::Busy).await;
    };
    let mut said = false;
    for &index in indices {
        let content = match shared.store.read(recipe, index).await {
            Ok(Some(content)) => content,
            Ok(None) => break,
            Err(error) => {
                warn!(%recipe, index, %error, "a chunk cannot be read");
                break;
            }
        };
        if !said {
            say(sender, Answer::Content).await?;
            said = true;
        }
        let bytes = content.len() as u64;
        let sent = async {
            sender.write_all(&(content.len() as u32).to_be_bytes()).await?;
            sender.write_chunk(content).await
        };
        // Whoever asks and does not read would keep the slot from others.
        timeout(CHUNK_TIMEOUT, sent).await.map_err(|_| WireError::Stalled)??;
        shared.metrics.sent(link.node, bytes);
    }
    if said { Ok(()) } else { say(sender, Answer::Absent).await }
}

async fn send_recipe(
    shared: &Shared,
    peer: PeerId,
    sender: &mut SendStream,
    id: RecipeId,
) -> Result<(), WireError> {
    let Some(_slot) = Slot::take(shared, peer) else { return say(sender, Answer::Busy).await };
    let found = shared.store.recipe(id).await;
    let encoded = match found {
        Ok(Some(recipe)) => tokio::task::spawn_blocking(move || recipe.encode()).await.ok(),
        Ok(None) => None,
        Err(error) => {
            warn!(recipe = %id, %error, "a recipe cannot be read");
            None
        }
    };
    let Some(encoded) = encoded else { return say(sender, Answer::Absent).await };
    say(sender, Answer::Content).await?;
    sender.write_all(&(encoded.len() as u32).to_be_bytes()).await?;
    sender.write_all(&encoded).await?;
    Ok(())
}
