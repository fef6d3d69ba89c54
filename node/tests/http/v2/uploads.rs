//! Pushing blobs: sessions, chunks, streams, mounts.

use anyhow::{Context, Result, ensure};
use futures::stream;
use reqwest::{Body, Method, StatusCode};
use shoal_content::UploadId;
use uuid::Uuid;

use super::super::node::Node;
use super::super::wait::until;
use super::{expect, header, open_upload, push_blob, refused, session, sha256, sha512};

const FIRST: &[u8] = b"the first chunk, ";
const SECOND: &[u8] = b"and the second";

fn whole() -> Vec<u8> {
    [FIRST, SECOND].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_are_taken_in_order_only_and_a_wrong_one_ends_nothing() -> Result<()> {
    let node = Node::start().await?;
    let path = open_upload(&node, "a/chunks").await?;
    let last = FIRST.len() - 1;
    let chunk = |range: String, bytes: &'static [u8]| {
        node.v2(Method::PATCH, &path).header("content-range", range).body(bytes).send()
    };
    let answer = chunk(format!("0-{last}"), FIRST).await?;
    expect(&answer, StatusCode::ACCEPTED)?;
    ensure!(header(&answer, "range")? == format!("0-{last}"), "Range has no unit here");
    ensure!(session(&answer)? == path);
    // Sent again, ahead of its turn, and with a length that is not the body's.
    let ahead = last + 10;
    for range in
        [format!("0-{last}"), format!("{ahead}-{}", ahead + 13), format!("{}-99", last + 1)]
    {
        let answer = chunk(range, SECOND).await?;
        expect(&answer, StatusCode::RANGE_NOT_SATISFIABLE)?;
    }
    let closing = format!("{path}?digest={}", sha256(&whole()));
    let early = node.v2(Method::PUT, &closing).header("content-range", "0-13").body(SECOND);
    expect(&early.send().await?, StatusCode::RANGE_NOT_SATISFIABLE)?;
    for method in [Method::GET, Method::HEAD] {
        let answer = node.v2(method, &path).send().await?;
        expect(&answer, StatusCode::NO_CONTENT)?;
        ensure!(header(&answer, "range")? == format!("0-{last}"), "the session lost its place");
        ensure!(session(&answer)? == path);
    }
    let none = node.v2(Method::POST, &path).send().await?;
    expect(&none, StatusCode::METHOD_NOT_ALLOWED)?;
    ensure!(header(&none, "allow")? == "GET, PATCH, PUT, DELETE, HEAD");

    let range = format!("{}-{}", last + 1, last + SECOND.len());
    expect(&chunk(range, SECOND).await?, StatusCode::ACCEPTED)?;
    let answer = node.v2(Method::PUT, &closing).send().await?;
    expect(&answer, StatusCode::CREATED)?;
    let blob = format!("/v2/a/chunks/blobs/{}", sha256(&whole()));
    ensure!(header(&answer, "location")? == blob);
    let got = node.v2(Method::GET, blob.trim_start_matches("/v2/")).send().await?.bytes().await?;
    ensure!(got == whole());
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_needs_no_ranges_and_no_length() -> Result<()> {
    let node = Node::start().await?;
    let path = open_upload(&node, "a/stream").await?;
    let pieces = [FIRST, SECOND].map(Ok::<_, std::io::Error>);
    let body = Body::wrap_stream(stream::iter(pieces));
    let answer = node.v2(Method::PATCH, &path).body(body).send().await?;
    expect(&answer, StatusCode::ACCEPTED)?;
    ensure!(answer.headers().contains_key("oci-chunk-min-length"));
    let closing = format!("{path}?digest={}", sha256(&whole()));
    expect(&node.v2(Method::PUT, &closing).send().await?, StatusCode::CREATED)?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_as_long_as_its_range_says_or_none_of_it_counts() -> Result<()> {
    let node = Node::start().await?;
    let path = open_upload(&node, "a/counted").await?;
    let stream = |bytes: &'static [u8]| {
        // In two pieces, of which the first one alone is not too long.
        let (one, two) = bytes.split_at(bytes.len() / 2);
        Body::wrap_stream(stream::iter([one, two].map(Ok::<_, std::io::Error>)))
    };
    let send = |method: Method, path: &str, first: usize, length: usize, bytes: &'static [u8]| {
        let range = format!("{first}-{}", first + length - 1);
        node.v2(method, path).header("content-range", range).body(stream(bytes)).send()
    };
    let answer = send(Method::PATCH, &path, 0, FIRST.len(), FIRST).await?;
    expect(&answer, StatusCode::ACCEPTED)?;
    let stands = format!("0-{}", FIRST.len() - 1);
    let closing = format!("{path}?digest={}", sha256(&whole()));
    for (method, path) in [(Method::PATCH, &path), (Method::PUT, &closing)] {
        for length in [SECOND.len() - 1, SECOND.len() + 1, 1] {
            let answer = send(method.clone(), path, FIRST.len(), length, SECOND).await?;
            expect(&answer, StatusCode::RANGE_NOT_SATISFIABLE)?;
            ensure!(header(&answer, "range")? == stands, "{method} {length}: {answer:?}");
        }
    }
    // As many as no number says.
    let most = node.v2(Method::PATCH, &path).header("content-range", format!("0-{}", u64::MAX));
    expect(&most.body(stream(SECOND)).send().await?, StatusCode::RANGE_NOT_SATISFIABLE)?;
    let answer = node.v2(Method::GET, &path).send().await?;
    ensure!(header(&answer, "range")? == stands, "the session lost its place: {answer:?}");
    let answer = send(Method::PUT, &closing, FIRST.len(), SECOND.len(), SECOND).await?;
    expect(&answer, StatusCode::CREATED)?;
    let blob = node.v2(Method::GET, &format!("a/counted/blobs/{}", sha256(&whole())));
    ensure!(blob.send().await?.bytes().await? == whole());
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_digest_decides_and_a_wrong_one_is_the_clients_fault() -> Result<()> {
    let node = Node::start().await?;
    for digest in [
        sha256(b"something else"),
        "sha256:baddigeststring".to_owned(),
        "md5:d41d8cd98f00b204e9800998ecf8427e".to_owned(),
        "nonsense".to_owned(),
    ] {
        let path = open_upload(&node, "a/wrong").await?;
        let answer =
            node.v2(Method::PUT, &format!("{path}?digest={digest}")).body(FIRST).send().await?;
        refused(answer, StatusCode::BAD_REQUEST, "DIGEST_INVALID").await?;
        let get = node.v2(Method::GET, &format!("a/wrong/blobs/{digest}")).send().await?;
        ensure!(matches!(get.status().as_u16(), 400 | 404), "{digest}: {}", get.status());
    }
    let path = open_upload(&node, "a/wrong").await?;
    let answer = node.v2(Method::PUT, &path).body(FIRST).send().await?;
    refused(answer, StatusCode::BAD_REQUEST, "DIGEST_INVALID").await?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn sha512_may_be_asked_for_at_the_very_end() -> Result<()> {
    let node = Node::start().await?;
    let path = open_upload(&node, "a/sha512").await?;
    expect(&node.v2(Method::PATCH, &path).body(FIRST).send().await?, StatusCode::ACCEPTED)?;
    let digest = sha512(&whole());
    let closing = format!("{path}?digest={digest}");
    let answer = node.v2(Method::PUT, &closing).body(SECOND).send().await?;
    expect(&answer, StatusCode::CREATED)?;
    ensure!(header(&answer, "docker-content-digest")? == digest);
    let answer = node.v2(Method::GET, &format!("a/sha512/blobs/{digest}")).send().await?;
    ensure!(header(&answer, "docker-content-digest")? == digest);
    ensure!(answer.bytes().await? == whole());
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_may_be_cancelled_and_is_gone_then() -> Result<()> {
    let node = Node::start().await?;
    let path = open_upload(&node, "a/cancelled").await?;
    expect(&node.v2(Method::PATCH, &path).body(FIRST).send().await?, StatusCode::ACCEPTED)?;
    expect(&node.v2(Method::DELETE, &path).send().await?, StatusCode::NO_CONTENT)?;
    for method in [Method::GET, Method::PATCH, Method::PUT, Method::DELETE] {
        let answer = node.v2(method, &format!("{path}?digest={}", sha256(FIRST))).send().await?;
        refused(answer, StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN").await?;
    }
    let strange = node.v2(Method::GET, "a/cancelled/blobs/uploads/not-a-session").send().await?;
    refused(strange, StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN").await?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_belongs_to_its_repository() -> Result<()> {
    let node = Node::start().await?;
    let path = open_upload(&node, "a/mine").await?;
    let elsewhere = path.replace("a/mine", "a/theirs");
    let answer = node.v2(Method::PATCH, &elsewhere).body(FIRST).send().await?;
    refused(answer, StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN").await?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_links_what_is_there_and_opens_a_session_otherwise() -> Result<()> {
    let node = Node::start().await?;
    let digest = push_blob(&node, "a/source", FIRST).await?;
    let mount = async |query: String| {
        node.v2(Method::POST, &format!("a/target/blobs/uploads/?{query}")).send().await
    };
    let answer = mount(format!("mount={digest}&from=a/missing")).await?;
    expect(&answer, StatusCode::ACCEPTED)?;
    session(&answer)?;
    // Nor is a digest that is none, or of an algorithm that is not known.
    let absent = sha256(b"never pushed");
    for digest in [absent.as_str(), "sha384:00", "sha256:xyz", "x"] {
        let answer = mount(format!("mount={digest}&from=a/source")).await?;
        expect(&answer, StatusCode::ACCEPTED)?;
    }
    let answer = mount(format!("mount={digest}&from=a/source")).await?;
    expect(&answer, StatusCode::CREATED)?;
    ensure!(header(&answer, "location")? == format!("/v2/a/target/blobs/{digest}"));
    let got = node.v2(Method::GET, &format!("a/target/blobs/{digest}")).send().await?;
    ensure!(got.bytes().await? == FIRST);
    let anonymous = node.v2(Method::POST, &format!("a/third/blobs/uploads/?mount={digest}"));
    expect(&anonymous.send().await?, StatusCode::CREATED)?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_goes_on_through_another_node() -> Result<()> {
    let node = Node::start().await?;
    let other = node.join("second").await?;
    let path = open_upload(&node, "a/two").await?;
    expect(&node.v2(Method::PATCH, &path).body(FIRST).send().await?, StatusCode::ACCEPTED)?;
    expect(&other.v2(Method::PATCH, &path).body(SECOND).send().await?, StatusCode::ACCEPTED)?;
    let closing = format!("{path}?digest={}", sha256(&whole()));
    expect(&node.v2(Method::PUT, &closing).send().await?, StatusCode::CREATED)?;
    // Read your writes through any node, a deletion too.
    let blob = format!("a/two/blobs/{}", sha256(&whole()));
    expect(&other.v2(Method::HEAD, &blob).send().await?, StatusCode::OK)?;
    expect(&other.v2(Method::DELETE, &blob).send().await?, StatusCode::ACCEPTED)?;
    expect(&node.v2(Method::HEAD, &blob).send().await?, StatusCode::NOT_FOUND)?;
    other.server.stop().await?;
    node.server.stop().await
}

/// A body that is sent only when it is told to.
fn held_body(bytes: &'static [u8]) -> (tokio::sync::oneshot::Sender<()>, Body) {
    let (go, told) = tokio::sync::oneshot::channel::<()>();
    let body = stream::once(async move {
        let _ = told.await;
        Ok::<_, std::io::Error>(bytes)
    });
    (go, Body::wrap_stream(body))
}

/// Both requests find the session open; whichever ends later must not touch what the other stored.
#[tokio::test(flavor = "multi_thread")]
async fn two_requests_that_close_one_session_do_not_harm_each_others_bytes() -> Result<()> {
    let node = Node::start().await?;
    for first_ends_first in [true, false] {
        let path = open_upload(&node, "a/race").await?;
        let id = path.rsplit('/').next().context("an id")?;
        let id = UploadId::from_uuid(Uuid::try_parse(id)?);
        let mut gates = Vec::new();
        let mut requests = tokio::task::JoinSet::new();
        for (before, bytes) in [FIRST, SECOND].into_iter().enumerate() {
            let (go, body) = held_body(bytes);
            gates.push(go);
            let closing = format!("{path}?digest={}", sha256(bytes));
            let request = node.v2(Method::PUT, &closing).body(body);
            requests.spawn(async move { (bytes, request.send().await) });
            until("the request at the session", async || {
                Ok((node.server.app().intake.under_way(id) > before).then_some(()))
            })
            .await?;
        }
        let mut answers = Vec::new();
        if !first_ends_first {
            gates.reverse();
        }
        for go in gates {
            let _ = go.send(());
            if first_ends_first {
                answers.extend(requests.join_next().await);
            }
        }
        answers.extend(requests.join_all().await.into_iter().map(Ok));
        let mut created = 0;
        for ended in answers {
            let (bytes, answer) = ended?;
            let answer = answer?;
            let blob = format!("a/race/blobs/{}", sha256(bytes));
            match answer.status() {
                StatusCode::CREATED => {
                    created += 1;
                    let got = node.v2(Method::GET, &blob).send().await?.bytes().await?;
                    ensure!(got == bytes, "the blob's bytes are someone else's");
                    node.v2(Method::DELETE, &blob).send().await?.error_for_status()?;
                }
                status => ensure!(status == StatusCode::NOT_FOUND, "{status}"),
            }
        }
        ensure!(created == 1, "{created} requests closed one session");
    }
    node.server.stop().await
}
