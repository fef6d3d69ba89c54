//! Scanners that lie, hang and fail, and nodes that go while one is at work.

use std::fs;

use anyhow::{Result, ensure};
use reqwest::{Method, StatusCode};
use shoal_api::{ClusterStatus, VulnerabilityReport};

use super::super::node::{Node, problem};
use super::super::v2::push_image;
use super::super::wait::{level_raised, until};
use super::{Program, ended, ids, image_of, metrics, order, report, scratch_is_empty};

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_that_fails_says_why_and_leaves_what_was_found_before() -> Result<()> {
    let program = Program::new()?;
    let node = program.node().await?;
    push_image(&node, "team/app", "v1", b"layer").await?;
    let image = image_of(&node, "team/app:v1").await?;
    order(&node, image).await?;
    let found = ended(&node, image).await?;
    ensure!(found.scan_status == "completed", "{found:?}");
    let mut node = node;
    for (mode, reason) in [
        ("garbage", "output_invalid: "),
        ("flood", "output_too_long: "),
        ("fail", "scanner_failed: exit status: 1: FATAL no database"),
        ("hang", "timed_out: "),
    ] {
        if mode == "hang" {
            ensure!(metrics(&node).await?.contains("image_scan_failures_total 3"));
            node = node.restart(|config| config.scanner.timeout_seconds = 5).await?;
        }
        program.write("mode", mode)?;
        let ordered = order(&node, image).await?;
        let failed = ended(&node, image).await?;
        ensure!(failed.scan_id == ordered.scan_id && failed.scan_status == "failed", "{failed:?}");
        let said = failed.failure.clone().unwrap_or_default();
        ensure!(said.starts_with(reason), "{mode}: {said}");
        ensure!(failed.summary == found.summary && ids(&failed) == ids(&found), "{failed:?}");
        ensure!(failed.scanned_at == found.scanned_at);
        scratch_is_empty(&node).await?;
    }
    // What is found then takes its place.
    let node = node.restart(|config| config.scanner.timeout_seconds = 900).await?;
    program.write("mode", "")?;
    program.write("report", &report(&[]).to_string())?;
    order(&node, image).await?;
    let shown = ended(&node, image).await?;
    ensure!(shown.scan_status == "completed" && shown.vulnerabilities.is_empty(), "{shown:?}");
    ensure!(shown.summary.is_some_and(|all| all.critical + all.high + all.low == 0));
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_starts_again_goes_on_with_its_scan_and_a_deleted_version_has_none()
-> Result<()> {
    let program = Program::new()?;
    let node = program.node().await?;
    push_image(&node, "team/app", "v1", b"layer").await?;
    let image = image_of(&node, "team/app:v1").await?;
    program.write("hold", "")?;
    let ordered = order(&node, image).await?;
    until("the scanner to be run", async || Ok((program.calls() == 1).then_some(()))).await?;
    let node = node.restart(|_| ()).await?;
    until("the scanner to be run again", async || Ok((program.calls() == 2).then_some(()))).await?;
    fs::remove_file(program.path("hold"))?;
    let shown = ended(&node, image).await?;
    ensure!(shown.scan_id == ordered.scan_id && shown.scan_status == "completed", "{shown:?}");

    let digest = shown.manifest_digest;
    let path = format!("images/{image}/versions/{digest}");
    let deleted = node.request(Method::DELETE, &path).send().await?;
    ensure!(deleted.status() == StatusCode::NO_CONTENT, "{}", deleted.status());
    let path = format!("artifacts/{digest}/vulnerabilities");
    let gone = node.request(Method::GET, &path).send().await?;
    ensure!(problem(gone, StatusCode::NOT_FOUND).await?.code == "scan_not_found");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_node_takes_over_from_one_that_is_gone() -> Result<()> {
    // Each notes its own calls.
    let programs = [Program::new()?, Program::new()?];
    let first = Node::start().await?;
    let mut others = Vec::new();
    for (number, program) in programs.iter().enumerate() {
        program.write("hold", "")?;
        let token = first.join_token("node", Some(1)).await?;
        let storage = first.path().join("node/storage");
        let name = format!("node-{}", number + 2);
        let joined = Node::join_with(&name, &first.url, &token, &storage, |config| {
            program.configure(config);
        });
        others.push(joined.await?.logged_in_as(&first));
    }
    until("three voters", async || {
        let status: ClusterStatus = first.get("cluster").await?;
        let voting = status.nodes.iter().filter(|node| node.role != "learner").count();
        Ok((voting == 3 && status.leader.is_some()).then_some(()))
    })
    .await?;
    level_raised(&first).await?;
    push_image(&first, "team/app", "v1", b"layer").await?;
    let image = image_of(&first, "team/app:v1").await?;
    order(&others[0], image).await?;
    let at = until("a node to take it", async || {
        Ok(programs.iter().position(|program| program.calls() > 0))
    })
    .await?;
    ensure!(programs[1 - at].calls() == 0, "both are at it");
    others.remove(at).server.stop().await?;
    fs::remove_file(programs[1 - at].path("hold"))?;
    let path = format!("images/{image}/vulnerabilities");
    until("the other node to end it", async || {
        let shown: VulnerabilityReport = first.get(&path).await?;
        Ok((shown.scan_status == "completed").then_some(()))
    })
    .await?;
    ensure!(programs[1 - at].calls() == 1);
    for node in others {
        node.server.stop().await?;
    }
    first.server.stop().await
}
