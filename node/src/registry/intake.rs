//! A blob on its way in: hashed while it streams, stored under its final key.
//!
//! Bytes are gathered into parts and sent on while the next part fills. What a later request needs
//! and storage does not hold yet – the tail shorter than a part, the hashes' midstates – is a
//! checkpoint (see `resumption`), so that any node can go on.
//!
//! Crash order: parts, then the checkpoint, then the command that names it. A crash between leaves
//! the session at its last offset; the client sends the rest again.
//!
//! Invariants: no two writers ever write under one key, unless one goes on where the other ended,
//! and then within one multipart upload, whose completion names each part's tag. All writers of an
//! intake together hold [`INTAKE_BYTES_MAX`] of the bytes that come; whoever comes later waits. What a
//! node fetches from upstreams has an intake of its own. On top comes what is known of each blob's chunks:
//! 32 bytes for 256 KiB, and several times as much for a moment when its recipe is made; and
//! `RECENT_BYTES_MAX` of what the next requests need. Nothing is copied at the end. A multipart upload
//! that no row will name is aborted. What is published has the digest that was asked for, or is deleted
//! again. Where there is no room, all that was taken before can be kept.

mod lane;
mod resumption;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use moka::sync::Cache;
use shoal_content::{Algorithm, Digest, ObjectKey, Recipe, UploadId};
use shoal_formats::BlobCutter;
use shoal_metadata::{KeyOwner, Multipart};
use thiserror::Error;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use tokio::task::JoinHandle;
use tracing::warn;
use uuid::Uuid;

use super::hash::Hash;
use super::parts::{PARTS_MAX, PartSchedule};
use super::pieces::{Kept, Piece};
use crate::store::{BlobStore, Completion, StoreError, StoredPart};
use lane::{Held, Lane, Patience};
pub use resumption::{Form, Resumed};

/// Bytes of a part, but for those of very long blobs (see `parts`).
const PART_BYTES: usize = PartSchedule::STANDARD.first_bytes as usize;
/// Parts of one upload on their way to storage while the next one fills.
const PARTS_ON_THEIR_WAY_MAX: usize = 2;
/// What an upload may hold before it needs room for a part.
const SMALL_BYTES: usize = 256 * 1024;
/// Uploads that hold so little.
const SMALL_MAX: usize = 128;
/// Parts of all uploads, filling or on their way; but for the long ones.
const PARTS_HELD_MAX: usize = 10;
/// Long parts, of the longest there are, filling or on their way. They have room of their own, so
/// that the other uploads never wait for a blob of this kind, and an idle node has none of it.
const LONG_PARTS_HELD_MAX: usize = 2;
/// Of checkpoints that were stored last, without what stays in storage: so that a request that follows
/// at the same node reads nothing.
const RECENT_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// What all uploads of a node may hold at once, as long as none is longer than 4 GiB.
pub const INTAKE_BYTES_USUAL: usize = SMALL_MAX * SMALL_BYTES + PARTS_HELD_MAX * PART_BYTES;
/// What all uploads of a node may hold at once; one more long part is where a request ends in the
/// middle of one, and it is copied for its checkpoint.
pub const INTAKE_BYTES_MAX: usize =
    INTAKE_BYTES_USUAL + (LONG_PARTS_HELD_MAX + 1) * PartSchedule::STANDARD.longest_bytes as usize;

#[derive(Debug, Error)]
pub enum IntakeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a blob has at most {0} bytes")]
    TooLong(u64),
    #[error("the checkpoint of the upload cannot be read")]
    Checkpoint,
    #[error("bytes of the upload did not reach storage")]
    Torn,
    #[error("the node takes in as much as it has room for; try again, or at another node")]
    Crowded,
    #[error("the node is stopping")]
    Stopping,
}

