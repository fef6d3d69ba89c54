//! Clients behind proxies: what the proxies say counts, what a client says itself does not.

use anyhow::{Context, Result, ensure};
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::node::{Node, read};
use super::v2::expect;
use super::wait::{level_raised, until};

/// Where the node thinks that a login came from.
async fn seen(node: &Node, forwarded: &[&str]) -> Result<String> {
    let login = json!({ "username": "admin", "password": node.password() });
    let mut request = node.http.post(format!("{}/api/v1/auth/login", node.url)).json(&login);
    for line in forwarded {
        request = request.header("x-forwarded-for", *line);
    }
    let session: Value = read(request.send().await?).await?;
    let token = session["token"].as_str().context("a token")?;
    let own = node.http.get(format!("{}/api/v1/user/sessions", node.url)).bearer_auth(token);
    let all: Vec<Value> = read(own.send().await?).await?;
    let current = all.iter().find(|session| session["current"] == true).context("a session")?;
    Ok(current["address"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_who_the_trusted_proxies_say() -> Result<()> {
    let node = Node::start_with(|config| {
        config.http.trusted_proxies =
            ["127.0.0.0/8", "10.0.0.0/8"].map(|one| one.parse().unwrap()).into();
        config.lockout.token_failures = 3;
    })
    .await?;
    level_raised(&node).await?;
    ensure!(seen(&node, &[]).await? == "127.0.0.1");
    ensure!(seen(&node, &["203.0.113.9"]).await? == "203.0.113.9");
    ensure!(seen(&node, &["1.2.3.4, 203.0.113.9", "10.0.0.2"]).await? == "203.0.113.9");
    // One who guesses is locked out alone, and not by another name.
    let guess = async |from: &str| -> Result<StatusCode> {
        let request = node.http.get(format!("{}/api/v1/auth/me", node.url));
        let request = request.header("x-forwarded-for", from).bearer_auth("pat_v1_guessed");
        Ok(request.send().await?.status())
    };
    let mut number = 0;
    until("the guesser to be blocked", async || {
        number += 1;
        let status = guess(&format!("198.51.100.{}, 203.0.113.66", number % 250)).await?;
        Ok((status == StatusCode::FORBIDDEN).then_some(()))
    })
    .await?;
    ensure!(guess("203.0.113.67").await? == StatusCode::UNAUTHORIZED);
    let me = node.http.get(format!("{}/api/v1/auth/me", node.url)).bearer_auth(node.token());
    expect(&me.send().await?, StatusCode::OK)?;
    node.server.stop().await?;
    // Without the setting nobody is believed.
    let node = Node::start().await?;
    level_raised(&node).await?;
    ensure!(seen(&node, &["203.0.113.9"]).await? == "127.0.0.1");
    node.server.stop().await
}
