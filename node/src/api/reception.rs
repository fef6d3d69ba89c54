//! Parts of disks on their way in: room in memory, and turns to store them.
//!
//! Room: a part gets room for all of its bytes before the first one is read, in the order of asking,
//! so that nobody who holds some waits for more. Senders may be slow while there is enough for all.
//! While others wait, what has had its room for [`HELD_MAX`] is given up, as much as they want; its
//! client sends it again. So senders who are just not slow enough to be cut off can hold all room
//! together no longer than that, and who waits for [`WAIT_MAX`] is better off at another node (see
//! `contention`).
//!
//! Turns: one part is stored by one request at a time at a node, and none of a session while it is
//! being claimed to be read. Whoever has a turn looks at the session anew before it stores, so that
//! what is recorded of a part is what lies under its key. Non-goal: clients that send one part with
//! different bytes to two nodes at the same moment; which of them is stored last is not known.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use shoal_content::UploadId;
use tokio::sync::{
    Mutex as AsyncMutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, Semaphore,
    SemaphorePermit,
};

use super::problem::unavailable;
use crate::http::Drain;
use crate::http::pace::Pace;
use crate::http::problem::Problem;
use crate::registry::contention::{self, Contention};

const MIB: u64 = 1024 * 1024;
/// What the parts that are being received take together.
const ROOM_BYTES: u64 = 512 * MIB;
/// How long a part may have its room while others wait for some.
const HELD_MAX: Duration = Duration::from_secs(120);
/// Whoever had the room at first has lost it by then, also where storage is slow.
const WAIT_MAX: Duration = Duration::from_secs(180);
/// Two sessions may share a turn by chance, and wait for each other; so do parts that are so many
/// apart.
const TURNS: usize = 1024;

static ROOM: LazyLock<Room> = LazyLock::new(|| Room::new(ROOM_BYTES, HELD_MAX, WAIT_MAX));
static PARTS: LazyLock<Vec<AsyncMutex<()>>> =
    LazyLock::new(|| (0..TURNS).map(|_| AsyncMutex::new(())).collect());
static SESSIONS: LazyLock<Vec<RwLock<()>>> =
    LazyLock::new(|| (0..TURNS).map(|_| RwLock::new(())).collect());

/// Memory that is shared; see the module's documentation.
#[derive(Debug)]
struct Room {
    /// In MiB.
    free: Semaphore,
    contention: Arc<Contention>,
}

/// Room for one part, which is free again when this is dropped.
pub type Held<'a> = contention::Held<SemaphorePermit<'a>>;

impl Room {
    fn new(bytes: u64, held_max: Duration, wait_max: Duration) -> Self {
        let free = Semaphore::new((bytes / MIB) as usize);
        Self { free, contention: Contention::new(held_max, wait_max) }
    }

    /// `None` where there was none for too long.
    async fn take(&self, bytes: u64) -> Option<Held<'_>> {
        let units = bytes.div_ceil(MIB).max(1) as u32;
        let permit = match self.free.try_acquire_many(units) {
            Ok(permit) => permit,
            Err(_) => self.contention.wait(units, self.free.acquire_many(units)).await?.ok()?,
        };
        Some(self.contention.hold(units, permit))
    }
}

/// Room for a part.
///
/// # Errors
/// 503 where others have all of it for too long, or the node stops.
pub async fn room(bytes: u64, drain: &Drain) -> Result<Held<'static>, Problem> {
    let text = "the node receives as much as it has room for; try again, or at another node";
    tokio::select! {
        held = ROOM.take(bytes) => held.ok_or_else(|| unavailable(text)),
        () = drain.cut() => Err(stopping()),
    }
}

/// What `wait` gives, for a part.
///
/// # Errors
/// 503 where the node stops before.
pub async fn unless_stopping<T>(
    drain: &Drain,
    wait: impl Future<Output = T>,
) -> Result<T, Problem> {
    tokio::select! {
        done = wait => Ok(done),
        () = drain.cut() => Err(stopping()),
    }
}

