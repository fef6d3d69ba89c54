//! Bodies that are needed whole: manifests and forms.
//!
//! Invariants: a body that comes too slowly is given up; what bodies longer than [`SMALL_BYTES`]
//! have brought is at most [`LONG_BYTES_MAX`] at a time, whoever sends them. The usual ones are
//! smaller, and wait for nobody.

use std::sync::LazyLock;

use axum::body::Body;
use axum::http::StatusCode;
use axum::http::header;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::RegistryError;
use crate::http::pace::Pace;

/// Up to this length a body costs nothing of what long ones share.
const SMALL_BYTES: usize = 64 * 1024;
const LONG_BYTES_MAX: usize = 128 * 1024 * 1024;

static LONG: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(LONG_BYTES_MAX / SMALL_BYTES));

/// A body, and its share of the memory while it is worked on.
pub struct Whole {
    pub bytes: Bytes,
    _held: Vec<SemaphorePermit<'static>>,
}

/// Reads all of a body.
///
/// # Errors
/// 413 beyond `most` bytes, 408 where it comes too slowly, 400 where it breaks off, and 503 while
/// others have all the room for long ones.
pub async fn whole(body: Body, most: usize) -> Result<Whole, RegistryError> {
    let (mut pieces, mut pace) = (body.into_data_stream(), Pace::begin());
    let (mut bytes, mut held) = (BytesMut::new(), Vec::new());
    loop {
        let piece = pace.within(pieces.next()).await.map_err(|_| too_slow())?;
        let Some(piece) = piece else {
            return Ok(Whole { bytes: bytes.freeze(), _held: held });
        };
        let piece = piece.map_err(|error| broken(&error))?;
        pace.count(piece.len());
        let length = bytes.len() + piece.len();
        if length > most {
            let message = format!("the body has more than {most} bytes");
            return Err(RegistryError::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", message));
        }
        while length > SMALL_BYTES * (held.len() + 1) {
            held.push(LONG.try_acquire().map_err(|_| full())?);
        }
        bytes.extend_from_slice(&piece);
    }
}

fn too_slow() -> RegistryError {
    RegistryError::new(StatusCode::REQUEST_TIMEOUT, "UNKNOWN", "the body comes too slowly")
}

fn broken(error: &axum::Error) -> RegistryError {
    let message = format!("the body cannot be read: {error}");
    RegistryError::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", message)
}

fn full() -> RegistryError {
    let message = "too many long bodies are on their way here; come again in a moment";
    RegistryError::new(StatusCode::SERVICE_UNAVAILABLE, "TOOMANYREQUESTS", message)
        .with(header::RETRY_AFTER, "1")
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;

    fn status(refused: Result<Whole, RegistryError>) -> StatusCode {
        refused.map(|_| ()).unwrap_err().into_response().status()
    }

    #[tokio::test]
    async fn bodies_come_whole_or_are_refused_for_what_they_are() {
        let long = vec![7; 3 * SMALL_BYTES];
        let found = whole(Body::from(long.clone()), long.len()).await.unwrap();
        assert_eq!((&found.bytes[..], found._held.len()), (&long[..], 2));
        assert_eq!(whole(Body::from("usual"), 5).await.unwrap()._held.len(), 0);
        let beyond = whole(Body::from(long.clone()), long.len() - 1).await;
        assert_eq!(status(beyond), StatusCode::PAYLOAD_TOO_LARGE);
        let pieces = [Ok(Bytes::from_static(b"a")), Err(std::io::Error::other("torn"))];
        let torn = Body::from_stream(futures::stream::iter(pieces));
        assert_eq!(status(whole(torn, 9).await), StatusCode::BAD_REQUEST);

        let all = LONG.try_acquire_many((LONG_BYTES_MAX / SMALL_BYTES) as u32 - 2).unwrap();
        let again = whole(Body::from(long.clone()), long.len()).await;
        assert_eq!(status(again), StatusCode::SERVICE_UNAVAILABLE, "two are held by the first");
        assert!(whole(Body::from("usual"), 5).await.is_ok());
        drop((all, found));
        assert!(whole(Body::from(long.clone()), long.len()).await.is_ok());
    }
}