/// The node's budget for uploads, and the order of their requests.
///
/// Who holds little may wait for room for a part, who holds a short part for room for a long one,
/// and who fills the part that is due waits for its client alone, which is cut off where it is slow
/// and others wait: so everyone gets a turn, or hears after a while that there is none.
#[derive(Debug, Clone)]
pub struct Intake {
    schedule: PartSchedule,
    small: Lane,
    parts: Lane,
    /// In units of the first parts' length.
    long: Lane,
    /// Who copies the beginning of a long part.
    copies: Lane,
    recent: Cache<ObjectKey, Kept>,
    turns: Arc<Mutex<HashMap<UploadId, Weak<AsyncMutex<()>>>>>,
}

/// Held by whoever works on a session at this node; others wait.
pub type Turn = Arc<OwnedMutexGuard<()>>;

impl Default for Intake {
    fn default() -> Self {
        Self::new(PartSchedule::STANDARD, Patience::STANDARD)
    }
}

impl Intake {
    /// For what the node itself brings in, apart from what is pushed to it.
    pub fn of_fetches() -> Self {
        Self::new(PartSchedule::STANDARD, Patience::UNBOUNDED)
    }

    fn new(schedule: PartSchedule, patience: Patience) -> Self {
        let longest = schedule.longest_bytes.div_ceil(schedule.first_bytes) as usize;
        let Patience { fill_max, long_fill_max, wait_max } = patience;
        Self {
            schedule,
            small: Lane::new(SMALL_MAX, fill_max, wait_max),
            parts: Lane::new(PARTS_HELD_MAX, fill_max, wait_max),
            long: Lane::new(LONG_PARTS_HELD_MAX * longest, long_fill_max, wait_max),
            copies: Lane::new(1, long_fill_max, wait_max),
            recent: Cache::builder()
                .weigher(|_: &ObjectKey, kept: &Kept| {
                    u32::try_from(kept.bytes()).unwrap_or(u32::MAX)
                })
                .max_capacity(RECENT_BYTES_MAX)
                .build(),
            turns: Arc::default(),
        }
    }

    /// # Errors
    /// [`IntakeError::TooLong`] for a blob of more bytes than any may have.
    pub fn check_length(&self, blob_bytes: u64) -> Result<(), IntakeError> {
        let most = self.schedule.blob_bytes_max;
        if blob_bytes <= most { Ok(()) } else { Err(IntakeError::TooLong(most)) }
    }

    /// Lets nobody have more room, as the node stops: who waits for some hears so, and what was taken
    /// before can be kept.
    pub fn close(&self) {
        for lane in [&self.small, &self.parts, &self.long] {
            lane.free.close();
        }
    }

    /// Waits until no other request of this session is under way at this node.
    pub async fn turn(&self, upload: UploadId) -> Turn {
        let lock = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, lock| lock.strong_count() > 0);
            let known = turns.get(&upload).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let lock = Arc::default();
                turns.insert(upload, Arc::downgrade(&lock));
                lock
            })
        };
        Arc::new(lock.lock_owned().await)
    }

    /// Requests of this session that are under way at this node: one has the turn, the others wait.
    pub fn under_way(&self, upload: UploadId) -> usize {
        let turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.get(&upload).map_or(0, Weak::strong_count)
    }

    /// Room for little.
    async fn admit_small(&self) -> Result<Room, IntakeError> {
        Ok(Room { bytes: SMALL_BYTES, held: Some(self.small.take(1).await?) })
    }

    /// Room for the part that starts at `start`.
    async fn admit_part(&self, start: u64) -> Result<Room, IntakeError> {
        let bytes = self.schedule.part_bytes(start);
        let held = if self.schedule.is_short(start) {
            self.parts.take(1).await?
        } else {
            let units = bytes.div_ceil(self.schedule.first_bytes);
            self.long.take(units as u32).await?
        };
        Ok(Room { bytes: bytes as usize, held: Some(held) })
    }
}