/// Reads a part that has `wanted` bytes.
///
/// # Errors
/// Where it has another length, comes too slowly, or breaks off; 503 where others want its room, or the
/// node stops.
pub async fn collect(
    body: Body,
    part: u32,
    wanted: u64,
    held: &Held<'_>,
    drain: &Drain,
) -> Result<Bytes, Problem> {
    let mut pieces = body.into_data_stream();
    let mut bytes = BytesMut::with_capacity(wanted as usize);
    let broken = |text: String| Problem::bad_request("chunk_incomplete", text);
    let mut pace = Pace::begin();
    let mut is_wanted = std::pin::pin!(held.is_wanted());
    loop {
        let piece = tokio::select! {
            piece = pace.within(pieces.try_next()) => piece,
            () = &mut is_wanted => return Err(too_long(part)),
            () = drain.cut() => return Err(stopping()),
        };
        let piece =
            piece.map_err(|_| broken(format!("part {part} came too slowly; send it again")))?;
        let Some(piece) =
            piece.map_err(|error| broken(format!("part {part} broke off: {error}")))?
        else {
            break;
        };
        if bytes.len() as u64 + piece.len() as u64 > wanted {
            return Err(wrong_length(part, wanted, "more"));
        }
        pace.count(piece.len());
        bytes.extend_from_slice(&piece);
    }
    if bytes.len() as u64 != wanted {
        return Err(wrong_length(part, wanted, bytes.len()));
    }
    Ok(bytes.freeze())
}

fn stopping() -> Problem {
    unavailable("the node is stopping; send the part again, to any node")
}

fn too_long(part: u32) -> Problem {
    let text = format!(
        "part {part} took longer than {} s while others wait for its room; send it again later, or \
         choose shorter parts",
        HELD_MAX.as_secs()
    );
    unavailable(text)
}

pub fn wrong_length(part: u32, wanted: u64, found: impl std::fmt::Display) -> Problem {
    let text = format!("part {part} has {wanted} bytes, but {found} were sent");
    Problem::bad_request("chunk_size_mismatch", text)
}

fn turn(upload: UploadId, part: u32) -> usize {
    // The end of an id is random.
    (upload.as_uuid().as_u128() as usize).wrapping_add(part as usize) % TURNS
}

/// The turn to store a part: to be held while the session is looked at, the part is stored, and
/// recorded.
pub async fn storing(
    upload: UploadId,
    part: u32,
) -> (RwLockReadGuard<'static, ()>, MutexGuard<'static, ()>) {
    let session = SESSIONS[turn(upload, 0)].read().await;
    (session, PARTS[turn(upload, part)].lock().await)
}

/// The turn to claim a session: nobody here stores parts of it meanwhile.
pub async fn claiming(upload: UploadId) -> RwLockWriteGuard<'static, ()> {
    SESSIONS[turn(upload, 0)].write().await
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn room_that_was_held_for_long_goes_to_who_waits_for_it() {
        let room = Room::new(2 * MIB, SHORT, LONG);
        let (slow, quick) = (room.take(MIB).await.unwrap(), room.take(1).await.unwrap());
        let kept = tokio::time::timeout(SHORT * 3, slow.is_wanted()).await;
        assert!(kept.is_err(), "nobody waits, and it is taken away");
        let gives_up = async move {
            slow.is_wanted().await;
            drop(slow);
        };
        let (third, ()) = tokio::join!(room.take(MIB), gives_up);
        assert!(third.is_some());
        // One part was enough.
        assert!(tokio::time::timeout(SHORT * 3, quick.is_wanted()).await.is_err());
    }

    #[tokio::test]
    async fn nobody_waits_for_room_for_ever() {
        let room = Room::new(MIB, LONG, SHORT);
        let held = room.take(MIB).await.unwrap();
        assert!(room.take(MIB).await.is_none());
        drop(held);
        assert!(room.take(MIB).await.is_some());
    }

    #[tokio::test]
    async fn a_node_that_stops_waits_for_no_part() {
        let (room, drain) = (Room::new(MIB, LONG, LONG), Drain::default());
        let held = room.take(MIB).await.unwrap();
        let endless = futures::stream::pending::<Result<Bytes, std::io::Error>>();
        drain.cut_before(Duration::ZERO);
        let refused = collect(Body::from_stream(endless), 1, 5, &held, &drain).await.unwrap_err();
        assert_eq!((refused.status.as_u16(), refused.code), (503, "unavailable"));
    }

    #[tokio::test]
    async fn a_session_is_claimed_when_its_parts_are_stored() {
        let upload = UploadId::from_uuid(uuid::Uuid::from_u128(7));
        let first = storing(upload, 3).await;
        let other = storing(upload, 4).await;
        assert!(tokio::time::timeout(SHORT, storing(upload, 3)).await.is_err(), "the same part");
        assert!(tokio::time::timeout(SHORT, claiming(upload)).await.is_err());
        drop((first, other));
        let claiming = claiming(upload).await;
        assert!(tokio::time::timeout(SHORT, storing(upload, 3)).await.is_err());
        drop(claiming);
        drop(storing(upload, 3).await);
    }
}
