//! Content that is named by SHA-512 goes wherever the other does.

use anyhow::{Context, Result, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use shoal_api::CollectionDone;
use shoal_content::Digest;

use super::super::node::Node;
use super::super::wait::{level_raised, until};
use super::{CONFIG, LAYER, MANIFEST, expect, header, put, refused, session, sha256, sha512};

const CONTENT: &[u8] = b"a layer with a long name";

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": sha512(bytes), "size": bytes.len() })
}

async fn push(node: &Node, repository: &str, bytes: &[u8]) -> Result<String> {
    let digest = sha512(bytes);
    let path = format!("{repository}/blobs/uploads/?digest={digest}");
    let answer = node.v2(Method::POST, &path).body(bytes.to_vec()).send().await?;
    expect(&answer, StatusCode::CREATED)?;
    ensure!(header(&answer, "docker-content-digest")? == digest);
    Ok(digest)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_is_pushed_mounted_pulled_deleted_and_collected() -> Result<()> {
    let node = Node::start_with(|config| config.collection.grace_seconds = 0).await?;
    level_raised(&node).await?;
    let digest = push(&node, "a/one", CONTENT).await?;
    let wrong = format!("a/one/blobs/uploads/?digest={}", sha512(b"something else"));
    let answer = node.v2(Method::POST, &wrong).body(CONTENT).send().await?;
    refused(answer, StatusCode::BAD_REQUEST, "DIGEST_INVALID").await?;
    for (to, from) in [("a/two", "&from=a/one"), ("b/three", "")] {
        let path = format!("{to}/blobs/uploads/?mount={digest}{from}");
        let answer = node.v2(Method::POST, &path).send().await?;
        expect(&answer, StatusCode::CREATED)?;
        ensure!(header(&answer, "location")? == format!("/v2/{to}/blobs/{digest}"));
    }
    let missing = format!("a/two/blobs/uploads/?mount={}&from=a/one", sha512(b"never"));
    let answer = node.v2(Method::POST, &missing).send().await?;
    expect(&answer, StatusCode::ACCEPTED)?;
    let given_up = node.v2(Method::DELETE, &session(&answer)?).send().await?;
    expect(&given_up, StatusCode::NO_CONTENT)?;

    let row = async || {
        let view = node.server.app().view().await?;
        Ok::<_, anyhow::Error>(view.query().blob(&digest.parse::<Digest>()?)?)
    };
    let object = row().await?.context("the blob's row")?.object;
    for repository in ["a/one", "a/two", "b/three"] {
        let path = format!("{repository}/blobs/{digest}");
        let answer = node.v2(Method::GET, &path).header("range", "bytes=2-6").send().await?;
        expect(&answer, StatusCode::PARTIAL_CONTENT)?;
        ensure!(header(&answer, "docker-content-digest")? == digest);
        ensure!(answer.bytes().await? == CONTENT[2..7]);
        // It is not there under its other name.
        let other = format!("{repository}/blobs/{}", sha256(CONTENT));
        expect(&node.v2(Method::HEAD, &other).send().await?, StatusCode::NOT_FOUND)?;
        expect(&node.v2(Method::DELETE, &path).send().await?, StatusCode::ACCEPTED)?;
        expect(&node.v2(Method::HEAD, &path).send().await?, StatusCode::NOT_FOUND)?;
    }
    ensure!(row().await?.is_none(), "nobody holds it, and it has a row");
    until("the end of what nobody holds", async || {
        let _: CollectionDone = node.call(Method::POST, "storage/collect", &json!({})).await?;
        Ok(node.server.app().store.length(object).await?.is_none().then_some(()))
    })
    .await?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_refers_and_is_referred_to() -> Result<()> {
    let node = Node::start().await?;
    push(&node, "a/long", b"{}").await?;
    push(&node, "a/long", CONTENT).await?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": descriptor(CONFIG, b"{}"), "layers": [descriptor(LAYER, CONTENT)],
    });
    let text = manifest.to_string();
    let subject = sha512(text.as_bytes());
    expect(&put(&node, "a/long", &subject, &manifest).await?, StatusCode::CREATED)?;
    let mut about = manifest.clone();
    about["subject"] = descriptor(MANIFEST, text.as_bytes());
    about["artifactType"] = json!("application/vnd.example.note");
    let answer = put(&node, "a/long", "about", &about).await?;
    expect(&answer, StatusCode::CREATED)?;
    ensure!(header(&answer, "oci-subject")? == subject);

    let listed = async || {
        let path = format!("a/long/referrers/{subject}");
        let list: Value = node.v2(Method::GET, &path).send().await?.json().await?;
        list["manifests"].as_array().cloned().context("a list")
    };
    let found = listed().await?;
    let digest = sha256(about.to_string().as_bytes());
    ensure!(found.len() == 1 && found[0]["digest"] == digest, "{found:?}");
    let version = format!("a/long/manifests/{subject}");
    expect(&node.v2(Method::GET, &version).send().await?, StatusCode::OK)?;
    for path in [format!("a/long/manifests/{digest}"), version.clone()] {
        expect(&node.v2(Method::DELETE, &path).send().await?, StatusCode::ACCEPTED)?;
    }
    ensure!(listed().await?.is_empty());
    refused(
        node.v2(Method::GET, &version).send().await?,
        StatusCode::NOT_FOUND,
        "MANIFEST_UNKNOWN",
    )
    .await?;
    node.server.stop().await
}