/// Bytes that may be held, and what was admitted for them.
#[derive(Debug, Default)]
struct Room {
    bytes: usize,
    held: Option<Held>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct BlobWriter {
    intake: Intake,
    store: Arc<dyn BlobStore>,
    /// Whose key its objects are sealed with.
    under: KeyOwner,
    turn: Turn,
    /// Names what this writer makes, and nobody else.
    name: UploadId,
    multipart: Option<Multipart>,
    /// Whether the multipart upload is this writer's own, which no row names yet.
    unnamed: bool,
    parts: Vec<StoredPart>,
    /// Bytes in `parts` and in those on their way.
    flushed: u64,
    part_numbers: u32,
    on_their_way: VecDeque<JoinHandle<Result<StoredPart, StoreError>>>,
    /// Whether `hash` and `cutter` know of bytes that are in no part and not in the buffer either,
    /// because something failed in between.
    torn: bool,
    /// What comes after `flushed` and lies in earlier checkpoints of its session, in order.
    pieces: Vec<Piece>,
    /// Bytes of `pieces`.
    in_pieces: usize,
    /// Memory for the pieces, right before that of `buffer`; as long as there is none, it has no
    /// capacity.
    front: BytesMut,
    /// What comes after the pieces.
    buffer: BytesMut,
    /// What its session had in storage when it went on, beside parts.
    found: Vec<ObjectKey>,
    /// The last checkpoint.
    kept: Option<(ObjectKey, Kept)>,
    room: Room,
    hash: Hash,
    cutter: BlobCutter,
}

/// A blob whose bytes are all in storage, and have the digest that was asked for.
#[derive(Debug)]
pub struct Written {
    pub size: u64,
    pub object: ObjectKey,
    pub recipe: Recipe,
}

/// The content has another digest than the one that was asked for.
#[derive(Debug)]
pub struct Mismatch {
    pub is: Digest,
    /// Whether the session has nothing left to go on with.
    pub ended: bool,
}

impl BlobWriter {
    /// A new blob, whose digest will most likely be of `algorithm`.
    pub fn begin(
        intake: &Intake,
        store: Arc<dyn BlobStore>,
        under: KeyOwner,
        turn: Turn,
        algorithm: Algorithm,
    ) -> Self {
        Self {
            intake: intake.clone(),
            store,
            under,
            turn,
            name: UploadId::from_uuid(Uuid::now_v7()),
            multipart: None,
            unnamed: false,
            parts: Vec::new(),
            flushed: 0,
            part_numbers: 0,
            on_their_way: VecDeque::new(),
            torn: false,
            pieces: Vec::new(),
            in_pieces: 0,
            front: BytesMut::new(),
            buffer: BytesMut::new(),
            found: Vec::new(),
            kept: None,
            room: Room::default(),
            hash: Hash::new(algorithm),
            cutter: BlobCutter::new(),
        }
    }

    /// Bytes taken so far.
    pub fn offset(&self) -> u64 {
        self.cutter.length()
    }

    /// Whether some of that was lost, so that nothing can go on from here.
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    /// Whether what was taken so far is what is called so; not, where another hash is computed.
    pub fn has_digest(&self, wanted: &Digest) -> bool {
        self.hash.algorithm() == wanted.algorithm() && self.hash.clone().digest() == *wanted
    }

    /// Returns when the client should be told to come again later: it fills a part slowly, and
    /// others wait for the room. Nothing is lost by that: what was taken can be kept.
    pub async fn is_wanted(&self) {
        match &self.room.held {
            Some(held) => held.is_wanted().await,
            None => std::future::pending().await,
        }
    }

    /// Lets go of the room it has, and of the bytes that are in no part: whoever has them elsewhere
    /// brings them [back](Self::put_back) once there is room [again](Self::take_up), before more is
    /// written. Gives where they begin; they end at the offset. Not for a writer that went on.
    pub fn lay_down(&mut self) -> u64 {
        self.torn |= !self.buffer.is_empty();
        (self.buffer, self.room) = (BytesMut::new(), Room::default());
        self.flushed
    }

