//! Orders to put a version on hosts: made, listed, watched, held up, tried again, cancelled.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::{Stream, StreamExt};
use shoal_api::{CreateDeployment, Deadline, Deployment, RetryDeployment};
use shoal_content::{DeploymentId, Labels, PeerId, Pin, Timestamp};
use shoal_metadata::{
    self as metadata, Action, Agent, Command, DeploymentOrder, DeploymentPlan, Query as Metadata,
    Read, ScanKey,
};
use uuid::Uuid;

use super::brought::brought;
use super::caller::Caller;
use super::images::resolved;
use super::input::{Body, Path};
use super::problem::{conflict, missing};
use crate::clock::{now, parsed};
use crate::deploy::{Names, Reports, view, watch};
use crate::http::problem::Problem;
use crate::state::App;

/// Deployments of a list, the newest first.
const LISTED_MAX: usize = 200;
/// Hosts of a list, over all its deployments: each host has a report, so it bounds the answer.
const LISTED_HOSTS_MAX: usize = 50_000;
/// Unknown hosts that an answer names.
const UNKNOWN_SHOWN: usize = 20;
/// A hundred years; whoever means longer means none.
const DEADLINE_MILLIS_MAX: u64 = 100 * 366 * 86_400_000;
/// A silent stream of events says so often that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Body(request): Body<CreateDeployment>,
) -> Result<(StatusCode, Json<Deployment>), Problem> {
    let owner = caller.account()?;
    caller.orders(&app)?;
    let caller = brought(&app, caller, &request.reference).await?;
    let query = caller.view.query();
    let (image, version) = resolved(&caller.view, &caller.who(), &request.reference, Action::Pull)?;
    let of = ScanKey { image: image.id, digest: version.digest.clone() };
    if let Some(blocked) = app.services.scanner.blocks(query, &of)? {
        return Err(conflict("vulnerable", blocked));
    }
    let agents = query.agents()?;
    let hosts = hosts(query, &agents, &request)?;
    let tag = match request.reference.pin {
        Pin::Tag(tag) => Some(tag),
        Pin::Digest(_) => None,
    };
    let id = DeploymentId::from_uuid(Uuid::now_v7());
    let plan = DeploymentPlan {
        priority: request.priority,
        parallel: checked_parallel(request.parallel)?,
        deadline: deadline(&request.deadline)?,
        ..DeploymentPlan::default()
    };
    let (image, digest) = (image.name, version.digest);
    // One without a plan is understood by every node.
    let order = match plan == DeploymentPlan::default() {
        true => Command::CreateDeployment { id, image, digest, tag, hosts, owner },
        false => {
            let order = DeploymentOrder { id, image, digest, tag, hosts, owner, plan };
            Command::OrderDeployment(order)
        }
    };
    drop(caller);
    app.propose(order).await?;
    Ok((StatusCode::CREATED, Json(shown(&app, id).await?)))
}

pub(super) fn checked_parallel(parallel: Option<u32>) -> Result<Option<u32>, Problem> {
    match parallel {
        Some(0) => {
            let text = "parallel is how many hosts may be at work at a time, at least 1";
            Err(Problem::bad_request("parallel_invalid", text))
        }
        parallel => Ok(parallel),
    }
}

/// The moment that is meant, which is to come.
fn deadline(wanted: &Deadline) -> Result<Option<Timestamp>, Problem> {
    let invalid = |text: &str| Err(Problem::bad_request("deadline_invalid", text));
    let now = now();
    let deadline = match (&wanted.at, wanted.seconds) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => return invalid("deadline or deadline_seconds, not both"),
        (Some(at), None) => match parsed(at) {
            Some(at) => at,
            None => return invalid("deadline is a time as RFC 3339 has it: 2026-01-31T18:00:00Z"),
        },
        (None, Some(seconds)) => {
            let millis = seconds.saturating_mul(1000).min(DEADLINE_MILLIS_MAX);
            Timestamp::from_millis(now.as_millis() + millis)
        }
    };
    if deadline <= now {
        return invalid("the deadline is over already");
    }
    Ok(Some(deadline))
}

/// Who is meant: the named, and those that carry the selector's labels; all where neither is given.
fn hosts<R: Read>(
    query: Metadata<'_, R>,
    agents: &[Agent],
    request: &CreateDeployment,
) -> Result<BTreeSet<PeerId>, Problem> {
    let mut hosts = BTreeSet::new();
    let mut unknown = Vec::new();
    for wanted in &request.hosts {
        let found = match wanted.parse::<PeerId>() {
            Ok(peer) => query.agent(peer)?,
            Err(_) => query.agent_by_name(wanted)?,
        };
        match found {
            Some(agent) => {
                hosts.insert(agent.peer);
            }
            None => unknown.push(wanted.as_str()),
        }
    }
    if !unknown.is_empty() {
        let more = if unknown.len() > UNKNOWN_SHOWN { ", …" } else { "" };
        unknown.truncate(UNKNOWN_SHOWN);
        let text = format!("no agent is called {}{more}", unknown.join(", "));
        return Err(missing("agent_not_found", text));
    }
    if !request.selector.trim().is_empty() || request.hosts.is_empty() {
        let selector: Labels = request
            .selector
            .parse()
            .map_err(|error| Problem::bad_request("selector_invalid", format!("{error}")))?;
        let matching = agents.iter().filter(|agent| agent.labels.match_selector(&selector));
        hosts.extend(matching.map(|agent| agent.peer));
    }
    if hosts.is_empty() {
        let text = if agents.is_empty() {
            "no agent has enrolled yet".to_owned()
        } else {
            format!("no agent carries the labels {}", request.selector)
        };
        return Err(missing("agent_not_found", text));
    }
    Ok(hosts)
}

