//! Passkeys: logging in with one, one's own, and those of somebody who has lost them.
//!
//! Invariants: a passkey, which is a login of its own, is registered by its person alone: with the
//! password, where there is one, and by no token that acts for it. Whoever may log in shows at the end
//! of a login only.
//! Non-goal: what is asked of an authenticator, and whether its answer is good; see
//! `http::auth::passkey`.

use std::net::SocketAddr;

use axum::Json;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode};
use shoal_api::{
    BeginPasskeyLogin, CurrentPassword, LoginResponse, Passkey, PasskeyChallenge, PasskeyLogin,
    RegisterPasskey, UpdatePasskey,
};
use shoal_metadata::{self as metadata, Action, Command, Refusal, Subject, What};
use shoal_raft::ProposeError;

use super::caller::{Admin, Caller};
use super::input::{Body, Path};
use super::problem::{conflict, missing};
use super::session::{answer, begun, from_seconds};
use super::users::check_password;
use crate::clock::{now, rfc3339};
use crate::http::auth::passkey::{Asked, Awaited, ask, ask_for_new, made, party, take_passkey};
use crate::http::problem::Problem;
use crate::state::App;

const NAME_CHARS_MAX: usize = 100;

fn none() -> Problem {
    missing("passkey_not_found", "there is no such passkey")
}

fn asked(Asked { challenge, options, expires }: Asked) -> PasskeyChallenge {
    PasskeyChallenge { challenge, options, expires_at: from_seconds(expires) }
}

/// Asks for a passkey: of anybody, of somebody, or after a password.
pub async fn begin_login(
    State(app): State<App>,
    Body(request): Body<BeginPasskeyLogin>,
) -> Result<Json<PasskeyChallenge>, Problem> {
    let awaited = match (request.ticket, request.username) {
        (Some(ticket), None) => Awaited::AfterPassword(ticket),
        (None, Some(name)) if name.chars().count() <= NAME_CHARS_MAX => Awaited::Account(name),
        (None, None) => Awaited::Anybody,
        _ => {
            let text = "a name or a ticket, or neither";
            return Err(Problem::bad_request("name_invalid", text));
        }
    };
    let view = app.view().await?;
    ask(&app, &view, awaited).map(asked).map(Json)
}

/// A whole login, or the second step of one.
pub async fn end_login(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    Body(request): Body<PasskeyLogin>,
) -> Result<Json<LoginResponse>, Problem> {
    let PasskeyLogin { challenge, credential } = request;
    let (user, means) =
        Box::pin(take_passkey(&app, Some(client.ip()), &challenge, credential)).await?;
    begun(&app, &user, means, client, &headers).await.map(answer)
}

pub(super) fn shown(row: &metadata::Passkey) -> Passkey {
    Passkey {
        id: row.id.clone(),
        name: row.name.clone(),
        second_factor: row.second_factor,
        created_at: rfc3339(row.created_at),
        last_used_at: row.last_used_at.map(rfc3339),
    }
}

pub(super) fn listed(caller: &Caller, user: &str) -> Result<Json<Vec<Passkey>>, Problem> {
    Ok(Json(caller.view.query().passkeys(user)?.iter().map(shown).collect()))
}

/// One's own.
pub async fn list(caller: Caller) -> Result<Json<Vec<Passkey>>, Problem> {
    listed(&caller, caller.person()?)
}

pub async fn list_of(
    caller: Caller,
    Path(user): Path<String>,
) -> Result<Json<Vec<Passkey>>, Problem> {
    caller.permit(Action::Audit, What::System)?;
    if caller.view.query().user(&user)?.is_none() {
        return Err(missing("user_not_found", "there is no such user"));
    }
    listed(&caller, &user)
}

pub async fn begin(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    caller: Caller,
    Body(request): Body<CurrentPassword>,
) -> Result<Json<PasskeyChallenge>, Problem> {
    let user = caller.itself()?.to_owned();
    party(&app.config)?;
    check_password(&app, &caller, client, &user, request.current_password).await?;
    let query = caller.view.query();
    let (owner, passkeys) = (query.passkey_owner(&user)?, query.passkeys(&user)?);
    ask_for_new(&app, &user, owner, &passkeys).map(asked).map(Json)
}

