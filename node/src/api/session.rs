//! Logging in and out, who one is, and one's sessions.

use std::net::SocketAddr;

use axum::Json;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use shoal_api::{LoginCode, LoginPending, LoginRequest, LoginResponse, Me, Session};
use shoal_content::Timestamp;
use shoal_metadata::{
    self as metadata, Action, AuditResult, Command, LoginMeans, Scope, UserRole, What,
};
use shoal_raft::View;
use zeroize::Zeroizing;

use super::caller::{Admin, Caller};
use super::input::{Body, Path};
use super::problem::missing;
use crate::clock::{now, rfc3339};
use crate::http::auth::session::{
    Begun, agent_of, begin_session, confirmed, go_on, issue_ticket, read_ticket, session_id,
    take_code,
};
use crate::http::auth::{Principal, first_factor, issue_token, view_with};
use crate::http::problem::Problem;
use crate::state::App;

pub(super) fn answer(Begun { token, expires }: Begun) -> Json<LoginResponse> {
    Json(LoginResponse { token, expires_at: from_seconds(expires) })
}

pub(super) fn from_seconds(seconds: u64) -> String {
    rfc3339(Timestamp::from_millis(seconds.saturating_mul(1000)))
}

/// The whole of a login where a password is enough, and the first step of one where it is not.
pub async fn login(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    Body(request): Body<LoginRequest>,
) -> Result<Response, Problem> {
    let password = Zeroizing::new(request.password);
    let view = app.view().await?;
    let from = Some(client.ip());
    let principal = first_factor(&app, &view, from, &request.username, password).await?;
    let view = view_with(&app, view, Some(&principal)).await?;
    let name = principal.name();
    let user = match &principal {
        Principal::User { token: None, .. } => view.query().user(&name)?,
        _ => None,
    };
    let Some(user) = user else {
        // A program's secret was brought: its token says so, and there is no session.
        crate::http::noted::note_user(|| name.clone());
        app.services.audit.note("session.login", name, AuditResult::Done);
        let (token, expires) = issue_token(&app, Some(&principal), None)?;
        return Ok(answer(Begun { token, expires }).into_response());
    };
    if view.query().needs_second_factor(&name)? {
        let (ticket, expires) = issue_ticket(&app, view.query(), &user)?;
        let methods = second_steps(&view, &name)?;
        let pending = LoginPending { ticket, expires_at: from_seconds(expires), methods };
        return Ok((StatusCode::ACCEPTED, Json(pending)).into_response());
    }
    drop(view);
    let begun = begun(&app, &user, LoginMeans::Password, client, &headers).await?;
    Ok(answer(begun).into_response())
}

/// What may be brought after the password.
fn second_steps(view: &View, user: &str) -> Result<Vec<String>, Problem> {
    let code = confirmed(view.query(), user)?.map(|_| "code");
    let passkey = view.query().passkeys(user)?.first().map(|_| "passkey");
    Ok(code.into_iter().chain(passkey).map(str::to_owned).collect())
}

pub(super) async fn begun(
    app: &App,
    user: &metadata::User,
    means: LoginMeans,
    client: SocketAddr,
    headers: &HeaderMap,
) -> Result<Begun, Problem> {
    crate::http::noted::note_user(|| user.name.clone());
    app.services.audit.note("session.login", user.name.clone(), AuditResult::Done);
    let (id, agent) = (session_id(), agent_of(headers));
    begin_session(app, id, user, means, Some(client.ip()), agent).await
}

/// The second step.
pub async fn login_code(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    Body(request): Body<LoginCode>,
) -> Result<Json<LoginResponse>, Problem> {
    let code = Zeroizing::new(request.code);
    let view = app.view().await?;
    let user = read_ticket(&app, view.query(), &request.ticket)?;
    drop(view);
    let means = take_code(&app, Some(client.ip()), &user.name, &code).await?;
    begun(&app, &user, means, client, &headers).await.map(answer)
}

