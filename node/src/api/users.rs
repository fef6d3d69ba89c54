//! People's accounts: made by administrators; each may change its own password.

use std::net::SocketAddr;

use axum::Json;
use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use shoal_api::{ChangeEmail, ChangePassword, CreateUser, Hidden, UpdateUser, User, UserCreated};
use shoal_metadata::{
    self as metadata, Action, Command, EMAIL_BYTES_MAX, Fault, Query, Read, Refusal, Secret,
    Subject, UserRole, What, is_email,
};
use shoal_raft::ProposeError;
use tracing::warn;
use zeroize::Zeroizing;

use super::caller::{Admin, Caller};
use super::input::{self, Body, Path};
use super::part::{Part, PartQuery};
use super::problem::{conflict, missing};
use crate::clock::{now, rfc3339};
use crate::http::auth::bcrypt::{COST_MAX, COST_MIN, Hash};
use crate::http::auth::session::are_known;
use crate::http::auth::{Principal, own_password};
use crate::http::problem::Problem;
use crate::state::App;

/// In characters.
const PASSWORD_MIN: usize = 10;
const PASSWORD_MAX: usize = 256;
/// Of a password that is made up, before encoding.
const PASSWORD_BYTES: usize = 15;

fn role_name(role: UserRole) -> &'static str {
    match role {
        UserRole::Admin => "admin",
        UserRole::User => "user",
        UserRole::Auditor => "auditor",
    }
}

fn role_of(text: &str) -> Result<UserRole, Problem> {
    match text {
        "admin" => Ok(UserRole::Admin),
        "user" => Ok(UserRole::User),
        "auditor" => Ok(UserRole::Auditor),
        _ => Err(Problem::bad_request("role_invalid", "role is user, auditor or admin")),
    }
}

pub(super) fn shown<R: Read>(query: Query<'_, R>, row: &metadata::User) -> Result<User, Fault> {
    Ok(with_email(row, query.email(&row.name)?))
}

pub(super) fn with_email(row: &metadata::User, email: Option<String>) -> User {
    User {
        username: row.name.clone(),
        role: role_name(row.role).to_owned(),
        email,
        created_at: rfc3339(row.created_at),
    }
}

pub(super) fn check_email(text: &str) -> Result<(), Problem> {
    if text.is_empty() || is_email(text) {
        return Ok(());
    }
    let text = format!("an e-mail address is NAME@HOST, of {EMAIL_BYTES_MAX} bytes at most");
    Err(Problem::bad_request("email_invalid", text))
}

fn set_email(user: &str, email: String) -> Command {
    Command::SetEmail { user: user.to_owned(), email }
}

/// Before anything else is changed with it: an address that could not be kept is refused.
pub(super) async fn check_email_kept(app: &App) -> Result<(), Problem> {
    let needs = metadata::command_version(&set_email("", String::new()));
    let level = app.view().await?.query().level()?;
    if level < needs {
        return Err(ProposeError::Unsupported { needs, oldest: level }.into());
    }
    Ok(())
}

/// The address of a new account, where there is one and it could be kept.
pub(super) async fn keep_email(app: &App, name: &str, email: String) -> Option<String> {
    if email.is_empty() {
        return None;
    }
    match app.propose(set_email(name, email.clone())).await {
        Ok(_) => Some(email),
        Err(error) => {
            warn!(user = %name, %error, "a new account's e-mail address could not be kept");
            None
        }
    }
}

fn unknown(name: &str) -> Problem {
    let name: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
    missing("user_not_found", format!("there is no user {name}"))
}

/// The row as it is by now.
async fn current(app: &App, name: &str) -> Result<metadata::User, Problem> {
    app.view().await?.query().user(name)?.ok_or_else(|| unknown(name))
}

/// Whether it is good enough.
pub(super) fn check_new_password(name: &str, text: &str) -> Result<(), Problem> {
    let refused = |text: String| Problem::bad_request("password_invalid", text);
    let length = text.chars().count();
    if !(PASSWORD_MIN..=PASSWORD_MAX).contains(&length) {
        let text = format!("a password has from {PASSWORD_MIN} to {PASSWORD_MAX} characters");
        return Err(refused(text));
    }
    let few = text.chars().collect::<std::collections::BTreeSet<_>>().len() < 4;
    if few || text.to_lowercase().contains(&name.to_lowercase()) {
        return Err(refused("the password is too easy to guess; choose another one".to_owned()));
    }
    Ok(())
}