async fn shown(app: &App, id: DeploymentId) -> Result<Deployment, Problem> {
    let current = app.view().await?;
    let row = current.query().deployment(id)?.ok_or_else(|| unknown(id))?;
    let plan = current.query().deployment_plan(id)?.unwrap_or_default();
    let names = Names::read(current.query())?;
    drop(current);
    let reports = app.services.gatherer.reports(id).await;
    Ok(view(&row, &plan, &reports, &names))
}

fn unknown(id: DeploymentId) -> Problem {
    missing("deployment_not_found", format!("there is no deployment {id}"))
}

/// Whoever gave an order may do all with it that its image may be had for still; others what they
/// may do with the image.
fn may(caller: &Caller, row: &metadata::Deployment, action: Action) -> Result<(), Problem> {
    caller.permit_about(&row.image, (row.created_by.as_str(), row.created_at), action)
}

fn permitted(caller: &Caller, id: DeploymentId, action: Action) -> Result<(), Problem> {
    let row = caller.view.query().deployment(id)?.ok_or_else(|| unknown(id))?;
    may(caller, &row, action).map_err(|problem| match problem.status {
        StatusCode::NOT_FOUND => unknown(id),
        _ => problem,
    })
}

/// Without the progress of other nodes: each is a call away. One row is decoded at a time; the
/// newest that the caller may see is there however many hosts it has.
pub async fn list(
    State(app): State<App>,
    caller: Caller,
) -> Result<Json<Vec<Deployment>>, Problem> {
    let query = caller.view.query();
    let names = Names::read(query)?;
    let mut shown = Vec::new();
    let mut hosts = 0;
    for id in query.newest_deployments(LISTED_MAX)? {
        let Some(row) = query.deployment(id)? else { continue };
        if may(&caller, &row, Action::List).is_err() {
            continue;
        }
        hosts += row.hosts.len();
        if hosts > LISTED_HOSTS_MAX && !shown.is_empty() {
            break;
        }
        let plan = query.deployment_plan(id)?.unwrap_or_default();
        let reports: Reports = app.services.board.reports(id);
        shown.push(view(&row, &plan, &reports, &names));
    }
    Ok(Json(shown))
}

pub async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<DeploymentId>,
) -> Result<Json<Deployment>, Problem> {
    permitted(&caller, id, Action::List)?;
    drop(caller);
    shown(&app, id).await.map(Json)
}

pub async fn cancel(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<DeploymentId>,
) -> Result<StatusCode, Problem> {
    permitted(&caller, id, Action::Manage)?;
    caller.account()?;
    drop(caller);
    app.propose(Command::CancelDeployment { id }).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn pause(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<DeploymentId>,
) -> Result<Json<Deployment>, Problem> {
    change(&app, caller, id, Command::PauseDeployment { id, paused: true }).await
}

pub async fn resume(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<DeploymentId>,
) -> Result<Json<Deployment>, Problem> {
    change(&app, caller, id, Command::PauseDeployment { id, paused: false }).await
}

/// The hosts that failed, once more.
pub async fn retry(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<DeploymentId>,
    request: Option<Body<RetryDeployment>>,
) -> Result<Json<Deployment>, Problem> {
    let Body(request) = request.unwrap_or(Body(RetryDeployment::default()));
    let deadline = deadline(&request.deadline);
    // Who may not do it need not know what is wrong with it.
    permitted(&caller, id, Action::Manage)?;
    caller.orders(&app)?;
    change(&app, caller, id, Command::RetryDeployment { id, deadline: deadline? }).await
}

async fn change(
    app: &App,
    caller: Caller,
    id: DeploymentId,
    command: Command,
) -> Result<Json<Deployment>, Problem> {
    permitted(&caller, id, Action::Manage)?;
    caller.account()?;
    drop(caller);
    app.propose(command).await?;
    shown(app, id).await.map(Json)
}

pub async fn events(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<DeploymentId>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    // Linearizable, so that the local state has what the caller knows of.
    permitted(&caller, id, Action::List)?;
    drop(caller);
    let services = &app.services;
    let stopping = services.stopping.clone();
    let states = watch(app.raft.clone(), services.gatherer.clone(), id, stopping);
    let events = states.map(|state| {
        let event = Event::default().event("deployment").json_data(&*state);
        Ok(event.unwrap_or_else(|_| Event::default().comment("a state could not be written")))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}
