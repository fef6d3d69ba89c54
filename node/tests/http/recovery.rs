//! The way back of an administrator who has lost all that it logged in with: one command on one node's
//! machine, and it counts at all of them.

use anyhow::{Context, Result, ensure};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use shoal_api::{AuditPage, Block};
use shoal_node::unblocking::recover_administrator;

use super::logins::enable;
use super::node::{Node, problem};
use super::passkeys::{self, named};
use super::v2::expect;
use super::wait::{level_raised, until};

const BOSS: &str = "boss";
const PASSWORD: &str = "correct-horse-7";
/// As many wrong passwords lock an account.
const GUESSES: usize = 10;

async fn login(node: &Node, password: &str) -> Result<Response> {
    let request = json!({ "username": BOSS, "password": password });
    let url = format!("{}/api/v1/auth/login", node.url);
    Ok(node.http.post(url).json(&request).send().await?)
}

async fn session(answer: Response) -> Result<String> {
    expect(&answer, StatusCode::OK)?;
    let answer: Value = answer.json().await?;
    Ok(answer["token"].as_str().context("a token")?.to_owned())
}

async fn asks_who_it_is(node: &Node, session: &str) -> Result<Response> {
    let me = node.http.get(format!("{}/api/v1/auth/me", node.url)).bearer_auth(session);
    Ok(me.send().await?)
}

async fn three_nodes() -> Result<[Node; 3]> {
    let first = Node::start_with(named).await?;
    level_raised(&first).await?;
    let storage = first.path().join("node/storage");
    let token = first.join_token("node", Some(2)).await?;
    let second = Node::join_with("node-2", &first.url, &token, &storage, named).await?;
    let third = Node::join_with("node-3", &first.url, &token, &storage, named).await?;
    let (second, third) = (second.logged_in_as(&first), third.logged_in_as(&first));
    Ok([first, second, third])
}

#[tokio::test(flavor = "multi_thread")]
async fn one_command_at_one_node_lets_an_administrator_in_again_at_all() -> Result<()> {
    let nodes = Box::pin(three_nodes()).await?;
    let [first, second, third] = &nodes;
    let boss = json!({ "username": BOSS, "password": PASSWORD, "role": "admin" });
    let _made: Value = first.call(Method::POST, "users", &boss).await?;
    let before = session(login(first, PASSWORD).await?).await?;
    let (authenticator, _) = passkeys::register(first, &before, "laptop").await?;
    enable(first, &before).await?;
    expect(&login(second, PASSWORD).await?, StatusCode::ACCEPTED)?;
    for _ in 0..GUESSES {
        login(second, "guessed-it-1").await?;
    }
    until("the lock", async || {
        let blocks: Vec<Block> = first.get("blocks").await?;
        Ok((!blocks.is_empty()).then_some(()))
    })
    .await?;

    let recovered = recover_administrator(&third.server.app().config, BOSS).await?;
    ensure!(recovered.username == BOSS && recovered.second_factor_removed, "{recovered:?}");
    ensure!(recovered.passkeys_removed == 1 && recovered.sessions_ended >= 1, "{recovered:?}");
    let password = &recovered.password.0;
    ensure!(password.len() == 20 && !format!("{recovered:?}").contains(password.as_str()));
    for node in &nodes {
        expect(&asks_who_it_is(node, &before).await?, StatusCode::UNAUTHORIZED)?;
        expect(&login(node, PASSWORD).await?, StatusCode::UNAUTHORIZED)?;
        // Whole, without a second step.
        let now = session(login(node, password).await?).await?;
        expect(&asks_who_it_is(node, &now).await?, StatusCode::OK)?;
        let (status, _) = passkeys::login(node, &json!({}), &authenticator).await?;
        ensure!(status == StatusCode::UNAUTHORIZED, "the passkey: {status}");
    }

    let trail: AuditPage = first.get("audit?action=user.recover").await?;
    let [entry] = &trail.entries[..] else { anyhow::bail!("{:?}", trail.entries) };
    let node = format!("node:{}", third.server.app().node.number());
    ensure!(entry.who == node && entry.from == "127.0.0.1", "{entry:?}");
    ensure!(entry.target == BOSS && entry.result == "done", "{entry:?}");
    for node in nodes {
        node.server.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_is_let_in_so_and_nobody_else_may_ask() -> Result<()> {
    let node = Node::start().await?;
    level_raised(&node).await?;
    for (name, role) in [("alice", "user"), ("watcher", "auditor")] {
        let made = json!({ "username": name, "password": PASSWORD, "role": role });
        let _made: Value = node.call(Method::POST, "users", &made).await?;
    }
    let config = &node.server.app().config;
    for (name, code) in [
        ("alice", "not_administrator"),
        ("watcher", "not_administrator"),
        ("nobody", "user_not_found"),
    ] {
        let refused = recover_administrator(config, name).await.err().context(name)?;
        ensure!(refused.to_string().contains(code), "{name}: {refused:#}");
    }
    // An administrator who is logged in has other ways, which ask for more.
    let path = "users/admin/recovery";
    let refused = node.request(Method::POST, path).send().await?;
    problem(refused, StatusCode::FORBIDDEN).await?;
    let anybody = node.http.post(format!("{}/api/v1/{path}", node.url)).send().await?;
    problem(anybody, StatusCode::UNAUTHORIZED).await?;
    // Nothing of it has changed.
    let login = json!({ "username": "admin", "password": node.password() });
    let _session: Value = node.call(Method::POST, "auth/login", &login).await?;
    node.server.stop().await
}
