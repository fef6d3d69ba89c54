//! What members say to each other, and how it is framed on a QUIC stream.
//!
//! One bidirectional stream carries one request and its answer:
//! ```text
//! request  kind (1 byte), length (4 bytes, big-endian), body
//! answer   length (4 bytes, big-endian), body
//! ```
//! Bodies are postcard. A snapshot's request is answered twice, and the bytes of its files come in
//! between (see `transfer`). The protocol's version is in the ALPN that the endpoints are configured with;
//! kinds are only ever added, and one that is not known ends the stream with [`UNKNOWN_KIND`].
//!
//! Invariant: a length is looked at before anything is allocated for it.

use std::io;

use bytes::Bytes;
use quinn::{RecvStream, SendStream, VarInt};
use serde::{Deserialize, Serialize};
use shoal_metadata::{Refusal, Response};

/// The longest body: a batch of log entries or the longest command.
pub const FRAME_BYTES_MAX: usize = 20 * 1024 * 1024;

/// So much room is made for a body before it comes.
const BODY_BYTES_TRUSTED: usize = 64 * 1024;

/// Why a stream was ended by the one that serves it.
pub const UNKNOWN_KIND: VarInt = VarInt::from_u32(1);
/// Why a connection was closed.
pub const STRANGER: VarInt = VarInt::from_u32(2);
pub const STOPPING: VarInt = VarInt::from_u32(3);
/// Whoever asks was removed from the cluster.
pub const REMOVED: VarInt = VarInt::from_u32(4);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Append = 1,
    Vote = 2,
    PreVote = 3,
    // 4 was a snapshot without hashes, before the first release.
    Propose = 5,
    ReadIndex = 6,
    AddMember = 7,
    RemoveMember = 8,
    SnapshotFiles = 9,
    TransferLeader = 10,
    /// Several proposals, answered together (see `forward`).
    ProposeMany = 11,
}

impl Kind {
    pub fn from_byte(byte: u8) -> Option<Self> {
        [
            Self::Append,
            Self::Vote,
            Self::PreVote,
            Self::Propose,
            Self::ReadIndex,
            Self::AddMember,
            Self::RemoveMember,
            Self::SnapshotFiles,
            Self::TransferLeader,
            Self::ProposeMany,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }
}

/// Why a request was not served. A version of this program that does not know a variant takes the
/// answer for malformed, which is retried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// Ask the leader; its address, where it is known.
    #[error("this node does not lead")]
    NotLeader { leader: Option<String> },
    #[error("{0}")]
    Storage(String),
    #[error("{0}")]
    Unavailable(String),
    #[error(
        "this needs the cluster's level {needs}, which is {oldest} now; it rises once every node \
         runs a program that knows it"
    )]
    Unsupported { needs: u8, oldest: u8 },
    #[error("{0}")]
    Membership(String),
}

/// The answer to a proposal.
pub type Proposed = Result<Result<Response, Refusal>, Failure>;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AddMember {
    pub id: u64,
    pub address: String,
}

pub async fn send_request(stream: &mut SendStream, kind: Kind, body: Vec<u8>) -> io::Result<()> {
    let mut head = [kind as u8; 5];
    head[1..].copy_from_slice(&length(&body)?);
    send(stream, &head, body).await
}

pub async fn send_answer(stream: &mut SendStream, body: Vec<u8>) -> io::Result<()> {
    send_frame(stream, body).await?;
    stream.finish().map_err(io::Error::other)
}

/// An answer after which another one follows.
pub async fn send_frame(stream: &mut SendStream, body: Vec<u8>) -> io::Result<()> {
    let head = length(&body)?;
    send(stream, &head, body).await
}

/// Together, so that what fits into one packet goes in one.
async fn send(stream: &mut SendStream, head: &[u8], body: Vec<u8>) -> io::Result<()> {
    let mut pieces = [Bytes::copy_from_slice(head), body.into()];
    Ok(stream.write_all_chunks(&mut pieces).await?)
}

fn length(body: &[u8]) -> io::Result<[u8; 4]> {
    match u32::try_from(body.len()) {
        Ok(length) if body.len() <= FRAME_BYTES_MAX => Ok(length.to_be_bytes()),
        _ => Err(too_long()),
    }
}

/// The kind byte of a request; its length and body follow.
pub async fn receive_kind(stream: &mut RecvStream) -> io::Result<u8> {
    let mut kind = [0];
    stream.read_exact(&mut kind).await.map_err(io::Error::other)?;
    Ok(kind[0])
}

pub async fn receive_length(stream: &mut RecvStream) -> io::Result<usize> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await.map_err(io::Error::other)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > FRAME_BYTES_MAX { Err(too_long()) } else { Ok(length) }
}

/// A body whose length was looked at. Beyond a little the buffer grows with what really comes.
pub async fn receive_body(stream: &mut RecvStream, length: usize) -> io::Result<Vec<u8>> {
    let mut body = Vec::with_capacity(length.min(BODY_BYTES_TRUSTED));
    while body.len() < length {
        match stream.read_chunk(length - body.len(), true).await.map_err(io::Error::other)? {
            Some(chunk) => body.extend_from_slice(&chunk.bytes),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
    Ok(body)
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a frame is too long")
}
