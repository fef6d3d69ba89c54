//! What a project keeps and what is immutable in it, over both APIs.

use anyhow::{Context, Result, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use shoal_api::{ImageDetail, ProjectPolicy, RetentionDone, RetentionEntry, RetentionReport};
use shoal_content::Timestamp;
use shoal_metadata::{Command, PolicyRules};

use super::disks::{create_image, make_disk, upload};
use super::node::{Node, problem, read};
use super::v2::{push_image, sha256};
use super::wait::until;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// Lets a tag be pushed that many days ago, as the clock of whoever proposes says.
async fn age(node: &Node, repository: &str, tag: &str, manifest: &[u8], days: u64) -> Result<()> {
    let app = node.server.app();
    let at = Timestamp::from_millis(app.now().as_millis() - days * DAY_MS);
    let repository = repository.parse()?;
    let (tag, digest) = (tag.parse()?, sha256(manifest).parse()?);
    app.raft.propose(at, Command::PutTag { repository, tag, digest }).await?;
    Ok(())
}

async fn put_policy(node: &Node, project: &str, policy: Value) -> Result<ProjectPolicy> {
    let body = json!({ "policy": policy });
    node.call(Method::PUT, &format!("projects/{project}/policy"), &body).await
}

async fn dry_run(node: &Node, project: &str, body: Value) -> Result<RetentionReport> {
    node.call(Method::POST, &format!("projects/{project}/retention/dry-run"), &body).await
}

async fn run(node: &Node, project: &str) -> Result<RetentionDone> {
    let path = format!("projects/{project}/retention/run");
    node.call(Method::POST, &path, &json!({})).await
}

/// What is decided, without when: a version that loses its tag is without use since the decision.
fn decided(report: &RetentionReport) -> Vec<RetentionEntry> {
    let mut entries = report.entries.clone();
    for entry in entries.iter_mut().filter(|entry| entry.kind == "untagged") {
        entry.pushed_at.clear();
    }
    entries
}

/// The decision about a name, and why.
fn about<'a>(report: &'a RetentionReport, name: &str) -> Result<(&'a str, &'a str)> {
    let found = report.entries.iter().find(|entry| entry.name.as_deref() == Some(name));
    let found = found.with_context(|| format!("{report:?} has no {name}"))?;
    Ok((&found.decision, &found.reason))
}

async fn tags(node: &Node, repository: &str) -> Result<Vec<String>> {
    let path = format!("{repository}/tags/list");
    let body: Value = read(node.v2(Method::GET, &path).send().await?).await?;
    Ok(serde_json::from_value(body["tags"].clone())?)
}

