//! A disk's file, written on the fly from its chunks.
//!
//! Invariants: the same recipe and format give the same bytes; memory is bounded by one piece for
//! each reader and [`PIECES_AHEAD_ALL`] more for all of them. A reader may stop for as long as it
//! likes: everyone has one piece that nobody else can take, who comes later may read about as far
//! ahead as who stands still, and where that is next to nothing, who stands still gives way: what was
//! read ahead of it is dropped, and read again once it goes on.

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use futures::{FutureExt, Stream, StreamExt};
use parking_lot::Mutex;
use shoal_content::{Recipe, RecipeId};
use shoal_formats::{Adler32, Export, Piece};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::origin::{Error, Origin};

/// Pieces that are read ahead of one reader, where there is room.
const PIECES_AHEAD: usize = 16;
/// Pieces that are read ahead of all readers, beyond the first one of each.
const PIECES_AHEAD_ALL: usize = 1024;
/// The longest piece.
const PIECE_BYTES_MAX: u64 = 256 * 1024;
static ZEROS: [u8; PIECE_BYTES_MAX as usize] = [0; PIECE_BYTES_MAX as usize];
/// Who has fewer ahead takes from those who stand still.
const PIECES_WANTED: usize = 4;
/// Readers that are looked at for one who stands still.
const LOOKS_MAX: usize = 32;
const STALLED_AFTER: Duration = Duration::from_secs(10);
static AHEAD: Room = Room::new(STALLED_AFTER);

/// The file's bytes, in order, some pieces ahead of the reader.
pub fn exported(
    origin: Origin,
    id: RecipeId,
    export: Export,
    range: Range<u64>,
) -> impl Stream<Item = Result<Bytes, Error>> + Send + 'static {
    let start = range.start;
    let begin = move |at: u64| {
        let most = range.end.saturating_sub(at).min(PIECE_BYTES_MAX);
        let piece = export.pieces(at, most).next()?;
        let end = at + piece.length();
        Some((read(origin.clone(), id, export.clone(), piece).boxed(), end))
    };
    read_ahead(start, begin, &AHEAD)
}

async fn read(origin: Origin, id: RecipeId, export: Export, piece: Piece) -> Result<Bytes, Error> {
    let recipe = export.recipe();
    match piece {
        Piece::Bytes(bytes) => Ok(Bytes::from(bytes)),
        Piece::Zero(length) => Ok(Bytes::from_static(&ZEROS[..length as usize])),
        Piece::Chunk { chunk, from, length, .. } => {
            let content = origin.chunk(id, recipe, chunk).await?;
            Ok(content.slice(from as usize..(from + length) as usize))
        }
        Piece::Adler32 { guest, of, from, length } => {
            let sum = adler32(&origin, id, recipe, export.guest_pieces(guest, of.into()));
            let sum = sum.await?;
            Ok(Bytes::copy_from_slice(&sum[from.into()..(from + length).into()]))
        }
    }
}

/// What the reads bring, in their order, from `start` on. So many are under way as `room` allows, and
/// always one. `begin` begins the read of what starts somewhere, and says where that ends; it may be
/// asked for the same again.
fn read_ahead<T: Send + 'static>(
    start: u64,
    begin: impl FnMut(u64) -> Option<(BoxFuture<'static, T>, u64)> + Send + 'static,
    room: &'static Room,
) -> ReadAhead<T> {
    let reader = Arc::new(Reader(Mutex::new(Ahead {
        begin: Box::new(begin),
        given: start,
        begun: start,
        reads: FuturesOrdered::new(),
        is_asked: false,
        asked_at: Instant::now(),
    })));
    room.enter(Arc::downgrade(&reader) as Weak<dyn GivesWay>);
    ReadAhead { reader, room }
}

