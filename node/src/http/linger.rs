//! Lets an answer arrive although its client is still sending.
//!
//! Closing a socket with unread bytes resets the connection, and the reset overtakes the answer:
//! a client that was in the middle of a long body would see a broken pipe instead of, say, "no
//! space left". So where a request's body was not read to its end, the connection's sending side
//! is closed first, and what still comes is read and forgotten until the client hangs up (RFC
//! 9112, section 9.6).
//!
//! Invariant: a connection lingers at most [`LINGER_TIMEOUT`], and only after [`Unread::note`].

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// A client that reads answers while it sends stops at once; one that does not never will.
const LINGER_TIMEOUT: Duration = Duration::from_secs(5);
const READ_BYTES: usize = 16 * 1024;

/// Whether a request's body was left unread on a connection. Stands among each request's
/// extensions; clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Unread(Arc<AtomicBool>);

impl Unread {
    pub fn note(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_noted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A connection that is not closed under the hands of who still sends.
#[derive(Debug)]
pub struct Lingering<T> {
    stream: T,
    unread: Unread,
    /// `Some` once the sending side is closed.
    until: Option<Pin<Box<Sleep>>>,
}

impl<T> Lingering<T> {
    pub fn new(stream: T, unread: Unread) -> Self {
        Self { stream, unread, until: None }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Lingering<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.until.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
            if !this.unread.is_noted() {
                return Poll::Ready(Ok(()));
            }
        }
        let until = this.until.get_or_insert_with(|| Box::pin(sleep(LINGER_TIMEOUT)));
        if until.as_mut().poll(context).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let mut forgotten = [0; READ_BYTES];
        loop {
            let mut buffer = ReadBuf::new(&mut forgotten);
            match ready!(Pin::new(&mut this.stream).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                // The client has hung up, or is gone; the answer is out in any case.
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}
