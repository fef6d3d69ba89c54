//! Accounts that people make for themselves, where the settings let them (`accounts.registration`).
//!
//! Invariants: each attempt counts against its address before the name is looked at, in the whole
//! cluster, whatever becomes of it; so an address finds out about fewer names in an hour than
//! `lockout.address_registrations`, and is blocked then. Nobody hears sooner than after a password's
//! hash whether a name is taken. Such an account has no role, and no right in a place that
//! was not given to it; what any account may, it may as well: have projects of its own, and order onto hosts
//! where `accounts.orders` says so.
//! Non-goals: the names of people who are known elsewhere; the settings allow either this or those.

use std::net::SocketAddr;

use axum::Json;
use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;
use shoal_api::{Register, User};
use shoal_metadata::{self as metadata, AuditResult, Command, Refusal, Subject, Suspect, UserRole};
use shoal_raft::ProposeError;
use zeroize::Zeroizing;

use super::input::Body;
use super::problem::{conflict, missing};
use super::users::{check_email, check_email_kept, check_new_password, keep_email, with_email};
use crate::clock::now;
use crate::config::Registration;
use crate::http::problem::Problem;
use crate::state::App;

/// What the trail calls an attempt that came to nothing.
const ATTEMPT: &str = "user.register";

/// `POST /api/v1/auth/register`.
pub async fn register(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    Body(request): Body<Register>,
) -> Result<(StatusCode, Json<User>), Problem> {
    if app.config.accounts.registration == Registration::Closed {
        let text = "accounts are made by administrators here";
        return Err(missing("registration_closed", text));
    }
    let name = request.username.to_string();
    let password = Zeroizing::new(request.password.0);
    let email = request.email.unwrap_or_default();
    let view = app.view().await?;
    app.lockout.check_address(view.query(), Some(client.ip()))?;
    drop(view);
    check_email(&email)?;
    if !email.is_empty() {
        check_email_kept(&app).await?;
    }
    check_new_password(&name, &password)?;
    count(&app, client, &name).await?;
    let password_hash = app.accounts.hash(Some(client.ip()), password).await?;
    let row = metadata::User {
        name: name.clone(),
        password_hash,
        role: UserRole::User,
        created_at: now(),
    };
    app.propose(Command::CreateUser(row.clone())).await.map_err(|error| match error {
        ProposeError::Refused(Refusal::Exists(Subject::User)) => {
            conflict("user_exists", "somebody has this name already; choose another one")
        }
        error => error.into(),
    })?;
    let kept = keep_email(&app, &name, email).await;
    Ok((StatusCode::CREATED, Json(with_email(&row, kept))))
}

/// # Errors
/// 403 where this was one too many.
async fn count(app: &App, client: SocketAddr, name: &str) -> Result<(), Problem> {
    if app.lockout.is_exempt(client.ip()) {
        return Ok(());
    }
    let settings = &app.config.lockout;
    let counted = Command::NoteRegistration {
        address: Suspect::address(client.ip()),
        limit: settings.address_registrations,
        window_ms: settings.registration_window_seconds.saturating_mul(1000),
    };
    // Not a change of anybody's: what comes of it is in the trail.
    app.raft.propose(now(), counted).await?;
    let view = app.view().await?;
    app.lockout.check_address(view.query(), Some(client.ip())).inspect_err(|problem| {
        let refused = AuditResult::Refused(problem.message.clone());
        app.services.audit.note(ATTEMPT, Suspect::account(name).to_string(), refused);
    })
}
