//! What Zedge sends and expects, call by call: fields, statuses and order as its engineers wrote
//! them down; only ids, times and digests are this run's own.

mod guide;
mod habits;
mod registry;

use anyhow::{Context, Result, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::disks::Session;
use super::document::contract::answered;
use super::node::{Node, read};

/// Every field of `wanted` is in `found`, of the same kind, and numbers, texts and truths are the
/// same; what begins with `?` is any text but none, `null` is anything.
pub fn agrees(found: &Value, wanted: &Value, place: &str) -> Result<()> {
    match (found, wanted) {
        (_, Value::Null) => {}
        (Value::Object(found), Value::Object(wanted)) => {
            for (key, wanted) in wanted {
                let found = found.get(key).with_context(|| format!("{place}.{key} is missing"))?;
                agrees(found, wanted, &format!("{place}.{key}"))?;
            }
        }
        (Value::Array(found), Value::Array(wanted)) => {
            ensure!(found.len() == wanted.len(), "{place}: {found:?}");
            for (at, (found, wanted)) in found.iter().zip(wanted).enumerate() {
                agrees(found, wanted, &format!("{place}[{at}]"))?;
            }
        }
        (Value::String(found), Value::String(wanted)) if wanted.starts_with('?') => {
            let start = &wanted[1..];
            ensure!(!found.is_empty() && found.starts_with(start), "{place}: {found}");
        }
        (found, wanted) => ensure!(found == wanted, "{place} is {found}, not {wanted}"),
    }
    Ok(())
}

async fn call(
    node: &Node,
    method: Method,
    path: &str,
    body: Option<Value>,
    status: StatusCode,
) -> Result<Value> {
    let mut request = node.request(method.clone(), path);
    if let Some(body) = &body {
        request = request.json(body);
    }
    let answer = request.send().await?;
    let found = answer.status();
    ensure!(found == status, "{path}: {found} is not {status}");
    let path = format!("/api/v1/{path}");
    let (_, body) = answered(method.as_str(), &path, body.as_ref(), answer).await?;
    match body.as_slice() {
        [] => Ok(Value::Null),
        body => Ok(serde_json::from_slice(body)?),
    }
}

/// A disk of `bytes` bytes in one call each of init, chunk and complete; answers the last.
async fn published(node: &Node, image: &str, version: &str, seed: u8) -> Result<Value> {
    let path = format!("images/{image}/versions/upload");
    let bytes: Vec<u8> = (0..2_500_000u32).map(|at| (at / 11) as u8 ^ seed).collect();
    let request = json!({
        "version": version, "total_size_bytes": bytes.len(), "chunk_size_bytes": 1_048_576,
        "manifest": { "format": "raw", "layers": [] },
    });
    let init = format!("{path}/init");
    let begun = call(node, Method::POST, &init, Some(request), StatusCode::OK).await?;
    let wanted = json!({
        "upload_id": "?upload-", "total_chunks": 3, "chunk_size": 1_048_576, "expires_at": "?20",
    });
    agrees(&begun, &wanted, "init")?;
    let upload = begun["upload_id"].as_str().context("no id")?;
    for (index, part) in bytes.chunks(1_048_576).enumerate() {
        let chunk = format!("{path}/{upload}/chunks/{index}");
        let sent = node.request(Method::PUT, &chunk).body(part.to_vec()).send().await?;
        ensure!(sent.status() == StatusCode::OK, "{}", sent.status());
        let progress = [33.33, 66.67, 100.0][index];
        let wanted = json!({
            "chunk_index": index, "checksum": "?sha256:", "uploaded_chunks": index + 1,
            "total_chunks": 3, "progress": progress,
        });
        agrees(&read(sent).await?, &wanted, "chunk")?;
    }
    let session = Session { path: format!("{path}/{upload}"), parts: Vec::new() };
    // 202 where the node is busy: then it is asked again until the version is there.
    super::disks::finish(node, &session).await?;
    let complete = format!("{path}/{upload}/complete");
    let done = call(node, Method::POST, &complete, None, StatusCode::CREATED).await?;
    let wanted = json!({
        "version_id": "?ver-", "version": version, "manifest_digest": "?sha256:",
        "status": "active", "created_at": "?20",
    });
    agrees(&done, &wanted, "complete")?;
    Ok(done)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_calls_that_zedge_makes_are_answered_as_it_expects() -> Result<()> {
    let node = Node::start().await?;
    // An image whose name is its project's, open to all.
    let ubuntu = json!({
        "name": "ubuntu", "display_name": "Ubuntu Server",
        "description": "Ubuntu 22.04 LTS 服务器版", "image_type": "os_base", "os_type": "linux",
        "os_version": "Ubuntu 22.04 LTS", "architecture": "x86_64", "format": "qcow2",
        "visibility": "public", "min_cpu_cores": 2, "min_memory_mb": 2048, "min_disk_gb": 20,
        "recommended_cpu_cores": 4, "recommended_memory_mb": 4096, "recommended_disk_gb": 40,
    });
    let made =
        call(&node, Method::POST, "images", Some(ubuntu.clone()), StatusCode::CREATED).await?;
    let wanted = json!({
        "id": "?img-", "name": "ubuntu", "status": "pending", "created_at": "?20",
    });
    agrees(&made, &wanted, "create")?;
    let own = json!({
        "name": "my-custom-image", "display_name": "我的自定义镜像",
        "description": "基于Ubuntu 22.04的自定义镜像", "image_type": "application",
        "os_type": "linux", "os_version": "Ubuntu 22.04", "architecture": "x86_64",
        "format": "qcow2", "visibility": "private", "min_cpu_cores": 2, "min_memory_mb": 2048,
        "min_disk_gb": 20, "labels": { "env": "dev", "team": "backend" },
    });
    let second =
        call(&node, Method::POST, "images", Some(own.clone()), StatusCode::CREATED).await?;
    agrees(&second, &own_without_disk(&own), "the second image")?;

    let image = made["id"].as_str().context("no id")?;
    published(&node, image, "22.04.0", 1).await?;
    let newest = published(&node, image, "22.04.1", 2).await?;
    for tag in ["22.04", "jammy"] {
        let path = format!("images/{image}/tags/{tag}");
        let body = json!({ "version_id": newest["version_id"] });
        let set = call(&node, Method::PUT, &path, Some(body), StatusCode::OK).await?;
        let wanted = json!({ "tag_name": tag, "version": "22.04.1", "updated_at": "?20" });
        agrees(&set, &wanted, "tag")?;
    }

    let query = "images?page=1&page_size=20&type=os_base&visibility=public&sort=created_at:desc";
    let list = call(&node, Method::GET, query, None, StatusCode::OK).await?;
    let mut shown = own_without_disk(&ubuntu);
    shown["id"] = json!("?img-");
    shown["total_size_bytes"] = json!(2_500_000);
    shown["compressed_size_bytes"] = Value::Null;
    shown["download_count"] = json!(0);
    shown["star_count"] = json!(0);
    shown["latest_version"] = json!("22.04.1");
    shown["created_at"] = json!("?20");
    shown["updated_at"] = json!("?20");
    let mut listed = shown.clone();
    listed["tags"] = json!(["22.04", "jammy", "latest"]);
    let wanted = json!({
        "data": [listed],
        "pagination": { "page": 1, "page_size": 20, "total_pages": 1, "total_count": 1 },
    });
    agrees(&list, &wanted, "list")?;

    let mail = Some(json!({ "email": "admin@example.com" }));
    call(&node, Method::PATCH, "users/admin", mail, StatusCode::OK).await?;
    let detail = call(&node, Method::GET, &format!("images/{image}"), None, StatusCode::OK).await?;
    let sized = |version: &str, is_latest: bool| {
        json!({
            "version": version, "is_latest": is_latest, "size_bytes": 2_500_000,
            "created_at": "?20",
        })
    };
    shown["owner"] = json!({ "id": "admin", "name": "admin", "email": "admin@example.com" });
    shown["status"] = json!("active");
    shown["versions"] = json!([sized("22.04.1", true), sized("22.04.0", false)]);
    for key in ["min_cpu_cores", "recommended_cpu_cores", "recommended_disk_gb", "min_disk_gb"] {
        shown[key] = ubuntu[key].clone();
    }
    shown["labels"] = json!({});
    agrees(&detail, &shown, "detail")?;
    let tags = detail["tags"].as_array().context("no tags")?;
    ensure!(tags.len() == 3, "{tags:?}");
    for tag in tags {
        let wanted = json!({ "name": "?", "version": "22.04.1", "updated_at": "?20" });
        agrees(tag, &wanted, "a tag of the detail")?;
    }

    let path = format!("images/{image}/versions?page=1&page_size=10");
    let versions = call(&node, Method::GET, &path, None, StatusCode::OK).await?;
    let version = |number: &str, sequence: u64, is_latest: bool| {
        json!({
            "id": "?ver-", "version": number, "version_sequence": sequence,
            "is_latest": is_latest, "manifest_digest": "?sha256:", "total_size_bytes": 2_500_000,
            "compressed_size_bytes": null, "status": "active", "created_at": "?20",
        })
    };
    let wanted = json!({
        "data": [version("22.04.1", 2, true), version("22.04.0", 1, false)],
        "pagination": { "page": 1, "page_size": 10, "total_count": 2 },
    });
    agrees(&versions, &wanted, "versions")?;
    let id = newest["version_id"].as_str().context("no id")?;
    let path = format!("images/{image}/versions/{id}");
    let one = call(&node, Method::GET, &path, None, StatusCode::OK).await?;
    agrees(&one, &version("22.04.1", 2, true), "version")?;

    let tags = format!("images/{image}/tags");
    let listed = call(&node, Method::GET, &tags, None, StatusCode::OK).await?;
    ensure!(listed["data"].as_array().is_some_and(|tags| tags.len() == 3), "{listed}");
    let wanted = json!({
        "image_id": image, "image_version_id": "?ver-", "created_at": "?20", "created_by": "admin",
        "updated_at": "?20", "updated_by": "admin",
    });
    agrees(&listed["data"][0], &wanted, "a tag of the list")?;
    let path = format!("{tags}/jammy");
    call(&node, Method::DELETE, &path, None, StatusCode::NO_CONTENT).await?;
    let put = Some(json!({ "description": "new" }));
    let path = format!("images/{image}");
    let changed = call(&node, Method::PUT, &path, put, StatusCode::OK).await?;
    agrees(&changed, &json!({ "description": "new", "os_type": "linux" }), "update")?;

    // Another version of the same content, and how it is described.
    let path = format!("images/{image}/versions");
    let body = json!({ "version": "21.10.0", "manifest_digest": newest["manifest_digest"] });
    let again = call(&node, Method::POST, &path, Some(body), StatusCode::CREATED).await?;
    let wanted = json!({
        "id": "?ver-", "version": "21.10.0", "version_sequence": 3, "status": "active",
        "manifest_digest": "?sha256:", "total_size_bytes": 2_500_000, "created_at": "?20",
    });
    agrees(&again, &wanted, "a version of the same content")?;
    let path = format!("{path}/{}", again["id"].as_str().context("no id")?);
    call(&node, Method::DELETE, &path, None, StatusCode::NO_CONTENT).await?;

    // Rights, by the kinds and levels that Zedge knows.
    let lisi = json!({
        "username": "lisi", "password": "correct-horse-7", "email": "lisi@example.com",
    });
    let made = call(&node, Method::POST, "users", Some(lisi), StatusCode::CREATED).await?;
    agrees(&made, &json!({ "email": "lisi@example.com" }), "an account")?;
    for wrong in ["lisi", "@example.com", "lisi@", "a b@example.com", "l@example.com\nBcc: x@y"] {
        let mail = Some(json!({ "email": wrong }));
        call(&node, Method::PATCH, "users/lisi", mail, StatusCode::BAD_REQUEST).await?;
    }
    // Whose a public image is, all may know; where its owner gets mail, not.
    let url = format!("{}/api/v1/images/{image}", node.url);
    let seen = node.http.get(&url).basic_auth("lisi", Some("correct-horse-7")).send().await?;
    let seen: Value = read(seen).await?;
    ensure!(seen["owner"] == json!({ "id": "admin", "name": "admin", "email": null }), "{seen}");
    let path = format!("images/{image}/permissions");
    let body = json!({
        "principal_type": "user", "principal_id": "lisi", "permission_level": "read",
    });
    let given = call(&node, Method::POST, &path, Some(body), StatusCode::CREATED).await?;
    let wanted = json!({
        "id": "?", "principal": { "type": "user", "id": "lisi", "name": "lisi" },
        "permission_level": "read", "created_at": "?20",
    });
    agrees(&given, &wanted, "permission")?;
    let listed = call(&node, Method::GET, &path, None, StatusCode::OK).await?;
    let listed = listed.as_array().context("no rights")?;
    ensure!(listed.len() == 1, "{listed:?}");
    let wanted = json!({
        "id": given["id"], "principal": given["principal"], "permission_level": "read",
        "grantee": "user:lisi", "role": "read", "created_at": given["created_at"],
        "image_id": image, "principal_type": "user", "principal_id": "lisi",
        "created_by": "admin", "updated_at": "?20",
    });
    agrees(&listed[0], &wanted, "a listed right")?;
    let taken = format!("{path}/{}", given["id"].as_str().context("no id")?);
    call(&node, Method::DELETE, &taken, None, StatusCode::NO_CONTENT).await?;

    // The same image through the registry's protocol.
    let manifest = node.v2(Method::GET, "ubuntu/manifests/22.04.1").send().await?;
    ensure!(manifest.status() == StatusCode::NOT_FOUND, "a number is no tag of the registry");
    let manifest = node.v2(Method::GET, "ubuntu/manifests/latest").send().await?;
    let digest = manifest.headers().get("docker-content-digest").context("no digest")?;
    ensure!(*digest == newest["manifest_digest"].as_str().unwrap_or_default(), "{digest:?}");
    let delete = format!("images/{image}");
    call(&node, Method::DELETE, &delete, None, StatusCode::NO_CONTENT).await?;
    node.server.stop().await
}

/// What was sent, as far as lists show it.
fn own_without_disk(request: &Value) -> Value {
    let mut shown = request.clone();
    if let Some(fields) = shown.as_object_mut() {
        fields.retain(|key, _| !key.starts_with("min_") && !key.starts_with("recommended_"));
    }
    shown
}
