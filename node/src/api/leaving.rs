//! A person's way out: all that is kept about it as one document, and the account's end, which it
//! may still take back for a while.
//!
//! Non-goal: removing the account when its time has come; see `crate::leaving`.

use std::net::SocketAddr;

use axum::Json;
use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Deserialize;
use shoal_api::{AccountExport, Deletion, Hidden};
use shoal_content::AccountName;
use shoal_metadata::{AuditFilter, Command, Fault, Grantee, Owner, Place, Query, Read, Scope};

use super::caller::Caller;
use super::input::Body;
use super::problem::{missing, unavailable};
use super::{audit, identities, passkeys, personal_tokens, second_factor, session, users};
use crate::clock::{now, rfc3339};
use crate::http::problem::Problem;
use crate::state::App;

/// Entries of the trail in one document.
const ENTRIES_MAX: usize = 1000;
/// Entries that are looked at for it.
const LOOKS_MAX: usize = 50_000;

/// `POST /api/v1/user/deletion`. Whoever has a password gives it, here or at a directory that can be
/// asked by the account's name.
#[derive(Deserialize, JsonSchema)]
pub struct Leave {
    #[serde(default)]
    current_password: Option<Hidden>,
}

fn deletion<R: Read>(query: Query<'_, R>, user: &str) -> Result<Deletion, Fault> {
    Ok(Deletion { due_at: query.leaving(user)?.map(|leaving| rfc3339(leaving.due)) })
}

pub async fn show(caller: Caller) -> Result<Json<Deletion>, Problem> {
    Ok(Json(deletion(caller.view.query(), caller.person()?)?))
}

pub async fn leave(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    caller: Caller,
    Body(request): Body<Leave>,
) -> Result<(StatusCode, Json<Deletion>), Problem> {
    let user = caller.person()?.to_owned();
    caller.scope(Scope::Admin)?;
    // A directory that knows people by other names than they have here could not be asked, and must
    // let them go.
    let row = caller.view.query().user(&user)?.ok_or_else(Problem::unauthorized)?;
    if users::has_password(&row) || app.config.ldap.finds_by_account() {
        users::check_password(&app, &caller, client, &user, request.current_password).await?;
    }
    drop(caller);
    let grace = app.config.accounts.deletion_grace_seconds;
    let due = now().plus_millis(grace.saturating_mul(1000));
    app.propose(Command::LeaveLater { user, due }).await?;
    Ok((StatusCode::ACCEPTED, Json(Deletion { due_at: Some(rfc3339(due)) })))
}

pub async fn stay(State(app): State<App>, caller: Caller) -> Result<StatusCode, Problem> {
    let user = caller.person()?.to_owned();
    caller.scope(Scope::Admin)?;
    if caller.view.query().leaving(&user)?.is_none() {
        return Err(missing("deletion_not_found", "nobody asked to remove this account"));
    }
    drop(caller);
    app.propose(Command::Stay { user }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// All that is kept about the person, but for secrets and hashes.
pub async fn export(caller: Caller) -> Result<Json<AccountExport>, Problem> {
    let name = caller.person()?.to_owned();
    caller.scope(Scope::Admin)?;
    let query = caller.view.query();
    let user = query.user(&name)?.ok_or_else(Problem::unauthorized)?;
    let Json(second_factor) = second_factor::shown(&caller)?;
    let Json(passkeys) = passkeys::listed(&caller, &name)?;
    let Json(sessions) = session::listed(&caller, &name)?;
    let account: Option<AccountName> = name.parse().ok();
    let tokens = match &account {
        Some(account) => query.personal_tokens(account)?,
        None => Vec::new(),
    };
    let places = match &account {
        Some(account) => query.places_of(&Grantee::User(account.clone()))?,
        None => Vec::new(),
    };
    let owned_projects = owned(query, &name)?;
    let identities = query.identities_of(&name)?.into_iter().map(identities::shown).collect();
    let deletion = deletion(query, &name)?;
    // What is before is of somebody who had the name.
    let since = Some(user.created_at);
    let filter = AuditFilter { who: Some(name), since, ..AuditFilter::default() };
    let view = caller.view.clone();
    let page =
        tokio::task::spawn_blocking(move || view.query().audit(&filter, ENTRIES_MAX, LOOKS_MAX));
    let page = page.await.map_err(|_| unavailable("the search was given up"))??;
    Ok(Json(AccountExport {
        user: users::shown(query, &user)?,
        second_factor,
        passkeys,
        sessions,
        tokens: tokens.iter().map(personal_tokens::shown).collect(),
        identities,
        places: places.iter().map(named).collect(),
        owned_projects,
        audit: page.entries.into_iter().map(audit::shown).collect(),
        audit_truncated: page.before.is_some(),
        deletion,
    }))
}

fn named(place: &Place) -> String {
    match place {
        Place::Project(name) => format!("project:{name}"),
        Place::Image(id) => format!("image:{id}"),
        Place::Organization(name) => format!("organization:{name}"),
        Place::Group { organization, group } => format!("group:{organization}/{group}"),
    }
}

fn owned<R: Read>(query: Query<'_, R>, user: &str) -> Result<Vec<String>, Fault> {
    let names = query.projects_of(&Owner::User(user.to_owned()), "", usize::MAX)?;
    Ok(names.iter().map(ToString::to_string).collect())
}
