//! What an answer to a request for chunks is written to and read from: a stream of QUIC's, or a
//! bulk connection. Who serves and who asks are written once, for both.
//!
//! Before each chunk stands a big-endian `u32`: its highest bit says whether what follows is a zstd
//! frame, and the others how many bytes follow. How long the content is, the recipe says.

use std::io;

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::bulk::Path;
use crate::compression::Stored;

const ZSTD: u32 = 1 << 31;

/// What stands before a chunk: how it comes, and the bytes that follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Head {
    Raw(u32),
    Zstd(u32),
}

impl Head {
    pub(crate) const fn from_word(word: u32) -> Self {
        if word & ZSTD == 0 { Self::Raw(word) } else { Self::Zstd(word & !ZSTD) }
    }

    pub(crate) const fn word(self) -> u32 {
        match self {
            Self::Raw(bytes) => bytes,
            Self::Zstd(bytes) => bytes | ZSTD,
        }
    }

    pub(crate) const fn bytes(self) -> u32 {
        match self {
            Self::Raw(bytes) | Self::Zstd(bytes) => bytes,
        }
    }
}

/// The word before a chunk, as it is sent, and the chunk.
pub(crate) fn framed(chunk: Stored) -> ([u8; 4], Bytes) {
    let (head, bytes) = match chunk {
        Stored::Raw(content) => (Head::Raw(content.len() as u32), content),
        Stored::Zstd(frame) => (Head::Zstd(frame.bytes().len() as u32), frame.bytes().clone()),
    };
    (head.word().to_be_bytes(), bytes)
}

/// Where an answer is written.
pub(crate) trait Outlet: Send {
    const PATH: Path;

    /// A few bytes of it; they may wait for what comes behind them.
    fn put(&mut self, bytes: &[u8]) -> impl Future<Output = io::Result<()>> + Send;

    /// A chunk behind its [`Head`], all of it on its way when this returns.
    fn chunk(&mut self, chunk: Stored) -> impl Future<Output = io::Result<()>> + Send;
}

impl Outlet for SendStream {
    const PATH: Path = Path::Quic;

    async fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        Ok(self.write_all(bytes).await?)
    }

    async fn chunk(&mut self, chunk: Stored) -> io::Result<()> {
        let (head, bytes) = framed(chunk);
        self.write_all(&head).await?;
        Ok(self.write_chunk(bytes).await?)
    }
}

/// Where an answer is read, behind its first byte.
pub(crate) trait Source: AsyncRead + Unpin + Send {
    const PATH: Path;

    /// What stands before the next chunk; nothing where the answer ends here.
    fn head(&mut self) -> impl Future<Output = io::Result<Option<Head>>> + Send;
}

impl Source for RecvStream {
    const PATH: Path = Path::Quic;

    async fn head(&mut self) -> io::Result<Option<Head>> {
        Ok(Some(Head::from_word(self.read_u32().await?)))
    }
}
