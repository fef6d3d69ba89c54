//! Pulling blobs, whole and in parts, and deleting them.

use anyhow::{Context, Result, ensure};
use reqwest::{Method, StatusCode};

use super::super::node::Node;
use super::{expect, header, push_blob, push_image, refused, sha256};

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_comes_whole_with_exact_headers() -> Result<()> {
    let node = Node::start().await?;
    for content in [&b""[..], b"some content"] {
        let digest = push_blob(&node, "a/whole", content).await?;
        let path = format!("a/whole/blobs/{digest}");
        for method in [Method::HEAD, Method::GET] {
            // Go's clients offer gzip; taking it up would change digests and lengths.
            let request = node.v2(method.clone(), &path).header("accept-encoding", "gzip");
            let answer = request.send().await?;
            expect(&answer, StatusCode::OK)?;
            ensure!(header(&answer, "content-length")? == content.len().to_string());
            ensure!(header(&answer, "docker-content-digest")? == digest);
            ensure!(!answer.headers().contains_key("content-encoding"));
            let body = answer.bytes().await?;
            ensure!(body == if method == Method::HEAD { &b""[..] } else { content });
        }
    }
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_may_be_escaped_and_head_knows_no_ranges() -> Result<()> {
    let node = Node::start().await?;
    let digest = push_blob(&node, "a/escaped", b"some content").await?;
    let path = format!("a/escaped/blobs/{}", digest.replace(':', "%3A"));
    let answer = node.v2(Method::HEAD, &path).header("range", "bytes=0-3").send().await?;
    expect(&answer, StatusCode::OK)?;
    ensure!(header(&answer, "content-length")? == "12");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_served_clamped_or_refused() -> Result<()> {
    let node = Node::start().await?;
    let content: Vec<u8> = (0..=255).collect();
    let digest = push_blob(&node, "a/ranges", &content).await?;
    let path = format!("a/ranges/blobs/{digest}");
    for (range, wanted) in [
        ("bytes=0-9", 0..10),
        ("bytes=10-10", 10..11),
        ("bytes=250-", 250..256),
        ("bytes=-6", 250..256),
        ("bytes=-1000", 0..256),
        ("bytes=200-100000", 200..256),
        ("bytes=200-99999999999999999999", 200..256),
        ("Bytes=0-9", 0..10),
    ] {
        let answer = node.v2(Method::GET, &path).header("range", range).send().await?;
        expect(&answer, StatusCode::PARTIAL_CONTENT)?;
        let said = format!("bytes {}-{}/256", wanted.start, wanted.end - 1);
        ensure!(header(&answer, "content-range")? == said, "{range}");
        ensure!(answer.bytes().await? == content[wanted], "{range}");
    }
    // A part of something else is no use to whoever has the rest of it.
    for (of, status) in [
        (format!("\"{digest}\""), StatusCode::PARTIAL_CONTENT),
        ("\"another\"".to_owned(), StatusCode::OK),
        ("Sun, 22 Nov 2026 12:00:00 GMT".to_owned(), StatusCode::OK),
    ] {
        let request = node.v2(Method::GET, &path).header("range", "bytes=0-9");
        expect(&request.header("if-range", of).send().await?, status)?;
    }
    // What is no range of bytes is answered by the whole, and so are several that would have more sent
    // than there is.
    for range in ["bytes=0-100,4-5", "bytes=4-5,0-1", "bytes=x-y", "bytes=+1-2", "lines=0-1"] {
        let answer = node.v2(Method::GET, &path).header("range", range).send().await?;
        expect(&answer, StatusCode::OK)?;
        ensure!(answer.bytes().await? == content, "{range}");
    }
    for range in
        ["bytes=256-", "bytes=500-0", "bytes=1000-2000", "bytes=-0", "bytes=99999999999999999999-"]
    {
        let answer = node.v2(Method::GET, &path).header("range", range).send().await?;
        expect(&answer, StatusCode::RANGE_NOT_SATISFIABLE)?;
        ensure!(header(&answer, "content-length")? != "256", "{range} has the blob's length");
    }
    node.server.stop().await
}

/// RFC 9110, section 14.6: as tools ask that fetch of a layer only the files that they lack.
#[tokio::test(flavor = "multi_thread")]
async fn several_ranges_come_as_parts_of_one_answer() -> Result<()> {
    let node = Node::start().await?;
    let content: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let digest = push_blob(&node, "a/parts", &content).await?;
    let path = format!("a/parts/blobs/{digest}");
    let thousand: Vec<_> = (0..1000).map(|at| at * 100..at * 100 + 7).collect();
    for ranges in [vec![0..10, 10..20, 99_000..100_000], thousand] {
        let asked: Vec<_> =
            ranges.iter().map(|it| format!("{:010}-{:010}", it.start, it.end - 1)).collect();
        let asked = format!("bytes={}", asked.join(","));
        let answer = node.v2(Method::GET, &path).header("range", &asked).send().await?;
        expect(&answer, StatusCode::PARTIAL_CONTENT)?;
        ensure!(!answer.headers().contains_key("content-range"), "{answer:?}");
        ensure!(header(&answer, "docker-content-digest")? == digest);
        let kind = header(&answer, "content-type")?.to_owned();
        let boundary = kind.strip_prefix("multipart/byteranges; boundary=").context("parts")?;
        let length: usize = header(&answer, "content-length")?.parse()?;
        let body = answer.bytes().await?;
        ensure!(body.len() == length, "{} of {length} bytes", body.len());
        let mut expected = Vec::new();
        for (number, range) in ranges.into_iter().enumerate() {
            let before = if number == 0 { "" } else { "\r\n" };
            let (first, last) = (range.start, range.end - 1);
            expected.extend_from_slice(
                format!(
                    "{before}--{boundary}\r\ncontent-type: application/octet-stream\r\n\
                     content-range: bytes {first}-{last}/100000\r\n\r\n"
                )
                .as_bytes(),
            );
            expected.extend_from_slice(&content[range]);
        }
        expected.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
        ensure!(body == expected, "{asked}");
    }
    // Nobody is sent parts of something else, or in place of a HEAD.
    let request = node.v2(Method::GET, &path).header("range", "bytes=0-1,4-5");
    expect(&request.header("if-range", "\"another\"").send().await?, StatusCode::OK)?;
    let head = node.v2(Method::HEAD, &path).header("range", "bytes=0-1,4-5").send().await?;
    expect(&head, StatusCode::OK)?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_a_blob_or_a_manifest_does_not_get_it_again() -> Result<()> {
    let node = Node::start().await?;
    let manifest = sha256(&push_image(&node, "a/known", "v1", b"a layer").await?);
    let layer = sha256(b"a layer");
    let another = format!("\"{}\"", sha256(b"another"));
    for (path, digest) in [
        ("a/known/manifests/v1".to_owned(), &manifest),
        (format!("a/known/manifests/{manifest}"), &manifest),
        (format!("a/known/blobs/{layer}"), &layer),
    ] {
        for method in [Method::GET, Method::HEAD] {
            let ask = |known: &str| {
                node.v2(method.clone(), &path).header("if-none-match", known.to_owned()).send()
            };
            let first = ask(&another).await?;
            expect(&first, StatusCode::OK)?;
            let tag = header(&first, "etag")?.to_owned();
            for known in [tag.clone(), format!("{another}, W/{tag}"), "*".to_owned()] {
                let answer = ask(&known).await?;
                expect(&answer, StatusCode::NOT_MODIFIED)?;
                ensure!(header(&answer, "etag")? == tag, "{path}: {answer:?}");
                ensure!(header(&answer, "docker-content-digest")? == digest, "{path}: {answer:?}");
                ensure!(!answer.headers().contains_key("content-length"), "{path}: {answer:?}");
                ensure!(answer.bytes().await?.is_empty(), "{path}: a body");
            }
            // Before a range is looked at (RFC 9110, 13.2.2).
            let request = node.v2(method.clone(), &path).header("range", "bytes=0-1");
            let answer = request.header("if-none-match", &tag).send().await?;
            expect(&answer, StatusCode::NOT_MODIFIED)?;
        }
    }
    // What is not there, or not the asker's to see, is not known to be the same.
    let never = format!("a/known/blobs/{}", sha256(b"never"));
    let answer = node.v2(Method::GET, &never).header("if-none-match", "*").send().await?;
    expect(&answer, StatusCode::NOT_FOUND)?;
    let path = format!("a/known/blobs/{layer}");
    let stranger =
        node.anonymous_v2(Method::GET, &path).header("if-none-match", "*").send().await?;
    expect(&stranger, StatusCode::UNAUTHORIZED)?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_blob_is_gone_from_its_repository_only() -> Result<()> {
    let node = Node::start().await?;
    let digest = push_blob(&node, "a/one", b"shared").await?;
    push_blob(&node, "a/two", b"shared").await?;
    let one = format!("a/one/blobs/{digest}");
    expect(&node.v2(Method::DELETE, &one).send().await?, StatusCode::ACCEPTED)?;
    expect(&node.v2(Method::HEAD, &one).send().await?, StatusCode::NOT_FOUND)?;
    refused(node.v2(Method::GET, &one).send().await?, StatusCode::NOT_FOUND, "BLOB_UNKNOWN")
        .await?;
    refused(node.v2(Method::DELETE, &one).send().await?, StatusCode::NOT_FOUND, "BLOB_UNKNOWN")
        .await?;
    let two = node.v2(Method::GET, &format!("a/two/blobs/{digest}")).send().await?;
    ensure!(two.bytes().await? == &b"shared"[..]);
    let never = format!("a/two/blobs/{}", sha256(b"never"));
    refused(node.v2(Method::GET, &never).send().await?, StatusCode::NOT_FOUND, "BLOB_UNKNOWN")
        .await?;
    node.server.stop().await
}
