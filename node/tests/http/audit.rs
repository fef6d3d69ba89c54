//! The audit trail over HTTP: who did what, from where; and what somebody did to the trail.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use shoal_api::{AuditArchive, AuditEntry, AuditPage, AuditVerification, AuditWords};
use shoal_metadata::{AuditNote, AuditPhase, AuditResult, AuditSource};
use shoal_node::audit::journal::Journal;
use shoal_node::home::Member;
use shoal_p2p::identity::KeyPair;

use super::members::try_enrol;
use super::node::Node;
use super::v2::{expect, push_image};
use super::wait::until;

async fn search(node: &Node, query: &str) -> Result<Vec<AuditEntry>> {
    node.server.app().services.audit.flush(AuditPhase::Goes).await?;
    let page: AuditPage = node.get(&format!("audit?limit=1000&{query}")).await?;
    Ok(page.entries)
}

async fn verified(node: &Node) -> Result<AuditVerification> {
    let found: AuditVerification = node.get("audit/verify").await?;
    ensure!(found.flaws.is_empty(), "{found:?}");
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_pulled_and_refused_is_told_with_who_and_from_where() -> Result<()> {
    let node = Node::start().await?;
    push_image(&node, "shop/app", "v1", b"layer").await?;
    let user = json!({ "username": "alice", "password": "correct-horse-7" });
    let made = node.request(Method::POST, "users").header("x-request-id", "made-alice");
    expect(&made.json(&user).send().await?, StatusCode::CREATED)?;
    let alice = |method: Method, path: &str| {
        node.anonymous_v2(method, path).basic_auth("alice", Some("correct-horse-7"))
    };
    let member = json!({ "role": "guest" });
    let _member: Value =
        node.call(Method::PUT, "projects/shop/members/user:alice", &member).await?;
    for _ in 0..3 {
        expect(&alice(Method::GET, "shop/app/manifests/v1").send().await?, StatusCode::OK)?;
    }
    let deleted = alice(Method::DELETE, "shop/app/manifests/v1").send().await?;
    expect(&deleted, StatusCode::FORBIDDEN)?;
    let typed = node.http.delete(format!("{}/api/v1/users/typed-by-alice", node.url));
    let typed = typed.basic_auth("alice", Some("correct-horse-7")).send().await?;
    expect(&typed, StatusCode::FORBIDDEN)?;
    // Of nobody there could be any number; and a token that is none is not even proposed.
    let token = format!("shoal-join-v1.x.{}.guessed", "0".repeat(20));
    let guess = try_enrol(&node, &KeyPair::generate()?, "host-1", &token).await?;
    expect(&guess, StatusCode::FORBIDDEN)?;
    let twice = node.request(Method::POST, "projects").json(&json!({ "name": "lab" }));
    expect(&twice.try_clone().context("a request")?.send().await?, StatusCode::CREATED)?;
    let gone = node.request(Method::DELETE, "organizations/none").send().await?;
    expect(&gone, StatusCode::NOT_FOUND)?;
    let wrong = json!({ "username": "alice", "password": "not-hers" });
    let wrong = node.http.post(format!("{}/api/v1/auth/login", node.url)).json(&wrong);
    expect(&wrong.send().await?, StatusCode::UNAUTHORIZED)?;

    let created = search(&node, "action=user.create").await?;
    ensure!(created.len() == 1, "{created:?}");
    let AuditEntry { who, from, target, result, request_id, .. } = &created[0];
    ensure!((who.as_str(), target.as_str(), result.as_str()) == ("admin", "alice", "done"));
    ensure!((from.as_str(), request_id.as_str()) == ("127.0.0.1", "made-alice"), "{created:?}");
    let AuditWords { operation, operator_id, operator_type, status, client_ip, .. } =
        &created[0].words;
    ensure!((operation.as_str(), operator_id.as_str()) == ("user.create", "admin"), "{created:?}");
    ensure!((operator_type.as_deref(), status.as_str()) == (Some("user"), "success"));
    ensure!(client_ip == from && created[0].words.created_at == created[0].at, "{created:?}");
    let pulls = search(&node, "who=alice&action=image.pull&target=shop/app:v1@").await?;
    ensure!(pulls.iter().map(|entry| entry.count).sum::<u64>() == 3, "{pulls:?}");
    let pushed = search(&node, "action=image.push&target=shop/app:v1").await?;
    ensure!(pushed.len() == 1 && pushed[0].who == "admin", "{pushed:?}");
    let refused = search(&node, "result=refused&who=alice").await?;
    ensure!(refused.iter().all(|entry| entry.action == "request.deny"), "{refused:?}");
    let targets: Vec<&str> = refused.iter().map(|entry| entry.target.as_str()).collect();
    ensure!(targets == ["DELETE /api/v1/users/{user}", "DELETE /v2/shop/app"], "{targets:?}");
    let denied = search(&node, "action=request").await?;
    ensure!(denied.len() == 2, "{denied:?}");
    ensure!(search(&node, "action=agent").await?.is_empty());
    let refused = search(&node, "result=refused&action=organization").await?;
    ensure!(refused.len() == 1 && refused[0].reason.is_some(), "{refused:?}");
    let AuditWords { status, error_message, .. } = &refused[0].words;
    ensure!(status == "failure" && *error_message == refused[0].reason, "{refused:?}");
    let begun = search(&node, "action=audit.begin").await?;
    let kinds = begun.iter().all(|one| one.words.operator_type.as_deref() == Some("system"));
    ensure!(!begun.is_empty() && kinds, "{begun:?}");
    let logins = search(&node, "action=session.login&result=refused").await?;
    ensure!(logins.len() == 1 && logins[0].target == "account:alice", "{logins:?}");
    let given = search(&node, "action=right").await?;
    ensure!(given[0].target.starts_with("project:shop user:alice"), "{given:?}");

    // Pages follow each other, and nobody else reads them.
    let whole = search(&node, "").await?;
    let first: AuditPage = node.get("audit?limit=2").await?;
    let before = first.before.context("another page")?;
    let second: AuditPage = node.get(&format!("audit?limit=2&before={before}")).await?;
    ensure!(second.entries[0].number + 1 == first.entries[1].number, "{second:?}");
    ensure!(whole.windows(2).all(|pair| pair[0].number == pair[1].number + 1));
    for path in ["audit", "audit/verify", "audit/archives", "audit/archives/1"] {
        let url = format!("{}/api/v1/{path}", node.url);
        let asked = node.http.get(url).basic_auth("alice", Some("correct-horse-7"));
        expect(&asked.send().await?, StatusCode::FORBIDDEN).context(path)?;
    }
    for bad in ["since=yesterday", "result=maybe"] {
        let answer = node.request(Method::GET, &format!("audit?{bad}")).send().await?;
        expect(&answer, StatusCode::BAD_REQUEST)?;
    }
    let found = verified(&node).await?;
    ensure!(found.last >= whole.len() as u64 && found.head.len() == 64, "{found:?}");
    // No secret is in it.
    let text = serde_json::to_string(&whole)?;
    ensure!(!text.contains("correct-horse-7") && !text.contains("not-hers"));
    ensure!(!text.contains("typed-by-alice"));
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn old_entries_are_archived_and_still_verified() -> Result<()> {
    let node = Node::start_with(|config| config.audit.keep_days = 0).await?;
    push_image(&node, "shop/app", "v1", b"layer").await?;
    let before = search(&node, "").await?;
    ensure!(before.len() >= 3, "{before:?}");
    let audit = &node.server.app().services.audit;
    // A moment from now, so that everything is older.
    let later = shoal_node::clock::now().plus_millis(60_000);
    let moved = audit.archive(later).await?;
    ensure!(moved >= before.len() as u64, "{moved} of {}", before.len());
    let archives: Vec<AuditArchive> = node.get("audit/archives").await?;
    ensure!(archives.len() == 1 && archives[0].first == 1, "{archives:?}");
    let none: Vec<AuditArchive> = node.get("audit/archives?after=1").await?;
    ensure!(none.is_empty(), "{none:?}");
    let mut kept: Vec<AuditEntry> = node.get("audit/archives/1").await?;
    kept.reverse();
    ensure!(kept.ends_with(&before), "they changed on the way");
    push_image(&node, "shop/app", "v2", b"layer").await?;
    let after = search(&node, "action=image.push").await?;
    ensure!(after.len() == 1 && after[0].number > archives[0].last, "{after:?}");
    ensure!(verified(&node).await?.archives == 1);

    // Somebody changes the archive where it lies.
    let object = node.path().join("node/storage/objects").join(&archives[0].object);
    let mut bytes = std::fs::read(&object)?;
    let place = bytes.windows(5).position(|part| part == b"admin").context("a name")?;
    bytes[place] = b'b';
    std::fs::remove_file(&object)?;
    std::fs::write(&object, &bytes)?;
    let found: AuditVerification = node.get("audit/verify").await?;
    ensure!(found.flaws.len() == 1 && found.flaws[0].contains("archive"), "{found:?}");
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_writes_into_one_trail() -> Result<()> {
    let first = Node::start().await?;
    let second = first.join("node-2").await?;
    push_image(&first, "shop/app", "v1", b"layer").await?;
    let pull = second.v2(Method::GET, "shop/app/manifests/v1").send().await?;
    expect(&pull, StatusCode::OK)?;
    until("the second node's pull", async || {
        let pulls = search(&first, "action=image.pull").await?;
        let found = pulls.iter().any(|pull| pull.node == 2 && pull.who == "admin");
        Ok(found.then_some(()))
    })
    .await?;
    let begun = search(&first, "action=audit.begin").await?;
    ensure!(begun.len() == 2, "{begun:?}");
    ensure!(verified(&first).await?.head == verified(&first).await?.head);
    second.server.stop().await?;
    first.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_process_that_fell_had_noted_is_in_the_trail_once_after_the_next_start() -> Result<()>
{
    let node = Node::start().await?;
    let begun = search(&node, "action=audit").await?.len();
    let config = node.server.app().config.clone();
    let folder = config.node.data_dir.clone();
    let member: Member = serde_json::from_slice(&std::fs::read(folder.join("member.json"))?)?;
    let (file, life) = (folder.join("audit.journal"), member.life());
    let note = |target: &str| AuditNote {
        at: shoal_node::clock::now(),
        source: AuditSource { who: "alice".into(), ..AuditSource::default() },
        action: "image.pull".into(),
        target: target.into(),
        result: AuditResult::Done,
        count: 1,
    };
    let left = |file: &Path, run| -> Result<()> {
        let (mut journal, found) = Journal::open(file, &life)?;
        ensure!(found.is_none(), "who ends leaves something: {found:?}");
        journal.restart((run, 0), &[note("first")], 0)?;
        journal.sent(1, AuditPhase::Begins, 0)?;
        Ok(journal.note(&note("second"))?)
    };
    let run = shoal_node::clock::now().as_millis();
    let node = node.restart_after(config.clone(), || left(&file, run)).await?;
    let targets = async |node: &Node| -> Result<Vec<String>> {
        let pulls = search(node, "action=image.pull").await?;
        Ok(pulls.into_iter().rev().map(|pull| pull.target).collect())
    };
    ensure!(targets(&node).await? == ["first", "second"], "{:?}", targets(&node).await?);
    let told = search(&node, "action=audit").await?;
    // The end of the first process, and the beginning of the one that fell.
    let actions: Vec<&str> = told.iter().rev().skip(begun).map(|one| one.action.as_str()).collect();
    ensure!(actions == ["audit.end", "audit.begin", "audit.recover"], "{actions:?}");

    // A batch that had come in before it fell comes in no second time.
    let again = |file: &Path| -> Result<()> {
        let (mut journal, _) = Journal::open(file, &life)?;
        journal.restart((run, 0), &[note("first")], 0)?;
        Ok(journal.sent(1, AuditPhase::Begins, 0)?)
    };
    let node = node.restart_after(config, || again(&file)).await?;
    ensure!(targets(&node).await? == ["first", "second"], "{:?}", targets(&node).await?);
    verified(&node).await?;
    node.server.stop().await
}