/// Hashed where it is good enough.
async fn hashed(app: &App, name: &str, password: &Hidden) -> Result<Secret, Problem> {
    let text = Zeroizing::new(password.0.clone());
    check_new_password(name, &text)?;
    // Whoever comes so far is known, and waits in turn with everybody.
    app.accounts.hash(None, text).await
}

/// Of a hash that an account comes with, whose password nobody here has seen.
fn check_import(app: &App, hash: &Hidden, beside: bool) -> Result<(), Problem> {
    let refused = |text: String| Err(Problem::bad_request("password_hash_invalid", text));
    if beside {
        return refused("a password or its hash, not both".to_owned());
    }
    if !app.config.accounts.bcrypt {
        return refused("hashes are taken where accounts.bcrypt is true".to_owned());
    }
    if Hash::read(hash.0.as_bytes()).is_none() {
        let text = format!("$2a$, $2b$ or $2y$ (bcrypt), of a cost from {COST_MIN} to {COST_MAX}");
        return refused(text);
    }
    Ok(())
}

/// Whether there is a password here.
pub(super) fn has_password(row: &metadata::User) -> bool {
    row.password_hash.0.starts_with(b"$")
}

/// That it is not somebody at an open browser. Who logs in at another issuer has no password that
/// could be asked for.
///
/// # Errors
/// As of [`own_password`].
pub(super) async fn check_password(
    app: &App,
    caller: &Caller,
    client: SocketAddr,
    user: &str,
    given: Option<Hidden>,
) -> Result<(), Problem> {
    let row = caller.view.query().user(user)?.ok_or_else(Problem::unauthorized)?;
    let directory = app.config.ldap.issuer();
    let identities = caller.view.query().identities_of(user)?;
    let of_directory = identities.iter().any(|identity| identity.issuer == directory);
    if !has_password(&row) && !of_directory {
        return Ok(());
    }
    let given = Zeroizing::new(given.map(|given| given.0).unwrap_or_default());
    own_password(app, &caller.view, Some(client.ip()), user, given).await
}

/// Gives the account another password, and changes nothing else of a row that others may change
/// meanwhile. All its sessions end but `keep`.
async fn put_password(
    app: &App,
    user: String,
    password_hash: Secret,
    keep: Option<String>,
) -> Result<(), Problem> {
    let change = if are_known(app) {
        Command::ChangePassword { user, password_hash, keep }
    } else {
        Command::PutUser(metadata::User { password_hash, ..current(app, &user).await? })
    };
    app.propose(change).await?;
    Ok(())
}

/// By name.
pub async fn list(
    caller: Caller,
    input::Query(wanted): input::Query<PartQuery>,
) -> Result<Part<User>, Problem> {
    caller.permit(Action::Audit, What::System)?;
    let query = caller.view.query();
    let mut rows = query.users_after(&wanted.after, wanted.limit() + 1)?;
    let next = wanted.cut(&mut rows, |row| row.name.clone());
    let found = rows.iter().map(|row| shown(query, row)).collect::<Result<_, Fault>>()?;
    Ok(Part::new("/api/v1/users", &wanted, found, next))
}

pub async fn show(caller: Caller, Path(name): Path<String>) -> Result<Json<User>, Problem> {
    if caller.person().ok() != Some(&name) {
        caller.permit(Action::Audit, What::System)?;
    }
    let row = caller.view.query().user(&name)?.ok_or_else(|| unknown(&name))?;
    Ok(Json(shown(caller.view.query(), &row)?))
}