/// A read's outcome, where it ends, and what it takes of the room until the reader has it.
type Done<T> = (T, u64, Option<SemaphorePermit<'static>>);
type Begin<T> = dyn FnMut(u64) -> Option<(BoxFuture<'static, T>, u64)> + Send;

/// What is read ahead of one reader.
struct Ahead<T> {
    begin: Box<Begin<T>>,
    /// Where that ends which the reader has.
    given: u64,
    /// Where that ends whose read was begun.
    begun: u64,
    reads: FuturesOrdered<BoxFuture<'static, Done<T>>>,
    /// Whether the reader waits for the next one.
    is_asked: bool,
    /// When it last did.
    asked_at: Instant,
}

impl<T: Send + 'static> Ahead<T> {
    fn fill(&mut self, room: &'static Room) {
        while self.reads.len() < PIECES_AHEAD {
            let permit = match self.reads.len() {
                0 => None,
                ahead => match room.further(ahead) {
                    None => return,
                    permit => permit,
                },
            };
            let Some((read, end)) = (self.begin)(self.begun) else { return };
            self.begun = end;
            self.reads.push_back(Box::pin(async move { (read.await, end, permit) }));
        }
    }
}

struct Reader<T>(Mutex<Ahead<T>>);

/// A reader as others see it.
trait GivesWay: Send + Sync {
    /// Lets go of what was read ahead of a reader that has asked for nothing for so long; says
    /// whether that was something. It is read again when the reader goes on.
    fn give_way(&self, stalled_after: Duration) -> bool;
}

impl<T: Send + 'static> GivesWay for Reader<T> {
    fn give_way(&self, stalled_after: Duration) -> bool {
        // Who is being asked at this moment does not stand still.
        let Some(mut ahead) = self.0.try_lock() else { return false };
        let stands_still = !ahead.is_asked && ahead.asked_at.elapsed() >= stalled_after;
        // One is its own, and takes no room.
        let gives_way = stands_still && ahead.reads.len() > 1;
        if gives_way {
            ahead.reads = FuturesOrdered::new();
            ahead.begun = ahead.given;
        }
        gives_way
    }
}

/// What was read ahead for all readers together, and who they are.
struct Room {
    free: Semaphore,
    readers: Mutex<VecDeque<Weak<dyn GivesWay>>>,
    /// Who has asked for nothing for so long gives way.
    stalled_after: Duration,
}

impl Room {
    const fn new(stalled_after: Duration) -> Self {
        let free = Semaphore::const_new(PIECES_AHEAD_ALL);
        Self { free, readers: Mutex::new(VecDeque::new()), stalled_after }
    }

    /// Two are looked at for each that comes, so that those who have gone do not pile up.
    fn enter(&self, reader: Weak<dyn GivesWay>) {
        let mut readers = self.readers.lock();
        for _ in 0..2 {
            if let Some(known) = readers.pop_front().filter(|known| known.strong_count() > 0) {
                readers.push_back(known);
            }
        }
        readers.push_back(reader);
    }

    /// One piece more for who has read so many ahead. The less is free, the fewer anyone may, beyond
    /// those that everyone is to have: they are taken from those who stand still.
    fn further(&'static self, ahead: usize) -> Option<SemaphorePermit<'static>> {
        if ahead >= PIECES_WANTED {
            let share = self.free.available_permits() / (PIECES_AHEAD_ALL / PIECES_AHEAD);
            return if ahead <= share { self.free.try_acquire().ok() } else { None };
        }
        match self.free.try_acquire() {
            Err(_) if self.make_room() => self.free.try_acquire().ok(),
            taken => taken.ok(),
        }
    }

    fn make_room(&self) -> bool {
        let mut readers = self.readers.lock();
        for _ in 0..readers.len().min(LOOKS_MAX) {
            let Some(reader) = readers.pop_front() else { break };
            let Some(there) = reader.upgrade() else { continue };
            readers.push_back(reader);
            if there.give_way(self.stalled_after) {
                return true;
            }
        }
        false
    }
}

/// See [`read_ahead`].
struct ReadAhead<T> {
    reader: Arc<Reader<T>>,
    room: &'static Room,
}

impl<T: Send + 'static> Stream for ReadAhead<T> {
    type Item = T;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let mut ahead = self.reader.0.lock();
        ahead.is_asked = true;
        ahead.fill(self.room);
        let done = std::task::ready!(ahead.reads.poll_next_unpin(context));
        (ahead.is_asked, ahead.asked_at) = (false, Instant::now());
        Poll::Ready(done.map(|(piece, end, _permit)| {
            ahead.given = end;
            piece
        }))
    }
}

