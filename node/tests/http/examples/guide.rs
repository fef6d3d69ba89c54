//! The calls of the guide to saving images, as far as they are no other manager's own.

use anyhow::{Result, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::super::node::Node;
use super::super::v2::push_image;
use super::agrees;
use super::registry::sent;

async fn api(node: &Node, method: Method, path: &str, status: StatusCode) -> Result<Value> {
    let request = node.http.request(method, format!("{}{path}", node.url));
    let (_, body) = sent(request.bearer_auth(node.token()), status).await?;
    Ok(if body.is_empty() { Value::Null } else { serde_json::from_slice(&body)? })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_calls_of_the_guide_are_answered_as_it_says() -> Result<()> {
    let node = Node::start().await?;
    let health = node.http.get(format!("{}/health", node.url));
    let (_, body) = sent(health, StatusCode::OK).await?;
    let wanted = json!({ "success": true, "data": { "status": "healthy", "version": "?" } });
    agrees(&serde_json::from_slice(&body)?, &wanted, "health")?;

    for tag in ["latest", "v1.0.0", "v1.1.0"] {
        push_image(&node, "myapp", tag, b"the same layer").await?;
    }
    let (_, tags) = sent(node.v2(Method::GET, "myapp/tags/list"), StatusCode::OK).await?;
    let wanted = json!({ "name": "myapp", "tags": ["latest", "v1.0.0", "v1.1.0"] });
    ensure!(serde_json::from_slice::<Value>(&tags)? == wanted, "{tags:?}");

    for path in ["/api/images", "/api/images/search?q=myapp"] {
        let found = api(&node, Method::GET, path, StatusCode::OK).await?;
        let wanted = json!({
            "data": [{ "name": "myapp", "tags": ["latest", "v1.0.0", "v1.1.0"] }],
        });
        agrees(&found, &wanted, path)?;
    }
    let path = "/api/images/myapp/latest";
    let shown = api(&node, Method::GET, path, StatusCode::OK).await?;
    let wanted = json!({
        "name": "myapp", "tag": "latest", "digest": "?sha256:", "created_at": "?20",
        "layers": [{ "digest": "?sha256:", "size": 14 }],
    });
    agrees(&shown, &wanted, "an image")?;
    api(&node, Method::DELETE, path, StatusCode::NO_CONTENT).await?;
    api(&node, Method::GET, path, StatusCode::NOT_FOUND).await?;
    api(&node, Method::GET, "/api/images/myapp/v1.0.0", StatusCode::OK).await?;
    node.server.stop().await
}
