//! The cluster's members, how a node joins, and what nodes ask each other.
//!
//! A node joins in two steps that may each be repeated, through any node. First it asks here, with
//! a token: its row is written, which takes its id, and its certificate issued. Then it starts, and
//! [`keep_members`] on the leader makes every node with a row a voter once it answers. A lost
//! answer costs nothing: the same key gets the same id.
//!
//! A node is removed by its row, for good; whoever asked, the leader then takes it out of the group,
//! as often as it takes. That needs more than half of those who stay, too, so they are looked at first.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use axum::Json;
use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Deserialize;
use shoal_api::{ClusterStatus, JoinRequest, JoinResponse, LevelRaised, NodeStatus};
use shoal_content::{DeploymentId, NodeId};
use shoal_metadata::{Command, JoinRole, Node, Refusal};
use shoal_p2p::identity::Role;
use shoal_raft::{ProposeError, Raft, Status};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::agents::{check_name, issue};
use super::caller::{Admin, Reader, Sibling};
use super::input::{Body, Path, Query};
use super::problem::conflict;
use super::tokens::Brought;
use crate::clock::now;
use crate::deploy::Reported;
use crate::http::problem::Problem;
use crate::level;
use crate::state::App;

/// How often an id is chosen anew where two nodes join at the same moment.
const ID_RACES_MAX: usize = 5;
const ADDRESS_BYTES_MAX: usize = 300;
/// How often the leader compares the group with the rows.
const MEMBERS_INTERVAL: Duration = Duration::from_secs(1);

pub async fn status(
    State(app): State<App>,
    _caller: Reader,
) -> Result<Json<ClusterStatus>, Problem> {
    let view = app.raft.local();
    let query = view.query();
    let nodes = query.nodes()?;
    let raft = app.raft.status();
    let role = |id: NodeId| {
        if raft.leader == Some(id) {
            "leader"
        } else if raft.voters.contains(&id) {
            "voter"
        } else {
            "learner"
        }
    };
    let mut shown = Vec::with_capacity(nodes.len());
    for node in nodes {
        shown.push(NodeStatus {
            id: node.id,
            role: role(node.id).to_owned(),
            program: query.program(node.id)?,
            level: node.command_version,
            name: node.name,
            peer: node.peer,
            zone: node.zone,
            api_url: node.api_url,
            raft_address: node.raft_address,
            peer_address: node.peer_address,
        });
    }
    Ok(Json(ClusterStatus {
        cluster: app.keys.cluster,
        answered_by: app.node,
        leader: raft.leader,
        term: raft.term,
        last_log_index: raft.last_log.unwrap_or(0),
        last_applied_index: raft.last_applied.unwrap_or(0),
        nodes: shown,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        level: query.level()?,
        level_possible: level::possible(query)?,
    }))
}

/// Raises the cluster's level to what every node knows.
pub async fn upgrade(State(app): State<App>, _caller: Admin) -> Result<Json<LevelRaised>, Problem> {
    let from = app.view().await?.query().level()?;
    let to = level::raise(&app.raft).await.map_err(|error| match error {
        level::Error::Read(error) => error.into(),
        level::Error::Rows(error) => error.into(),
        level::Error::Propose(error) => Problem::from(error),
    })?;
    Ok(Json(LevelRaised { from, to }))
}

