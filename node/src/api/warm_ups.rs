//! Policies that keep a tag on hosts: made, listed, removed. Carrying them out is `deploy`'s.
//!
//! Whoever may pull a tag may order it onto hosts, once or always, but an auditor; who made a policy
//! and may pull its image still, or manages the image, may end it.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use shoal_api::{CreateWarmUp, WarmUp};
use shoal_content::{AccountName, ImageReference, Labels, Pin};
use shoal_metadata::{self as metadata, Action, Command, Query as Metadata, Read, Refusal};
use shoal_raft::ProposeError;

use super::brought::brought;
use super::caller::Caller;
use super::deployments::checked_parallel;
use super::images::resolved;
use super::input::{Body, Path};
use super::problem::{conflict, missing};
use crate::clock::{now, rfc3339};
use crate::deploy::{Terms, named, state};
use crate::http::problem::Problem;
use crate::state::App;

fn unknown(name: &AccountName) -> Problem {
    missing("warm_up_not_found", format!("there is no warm-up policy {name}"))
}

/// Whoever made a policy may do all with it while its image may be had; others what they may do with
/// the image.
fn may(caller: &Caller, row: &metadata::WarmUp, action: Action) -> Result<(), Problem> {
    caller.permit_about(&row.image, (row.created_by.as_str(), row.created_at), action)
}

fn permitted(
    caller: &Caller,
    name: &AccountName,
    action: Action,
) -> Result<metadata::WarmUp, Problem> {
    let row = caller.view.query().warm_up(name)?.ok_or_else(|| unknown(name))?;
    may(caller, &row, action).map_err(|problem| match problem.status {
        StatusCode::NOT_FOUND => unknown(name),
        _ => problem,
    })?;
    Ok(row)
}

fn terms(app: &App) -> Terms {
    Terms { scanner: app.services.scanner.clone(), orders: app.config.accounts.orders }
}

fn shown<R: Read>(
    query: Metadata<'_, R>,
    row: metadata::WarmUp,
    terms: &Terms,
) -> Result<WarmUp, Problem> {
    let trouble = named(query, &row, now(), terms).err().map(|trouble| trouble.to_string());
    let ordered = match row.deployment {
        Some(id) => query.deployment(id)?.map(|ordered| (id, ordered)),
        None => None,
    };
    let state = match &ordered {
        Some((id, ordered)) => {
            let plan = query.deployment_plan(*id)?.unwrap_or_default();
            Some(state(ordered, plan.paused).to_owned())
        }
        None => None,
    };
    Ok(WarmUp {
        name: row.name,
        reference: ImageReference { name: row.image, pin: Pin::Tag(row.tag) },
        selector: row.selector.into(),
        priority: row.priority,
        parallel: row.parallel,
        created_at: rfc3339(row.created_at),
        created_by: row.created_by,
        deployment: row.deployment,
        state,
        trouble,
    })
}

pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Body(request): Body<CreateWarmUp>,
) -> Result<(StatusCode, Json<WarmUp>), Problem> {
    let created_by = caller.account()?;
    caller.orders(&app)?;
    let caller = brought(&app, caller, &request.reference).await?;
    let (image, _) = resolved(&caller.view, &caller.who(), &request.reference, Action::Pull)?;
    let Pin::Tag(tag) = request.reference.pin else {
        let text = "a digest never moves: name a tag, or deploy it once";
        return Err(Problem::bad_request("reference_invalid", text));
    };
    let selector: Labels = request
        .selector
        .parse()
        .map_err(|error| Problem::bad_request("selector_invalid", format!("{error}")))?;
    let policy = metadata::WarmUp {
        name: request.name,
        image: image.name,
        tag,
        selector,
        priority: request.priority,
        parallel: checked_parallel(request.parallel)?,
        created_at: now(),
        created_by,
        deployment: None,
    };
    drop(caller);
    let name = policy.name.clone();
    app.propose(Command::CreateWarmUp(policy)).await.map_err(|error| match error {
        ProposeError::Refused(Refusal::Exists(_)) => {
            conflict("warm_up_exists", format!("there is a warm-up policy {name} already"))
        }
        error => error.into(),
    })?;
    let view = app.view().await?;
    let row = view.query().warm_up(&name)?.ok_or_else(|| unknown(&name))?;
    Ok((StatusCode::CREATED, Json(shown(view.query(), row, &terms(&app))?)))
}

pub async fn list(State(app): State<App>, caller: Caller) -> Result<Json<Vec<WarmUp>>, Problem> {
    let (query, terms) = (caller.view.query(), terms(&app));
    let rows = query.warm_ups()?.into_iter();
    let seen = rows.filter(|row| may(&caller, row, Action::List).is_ok());
    seen.map(|row| shown(query, row, &terms)).collect::<Result<_, _>>().map(Json)
}

pub async fn show(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<AccountName>,
) -> Result<Json<WarmUp>, Problem> {
    let row = permitted(&caller, &name, Action::List)?;
    shown(caller.view.query(), row, &terms(&app)).map(Json)
}

/// What it has ordered goes on.
pub async fn remove(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<AccountName>,
) -> Result<StatusCode, Problem> {
    permitted(&caller, &name, Action::Manage)?;
    caller.account()?;
    drop(caller);
    app.propose(Command::RemoveWarmUp { name }).await?;
    Ok(StatusCode::NO_CONTENT)
}
