//! Three nodes: every one of them serves everything, and the loss of one is no loss.

use anyhow::{Context, Result, ensure};
use reqwest::{Method, StatusCode};
use serde_json::json;
use shoal_api::{AgentInfo, ClusterStatus, Deployment, Resolution};
use shoal_content::NodeId;
use shoal_node::server::Server;
use tokio::time::timeout;

use super::disks::{create_image, make_disk, upload};
use super::members::Agent;
use super::node::{DEADLINE, Node, problem};
use super::orders::{orders, report};
use super::wait::until;

#[tokio::test(flavor = "multi_thread")]
async fn any_node_does_anything_and_the_leader_may_go() -> Result<()> {
    let first = Node::start().await?;
    let second = first.join("node-2").await?;
    let third = second.join("node-3").await?;
    until("three voters", async || {
        let status: ClusterStatus = third.get("cluster").await?;
        let voting = status.nodes.iter().filter(|node| node.role != "learner").count();
        Ok((voting == 3 && status.leader.is_some()).then_some(()))
    })
    .await?;

    let file = make_disk(first.path(), "shared", 2)?;
    let image = create_image(&second, "zedge/shared").await?;
    let status = upload(&third, image, &file, "1").await?;
    ensure!(status.status == "active", "{status:?}");
    for node in [&first, &second, &third] {
        let found: Resolution = node.get("resolve?reference=zedge/shared:1").await?;
        ensure!(Some(found.version_id) == status.version_id);
    }

    // The agent listens at one node, reports to another, and is watched at the third.
    let agent = Agent::enrol(&second, "host-1").await?;
    let stream = orders(&second, &agent).await?;
    until("the agent to be seen elsewhere", async || {
        let agents: Vec<AgentInfo> = first.get("agents").await?;
        Ok(agents.iter().any(|agent| agent.online).then_some(()))
    })
    .await?;
    let wanted = json!({ "reference": "zedge/shared:1", "hosts": ["host-1"] });
    let made: Deployment = third.call(Method::POST, "deployments", &wanted).await?;
    report(&second, &agent, made.id, "running", 40).await?;
    let path = format!("deployments/{}", made.id);
    until("progress of another node", async || {
        let shown: Deployment = first.get(&path).await?;
        Ok((shown.hosts[0].progress.bytes_done == 40).then_some(()))
    })
    .await?;
    drop(stream);

    // The first node led, or another did: either way two go on.
    first.server.stop().await?;
    let wanted = json!({ "reference": "zedge/shared:1" });
    until("a majority without the first", async || {
        let sent = second.request(Method::POST, "deployments").json(&wanted).send().await?;
        Ok((sent.status() == StatusCode::CREATED).then_some(()))
    })
    .await?;
    report(&third, &agent, made.id, "done", 100).await?;
    let shown: Deployment = second.get(&path).await.context("the end at another node")?;
    ensure!(shown.state == "done", "{shown:?}");

    // Alone, the second does not hear any more what is decided: its agents look elsewhere.
    let mut stream = orders(&second, &agent).await?;
    third.server.stop().await?;
    let ended = async {
        while stream.next().await?.is_some() {}
        anyhow::Ok(())
    };
    timeout(DEADLINE, ended).await.context("the order stream goes on")?
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_removed_through_itself_votes_no_more() -> Result<()> {
    let first = Node::start().await?;
    let second = first.join("node-2").await?;
    let third = second.join("node-3").await?;
    let voters = || first.server.app().raft.status().voters;
    until("three voters", async || Ok((voters().len() == 3).then_some(()))).await?;
    let id = third.server.app().node;
    let path = format!("cluster/nodes/{id}");
    // Nobody answers it from then on, so that it cannot see to the rest itself.
    let removed = third.request(Method::DELETE, &path).send().await?;
    ensure!(removed.status() == StatusCode::NO_CONTENT, "{removed:?}");
    until("a group without it", async || Ok((!voters().contains(&id)).then_some(()))).await?;
    // Whoever has lost the answer asks again.
    let again = second.request(Method::DELETE, &path).send().await?;
    ensure!(again.status() == StatusCode::NO_CONTENT, "{again:?}");
    let nobody = second.request(Method::DELETE, "cluster/nodes/99").send().await?;
    ensure!(nobody.status() == StatusCode::NOT_FOUND, "{nobody:?}");
    third.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_node_is_removed_where_the_rest_could_agree_on_nothing() -> Result<()> {
    let first = Node::start().await?;
    let second = first.join("node-2").await?;
    let third = second.join("node-3").await?;
    let group = first.server.app().raft.clone();
    let voters = || group.status().voters;
    until("three voters", async || Ok((voters().len() == 3).then_some(()))).await?;
    let (here, alive, lost) =
        (first.server.app().node, second.server.app().node, third.server.app().node);
    let removed = async |id: NodeId, query: &str| {
        first.request(Method::DELETE, &format!("cluster/nodes/{id}{query}")).send().await
    };
    third.server.stop().await?;
    let leads = async || Ok(group.status().leader.filter(|leader| *leader != lost));
    until("somebody to lead", leads).await?;
    for wanted in [alive, here] {
        let refused = problem(removed(wanted, "").await?, StatusCode::CONFLICT).await?;
        ensure!(refused.code == "too_few_nodes", "{refused:?}");
        ensure!(refused.message.contains("node-3"), "{refused:?}");
    }
    ensure!(voters().len() == 3);

    let gone = removed(lost, "").await?;
    ensure!(gone.status() == StatusCode::NO_CONTENT, "{gone:?}");
    until("two voters", async || Ok((voters().len() == 2).then_some(()))).await?;
    let gone = removed(alive, "").await?;
    ensure!(gone.status() == StatusCode::NO_CONTENT, "{gone:?}");
    until("one voter", async || Ok((voters().len() == 1).then_some(()))).await?;
    for query in ["", "?force=true"] {
        let refused = problem(removed(here, query).await?, StatusCode::CONFLICT).await?;
        ensure!(refused.code == "last_node", "{refused:?}");
    }
    second.server.stop().await?;
    first.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_insists_removes_a_node_that_the_rest_would_need() -> Result<()> {
    let first = Node::start().await?;
    let second = first.join("node-2").await?;
    let third = second.join("node-3").await?;
    let group = first.server.app().raft.clone();
    let voting = async || Ok((group.status().voters.len() == 3).then_some(()));
    until("three voters", voting).await?;
    let alive = second.server.app().node;
    third.server.stop().await?;
    let path = format!("cluster/nodes/{alive}?force=true");
    // The answer waits for a change of the group that the lost node would have to agree to.
    let asked = tokio::spawn(first.request(Method::DELETE, &path).send());
    until("its row to be gone", async || {
        Ok(group.local().query().node(alive)?.is_none().then_some(()))
    })
    .await?;
    asked.abort();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_raft_folder_is_lost_does_not_start_as_the_member_that_it_was() -> Result<()> {
    let node = Node::start().await?;
    let config = node.server.app().config.clone();
    node.server.stop().await?;
    std::fs::remove_dir_all(config.node.data_dir.join("raft"))?;
    let refused = Server::start(config, |_| ()).await.err().context("it must not start")?;
    ensure!(refused.to_string().contains("must not vote"), "{refused:#}");
    Ok(())
}
