//! Deployments with a plan, and the policies that order by themselves, as agents hear of them.

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use shoal_api::{Deployment, OrderMessage, WarmUp};
use shoal_content::{DeploymentId, Priority};
use shoal_node::config::Orders;

use super::members::Agent;
use super::node::{Node, problem};
use super::orders::{Lines, orders, report_attempt};
use super::v2::{push_image, sha256};
use super::wait::{level_raised, until};

/// A host as this test plays it.
struct Host {
    agent: Agent,
    stream: Lines,
}

impl Host {
    async fn join(node: &Node, name: &str) -> Result<Self> {
        let agent = Agent::enrol(node, name).await?;
        let mut stream = orders(node, &agent).await?;
        ensure!(matches!(stream.order().await?, OrderMessage::Nodes { .. }));
        Ok(Self { agent, stream })
    }

    /// The order that comes next, with its attempt.
    async fn told(&mut self) -> Result<(DeploymentId, u32, Priority)> {
        match self.stream.order().await? {
            OrderMessage::Deploy { deployment, attempt, priority, .. } => {
                Ok((deployment, attempt, priority))
            }
            other => bail!("{other:?}"),
        }
    }

    /// Waits until it is told to keep just that.
    async fn keeps(&mut self, wanted: &[String]) -> Result<()> {
        loop {
            let line = self.stream.next().await?.context("the order stream ended")?;
            if let OrderMessage::Keep { references } = serde_json::from_str(&line)? {
                let told: Vec<String> = references.iter().map(ToString::to_string).collect();
                if told == wanted {
                    return Ok(());
                }
            }
        }
    }
}

async fn shown(node: &Node, id: DeploymentId) -> Result<Deployment> {
    node.get(&format!("deployments/{id}")).await
}

/// Which of the hosts are at work, by their place in `hosts`.
async fn at_work(node: &Node, id: DeploymentId, hosts: &[Host]) -> Result<Vec<usize>> {
    let deployment = shown(node, id).await?;
    let busy = |host: &&shoal_api::DeploymentHost| ["waiting", "running"].contains(&&*host.state);
    let busy: Vec<_> = deployment.hosts.iter().filter(busy).map(|host| host.id).collect();
    let is_busy = |(_, host): &(usize, &Host)| busy.contains(&host.agent.key.peer_id());
    Ok(hosts.iter().enumerate().filter(is_busy).map(|(place, _)| place).collect())
}

