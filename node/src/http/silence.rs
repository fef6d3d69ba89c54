//! A request whose body stops coming is given up, so that nobody holds a connection, and what
//! belongs to it, by saying nothing.
//!
//! Non-goal: bodies that drip; where they cost more than a connection, `pace` looks at them.

use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use tower_http::timeout::TimeoutBody;

/// Longer than any silence that `pace` allows: who is told so is told there.
const SILENCE_MAX: Duration = Duration::from_secs(90);

/// The layer; see the module's documentation.
pub async fn bound_silence(request: Request, next: Next) -> Response {
    next.run(bounded(request, SILENCE_MAX)).await
}

fn bounded(request: Request, silence: Duration) -> Request {
    if request.body().is_end_stream() {
        return request;
    }
    request.map(|body| Body::new(TimeoutBody::new(silence, body)))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::body::{Bytes, to_bytes};
    use futures::{StreamExt, stream};

    use super::*;

    #[tokio::test]
    async fn a_body_that_stops_is_given_up_and_one_that_comes_is_read() {
        let silence = Duration::from_millis(50);
        let piece = || stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"some"))]);
        let whole = bounded(Request::new(Body::from_stream(piece())), silence);
        assert_eq!(to_bytes(whole.into_body(), 9).await.unwrap(), "some");
        let silent = Body::from_stream(piece().chain(stream::pending()));
        let silent = bounded(Request::new(silent), silence);
        assert!(to_bytes(silent.into_body(), 9).await.is_err());
    }
}
