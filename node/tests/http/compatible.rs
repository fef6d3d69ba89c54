//! The paths of other registry managers.

use anyhow::{Result, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::node::{Node, problem, read};
use super::v2::{push_image, sha256};

async fn get(node: &Node, path: &str) -> Result<Value> {
    let request = node.http.get(format!("{}/api/images{path}", node.url));
    read(request.bearer_auth(node.token()).send().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_listed_found_shown_and_deleted_by_name_and_tag() -> Result<()> {
    let node = Node::start().await?;
    let manifest = push_image(&node, "team/app", "v1", b"a layer").await?;
    push_image(&node, "team/app", "v2", b"a layer").await?;
    push_image(&node, "other", "latest", b"another").await?;

    let all = get(&node, "").await?;
    ensure!(all["data"].as_array().is_some_and(|list| list.len() == 2), "{all}");
    let found = get(&node, "/search?q=eAm/A").await?;
    ensure!(found["data"][0]["name"] == "team/app", "{found}");
    ensure!(found["pagination"]["total_count"] == 1, "{found}");
    let page = get(&node, "/search?q=e&page=2&page_size=1").await?;
    ensure!(page["data"].as_array().is_some_and(|list| list.len() == 1), "{page}");
    ensure!(page["data"][0]["name"] == "team/app", "{page}");
    let wanted = json!({ "page": 2, "page_size": 1, "total_pages": 2, "total_count": 2 });
    ensure!(page["pagination"] == wanted, "{page}");

    let shown = get(&node, "/team/app/v1").await?;
    ensure!(shown["digest"] == sha256(&manifest) && shown["tag"] == "v1", "{shown}");
    ensure!(shown["layers"][0]["digest"] == sha256(b"a layer"), "{shown}");
    ensure!(shown["size"] == b"a layer{}".len(), "{shown}");
    ensure!(shown["pull_command"].as_str().is_some_and(|text| text.ends_with("/team/app:v1")));

    let delete = |path: &str| {
        let request = node.http.delete(format!("{}/api/images{path}", node.url));
        request.bearer_auth(node.token()).send()
    };
    // Both tags name one version, which goes with the last of them, but not while it runs.
    let run = json!({ "image": "team/app", "image_tag_used": "v1" });
    let _runs: Value = node.call(Method::PUT, "instances/vm-1", &run).await?;
    ensure!(delete("/team/app/v1").await?.status() == StatusCode::NO_CONTENT);
    let refused = problem(delete("/team/app/v2").await?, StatusCode::CONFLICT).await?;
    ensure!(refused.code == "in_use" && refused.message.contains("vm-1"), "{refused:?}");
    ensure!(get(&node, "/team/app/v2").await?["tags"] == json!(["v2"]));
    let ended = node.request(Method::DELETE, "instances/vm-1").send().await?;
    ensure!(ended.status() == StatusCode::NO_CONTENT, "{}", ended.status());
    push_image(&node, "team/app", "v1", b"a layer").await?;
    let manifest_path = format!("team/app/manifests/{}", sha256(&manifest));
    for (path, left) in [("/team/app/v1", StatusCode::OK), ("/team/app/v2", StatusCode::NOT_FOUND)]
    {
        ensure!(delete(path).await?.status() == StatusCode::NO_CONTENT);
        let answer = node.v2(Method::GET, &manifest_path).send().await?;
        ensure!(answer.status() == left, "after {path}: {}", answer.status());
    }
    for path in ["/team/app/v1", "/nothing/here", "/nothing", "/UPPER/case"] {
        ensure!(delete(path).await?.status() == StatusCode::NOT_FOUND, "{path}");
    }
    let stranger = node.http.get(format!("{}/api/images/other/latest", node.url)).send().await?;
    ensure!(stranger.status() == StatusCode::UNAUTHORIZED);
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_shown_with_the_layers_of_the_usual_platform() -> Result<()> {
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    let node = Node::start().await?;
    let mut listed = Vec::new();
    for (layer, os, architecture) in [
        (&b"what was built how"[..], "unknown", "unknown"),
        (&b"for arm"[..], "linux", "arm64"),
        (&b"for amd64"[..], "linux", "amd64"),
    ] {
        let manifest = push_image(&node, "team/multi", architecture, layer).await?;
        listed.push(json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": sha256(&manifest), "size": manifest.len(),
            "platform": { "os": os, "architecture": architecture },
        }));
    }
    for (tag, count, layer) in [("both", 3, &b"for amd64"[..]), ("arm", 2, &b"for arm"[..])] {
        let index = json!({
            "schemaVersion": 2, "mediaType": INDEX, "manifests": listed[..count],
        });
        let path = format!("team/multi/manifests/{tag}");
        let request = node.v2(Method::PUT, &path).header("content-type", INDEX);
        let pushed = request.body(index.to_string()).send().await?;
        ensure!(pushed.status() == StatusCode::CREATED, "{}", pushed.text().await?);
        let shown = get(&node, &format!("/team/multi/{tag}")).await?;
        ensure!(shown["digest"] == sha256(index.to_string().as_bytes()), "{shown}");
        ensure!(shown["media_type"] == INDEX, "{shown}");
        ensure!(shown["layers"][0]["digest"] == sha256(layer), "{shown}");
        ensure!(shown["size"] == layer.len() + "{}".len(), "{shown}");
    }
    // As a whole it is all that it lists; what several have is there once.
    let listed = get(&node, "/search?q=team/multi").await?;
    let bytes = "what was built how".len() + "for arm".len() + "{}".len();
    ensure!(listed["data"][0]["total_size_bytes"] == bytes, "{listed}");
    node.server.stop().await
}
