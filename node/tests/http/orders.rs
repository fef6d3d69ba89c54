//! Deployments: ordered over HTTP, heard on the stream, reported, watched to the end.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Method, Response, StatusCode};
use serde_json::json;
use shoal_api::{AgentInfo, Deployment, OrderMessage, ProgressReport, TransferProgress};
use shoal_content::{DeploymentId, TransferId};
use tokio::time::timeout;
use uuid::Uuid;

use super::disks::{create_image, make_disk, upload};
use super::members::{Agent, try_enrol};
use super::node::{DEADLINE, Node, problem, read};
use super::wait::level_raised;

/// Lines of an open answer.
pub struct Lines {
    response: Response,
    buffer: Vec<u8>,
}

impl Lines {
    pub async fn next(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(Some(String::from_utf8(line)?.trim().to_owned()));
            }
            match timeout(DEADLINE, self.response.chunk()).await?? {
                Some(piece) => self.buffer.extend_from_slice(&piece),
                None => return Ok(None),
            }
        }
    }

    pub async fn order(&mut self) -> Result<OrderMessage> {
        loop {
            let line = self.next().await?.context("the order stream ended")?;
            match serde_json::from_str(&line)? {
                OrderMessage::Ping | OrderMessage::Standing { .. } | OrderMessage::Keep { .. } => {}
                order => return Ok(order),
            }
        }
    }
}

pub async fn orders(node: &Node, agent: &Agent) -> Result<Lines> {
    let response = agent.request(node, Method::GET, "orders")?.send().await?.error_for_status()?;
    Ok(Lines { response, buffer: Vec::new() })
}

pub async fn report(
    node: &Node,
    agent: &Agent,
    deployment: DeploymentId,
    state: &str,
    bytes_done: u64,
) -> Result<()> {
    report_attempt(node, agent, (deployment, 0), state, bytes_done).await
}

