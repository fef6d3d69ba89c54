//! The asking side of the control socket.

use std::path::{Path, PathBuf};

use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::{LINE_BYTES_MAX, Line, Request};

/// Why the daemon gave no answer.
#[derive(Debug, Error)]
pub enum Error {
    #[error("no agent answers at {path}; is 'shoal-agent run' running, with the same --config?")]
    NotRunning { path: PathBuf, source: std::io::Error },
    #[error(
        "only its owner may talk to the agent at {path}; run this as root, or as whoever runs it"
    )]
    Denied { path: PathBuf, source: std::io::Error },
    #[error("the agent went away before it had answered")]
    Closed,
    #[error("talking to the agent failed")]
    Io(#[from] std::io::Error),
    #[error("the agent answered what this program does not understand: {0}")]
    Answer(serde_json::Error),
    #[error("{0}")]
    Refused(String),
}

/// Sends `request` and hands every line to `each`; gives the last one.
pub async fn ask(
    socket: &Path,
    request: &Request,
    mut each: impl FnMut(&Line),
) -> Result<Line, Error> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| unanswered(socket.to_owned(), source))?;
    let (read, mut write) = stream.into_split();
    let mut line = serde_json::to_vec(request).map_err(Error::Answer)?;
    line.push(b'\n');
    write.write_all(&line).await?;
    let mut read = BufReader::new(read);
    loop {
        let mut text = Vec::new();
        // The reader keeps what it has buffered; only this line is limited.
        (&mut read).take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut text).await?;
        if text.is_empty() {
            return Err(Error::Closed);
        }
        let line: Line = serde_json::from_slice(&text).map_err(Error::Answer)?;
        match line {
            Line::Error { message } => return Err(Error::Refused(message)),
            Line::Progress { .. } => each(&line),
            line => return Ok(line),
        }
    }
}

fn unanswered(path: PathBuf, source: std::io::Error) -> Error {
    match source.kind() {
        std::io::ErrorKind::PermissionDenied => Error::Denied { path, source },
        _ => Error::NotRunning { path, source },
    }
}