/// Rows of last pulls that this node wrote.
fn written(node: &Node) -> Result<u64> {
    let text = node.server.app().metrics.text()?;
    let value = text.lines().find_map(|line| line.strip_prefix("shoal_pulls_written_total "));
    Ok(value.context("there is no such metric")?.parse()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_a_run_then_does() -> Result<()> {
    let node = Node::start().await?;
    let mut manifests = Vec::new();
    for (number, tag) in ["v1", "v2", "v3", "latest"].into_iter().enumerate() {
        let layer = format!("layer {number}");
        manifests.push(push_image(&node, "shop/app", tag, layer.as_bytes()).await?);
        age(&node, "shop/app", tag, &manifests[number], 40 - number as u64).await?;
    }
    let missing = node.request(Method::GET, "projects/shop/policy").send().await?;
    ensure!(problem(missing, StatusCode::NOT_FOUND).await?.code == "policy_not_found");

    // Tried before it is set.
    let policy = json!({
        "untagged_after_days": 0,
        "retention": [{ "tags": "v*", "keep": { "newest": 1 } }],
    });
    let tried = dry_run(&node, "shop", json!({ "policy": policy })).await?;
    ensure!((tried.names.drop, tried.names.keep, tried.names.untouched) == (2, 1, 1), "{tried:?}");
    let set = put_policy(&node, "shop", policy).await?;
    ensure!(!set.policy.automatic && set.updated_by == "admin", "{set:?}");
    let report = dry_run(&node, "shop", json!({})).await?;
    ensure!(decided(&report) == decided(&tried));
    ensure!(about(&report, "v1")? == ("drop", "no rule keeps it"));
    ensure!(about(&report, "v3")? == ("keep", "rule 1: the newest 1"));
    ensure!(about(&report, "latest")? == ("untouched", "no rule is for it"));
    ensure!(report.untagged.drop == 2, "{report:?}");
    ensure!(tags(&node, "shop/app").await?.len() == 4, "a dry run did something");

    let done = run(&node, "shop").await?;
    ensure!((done.tags, done.versions, done.changed) == (2, 2, 0), "{done:?}");
    ensure!(tags(&node, "shop/app").await? == ["latest", "v3"]);
    for (manifest, status) in manifests.iter().zip([404, 404, 200, 200]) {
        let path = format!("shop/app/manifests/{}", sha256(manifest));
        let answer = node.v2(Method::GET, &path).send().await?;
        ensure!(answer.status().as_u16() == status, "{path}: {}", answer.status());
    }
    ensure!(run(&node, "shop").await?.tags == 0);
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pulled_lately_stays() -> Result<()> {
    let node = Node::start().await?;
    let app = node.server.app();
    for tag in ["by-name", "by-digest", "looked-at", "idle"] {
        let manifest = push_image(&node, "shop/app", tag, tag.as_bytes()).await?;
        age(&node, "shop/app", tag, &manifest, 90).await?;
        if tag == "by-digest" {
            let path = format!("shop/app/manifests/{}", sha256(&manifest));
            ensure!(node.v2(Method::GET, &path).send().await?.status().is_success());
        }
    }
    // Pulls are noted since long ago.
    let since = Timestamp::from_millis(app.now().as_millis() - 60 * DAY_MS);
    let (project, rules) = ("shop".parse()?, PolicyRules::default());
    let first = Command::SetPolicy { project, rules, expected: None, by: "admin".into() };
    app.raft.propose(since, first).await?;
    let get = node.v2(Method::GET, "shop/app/manifests/by-name").send().await?;
    ensure!(get.status().is_success());
    let head = node.v2(Method::HEAD, "shop/app/manifests/looked-at").send().await?;
    ensure!(head.status().is_success());
    let retention = json!([{ "keep": { "pulled_within_days": 30 } }]);
    put_policy(&node, "shop", json!({ "retention": retention })).await?;

    let report = dry_run(&node, "shop", json!({})).await?;
    for (tag, decision) in
        [("by-name", "keep"), ("by-digest", "keep"), ("looked-at", "drop"), ("idle", "drop")]
    {
        ensure!(about(&report, tag)?.0 == decision, "{tag}: {report:?}");
    }
    ensure!(run(&node, "shop").await?.tags == 2);
    ensure!(tags(&node, "shop/app").await? == ["by-digest", "by-name"]);
    let images: shoal_api::Page<shoal_api::Image> = node.get("images?name=shop/app").await?;
    let shown: ImageDetail = node.get(&format!("images/{}", images.data[0].id)).await?;
    ensure!(shown.image.tags.iter().all(|tag| tag.pulled_at.is_some()), "{shown:?}");
    // Many pulls are one row for the tag and one for the version, and wait for the interval.
    let before = written(&node)?;
    for _ in 0..50 {
        let get = node.v2(Method::GET, "shop/app/manifests/by-name").send().await?;
        ensure!(get.status().is_success());
    }
    app.services.pulls.write_down().await?;
    let after = written(&node)?;
    // The interval may end in between, once.
    ensure!(after == before + 2 || after == before + 4, "{before} {after}");
    node.server.stop().await
}

/// A further node that writes pulls down by itself so seldom.
async fn joined(node: &Node, name: &str, pulls_interval_seconds: u64) -> Result<Node> {
    let (token, storage) =
        (node.join_token("node", Some(1)).await?, node.path().join("node/storage"));
    let joined = Node::join_with(name, &node.url, &token, &storage, |config| {
        config.retention.pulls_interval_seconds = pulls_interval_seconds;
    });
    Ok(joined.await?.logged_in_as(node))
}

/// Images that were pushed long ago, in a cluster that has noted pulls for longer than a rule looks at.
async fn with_old_tags(node: &Node, tags: [&str; 2]) -> Result<()> {
    for tag in tags {
        let manifest = push_image(node, "shop/app", tag, tag.as_bytes()).await?;
        age(node, "shop/app", tag, &manifest, 90).await?;
    }
    let app = node.server.app();
    let since = Timestamp::from_millis(app.now().as_millis() - 60 * DAY_MS);
    let (project, rules) = ("shop".parse()?, PolicyRules::default());
    let first = Command::SetPolicy { project, rules, expected: None, by: "admin".into() };
    app.raft.propose(since, first).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pulled_at_another_node_counts_before_that_writes_it_down() -> Result<()> {
    let node = Node::start().await?;
    let other = joined(&node, "node-2", 3600).await?;
    with_old_tags(&node, ["pulled", "idle"]).await?;
    let retention = json!([{ "keep": { "pulled_within_days": 30 } }]);
    put_policy(&node, "shop", json!({ "retention": retention })).await?;
    let get = other.v2(Method::GET, "shop/app/manifests/pulled").send().await?;
    ensure!(get.status().is_success());
    let report = dry_run(&node, "shop", json!({})).await?;
    ensure!(about(&report, "pulled")?.0 == "keep", "{report:?}");
    ensure!(about(&report, "idle")?.0 == "drop", "{report:?}");
    ensure!(run(&node, "shop").await?.tags == 1);
    ensure!(tags(&node, "shop/app").await? == ["pulled"]);
    other.server.stop().await?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_does_not_answer_is_waited_for_as_long_as_it_may_have_pulls() -> Result<()> {
    let node = Node::start_with(|config| config.retention.pulls_interval_seconds = 1).await?;
    let second = joined(&node, "node-2", 1).await?;
    let third = joined(&node, "node-3", 1).await?;
    let voters = || node.server.app().raft.status().voters;
    until("three voters", async || Ok((voters().len() == 3).then_some(()))).await?;
    with_old_tags(&node, ["old", "idle"]).await?;
    third.server.stop().await?;
    let ran = async || {
        node.request(Method::POST, "projects/shop/retention/run").json(&json!({})).send().await
    };
    // By what nobody's pulls change.
    put_policy(&node, "shop", json!({ "retention": [{ "keep": { "newest": 1 } }] })).await?;
    until("a leader", async || Ok(ran().await?.status().is_success().then_some(()))).await?;
    ensure!(tags(&node, "shop/app").await?.len() == 1);

    let retention = json!([{ "keep": { "pulled_within_days": 30 } }]);
    put_policy(&node, "shop", json!({ "retention": retention })).await?;
    let refused = ran().await?;
    ensure!(refused.headers().contains_key("retry-after"), "{refused:?}");
    let refused = problem(refused, StatusCode::SERVICE_UNAVAILABLE).await?;
    ensure!(refused.message.contains("node-3"), "{refused:?}");
    ensure!(tags(&node, "shop/app").await?.len() == 1);
    until("its interval to be over", async || Ok(ran().await?.status().is_success().then_some(())))
        .await?;
    ensure!(tags(&node, "shop/app").await?.is_empty());
    second.server.stop().await?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_immutable_tag_is_refused_to_everyone_until_the_policy_changes() -> Result<()> {
    let node = Node::start().await?;
    let first = push_image(&node, "shop/app", "v1", b"first").await?;
    let policy = json!({
        "untagged_after_days": 0,
        "retention": [{ "keep": { "pushed_within_days": 0 } }],
        "immutable": [{ "repositories": "app", "tags": "v*" }],
    });
    put_policy(&node, "shop", policy).await?;
    let digest = sha256(&first);
    let at = |reference: &str| format!("shop/app/manifests/{reference}");
    // The same again is no change; another one is.
    push_image(&node, "shop/app", "v1", b"first").await?;
    let second = push_image(&node, "shop/app", "next", b"second").await?;
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let put = |reference: String| {
        let request = node.v2(Method::PUT, &at(&reference)).header("content-type", media_type);
        request.body(second.clone())
    };
    for request in [
        put("v1".to_owned()),
        put(format!("{}?tag=fresh&tag=v1", sha256(&second))),
        node.v2(Method::DELETE, &at("v1")),
        node.v2(Method::DELETE, &at(&digest)),
        node.v2(Method::DELETE, &format!("shop/app/blobs/{}", sha256(b"first"))),
    ] {
        let answer = request.send().await?;
        ensure!(answer.status() == StatusCode::PRECONDITION_FAILED, "{answer:?}");
        let body: Value = answer.json().await?;
        ensure!(body["errors"][0]["code"] == "DENIED", "{body}");
        let message = body["errors"][0]["message"].as_str().unwrap_or_default();
        ensure!(message.contains("immutable"), "{body}");
    }
    ensure!(tags(&node, "shop/app").await? == ["next", "v1"], "a refused push set another tag");
    let images: shoal_api::Page<shoal_api::Image> = node.get("images?name=shop/app").await?;
    let image = format!("images/{}", images.data[0].id);
    for path in [image.clone(), format!("{image}/tags/v1")] {
        let answer = node.request(Method::DELETE, &path).send().await?;
        ensure!(problem(answer, StatusCode::PRECONDITION_FAILED).await?.code == "immutable");
    }

    let report = dry_run(&node, "shop", json!({})).await?;
    ensure!(about(&report, "v1")? == ("keep", "immutable by rule 1"), "{report:?}");
    age(&node, "shop/app", "next", &second, 1).await?;
    ensure!(run(&node, "shop").await?.tags == 1);
    ensure!(tags(&node, "shop/app").await? == ["v1"]);
    let got = node.v2(Method::GET, &at("v1")).send().await?;
    ensure!(got.bytes().await? == first);

    let answer = node.request(Method::DELETE, "projects/shop/policy").send().await?;
    ensure!(answer.status() == StatusCode::NO_CONTENT);
    let answer = node.v2(Method::DELETE, &at(&digest)).send().await?;
    ensure!(answer.status() == StatusCode::ACCEPTED);
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_are_kept_by_their_numbers() -> Result<()> {
    let node = Node::start().await?;
    let image = create_image(&node, "vm/desktop").await?;
    for (number, version) in ["1.0", "1.1", "1.2"].into_iter().enumerate() {
        let disk = make_disk(node.path(), version, number as u8 + 1)?;
        let status = upload(&node, image, &disk, version).await?;
        ensure!(status.status == "active", "{status:?}");
    }
    let retention = json!([
        { "tags": "1.*", "keep": { "newest": 2 } }, { "tags": "latest", "keep": "always" },
    ]);
    put_policy(&node, "vm", json!({ "retention": retention })).await?;
    let report = dry_run(&node, "vm", json!({})).await?;
    ensure!(about(&report, "1.0")? == ("drop", "no rule keeps it"), "{report:?}");
    let done = run(&node, "vm").await?;
    ensure!((done.tags, done.versions) == (0, 1), "{done:?}");
    let shown: ImageDetail = node.get(&format!("images/{image}")).await?;
    let left: Vec<&str> = shown.versions.iter().map(|version| version.version.as_str()).collect();
    ensure!(left == ["1.2", "1.1"], "the newest first: {left:?}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_policy_is_refused_and_a_stale_one_too() -> Result<()> {
    let node = Node::start().await?;
    push_image(&node, "shop/app", "v1", b"layer").await?;
    let path = "projects/shop/policy";
    for (policy, status, word) in [
        (json!({ "retention": [{ "tags": "^v.*$", "keep": "always" }] }), 400, "'^'"),
        (json!({ "retention": [{ "tags": "", "keep": "always" }] }), 400, "empty"),
        (json!({ "retention": [{ "keep": { "newest": 0 } }] }), 400, "from 1"),
        (json!({ "untagged_after_days": 1_000_000 }), 400, "days"),
        (json!({ "retention": vec![json!({ "keep": "always" }); 33] }), 400, "rules"),
        (json!({ "retention": [{ "tag": "v1", "keep": "always" }] }), 422, "unknown field"),
        (json!({ "retention": [{ "keep": { "oldest": 1 } }] }), 422, "unknown variant"),
    ] {
        let body = json!({ "policy": policy });
        let answer = node.request(Method::PUT, path).json(&body).send().await?;
        let refused = problem(answer, StatusCode::from_u16(status)?).await?;
        ensure!(refused.message.contains(word), "{refused:?}");
    }
    let set = put_policy(&node, "shop", json!({ "automatic": true })).await?;
    let body = json!({ "policy": {}, "revision": set.revision + 1 });
    let answer = node.request(Method::PUT, path).json(&body).send().await?;
    ensure!(problem(answer, StatusCode::CONFLICT).await?.code == "policy_changed");
    let shown: ProjectPolicy = node.get(path).await?;
    ensure!(shown == set);
    // Nobody else's project, and no project at all.
    let user = json!({ "username": "eve", "password": "correct horse battery" });
    let made = node.request(Method::POST, "users").json(&user).send().await?;
    ensure!(made.status().is_success(), "{}", made.text().await?);
    for (path, method) in [
        (path, Method::GET),
        (path, Method::DELETE),
        ("projects/shop/retention/run", Method::POST),
        ("projects/none/retention/run", Method::POST),
    ] {
        let url = format!("{}/api/v1/{path}", node.url);
        let request = node.http.request(method, url);
        let request = request.basic_auth("eve", Some("correct horse battery"));
        let answer = request.send().await?;
        ensure!(answer.status() == StatusCode::NOT_FOUND, "{path}: {}", answer.status());
    }
    node.server.stop().await
}
