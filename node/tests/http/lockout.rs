//! Guessing: accounts and addresses are locked at every node, whoever noted the failures; and
//! whoever asks too often waits.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use shoal_api::{Block, ClusterStatus};
use shoal_node::unblocking;
use shoal_p2p::identity::KeyPair;

use super::members::try_enrol;
use super::node::{Node, problem, read};
use super::v2::expect;
use super::wait::until;

const PASSWORD: &str = "correct-horse-7";
const GUESSES: usize = 1000;

async fn user(node: &Node, name: &str) -> Result<()> {
    let request = json!({ "username": name, "password": PASSWORD });
    let _user: Value = node.call(Method::POST, "users", &request).await?;
    Ok(())
}

async fn login(node: &Node, name: &str, password: &str) -> Result<Response> {
    let request = json!({ "username": name, "password": password });
    let url = format!("{}/api/v1/auth/login", node.url);
    Ok(node.http.post(url).json(&request).send().await?)
}

/// How many wrong passwords were really compared at a node.
async fn compared(node: &Node, kind: &str) -> Result<u64> {
    let request = node.http.get(format!("{}/metrics", node.url)).bearer_auth(node.token());
    let text = request.send().await?.error_for_status()?.text().await?;
    let series = format!("shoal_login_failures_total{{kind=\"{kind}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&series));
    Ok(line.context("no such series")?.parse()?)
}

/// Tries until it is locked, which is so at every node a moment after it is so at one.
async fn locked(node: &Node, name: &str) -> Result<Response> {
    until("the lock", async || {
        // It would be let in, if it were not locked.
        let answer = login(node, name, PASSWORD).await?;
        Ok((answer.status() == StatusCode::FORBIDDEN).then_some(answer))
    })
    .await
    .with_context(|| name.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_guesses_at_three_nodes_lock_the_account_at_all_of_them() -> Result<()> {
    let first = Node::start().await?;
    let second = first.join("node-2").await?;
    let third = second.join("node-3").await?;
    let nodes = [&first, &second, &third];
    until("three voters at level 2", async || {
        let status: ClusterStatus = first.get("cluster").await?;
        let voters = status.nodes.iter().filter(|node| node.role != "learner").count();
        Ok((voters == 3 && status.level >= 2).then_some(()))
    })
    .await?;
    user(&first, "alice").await?;
    user(&first, "bob").await?;

    let guesses = (0..GUESSES).map(|guess| login(nodes[guess % 3], "alice", "wrong-password"));
    let mut statuses: BTreeMap<u16, usize> = BTreeMap::new();
    for answer in futures::future::try_join_all(guesses).await? {
        *statuses.entry(answer.status().as_u16()).or_default() += 1;
    }
    // Compared, too many at once, or locked; and nobody got in.
    ensure!(statuses.keys().all(|status| [401, 403, 429].contains(status)), "{statuses:?}");
    // What is left of the thousand after the crowd was turned away may still be too little at one
    // node; together it is not.
    for node in nodes {
        for _ in 0..10 {
            login(node, "alice", "wrong-password").await?;
        }
    }
    for node in nodes {
        let answer = locked(node, "alice").await?;
        let wait: u64 = answer.headers()["retry-after"].to_str()?.parse()?;
        ensure!((23 * 3600..=24 * 3600).contains(&wait), "{wait}");
        ensure!(problem(answer, StatusCode::FORBIDDEN).await?.code == "locked");
        // Nor with docker, nor is anybody else concerned.
        let basic = node.anonymous_v2(Method::GET, "").basic_auth("alice", Some(PASSWORD));
        expect(&basic.send().await?, StatusCode::FORBIDDEN)?;
        expect(&login(node, "bob", PASSWORD).await?, StatusCode::OK)?;
    }
    let mut tried = 0;
    for node in nodes {
        tried += compared(node, "password").await?;
    }
    // The limit; and at each node what two hashes at a time bring until the others hear of it.
    ensure!((10..=60).contains(&tried), "{tried} passwords were compared");

    let blocks: Vec<Block> = second.get("blocks").await?;
    ensure!(blocks.len() == 1 && blocks[0].who == "account:alice", "{blocks:?}");
    let denied = third.http.get(format!("{}/api/v1/blocks", third.url));
    expect(&denied.basic_auth("bob", Some(PASSWORD)).send().await?, StatusCode::FORBIDDEN)?;
    let denied = third.http.delete(format!("{}/api/v1/blocks/account:alice", third.url));
    expect(&denied.basic_auth("bob", Some(PASSWORD)).send().await?, StatusCode::FORBIDDEN)?;
    let unblocked = third.request(Method::DELETE, "blocks/account:alice").send().await?;
    expect(&unblocked, StatusCode::NO_CONTENT)?;
    let again = third.request(Method::DELETE, "blocks/account:alice").send().await?;
    expect(&again, StatusCode::NOT_FOUND)?;
    for node in nodes {
        expect(&login(node, "alice", PASSWORD).await?, StatusCode::OK)?;
    }
    for node in [third, second, first] {
        node.server.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_nobody_has_are_answered_and_locked_like_others() -> Result<()> {
    let node = Node::start().await?;
    user(&node, "alice").await?;
    let mut told = Vec::new();
    for name in ["alice", "nobody", "robot$shop+ci"] {
        let mut answers = Vec::new();
        for guess in 0..14 {
            let answer = login(&node, name, &format!("guess-{guess}")).await?;
            let status = answer.status().as_u16();
            let mut problem: Value = answer.json().await?;
            problem["request_id"] = Value::Null;
            answers.push((status, problem));
        }
        told.push(answers);
    }
    ensure!(told[0] == told[1], "{told:#?}");
    ensure!(told[0][9].0 == 401 && told[0][10].0 == 403, "{told:#?}");
    // A robot's secret cannot be guessed; who tries does not lock it out.
    ensure!(told[2].iter().all(|answer| *answer == told[0][0]), "{told:#?}");
    // A session goes on, and so do tokens; a locked only administrator has the machine's key.
    for _ in 0..10 {
        login(&node, "admin", "wrong-password").await?;
    }
    let closed = login(&node, "admin", node.password()).await?;
    expect(&closed, StatusCode::FORBIDDEN)?;
    ensure!(node.request(Method::GET, "users").send().await?.status() == StatusCode::OK);
    let mut config = shoal_node::config::Config::default();
    config.node.data_dir = node.path().join("node");
    config.http.url = Some(node.url.clone());
    // Until the others have heard of it, there is nothing to end.
    until("the block to be known", async || {
        Ok(unblocking::unblock(&config, "account:admin").await.ok())
    })
    .await?;
    ensure!(unblocking::unblock(&config, "account:admin").await.is_err());
    expect(&login(&node, "admin", node.password()).await?, StatusCode::OK)?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_tries_many_accounts_or_tokens_is_blocked() -> Result<()> {
    let node = Node::start_with(|config| {
        config.lockout.exempt_networks.clear();
        config.lockout.address_accounts = 5;
        config.lockout.token_failures = 20;
        config.oidc.issuer = "https://issuer.invalid".to_owned();
    })
    .await?;
    let unblock = |node: &Node| {
        // Machines of the cluster are never blocked.
        let mut config = shoal_node::config::Config::default();
        config.node.data_dir = node.path().join("node");
        config.http.url = Some(node.url.clone());
        async move { unblocking::unblock(&config, "address:127.0.0.1").await }
    };
    let is_answered = async |wanted: StatusCode, text: &str| {
        until(text, async || {
            let status = node.request(Method::GET, "auth/me").send().await?.status();
            Ok((status == wanted).then_some(()))
        })
        .await
    };
    for number in 0..5 {
        login(&node, &format!("user-{number}"), "wrong-password").await?;
    }
    is_answered(StatusCode::FORBIDDEN, "five accounts").await?;
    // With whatever credentials, and without any.
    expect(&login(&node, "admin", node.password()).await?, StatusCode::FORBIDDEN)?;
    let anonymous = node.anonymous_v2(Method::GET, "a/b/manifests/c").send().await?;
    expect(&anonymous, StatusCode::FORBIDDEN)?;
    ensure!(anonymous.headers().get("retry-after").is_none(), "it has no end");
    // Nor by way of another issuer, which is not even asked.
    let url = format!("{}/api/v1/auth/oidc", node.url);
    for way in [
        node.http.get(format!("{url}/login")),
        node.http.get(format!("{url}/callback?code=1&state=1")),
        node.http.post(format!("{url}/redeem")).json(&json!({ "ticket": "a", "verifier": "b" })),
    ] {
        let refused = problem(way.send().await?, StatusCode::FORBIDDEN).await?;
        ensure!(refused.code == "locked", "{refused:?}");
    }
    unblock(&node).await?;
    is_answered(StatusCode::OK, "let in again").await?;

    for number in 0..20 {
        let token = format!("pat_v1_{number:032x}");
        let guess = node.http.get(format!("{}/api/v1/auth/me", node.url)).bearer_auth(token);
        let status = guess.send().await?.status();
        ensure!(status == 401 || status == 403, "{status}");
    }
    is_answered(StatusCode::FORBIDDEN, "twenty tokens").await?;
    unblock(&node).await?;
    is_answered(StatusCode::OK, "let in once more").await?;
    let key = KeyPair::generate()?;
    for number in 0..20 {
        let token = format!("shoal-join-v1.x.{number:020x}.guessed");
        let refused = try_enrol(&node, &key, "host-1", &token).await?;
        let refused = problem(refused, StatusCode::FORBIDDEN).await?;
        ensure!(["join_token", "locked"].contains(&refused.code.as_str()), "{refused:?}");
    }
    is_answered(StatusCode::FORBIDDEN, "twenty join tokens").await?;
    unblock(&node).await?;
    // Nor is one that has expired a guess: a forgotten job locks nobody out.
    let request = json!({ "name": "short", "scopes": ["repo:read"], "ttl_seconds": 1 });
    let made: Value = node.call(Method::POST, "user/tokens", &request).await?;
    let token = made["token"].as_str().context("a token")?;
    let refused = async || {
        let asked = node.http.get(format!("{}/api/v1/auth/me", node.url)).bearer_auth(token);
        asked.send().await
    };
    until("the token to expire", async || {
        Ok((refused().await?.status() == StatusCode::UNAUTHORIZED).then_some(()))
    })
    .await?;
    for _ in 0..25 {
        let refused = problem(refused().await?, StatusCode::UNAUTHORIZED).await?;
        ensure!(refused.code == "token_expired", "{refused:?}");
    }
    let blocks: Vec<Block> = read(node.request(Method::GET, "blocks").send().await?).await?;
    ensure!(blocks.is_empty(), "{blocks:?}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_too_often_is_told_when_to_come_again() -> Result<()> {
    let node = Node::start_with(|config| {
        config.lockout.exempt_networks.clear();
        config.rates.principal_per_second = 5;
        config.rates.burst_seconds = 2;
    })
    .await?;
    user(&node, "alice").await?;
    let token: Value = read(login(&node, "alice", PASSWORD).await?).await?;
    let token = token["token"].as_str().context("a token")?;
    let asks = (0..60)
        .map(|_| node.http.get(format!("{}/api/v1/auth/me", node.url)).bearer_auth(token).send());
    let answers = futures::future::try_join_all(asks).await?;
    let slowed: Vec<&Response> =
        answers.iter().filter(|answer| answer.status() == StatusCode::TOO_MANY_REQUESTS).collect();
    ensure!(slowed.len() >= 10, "{} of 60", slowed.len());
    for answer in &slowed {
        let wait: u64 = answer.headers()["retry-after"].to_str()?.parse()?;
        ensure!((1..=60).contains(&wait), "{wait}");
    }
    // In the registry's own form there, and others are not held up.
    let tags =
        async || node.anonymous_v2(Method::GET, "a/b/tags/list").bearer_auth(token).send().await;
    let answers = futures::future::try_join_all((0..60).map(|_| tags())).await?;
    let slow = answers.into_iter().find(|answer| answer.status() == StatusCode::TOO_MANY_REQUESTS);
    let body: Value = slow.context("none waits")?.json().await?;
    ensure!(body["errors"][0]["code"] == "TOOMANYREQUESTS", "{body}");
    expect(&node.request(Method::GET, "auth/me").send().await?, StatusCode::OK)?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_has_a_rate_of_its_own() -> Result<()> {
    let node = Node::start_with(|config| {
        config.lockout.exempt_networks.clear();
        config.rates.address_per_second = 5;
        config.rates.burst_seconds = 2;
    })
    .await?;
    let asks = (0..60).map(|_| node.anonymous_v2(Method::GET, "").send());
    let answers = futures::future::try_join_all(asks).await?;
    let count = |status: u16| answers.iter().filter(|answer| answer.status() == status).count();
    ensure!(count(429) >= 10 && count(401) + count(429) == 60, "{} {}", count(401), count(429));
    // Whether it is well, a node always says.
    let health = node.http.get(format!("{}/health", node.url)).send().await?;
    expect(&health, StatusCode::OK)?;
    node.server.stop().await
}
