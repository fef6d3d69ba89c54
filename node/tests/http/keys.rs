//! The keys that the cluster signs with are replaced under what they have signed.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use shoal_api::{LoginResponse, OrderMessage, SigningKeyInfo, TicketKeyInfo};
use shoal_metadata::{KeyPurpose, SIGNATURES_LIVE_MS, SIGNING_KEYS_MAX};
use tokio::time::timeout;

use super::disks::{create_image, make_disk, upload};
use super::members::{Agent, jwt};
use super::node::{DEADLINE, Node, problem};
use super::orders::{Lines, orders};
use super::swarm::{granted, peer, recipe_of};

async fn rotate(node: &Node, purpose: &str, distrust: bool) -> Result<Vec<SigningKeyInfo>> {
    let path = format!("cluster/keys/{purpose}/rotate");
    node.call(Method::POST, &path, &json!({ "distrust": distrust })).await
}

/// Number and state of the keys for `purpose`.
fn states<'a>(keys: &'a [SigningKeyInfo], purpose: &str) -> Vec<(u32, &'a str)> {
    let of = keys.iter().filter(|key| key.purpose == purpose);
    of.map(|key| (key.number, key.state.as_str())).collect()
}

async fn status_with(node: &Node, token: &str) -> Result<StatusCode> {
    let asked = node.http.get(format!("{}/api/v1/auth/me", node.url)).bearer_auth(token);
    Ok(asked.send().await?.status())
}