pub async fn create(
    State(app): State<App>,
    _caller: Admin,
    Body(request): Body<CreateUser>,
) -> Result<(StatusCode, Json<UserCreated>), Problem> {
    let role = role_of(&request.role)?;
    let email = request.email.unwrap_or_default();
    check_email(&email)?;
    if !email.is_empty() {
        check_email_kept(&app).await?;
    }
    let name = request.username.to_string();
    if app.view().await?.query().user(&name)?.is_some() {
        return Err(conflict("user_exists", format!("there is a user {name} already")));
    }
    let imported = request.password_hash.as_ref();
    if let Some(hash) = imported {
        check_import(&app, hash, request.password.is_some())?;
    }
    let made = (request.password.is_none() && imported.is_none()).then(|| {
        Hidden(URL_SAFE_NO_PAD.encode(Zeroizing::new(rand::random::<[u8; PASSWORD_BYTES]>())))
    });
    let password_hash = match (imported, request.password.as_ref().or(made.as_ref())) {
        (Some(hash), _) => Secret(hash.0.clone().into_bytes()),
        (None, Some(password)) => hashed(&app, &name, password).await?,
        (None, None) => return Err(Problem::bad_request("password_invalid", "no password")),
    };
    let row = metadata::User { name: name.clone(), password_hash, role, created_at: now() };
    app.propose(Command::CreateUser(row.clone())).await.map_err(|error| match error {
        ProposeError::Refused(Refusal::Exists(Subject::User)) => {
            conflict("user_exists", format!("there is a user {name} already"))
        }
        error => error.into(),
    })?;
    // The account is there by now, and a password that was made for it is told in this answer alone.
    let user = with_email(&row, keep_email(&app, &name, email).await);
    Ok((StatusCode::CREATED, Json(UserCreated { user, password: made })))
}

pub async fn update(
    State(app): State<App>,
    _caller: Admin,
    Path(name): Path<String>,
    Body(request): Body<UpdateUser>,
) -> Result<Json<User>, Problem> {
    current(&app, &name).await?;
    if let Some(email) = &request.email {
        check_email(email)?;
        check_email_kept(&app).await?;
    }
    let role = request.role.as_deref().map(role_of).transpose()?;
    let password_hash = match &request.password {
        Some(password) => Some(hashed(&app, &name, password).await?),
        None => None,
    };
    // Of a row that is read only now: the hash took its time.
    if let Some(role) = role {
        let changed = metadata::User { role, ..current(&app, &name).await? };
        app.propose(Command::PutUser(changed)).await?;
    }
    if let Some(password_hash) = password_hash {
        put_password(&app, name.clone(), password_hash, None).await?;
    }
    if let Some(email) = request.email {
        app.propose(set_email(&name, email)).await?;
    }
    let view = app.view().await?;
    let row = view.query().user(&name)?.ok_or_else(|| unknown(&name))?;
    Ok(Json(shown(view.query(), &row)?))
}

pub async fn change_password(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    caller: Caller,
    Body(request): Body<ChangePassword>,
) -> Result<StatusCode, Problem> {
    let name = caller.person()?.to_owned();
    caller.scope(metadata::Scope::Admin)?;
    let row = caller.view.query().user(&name)?.ok_or_else(|| unknown(&name))?;
    if !has_password(&row) {
        let text = "the account has no password here; change it where you log in";
        return Err(conflict("password_elsewhere", text));
    }
    let current = Zeroizing::new(request.current_password.0);
    let checked = own_password(&app, &caller.view, Some(client.ip()), &name, current).await;
    checked.map_err(|problem| match problem.status {
        StatusCode::UNAUTHORIZED => {
            Problem { message: "the current password is wrong".into(), ..problem }
        }
        _ => problem,
    })?;
    let password_hash = hashed(&app, &name, &request.new_password).await?;
    let keep = match &caller.principal {
        Principal::User { session, .. } => session.clone(),
        _ => None,
    };
    drop(caller);
    put_password(&app, name, password_hash, keep).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `PUT /api/v1/user/email`.
pub async fn change_email(
    State(app): State<App>,
    caller: Caller,
    Body(request): Body<ChangeEmail>,
) -> Result<StatusCode, Problem> {
    let name = caller.person()?.to_owned();
    caller.scope(metadata::Scope::Admin)?;
    drop(caller);
    check_email(&request.email)?;
    app.propose(set_email(&name, request.email)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn remove(
    State(app): State<App>,
    _caller: Admin,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    app.propose(Command::RemoveUser { name }).await?;
    Ok(StatusCode::NO_CONTENT)
}
