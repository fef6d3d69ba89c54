//! Tells who speaks HTTP in the clear to a port of HTTPS that it does.
//!
//! Clients of registries do so where they take a name for local, and what TLS answers them says nothing to
//! anybody: seven bytes of an alert.
//!
//! Invariant: nothing is read of a connection that may be TLS; who has been told is gone within
//! [`REFUSAL_TIMEOUT`].

use std::io;
use std::time::Duration;

use axum_server::accept::Accept;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// From the connection to its first byte, as long as a TLS handshake may take after it.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(10);
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);
/// In the form of the distribution-spec, which its clients show.
const BODY: &str = concat!(
    r#"{"errors":[{"code":"UNSUPPORTED","message":"#,
    r#""this port takes HTTPS only: ask it by https://","detail":null}]}"#,
    "\n"
);

/// Lets in whoever does not begin with the name of a method.
#[derive(Debug, Clone, Copy, Default)]
pub struct RefuseUnencrypted;

impl<S: Send + 'static> Accept<TcpStream, S> for RefuseUnencrypted {
    type Stream = TcpStream;
    type Service = S;
    type Future = BoxFuture<'static, io::Result<(TcpStream, S)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        async move {
            let mut first = [0];
            timeout(FIRST_BYTE_TIMEOUT, stream.peek(&mut first)).await??;
            // A record of TLS begins with its type, which is no letter (RFC 8446, section 5.1).
            if !first[0].is_ascii_uppercase() {
                return Ok((stream, service));
            }
            timeout(REFUSAL_TIMEOUT, refuse(stream)).await??;
            Err(io::Error::new(io::ErrorKind::InvalidData, "HTTP on a port of HTTPS"))
        }
        .boxed()
    }
}

async fn refuse(mut stream: TcpStream) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        BODY.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(BODY.as_bytes()).await?;
    stream.shutdown().await?;
    // Closed with something unread, the connection would be reset, and the answer lost (see `linger`).
    let mut unread = [0; 1024];
    while stream.read(&mut unread).await? > 0 {}
    Ok(())
}
