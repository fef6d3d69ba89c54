//! Frames on streams: a length, then the frame, never more than the limit in memory.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use shoal_swarm::frames::{self, FRAME_BYTES_MAX, FrameError, Limits};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

#[derive(Debug, Error)]
pub(crate) enum WireError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the stream broke off")]
    Broken(#[from] io::Error),
    #[error("the other side does not take what it asked for")]
    Stalled,
}

impl From<quinn::WriteError> for WireError {
    fn from(error: quinn::WriteError) -> Self {
        Self::Broken(error.into())
    }
}

impl From<quinn::ReadExactError> for WireError {
    fn from(error: quinn::ReadExactError) -> Self {
        Self::Broken(match error {
            quinn::ReadExactError::FinishedEarly(_) => io::ErrorKind::UnexpectedEof.into(),
            quinn::ReadExactError::ReadError(error) => error.into(),
        })
    }
}

pub(crate) async fn read<M: DeserializeOwned + Limits>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<M, WireError> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let length = u32::from_be_bytes(length) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong(length).into());
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(frames::decode(&bytes)?)
}

/// In one piece; where the stream keeps back what is written, the caller flushes it.
pub(crate) async fn write<M: Serialize + Limits>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &M,
) -> Result<(), WireError> {
    let bytes = frames::encode(message)?;
    let mut framed = Vec::with_capacity(4 + bytes.len());
    framed.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    framed.extend_from_slice(&bytes);
    stream.write_all(&framed).await?;
    Ok(())
}
