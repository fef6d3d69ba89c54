//! Bounds what HTTP/2 clients have sent and nobody has read yet.
//!
//! Of each body, a client may send a window before it has to wait, and a request that waits – for
//! room, for its turn, for a leader – reads nothing. (Of HTTP/1.1 that lies in the kernel.) So each body
//! counts for what may lie here of it, from its request's headers until it was read to its end or let
//! go of; who comes when there is no room left is refused before anything of it is read.
//!
//! Invariants: at most [`BACKLOG_BYTES_MAX`] lie unread at one listener, and [`OF_ONE_BYTES_MAX`] of one
//! client's, so that nobody alone keeps the others out.
//! Non-goal: what was read; see `registry::intake` and `api::reception`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::{StatusCode, Version};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use shoal_metadata::Suspect;

use super::auth::client_of;
use super::listener::STREAM_WINDOW_BYTES;
use super::problem::Problem;
use crate::registry::RegistryError;

/// Of 4,096 long bodies; a short one counts for no more than its length.
const BACKLOG_BYTES_MAX: u64 = 4096 * STREAM_WINDOW_BYTES as u64;
/// A thousand of them: a site behind one address may push so many layers at once.
const OF_ONE_BYTES_MAX: u64 = BACKLOG_BYTES_MAX / 4;
/// For whoever is refused; in the registry, longer (see `registry::error`).
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Clones are the same.
#[derive(Debug, Clone)]
pub struct Backlog {
    held: Arc<Mutex<Held>>,
    bytes_max: u64,
    of_one_bytes_max: u64,
}

#[derive(Debug, Default)]
struct Held {
    bytes: u64,
    /// Of who has any.
    by_client: HashMap<IpAddr, u64>,
}

impl Default for Backlog {
    fn default() -> Self {
        Self::new(BACKLOG_BYTES_MAX, OF_ONE_BYTES_MAX)
    }
}

impl Backlog {
    fn new(bytes_max: u64, of_one_bytes_max: u64) -> Self {
        Self { held: Arc::default(), bytes_max, of_one_bytes_max }
    }

    fn take(&self, client: Option<IpAddr>, bytes: u64) -> Option<Place> {
        // Whoever has a whole network is one client.
        let client = client.map(Suspect::network);
        let mut held = self.held.lock();
        let all = held.bytes + bytes;
        if all > self.bytes_max {
            return None;
        }
        if let Some(client) = client {
            let of_one = held.by_client.get(&client).unwrap_or(&0) + bytes;
            if of_one > self.of_one_bytes_max {
                return None;
            }
            held.by_client.insert(client, of_one);
        }
        held.bytes = all;
        Some(Place { backlog: self.clone(), client, bytes })
    }
}

/// Room for what may lie here of one body.
struct Place {
    backlog: Backlog,
    client: Option<IpAddr>,
    bytes: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.backlog.held.lock();
        held.bytes -= self.bytes;
        let Some(client) = self.client else { return };
        if let Some(of_one) = held.by_client.get_mut(&client) {
            *of_one -= self.bytes;
            if *of_one == 0 {
                held.by_client.remove(&client);
            }
        }
    }
}

/// The layer; see the module's documentation.
pub async fn bound_backlog(
    State(backlog): State<Backlog>,
    request: Request,
    next: Next,
) -> Response {
    if request.version() < Version::HTTP_2 || request.body().is_end_stream() {
        return next.run(request).await;
    }
    // What an HTTP/2 client announces, it sends no more than.
    let announced = request.body().size_hint().upper().unwrap_or(u64::MAX);
    let bytes = announced.min(STREAM_WINDOW_BYTES.into());
    let Some(place) = backlog.take(client_of(request.extensions()), bytes) else {
        return refused(request.uri().path());
    };
    let counted = |body| Body::new(Counted { body, place: Some(place) });
    next.run(request.map(counted)).await
}

fn refused(path: &str) -> Response {
    let text = "too many bodies wait here to be read; come again later, or ask another node";
    if path.starts_with("/v2") {
        return RegistryError::crowded(text).into_response();
    }
    let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", text);
    Problem { retry_after: Some(RETRY_AFTER), ..problem }.into_response()
}

