//! Parts of disks on their way in: room in memory, and turns to store them.
//!
//! Room: a part gets room for all of its bytes before the first one is read, in the order of asking,
//! so that nobody who holds some waits for more. Senders may be slow while there is enough for all.
//! While others wait, what has had its room for [`HELD_MAX`] is given up, as much as they want; its
//! client sends it again. So senders who are just not slow enough to be cut off can hold all room
//! together no longer than that, and who waits for [`WAIT_MAX`] is better off at another node.
//!
//! Turns: one part is stored by one request at a time at a node, and none of a session while it is
//! being claimed to be read. Whoever has a turn looks at the session anew before it stores, so that
//! what is recorded of a part is what lies under its key. Non-goal: clients that send one part with
//! different bytes to two nodes at the same moment; which of them is stored last is not known.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use parking_lot::Mutex;
use shoal_content::UploadId;
use tokio::sync::{
    Mutex as AsyncMutex, MutexGuard, Notify, RwLock, RwLockReadGuard, RwLockWriteGuard, Semaphore,
    SemaphorePermit,
};
use tokio::time::Instant;

use super::problem::unavailable;
use crate::http::pace::Pace;
use crate::http::problem::Problem;

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
    demand: Mutex<Demand>,
    /// Told whenever somebody begins to wait.
    waits: Notify,
    held_max: Duration,
    wait_max: Duration,
}

/// What is wanted by those who wait, and what is being given up for them; in MiB.
#[derive(Debug, Default)]
struct Demand {
    wanted: u64,
    given_up: u64,
}

impl Demand {
    /// Whether something that has been held for long enough is to be given up, too; it counts from
    /// then on.
    fn takes(&mut self, units: u32) -> bool {
        let takes = self.wanted > self.given_up;
        if takes {
            self.given_up += u64::from(units);
        }
        takes
    }
}

/// Room for one part, which is free again when this is dropped.
#[derive(Debug)]
pub struct Held<'a> {
    room: &'a Room,
    units: u32,
    since: Instant,
    is_given_up: AtomicBool,
    _permit: SemaphorePermit<'a>,
}

/// Somebody who waits.
struct Waiting<'a> {
    room: &'a Room,
    units: u32,
}

impl<'a> Waiting<'a> {
    fn begin(room: &'a Room, units: u32) -> Self {
        room.demand.lock().wanted += u64::from(units);
        room.waits.notify_waiters();
        Self { room, units }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.room.demand.lock().wanted -= u64::from(self.units);
    }
}

impl Room {
    fn new(bytes: u64, held_max: Duration, wait_max: Duration) -> Self {
        let free = Semaphore::new((bytes / MIB) as usize);
        let (demand, waits) = (Mutex::default(), Notify::new());
        Self { free, demand, waits, held_max, wait_max }
    }

    /// `None` where there was none for too long.
    async fn take(&self, bytes: u64) -> Option<Held<'_>> {
        let units = bytes.div_ceil(MIB).max(1) as u32;
        let permit = match self.free.try_acquire_many(units) {
            Ok(permit) => permit,
            Err(_) => {
                let _waiting = Waiting::begin(self, units);
                let waited = tokio::time::timeout(self.wait_max, self.free.acquire_many(units));
                waited.await.ok()?.ok()?
            }
        };
        let (since, is_given_up) = (Instant::now(), AtomicBool::new(false));
        Some(Held { room: self, units, since, is_given_up, _permit: permit })
    }
}

impl Held<'_> {
    /// Returns when the room has to be given up.
    async fn is_wanted(&self) {
        tokio::time::sleep_until(self.since + self.room.held_max).await;
        loop {
            // Whoever begins to wait after the look wakes this one all the same.
            let another = self.room.waits.notified();
            let takes = self.room.demand.lock().takes(self.units);
            if takes {
                self.is_given_up.store(true, Ordering::Relaxed);
                return;
            }
            another.await;
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.is_given_up.load(Ordering::Relaxed) {
            self.room.demand.lock().given_up -= u64::from(self.units);
        }
    }
}

/// Room for a part.
///
/// # Errors
/// 503 where others have all of it for too long.
pub async fn room(bytes: u64) -> Result<Held<'static>, Problem> {
    let text = "the node receives as much as it has room for; try again, or at another node";
    ROOM.take(bytes).await.ok_or_else(|| unavailable(text))
}

/// Reads a part that has `wanted` bytes.
///
/// # Errors
/// Where it has another length, comes too slowly, or breaks off.
pub async fn collect(
    body: Body,
    part: u32,
    wanted: u64,
    held: &Held<'_>,
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

    #[test]
    fn as_much_is_given_up_as_is_wanted_and_no_more() {
        let mut demand = Demand::default();
        assert!(!demand.takes(64), "nobody waits");
        demand.wanted = 65;
        assert!(demand.takes(64) && demand.takes(64));
        assert!(!demand.takes(64), "two parts make room for 65 MiB");
        // Both are free again, and who waited has got what it wanted.
        demand = Demand { wanted: demand.wanted - 65, given_up: demand.given_up - 128 };
        assert!(!demand.takes(64));
    }

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
        let demand = room.demand.lock();
        assert_eq!((demand.wanted, demand.given_up), (0, 0));
    }

    #[tokio::test]
    async fn nobody_waits_for_room_for_ever() {
        let room = Room::new(MIB, LONG, SHORT);
        let held = room.take(MIB).await.unwrap();
        assert!(room.take(MIB).await.is_none());
        assert_eq!(room.demand.lock().wanted, 0);
        drop(held);
        assert!(room.take(MIB).await.is_some());
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
