//! What must hold when all faults are over.
//!
//! Liveness: each node takes writes and reads again. Safety: the history of each tag and each
//! manifest is linearizable; every push that was acknowledged, and that nobody may have deleted,
//! is at every node and comes whole; whatever is served comes whole; the nodes agree. And when all
//! is deleted, nothing is kept.

use std::collections::BTreeSet;
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

/// What the nodes count and what they write down, whoever was killed in between: accounts agree with
/// a recount, the audit trail is a whole chain, and each push that was acknowledged is in it. Gives
/// the number of entries.
pub async fn books_balance(registry: &Registry, history: &History) -> Result<u64> {
    for node in 0..registry.nodes() {
        let check = Request::new(Method::POST, "/api/v1/quotas/check", PATIENCE);
        let Outcome::Done(answer) = registry.send(node, check).await else {
            bail!("node-{} does not check its accounts", node + 1)
        };
        let check: serde_json::Value = serde_json::from_slice(&answer.body)?;
        ensure!(check["drifts"] == serde_json::json!([]), "at node-{}: {check:#}", node + 1);
        let trail = registry.json(node, "/api/v1/audit/verify").await?;
        ensure!(trail["flaws"] == serde_json::json!([]), "at node-{}: {trail:#}", node + 1);
    }
    let recorded = recorded_pushes(registry).await?;
    let missing = history.acknowledged().into_iter().filter(|push| {
        let name = (repository_name(push.repository), push.digest.clone());
        !recorded.contains(&name)
    });
    let missing: Vec<String> = missing.map(|push| push.digest.clone()).collect();
    ensure!(missing.is_empty(), "pushes that the audit trail does not have: {missing:#?}");
    let trail = registry.json(0, "/api/v1/audit/verify").await?;
    trail["entries"].as_u64().context("entries")
}

/// Repositories and digests of all pushes in the audit trail.
async fn recorded_pushes(registry: &Registry) -> Result<BTreeSet<(String, String)>> {
    let mut recorded = BTreeSet::new();
    let mut before = String::new();
    loop {
        let path = format!("/api/v1/audit?action=image.push&result=done&limit=1000{before}");
        let page = registry.json(0, &path).await?;
        for entry in page["entries"].as_array().context("entries")? {
            let target = entry["target"].as_str().context("a target")?;
            let (place, digest) = target.split_once('@').context("a push without a digest")?;
            let repository = place.split(':').next().unwrap_or(place);
            recorded.insert((repository.to_owned(), digest.to_owned()));
        }
        let Some(next) = page["before"].as_u64() else { return Ok(recorded) };
        before = format!("&before={next}");
    }
}

/// Deletes all manifests and ends all uploads; then nothing that the metadata knows of may stay in
/// storage. The nodes' clocks are so far ahead that every grace period is over.
pub async fn keep_nothing(registry: &Registry, history: &History) -> Result<()> {
    for digest in history.manifests() {
        for repository in 0..REPOSITORIES {
            delete(registry, &manifest_path(repository, &digest)).await?;
        }
    }
    let open = registry.json(0, "/api/v1/storage/uploads").await?;
    for upload in open.as_array().context("open uploads")? {
        let id = upload["id"].as_str().context("an upload's id")?;
        delete(registry, &format!("/api/v1/storage/uploads/{id}")).await?;
    }
    let deadline = Instant::now() + RECOVERY_DEADLINE;
    loop {
        let storage = registry.json(0, "/api/v1/storage").await?;
        let kept = ["/loose_blobs/total", "/unreferenced/total", "/open_uploads"];
        let kept = kept.map(|count| storage.pointer(count).and_then(serde_json::Value::as_u64));
        if kept == [Some(0); 3] {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "what nothing refers to is kept: {storage:#}");
        tokio::time::sleep(RETRY).await;
    }
}