/// A body that gives its place back at its end.
struct Counted {
    body: Body,
    place: Option<Place>,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) || self.body.is_end_stream() {
            self.place = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::Router;
    use axum::body::to_bytes;
    use axum::extract::ConnectInfo;
    use axum::http::header;
    use axum::middleware::from_fn_with_state;
    use axum::routing::post;
    use futures::stream;
    use tokio::sync::Semaphore;
    use tower_service::Service;

    use super::*;

    const WINDOW: u64 = STREAM_WINDOW_BYTES as u64;

    fn request(version: Version, client: u8, body: Body) -> Request {
        let mut request =
            http::Request::post("/v2/a/blobs/uploads/").version(version).body(body).unwrap();
        let client = SocketAddr::from(([10, 0, 0, client], 1));
        request.extensions_mut().insert(ConnectInfo(client));
        request
    }

    /// A body of which nobody knows how long it gets.
    fn endless() -> Body {
        Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>())
    }

    #[tokio::test]
    async fn who_sends_what_nobody_reads_is_refused_when_there_is_too_much_of_it() {
        // Of two long bodies, and one of each client's.
        let backlog = Backlog::new(2 * WINDOW, WINDOW);
        let begun = Arc::new(Semaphore::new(0));
        let begins = Arc::clone(&begun);
        let waits = move |body: Body| {
            begins.add_permits(1);
            async move {
                std::future::pending::<()>().await;
                drop(body);
            }
        };
        let router = Router::new().route("/v2/{*path}", post(waits));
        let router: Router = router.layer(from_fn_with_state(backlog.clone(), bound_backlog));
        let call = |request: Request| {
            let mut router = router.clone();
            tokio::spawn(async move { router.call(request).await.unwrap() })
        };
        let first = call(request(Version::HTTP_2, 1, endless()));
        begun.acquire().await.unwrap().forget();
        let second = call(request(Version::HTTP_2, 2, endless()));
        begun.acquire().await.unwrap().forget();
        for client in [1, 3] {
            let refused = call(request(Version::HTTP_2, client, endless())).await.unwrap();
            assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert!(refused.headers().contains_key(header::RETRY_AFTER));
        }
        let of_the_kernel = call(request(Version::HTTP_11, 1, endless()));
        let of_nothing = call(request(Version::HTTP_2, 1, Body::empty()));
        begun.acquire().await.unwrap().forget();
        begun.acquire().await.unwrap().forget();
        // Whoever leaves makes room.
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        let again = call(request(Version::HTTP_2, 1, endless()));
        begun.acquire().await.unwrap().forget();
        let all = [second, of_the_kernel, of_nothing, again];
        all.iter().for_each(tokio::task::JoinHandle::abort);
        for one in all {
            assert!(one.await.unwrap_err().is_cancelled());
        }
        let held = backlog.held.lock();
        assert_eq!((held.bytes, held.by_client.len()), (0, 0));
    }

    #[tokio::test]
    async fn what_was_read_counts_no_more_and_what_is_short_counts_for_its_length() {
        let backlog = Backlog::new(WINDOW, WINDOW);
        let seen = backlog.clone();
        let reads = move |body: Body| {
            let (seen, before) = (seen.clone(), seen.held.lock().bytes);
            async move {
                let read = to_bytes(body, usize::MAX).await.unwrap().len();
                let after = seen.held.lock().bytes;
                format!("{before} {read} {after}")
            }
        };
        let router = Router::new().route("/v2/{*path}", post(reads));
        let mut router: Router = router.layer(from_fn_with_state(backlog, bound_backlog));
        let long = vec![7; 2 * WINDOW as usize];
        for (body, wanted) in [
            (Body::from("short"), "5 5 0".to_owned()),
            (Body::from(long), format!("{WINDOW} {} 0", 2 * WINDOW)),
        ] {
            let answer = router.call(request(Version::HTTP_2, 1, body)).await.unwrap();
            let said = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
            assert_eq!(String::from_utf8_lossy(&said), wanted);
        }
    }
}
