//! Orders to put a version on hosts: made, listed, watched, cancelled.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::{Stream, StreamExt};
use shoal_api::{CreateDeployment, Deployment};
use shoal_content::{DeploymentId, Labels, PeerId, Pin};
use shoal_metadata::{self as metadata, Action, Agent, Command, Query as Metadata, Read, What};
use uuid::Uuid;

use super::caller::Caller;
use super::images::resolved;
use super::input::{Body, Path};
use super::problem::missing;
use crate::deploy::{Names, Reports, view, watch};
use crate::http::problem::Problem;
use crate::state::App;

/// Deployments of a list, the newest first.
const LISTED_MAX: usize = 200;
/// Unknown hosts that an answer names.
const UNKNOWN_SHOWN: usize = 20;
/// A silent stream of events says so often that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Body(request): Body<CreateDeployment>,
) -> Result<(StatusCode, Json<Deployment>), Problem> {
    let owner = caller.account()?;
    let query = caller.view.query();
    let (image, version) = resolved(&caller.view, &caller.who(), &request.reference, Action::Pull)?;
    let agents = query.agents()?;
    let hosts = hosts(query, &agents, &request)?;
    let tag = match request.reference.pin {
        Pin::Tag(tag) => Some(tag),
        Pin::Digest(_) => None,
    };
    let id = DeploymentId::from_uuid(Uuid::now_v7());
    let order = Command::CreateDeployment {
        id,
        image: image.name,
        digest: version.digest,
        tag,
        hosts,
        owner,
    };
    drop(caller);
    app.propose(order).await?;
    Ok((StatusCode::CREATED, Json(shown(&app, id).await?)))
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
    let names = Names::read(current.query())?;
    drop(current);
    let reports = app.services.gatherer.reports(id).await;
    Ok(view(&row, &reports, &names))
}

fn unknown(id: DeploymentId) -> Problem {
    missing("deployment_not_found", format!("there is no deployment {id}"))
}

/// Whoever gave an order may do all with it; others what they may do with its image.
fn may(caller: &Caller, row: &metadata::Deployment, action: Action) -> Result<(), Problem> {
    if row.created_by == caller.principal.name() {
        return Ok(());
    }
    caller.permit(action, What::Repository(&row.image))
}

fn permitted(caller: &Caller, id: DeploymentId, action: Action) -> Result<(), Problem> {
    let row = caller.view.query().deployment(id)?.ok_or_else(|| unknown(id))?;
    may(caller, &row, action).map_err(|problem| match problem.status {
        StatusCode::NOT_FOUND => unknown(id),
        _ => problem,
    })
}

/// Without the progress of other nodes: each is a call away.
pub async fn list(
    State(app): State<App>,
    caller: Caller,
) -> Result<Json<Vec<Deployment>>, Problem> {
    let names = Names::read(caller.view.query())?;
    let rows = caller.view.query().deployments(LISTED_MAX)?;
    let shown = rows.iter().filter(|row| may(&caller, row, Action::List).is_ok()).map(|row| {
        let reports: Reports = app.services.board.reports(row.id);
        view(row, &reports, &names)
    });
    Ok(Json(shown.collect()))
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