/// The token is the authentication.
pub async fn join(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    Body(request): Body<JoinRequest>,
) -> Result<Json<JoinResponse>, Problem> {
    let token = Brought::parse(&request.token)?;
    token.check(&app, client, JoinRole::Node).await?;
    check_name(&request.name)?;
    for address in
        [&request.raft_address, &request.peer_address, &request.discovery_address, &request.api_url]
    {
        if address.is_empty() || address.len() > ADDRESS_BYTES_MAX {
            let text = "every address is HOST:PORT, and api_url https://HOST:PORT";
            return Err(Problem::bad_request("address_invalid", text));
        }
    }
    let level = app.view().await?.query().level()?;
    if request.command_version < level {
        let text = format!(
            "the node knows commands up to version {}, the cluster is at level {level}; upgrade it",
            request.command_version
        );
        return Err(conflict("node_too_old", text));
    }
    let authorities = app.keys.authorities.refresh(app.raft.local().query())?;
    let (peer, _) = issue(&authorities, &request.csr_pem, Role::Node)?;
    let mut id = None;
    for _ in 0..ID_RACES_MAX {
        let view = app.view().await?;
        let known = view.query().nodes()?.into_iter().find(|node| node.peer == peer);
        let next = match &known {
            Some(node) => node.id,
            None => view.query().next_node_id()?,
        };
        let node = Node {
            id: next,
            name: request.name.clone(),
            peer,
            zone: request.zone.clone(),
            raft_address: request.raft_address.clone(),
            peer_address: request.peer_address.clone(),
            discovery_address: request.discovery_address.clone(),
            api_url: request.api_url.clone(),
            command_version: request.command_version,
            joined_at: now(),
        };
        let row = view.query().join_token(&token.id)?;
        drop(view);
        let again = known.is_some() && row.is_some_and(|row| token.is_of(&row, JoinRole::Node));
        let command = if again {
            // The use was spent when the row was written.
            Command::RegisterNode(node)
        } else {
            let secret_hash = token.secret_hash;
            Command::AdmitNode { token: token.id.clone(), secret_hash, node }
        };
        match app.propose(command).await {
            Ok(_) => {
                id = Some(next);
                break;
            }
            Err(ProposeError::Refused(Refusal::Exists(_))) => {
                check_name_free(&app, &request.name, peer).await?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    let race = || conflict("node_exists", "other nodes join at the same time; try again");
    let id = id.ok_or_else(race)?;
    // By whom signs now: from here on no authority is retired before this node shows the next one.
    let authorities = app.keys.authorities.refresh(app.view().await?.query())?;
    let (_, certificate_pem) = issue(&authorities, &request.csr_pem, Role::Node)?;
    info!(node = %id, name = request.name, %peer, "node joined");
    Ok(Json(JoinResponse {
        cluster: app.keys.cluster,
        id,
        certificate_pem,
        authority_pem: token.authority_pem(&authorities),
        believed_pem: Some(authorities.believed_pem()),
        lineage: app.lineage.clone(),
    }))
}

async fn check_name_free(
    app: &App,
    name: &str,
    peer: shoal_content::PeerId,
) -> Result<(), Problem> {
    let nodes = app.view().await?.query().nodes()?;
    if nodes.iter().any(|node| node.name == name && node.peer != peer) {
        let text = format!("another node is called '{name}'; choose another name, or remove it");
        return Err(conflict("node_exists", text));
    }
    Ok(())
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RemoveQuery {
    force: bool,
}

/// Takes a node out for good; its id is never given out again. With `?force=true` also where too few
/// of those that stay answer.
pub async fn remove_node(
    State(app): State<App>,
    _caller: Admin,
    Path(id): Path<u64>,
    Query(RemoveQuery { force }): Query<RemoveQuery>,
) -> Result<StatusCode, Problem> {
    let id = NodeId::new(id);
    check_rest(&app, id, force).await?;
    // The row first: the leader would make it a member again otherwise.
    match app.propose(Command::RemoveNode(id)).await {
        Ok(_) => {}
        Err(ProposeError::Refused(refusal @ Refusal::NotFound(_))) => {
            // Of one that was removed before, there may be the group left to be changed.
            if app.view().await?.query().retired_node(id)?.is_none() {
                return Err(ProposeError::Refused(refusal).into());
            }
        }
        Err(error) => return Err(error.into()),
    }
    if id == app.node && !app.raft.status().is_leader {
        // Nobody answers a node that was removed; the leader takes it out by itself.
        return Ok(StatusCode::NO_CONTENT);
    }
    let raft = app.raft.clone();
    let removed = change_group(move || async move { raft.remove_member(id).await }).await;
    removed.map_err(|error| {
        warn!(node = %id, %error, "a node could not be taken out of the group yet");
        super::problem::unavailable("the group could not be changed right now; try again")
    })?;
    Ok(StatusCode::NO_CONTENT)
}

/// Refuses where nobody would vote any more, or fewer of those who would answer than it takes to agree
/// on anything. Each of them is asked here and now; that they answer says that they hear a leader.
async fn check_rest(app: &App, id: NodeId, force: bool) -> Result<(), Problem> {
    let voters = app.raft.status().voters;
    let nodes = app.view().await?.query().nodes()?;
    // Of one that was removed before, there may be the group left to be changed.
    if !voters.contains(&id) || !nodes.iter().any(|node| node.id == id) {
        return Ok(());
    }
    let stays = |node: &&Node| node.id != id && voters.contains(&node.id);
    let rest: Vec<&Node> = nodes.iter().filter(stays).collect();
    if rest.is_empty() {
        return Err(Refusal::LastNode.into());
    }
    if force {
        return Ok(());
    }
    let heard: Vec<ClusterStatus> = app.services.siblings.ask("/api/v1/cluster").await;
    let heard: BTreeSet<NodeId> = heard.into_iter().map(|status| status.answered_by).collect();
    let silent: Vec<&str> = rest
        .iter()
        .filter(|node| node.id != app.node && !heard.contains(&node.id))
        .map(|node| node.name.as_str())
        .collect();
    if can_agree(rest.len(), silent.len()) {
        return Ok(());
    }
    let text = format!(
        "of the {} nodes that would stay these do not answer: {}; the others could agree on nothing \
         any more. Start them again, or, where they are lost, remove them first. With force the node is \
         removed all the same",
        rest.len(),
        silent.join(", ")
    );
    Err(conflict("too_few_nodes", text))
}

/// Whether more than half of so many voters are not among the silent.
fn can_agree(voters: usize, silent: usize) -> bool {
    voters - silent > voters / 2
}

/// Makes every node that has a row a voter, and takes out who was removed, on whichever node leads.
/// Runs until it is dropped. A node that does not answer holds up nobody else.
pub async fn keep_members(raft: Raft) {
    let mut ticks = tokio::time::interval(MEMBERS_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut adding: JoinSet<NodeId> = JoinSet::new();
    let mut changing: JoinSet<()> = JoinSet::new();
    let mut waiting = BTreeSet::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            Some(ended) = adding.join_next() => {
                if let Ok(id) = ended {
                    waiting.remove(&id);
                }
                continue;
            }
            Some(_) = changing.join_next() => continue,
        }
        let status = raft.status();
        if !status.is_leader {
            continue;
        }
        // One at a time: each waits for the one before in any case.
        if changing.is_empty() {
            if status.is_changing {
                changing.spawn(settle(raft.clone()));
            } else if let Some(id) = removed_member(&raft, &status) {
                changing.spawn(take_out(raft.clone(), id));
            }
        }
        let Ok(nodes) = raft.local().query().nodes() else { continue };
        for node in nodes {
            if status.voters.contains(&node.id) || !waiting.insert(node.id) {
                continue;
            }
            let (raft, id, address) = (raft.clone(), node.id, node.raft_address);
            adding.spawn(async move {
                match change_group(move || async move { raft.add_member(id, address).await }).await
                {
                    Ok(()) => info!(node = %id, "node is a member"),
                    Err(error) => warn!(node = %id, %error, "node is no member yet"),
                }
                id
            });
        }
    }
}

/// A member whose node was removed, as the request that removed it broke off. A member that has no row
/// yet is none: a cluster that is being founded has no rows at all.
fn removed_member(raft: &Raft, status: &Status) -> Option<NodeId> {
    let view = raft.local();
    let retired = |id: &&NodeId| matches!(view.query().retired_node(**id), Ok(Some(_)));
    status.voters.union(&status.learners).find(retired).copied()
}

/// A change that was under way when its leader went would otherwise stay half made.
async fn settle(raft: Raft) {
    if let Err(error) = change_group(move || async move { raft.settle_members().await }).await {
        warn!(%error, "a change of the group cannot be ended yet");
    }
}

async fn take_out(raft: Raft, id: NodeId) {
    match change_group(move || async move { raft.remove_member(id).await }).await {
        Ok(()) => info!(node = %id, "a node that was removed is no member any more"),
        Err(error) => warn!(node = %id, %error, "a node that was removed is a member yet"),
    }
}

/// Changes of the group are awaited on a thread of their own: their futures stay on one.
async fn change_group<F: Future<Output = Result<(), shoal_raft::Error>>>(
    change: impl FnOnce() -> F + Send + 'static,
) -> Result<(), shoal_raft::Error> {
    let runtime = tokio::runtime::Handle::current();
    let changed = tokio::task::spawn_blocking(move || runtime.block_on(change())).await;
    changed.unwrap_or_else(|error| Err(shoal_raft::Error::Stopped(error.to_string())))
}

/// What this node has heard of a deployment, for the others.
pub async fn reports(
    State(app): State<App>,
    _caller: Sibling,
    Path(id): Path<DeploymentId>,
) -> Json<BTreeMap<String, Reported>> {
    let reports = app.services.board.reports(id);
    Json(reports.into_iter().map(|(peer, report)| (peer.to_string(), report)).collect())
}

/// Writes down the pulls that were noted here, for a node that is about to judge by them.
pub async fn write_pulls(State(app): State<App>, _caller: Sibling) -> Result<StatusCode, Problem> {
    app.services.pulls.write_down().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The agents that listen here, for the other nodes.
pub async fn streams(State(app): State<App>, _caller: Sibling) -> Json<Vec<String>> {
    Json(app.services.desk.online().iter().map(ToString::to_string).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_half_of_those_who_stay_have_to_answer() {
        for (voters, silent, agree) in [
            (1, 0, true),
            (1, 1, false),
            (2, 0, true),
            (2, 1, false),
            (3, 1, true),
            (3, 2, false),
            (4, 1, true),
            (4, 2, false),
        ] {
            assert_eq!(can_agree(voters, silent), agree, "{silent} of {voters}");
        }
    }
}
