//! Accounts that come with hashes of another program's.

use anyhow::{Context, Result, ensure};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::node::{Node, problem, read};
use super::v2::expect;
use super::wait::level_raised;

const PASSWORD: &str = "correct-horse-7";
/// By crypt(3), of [`PASSWORD`].
const HASH: &str = "$2y$04$abcdefghijklmnopqrstuuSQyLzxZtaUFpi/q2P5wWap0qvqIvC5q";

async fn import(node: &Node, name: &str, hash: &str) -> Result<Response> {
    let request = json!({ "username": name, "password_hash": hash });
    Ok(node.request(Method::POST, "users").json(&request).send().await?)
}

async fn login(node: &Node, name: &str, password: &str) -> Result<Response> {
    let request = json!({ "username": name, "password": password });
    let url = format!("{}/api/v1/auth/login", node.url);
    Ok(node.http.post(url).json(&request).send().await?)
}

/// What is stored.
async fn stored(node: &Node, name: &str) -> Result<Vec<u8>> {
    let view = node.server.app().view().await?;
    Ok(view.query().user(name)?.context("no account")?.password_hash.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_comes_with_a_bcrypt_hash_logs_in_and_has_one_of_ours_then() -> Result<()> {
    let node = Node::start_with(|config| config.accounts.bcrypt = true).await?;
    level_raised(&node).await?;
    for name in ["alice", "bob", "carol"] {
        let made = import(&node, name, HASH).await?;
        expect(&made, StatusCode::CREATED)?;
        let made: Value = made.json().await?;
        // There is no password that anybody could be told.
        ensure!(made.get("password").is_none() && !made.to_string().contains("$2y$"), "{made}");
    }
    ensure!(stored(&node, "alice").await? == HASH.as_bytes());
    for wrong in ["correct-horse-8", "", HASH, "correct-horse-7\0"] {
        expect(&login(&node, "alice", wrong).await?, StatusCode::UNAUTHORIZED)?;
    }
    ensure!(stored(&node, "alice").await? == HASH.as_bytes());
    let session: Value = read(login(&node, "alice", PASSWORD).await?).await?;
    let token = session["token"].as_str().context("a token")?;
    ensure!(stored(&node, "alice").await?.starts_with(b"$argon2id$"));
    // The session that brought this about goes on, and the password is the same.
    let me = node.http.get(format!("{}/api/v1/auth/me", node.url)).bearer_auth(token);
    expect(&me.send().await?, StatusCode::OK)?;
    expect(&login(&node, "alice", PASSWORD).await?, StatusCode::OK)?;
    expect(&login(&node, "alice", "correct-horse-8").await?, StatusCode::UNAUTHORIZED)?;
    // docker is let in as well.
    let docker = node.anonymous_v2(Method::GET, "").basic_auth("bob", Some(PASSWORD));
    expect(&docker.send().await?, StatusCode::OK)?;
    ensure!(stored(&node, "bob").await?.starts_with(b"$argon2id$"));
    // An administrator's word, that a password is another one, stands.
    let other = json!({ "password": "another-horse-8" });
    let changed = node.request(Method::PATCH, "users/carol").json(&other).send().await?;
    expect(&changed, StatusCode::OK)?;
    expect(&login(&node, "carol", PASSWORD).await?, StatusCode::UNAUTHORIZED)?;
    expect(&login(&node, "carol", "another-horse-8").await?, StatusCode::OK)?;
    // Guesses count for such an account as for others.
    let made = import(&node, "dave", HASH).await?;
    expect(&made, StatusCode::CREATED)?;
    for _ in 0..10 {
        login(&node, "dave", "guessed-it-1").await?;
    }
    expect(&login(&node, "dave", PASSWORD).await?, StatusCode::FORBIDDEN)?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hash_is_taken_where_it_may_be_and_is_one_that_can_be_compared() -> Result<()> {
    let node = Node::start().await?;
    let refused = problem(import(&node, "alice", HASH).await?, StatusCode::BAD_REQUEST).await?;
    ensure!(refused.code == "password_hash_invalid", "{refused:?}");
    let node = node.restart(|config| config.accounts.bcrypt = true).await?;
    let (dear, other) = (HASH.replace("$04$", "$13$"), HASH.replace("$2y$", "$1$0"));
    for hash in [dear.as_str(), &other, "", "!", PASSWORD] {
        let odd = problem(import(&node, "alice", hash).await?, StatusCode::BAD_REQUEST).await?;
        ensure!(odd.code == "password_hash_invalid", "{hash}: {odd:?}");
    }
    let both = json!({ "username": "alice", "password": PASSWORD, "password_hash": HASH });
    let both = node.request(Method::POST, "users").json(&both).send().await?;
    ensure!(problem(both, StatusCode::BAD_REQUEST).await?.code == "password_hash_invalid");
    expect(&import(&node, "alice", HASH).await?, StatusCode::CREATED)?;
    // Where it may not be any more, such a password opens nothing.
    let node = node.restart(|config| config.accounts.bcrypt = false).await?;
    expect(&login(&node, "alice", PASSWORD).await?, StatusCode::UNAUTHORIZED)?;
    node.server.stop().await
}
