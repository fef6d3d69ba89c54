//! What must hold when all faults are over.
//!
//! Liveness: each node takes writes and reads again. Safety: the history of each tag and each
//! manifest is linearizable; every push that was acknowledged, and that nobody may have deleted,
//! is at every node and comes whole; whatever is served comes whole; the nodes agree.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use reqwest::Method;

use super::client::{Outcome, Registry, Request};
use super::history::{History, Register};
use super::stage::RECOVERY_DEADLINE;
use super::workload::{REPOSITORIES, TAGS, manifest_path, pull_blobs, read_tag, repository_name};
use crate::linear::{self, Verdict};

const PATIENCE: Duration = Duration::from_secs(15);
/// Between two tries of something that will come right.
const RETRY: Duration = Duration::from_millis(300);
/// Lines of a history that a message shows.
const SHOWN_MAX: usize = 60;

/// Reads every tag at every node, which also tells whether all serve.
pub async fn read_all_tags(registry: &Registry, history: &History) -> Result<()> {
    let deadline = Instant::now() + RECOVERY_DEADLINE;
    for node in 0..registry.nodes() {
        for repository in 0..REPOSITORIES {
            for tag in 0..TAGS {
                loop {
                    let place = (repository, tag);
                    let read = read_tag(registry, history, usize::MAX, node, place, PATIENCE).await;
                    match read {
                        Outcome::Done(_) => break,
                        other if Instant::now() > deadline => {
                            bail!("node-{} does not serve after the faults: {other:?}", node + 1)
                        }
                        _ => tokio::time::sleep(RETRY).await,
                    }
                }
            }
        }
    }
    Ok(())
}

/// Fetches all that was acknowledged; gives how many images came whole.
pub async fn pull_everything(registry: &Registry, history: &History) -> Result<usize> {
    let mut pushes = history.acknowledged();
    pushes.sort_by_key(|push| push.name);
    pushes.dedup_by_key(|push| push.name);
    let (mut whole, mut wrong) = (0, Vec::new());
    for (number, push) in pushes.iter().enumerate() {
        let path = manifest_path(push.repository, &push.digest);
        let mut there = Vec::new();
        for node in 0..registry.nodes() {
            there.push(exists(registry, node, &path).await?);
        }
        if there.iter().any(|one| *one != there[0]) {
            wrong.push(format!("the nodes disagree about {path}: {there:?}"));
            continue;
        }
        if !there[0] {
            if !history.is_doomed(push.name) {
                wrong.push(format!("{path} was acknowledged, and is gone"));
            }
            continue;
        }
        let manifest = serde_json::from_slice(&push.manifest)?;
        let node = number % registry.nodes();
        match pull_whole(registry, node, push.repository, &manifest).await {
            Ok(()) => whole += 1,
            Err(error) => wrong.push(format!("{path}: {error:#}")),
        }
    }
    ensure!(wrong.is_empty(), "{} of {} pushes: {wrong:#?}", wrong.len(), pushes.len());
    Ok(whole)
}

async fn exists(registry: &Registry, node: usize, path: &str) -> Result<bool> {
    let deadline = Instant::now() + RECOVERY_DEADLINE;
    loop {
        match registry.send(node, Request::new(Method::GET, path, PATIENCE)).await {
            Outcome::Done(_) => return Ok(true),
            Outcome::Refused(404) => return Ok(false),
            other if Instant::now() > deadline => bail!("{path} at node-{}: {other:?}", node + 1),
            _ => tokio::time::sleep(RETRY).await,
        }
    }
}

async fn pull_whole(
    registry: &Registry,
    node: usize,
    repository: usize,
    manifest: &serde_json::Value,
) -> Result<()> {
    let deadline = Instant::now() + RECOVERY_DEADLINE;
    loop {
        match pull_blobs(registry, node, repository, manifest, PATIENCE).await {
            Ok(true) => return Ok(()),
            Ok(false) if Instant::now() > deadline => {
                bail!("it does not come from node-{}", node + 1)
            }
            Ok(false) => tokio::time::sleep(RETRY).await,
            Err(wrong) => bail!(wrong),
        }
    }
}

/// Waits until the nodes tell the same of what they hold.
pub async fn nodes_agree(registry: &Registry) -> Result<()> {
    let deadline = Instant::now() + RECOVERY_DEADLINE;
    loop {
        let mut told = Vec::new();
        for node in 0..registry.nodes() {
            told.push(counts(registry, node).await?);
        }
        if told.iter().all(|one| *one == told[0]) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the nodes hold different things: {told:#?}");
        tokio::time::sleep(RETRY).await;
    }
}

/// Everything countable: repositories with their sizes, tags, what is unreferenced and deleted.
async fn counts(registry: &Registry, node: usize) -> Result<String> {
    let images = registry.json(node, "/api/v1/images").await?;
    let storage = registry.json(node, "/api/v1/storage").await?;
    let mut text = format!(
        "{images} {} {} {}",
        storage["loose_blobs"]["total"],
        storage["unreferenced"]["total"],
        storage["deleting_objects"]
    );
    for repository in 0..REPOSITORIES {
        let path = format!("/v2/{}/tags/list", repository_name(repository));
        text.push_str(&registry.json(node, &path).await?.to_string());
    }
    Ok(text)
}

/// Judges every history; gives how many operations there were, and how many without outcome.
pub fn judge(history: &History) -> Result<(usize, usize)> {
    let wrong = history.all_wrong();
    ensure!(wrong.is_empty(), "what no order of events explains: {wrong:#?}");
    let (mut all, mut unknown) = (0, 0);
    for (register, operations) in history.registers() {
        all += operations.len();
        unknown += operations.iter().filter(|operation| operation.returned.is_none()).count();
        let verdict = linear::check(None, &operations);
        if verdict == Verdict::Linearizable {
            continue;
        }
        return Err(anyhow::anyhow!(explain(register, &operations, &verdict)))
            .context("a history that is not linearizable");
    }
    Ok((all, unknown))
}

/// The part of a history around where the search got stuck.
fn explain(register: Register, operations: &[linear::Operation], verdict: &Verdict) -> String {
    let mut text = format!("{register:?}: {} operations, {verdict:?}\n", operations.len());
    let around = match verdict {
        Verdict::Violated { stuck, .. } => stuck.iter().map(|at| operations[*at].called).min(),
        Verdict::Linearizable | Verdict::Undecided => None,
    };
    let mut sorted: Vec<(usize, &linear::Operation)> = operations.iter().enumerate().collect();
    sorted.sort_by_key(|(_, operation)| operation.called);
    let place = sorted.iter().position(|(_, one)| Some(one.called) >= around).unwrap_or(0);
    let first = place.saturating_sub(SHOWN_MAX / 2);
    for (index, operation) in sorted.iter().skip(first).take(SHOWN_MAX) {
        text.push_str(&format!("{index:>6} {operation:?}\n"));
    }
    text
}