pub async fn report_attempt(
    node: &Node,
    agent: &Agent,
    (deployment, attempt): (DeploymentId, u32),
    state: &str,
    bytes_done: u64,
) -> Result<()> {
    let progress = TransferProgress {
        state: state.into(),
        bytes_total: 100,
        bytes_done,
        bytes_by_node: BTreeMap::from([("somewhere".to_owned(), bytes_done)]),
        ..TransferProgress::default()
    };
    let transfer = TransferId::from_uuid(Uuid::from_u128(7));
    let report = ProgressReport { deployment, transfer, attempt, progress };
    let sent = agent.request(node, Method::POST, "progress")?.json(&report).send().await?;
    ensure!(sent.status() == StatusCode::NO_CONTENT, "{}", sent.text().await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_told_who_was_removed_and_who_came_again() -> Result<()> {
    let node = Node::start().await?;
    level_raised(&node).await?;
    let (first, second) =
        (Agent::enrol(&node, "host-1").await?, Agent::enrol(&node, "host-2").await?);
    let mut stream = orders(&node, &first).await?;
    let mut told = async || match stream.order().await? {
        OrderMessage::Nodes { expelled, .. } => expelled.context("the node does not say"),
        other => bail!("{other:?}"),
    };
    ensure!(told().await?.is_empty());
    let removed = node.request(Method::DELETE, "agents/host-2").send().await?;
    ensure!(removed.status() == StatusCode::NO_CONTENT, "{removed:?}");
    ensure!(told().await? == [second.key.peer_id()]);
    let token = node.join_token("agent", Some(1)).await?;
    let again = try_enrol(&node, &second.key, "host-2", &token).await?;
    ensure!(again.status() == StatusCode::OK, "{again:?}");
    ensure!(told().await?.is_empty());
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_reaches_its_agents_and_is_watched_to_its_end() -> Result<()> {
    let node = Node::start().await?;
    let file = make_disk(node.path(), "ordered", 2)?;
    let image = create_image(&node, "zedge/ordered").await?;
    upload(&node, image, &file, "1").await?;
    let (first, second) =
        (Agent::enrol(&node, "host-1").await?, Agent::enrol(&node, "host-2").await?);
    let mut live = orders(&node, &first).await?;
    ensure!(matches!(live.order().await?, OrderMessage::Nodes { nodes, .. } if nodes.len() == 1));
    let agents: Vec<AgentInfo> = node.get("agents").await?;
    let online = |name| agents.iter().any(|agent| agent.name == name && agent.online);
    ensure!(online("host-1") && !online("host-2"));

    let unknown = json!({ "reference": "zedge/ordered:1", "hosts": ["host-1", "nobody"] });
    let refused = node.request(Method::POST, "deployments").json(&unknown).send().await?;
    let refused = problem(refused, StatusCode::NOT_FOUND).await?;
    ensure!(refused.message.contains("nobody") && !refused.message.contains("host-1"));

    let wanted =
        json!({ "reference": "zedge/ordered:1", "hosts": ["host-1"], "selector": "name=host-2" });
    let made: Deployment = node.call(Method::POST, "deployments", &wanted).await?;
    ensure!(made.hosts.len() == 2 && made.state == "running");
    // Live to the first; the second opens its stream later and hears of it then.
    let mut late = orders(&node, &second).await?;
    ensure!(matches!(late.order().await?, OrderMessage::Nodes { .. }));
    for stream in [&mut live, &mut late] {
        match stream.order().await? {
            OrderMessage::Deploy { deployment, reference, .. } => {
                ensure!(deployment == made.id && reference.name == made.reference.name);
            }
            other => bail!("{other:?}"),
        }
    }

    let path = format!("deployments/{}/events", made.id);
    let response = node.request(Method::GET, &path).send().await?.error_for_status()?;
    let mut events = Lines { response, buffer: Vec::new() };
    for agent in [&first, &second] {
        report(&node, agent, made.id, "running", 40).await?;
    }
    let mut seen_running = false;
    let mut ended = false;
    let mut last = None;
    while let Some(line) = events.next().await? {
        let Some(data) = line.strip_prefix("data:") else { continue };
        let state: Deployment = serde_json::from_str(data.trim())?;
        let running = state.hosts.iter().all(|host| host.progress.bytes_done == 40);
        seen_running |= running;
        if seen_running && !ended {
            ended = true;
            for agent in [&first, &second] {
                report(&node, agent, made.id, "done", 100).await?;
                report(&node, agent, made.id, "done", 100).await?;
            }
        }
        last = Some(state);
    }
    let last = last.context("no event came")?;
    ensure!(seen_running && last.state == "done", "{last:?}");
    ensure!(last.hosts.iter().all(|host| host.progress.bytes_by_node["somewhere"] == 100));

    // Done is done: a stream that opens now brings no order, and a foreign report is refused.
    let stranger = Agent::enrol(&node, "host-3").await?;
    let foreign = json!({
        "deployment": made.id.to_string(), "transfer": TransferId::from_uuid(Uuid::nil()).to_string(),
        "progress": TransferProgress { state: "done".into(), ..TransferProgress::default() },
    });
    let sent = stranger.request(&node, Method::POST, "progress")?.json(&foreign).send().await?;
    problem(sent, StatusCode::NOT_FOUND).await?;

    let wanted = json!({ "reference": "zedge/ordered:1", "hosts": ["host-1"] });
    let made: Deployment = node.call(Method::POST, "deployments", &wanted).await?;
    ensure!(matches!(live.order().await?, OrderMessage::Deploy { .. }));
    let cancelled = node.request(Method::POST, &format!("deployments/{}/cancel", made.id));
    ensure!(cancelled.send().await?.status() == StatusCode::NO_CONTENT);
    ensure!(matches!(
        live.order().await?,
        OrderMessage::Cancel { deployment, .. } if deployment == made.id
    ));
    let all: Vec<Deployment> = node.get("deployments").await?;
    ensure!(all.len() == 2 && all.iter().any(|one| one.state == "cancelled"));

    // An agent that is removed loses its stream.
    let removed = node.request(Method::DELETE, "agents/host-1").send().await?;
    ensure!(removed.status() == StatusCode::NO_CONTENT);
    while live.next().await?.is_some() {}
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_told_what_a_reference_means_with_the_right_to_it() -> Result<()> {
    let node = Node::start().await?;
    let file = make_disk(node.path(), "granted", 2)?;
    let image = create_image(&node, "zedge/granted").await?;
    upload(&node, image, &file, "1").await?;
    let agent = Agent::enrol(&node, "host-1").await?;
    let wanted = json!({ "reference": "zedge/granted:latest" });
    let asked = agent.request(&node, Method::POST, "resolve")?.json(&wanted);
    let found: shoal_api::AgentResolution = read(asked.send().await?).await?;
    let disk = found.disk.context("no disk")?;
    ensure!(found.kind == "disk" && found.blobs.is_empty() && disk.virtual_size_bytes == 48 << 20);
    let ticket = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, &disk.ticket)?;
    let ticket = shoal_content::Ticket::from_bytes(&ticket)?;
    let mut key = [0; 32];
    hex::decode_to_slice(&agent.enrolment.ticket_public_key, &mut key)?;
    let verify = |message: &[u8], signature: &[u8]| {
        shoal_p2p::identity::verify_ed25519(&key, message, signature)
    };
    let (holder, now) = (agent.key.peer_id(), shoal_node::clock::now());
    ensure!(ticket.check(disk.recipe, holder, now, verify).is_ok());
    let other = shoal_content::PeerId::from_public_key([9; 32]);
    ensure!(ticket.check(disk.recipe, other, now, verify).is_err());
    Ok(())
}
