//! The same over several nodes, and over the end of one.

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use reqwest::{Method, StatusCode};

use super::super::node::Node;
use super::super::v2::{expect, push_image};
use super::super::wait::{level_raised, until};
use super::tap::{Blobs, Tap};
use super::{MANIFEST, anonymous, begin, blob, cache, layer, origin, settings};

/// Another node of `first`'s cluster, with the same settings.
async fn another(first: &Node, name: &str, origin: &Node, tap: &Tap) -> Result<Node> {
    let token = first.join_token("node", Some(1)).await?;
    let storage = first.path().join("node/storage");
    let mut told = Ok(());
    let node = Node::join_with(name, &first.url, &token, &storage, |config| {
        told = settings(config, origin, &tap.url());
    })
    .await?;
    told?;
    Ok(node)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_all_nodes_one_asks_and_what_one_began_another_ends() -> Result<()> {
    let bytes = layer(8);
    let origin = origin(&bytes).await?;
    let tap = Tap::on(&origin, "127.0.0.1").await?;
    let one = cache(&origin, &tap, |_| ()).await?;
    let two = another(&one, "two", &origin, &tap).await?;
    let three = another(&one, "three", &origin, &tap).await?;
    until("three members", async || {
        Ok((one.server.app().raft.status().voters.len() == 3).then_some(()))
    })
    .await?;
    level_raised(&one).await?;
    let mut nodes = vec![one, two, three];
    let asked = (0..18).map(async |number: usize| {
        let node = &nodes[number % 3];
        expect(&anonymous(node, MANIFEST).await?, StatusCode::OK)?;
        let answer = anonymous(node, &blob(&bytes)).await?;
        expect(&answer, StatusCode::OK)?;
        ensure!(answer.bytes().await? == bytes, "another layer");
        Ok(())
    });
    try_join_all(asked).await?;
    ensure!(tap.fetches("/manifests/") == 1, "{:?}", tap.seen(&Method::GET, "/manifests/"));
    ensure!(tap.fetches("/blobs/") == 1, "{:?}", tap.seen(&Method::GET, "/blobs/"));

    // One that ends in the middle of a blob leaves nothing that the next pull minds.
    let other = layer(9);
    push_image(&origin, "team/app", "v1", &other).await?;
    expect(&anonymous(&nodes[1], MANIFEST).await?, StatusCode::OK)?;
    tap.blobs(Blobs::HoldAfter(1_000_000));
    let before: Vec<u64> = nodes.iter().map(misses).collect();
    let mut streams = Vec::new();
    for node in &nodes {
        streams.push(begin(anonymous(node, &blob(&other)).await?).await?);
    }
    ensure!(tap.fetches("/blobs/") == 2, "{:?}", tap.seen(&Method::GET, "/blobs/"));
    let mut asking = (0..3).filter(|at| misses(&nodes[*at]) > before[*at]);
    let keeper = asking.next().context("no node asks")?;
    ensure!(asking.next().is_none(), "several nodes ask");
    drop(streams);
    let keeper = nodes.remove(keeper);
    keeper.server.stop().await?;
    tap.blobs(Blobs::Pass);
    for node in &nodes {
        let whole = until("a pull without that node", async || {
            let answer = anonymous(node, &blob(&other)).await?;
            Ok(if answer.status().is_success() { answer.bytes().await.ok() } else { None })
        });
        ensure!(whole.await? == other, "another layer");
    }
    tap.release();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_chosen_node_does_not_give_the_asked_one_asks_for_itself() -> Result<()> {
    let origin = origin(&layer(10)).await?;
    let tap = Tap::on(&origin, "127.0.0.1").await?;
    let one = cache(&origin, &tap, |_| ()).await?;
    // It has not been told of the upstream.
    let _two = one.join("two").await?;
    until("two members", async || {
        Ok((one.server.app().raft.status().voters.len() == 2).then_some(()))
    })
    .await?;
    // Of so many digests it is chosen for some.
    for number in 0..10 {
        push_image(&origin, "team/app", "v1", &[number]).await?;
        expect(&anonymous(&one, MANIFEST).await?, StatusCode::OK)?;
    }
    Ok(())
}

/// What the node has asked upstreams for.
fn misses(node: &Node) -> u64 {
    node.server.app().upstreams.all().map(|upstream| upstream.shown().misses).sum()
}
