//! How a node leaves: it says so first, serves on for a while, and ends what it has begun.
//!
//! 1. *Notice*: `/ready` is 503, so that load balancers send no more; every answer on HTTP/1.1 ends
//!    its connection, so that clients look for another node; new requests are served all the same.
//! 2. *End*: nobody is let in any more, idle connections are closed (HTTP/2: GOAWAY), requests
//!    under way end. Bodies that still come are cut off before the deadline, early enough for what
//!    came to be kept: the client goes on from there at another node.
//!
//! Invariant: whoever got an answer to a request has it whole; a request that was taken in is
//! answered, unless it takes longer than the deadline.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, Version, header};
use axum::middleware::Next;
use axum::response::Response;
use tokio_util::sync::CancellationToken;

use crate::state::App;

/// What keeping a body takes that was cut off, and telling its client: so long before the deadline
/// no more is taken in. Of a short deadline it is half.
const CUT_RESERVE: Duration = Duration::from_secs(4);

/// See the module's documentation. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    leaving: Arc<AtomicBool>,
    cut: CancellationToken,
}

impl Drain {
    /// From now on, everyone is told to go elsewhere.
    pub fn give_notice(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// Cuts off the bodies that still come, in time before `deadline` is over.
    pub fn cut_before(&self, deadline: Duration) {
        let cut = self.cut.clone();
        tokio::spawn(async move {
            tokio::time::sleep(deadline - CUT_RESERVE.min(deadline / 2)).await;
            cut.cancel();
        });
    }

    /// Until no more of a body is to be waited for.
    pub async fn cut(&self) {
        self.cut.cancelled().await;
    }
}

/// The middleware that ends connections while the node leaves.
pub async fn say_goodbye(State(app): State<App>, request: Request, next: Next) -> Response {
    let version = request.version();
    let mut response = next.run(request).await;
    // HTTP/2 has GOAWAY for that, and knows no such header.
    if version <= Version::HTTP_11 && app.drain.is_leaving() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