fn checked_name(name: &str) -> Result<String, Problem> {
    let name = name.trim();
    let good = !name.is_empty() && !name.contains(char::is_control);
    if !good || name.chars().count() > NAME_CHARS_MAX {
        let text = format!("a passkey has a name of at most {NAME_CHARS_MAX} characters");
        return Err(Problem::bad_request("name_invalid", text));
    }
    Ok(name.to_owned())
}

fn refused(error: ProposeError) -> Problem {
    match error {
        ProposeError::Refused(Refusal::Exists(Subject::Passkey)) => {
            conflict("passkey_exists", "there is such a passkey already, or one of that name")
        }
        ProposeError::Refused(Refusal::NotFound(Subject::Passkey)) => none(),
        ProposeError::Refused(refusal @ Refusal::ChallengeUsed) => {
            Problem::bad_request("challenge_over", refusal.to_string())
        }
        error => error.into(),
    }
}

/// The authenticator has made it.
pub async fn register(
    State(app): State<App>,
    caller: Caller,
    Body(request): Body<RegisterPasskey>,
) -> Result<(StatusCode, Json<Passkey>), Problem> {
    let user = caller.itself()?.to_owned();
    drop(caller);
    let RegisterPasskey { challenge, name, second_factor, credential } = request;
    let made = made(&app, &user, &challenge, credential)?;
    let at = now();
    let passkey = metadata::Passkey {
        id: hex::encode(rand::random::<[u8; 8]>()),
        user,
        name: checked_name(&name)?,
        credential: made.credential,
        key: made.key,
        counter: 0,
        second_factor,
        created_at: at,
        last_used_at: None,
        uses: 0,
        uses_since: at,
    };
    let info = shown(&passkey);
    let command = Command::AddPasskey { passkey, owner: made.owner };
    app.propose(command).await.map_err(refused)?;
    Ok((StatusCode::CREATED, Json(info)))
}

pub async fn update(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    caller: Caller,
    Path(id): Path<String>,
    Body(request): Body<UpdatePasskey>,
) -> Result<Json<Passkey>, Problem> {
    let user = caller.itself()?.to_owned();
    let UpdatePasskey { name, second_factor, current_password } = request;
    let row = caller.view.query().passkey(&user, &id)?.ok_or_else(none)?;
    if second_factor.is_some() {
        check_password(&app, &caller, client, &user, current_password).await?;
    }
    drop(caller);
    let name = name.as_deref().map(checked_name).transpose()?;
    let changed = metadata::Passkey {
        name: name.clone().unwrap_or(row.name),
        second_factor: second_factor.unwrap_or(row.second_factor),
        ..row
    };
    let command = Command::UpdatePasskey { user, id, name, second_factor };
    app.propose(command).await.map_err(refused)?;
    Ok(Json(shown(&changed)))
}

pub async fn remove(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    caller: Caller,
    Path(id): Path<String>,
    Body(request): Body<CurrentPassword>,
) -> Result<StatusCode, Problem> {
    let user = caller.itself()?.to_owned();
    if caller.view.query().passkey(&user, &id)?.is_none() {
        return Err(none());
    }
    check_password(&app, &caller, client, &user, request.current_password).await?;
    drop(caller);
    let command = Command::RemovePasskeys { user, id: Some(id) };
    app.propose(command).await.map_err(refused)?;
    Ok(StatusCode::NO_CONTENT)
}

/// All of somebody's who has lost them.
pub async fn remove_of(
    State(app): State<App>,
    _caller: Admin,
    Path(user): Path<String>,
) -> Result<StatusCode, Problem> {
    let command = Command::RemovePasskeys { user, id: None };
    app.propose(command).await.map_err(refused)?;
    Ok(StatusCode::NO_CONTENT)
}
