//! Who is let in, and what names may be.

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Method, StatusCode};
use serde_json::Value;

use super::super::node::Node;
use super::{expect, header, push_image, refused};

#[tokio::test(flavor = "multi_thread")]
async fn strangers_get_one_challenge_and_learn_nothing() -> Result<()> {
    let node = Node::start().await?;
    push_image(&node, "a/private", "v1", b"layer").await?;
    for (method, path) in [
        (Method::GET, ""),
        (Method::GET, "a/private/manifests/v1"),
        (Method::GET, "a/missing/manifests/v1"),
        (Method::GET, "_catalog"),
        (Method::POST, "a/private/blobs/uploads/"),
        (Method::DELETE, "a/private/manifests/v1"),
        (Method::GET, "NOT/a/name/manifests/v1"),
    ] {
        let answer = node.anonymous_v2(method, path).send().await?;
        let challenges: Vec<_> = answer.headers().get_all("www-authenticate").iter().collect();
        ensure!(challenges.len() == 1, "{path}: {challenges:?}");
        // The host is an address here, for which clients can follow no realm.
        ensure!(challenges[0] == "Basic realm=\"shoal\"", "{path}: {challenges:?}");
        ensure!(header(&answer, "docker-distribution-api-version")? == "registry/2.0");
        refused(answer, StatusCode::UNAUTHORIZED, "UNAUTHORIZED").await?;
    }
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_host_sends_clients_for_a_token_and_takes_it() -> Result<()> {
    let node = Node::start().await?;
    let port = node.url.rsplit(':').next().context("a port")?;
    let base = format!("https://localhost:{port}/v2");
    let answer = node.http.get(format!("{base}/a/b/manifests/v1")).send().await?;
    expect(&answer, StatusCode::UNAUTHORIZED)?;
    let wanted = format!(
        "Bearer realm=\"{base}/token\",service=\"localhost:{port}\",scope=\"repository:a/b:pull\""
    );
    ensure!(header(&answer, "www-authenticate")? == wanted);

    let url = format!("{base}/token?service=localhost:{port}&account=admin&offline_token=true");
    let with = |password: &str| {
        let basic = STANDARD.encode(format!("admin:{password}"));
        node.http.get(&url).header("authorization", format!("Basic {basic}")).send()
    };
    expect(&with("wrong").await?, StatusCode::UNAUTHORIZED)?;
    let granted: Value = with(node.password()).await?.error_for_status()?.json().await?;
    ensure!(granted["token"].is_string() && granted["token"] == granted["access_token"]);
    ensure!(granted["expires_in"].as_u64().is_some_and(|seconds| seconds >= 60));
    let token = granted["token"].as_str().context("a token")?;
    let answer = node.http.get(format!("{base}/")).bearer_auth(token).send().await?;
    expect(&answer, StatusCode::OK)?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn names_outside_the_grammar_are_refused() -> Result<()> {
    let node = Node::start().await?;
    let long = format!("a/{}", "b".repeat(300));
    for name in ["A/b", "a//b", "-a/b", "a/b-", "a/..", "a/.b", "a/b%2fc%00", long.as_str()] {
        let answer = node.v2(Method::POST, &format!("{name}/blobs/uploads/")).send().await?;
        let status = answer.status().as_u16();
        ensure!(matches!(status, 400 | 404), "{name}: {status}");
    }
    let tag = format!("a/b/manifests/{}", "t".repeat(129));
    for path in [tag.as_str(), "a/b/manifests/.x", "a/b/manifests/-x"] {
        let answer = node.v2(Method::PUT, path).body("{}").send().await?;
        expect(&answer, StatusCode::BAD_REQUEST)?;
        let answer = node.v2(Method::GET, path).send().await?;
        expect(&answer, StatusCode::NOT_FOUND)?;
    }
    node.server.stop().await
}
