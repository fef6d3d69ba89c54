//! What clients of Zedge's do besides what is written down: ids kept as the UUIDs that they are, whole
//! objects sent back, the same thing by another of its names.

use anyhow::{Context, Result, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use super::super::node::{Node, problem, read};
use super::{agrees, call, published};

/// The id as a column for UUIDs has it.
fn bare(id: &Value) -> Result<String> {
    let text = id.as_str().context("no id")?;
    let (_, uuid) = text.split_once('-').context("no prefix")?;
    Ok(Uuid::parse_str(uuid)?.to_string())
}

/// Sent as it is, whatever the document says of it.
async fn sent(node: &Node, method: Method, path: &str, body: Value) -> Result<Value> {
    read(node.request(method, path).json(&body).send().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_and_names_are_taken_as_clients_have_them() -> Result<()> {
    let node = Node::start().await?;
    let body = Some(json!({ "name": "desktop" }));
    let made = call(&node, Method::POST, "images", body, StatusCode::CREATED).await?;
    // Fields without a value are there all the same.
    let empty = json!({ "annotations": {}, "labels": {}, "display_name": "" });
    agrees(&made, &empty, "an image")?;
    ensure!(made.get("deleted_at") == Some(&Value::Null), "{made}");
    let id = made["id"].as_str().context("no id")?;
    let first = published(&node, id, "1.0.0", 1).await?;
    let second = published(&node, id, "1.1.0", 2).await?;
    let (image, old, new) =
        (bare(&made["id"])?, bare(&first["version_id"])?, bare(&second["version_id"])?);

    let shown = call(&node, Method::GET, &format!("images/{image}"), None, StatusCode::OK).await?;
    ensure!(shown["id"] == made["id"], "{shown}");
    for wanted in [old.as_str(), "1.0.0"] {
        let path = format!("images/{image}/versions/{wanted}");
        let version = call(&node, Method::GET, &path, None, StatusCode::OK).await?;
        ensure!(version["id"] == first["version_id"], "{version}");
        agrees(&version, &json!({ "changelog": "", "build_info": null }), "a version")?;
    }
    let tag = format!("images/{image}/tags/stable");
    for (body, number) in [
        (json!({ "version_id": old }), "1.0.0"),
        (json!({ "version_id": second["version_id"] }), "1.1.0"),
        (json!({ "image_version_id": first["version_id"] }), "1.0.0"),
        (json!({ "version": "1.1.0" }), "1.1.0"),
    ] {
        let set = call(&node, Method::PUT, &tag, Some(body), StatusCode::OK).await?;
        ensure!(set["version"] == number, "{set}");
    }
    for unknown in ["ver-456", "456", "1.1.0", &Uuid::nil().to_string()] {
        let request = node.request(Method::PUT, &tag).json(&json!({ "version_id": unknown }));
        let refused = problem(request.send().await?, StatusCode::NOT_FOUND).await?;
        ensure!(refused.code == "version_not_found", "{unknown}: {refused:?}");
    }
    let run = json!({
        "id": "vm-1", "image_id": image, "image_version_id": new, "image_tag_used": "latest",
        "image_digest": second["manifest_digest"],
    });
    let instance = sent(&node, Method::POST, "instances", run).await?;
    ensure!(instance["image_version_id"] == second["version_id"], "{instance}");
    let back = json!({ "target_version": "1.0.0" });
    let rolled = sent(&node, Method::POST, &format!("images/{image}/rollback"), back).await?;
    agrees(&rolled, &json!({ "tag_name": "latest", "version": "1.0.0" }), "rollback")?;
    for (query, count) in [
        ("sort=created_at:DESC", 1),
        ("page=&page_size=&type=&visibility=&starred=&sort=", 1),
        ("starred=True", 0),
        ("deleted=0", 1),
    ] {
        let path = format!("images?{query}");
        let list = call(&node, Method::GET, &path, None, StatusCode::OK).await?;
        ensure!(list["pagination"]["total_count"] == count, "{query}: {list}");
    }

    // All that was shown, with one thing changed.
    let path = format!("images/{id}");
    let mut whole = call(&node, Method::GET, &path, None, StatusCode::OK).await?;
    whole["description"] = json!("changed");
    let changed = call(&node, Method::PUT, &path, Some(whole.clone()), StatusCode::OK).await?;
    for same in ["name", "visibility", "format", "labels", "annotations", "latest_version"] {
        ensure!(changed[same] == whole[same], "{same}: {changed}");
    }
    ensure!(changed["description"] == "changed", "{changed}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_is_compared_with_the_digest_of_its_content() -> Result<()> {
    let node = Node::start().await?;
    let body = Some(json!({ "name": "desktop" }));
    let made = call(&node, Method::POST, "images", body, StatusCode::CREATED).await?;
    let path = format!("images/{}/versions/upload", made["id"].as_str().context("no id")?);
    let body = Some(json!({ "version": "1.0.0", "total_size_bytes": 4, "chunk_size_bytes": 4 }));
    let init = format!("{path}/init");
    let begun = call(&node, Method::POST, &init, body, StatusCode::OK).await?;
    let chunk = format!("{path}/{}/chunks/0", begun["upload_id"].as_str().context("no id")?);
    let put = |bytes: &'static str| {
        // The SHA-256 of `disk`.
        let digest = "sha-256=:EETexyBujXyfu0ro92ZmhAbSVn/H/BoWCp1HAPz4+Ok=:";
        node.request(Method::PUT, &chunk).header("content-digest", digest).body(bytes).send()
    };
    let refused = problem(put("disc").await?, StatusCode::BAD_REQUEST).await?;
    ensure!(refused.code == "checksum_mismatch", "{refused:?}");
    let taken: Value = read(put("disk").await?).await?;
    ensure!(taken["uploaded_chunks"] == 1, "{taken}");
    node.server.stop().await
}
