//! Blobs that no node holds yet, passed on as a node gets them from another registry; and those that
//! the cache here has no room for.
//!
//! The node is asked with the credentials of whoever asks here, and streams while it stores. Nothing
//! of it is kept on this host; once the node holds the blob, and there is room for it, it comes through
//! the swarm like others.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use reqwest::Method;
use shoal_api::TransferProgress;
use shoal_content::{Digest, RepositoryName};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Mirror;
use super::error::Error;
use super::login::Caller;
use crate::nodes::chain;
use crate::transfers::Purpose;

/// A node that sends nothing for so long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// A client that takes nothing for so long is cut off.
const CLIENT_STALL_MAX: Duration = Duration::from_secs(120);
/// Pieces ready for the client that it has not taken yet.
const READY_MAX: usize = 8;

/// Answers GET and HEAD of `/v2/NAME/blobs/DIGEST`.
pub async fn serve(
    mirror: &Mirror,
    caller: &Caller,
    name: &RepositoryName,
    digest: &Digest,
    head: bool,
    headers: &HeaderMap,
) -> Result<Response, Error> {
    let path = format!("/v2/{name}/blobs/{digest}");
    let method = if head { Method::HEAD } else { Method::GET };
    let range = headers.get(header::RANGE);
    let opened = mirror.fetcher.nodes.open_for(method, &path, caller.authorization(), range).await;
    let answer = opened.map_err(|error| Error::NoSource(error.to_string()))?;
    let mut response = Response::builder().status(answer.status());
    match answer.status() {
        StatusCode::OK | StatusCode::PARTIAL_CONTENT => {}
        // To storage, which needs no login of whoever goes there.
        StatusCode::TEMPORARY_REDIRECT => {}
        StatusCode::UNAUTHORIZED => {
            mirror.rights.note_refused(caller, name);
            return Err(Error::Unauthorized);
        }
        StatusCode::TOO_MANY_REQUESTS => {
            let retry_after = answer.headers().get(header::RETRY_AFTER).cloned();
            return Err(Error::Busy { retry_after });
        }
        StatusCode::RANGE_NOT_SATISFIABLE => {
            let length = answer.headers().get(header::CONTENT_RANGE);
            let length =
                length.and_then(|value| value.to_str().ok()?.rsplit('/').next()?.parse().ok());
            return Err(Error::Range { length: length.unwrap_or(0) });
        }
        StatusCode::NOT_FOUND | StatusCode::FORBIDDEN => return Err(Error::UnknownBlob),
        status => return Err(Error::NoSource(format!("a node answers {status}"))),
    }
    for name in [
        header::LOCATION,
        header::CONTENT_TYPE,
        header::CONTENT_LENGTH,
        header::CONTENT_RANGE,
        header::ACCEPT_RANGES,
        header::ETAG,
        header::HeaderName::from_static("docker-content-digest"),
    ] {
        if let Some(value) = answer.headers().get(&name) {
            response = response.header(name, value.clone());
        }
    }
    let body = match head || answer.status().is_redirection() {
        true => Body::empty(),
        false => pass(mirror, format!("{name}@{digest}"), answer),
    };
    response.body(body).map_err(|_| Error::UnknownBlob)
}

fn pass(mirror: &Mirror, what: String, mut answer: reqwest::Response) -> Body {
    let (sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(READY_MAX);
    let tracked = mirror.transfers.start(what, Purpose::Mirror);
    let metrics = mirror.metrics.clone();
    let total = answer.content_length().unwrap_or(0);
    let node = answer.url().host_str().unwrap_or("a node").to_owned();
    tokio::spawn(async move {
        let mut progress = TransferProgress {
            state: "running".into(),
            bytes_total: total,
            ..TransferProgress::default()
        };
        let broken = loop {
            let piece = match tokio::time::timeout(SILENCE_MAX, answer.chunk()).await {
                Ok(Ok(Some(piece))) => piece,
                Ok(Ok(None)) => {
                    drop(tracked.done());
                    return;
                }
                Ok(Err(error)) => break chain(&error),
                Err(_) => break "the node sends nothing any more".to_owned(),
            };
            let length = piece.len() as u64;
            if sender.send_timeout(Ok(piece), CLIENT_STALL_MAX).await.is_err() {
                break "the client went away or takes nothing".to_owned();
            }
            metrics.mirror_bytes.inc_by(length);
            metrics.mirror_passed_bytes.inc_by(length);
            progress.bytes_done += length;
            *progress.bytes_by_node.entry(node.clone()).or_default() += length;
            tracked.update(progress.clone());
        };
        tracked.failed(&broken);
        // The client sees a body shorter than announced, and asks again.
        let _ = sender.send_timeout(Err(std::io::Error::other(broken)), CLIENT_STALL_MAX).await;
    });
    Body::from_stream(ReceiverStream::new(receiver))
}
