//! A disk's file, written on the fly from its chunks.
//!
//! Invariants: the same recipe and format give the same bytes; memory is bounded by one piece for
//! each reader and [`PIECES_AHEAD_ALL`] more for all of them. A reader may stop for as long as it
//! likes: everyone has one piece that nobody else can take, and who comes later may read about as
//! far ahead as who stands still.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::FuturesOrdered;
use futures::{Stream, StreamExt};
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
static AHEAD: Semaphore = Semaphore::const_new(PIECES_AHEAD_ALL);

/// The file's bytes, in order, some pieces ahead of the reader.
pub fn exported(
    origin: Origin,
    id: RecipeId,
    export: Export,
    range: Range<u64>,
) -> impl Stream<Item = Result<Bytes, Error>> + Send + 'static {
    let mut at = range.start;
    let reads = std::iter::from_fn(move || {
        let most = range.end.saturating_sub(at).min(PIECE_BYTES_MAX);
        let piece = export.pieces(at, most).next()?;
        at += piece.length();
        Some(read(origin.clone(), id, export.clone(), piece))
    });
    read_ahead(reads, &AHEAD)
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

/// What `reads` bring, in their order. So many are under way as `room` allows, and always one.
fn read_ahead<F>(
    reads: impl Iterator<Item = F> + Send + 'static,
    room: &'static Semaphore,
) -> impl Stream<Item = F::Output> + Send + 'static
where
    F: Future<Output: Send> + Send + 'static,
{
    let begun = (reads.fuse(), FuturesOrdered::new());
    futures::stream::unfold(begun, move |(mut reads, mut ahead)| async move {
        while ahead.len() < PIECES_AHEAD {
            let permit = if ahead.is_empty() { None } else { further(room, ahead.len()) };
            if permit.is_none() && !ahead.is_empty() {
                break;
            }
            let Some(read) = reads.next() else { break };
            ahead.push_back(holding(read, permit));
        }
        let (piece, _permit) = ahead.next().await?;
        Some((piece, (reads, ahead)))
    })
}

/// One piece more for who has read so many ahead. The less is free, the fewer anyone may.
fn further(room: &'static Semaphore, ahead: usize) -> Option<SemaphorePermit<'static>> {
    let share = room.available_permits() / (PIECES_AHEAD_ALL / PIECES_AHEAD);
    if ahead <= share { room.try_acquire().ok() } else { None }
}

/// The permit is held until the reader has what was read.
async fn holding<F: Future>(
    read: F,
    permit: Option<SemaphorePermit<'static>>,
) -> (F::Output, Option<SemaphorePermit<'static>>) {
    (read.await, permit)
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

    #[tokio::test]
    async fn readers_that_stand_still_keep_little_together_and_stop_nobody() {
        static ROOM: Semaphore = Semaphore::const_new(PIECES_AHEAD_ALL);
        static BEGUN: AtomicUsize = AtomicUsize::new(0);
        let reader = || {
            let reads = (0..READS).map(|read| {
                BEGUN.fetch_add(1, Ordering::Relaxed);
                std::future::ready(read)
            });
            Box::pin(read_ahead(reads, &ROOM))
        };
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
        assert_eq!(ROOM.available_permits(), PIECES_AHEAD_ALL);
    }

    #[test]
    fn who_comes_later_may_read_about_as_far_ahead() {
        static ROOM: Semaphore = Semaphore::const_new(PIECES_AHEAD_ALL);
        let mut reached = Vec::new();
        // As many as would leave nothing, if each took as much as it could alone.
        for _ in 0..PIECES_AHEAD_ALL / PIECES_AHEAD {
            let mut ahead = 1;
            while ahead < PIECES_AHEAD
                && let Some(permit) = further(&ROOM, ahead)
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
