//! A client that is lost in the middle of an upload, and sessions that nobody comes back to.

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use reqwest::{Body, Method, StatusCode, Version};
use shoal_content::{ObjectKey, UploadId};
use shoal_metadata::{Upload, UploadPurpose};
use shoal_node::registry::SESSION_TTL_MS;
use shoal_node::store::PART_BYTES_MIN;
use uuid::Uuid;

use super::super::node::Node;
use super::super::wait::until;
use super::{expect, header, open_upload, push_blob, refused, sha256, sha512};

const MIB: usize = 1024 * 1024;
/// A whole part for storage, and a tail.
const SENT: usize = 9 * MIB;
const WHOLE: usize = 20 * MIB;

fn content() -> Vec<u8> {
    (0..WHOLE).map(|at| (at / 7 % 251) as u8).collect()
}

/// Sends `SENT` bytes of more, and breaks off when the node has taken them.
async fn break_off(
    node: &Node,
    http: &reqwest::Client,
    path: &str,
    version: Version,
) -> Result<()> {
    let before = node.server.app().metrics.upload_bytes.get();
    let pieces: Vec<Bytes> = content()[..SENT].chunks(MIB).map(Bytes::copy_from_slice).collect();
    let body = stream::iter(pieces.into_iter().map(Ok::<_, std::io::Error>));
    let request = http
        .patch(format!("{}/v2/{path}", node.url))
        .version(version)
        .bearer_auth(node.token())
        .body(Body::wrap_stream(body.chain(stream::pending())));
    let sending = tokio::spawn(request.send());
    until("all that is sent before the break", async || {
        let taken = node.server.app().metrics.upload_bytes.get() - before;
        Ok((taken == SENT as u64).then_some(()))
    })
    .await?;
    sending.abort();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_before_a_connection_was_lost_is_kept_for_any_node() -> Result<()> {
    let node = Node::start().await?;
    let other = node.join("second").await?;
    let authority = std::fs::read(node.path().join("node/ca.pem"))?;
    let builder = || -> Result<_> {
        let authority = reqwest::Certificate::from_pem(&authority)?;
        Ok(reqwest::Client::builder().tls_certs_only([authority]).no_proxy())
    };
    let content = content();
    for (http, version, repository) in [
        (builder()?.http1_only().build()?, Version::HTTP_11, "a/first"),
        (builder()?.build()?, Version::HTTP_2, "a/second"),
    ] {
        let path = open_upload(&node, repository).await?;
        break_off(&node, &http, &path, version).await?;
        until("the session's new place at the other node", async || {
            let answer = other.v2(Method::GET, &path).send().await?;
            expect(&answer, StatusCode::NO_CONTENT)?;
            Ok((header(&answer, "range")? == format!("0-{}", SENT - 1)).then_some(()))
        })
        .await?;
        let closing = format!("{path}?digest={}", sha256(&content));
        let rest = content[SENT..].to_vec();
        expect(&other.v2(Method::PUT, &closing).body(rest).send().await?, StatusCode::CREATED)?;
        let blob = format!("{repository}/blobs/{}", sha256(&content));
        let got = node.v2(Method::GET, &blob).send().await?.bytes().await?;
        ensure!(got == content, "{version:?}: other bytes");
        // Or the next one costs nothing and shows nothing.
        expect(&node.v2(Method::DELETE, &blob).send().await?, StatusCode::ACCEPTED)?;
    }
    other.server.stop().await?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn short_requests_may_reach_any_node_and_leave_nothing() -> Result<()> {
    let node = Node::start().await?;
    let other = node.join("second").await?;
    let (content, path) = (content(), open_upload(&node, "a/short").await?);
    let lengths = [70_000, MIB, 300_000, 5];
    let mut at = 0;
    for (length, node) in lengths.into_iter().cycle().zip([&node, &other].into_iter().cycle()) {
        if at == SENT {
            break;
        }
        let end = SENT.min(at + length);
        let request = node.v2(Method::PATCH, &path).body(content[at..end].to_vec());
        let range = format!("{at}-{}", end - 1);
        let answer = request.header("content-range", range).send().await?;
        expect(&answer, StatusCode::ACCEPTED)?;
        ensure!(header(&answer, "range")? == format!("0-{}", end - 1));
        at = end;
    }
    let closing = format!("{path}?digest={}", sha256(&content));
    let rest = content[SENT..].to_vec();
    expect(&other.v2(Method::PUT, &closing).body(rest).send().await?, StatusCode::CREATED)?;
    let blob = format!("a/short/blobs/{}", sha256(&content));
    let got = node.v2(Method::GET, &blob).send().await?.bytes().await?;
    ensure!(got == content, "other bytes");
    let left = node.server.app().store.list("uploads/", None, 10).await?;
    ensure!(left.is_empty(), "{left:?}");
    other.server.stop().await?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_session_leaves_nothing_in_storage() -> Result<()> {
    let node = Node::start().await?;
    let path = open_upload(&node, "a/cancelled").await?;
    for _ in 0..3 {
        let answer = node.v2(Method::PATCH, &path).body(content()[..MIB].to_vec()).send().await?;
        expect(&answer, StatusCode::ACCEPTED)?;
    }
    let store = &node.server.app().store;
    ensure!(store.list("uploads/", None, 10).await?.len() == 3, "what was sent is stored again");
    expect(&node.v2(Method::DELETE, &path).send().await?, StatusCode::NO_CONTENT)?;
    let left = store.list("", None, 10).await?;
    ensure!(left.is_empty(), "{left:?}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_session_ends_and_leaves_nothing_in_storage() -> Result<()> {
    let node = Node::start().await?;
    let app = node.server.app();
    let sent = content()[..SENT].to_vec();
    let mut paths = Vec::new();
    for _ in 0..3 {
        let path = open_upload(&node, "a/abandoned").await?;
        for body in [&sent[..], &sent[..MIB]] {
            let answer = node.v2(Method::PATCH, &path).body(body.to_vec()).send().await?;
            expect(&answer, StatusCode::ACCEPTED)?;
        }
        paths.push(path);
    }
    // More than one command ends.
    for _ in 0..150 {
        open_upload(&node, "a/abandoned").await?;
    }
    let id = paths[0].rsplit('/').next().unwrap_or_default();
    let id = UploadId::from_uuid(Uuid::try_parse(id)?);
    let row = app.view().await?.query().upload(id)?;
    let Some(Upload { purpose: UploadPurpose::Blob { checkpoint, multipart, .. }, .. }) = row
    else {
        anyhow::bail!("{row:?}")
    };
    let (Some(checkpoint), Some(multipart)) = (checkpoint, multipart) else {
        anyhow::bail!("nothing of {SENT} bytes is in storage")
    };
    ensure!(app.store.length(checkpoint).await?.is_some());

    ensure!(app.services.disks.expire(app.now()).await? == 0, "they have not expired yet");
    let later = app.now().plus_millis(SESSION_TTL_MS + 1);
    ensure!(app.services.disks.expire(later).await? == 153);
    ensure!(app.view().await?.query().uploads()?.is_empty());
    ensure!(app.store.length(checkpoint).await?.is_none(), "the checkpoint stays");
    let part = Bytes::from(vec![1; PART_BYTES_MIN as usize]);
    let late = app.store.put_part(multipart.object, &multipart.id, 2, 0, part).await;
    ensure!(late.is_err(), "the multipart upload is open");
    let left = app.store.list("", None, 100).await?;
    let left: Vec<ObjectKey> = left.into_iter().map(|object| object.key).collect();
    ensure!(left.is_empty(), "{left:?}");
    let answer = node.v2(Method::PATCH, &paths[0]).body("more").send().await?;
    refused(answer, StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN").await?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hash_may_be_chosen_at_the_beginning() -> Result<()> {
    let node = Node::start().await?;
    let begin = |algorithm: &str| {
        let path = format!("a/chosen/blobs/uploads/?digest-algorithm={algorithm}");
        node.v2(Method::POST, &path).send()
    };
    refused(begin("md5").await?, StatusCode::BAD_REQUEST, "DIGEST_INVALID").await?;
    let answer = begin("sha512").await?;
    expect(&answer, StatusCode::ACCEPTED)?;
    let path = super::session(&answer)?;
    let (first, rest) = (&content()[..SENT], &content()[SENT..]);
    for part in [first, rest] {
        let answer = node.v2(Method::PATCH, &path).body(part.to_vec()).send().await?;
        expect(&answer, StatusCode::ACCEPTED)?;
    }
    let digest = sha512(&content());
    let closed = node.v2(Method::PUT, &format!("{path}?digest={digest}")).send().await?;
    expect(&closed, StatusCode::CREATED)?;
    let got = node.v2(Method::GET, &format!("a/chosen/blobs/{digest}")).send().await?;
    ensure!(got.bytes().await? == content());
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_a_push_finds_is_kept_for_it() -> Result<()> {
    // Half of no grace is over at once; nothing is collected meanwhile.
    let node = Node::start_with(|config| config.collection.grace_seconds = 0).await?;
    let digest = push_blob(&node, "a/found", b"a layer").await?;
    let view = node.server.app().view().await?;
    let image = view.query().image_by_name(&"a/found".parse()?)?.map(|image| image.id);
    let Some(image) = image else { anyhow::bail!("no repository") };
    let since = async || {
        let view = node.server.app().view().await?;
        Ok::<_, anyhow::Error>(view.query().loose_since(image, &digest.parse()?)?)
    };
    let before = since().await?;
    ensure!(before.is_some(), "nothing refers to it");
    let path = format!("a/found/blobs/{digest}");
    // Who reads does not push.
    expect(&node.v2(Method::GET, &path).send().await?, StatusCode::OK)?;
    ensure!(since().await? == before);
    expect(&node.v2(Method::HEAD, &path).send().await?, StatusCode::OK)?;
    ensure!(since().await? > before, "it may be collected before its manifest comes");
    node.server.stop().await
}
