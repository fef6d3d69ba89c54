//! Closes connections that are opened and then say nothing.
//!
//! Invariant: a connection whose first byte, after its TLS handshake, has not come within
//! [`FIRST_BYTE_TIMEOUT`] is closed; so places are not held by who has nothing to ask.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum_server::accept::Accept;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// From the handshake's end to the first byte of a request.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(20);

/// Lets in through another acceptor, and waits for the first byte for a while only.
#[derive(Debug, Clone)]
pub struct Prompt<A> {
    inner: A,
}

impl<A> Prompt<A> {
    pub fn new(inner: A) -> Self {
        Self { inner }
    }
}

impl<I, S, A> Accept<I, S> for Prompt<A>
where
    A: Accept<I, S>,
    A::Future: Send + 'static,
{
    type Stream = Awaited<A::Stream>;
    type Service = A::Service;
    type Future = BoxFuture<'static, io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
        let accepted = self.inner.accept(stream, service);
        async move {
            let (stream, service) = accepted.await?;
            let late = Some(Box::pin(sleep(FIRST_BYTE_TIMEOUT)));
            Ok((Awaited { stream, late }, service))
        }
        .boxed()
    }
}

/// A connection of which the first byte is awaited.
#[derive(Debug)]
pub struct Awaited<T> {
    stream: T,
    /// `None` once a byte has come.
    late: Option<Pin<Box<Sleep>>>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Awaited<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_ready() {
            self.late = None;
        }
        match &mut self.late {
            Some(late) => late.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into())),
            None => read,
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Awaited<T> {
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
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn who_says_nothing_is_shown_out_and_who_spoke_may_be_silent() {
        // The time is over from the beginning.
        let awaited = || {
            let (near, far) = tokio::io::duplex(64);
            (Awaited { stream: near, late: Some(Box::pin(sleep(Duration::ZERO))) }, far)
        };
        let (mut silent, _far) = awaited();
        let error = silent.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let (mut spoken, mut far) = awaited();
        far.write_u8(7).await.unwrap();
        assert_eq!(spoken.read_u8().await.unwrap(), 7);
        let later = spoken.read_u8().now_or_never();
        assert!(later.is_none(), "{later:?}");
    }
}
