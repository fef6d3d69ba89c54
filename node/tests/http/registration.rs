//! Accounts that people make for themselves, where they may.

use anyhow::{Context, Result, ensure};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use shoal_api::Block;
use shoal_node::config::{Config, Orders, Registration};
use shoal_node::unblocking;

use super::node::{Node, problem, read};
use super::v2::{expect, push_image};
use super::wait::{level_raised, until};

const PASSWORD: &str = "correct-horse-7";

async fn open(change: impl FnOnce(&mut Config)) -> Result<Node> {
    let node = Node::start_with(|config| {
        config.accounts.registration = Registration::Open;
        config.accounts.orders = Some(Orders::Administrators);
        change(config);
    })
    .await?;
    level_raised(&node).await?;
    Ok(node)
}

async fn register(node: &Node, request: &Value) -> Result<Response> {
    let url = format!("{}/api/v1/auth/register", node.url);
    Ok(node.http.post(url).json(request).send().await?)
}

fn account(name: &str) -> Value {
    json!({ "username": name, "password": PASSWORD })
}

async fn login(node: &Node, name: &str) -> Result<Response> {
    let url = format!("{}/api/v1/auth/login", node.url);
    Ok(node.http.post(url).json(&account(name)).send().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_makes_an_account_where_that_was_not_allowed() -> Result<()> {
    let node = Node::start().await?;
    level_raised(&node).await?;
    for name in ["newcomer", "admin"] {
        let closed = problem(register(&node, &account(name)).await?, StatusCode::NOT_FOUND).await?;
        ensure!(closed.code == "registration_closed", "{closed:?}");
    }
    let users: Vec<Value> = node.get("users").await?;
    ensure!(users.len() == 1, "{users:?}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_has_an_account_and_no_rights_that_were_not_given_to_it() -> Result<()> {
    let node = open(|_| ()).await?;
    push_image(&node, "vault/app", "v1", b"layer").await?;
    let mut request = account("dana");
    request["email"] = json!("dana@example.com");
    let made = register(&node, &request).await?;
    expect(&made, StatusCode::CREATED)?;
    let made: Value = made.json().await?;
    ensure!(made["role"] == "user" && made["email"] == "dana@example.com", "{made}");
    // Whatever else is asked for with it.
    for (key, value) in [("role", json!("admin")), ("groups", json!(["acme/dev"]))] {
        let mut greedy = account(&format!("greedy-{key}"));
        greedy[key] = value;
        register(&node, &greedy).await?;
        let role: Value = node.get("users").await?;
        let admins =
            role.as_array().context("a list")?.iter().filter(|user| user["role"] == "admin");
        ensure!(admins.count() == 1, "{role}");
    }
    let session: Value = read(login(&node, "dana").await?).await?;
    let token = session["token"].as_str().context("a token")?;
    for path in ["users", "audit", "blocks", "join-tokens", "projects/vault"] {
        let denied = node.http.get(format!("{}/api/v1/{path}", node.url)).bearer_auth(token);
        let status = denied.send().await?.status();
        ensure!(
            [StatusCode::FORBIDDEN, StatusCode::NOT_FOUND].contains(&status),
            "{path}: {status}"
        );
    }
    // What is its own it may pull, and it puts that onto no hosts.
    let order = json!({ "reference": "dana/app:v1", "selector": "", "name": "dana" });
    for path in ["deployments", "warm-ups"] {
        let url = format!("{}/api/v1/{path}", node.url);
        let order = node.http.post(url).bearer_auth(token).json(&order).send().await?;
        let refused = problem(order, StatusCode::FORBIDDEN).await?;
        ensure!(refused.message.contains("accounts.orders"), "{path}: {refused:?}");
    }
    let pull = node.anonymous_v2(Method::GET, "vault/app/manifests/v1").bearer_auth(token);
    expect(&pull.send().await?, StatusCode::NOT_FOUND)?;

    // The rules of passwords and addresses are the same, and nobody gets the account of another.
    for (password, email, code) in [
        ("short", "", "password_invalid"),
        ("aaaaaaaaaaaa", "", "password_invalid"),
        ("my-name-is-erin", "", "password_invalid"),
        (PASSWORD, "nowhere", "email_invalid"),
    ] {
        let odd = json!({ "username": "erin", "password": password, "email": email });
        let odd = problem(register(&node, &odd).await?, StatusCode::BAD_REQUEST).await?;
        ensure!(odd.code == code, "{odd:?}");
    }
    for taken in ["dana", "admin"] {
        let mut request = account(taken);
        request["password"] = json!("another-horse-8");
        let refused = problem(register(&node, &request).await?, StatusCode::CONFLICT).await?;
        ensure!(refused.code == "user_exists", "{refused:?}");
    }
    expect(&login(&node, "dana").await?, StatusCode::OK)?;
    let trail = node.request(Method::GET, "audit?action=user.create").send().await?.text().await?;
    ensure!(trail.contains("dana") && !trail.contains(PASSWORD), "{trail}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_asks_for_too_many_accounts_is_blocked_at_every_node() -> Result<()> {
    let change = |config: &mut Config| {
        config.lockout.exempt_networks.clear();
        config.lockout.address_registrations = 4;
    };
    let first = open(change).await?;
    let token = first.join_token("node", Some(1)).await?;
    let storage = first.path().join("node/storage");
    let second = Node::join_with("node-2", &first.url, &token, &storage, |config| {
        config.accounts.registration = Registration::Open;
        change(config);
    })
    .await?;
    // A name that is taken counts as well, so that nobody tries names out.
    expect(&register(&first, &account("one")).await?, StatusCode::CREATED)?;
    expect(&register(&second, &account("one")).await?, StatusCode::CONFLICT)?;
    // What is no request for an account does not.
    let odd = json!({ "username": "odd", "password": "short" });
    expect(&register(&first, &odd).await?, StatusCode::BAD_REQUEST)?;
    expect(&register(&second, &account("two")).await?, StatusCode::CREATED)?;
    let asked = ["three", "four", "five", "six"].map(account);
    let asked = asked.iter().zip([&first, &second].into_iter().cycle());
    for answer in
        futures::future::try_join_all(asked.map(|(one, node)| register(node, one))).await?
    {
        let refused = problem(answer, StatusCode::FORBIDDEN).await?;
        ensure!(refused.code == "locked", "{refused:?}");
    }
    expect(&login(&second, "one").await?, StatusCode::FORBIDDEN)?;
    // Machines of the cluster are never blocked.
    let mut config = Config::default();
    config.node.data_dir = first.path().join("node");
    config.http.url = Some(first.url.clone());
    unblocking::unblock(&config, "address:127.0.0.1").await?;
    until("let in again", async || {
        Ok((login(&second, "one").await?.status() == StatusCode::OK).then_some(()))
    })
    .await?;
    let blocks: Vec<Block> = first.get("blocks").await?;
    ensure!(blocks.is_empty(), "{blocks:?}");
    let users: Vec<Value> = first.get("users").await?;
    ensure!(users.len() == 3, "{users:?}");
    until("the trail", async || {
        let trail: Value = first.get("audit?action=user.register").await?;
        Ok(trail.to_string().contains("account:").then_some(()))
    })
    .await?;
    for node in [second, first] {
        node.server.stop().await?;
    }
    Ok(())
}
