//! Hosts that are to have an image of another registry's whole, of which a node has some or nothing.

use anyhow::{Context, Result, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use shoal_api::{AgentResolution, Deployment};

use super::super::members::Agent;
use super::super::node::{Node, problem, read};
use super::super::v2::{expect, push_image, sha256};
use super::super::wait::until;
use super::tap::Tap;
use super::{PASSWORD, anonymous, cache, layer, origin};

const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

async fn asked(node: &Node, agent: &Agent, what: &Value) -> Result<reqwest::Response> {
    Ok(agent.request(node, Method::POST, "resolve")?.json(what).send().await?)
}

/// The image, once all of it is here.
async fn whole(node: &Node, agent: &Agent, reference: &str) -> Result<AgentResolution> {
    let what = json!({ "reference": reference, "whole": true, "platform": "linux/arm64" });
    until("all of the image", async || {
        let resolution: AgentResolution = read(asked(node, agent, &what).await?).await?;
        Ok(resolution.awaited.is_none().then_some(resolution))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_gets_what_was_never_pulled_and_what_came_in_part() -> Result<()> {
    let bytes = layer(40);
    let origin = origin(&bytes).await?;
    let tap = Tap::on(&origin, "127.0.0.1").await?;
    let node = cache(&origin, &tap, |_| ()).await?;
    let agent = Agent::enrol(&node, "host-1").await?;
    // Nobody has pulled it.
    let reference = "origin.example/team/app:v1";
    let order = json!({ "reference": reference, "hosts": ["host-1"] });
    let made: Deployment = node.call(Method::POST, "deployments", &order).await?;
    ensure!(made.state == "running", "{made:?}");
    ensure!(tap.fetches("/blobs/") == 0, "blobs were asked for that no host wants yet");
    // Who asks for what is here is told of nothing more.
    let listed: AgentResolution =
        read(asked(&node, &agent, &json!({ "reference": reference })).await?).await?;
    ensure!(listed.blobs.is_empty() && listed.awaited.is_none(), "{listed:?}");
    let what = json!({ "reference": reference, "whole": true });
    let first: AgentResolution = read(asked(&node, &agent, &what).await?).await?;
    let awaited = first.awaited.context("it is said to be whole")?;
    ensure!(awaited.from == "origin.example" && awaited.blobs == 2, "{awaited:?}");
    ensure!(awaited.bytes == bytes.len() as u64 + 2 && awaited.said.is_none(), "{awaited:?}");
    let here = whole(&node, &agent, reference).await?;
    ensure!(here.blobs.len() == 2, "{here:?}");
    ensure!(here.blobs.iter().any(|blob| blob.digest.to_string() == sha256(&bytes)), "{here:?}");
    ensure!(tap.fetches("/blobs/") == 2, "{:?}", tap.seen(&Method::GET, "/blobs/"));

    // What another image has is not fetched again, and what somebody pulled of one neither.
    let other = layer(41);
    push_image(&origin, "team/other", "v1", &bytes).await?;
    push_image(&origin, "team/third", "v1", &other).await?;
    whole(&node, &agent, "origin.example/team/other:v1").await?;
    ensure!(tap.fetches("/blobs/") == 2, "{:?}", tap.seen(&Method::GET, "/blobs/"));
    let path = "origin.example/team/third";
    expect(&anonymous(&node, &format!("{path}/manifests/v1")).await?, StatusCode::OK)?;
    let pulled = anonymous(&node, &format!("{path}/blobs/{}", sha256(&other))).await?;
    ensure!(pulled.bytes().await? == other, "another layer");
    whole(&node, &agent, "origin.example/team/third:v1").await?;
    ensure!(tap.fetches("/blobs/") == 3, "{:?}", tap.seen(&Method::GET, "/blobs/"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_index_a_host_gets_what_its_platform_runs() -> Result<()> {
    let (amd, arm) = (layer(42), layer(43));
    let origin = origin(&amd).await?;
    let mut listed = Vec::new();
    for (architecture, bytes) in [("amd64", &amd), ("arm64", &arm)] {
        let manifest = push_image(&origin, "team/many", architecture, bytes).await?;
        listed.push(json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": sha256(&manifest), "size": manifest.len(),
            "platform": { "os": "linux", "architecture": architecture },
        }));
    }
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": listed });
    let put = origin.v2(Method::PUT, "team/many/manifests/all").header("content-type", INDEX_TYPE);
    expect(&put.body(index.to_string()).send().await?, StatusCode::CREATED)?;
    let tap = Tap::on(&origin, "127.0.0.1").await?;
    let node = cache(&origin, &tap, |_| ()).await?;
    let agent = Agent::enrol(&node, "host-1").await?;
    let reference = "origin.example/team/many:all";
    let here = whole(&node, &agent, reference).await?;
    ensure!(here.manifests.len() == 1 && here.blobs.len() == 2, "{here:?}");
    ensure!(tap.seen(&Method::GET, &sha256(&amd)).is_empty(), "another platform's was fetched");
    ensure!(tap.fetches(&sha256(&arm)) == 1, "{:?}", tap.seen(&Method::GET, "/blobs/"));
    let what = json!({ "reference": reference, "whole": true, "platform": "linux/s390x" });
    let refused = problem(asked(&node, &agent, &what).await?, StatusCode::NOT_FOUND).await?;
    ensure!(refused.code == "platform_not_found", "{refused:?}");
    ensure!(refused.message.contains("linux/amd64, linux/arm64"), "{refused:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_come_is_said_and_nobody_deploys_what_it_may_not_see() -> Result<()> {
    let bytes = layer(44);
    let origin = origin(&bytes).await?;
    let tap = Tap::on(&origin, "127.0.0.1").await?;
    let node = cache(&origin, &tap, |config| {
        if let Some(upstream) = config.upstreams.0.get_mut("origin.example") {
            upstream.visibility = "private".to_owned();
        }
    })
    .await?;
    let agent = Agent::enrol(&node, "host-1").await?;
    let user = json!({ "username": "mallory", "password": PASSWORD });
    let _user: Value = node.call(Method::POST, "users", &user).await?;
    let reference = "origin.example/team/app:v1";
    let order = json!({ "reference": reference, "hosts": ["host-1"] });
    let request = node.http.post(format!("{}/api/v1/deployments", node.url)).json(&order);
    let refused = request.basic_auth("mallory", Some(PASSWORD)).send().await?;
    ensure!(refused.status() == StatusCode::NOT_FOUND, "{refused:?}");
    ensure!(tap.seen(&Method::HEAD, "/manifests/").is_empty(), "it was asked for a stranger");

    // What comes cannot be kept.
    let quota = json!({ "max_bytes": 100_000 });
    let set = node.request(Method::PUT, "quotas/project:origin.example").json(&quota);
    ensure!(set.send().await?.status().is_success(), "no quota was set");
    let what = json!({ "reference": reference, "whole": true });
    until("a reason", async || {
        let answer = asked(&node, &agent, &what).await?;
        if answer.status() == StatusCode::OK {
            return Ok(None);
        }
        let said = problem(answer, StatusCode::SERVICE_UNAVAILABLE).await?;
        ensure!(said.message.contains("cannot be kept"), "{said:?}");
        Ok(Some(()))
    })
    .await?;
    // It is told why, and the upstream is not asked again and again.
    let fetched = tap.fetches(&sha256(&bytes));
    problem(asked(&node, &agent, &what).await?, StatusCode::SERVICE_UNAVAILABLE).await?;
    ensure!(tap.fetches(&sha256(&bytes)) == fetched, "it was fetched again");

    // Its manifest is here, and nobody answers for the rest.
    push_image(&origin, "team/other", "v1", &layer(45)).await?;
    let manifest = node.v2(Method::GET, "origin.example/team/other/manifests/v1").send().await?;
    expect(&manifest, StatusCode::OK)?;
    tap.refuse(Some(StatusCode::TOO_MANY_REQUESTS));
    let what = json!({ "reference": "origin.example/team/other:v1", "whole": true });
    let answer = asked(&node, &agent, &what).await?;
    let said = problem(answer, StatusCode::TOO_MANY_REQUESTS).await?;
    ensure!(said.message.contains("takes no more requests"), "{said:?}");

    Ok(())
}