    /// Waits for room for what was laid down.
    ///
    /// # Errors
    /// [`IntakeError::Crowded`] where it takes too long.
    pub async fn take_up(&mut self) -> Result<(), IntakeError> {
        self.make_room((self.offset() - self.flushed) as usize).await
    }

    /// The next bytes of what was laid down.
    pub fn put_back(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        self.torn = self.flushed + self.buffer.len() as u64 != self.offset();
    }

    /// Takes the next bytes; waits while storage is slower than the client, or all room is taken.
    ///
    /// # Errors
    /// See [`IntakeError`]. Where there was no room, some of the bytes may have been taken.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), IntakeError> {
        self.intake.check_length(self.offset().saturating_add(bytes.len() as u64))?;
        while !bytes.is_empty() {
            if self.torn {
                return Err(IntakeError::Torn);
            }
            let part = self.intake.schedule.part_bytes(self.flushed) as usize;
            let held = self.in_pieces + self.buffer.len();
            let length = bytes.len().min(part - held);
            // Before anything knows of the piece: it is left out whole, or not at all.
            if held + length == part {
                self.gather(length).await?;
            }
            self.make_room(self.buffer.len() + length).await?;
            self.tear()?;
            let piece = bytes.split_to(length);
            self.hash.update(&piece);
            self.cutter.update(&piece);
            self.buffer.extend_from_slice(&piece);
            if self.buffer.len() == part {
                self.send().await?;
            }
            self.torn = false;
        }
        Ok(())
    }

    /// Begins what leaves something out where it fails.
    fn tear(&mut self) -> Result<(), IntakeError> {
        if std::mem::replace(&mut self.torn, true) { Err(IntakeError::Torn) } else { Ok(()) }
    }

    /// Waits until `bytes` may be held.
    async fn make_room(&mut self, bytes: usize) -> Result<(), IntakeError> {
        if bytes <= self.room.bytes {
            return Ok(());
        }
        if bytes <= SMALL_BYTES && self.part_numbers == 0 {
            self.room = self.intake.admit_small().await?;
            return Ok(());
        }
        let room = tokio::select! {
            biased;
            room = self.intake.admit_part(self.flushed) => room?,
            // Short blobs do not wait behind those who wait for parts.
            () = self.is_wanted() => return Err(IntakeError::Crowded),
        };
        self.room = room;
        self.lay_out();
        Ok(())
    }

    /// Sends what is held as a part, once few enough are on their way.
    async fn send(&mut self) -> Result<(), IntakeError> {
        while self.on_their_way.len() >= PARTS_ON_THEIR_WAY_MAX {
            self.arrived().await?;
        }
        if self.part_numbers >= PARTS_MAX {
            // Only a session that began with short parts throughout comes here.
            return Err(IntakeError::TooLong(self.flushed));
        }
        let multipart = match &self.multipart {
            Some(multipart) => multipart.clone(),
            None => {
                let object = ObjectKey::Blob(self.name);
                let id = self.store.begin(object, &self.under).await?;
                self.unnamed = true;
                self.multipart.insert(Multipart { object, id }).clone()
            }
        };
        self.part_numbers += 1;
        let part = std::mem::take(&mut self.buffer).freeze();
        let held = std::mem::take(&mut self.room).held;
        let (store, turn) = (Arc::clone(&self.store), Arc::clone(&self.turn));
        let (number, offset) = (self.part_numbers, self.flushed);
        self.flushed += part.len() as u64;
        // The part goes on where its request is dropped: until then nobody else gets the turn.
        self.on_their_way.push_back(tokio::spawn(async move {
            let _held = (held, turn);
            store.put_part(multipart.object, &multipart.id, number, offset, part).await
        }));
        Ok(())
    }

    /// Waits for the oldest part on its way.
    async fn arrived(&mut self) -> Result<(), IntakeError> {
        if let Some(part) = self.on_their_way.pop_front() {
            self.parts.push(part.await.map_err(|_| IntakeError::Stopping)??);
        }
        Ok(())
    }

