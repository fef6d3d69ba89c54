//! Reads chunks for those who ask, as they are to be sent: compressed where that costs nothing, or where
//! the line is what all wait for.
//!
//! A host keeps content uncompressed, since machines run from it. What came compressed is mostly passed
//! on soon after, so such frames stay in memory for a while and go on as they came. What is not there goes
//! as it is, or is compressed anew if the line is slow and the recipe says that it helps: one chunk at a
//! time in the process, so that a processor that cannot keep up with its line costs no speed.
//!
//! Invariants: at most [`FRAMES_BYTES_MAX`] are kept, none for longer than [`KEPT_FOR`], and none of
//! what left the store.
//! Non-goal: nodes keep frames in their packs, and compress nothing here.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use shoal_content::RecipeId;
use tokio::sync::Semaphore;
use tracing::warn;

use crate::compression::{self, Stored, ZstdFrame};
use crate::store::StoreError;
use crate::swarm::{PeerRole, Shared};

/// Of all frames that are kept, with [`ENTRY_BYTES`] for each.
const FRAMES_BYTES_MAX: usize = 32 * 1024 * 1024;
/// What a frame takes beside its bytes, about.
const ENTRY_BYTES: usize = 256;
/// Whoever serves nobody needs none; and the store hears again that a recipe is in use.
const KEPT_FOR: Duration = Duration::from_secs(60);

type Place = (RecipeId, u32);

/// What a process needs to pass chunks on.
#[derive(Debug)]
pub(crate) struct Relay {
    frames: Mutex<Frames>,
    compressor: Semaphore,
}

impl Default for Relay {
    fn default() -> Self {
        Self { frames: Mutex::default(), compressor: Semaphore::new(1) }
    }
}

impl Relay {
    /// A verified chunk of the store's came, or was made, as `frame`.
    pub(crate) fn keep(&self, now: Duration, recipe: RecipeId, index: u32, frame: ZstdFrame) {
        self.frames.lock().keep(now, (recipe, index), frame);
    }

    fn find(&self, recipe: RecipeId, index: u32) -> Option<ZstdFrame> {
        self.frames.lock().by_place.get(&(recipe, index)).cloned()
    }

    /// The store has nothing of it any more.
    pub(crate) fn forget(&self, recipe: RecipeId) {
        self.frames.lock().forget(recipe);
    }

    pub(crate) fn forget_old(&self, now: Duration) {
        self.frames.lock().forget_old(now);
    }
}

/// Frames by where they stand, and in the order in which they came.
#[derive(Debug, Default)]
struct Frames {
    by_place: HashMap<Place, ZstdFrame>,
    order: VecDeque<(Place, Duration)>,
    bytes: usize,
}