async fn delete(registry: &Registry, path: &str) -> Result<()> {
    let deadline = Instant::now() + RECOVERY_DEADLINE;
    loop {
        match registry.send(0, Request::new(Method::DELETE, path, PATIENCE)).await {
            Outcome::Done(_) | Outcome::Refused(404) => return Ok(()),
            other if Instant::now() > deadline => bail!("DELETE {path}: {other:?}"),
            _ => tokio::time::sleep(RETRY).await,
        }
    }
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

#[cfg(test)]
mod tests {
    //! Nodes that lost, kept back or spoilt what they had acknowledged, and what is said of them.

    use std::collections::HashMap;
    use std::sync::Arc;

    use serde_json::json;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::TcpListener;

    use super::super::client::digest;
    use super::super::history::Push;
    use super::*;

    type Contents = HashMap<String, Vec<u8>>;

    /// Answers GET requests with these bodies at these paths, and with 404 at all others.
    async fn serve(contents: Contents) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut stream = BufReader::new(stream);
                let (mut request, mut line) = (String::new(), String::new());
                stream.read_line(&mut request).await.unwrap();
                while line != "\r\n" {
                    line.clear();
                    stream.read_line(&mut line).await.unwrap();
                }
                let path = request.split(' ').nth(1).unwrap_or_default();
                let (status, body) = match contents.get(path) {
                    Some(body) => ("200 OK", body.clone()),
                    None => ("404 Not Found", Vec::new()),
                };
                let head = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                stream.write_all(head.as_bytes()).await.unwrap();
                stream.write_all(&body).await.unwrap();
            }
        });
        format!("http://{address}")
    }

    /// An image of one layer, and where a registry has it.
    fn image(name: u32) -> (Push, Contents) {
        let (layer, config) = (vec![name as u8; 100], name.to_string().into_bytes());
        let manifest =
            json!({"config": {"digest": digest(&config)}, "layers": [{"digest": digest(&layer)}]});
        let manifest = manifest.to_string().into_bytes();
        let blob = |bytes: &[u8]| format!("/v2/{}/blobs/{}", repository_name(0), digest(bytes));
        let mut contents = Contents::from([(blob(&layer), layer), (blob(&config), config)]);
        let push = Push { repository: 0, name, digest: digest(&manifest), manifest };
        contents.insert(manifest_path(0, &push.digest), push.manifest.clone());
        (push, contents)
    }

    /// What is said where the second of three nodes, or all of them, are wrong in that way.
    async fn judged(
        doomed: bool,
        all: bool,
        wrong: impl Fn(&Push, &mut Contents),
    ) -> Result<usize> {
        let history = History::default();
        let mut contents = Contents::new();
        let mut pushes = Vec::new();
        for name in 0..3 {
            let (push, its) = image(name);
            contents.extend(its);
            pushes.push(push);
        }
        let mut broken = contents.clone();
        wrong(&pushes[1], &mut broken);
        if doomed {
            history.doom(pushes[1].name);
        }
        for push in pushes {
            history.acknowledge(Arc::new(push));
        }
        let mut nodes = Vec::new();
        for node in 0..3 {
            let contents = if all || node == 1 { &broken } else { &contents };
            nodes.push(serve(contents.clone()).await);
        }
        let authority = rcgen::generate_simple_self_signed(vec!["ca".to_owned()])?;
        let registry = Registry::new(authority.cert.pem().as_bytes(), &nodes, "", false)?;
        pull_everything(&registry, &history).await
    }

    async fn complaint(doomed: bool, all: bool, wrong: impl Fn(&Push, &mut Contents)) -> String {
        format!("{:#}", judged(doomed, all, wrong).await.unwrap_err())
    }

    fn lose(push: &Push, contents: &mut Contents) {
        contents.remove(&manifest_path(push.repository, &push.digest)).unwrap();
    }

    fn layer(push: &Push) -> String {
        let manifest: serde_json::Value = serde_json::from_slice(&push.manifest).unwrap();
        format!(
            "/v2/{}/blobs/{}",
            repository_name(0),
            manifest["layers"][0]["digest"].as_str().unwrap()
        )
    }

    #[tokio::test]
    async fn what_is_whole_at_every_node_is_counted() {
        assert_eq!(judged(false, true, |_, _| {}).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_push_that_was_acknowledged_and_lost_is_named() {
        let said = complaint(false, true, lose).await;
        assert!(
            said.contains("was acknowledged, and is gone") && said.contains("1 of 3"),
            "{said}"
        );
        // Unless somebody may have deleted it.
        assert_eq!(judged(true, true, lose).await.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_node_that_did_not_hear_of_a_push_or_of_its_deletion_is_named() {
        for doomed in [false, true] {
            let said = complaint(doomed, false, lose).await;
            assert!(said.contains("the nodes disagree"), "{said}");
        }
    }

    #[tokio::test]
    async fn a_blob_that_is_missing_cut_off_or_spoilt_is_named() {
        let missing =
            |push: &Push, contents: &mut Contents| _ = contents.remove(&layer(push)).unwrap();
        let said = complaint(false, false, missing).await;
        assert!(said.contains("is not at node-2"), "{said}");
        let cut = |push: &Push, contents: &mut Contents| {
            contents.get_mut(&layer(push)).unwrap().truncate(99)
        };
        let said = complaint(false, false, cut).await;
        assert!(said.contains("99 bytes of sha256:"), "{said}");
        let spoilt =
            |push: &Push, contents: &mut Contents| contents.get_mut(&layer(push)).unwrap()[7] ^= 1;
        let said = complaint(false, false, spoilt).await;
        assert!(said.contains("100 bytes of sha256:"), "{said}");
    }
}