    async fn settle(&mut self) -> Result<(), IntakeError> {
        self.tear()?;
        while !self.on_their_way.is_empty() {
            self.arrived().await?;
        }
        self.torn = false;
        Ok(())
    }

    /// Sends what is in no part of a multipart upload yet, and waits until storage has all parts.
    async fn send_rest(&mut self) -> Result<(), IntakeError> {
        if self.multipart.is_some() && !self.buffer.is_empty() {
            self.send().await?;
        }
        self.settle().await
    }

    /// Publishes the object if its digest is `wanted`. Where another hash was computed than the
    /// one that is asked for, what is stored is read again.
    ///
    /// # Errors
    /// See [`IntakeError`].
    pub async fn finish(
        mut self,
        wanted: &Digest,
    ) -> Result<Result<Written, Mismatch>, IntakeError> {
        let known = self.hash.algorithm() == wanted.algorithm();
        if known {
            let is = self.hash.clone().digest();
            if is != *wanted {
                return Ok(Err(Mismatch { is, ended: false }));
            }
        }
        let object = match &self.multipart {
            Some(multipart) => multipart.object,
            None => ObjectKey::Blob(self.name),
        };
        let size = self.offset();
        self.gather(0).await?;
        let sent = self.send_rest().await;
        match &self.multipart {
            None => {
                sent?;
                let whole = std::mem::take(&mut self.buffer).freeze();
                self.store.put(object, &self.under, whole).await?;
            }
            Some(multipart) => {
                let completion = match sent {
                    // What is complete takes no more parts: an earlier try got so far, perhaps.
                    Err(IntakeError::Store(StoreError::Multipart)) => Completion::Before,
                    sent => {
                        sent?;
                        self.store.complete(object, &multipart.id, &self.parts).await?
                    }
                };
                self.unnamed = false;
                if completion == Completion::Before {
                    // Another node may have closed the session with other bytes.
                    self.check_same(object, size, wanted).await?;
                }
            }
        }
        if !known {
            let is = self.read_digest(object, size, wanted.algorithm()).await?;
            if is != *wanted {
                self.store.delete(&[object]).await?;
                return Ok(Err(Mismatch { is, ended: self.multipart.is_some() }));
            }
        }
        let recipe = std::mem::take(&mut self.cutter).finish(object);
        Ok(Ok(Written { size, object, recipe }))
    }

    /// # Errors
    /// [`StoreError::Multipart`] where the object is not what this writer took.
    async fn check_same(
        &self,
        object: ObjectKey,
        size: u64,
        wanted: &Digest,
    ) -> Result<(), IntakeError> {
        let same = self.store.length(object).await? == Some(size)
            && self.read_digest(object, size, wanted.algorithm()).await? == *wanted;
        if same { Ok(()) } else { Err(StoreError::Multipart.into()) }
    }

    async fn read_digest(
        &self,
        object: ObjectKey,
        size: u64,
        algorithm: Algorithm,
    ) -> Result<Digest, IntakeError> {
        let mut hash = Hash::new(algorithm);
        let mut pieces = self.store.get(object, 0..size).await?;
        while let Some(piece) = pieces.next().await {
            hash.update(&piece?);
        }
        Ok(hash.digest())
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        let Some(multipart) = self.multipart.take().filter(|_| self.unnamed) else { return };
        // Without a runtime the process is ending; the scrub finds what is left.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (store, parts) = (Arc::clone(&self.store), std::mem::take(&mut self.on_their_way));
        runtime.spawn(async move {
            for part in parts {
                // It is dropped with the rest, whatever became of it.
                let _ = part.await;
            }
            if let Err(error) = store.abort(multipart.object, &multipart.id).await {
                warn!(object = %multipart.object, %error, "the parts of a broken upload stay");
            }
        });
    }
}

#[cfg(test)]
mod tests;
