//! What an answer to a request for chunks is written to and read from: a stream of QUIC's, or a
//! bulk connection. Who serves and who asks are written once, for both.

use std::io;

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::bulk::Path;

/// Where an answer is written.
pub(crate) trait Outlet: Send {
    const PATH: Path;

    /// A few bytes of it; they may wait for what comes behind them.
    fn put(&mut self, bytes: &[u8]) -> impl Future<Output = io::Result<()>> + Send;

    /// A chunk behind its length, all of it on its way when this returns.
    fn chunk(&mut self, content: Bytes) -> impl Future<Output = io::Result<()>> + Send;
}

impl Outlet for SendStream {
    const PATH: Path = Path::Quic;

    async fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        Ok(self.write_all(bytes).await?)
    }

    async fn chunk(&mut self, content: Bytes) -> io::Result<()> {
        self.write_all(&(content.len() as u32).to_be_bytes()).await?;
        Ok(self.write_chunk(content).await?)
    }
}

/// Where an answer is read, behind its first byte.
pub(crate) trait Source: AsyncRead + Unpin + Send {
    const PATH: Path;

    /// The length that stands before the next chunk; none where the answer ends here.
    fn length(&mut self) -> impl Future<Output = io::Result<Option<u32>>> + Send;
}

impl Source for RecvStream {
    const PATH: Path = Path::Quic;

    async fn length(&mut self) -> io::Result<Option<u32>> {
        Ok(Some(self.read_u32().await?))
    }
}