async fn change(node: &Node, id: DeploymentId, verb: &str) -> Result<Deployment> {
    node.call(Method::POST, &format!("deployments/{id}/{verb}"), &json!({})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_go_one_after_another_stop_at_a_pause_and_try_again() -> Result<()> {
    let node = Node::start().await?;
    level_raised(&node).await?;
    push_image(&node, "shop/app", "v1", b"layer").await?;
    let mut hosts = Vec::new();
    for name in ["host-1", "host-2", "host-3"] {
        hosts.push(Host::join(&node, name).await?);
    }
    let wanted = json!({ "reference": "shop/app:v1", "parallel": 1, "priority": "high" });
    let made: Deployment = node.call(Method::POST, "deployments", &wanted).await?;
    ensure!(made.state == "running" && made.parallel == Some(1) && made.priority == Priority::High);
    let id = made.id;
    let [first] = at_work(&node, id, &hosts).await?[..] else { bail!("{made:?}") };
    ensure!(hosts[first].told().await? == (id, 0, Priority::High));
    report_attempt(&node, &hosts[first].agent, (id, 0), "running", 1).await?;
    report_attempt(&node, &hosts[first].agent, (id, 0), "done", 100).await?;

    // The next one begins by itself, and is stopped.
    let [second] = at_work(&node, id, &hosts).await?[..] else { bail!("nobody began") };
    ensure!(hosts[second].told().await? == (id, 0, Priority::High));
    ensure!(change(&node, id, "pause").await?.state == "paused");
    let stopped = hosts[second].stream.order().await?;
    ensure!(matches!(stopped, OrderMessage::Cancel { deployment, attempt: 1 } if deployment == id));
    report_attempt(&node, &hosts[second].agent, (id, 0), "failed", 7).await?;
    ensure!(at_work(&node, id, &hosts).await?.is_empty());
    let queued = shown(&node, id).await?;
    ensure!(queued.hosts.iter().filter(|host| host.state == "queued").count() == 2, "{queued:?}");

    // Both that are left fail, and try again.
    ensure!(change(&node, id, "resume").await?.state == "running");
    for end in ["failed", "done"] {
        for _ in 0..2 {
            let [next] = at_work(&node, id, &hosts).await?[..] else { bail!("nobody began") };
            let (_, attempt, _) = hosts[next].told().await?;
            report_attempt(&node, &hosts[next].agent, (id, attempt), end, 9).await?;
            if end == "failed" {
                let stopped = hosts[next].stream.order().await?;
                ensure!(matches!(stopped, OrderMessage::Cancel { .. }), "{stopped:?}");
            }
        }
        if end == "failed" {
            ensure!(shown(&node, id).await?.state == "failed");
            ensure!(change(&node, id, "retry").await?.state == "running");
        }
    }
    ensure!(shown(&node, id).await?.state == "done");
    for verb in ["pause", "retry"] {
        let sent = node.request(Method::POST, &format!("deployments/{id}/{verb}")).send().await?;
        problem(sent, StatusCode::CONFLICT).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_late_is_stopped_and_may_try_again() -> Result<()> {
    let node = Node::start().await?;
    level_raised(&node).await?;
    push_image(&node, "shop/app", "v1", b"layer").await?;
    let mut host = Host::join(&node, "host-1").await?;
    for bad in [
        json!({ "parallel": 0 }),
        json!({ "deadline": "tomorrow" }),
        json!({ "deadline": "2001-01-01T00:00:00Z" }),
        json!({ "deadline": "2100-01-01T00:00:00Z", "deadline_seconds": 9 }),
    ] {
        let mut wanted = json!({ "reference": "shop/app:v1" });
        wanted
            .as_object_mut()
            .context("an object")?
            .extend(bad.as_object().cloned().unwrap_or_default());
        let sent = node.request(Method::POST, "deployments").json(&wanted).send().await?;
        problem(sent, StatusCode::BAD_REQUEST).await?;
    }
    let wanted = json!({ "reference": "shop/app:v1", "deadline_seconds": 4 });
    let made: Deployment = node.call(Method::POST, "deployments", &wanted).await?;
    ensure!(made.deadline.is_some());
    ensure!(host.told().await?.0 == made.id);
    let late = until("the deadline", async || {
        let now = shown(&node, made.id).await?;
        Ok((now.state == "failed").then_some(now))
    });
    let late = late.await?;
    let error = late.hosts[0].progress.last_error.clone().unwrap_or_default();
    ensure!(error.starts_with("late"), "{error}");
    ensure!(matches!(host.stream.order().await?, OrderMessage::Cancel { .. }));
    // Whoever was away then hears that nothing stands.
    let mut again = orders(&node, &host.agent).await?;
    let mut standing = None;
    while standing.is_none() {
        let line = again.next().await?.context("the stream ended")?;
        if let OrderMessage::Standing { deployments } = serde_json::from_str(&line)? {
            standing = Some(deployments);
        }
    }
    ensure!(standing == Some(Vec::new()));

    let retry = format!("deployments/{}/retry", made.id);
    let sent = node.request(Method::POST, &retry).send().await?;
    ensure!(sent.status() == StatusCode::OK, "without a body, too");
    let (_, attempt, _) = host.told().await?;
    ensure!(attempt == 1);
    report_attempt(&node, &host.agent, (made.id, attempt), "done", 100).await?;
    ensure!(shown(&node, made.id).await?.state == "done");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_keeps_a_tag_on_whoever_carries_its_labels() -> Result<()> {
    let node = Node::start().await?;
    level_raised(&node).await?;
    push_image(&node, "shop/base", "v1", b"first").await?;
    let mut first = Host::join(&node, "host-1").await?;
    let create = |name: &str, reference: &str, selector: &str| {
        let wanted = json!({ "name": name, "reference": reference, "selector": selector });
        node.request(Method::POST, "warm-ups").json(&wanted).send()
    };
    problem(create("base", "shop/none:v1", "").await?, StatusCode::NOT_FOUND).await?;
    ensure!(create("base", "shop/base:v1", "").await?.status() == StatusCode::CREATED);
    let again = problem(create("base", "shop/base:v1", "").await?, StatusCode::CONFLICT).await?;
    ensure!(again.code == "warm_up_exists");
    ensure!(create("away", "shop/base:v1", "name=away").await?.status() == StatusCode::CREATED);

    let (before, _, priority) = first.told().await?;
    ensure!(priority == Priority::Normal);
    ensure!(shown(&node, before).await?.warm_up.as_deref() == Some("base"));
    // Who comes later is part of the same order.
    let mut second = Host::join(&node, "host-2").await?;
    ensure!(second.told().await?.0 == before);
    report_attempt(&node, &second.agent, (before, 0), "done", 5).await?;

    // The tag moves: what it named before is given up.
    push_image(&node, "shop/base", "v1", b"second").await?;
    let (after, ..) = second.told().await?;
    ensure!(after != before);
    let (mut told, mut stopped) = (false, false);
    while !(told && stopped) {
        match first.stream.order().await? {
            OrderMessage::Deploy { deployment, .. } => told |= deployment == after,
            OrderMessage::Cancel { deployment, .. } => stopped |= deployment == before,
            other => bail!("{other:?}"),
        }
    }
    let policies: Vec<WarmUp> = node.get("warm-ups").await?;
    let of = |name: &str| policies.iter().find(|one| one.name.as_str() == name).context("missing");
    ensure!(of("base")?.deployment == Some(after) && of("base")?.trouble.is_none());
    ensure!(of("away")?.deployment.is_none());

    // A stranger to the project sees no policy of it, and ends none.
    let made = json!({ "username": "stranger", "password": "correct-horse-7", "role": "user" });
    let _made: Value = node.call(Method::POST, "users", &made).await?;
    let login = json!({ "username": "stranger", "password": "correct-horse-7" });
    let session: Value = node.call(Method::POST, "auth/login", &login).await?;
    let token = session["token"].as_str().context("a token")?;
    let as_stranger = |method: Method, path: &str| {
        let url = format!("{}/api/v1/{path}", node.url);
        node.http.request(method, url).bearer_auth(token)
    };
    let seen = as_stranger(Method::GET, "warm-ups").send().await?;
    ensure!(seen.json::<Vec<WarmUp>>().await?.is_empty());
    let ended = as_stranger(Method::DELETE, "warm-ups/base").send().await?;
    problem(ended, StatusCode::NOT_FOUND).await?;

    // Without its tag a policy says why it does nothing, and ends when it is told to.
    let tag = node.v2(Method::DELETE, "shop/base/manifests/v1").send().await?;
    ensure!(tag.status() == StatusCode::ACCEPTED, "{}", tag.status());
    let one: WarmUp = node.get("warm-ups/base").await?;
    ensure!(one.trouble.context("no trouble")?.contains("no tag v1"));
    for name in ["base", "away"] {
        let ended = node.request(Method::DELETE, &format!("warm-ups/{name}")).send().await?;
        ensure!(ended.status() == StatusCode::NO_CONTENT);
    }
    ensure!(node.get::<Vec<WarmUp>>("warm-ups").await?.is_empty());
    ensure!(shown(&node, after).await?.state == "running", "what it ordered goes on");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_told_what_policies_keep_on_it() -> Result<()> {
    let node = Node::start().await?;
    level_raised(&node).await?;
    let manifest = push_image(&node, "shop/base", "v1", b"first").await?;
    let first = format!("shop/base@{}", sha256(&manifest));
    let wanted = json!({ "name": "base", "reference": "shop/base:v1", "selector": "name=host-1" });
    let mut host = Host::join(&node, "host-1").await?;
    host.keeps(&[]).await?;
    let _made: Value = node.call(Method::POST, "warm-ups", &wanted).await?;
    host.keeps(std::slice::from_ref(&first)).await?;
    // Whoever comes, or comes again, hears of it at once.
    let mut again = Host { stream: orders(&node, &host.agent).await?, agent: host.agent };
    again.keeps(std::slice::from_ref(&first)).await?;
    Host::join(&node, "host-2").await?.keeps(&[]).await?;

    let manifest = push_image(&node, "shop/base", "v1", b"second").await?;
    again.keeps(&[format!("shop/base@{}", sha256(&manifest))]).await?;
    let ended = node.request(Method::DELETE, "warm-ups/base").send().await?;
    ensure!(ended.status() == StatusCode::NO_CONTENT);
    again.keeps(&[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_no_administrator_orders_nothing_where_only_those_do() -> Result<()> {
    let only = |config: &mut shoal_node::config::Config| {
        config.accounts.orders = Some(Orders::Administrators);
    };
    let node = Node::start_with(only).await?;
    level_raised(&node).await?;
    push_image(&node, "shop/app", "v1", b"layer").await?;
    let boss = json!({ "username": "boss", "password": "correct-horse-7", "role": "admin" });
    let _boss: Value = node.call(Method::POST, "users", &boss).await?;
    let as_boss = |path: &str, body: &Value| {
        let url = format!("{}/api/v1/{path}", node.url);
        node.http.post(url).basic_auth("boss", Some("correct-horse-7")).json(body).send()
    };
    let policy = json!({ "name": "base", "reference": "shop/app:v1", "selector": "room=12" });
    let made = as_boss("warm-ups", &policy).await?;
    ensure!(made.status() == StatusCode::CREATED, "{made:?}");
    Agent::enrol(&node, "host-1").await?;
    let order = json!({ "reference": "shop/app:v1", "hosts": ["host-1"] });
    let order: Value = as_boss("deployments", &order).await?.json().await?;
    let retry = format!("deployments/{}/retry", order["id"].as_str().context("an id")?);

    // Who is none any more may have the image still; what it ordered by itself stops, and starts no more.
    let _boss: Value = node.call(Method::PATCH, "users/boss", &json!({ "role": "user" })).await?;
    let member = json!({ "role": "guest" });
    let _member: Value = node.call(Method::PUT, "projects/shop/members/user:boss", &member).await?;
    let policy: WarmUp = node.get("warm-ups/base").await?;
    ensure!(policy.trouble.as_ref().is_some_and(|why| why.contains("may not order")), "{policy:?}");
    let refused = problem(as_boss(&retry, &json!({})).await?, StatusCode::FORBIDDEN).await?;
    ensure!(refused.message.contains("accounts.orders"), "{refused:?}");
    node.server.stop().await
}