async fn log_in(node: &Node) -> Result<String> {
    let login = json!({ "username": "admin", "password": node.password() });
    let answer: LoginResponse = node.call(Method::POST, "auth/login", &login).await?;
    Ok(answer.token)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_makes_too_many_keys_hears_when_the_first_runs_out() -> Result<()> {
    let node = Node::start().await?;
    for number in 1..SIGNING_KEYS_MAX {
        let keys = rotate(&node, "token", false).await?;
        ensure!(states(&keys, "token").len() == number + 1, "{keys:?}");
    }
    let path = "cluster/keys/token/rotate";
    let one_more = node.request(Method::POST, path).json(&json!({ "distrust": false }));
    let refused = one_more.send().await?;
    let after = refused.headers().get("retry-after").context("no Retry-After")?.to_str()?;
    let after: u64 = after.parse()?;
    // A signature lives on when the next key signs, which is announced before.
    ensure!(after > 60 && after <= SIGNATURES_LIVE_MS / 1000 + 2 * 3600, "{after}");
    let refused = problem(refused, StatusCode::TOO_MANY_REQUESTS).await?;
    ensure!(refused.code == "limit", "{refused:?}");
    // The other purpose has keys of its own, and whoever distrusts all waits for none.
    rotate(&node, "ticket", false).await?;
    let keys = rotate(&node, "token", true).await?;
    ensure!(states(&keys, "token").len() == 1, "{keys:?}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_token_key_is_announced_and_a_distrusted_one_ends_its_tokens() -> Result<()> {
    let first = Node::start().await?;
    let second = first.join("node-2").await?;
    let before = log_in(&first).await?;
    let keys = rotate(&first, "token", false).await?;
    ensure!(states(&keys, "token") == [(0, "signs"), (1, "announced")], "{keys:?}");
    ensure!(states(&keys, "ticket") == [(0, "signs")], "{keys:?}");
    let shown: Vec<SigningKeyInfo> = second.get("cluster/keys").await?;
    ensure!(shown == keys, "every node shows the same");
    ensure!(keys[0].believed_until.is_some() && keys[1].believed_until.is_none());
    // What signs now is the old one still, at either node.
    let after = log_in(&second).await?;
    for token in [&before, &after] {
        for node in [&first, &second] {
            ensure!(status_with(node, token).await? == StatusCode::OK);
        }
    }
    let app = first.server.app();
    let old = app.keys.ring.signer(KeyPurpose::Token, app.now());
    ensure!(old.number == 0);

    let before_distrust = app.raft.local();
    let keys = rotate(&first, "token", true).await?;
    // A request that began before it brings nothing back.
    app.keys.ring.refresh(before_distrust.query())?;
    let signs = app.keys.ring.signer(KeyPurpose::Token, app.now()).number;
    ensure!(signs == 2, "key {signs} signs again");
    ensure!(states(&keys, "token") == [(2, "signs")], "{keys:?}");
    ensure!(status_with(&first, &before).await? == StatusCode::UNAUTHORIZED);
    let new = log_in(&first).await?;
    // The other node may not have looked since; a token of a key that it does not know makes it.
    ensure!(status_with(&second, &new).await? == StatusCode::OK);
    ensure!(status_with(&second, &after).await? == StatusCode::UNAUTHORIZED);
    // Whoever has the old key makes nothing of it, whatever number it claims.
    let now = app.now().as_millis() / 1000;
    let cluster = app.keys.cluster.to_string();
    let claims =
        json!({ "iss": cluster, "sub": "admin", "aud": cluster, "iat": now, "exp": now + 60 });
    for kid in [json!("0"), json!("1"), json!("2"), Value::Null] {
        let header = json!({ "alg": "EdDSA", "typ": "JWT", "kid": kid });
        let forged = jwt(&old.pair, &header, &claims);
        ensure!(status_with(&first, &forged).await? == StatusCode::UNAUTHORIZED, "{kid}");
    }
    second.server.stop().await?;
    first.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_keys_for_tokens_and_tickets_and_for_nothing_else() -> Result<()> {
    let node = Node::start().await?;
    let asked = node.request(Method::POST, "cluster/keys/other/rotate").json(&json!({}));
    let refused = problem(asked.send().await?, StatusCode::NOT_FOUND).await?;
    ensure!(refused.code == "key_not_found" && refused.message.contains("'ticket'"));
    node.server.stop().await
}

async fn told(stream: &mut Lines) -> Result<Vec<TicketKeyInfo>> {
    match timeout(DEADLINE, stream.order()).await?? {
        OrderMessage::Nodes { ticket_keys, .. } => Ok(ticket_keys),
        other => bail!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_told_of_ticket_keys_and_old_tickets_end_with_a_distrusted_one() -> Result<()> {
    let node = Node::start().await?;
    let file = make_disk(node.path(), "ticketed", 2)?;
    let image = create_image(&node, "zedge/ticketed").await?;
    upload(&node, image, &file, "1").await?;
    let wanted = json!({ "reference": "zedge/ticketed:1" });
    let agent = Agent::enrol(&node, "host-1").await?;
    ensure!(agent.enrolment.ticket_keys.len() == 1);
    let mut stream = orders(&node, &agent).await?;
    ensure!(told(&mut stream).await? == agent.enrolment.ticket_keys);

    rotate(&node, "ticket", false).await?;
    let keys = told(&mut stream).await?;
    ensure!(keys.len() == 2 && keys[0].public_key == agent.enrolment.ticket_public_key);
    ensure!(keys[0].until_ms.is_some() && keys[1].until_ms.is_none(), "{keys:?}");
    let (disk, old) = granted(&node, &agent, &wanted).await?;

    rotate(&node, "ticket", true).await?;
    let newest = told(&mut stream).await?;
    ensure!(newest.len() == 1 && !keys.contains(&newest[0]), "{newest:?}");
    let (_, new) = granted(&node, &agent, &wanted).await?;
    let swarm = peer(agent, Arc::default()).await?;
    let refused = timeout(DEADLINE, swarm.recipe(disk.recipe, old)).await?;
    ensure!(refused.is_err(), "a ticket of a distrusted key was taken");
    recipe_of(&swarm, disk.recipe, &new).await.context("a ticket of the new key")?;
    swarm.shutdown().await;
    node.server.stop().await
}
