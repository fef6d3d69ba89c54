//! etcd's `Put` over gRPC, by hand: as little as the wire needs, so that what is measured is the
//! server. The same client speaks to both contestants, and ours answers through the same frames.
//!
//! gRPC over HTTP/2 (grpc.io, "PROTOCOL-HTTP2"): a message is a byte 0, its length in 4 bytes and
//! its protobuf; the status comes in the trailers. `PutRequest` has key = 1 and value = 2
//! (etcd, `rpc.proto`). Non-goal: any other method.

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{RecvStream, client, server};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use tokio::net::{TcpListener, TcpStream};

const MESSAGE_BYTES_MAX: usize = 1 << 20;
const KEY: u8 = 0x0a;
const VALUE: u8 = 0x12;
/// More than there are clients.
const STREAMS_MAX: u32 = 4096;
const WINDOW_BYTES: u32 = 1 << 20;

/// A connection; clones share it.
#[derive(Debug, Clone)]
pub struct Channel {
    sender: SendRequest<Bytes>,
    path: String,
}

impl Channel {
    /// `address` is `HOST:PORT`; without TLS.
    pub async fn open(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| address.to_owned())?;
        stream.set_nodelay(true)?;
        let (sender, connection) = client::Builder::new()
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .handshake(stream)
            .await?;
        tokio::spawn(connection);
        Ok(Self { sender, path: format!("http://{address}/etcdserverpb.KV/Put") })
    }

    /// # Errors
    /// Where the server does not say that it is done.
    pub async fn put(&self, key: &[u8], value: &[u8]) -> Result<()> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(&self.path)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let mut sender = self.sender.clone().ready().await?;
        let (response, mut body) = sender.send_request(request, false)?;
        body.send_data(put_request(key, value), true)?;
        let response = response.await?;
        // An error may come without a body, with its status in the head.
        let early = response.headers().get("grpc-status").cloned();
        let mut body = response.into_body();
        read_all(&mut body).await?;
        let trailers = body.trailers().await?;
        let status = trailers.and_then(|trailers| trailers.get("grpc-status").cloned()).or(early);
        ensure!(status.as_ref().is_some_and(|status| status == "0"), "a put ended with {status:?}");
        Ok(())
    }
}

fn put_request(key: &[u8], value: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(key.len() + value.len() + 16);
    for (tag, field) in [(KEY, key), (VALUE, value)] {
        message.put_u8(tag);
        let mut length = field.len();
        while length >= 0x80 {
            message.put_u8((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.put_slice(field);
    }
    framed(&message)
}

fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(message);
    frame.freeze()
}

/// Key and value of a framed `PutRequest`.
fn parse_put(mut frame: Bytes) -> Result<(Bytes, Bytes)> {
    ensure!(frame.remaining() >= 5 && frame.get_u8() == 0, "no uncompressed message");
    ensure!(frame.get_u32() as usize == frame.remaining(), "one message in a request");
    let (mut key, mut value) = (Bytes::new(), Bytes::new());
    while frame.has_remaining() {
        let tag = frame.get_u8();
        let (mut length, mut shift) = (0usize, 0);
        loop {
            ensure!(frame.has_remaining() && shift < 28, "a broken length");
            let byte = frame.get_u8();
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                break;
            }
        }
        ensure!(length <= frame.remaining(), "a field is cut off");
        let field = frame.split_to(length);
        match tag {
            KEY => key = field,
            VALUE => value = field,
            other => bail!("an unknown field {other}"),
        }
    }
    Ok((key, value))
}

async fn read_all(body: &mut RecvStream) -> Result<Bytes> {
    let mut all = BytesMut::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        ensure!(all.len() + piece.len() <= MESSAGE_BYTES_MAX, "a message is too long");
        body.flow_control().release_capacity(piece.len())?;
        all.extend_from_slice(&piece);
    }
    Ok(all.freeze())
}

/// Answers puts with what `put` says, until the listener fails.
pub async fn serve<F, Fut>(listener: TcpListener, put: F) -> Result<()>
where
    F: Fn(Bytes, Bytes) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<()>> + Send,
{
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let put = put.clone();
        tokio::spawn(async move {
            let handshake = server::Builder::new()
                .max_concurrent_streams(STREAMS_MAX)
                .initial_window_size(WINDOW_BYTES)
                .initial_connection_window_size(WINDOW_BYTES)
                .handshake(stream);
            let Ok(mut connection) = handshake.await else { return };
            while let Some(Ok((request, respond))) = connection.accept().await {
                let put = put.clone();
                tokio::spawn(async move {
                    if let Err(error) = answer(request, respond, put).await {
                        eprintln!("a request broke off: {error:#}");
                    }
                });
            }
        });
    }
}

async fn answer<F, Fut>(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    put: F,
) -> Result<()>
where
    F: Fn(Bytes, Bytes) -> Fut,
    Fut: Future<Output = Result<()>>,
{
    let (key, value) = parse_put(read_all(&mut request.into_body()).await?)?;
    let outcome = put(key, value).await;
    if let Err(error) = &outcome {
        eprintln!("a put failed: {error:#}");
    }
    let response = Response::builder().header("content-type", "application/grpc").body(())?;
    let mut body = respond.send_response(response, false)?;
    body.send_data(framed(&[]), false)?;
    let status = if outcome.is_ok() { "0" } else { "14" };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    Ok(body.send_trailers(trailers)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_put_is_read_as_it_was_written() {
        for length in [0, 1, 127, 128, 300, 70_000] {
            let (key, value) = (vec![b'k'; 32], vec![b'v'; length]);
            let (read_key, read_value) = parse_put(put_request(&key, &value)).unwrap();
            assert_eq!((read_key.to_vec(), read_value.to_vec()), (key, value));
        }
        // PutRequest { key: "a", value: "bc" } as protoc writes it.
        assert_eq!(put_request(b"a", b"bc").as_ref(), b"\0\0\0\0\x07\x0a\x01a\x12\x02bc");
    }

    #[tokio::test]
    async fn what_a_server_says_arrives() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(serve(listener, |key, _| async move {
            ensure!(key.as_ref() == b"good", "a bad key");
            Ok(())
        }));
        let channel = Channel::open(&address).await.unwrap();
        channel.put(b"good", b"value").await.unwrap();
        assert!(channel.put(b"bad", b"value").await.is_err());
    }
}
