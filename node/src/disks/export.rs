//! A disk's file, written on the fly from its chunks.
//!
//! Invariants: the same recipe and format give the same bytes; memory is bounded by
//! [`PIECES_AHEAD`] pieces for each reader.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use shoal_content::{Recipe, RecipeId};
use shoal_formats::{Adler32, Export, Piece};

use crate::origin::{Error, Origin};

/// Pieces that are read ahead of the reader.
const PIECES_AHEAD: usize = 16;
/// The longest piece.
const PIECE_BYTES_MAX: u64 = 256 * 1024;
static ZEROS: [u8; PIECE_BYTES_MAX as usize] = [0; PIECE_BYTES_MAX as usize];

/// The file's bytes, in order, some pieces ahead of the reader.
pub fn exported(
    origin: Origin,
    id: RecipeId,
    export: Export,
    range: Range<u64>,
) -> impl Stream<Item = Result<Bytes, Error>> + Send + 'static {
    let (recipe, whole) = (export.recipe().clone(), export.clone());
    let pieces = futures::stream::unfold((export, range.start), move |(export, at)| {
        let most = range.end.saturating_sub(at).min(PIECE_BYTES_MAX);
        let piece = export.pieces(at, most).next();
        std::future::ready(piece.map(|piece| {
            let next = at + piece.length();
            (piece, (export, next))
        }))
    });
    pieces
        .map(move |piece| {
            let (origin, recipe, export) = (origin.clone(), recipe.clone(), whole.clone());
            async move {
                match piece {
                    Piece::Bytes(bytes) => Ok(Bytes::from(bytes)),
                    Piece::Zero(length) => Ok(Bytes::from_static(&ZEROS[..length as usize])),
                    Piece::Chunk { chunk, from, length, .. } => {
                        let content = origin.chunk(id, &recipe, chunk).await?;
                        Ok(content.slice(from as usize..(from + length) as usize))
                    }
                    Piece::Adler32 { guest, of, from, length } => {
                        let sum =
                            adler32(&origin, id, &recipe, export.guest_pieces(guest, of.into()));
                        let sum = sum.await?;
                        Ok(Bytes::copy_from_slice(&sum[from.into()..(from + length).into()]))
                    }
                }
            }
        })
        .buffered(PIECES_AHEAD)
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
