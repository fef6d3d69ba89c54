//! What settings and notices change of `/v2`: deletions switched off, a bound on open uploads, and
//! what clients are told of what they pull and push.

use anyhow::{Context, Result, ensure};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use shoal_api::VersionDetail;
use shoal_content::Digest;

use super::super::node::Node;
use super::super::wait::level_raised;
use super::{
    LAYER, expect, header, image, open_upload, push_blob, push_image, put, refused, sha256,
};

#[tokio::test(flavor = "multi_thread")]
async fn where_deletions_are_switched_off_nothing_goes() -> Result<()> {
    let node = Node::start_with(|config| config.registry.deletes = false).await?;
    let manifest = push_image(&node, "a/kept", "v1", b"layer").await?;
    let by_digest = format!("a/kept/manifests/{}", sha256(&manifest));
    let blob = format!("a/kept/blobs/{}", sha256(b"layer"));
    for (path, allowed) in [
        ("a/kept/manifests/v1", "GET, HEAD, PUT"),
        (by_digest.as_str(), "GET, HEAD, PUT"),
        (blob.as_str(), "GET, HEAD"),
        ("a/kept/manifests/never-pushed", "GET, HEAD, PUT"),
    ] {
        let answer = node.v2(Method::DELETE, path).send().await?;
        ensure!(header(&answer, "allow")? == allowed, "{path}");
        refused(answer, StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED").await?;
        // Who is nobody learns nothing of it.
        let stranger = node.anonymous_v2(Method::DELETE, path).send().await?;
        expect(&stranger, StatusCode::UNAUTHORIZED)?;
    }
    for path in ["a/kept/manifests/v1", &by_digest, &blob] {
        expect(&node.v2(Method::GET, path).send().await?, StatusCode::OK)?;
    }
    // What was never whole may be given up.
    let upload = open_upload(&node, "a/kept").await?;
    expect(&node.v2(Method::DELETE, &upload).send().await?, StatusCode::NO_CONTENT)?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_has_so_many_uploads_open_at_all_nodes_together() -> Result<()> {
    let few = |config: &mut shoal_node::config::Config| {
        config.registry.uploads_open_max_per_account = 2;
    };
    let node = Node::start_with(few).await?;
    let token = node.join_token("node", Some(1)).await?;
    let storage = node.path().join("node/storage");
    let other = Node::join_with("second", &node.url, &token, &storage, few).await?;
    level_raised(&node).await?;
    let elsewhere = async || {
        let request = other.anonymous_v2(Method::POST, "a/many/blobs/uploads/");
        request.bearer_auth(node.token()).send().await
    };
    let first = open_upload(&node, "a/many").await?;
    expect(&elsewhere().await?, StatusCode::ACCEPTED)?;
    for answer in [
        elsewhere().await?,
        node.v2(Method::POST, "b/other/blobs/uploads/").send().await?,
        node.v2(Method::POST, "b/other/blobs/uploads/?digest-algorithm=sha512").send().await?,
    ] {
        ensure!(header(&answer, "retry-after")?.parse::<u32>()? > 0);
        let body = told(answer, StatusCode::TOO_MANY_REQUESTS).await?;
        ensure!(body["errors"][0]["code"] == "TOOMANYREQUESTS", "{body}");
        let message = body["errors"][0]["message"].as_str().context("a message")?;
        ensure!(message.contains("2 at once") && message.contains("DELETE"), "{message}");
    }
    // Others have room of their own, and a blob in one request needs none.
    let user = json!({ "username": "alice", "password": "Sparkling-water-42" });
    let _user: Value = node.call(Method::POST, "users", &user).await?;
    let alices = node.anonymous_v2(Method::POST, "alices/app/blobs/uploads/");
    let alices = alices.basic_auth("alice", Some("Sparkling-water-42")).send().await?;
    expect(&alices, StatusCode::ACCEPTED)?;
    super::push_blob(&node, "a/many", b"whole").await?;
    // The end of one makes room for another.
    let closing = format!("{first}?digest={}", sha256(b"bytes"));
    let closed = node.v2(Method::PUT, &closing).body("bytes").send().await?;
    expect(&closed, StatusCode::CREATED)?;
    expect(&elsewhere().await?, StatusCode::ACCEPTED)?;
    expect(&elsewhere().await?, StatusCode::TOO_MANY_REQUESTS)?;
    other.server.stop().await?;
    node.server.stop().await
}

async fn told(answer: Response, status: StatusCode) -> Result<Value> {
    expect(&answer, status)?;
    Ok(answer.json().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_pulls_what_is_deprecated_is_told_so() -> Result<()> {
    let node = Node::start().await?;
    level_raised(&node).await?;
    let manifest = push_image(&node, "a/app", "v1", b"layer").await?;
    let digest = sha256(&manifest);
    let found: Value = node.get("resolve?reference=a/app:v1").await?;
    let (image, version) = (&found["image_id"], &found["version_id"]);
    let text = |value: &Value| value.as_str().map(str::to_owned).context("an id");
    let path = format!("images/{}/versions/{}/deprecate", text(image)?, text(version)?);
    let warning = async |method: Method, reference: &str| -> Result<Option<String>> {
        let path = format!("a/app/manifests/{reference}");
        let answer = node.v2(method, &path).send().await?;
        expect(&answer, StatusCode::OK)?;
        let mut all = answer.headers().get_all("warning").iter();
        let first = all.next().map(|value| value.to_str().map(str::to_owned)).transpose()?;
        ensure!(all.next().is_none(), "two notices");
        Ok(first)
    };
    ensure!(warning(Method::GET, "v1").await?.is_none(), "a notice without a reason");
    let message = json!({ "message": "use \"v2\"" });
    let _done: VersionDetail = node.call(Method::POST, &path, &message).await?;
    for method in [Method::GET, Method::HEAD] {
        let expected = "299 - \"a/app:v1 is deprecated: use \\\"v2\\\"\"";
        ensure!(warning(method.clone(), "v1").await?.as_deref() == Some(expected));
        let expected = format!("299 - \"a/app@{digest} is deprecated: use \\\"v2\\\"\"");
        ensure!(warning(method, &digest).await? == Some(expected));
    }
    let _done: VersionDetail = node.call(Method::DELETE, &path, &json!({})).await?;
    ensure!(warning(Method::GET, "v1").await?.is_none(), "a notice outlived its reason");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_pushes_layers_that_are_not_kept_is_told_so() -> Result<()> {
    let node = Node::start().await?;
    push_image(&node, "a/app", "v1", b"layer").await?;
    let whole = put(&node, "a/app", "v1", &image(b"layer")).await?;
    expect(&whole, StatusCode::CREATED)?;
    ensure!(!whole.headers().contains_key("warning"));
    let mut foreign = image(b"layer");
    foreign["layers"][0]["mediaType"] =
        json!(LAYER.replace("layer.v1", "layer.nondistributable.v1"));
    // One that was pushed all the same stays with its manifest, and nobody needs to be told.
    push_blob(&node, "a/app", b"pushed").await?;
    let digest: Digest = sha256(b"pushed").parse()?;
    (foreign["layers"][0]["digest"], foreign["layers"][0]["size"]) = (json!(digest), json!(6));
    let loose = async || {
        let view = node.server.app().view().await?;
        let image = view.query().image_by_name(&"a/app".parse()?)?.context("the image")?.id;
        Ok::<_, anyhow::Error>(view.query().loose_since(image, &digest)?)
    };
    ensure!(loose().await?.is_some());
    let answer = put(&node, "a/app", "pushed", &foreign).await?;
    expect(&answer, StatusCode::CREATED)?;
    ensure!(!answer.headers().contains_key("warning"));
    ensure!(loose().await?.is_none(), "it would be collected under its manifest");
    foreign["layers"][0]["digest"] = json!(sha256(b"never pushed"));
    let answer = put(&node, "a/app", "foreign", &foreign).await?;
    expect(&answer, StatusCode::CREATED)?;
    let warning = header(&answer, "warning")?;
    ensure!(warning.starts_with("299 - \"a/app@sha256:") && warning.ends_with('"'), "{warning}");
    node.server.stop().await
}

/// A mount that names no source finds what the asker may pull, wherever it lies, and tells nobody
/// of anything else.
#[tokio::test(flavor = "multi_thread")]
async fn a_mount_without_a_source_finds_what_its_asker_may_pull() -> Result<()> {
    let node = Node::start().await?;
    level_raised(&node).await?;
    push_image(&node, "secret/app", "v1", b"a layer").await?;
    let user = json!({ "username": "alice", "password": "Sparkling-water-42" });
    let _user: Value = node.call(Method::POST, "users", &user).await?;
    let mount = async |to: &str, content: &[u8]| {
        let path = format!("{to}/blobs/uploads/?mount={}", sha256(content));
        let request = node.anonymous_v2(Method::POST, &path);
        request.basic_auth("alice", Some("Sparkling-water-42")).send().await
    };
    // The same answer, whether the blob lies where alice may not read or nowhere at all.
    for content in [&b"a layer"[..], b"never pushed"] {
        expect(&mount("alices/app", content).await?, StatusCode::ACCEPTED)?;
    }
    let public = json!({ "visibility": "public" });
    let opened: Value = node.call(Method::PUT, "projects/secret", &public).await?;
    ensure!(opened["visibility"] == "public", "{opened}");
    let answer = mount("alices/app", b"a layer").await?;
    expect(&answer, StatusCode::CREATED)?;
    ensure!(header(&answer, "location")?.starts_with("/v2/alices/app/blobs/sha256:"));
    let path = format!("alices/app/blobs/{}", sha256(b"a layer"));
    let got = node.anonymous_v2(Method::GET, &path).basic_auth("alice", Some("Sparkling-water-42"));
    ensure!(got.send().await?.bytes().await? == b"a layer"[..]);
    // Now alice has it herself, and needs nobody else's.
    let closed = json!({ "visibility": "private" });
    let _closed: Value = node.call(Method::PUT, "projects/secret", &closed).await?;
    expect(&mount("alices/other", b"a layer").await?, StatusCode::CREATED)?;
    node.server.stop().await
}
