//! Reads what a handler left of a request's body before the answer goes out.
//!
//! An answer that comes before the body was read ends an HTTP/2 stream with a reset, which some
//! clients (curl 7.88, as Debian 12 has it) report as a broken connection, the answer lost. A
//! short rest is cheaper to read than to explain. After a longer one an HTTP/1 connection ends,
//! but lingers until its client has the answer.
//!
//! Invariant: at most [`LEFTOVER_BYTES_MAX`] bytes and [`LEFTOVER_TIMEOUT`] are spent; whoever
//! asked first whether it may send (`Expect: 100-continue`) is not told to go on.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{Version, header};
use axum::middleware::Next;
use axum::response::Response;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::oneshot;

use super::linger::Unread;

const LEFTOVER_BYTES_MAX: u64 = 8 * 1024 * 1024;
const LEFTOVER_TIMEOUT: Duration = Duration::from_secs(2);

/// The layer; see the module's documentation.
pub async fn read_leftover(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let asked_first = request.headers().contains_key(header::EXPECT);
    let unread = request.extensions().get::<Unread>().cloned().unwrap_or_default();
    let ends_by_reset = request.version() >= Version::HTTP_2;
    let (returned, leftover) = oneshot::channel();
    let lend = |body| Body::new(Lent { body: Some(body), returned: Some(returned) });
    let response = next.run(request.map(lend)).await;
    let is_read = match tokio::time::timeout(Duration::ZERO, leftover).await {
        Ok(Ok(_)) if asked_first => false,
        Ok(Ok(body)) => tokio::time::timeout(LEFTOVER_TIMEOUT, drain(body)).await.unwrap_or(false),
        Ok(Err(_)) => true,
        // A handler may keep the body for later, to copy it into the answer for instance.
        Err(_) => false,
    };
    if !is_read && !ends_by_reset {
        unread.note();
    }
    response
}

/// Whether nothing is left.
async fn drain(mut body: Body) -> bool {
    let mut read = 0;
    while read <= LEFTOVER_BYTES_MAX {
        match body.frame().await {
            Some(Ok(frame)) => read += frame.data_ref().map_or(0, |data| data.len() as u64),
            // Over, or the client is gone.
            Some(Err(_)) | None => return true,
        }
    }
    false
}

/// A body that comes back when it is dropped before its end.
struct Lent {
    body: Option<Body>,
    returned: Option<oneshot::Sender<Body>>,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(body), Some(returned)) = (self.body.take(), self.returned.take())
            && !body.is_end_stream()
        {
            // Where the answer is out already, nobody waits for it.
            let _ = returned.send(body);
        }
    }
}
