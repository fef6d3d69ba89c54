//! Lets connections in, as many as there is room for.
//!
//! Invariant: at most [`CONNECTIONS_MAX`] connections are open at one listener; one more is closed
//! at once, which a client sees and may try again elsewhere.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum_server::accept::Accept;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::warn;

/// Connections at one listener: thousands of agents hold one each for their orders.
pub const CONNECTIONS_MAX: usize = 16 * 1024;

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Door {
    room: Arc<Semaphore>,
}

impl Door {
    pub fn new(connections_max: usize) -> Self {
        Self { room: Arc::new(Semaphore::new(connections_max)) }
    }
}

impl<S: Send + 'static> Accept<TcpStream, S> for Door {
    type Stream = Guest;
    type Service = S;
    type Future = std::future::Ready<io::Result<(Guest, S)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let entered = match Arc::clone(&self.room).try_acquire_owned() {
            Ok(place) => {
                stream.set_nodelay(true).map(|()| (Guest { stream, _place: place }, service))
            }
            Err(_) => {
                warn!("too many connections; one is turned away");
                Err(io::Error::from(io::ErrorKind::ConnectionRefused))
            }
        };
        std::future::ready(entered)
    }
}

/// A connection with its place, which it gives back when it is dropped.
#[derive(Debug)]
pub struct Guest {
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Guest {
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
    use super::*;

    #[tokio::test]
    async fn a_connection_too_many_is_turned_away_until_one_leaves() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let door = Door::new(1);
        let mut clients = Vec::new();
        let mut arrive = async || {
            clients.push(TcpStream::connect(address).await.unwrap());
            listener.accept().await.unwrap().0
        };
        let first = door.accept(arrive().await, ()).await.unwrap();
        assert!(door.accept(arrive().await, ()).await.is_err());
        drop(first);
        assert!(door.accept(arrive().await, ()).await.is_ok());
    }
}
