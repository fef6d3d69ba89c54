//! What stands between the nodes and S3, and misbehaves when told to.
//!
//! Bytes are passed on as they are, to a real gateway; nothing of S3 is imitated but the refusal
//! itself. A change of mode ends all connections, as a restart of a load balancer does.
//!
//! Runs on the runtime, and in the network namespace, of whoever starts it.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

const HEAD_BYTES_MAX: usize = 64 * 1024;
/// How long a refused client may take to send its request.
const PATIENCE: Duration = Duration::from_secs(3);
/// Where connections are cut, in bytes of either direction: past most heads, within most bodies.
const CUT_AFTER_BYTES: u64 = 12 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Answers 503 to everything, as an overloaded S3 does.
    Refuse,
    /// Breaks connections in the middle of a body.
    Cut,
}

/// Ends when dropped.
#[derive(Debug)]
pub struct Gateway {
    mode: watch::Sender<Mode>,
    accepting: JoinHandle<()>,
}

impl Gateway {
    /// Passes on what comes to `listen` to `upstream`, both `HOST:PORT`.
    pub async fn start(listen: &str, upstream: &str) -> Result<Self> {
        let listener = TcpListener::bind(listen).await.with_context(|| listen.to_owned())?;
        let (mode, told) = watch::channel(Mode::Pass);
        let upstream = upstream.to_owned();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (mut told, upstream) = (told.clone(), upstream.clone());
                let mode = *told.borrow_and_update();
                tokio::spawn(async move {
                    tokio::select! {
                        // A connection that breaks is what this is for.
                        _ = serve(client, &upstream, mode) => {}
                        _ = told.changed() => {}
                    }
                });
            }
        });
        Ok(Self { mode, accepting })
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_if_modified(|held| std::mem::replace(held, mode) != mode);
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(mut client: TcpStream, upstream: &str, mode: Mode) -> std::io::Result<()> {
    if mode == Mode::Refuse {
        return match timeout(PATIENCE, refuse(&mut client)).await {
            Ok(result) => result,
            Err(_) => Ok(()),
        };
    }
    let mut server = TcpStream::connect(upstream).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    if mode == Mode::Pass {
        return copy_bidirectional(&mut client, &mut server).await.map(drop);
    }
    let (client_read, mut client_write) = client.split();
    let (server_read, mut server_write) = server.split();
    let (mut up, mut down) = (client_read.take(CUT_AFTER_BYTES), server_read.take(CUT_AFTER_BYTES));
    tokio::select! {
        sent = copy(&mut up, &mut server_write) => sent.map(drop),
        came = copy(&mut down, &mut client_write) => came.map(drop),
    }
}

/// Hears a request out, so that the client reads the answer instead of a broken connection.
async fn refuse(client: &mut TcpStream) -> std::io::Result<()> {
    let (mut head, mut piece) = (Vec::new(), [0; 4096]);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
        match client.read(&mut piece).await? {
            0 => return Ok(()),
            read => head.extend_from_slice(&piece[..read]),
        }
    }
    let body = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>ServiceUnavailable</Code>\
                <Message>Reduce your request rate.</Message></Error>";
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/xml\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    client.write_all(answer.as_bytes()).await?;
    client.shutdown().await?;
    while client.read(&mut piece).await? > 0 {}
    Ok(())
}
