//! Frames on QUIC streams: a length, then the frame, never more than the limit in memory.

use quinn::{RecvStream, SendStream};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shoal_swarm::frames::{self, FRAME_BYTES_MAX, FrameError, Limits};
use thiserror::Error;

#[derive(Debug, Error)]
pub(crate) enum WireError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the stream broke off")]
    Read(#[from] quinn::ReadExactError),
    #[error("the stream broke off")]
    Write(#[from] quinn::WriteError),
    #[error("the other side does not take what it asked for")]
    Stalled,
}

pub(crate) async fn read<M: DeserializeOwned + Limits>(
    stream: &mut RecvStream,
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

pub(crate) async fn write<M: Serialize + Limits>(
    stream: &mut SendStream,
    message: &M,
) -> Result<(), WireError> {
    let bytes = frames::encode(message)?;
    stream.write_all(&(bytes.len() as u32).to_be_bytes()).await?;
    stream.write_all(&bytes).await?;
    Ok(())
}