/// A new token for the session that asks, before its old one expires.
pub async fn refresh(
    State(app): State<App>,
    caller: Caller,
) -> Result<Json<LoginResponse>, Problem> {
    let unfit = || Problem::forbidden("only a session is renewed; log in with the password");
    let id = own(&caller).ok_or_else(unfit)?;
    let row = caller.view.query().session(caller.person()?, &id)?.ok_or_else(unfit)?;
    go_on(&app, &caller.principal, Some(row.expires_at)).map(answer)
}

/// Ends the session that asks.
pub async fn logout(State(app): State<App>, caller: Caller) -> Result<StatusCode, Problem> {
    if let Some(id) = own(&caller) {
        let user = caller.person()?.to_owned();
        drop(caller);
        app.propose(Command::EndSession { user, id }).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

fn own(caller: &Caller) -> Option<String> {
    match &caller.principal {
        Principal::User { session, .. } => session.clone(),
        _ => None,
    }
}

fn shown(row: &metadata::Session, current: Option<&str>) -> Session {
    Session {
        id: row.id.clone(),
        created_at: rfc3339(row.created_at),
        expires_at: rfc3339(row.expires_at),
        address: row.address.clone(),
        agent: row.agent.chars().filter(|c| !c.is_control()).collect(),
        means: match &row.means {
            LoginMeans::Password => "password".to_owned(),
            LoginMeans::PasswordAndCode => "password+code".to_owned(),
            LoginMeans::PasswordAndRecoveryCode => "password+recovery-code".to_owned(),
            LoginMeans::Issuer(issuer) => format!("issuer:{issuer}"),
            LoginMeans::Passkey => "passkey".to_owned(),
            LoginMeans::PasswordAndPasskey => "password+passkey".to_owned(),
        },
        current: current == Some(row.id.as_str()),
    }
}

pub(super) fn listed(caller: &Caller, user: &str) -> Result<Json<Vec<Session>>, Problem> {
    let (rows, at) = (caller.view.query().sessions(user)?, now());
    let current = own(caller).filter(|_| caller.person().is_ok_and(|name| name == user));
    let open = rows.iter().filter(|row| row.expires_at > at);
    Ok(Json(open.map(|row| shown(row, current.as_deref())).collect()))
}

/// One's own.
pub async fn sessions(caller: Caller) -> Result<Json<Vec<Session>>, Problem> {
    listed(&caller, caller.person()?)
}

pub async fn end_session(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    let user = caller.person()?.to_owned();
    caller.scope(Scope::Admin)?;
    if caller.view.query().session(&user, &id)?.is_none() {
        return Err(missing("session_not_found", "there is no such session"));
    }
    drop(caller);
    app.propose(Command::EndSession { user, id }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// All others of one's own.
pub async fn end_others(State(app): State<App>, caller: Caller) -> Result<StatusCode, Problem> {
    let user = caller.person()?.to_owned();
    caller.scope(Scope::Admin)?;
    let keep = own(&caller);
    drop(caller);
    app.propose(Command::EndSessions { user, keep }).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn sessions_of(
    caller: Caller,
    Path(user): Path<String>,
) -> Result<Json<Vec<Session>>, Problem> {
    caller.permit(Action::Audit, What::System)?;
    if caller.view.query().user(&user)?.is_none() {
        return Err(missing("user_not_found", "there is no such user"));
    }
    listed(&caller, &user)
}

pub async fn end_all_of(
    State(app): State<App>,
    _caller: Admin,
    Path(user): Path<String>,
) -> Result<StatusCode, Problem> {
    app.propose(Command::EndSessions { user, keep: None }).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn me(principal: Principal) -> Json<Me> {
    let role = match &principal {
        Principal::User { role: UserRole::Admin, .. } => "admin",
        Principal::User { role: UserRole::User, .. } => "user",
        Principal::User { role: UserRole::Auditor, .. } => "auditor",
        Principal::Robot(_) => "robot",
        Principal::Agent(_) => "agent",
        Principal::Node(_) => "node",
    };
    Json(Me { username: principal.name(), role: role.to_owned() })
}
