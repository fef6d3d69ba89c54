//! A small HTTP/1.1 client that costs next to nothing, so that what is measured is the server.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

const HEADER_BYTES_MAX: u64 = 64 * 1024;
const SHORT_BODY_BYTES_MAX: u64 = 16 * 1024;
const BUFFER_BYTES: usize = 256 * 1024;

/// One request; `head` has no `Host`, `Content-Length` or `Authorization`.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: &'static str,
    pub path: String,
    /// Whole lines with their ends.
    pub headers: String,
    pub body: bytes::Bytes,
    /// Sent after `body`, so that a long one that is new each time need not be put together.
    pub tail: bytes::Bytes,
    pub expect: u16,
    /// As good.
    pub or_expect: Option<u16>,
}

impl Request {
    pub fn get(path: impl Into<String>) -> Self {
        let (body, tail) = (bytes::Bytes::new(), bytes::Bytes::new());
        let (path, headers) = (path.into(), String::new());
        Self { method: "GET", path, headers, body, tail, expect: 200, or_expect: None }
    }
}

/// What came back.
#[derive(Debug, Default)]
pub struct Answer {
    pub location: Option<String>,
    pub body_bytes: u64,
    /// The body, where it is short.
    pub text: String,
}

/// A connection that is kept.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
    host: String,
    authorization: String,
    scratch: Vec<u8>,
}

impl Connection {
    /// `authorization` is a whole header line, or empty.
    pub async fn open(host: &str, authorization: &str) -> Result<Self> {
        let stream = TcpStream::connect(host).await.with_context(|| format!("dialing {host}"))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::with_capacity(BUFFER_BYTES, stream),
            host: host.to_owned(),
            authorization: authorization.to_owned(),
            scratch: vec![0; BUFFER_BYTES],
        })
    }

    /// Sends JSON and reads JSON.
    ///
    /// # Errors
    /// As of [`send`](Self::send), and where something else comes back.
    pub async fn call(
        &mut self,
        method: &'static str,
        path: &str,
        body: &Value,
        expect: u16,
    ) -> Result<Value> {
        let request = Request {
            method,
            headers: "Content-Type: application/json\r\n".into(),
            body: bytes::Bytes::from(body.to_string()),
            expect,
            ..Request::get(path)
        };
        let answer = self.send(&request).await?;
        serde_json::from_str(&answer.text).with_context(|| format!("{path}: {}", answer.text))
    }

    /// Sends a request and reads the whole answer.
    pub async fn send(&mut self, request: &Request) -> Result<Answer> {
        let Request { method, path, headers, body, tail, expect, or_expect } = request;
        let is_expected = |status| status == *expect || Some(status) == *or_expect;
        let length = match *method {
            "GET" | "HEAD" => String::new(),
            _ => format!("Content-Length: {}\r\n", body.len() + tail.len()),
        };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\n{}{headers}{length}\r\n",
            self.host, self.authorization
        );
        self.stream.write_all(head.as_bytes()).await?;
        self.stream.write_all(body).await?;
        self.stream.write_all(tail).await?;
        let (status, length, location) = self.read_head().await?;
        let length = match length {
            _ if *method == "HEAD" => 0,
            Some(length) => length,
            None => {
                let text = self.read_chunks().await?;
                ensure!(is_expected(status), "{method} {path}: {status}, not {expect}: {text}");
                return Ok(Answer { location, body_bytes: text.len() as u64, text });
            }
        };
        if length <= SHORT_BODY_BYTES_MAX || !is_expected(status) {
            let mut body = vec![0; usize::try_from(length)?];
            self.stream.read_exact(&mut body).await?;
            let text = String::from_utf8_lossy(&body).into_owned();
            ensure!(is_expected(status), "{method} {path}: {status}, not {expect}: {text}");
            return Ok(Answer { location, body_bytes: length, text });
        }
        let mut left = length;
        while left > 0 {
            let room = self.scratch.len().min(usize::try_from(left)?);
            let read = self.stream.read(&mut self.scratch[..room]).await?;
            ensure!(read > 0, "the body of {method} {path} ended early");
            left -= read as u64;
        }
        Ok(Answer { location, body_bytes: length, text: String::new() })
    }

    async fn read_chunks(&mut self) -> Result<String> {
        let mut all = Vec::new();
        loop {
            let mut line = String::new();
            (&mut self.stream).take(HEADER_BYTES_MAX).read_line(&mut line).await?;
            let length = usize::from_str_radix(line.trim(), 16).context("a chunk's length")?;
            // With its line end; the last one has no trailers.
            let mut chunk = vec![0; length + 2];
            self.stream.read_exact(&mut chunk).await?;
            if length == 0 {
                return Ok(String::from_utf8_lossy(&all).into_owned());
            }
            all.extend_from_slice(&chunk[..length]);
        }
    }

    /// The status, the body's length unless it is chunked, and where `Location` points.
    async fn read_head(&mut self) -> Result<(u16, Option<u64>, Option<String>)> {
        let (mut status, mut length, mut location) = (0, Some(0), None);
        let mut line = String::new();
        loop {
            line.clear();
            let read = (&mut self.stream).take(HEADER_BYTES_MAX).read_line(&mut line).await?;
            ensure!(read > 0, "the connection was closed");
            let text = line.trim_end();
            if text.is_empty() {
                return Ok((status, length, location));
            }
            if status == 0 {
                status = text.split(' ').nth(1).context("no status")?.parse()?;
            } else if let Some((name, value)) = text.split_once(':') {
                if name.eq_ignore_ascii_case("content-length") {
                    length = Some(value.trim().parse()?);
                } else if name.eq_ignore_ascii_case("location") {
                    location = Some(value.trim().to_owned());
                } else if name.eq_ignore_ascii_case("transfer-encoding") {
                    // Only chunked is known to HTTP/1.1 servers.
                    length = None;
                }
            }
        }
    }
}
