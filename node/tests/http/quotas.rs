//! Quotas over HTTP: refused pushes, reservations, and accounts that agree with a recount.

use anyhow::{Context, Result, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use shoal_api::{Quota, QuotaCheck};

use super::node::{Node, problem, read};
use super::v2::{expect, push_blob, push_image, sha256};
use super::wait::until;

const MIB: usize = 1024 * 1024;

async fn limit(node: &Node, of: &str, limits: Value) -> Result<Quota> {
    node.call(Method::PUT, &format!("quotas/{of}"), &limits).await
}

async fn used(node: &Node, of: &str) -> Result<(u64, u64)> {
    let quota: Quota = node.get(&format!("quotas/{of}")).await?;
    let usage = quota.usage.context("an account")?;
    Ok((usage.used_bytes, usage.reserved_bytes))
}

async fn check(node: &Node) -> Result<()> {
    let check: QuotaCheck = node.call(Method::POST, "quotas/check", &json!({})).await?;
    ensure!(check.drifts.is_empty(), "{check:?}");
    Ok(())
}

/// What the registry says to a push that a quota does not allow.
async fn denied(answer: reqwest::Response) -> Result<Value> {
    expect(&answer, StatusCode::FORBIDDEN)?;
    let body: Value = answer.json().await?;
    let error = &body["errors"][0];
    ensure!(error["code"] == "DENIED", "{body}");
    Ok(error["detail"]["quota"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_beyond_a_quota_are_denied_and_leave_nothing() -> Result<()> {
    let node = Node::start().await?;
    push_image(&node, "shop/app", "v1", b"layer").await?;
    let (before, _) = used(&node, "project:shop").await?;
    ensure!(before > 5);
    let set = limit(&node, "project:shop", json!({ "max_bytes": before + 100 })).await?;
    ensure!(set.usage.context("an account")?.limits.max_bytes == Some(before + 100));

    // Whole, in a session, and where nobody said how long it would be.
    let large = vec![1_u8; 4096];
    let digest = sha256(&large);
    let path = format!("shop/app/blobs/uploads/?digest={digest}");
    let quota = denied(node.v2(Method::POST, &path).body(large.clone()).send().await?).await?;
    let wanted = json!({
        "of": "project:shop", "kind": "bytes", "limit": before + 100, "used": before,
        "wanted": 4096,
    });
    ensure!(quota == wanted, "{quota}");
    for streamed in [false, true] {
        let begun = node.v2(Method::POST, "shop/app/blobs/uploads/").send().await?;
        expect(&begun, StatusCode::ACCEPTED)?;
        let location = begun.headers()["location"].to_str()?.to_owned();
        let pieces = large.chunks(64).map(|piece| Ok::<_, std::io::Error>(piece.to_vec()));
        let body = match streamed {
            true => reqwest::Body::wrap_stream(futures::stream::iter(
                pieces.collect::<Vec<_>>().into_iter(),
            )),
            false => large.clone().into(),
        };
        let url = format!("{}{location}", node.url);
        let sent = node.http.patch(&url).bearer_auth(node.token()).body(body).send().await?;
        ensure!(denied(sent).await?["of"] == "project:shop");
        let put = node.http.put(format!("{url}?digest={digest}")).bearer_auth(node.token());
        ensure!(denied(put.body(large.clone()).send().await?).await?["limit"] == before + 100);
    }
    // A manifest that does not fit, and a blob that is there already, which costs nothing.
    let known = push_blob(&node, "shop/other", b"layer").await?;
    ensure!(known == sha256(b"layer"));
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": known, "size": 5 },
        "layers": [],
        "annotations": { "padding": "x".repeat(200) },
    });
    let put = node.v2(Method::PUT, "shop/other/manifests/big").body(manifest.to_string());
    let put = put.header("content-type", "application/vnd.oci.image.manifest.v1+json");
    ensure!(denied(put.send().await?).await?["kind"] == "bytes");
    check(&node).await?;

    // Room is made by deleting, and by an administrator.
    limit(&node, "project:shop", json!({})).await?;
    push_blob(&node, "shop/app", &large).await?;
    let (now, reserved) = used(&node, "project:shop").await?;
    ensure!(now == before + 4096, "{now}");
    // What came before a push was broken off is kept for its session.
    ensure!(reserved <= 100, "{reserved}");
    let images = limit(&node, "user:admin", json!({ "max_images": 2 })).await?;
    ensure!(images.usage.context("an account")?.images == 2, "{images:?}");
    let path = format!("lab/x/blobs/uploads/?digest={digest}");
    let third = node.v2(Method::POST, &path).body(large).send().await?;
    ensure!(denied(third).await?["kind"] == "images");
    let removed = node.request(Method::DELETE, "quotas/user:admin").send().await?;
    expect(&removed, StatusCode::NO_CONTENT)?;
    let text = node.http.get(format!("{}/metrics", node.url)).bearer_auth(node.token());
    let text = text.send().await?.text().await?;
    ensure!(text.contains("shoal_quota_refusals_total{kind=\"images\"} 1"), "{text}");
    check(&node).await?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_has_two_names_and_what_is_none_is_refused() -> Result<()> {
    let node = Node::start().await?;
    push_image(&node, "shop/app", "v1", b"layer").await?;
    let limits = json!({
        "max_storage_bytes": 9000, "max_image_count": 7, "max_image_size_bytes": null,
    });
    let _set = limit(&node, "project:shop", limits).await?;
    let shown: Value = node.get("quotas/project:shop").await?;
    ensure!(shown["principal_type"] == "project" && shown["principal_id"] == "shop", "{shown}");
    for (name, wanted) in [
        ("max_bytes", json!(9000)),
        ("max_storage_bytes", json!(9000)),
        ("max_images", json!(7)),
        ("max_image_count", json!(7)),
        ("max_image_bytes", Value::Null),
        ("max_image_size_bytes", Value::Null),
    ] {
        ensure!(shown["set"][name] == wanted && shown["usage"][name] == wanted, "{name}: {shown}");
    }
    let usage = &shown["usage"];
    ensure!(usage["current_storage_bytes"] == usage["used_bytes"], "{shown}");
    ensure!(usage["current_image_count"] == 1 && usage["images"] == 1, "{shown}");
    // As it was shown, and with a limit that is two or none.
    let again = limit(&node, "project:shop", shown["set"].clone()).await?;
    ensure!(again.set.context("a limit")?.max_bytes == Some(9000));
    for (wrong, status) in [
        (json!({ "max_bytes": 1, "max_storage_bytes": 2 }), StatusCode::BAD_REQUEST),
        (json!({ "max_storage": 1 }), StatusCode::UNPROCESSABLE_ENTITY),
    ] {
        let refused = node.request(Method::PUT, "quotas/project:shop").json(&wrong).send().await?;
        problem(refused, status).await?;
    }
    let kept: Value = node.get("quotas/project:shop").await?;
    ensure!(kept["set"]["max_bytes"] == 9000, "{kept}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_announced_is_reserved_until_the_session_ends() -> Result<()> {
    let node = Node::start().await?;
    let limits = json!({ "max_bytes": 20 * MIB, "max_image_bytes": 15 * MIB });
    limit(&node, "default:project", limits).await?;
    let image = json!({ "name": "vm/disk", "kind": "disk" });
    let image: Value = node.call(Method::POST, "images", &image).await?;
    let id = image["id"].as_str().context("an id")?;
    let init = |version: &str, bytes: usize| {
        let request = json!({ "version": version, "total_size_bytes": bytes, "format": "raw" });
        let path = format!("images/{id}/versions/upload/init");
        node.request(Method::POST, &path).json(&request).send()
    };
    let started: Value = read(init("1.0", 15 * MIB).await?).await?;
    ensure!(used(&node, "project:vm").await? == (0, 15 * MIB as u64));
    // Named for programs, with the figures.
    let refused = problem(init("1.1", 6 * MIB).await?, StatusCode::FORBIDDEN).await?;
    ensure!(refused.code == "quota_exceeded", "{refused:?}");
    let quota = refused.quota.context("a quota")?;
    ensure!((quota.of.as_str(), quota.kind.as_str()) == ("project:vm", "bytes"), "{quota:?}");
    ensure!((quota.used, quota.wanted) == (15 * MIB as u64, 6 * MIB as u64), "{quota:?}");
    let refused = problem(init("1.1", 16 * MIB).await?, StatusCode::FORBIDDEN).await?;
    ensure!(refused.quota.context("a quota")?.kind == "image_bytes");
    let upload = started["upload_id"].as_str().context("an upload")?;
    let path = format!("images/{id}/versions/upload/{upload}");
    let aborted = node.request(Method::DELETE, &path).send().await?;
    ensure!(aborted.status().is_success(), "{aborted:?}");
    ensure!(used(&node, "project:vm").await? == (0, 0));

    // A blob's length is reserved while it comes: another push finds it taken.
    push_blob(&node, "shop/app", b"first").await?;
    let begun = node.v2(Method::POST, "shop/app/blobs/uploads/").send().await?;
    let location = begun.headers()["location"].to_str()?.to_owned();
    let (sender, receiver) = tokio::sync::mpsc::channel::<std::io::Result<Vec<u8>>>(1);
    let slow = futures::stream::unfold(receiver, async |mut receiver| {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    let patch = node.http.patch(format!("{}{location}", node.url)).bearer_auth(node.token());
    let patch = patch.header("content-length", 12 * MIB);
    let sending = tokio::spawn(patch.body(reqwest::Body::wrap_stream(slow)).send());
    let piece = vec![7_u8; MIB];
    sender.send(Ok(piece.clone())).await?;
    until("what is announced to be reserved", async || {
        Ok((used(&node, "project:shop").await?.1 == 12 * MIB as u64).then_some(()))
    })
    .await?;
    let other = vec![8_u8; 9 * MIB];
    let path = format!("shop/app/blobs/uploads/?digest={}", sha256(&other));
    let denied = denied(node.v2(Method::POST, &path).body(other).send().await?).await?;
    ensure!(denied["used"] == 12 * MIB as u64 + 5, "{denied}");
    for _ in 1..12 {
        sender.send(Ok(piece.clone())).await?;
    }
    drop(sender);
    expect(&sending.await??, StatusCode::ACCEPTED)?;
    let digest = sha256(&vec![7_u8; 12 * MIB]);
    let url = format!("{}{location}?digest={digest}", node.url);
    expect(&node.http.put(url).bearer_auth(node.token()).send().await?, StatusCode::CREATED)?;
    ensure!(used(&node, "project:shop").await? == (12 * MIB as u64 + 5, 0));
    check(&node).await?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn only_administrators_set_limits_and_accounts_are_not_everyones() -> Result<()> {
    let node = Node::start().await?;
    push_image(&node, "shop/app", "v1", b"layer").await?;
    let user = json!({ "username": "alice", "password": "correct-horse-7" });
    let _user: Value = node.call(Method::POST, "users", &user).await?;
    let alice = |method: Method, path: &str| {
        let url = format!("{}/api/v1/{path}", node.url);
        node.http.request(method, url).basic_auth("alice", Some("correct-horse-7"))
    };
    let own: Quota = read(alice(Method::GET, "quotas/user:alice").send().await?).await?;
    ensure!(own.usage.is_some() && own.set.is_none(), "{own:?}");
    for (path, status) in [
        ("quotas/user:admin", StatusCode::FORBIDDEN),
        ("quotas/user:nobody", StatusCode::FORBIDDEN),
        ("quotas/cluster", StatusCode::FORBIDDEN),
        ("quotas/default:user", StatusCode::FORBIDDEN),
        ("quotas", StatusCode::FORBIDDEN),
        ("quotas/project:shop", StatusCode::NOT_FOUND),
        ("quotas/project:none", StatusCode::NOT_FOUND),
        ("quotas/organization:none", StatusCode::NOT_FOUND),
        ("quotas/shop", StatusCode::BAD_REQUEST),
    ] {
        let answer = alice(Method::GET, path).send().await?;
        ensure!(answer.status() == status, "{path}: {}", answer.status());
    }
    for path in ["quotas/user:alice", "quotas/project:shop", "quotas/cluster"] {
        let set = alice(Method::PUT, path).json(&json!({ "max_bytes": 1 })).send().await?;
        expect(&set, StatusCode::FORBIDDEN)?;
        expect(&alice(Method::DELETE, path).send().await?, StatusCode::FORBIDDEN)?;
    }
    expect(&alice(Method::POST, "quotas/check").send().await?, StatusCode::FORBIDDEN)?;
    let member = json!({ "role": "guest" });
    let _member: Value =
        node.call(Method::PUT, "projects/shop/members/user:alice", &member).await?;
    let seen: Quota = read(alice(Method::GET, "quotas/project:shop").send().await?).await?;
    let shown: Value = read(alice(Method::GET, "projects/shop").send().await?).await?;
    let usage = seen.usage.context("an account")?;
    ensure!(usage.images == 1 && shown["usage"]["used_bytes"] == usage.used_bytes, "{shown}");
    let unknown = node.request(Method::PUT, "quotas/user:nobody").json(&json!({})).send().await?;
    expect(&unknown, StatusCode::NOT_FOUND)?;
    node.server.stop().await
}