/// Of what `pieces` of the guest hold; their chunks were just read and are at hand.
async fn adler32(
    origin: &Origin,
    id: RecipeId,
    recipe: &Arc<Recipe>,
    pieces: impl Iterator<Item = Piece> + Send,
) -> Result<[u8; 4], Error> {
    let mut sum = Adler32::default();
    for piece in pieces {
        match piece {
            Piece::Chunk { chunk, from, length, .. } => {
                let content = origin.chunk(id, recipe, chunk).await?;
                sum.update(&content[from as usize..(from + length) as usize]);
            }
            hole => sum.zeros(hole.length()),
        }
    }
    Ok(sum.to_bytes())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const READS: usize = 100;

    /// Gives numbers; `begun` counts the reads.
    fn numbers(room: &'static Room, begun: &'static AtomicUsize) -> ReadAhead<usize> {
        let begin = move |at: u64| {
            let number = usize::try_from(at).unwrap();
            (number < READS).then(|| {
                begun.fetch_add(1, Ordering::Relaxed);
                (std::future::ready(number).boxed(), at + 1)
            })
        };
        read_ahead(0, begin, room)
    }

    #[tokio::test]
    async fn readers_that_stand_still_keep_little_together_and_stop_nobody() {
        static ROOM: Room = Room::new(Duration::MAX);
        static BEGUN: AtomicUsize = AtomicUsize::new(0);
        let reader = || numbers(&ROOM, &BEGUN);
        let mut still = Vec::new();
        for readers in 1..=2 * PIECES_AHEAD_ALL {
            let mut another = reader();
            assert_eq!(another.next().await, Some(0));
            still.push(another);
            assert!(BEGUN.load(Ordering::Relaxed) <= PIECES_AHEAD_ALL + readers);
            if readers == 1 {
                assert_eq!(BEGUN.load(Ordering::Relaxed), PIECES_AHEAD, "there is room for all");
            }
        }
        let quick: Vec<_> = reader().collect().await;
        assert_eq!(quick, (0..READS).collect::<Vec<_>>());
        let rest: Vec<_> = still.swap_remove(0).collect().await;
        assert_eq!(rest, (1..READS).collect::<Vec<_>>());
        drop(still);
        assert_eq!(ROOM.free.available_permits(), PIECES_AHEAD_ALL);
    }

    #[tokio::test]
    async fn who_stands_still_gives_way_and_reads_on_where_it_was() {
        static ROOM: Room = Room::new(Duration::ZERO);
        static BEGUN: AtomicUsize = AtomicUsize::new(0);
        let mut still = Vec::new();
        for _ in 0..PIECES_AHEAD_ALL {
            let mut another = numbers(&ROOM, &BEGUN);
            assert_eq!(another.next().await, Some(0));
            // The first of them is with the reader.
            assert!(another.reader.0.lock().reads.len() + 1 >= PIECES_WANTED, "nobody gave way");
            still.push(another);
        }
        let gave_way = still.iter().filter(|one| one.reader.0.lock().reads.is_empty()).count();
        assert!(gave_way > PIECES_AHEAD_ALL / 2, "{gave_way}");
        for reader in still {
            let rest: Vec<_> = reader.collect().await;
            assert_eq!(rest, (1..READS).collect::<Vec<_>>());
        }
        assert_eq!(ROOM.free.available_permits(), PIECES_AHEAD_ALL);
        // Who has gone is forgotten.
        for _ in 0..PIECES_AHEAD_ALL {
            drop(numbers(&ROOM, &BEGUN));
        }
        assert!(ROOM.readers.lock().len() <= 2);
    }

    #[tokio::test]
    async fn who_waits_for_storage_does_not_stand_still() {
        static ROOM: Room = Room::new(Duration::ZERO);
        let begin = |at: u64| Some((std::future::pending::<()>().boxed(), at + 1));
        let mut waiting = read_ahead(0, begin, &ROOM);
        assert!(waiting.next().now_or_never().is_none());
        assert!(!ROOM.make_room());
        assert_eq!(waiting.reader.0.lock().reads.len(), PIECES_AHEAD);
    }

    #[test]
    fn who_comes_later_may_read_about_as_far_ahead() {
        static ROOM: Room = Room::new(Duration::MAX);
        let mut reached = Vec::new();
        // As many as would leave nothing, if each took as much as it could alone.
        for _ in 0..PIECES_AHEAD_ALL / PIECES_AHEAD {
            let mut ahead = 1;
            while ahead < PIECES_AHEAD
                && let Some(permit) = ROOM.further(ahead)
            {
                permit.forget();
                ahead += 1;
            }
            reached.push(ahead);
        }
        assert_eq!(reached[0], PIECES_AHEAD);
        assert!(reached.iter().all(|&ahead| ahead > PIECES_AHEAD / 4), "{reached:?}");
    }
}
