//! Manifests: what is taken, what is given back, and when it is gone.

use anyhow::{Result, ensure};
use reqwest::{Method, StatusCode};
use serde_json::json;

use super::super::node::Node;
use super::{
    CONFIG, INDEX, LAYER, MANIFEST, descriptor, expect, header, image, push_blob, push_image, put,
    refused, sha256, sha512,
};

/// The least that a registry must take.
const MANIFEST_BYTES: usize = 4 * 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_comes_back_byte_for_byte_with_exact_headers() -> Result<()> {
    let node = Node::start().await?;
    push_blob(&node, "a/exact", b"{}").await?;
    // Odd spaces and fields that nobody knows are kept: the digest is over what was sent.
    let sent = format!(
        "{{ \"schemaVersion\":2,\n\"mediaType\":\"{MANIFEST}\", \"x-unknown\" : [1 ],\
         \"config\":{},\"layers\":[ ] }}",
        descriptor(CONFIG, b"{}")
    );
    let digest = sha256(sent.as_bytes());
    let request = node.v2(Method::PUT, "a/exact/manifests/v1");
    let answer = request.header("content-type", MANIFEST).body(sent.clone()).send().await?;
    expect(&answer, StatusCode::CREATED)?;
    ensure!(header(&answer, "location")? == format!("/v2/a/exact/manifests/{digest}"));
    ensure!(header(&answer, "docker-content-digest")? == digest);
    for reference in ["v1", digest.as_str()] {
        for method in [Method::HEAD, Method::GET] {
            let path = format!("a/exact/manifests/{reference}");
            let request = node.v2(method.clone(), &path).header("accept-encoding", "gzip");
            let answer = request.send().await?;
            expect(&answer, StatusCode::OK)?;
            ensure!(header(&answer, "content-type")? == MANIFEST);
            ensure!(header(&answer, "content-length")? == sent.len().to_string());
            ensure!(header(&answer, "docker-content-digest")? == digest);
            let body = answer.bytes().await?;
            ensure!(method == Method::HEAD || body == sent.as_bytes());
        }
    }
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_but_lawful_manifests_are_taken() -> Result<()> {
    let node = Node::start().await?;
    push_blob(&node, "a/odd", b"{}").await?;
    push_blob(&node, "a/odd", b"").await?;
    push_blob(&node, "a/odd", b"layer").await?;
    let config = descriptor(CONFIG, b"{}");
    let empty_index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [] });
    let text = empty_index.to_string();
    let nested = json!({
        "schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor(INDEX, text.as_bytes())],
    });
    let mut inline = descriptor(LAYER, b"");
    inline["data"] = json!("");
    let foreign = json!({
        "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "digest": sha256(b"never pushed"), "size": 12, "urls": ["https://example.org/x"],
    });
    let absent = descriptor(MANIFEST, b"a subject that is not there");
    let of = |layers| json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
    let mut about = of(json!([]));
    about["subject"] = absent;
    for (tag, manifest) in [
        ("no-layers", of(json!([]))),
        ("empty-blob", of(json!([inline]))),
        ("foreign", of(json!([foreign]))),
        ("empty-index", empty_index),
        ("nested", nested),
        ("subject", about),
        // As BuildKit keeps its cache.
        (
            "cache",
            json!({
                "schemaVersion": 2, "mediaType": INDEX, "manifests": [
                    descriptor(LAYER, b"layer"),
                    { "mediaType": "application/vnd.buildkit.cacheconfig.v0", "digest": sha256(b"{}"), "size": 2 },
                ],
            }),
        ),
        (
            "null",
            json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": null }),
        ),
    ] {
        let answer = put(&node, "a/odd", tag, &manifest).await?;
        ensure!(answer.status() == StatusCode::CREATED, "{tag}: {}", answer.text().await?);
    }
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_or_malformed_is_said() -> Result<()> {
    let node = Node::start().await?;
    let answer = put(&node, "a/bad", "v1", &image(b"never pushed")).await?;
    refused(answer, StatusCode::NOT_FOUND, "MANIFEST_BLOB_UNKNOWN").await?;
    for body in ["", "{", "[]", "{\"schemaVersion\":1}", "{\"schemaVersion\":2}"] {
        let request = node.v2(Method::PUT, "a/bad/manifests/v1").header("content-type", MANIFEST);
        let answer = request.body(body).send().await?;
        refused(answer, StatusCode::BAD_REQUEST, "MANIFEST_INVALID").await?;
    }
    push_blob(&node, "a/bad", b"{}").await?;
    push_blob(&node, "a/bad", b"layer").await?;
    let wrong = format!("sha256:{}", "0".repeat(64));
    let answer = put(&node, "a/bad", &wrong, &image(b"layer")).await?;
    refused(answer, StatusCode::BAD_REQUEST, "DIGEST_INVALID").await?;
    let answer = node.v2(Method::GET, "a/bad/manifests/v1").send().await?;
    refused(answer, StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN").await?;
    let answer = node.v2(Method::GET, "a/bad/manifests/sha256:nonsense").send().await?;
    ensure!(matches!(answer.status().as_u16(), 400 | 404));
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn four_mebibytes_are_taken_and_more_is_refused() -> Result<()> {
    let node = Node::start().await?;
    push_blob(&node, "a/big", b"{}").await?;
    push_blob(&node, "a/big", b"layer").await?;
    let mut manifest = image(b"layer");
    manifest["annotations"] = json!({ "x": "" });
    let room = MANIFEST_BYTES - manifest.to_string().len();
    manifest["annotations"]["x"] = json!("y".repeat(room));
    expect(&put(&node, "a/big", "v1", &manifest).await?, StatusCode::CREATED)?;
    let got = node.v2(Method::GET, "a/big/manifests/v1").send().await?.bytes().await?;
    ensure!(got == manifest.to_string().as_bytes() && got.len() == MANIFEST_BYTES);
    manifest["annotations"]["x"] = json!("y".repeat(room + 1));
    let answer = put(&node, "a/big", "v2", &manifest).await?;
    expect(&answer, StatusCode::PAYLOAD_TOO_LARGE)?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_tag_leaves_the_version_and_a_deleted_version_its_tags() -> Result<()> {
    let node = Node::start().await?;
    let bytes = push_image(&node, "a/gone", "v1", b"layer").await?;
    push_image(&node, "a/gone", "v2", b"layer").await?;
    let digest = sha256(&bytes);
    let at = |reference: &str| format!("a/gone/manifests/{reference}");
    expect(&node.v2(Method::DELETE, &at("v1")).send().await?, StatusCode::ACCEPTED)?;
    expect(&node.v2(Method::HEAD, &at("v1")).send().await?, StatusCode::NOT_FOUND)?;
    expect(&node.v2(Method::HEAD, &at(&digest)).send().await?, StatusCode::OK)?;
    expect(&node.v2(Method::DELETE, &at(&digest)).send().await?, StatusCode::ACCEPTED)?;
    for reference in ["v2", &digest] {
        let answer = node.v2(Method::GET, &at(reference)).send().await?;
        refused(answer, StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN").await?;
    }
    let answer = node.v2(Method::DELETE, &at(&digest)).send().await?;
    refused(answer, StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN").await?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn sha512_names_a_manifest_and_several_tags_come_at_once() -> Result<()> {
    let node = Node::start().await?;
    push_blob(&node, "a/dev", b"{}").await?;
    push_blob(&node, "a/dev", b"layer").await?;
    let manifest = image(b"layer");
    let digest = sha512(manifest.to_string().as_bytes());
    let answer = put(&node, "a/dev", &format!("{digest}?tag=one&tag=two"), &manifest).await?;
    expect(&answer, StatusCode::CREATED)?;
    ensure!(header(&answer, "docker-content-digest")? == digest);
    let tags: Vec<_> = answer.headers().get_all("oci-tag").iter().collect();
    ensure!(tags == ["one", "two"], "{tags:?}");
    for reference in ["one", "two", &digest] {
        let path = format!("a/dev/manifests/{reference}");
        let answer = node.v2(Method::HEAD, &path).send().await?;
        expect(&answer, StatusCode::OK)?;
        ensure!(header(&answer, "docker-content-digest")? == digest);
    }
    let answer = put(&node, "a/dev", "three?digest-algorithm=sha512", &manifest).await?;
    ensure!(header(&answer, "docker-content-digest")? == digest);
    node.server.stop().await
}