impl Frames {
    fn keep(&mut self, now: Duration, place: Place, frame: ZstdFrame) {
        if self.by_place.contains_key(&place) {
            return;
        }
        self.bytes += weight(&frame);
        self.by_place.insert(place, frame);
        self.order.push_back((place, now));
        while self.bytes > FRAMES_BYTES_MAX {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        let first = self.order.pop_front();
        if let Some(frame) = first.and_then(|(place, _)| self.by_place.remove(&place)) {
            self.bytes -= weight(&frame);
        }
    }

    fn forget_old(&mut self, now: Duration) {
        while self.order.front().is_some_and(|&(_, at)| now >= at + KEPT_FOR) {
            self.forget_first();
        }
        if self.order.is_empty() {
            (self.by_place, self.order) = (HashMap::new(), VecDeque::new());
        }
    }

    fn forget(&mut self, recipe: RecipeId) {
        let bytes = &mut self.bytes;
        self.by_place.retain(|&(of, _), frame| {
            let stays = of != recipe;
            *bytes -= if stays { 0 } else { weight(frame) };
            stays
        });
        self.order.retain(|&((of, _), _)| of != recipe);
    }
}

fn weight(frame: &ZstdFrame) -> usize {
    frame.bytes().len() + ENTRY_BYTES
}

/// A chunk as it is to be sent; `None` where it is not held.
///
/// # Errors
/// Where the store fails.
pub(crate) async fn read(
    shared: &Shared,
    recipe: RecipeId,
    index: u32,
) -> Result<Option<Stored>, StoreError> {
    if let Some(frame) = shared.relay.find(recipe, index) {
        return Ok(Some(Stored::Zstd(frame)));
    }
    let stored = shared.store.read_stored(recipe, index).await?;
    let content = match stored {
        Some(Stored::Raw(content)) => content,
        stored => return Ok(stored),
    };
    let frame = compressed(shared, recipe, index, &content).await;
    Ok(Some(frame.map_or(Stored::Raw(content), Stored::Zstd)))
}

/// The frame of a chunk that the store has uncompressed, where making one now is worth it.
async fn compressed(
    shared: &Shared,
    recipe: RecipeId,
    index: u32,
    content: &Bytes,
) -> Option<ZstdFrame> {
    if shared.config.role == PeerRole::Origin || !shared.uploads.lock().line_is_slow() {
        return None;
    }
    let known = match shared.running(recipe) {
        Some(running) => Some(running.recipe.clone()),
        None => shared.store.recipe(recipe).await.ok().flatten(),
    }?;
    let chunk = known.chunks().get(index as usize).filter(|chunk| compression::is_worth(chunk))?;
    if content.len() != chunk.length as usize {
        return None;
    }
    let _turn = shared.relay.compressor.try_acquire().ok()?;
    let content = content.clone();
    let work = tokio::task::spawn_blocking(move || ZstdFrame::compress(&content));
    let frame = match work.await {
        Ok(frame) => frame?,
        Err(error) => {
            warn!(%recipe, index, %error, "a chunk could not be compressed");
            return None;
        }
    };
    shared.relay.keep(shared.began.elapsed(), recipe, index, frame.clone());
    Some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(number: u8) -> RecipeId {
        RecipeId::of(&[number])
    }

    /// A frame of about so many bytes.
    fn frame(bytes: usize) -> ZstdFrame {
        let mut content = vec![0; bytes * 2];
        rand::fill(&mut content[..bytes]);
        ZstdFrame::compress(&content).unwrap()
    }

    const FRAME_BYTES: usize = 100_000;

    #[test]
    fn memory_is_bounded_and_the_first_go_first() {
        let (mut frames, frame) = (Frames::default(), frame(FRAME_BYTES));
        let fit = (FRAMES_BYTES_MAX / weight(&frame)) as u32;
        for index in 0..fit * 2 {
            frames.keep(Duration::ZERO, (recipe(1), index), frame.clone());
            frames.keep(Duration::ZERO, (recipe(1), index), frame.clone());
            assert!(frames.bytes <= FRAMES_BYTES_MAX);
            assert_eq!(frames.bytes, frames.by_place.len() * weight(&frame));
            assert_eq!(frames.order.len(), frames.by_place.len());
        }
        let kept = |index| frames.by_place.contains_key(&(recipe(1), index));
        assert!((0..fit).all(|index| !kept(index)) && (fit..fit * 2).all(kept));
    }

    #[test]
    fn what_is_small_is_bounded_as_well() {
        let (mut frames, frame) = (Frames::default(), frame(400));
        for index in 0..(FRAMES_BYTES_MAX / ENTRY_BYTES) as u32 {
            frames.keep(Duration::ZERO, (recipe(1), index), frame.clone());
        }
        assert!(frames.by_place.len() < FRAMES_BYTES_MAX / ENTRY_BYTES);
    }

    #[test]
    fn what_is_old_or_left_the_store_is_forgotten() {
        let (mut frames, frame) = (Frames::default(), frame(FRAME_BYTES));
        let second = Duration::from_secs(1);
        for (index, of) in [1, 2, 1, 2].into_iter().enumerate() {
            frames.keep(second * index as u32, (recipe(of), index as u32), frame.clone());
        }
        frames.forget(recipe(1));
        assert_eq!((frames.order.len(), frames.bytes), (2, 2 * weight(&frame)));
        frames.forget_old(second + KEPT_FOR);
        assert_eq!(frames.by_place.keys().collect::<Vec<_>>(), [&(recipe(2), 3)]);
        assert_eq!(frames.bytes, weight(&frame));
        frames.forget_old(second * 3 + KEPT_FOR);
        assert_eq!((frames.by_place.len(), frames.order.len(), frames.bytes), (0, 0, 0));
    }
}
