//! What every request passes through: answers of one form, whoever gives them, and limits.

use std::time::Duration;

use anyhow::{Result, ensure};
use reqwest::{Method, StatusCode};
use shoal_api::Problem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use super::node::{Node, free_tcp};

/// Longer than the node waits for a request's headers.
const DEADLINE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_not_there_is_a_problem_with_the_request_id() -> Result<()> {
    let node = Node::start().await?;
    for (method, path, status) in [
        (Method::GET, "/api/v1/nothing", StatusCode::NOT_FOUND),
        (Method::GET, "/nothing", StatusCode::NOT_FOUND),
        (Method::DELETE, "/api/v1/images", StatusCode::METHOD_NOT_ALLOWED),
        (Method::GET, "/api/v1/images", StatusCode::UNAUTHORIZED),
    ] {
        let request = node.http.request(method, format!("{}{path}", node.url));
        let answer = request.header("x-request-id", "from-the-client").send().await?;
        ensure!(answer.status() == status, "{path}: {}", answer.status());
        ensure!(answer.headers()["x-request-id"] == "from-the-client");
        let problem: Problem = answer.json().await?;
        ensure!(problem.request_id.as_deref() == Some("from-the-client"), "{path}: {problem:?}");
    }
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_reaches_a_client_that_still_sends() -> Result<()> {
    let node = Node::start().await?;
    // curl of Debian 12 loses an answer whose stream is reset, about every second time.
    for _ in 0..20 {
        let mut command = Command::new("curl");
        command.args(["-sSk", "--http2", "-o", "/dev/null", "-w", "%{http_code}", "-d", "{"]);
        let output = command.arg(format!("{}/api/v1/deployments", node.url)).output().await?;
        let (status, error) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
        ensure!(status == b"401", "{}: {error}", String::from_utf8_lossy(status));
    }
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_ends_its_headers_is_cut_off() -> Result<()> {
    let plain = free_tcp()?;
    let node = Node::start_with(|config| config.http.plain_listen = Some(plain)).await?;
    let mut slow = TcpStream::connect(plain).await?;
    slow.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nx-slow: ").await?;
    let mut answer = Vec::new();
    let cut = tokio::time::timeout(DEADLINE, slow.read_to_end(&mut answer)).await;
    ensure!(cut.is_ok(), "the connection is still open");
    ensure!(!answer.starts_with(b"HTTP/1.1 200"), "half a request was answered");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn web_pages_call_only_from_where_they_may() -> Result<()> {
    const CONSOLE: &str = "https://console.example";
    let node = Node::start_with(|config| config.cors.allowed_origins = vec![CONSOLE.into()]);
    let node = node.await?;
    for (origin, allowed) in [(CONSOLE, true), ("https://elsewhere.example", false)] {
        let asked = node.anonymous_v2(Method::OPTIONS, "a/b/tags/list").header("origin", origin);
        let asked = asked
            .header("access-control-request-method", "GET")
            .header("access-control-request-headers", "authorization");
        let preflight = asked.send().await?;
        let page = node.v2(Method::GET, "").header("origin", origin).send().await?;
        for answer in [&preflight, &page] {
            let header = answer.headers().get("access-control-allow-origin");
            ensure!(header.is_some() == allowed, "{origin}: {answer:?}");
        }
        ensure!(preflight.status().is_success(), "{preflight:?}");
    }
    node.server.stop().await?;

    let closed = Node::start().await?;
    let answer = closed.v2(Method::GET, "").header("origin", CONSOLE).send().await?;
    ensure!(answer.headers().get("access-control-allow-origin").is_none());
    // And what a browser is shown, it does nothing else with.
    for path in ["/health", "/nowhere", "/v2/", "/api/v1/openapi.json", "/api/docs"] {
        let answer = closed.http.get(format!("{}{path}", closed.url)).send().await?;
        for (name, wanted) in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("x-frame-options", "DENY"),
        ] {
            let found: Vec<_> = answer.headers().get_all(name).iter().collect();
            ensure!(found == [wanted], "{path}: {name} is {found:?}");
        }
        ensure!(!answer.headers().contains_key("strict-transport-security"), "{path}");
    }
    closed.server.stop().await
}
