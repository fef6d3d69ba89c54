//! Ten thousand malformed requests, as raw bytes: none is a failure of the node, and none tells a
//! stranger what exists.
//!
//! The seed is printed with whatever fails; `SHOAL_TEST_SEED` replays it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;
use reqwest::Method;
use tokio::task::JoinSet;

use super::forge::{Forge, LAYER, REPOSITORY, exchange, false_tokens};
use super::node::{Node, free_tcp};
use super::v2::{push_image, sha256};

const REQUESTS: usize = 10_000;
const CLIENTS: usize = 8;
const SEED_DEFAULT: u64 = 20_261_121;

/// The status of the answer; `None` where the connection is closed without one.
async fn send(address: SocketAddr, request: &[u8]) -> Result<Option<u16>> {
    let answer = exchange(address, request).await?;
    if answer.is_empty() {
        return Ok(None);
    }
    let head = answer.strip_prefix(b"HTTP/1.1 ").or_else(|| answer.strip_prefix(b"HTTP/1.0 "));
    let status = head.and_then(|rest| rest.get(..3)).context("no status line")?;
    Ok(Some(std::str::from_utf8(status)?.parse()?))
}

/// Gives the statuses that came.
async fn attack(address: SocketAddr, mut forge: Forge, count: usize) -> Result<BTreeSet<u16>> {
    let mut seen = BTreeSet::new();
    for _ in 0..count {
        let (request, known) = forge.request();
        let shown = String::from_utf8_lossy(&request[..request.len().min(1500)]).into_owned();
        let status = send(address, &request).await.with_context(|| shown.clone())?;
        match status {
            // A proposal may meet a limit; what is not understood may be said to be so.
            None | Some(200..=499 | 501 | 505) => {}
            Some(status) => bail!("{status} for {shown:?}"),
        }
        seen.extend(status);
        // Anonymously, what needs credentials looks the same whether it exists or not.
        let path = shown.split(' ').nth(1).unwrap_or_default();
        if !known && path.starts_with(&format!("/v2/{REPOSITORY}/")) {
            let closed = matches!(status, None | Some(400 | 401 | 408 | 413 | 414 | 431 | 501));
            ensure!(closed, "a stranger gets {status:?} for {shown:?}");
        }
    }
    Ok(seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_are_the_clients_fault_and_harm_nobody() -> Result<()> {
    let seed = match std::env::var("SHOAL_TEST_SEED") {
        Ok(text) => text.parse()?,
        Err(_) => SEED_DEFAULT,
    };
    let plain = free_tcp()?;
    let node = Node::start_with(|config| config.http.plain_listen = Some(plain)).await?;
    push_image(&node, REPOSITORY, "v1", LAYER).await?;
    let session = super::v2::open_upload(&node, REPOSITORY).await?;
    let upload: Arc<str> = session.rsplit('/').next().context("an id")?.into();
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let random = StdRng::seed_from_u64(seed.wrapping_add(client as u64));
        let tokens = false_tokens(node.token())?.into_iter().map(|(_, token)| token).collect();
        let forge = Forge::new(random, node.token(), &upload).with_false_tokens(tokens);
        clients.spawn(attack(plain, forge, REQUESTS / CLIENTS));
    }
    let mut seen = BTreeSet::new();
    while let Some(ended) = clients.join_next().await {
        seen.extend(ended?.with_context(|| format!("SHOAL_TEST_SEED={seed}"))?);
    }
    // Requests that all fail at the door would show nothing of what is behind it.
    for status in [200, 202, 400, 401, 404, 405] {
        ensure!(seen.contains(&status), "no {status} among {seen:?}; SHOAL_TEST_SEED={seed}");
    }
    // It still works, and what was there is there, unless a well-formed DELETE named it.
    let answer = node.v2(Method::GET, "").send().await?;
    ensure!(answer.status().is_success());
    push_image(&node, REPOSITORY, "v2", LAYER).await?;
    let blob = format!("{REPOSITORY}/blobs/{}", sha256(LAYER));
    let got = node.v2(Method::GET, &blob).send().await?.bytes().await?;
    ensure!(got == LAYER, "the blob changed");
    node.server.stop().await
}
