//! The sessions of people, and the second step of a login.
//!
//! Invariants: a session's token is good while its row is there, at every node; between the two
//! steps of a login there is a ticket that is good for nothing else, and ends with the password
//! that it was got by; a code that is wrong counts like a wrong password.

use std::net::IpAddr;
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode, header};
use shoal_content::Timestamp;
use shoal_metadata::{
    AuditResult, Command, LoginMeans, Proof, Query, Read, Refusal, SecondFactor, Session, Suspect,
    User, command_version,
};
use shoal_raft::ProposeError;

use super::{Principal, barred, one_time, token};
use crate::clock::now;
use crate::http::problem::Problem;
use crate::state::App;

/// Between the two steps of a login.
pub const TICKET_TTL: Duration = Duration::from_secs(300);
/// Of a session's id, before encoding.
pub const SESSION_ID_BYTES: usize = 8;
/// What somebody may type as a code, in bytes.
const CODE_BYTES_MAX: usize = 64;

/// A token and the second it expires in.
pub struct Begun {
    pub token: String,
    pub expires: u64,
}

impl std::fmt::Debug for Begun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Begun").field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// What a browser or program calls itself.
pub fn agent_of(headers: &HeaderMap) -> String {
    let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
    agent.unwrap_or_default().to_owned()
}

/// Whether every node knows of sessions; else tokens are given without one.
pub fn are_known(app: &App) -> bool {
    let needed = command_version(&Command::RemoveSecondFactor { user: String::new() });
    app.raft.local().query().level().is_ok_and(|level| level >= needed)
}

/// What a new session is called by.
pub fn session_id() -> String {
    hex::encode(rand::random::<[u8; SESSION_ID_BYTES]>())
}

/// Begins a session of the user's.
///
/// # Errors
/// Where it cannot be proposed; 409 where the user has one of that id.
pub async fn begin_session(
    app: &App,
    id: String,
    user: &User,
    means: LoginMeans,
    client: Option<IpAddr>,
    agent: String,
) -> Result<Begun, Problem> {
    let mut principal =
        Principal::User { name: user.name.clone(), role: user.role, token: None, session: None };
    let mut until = None;
    if are_known(app) {
        let settings = &app.config.sessions;
        let at = now();
        let row = Session {
            id,
            user: user.name.clone(),
            created_at: at,
            expires_at: at.plus_millis(settings.lifetime_seconds.saturating_mul(1000)),
            address: client.map(|client| client.to_canonical().to_string()).unwrap_or_default(),
            agent,
            means,
        };
        until = Some(row.expires_at);
        if let Principal::User { session, .. } = &mut principal {
            *session = Some(row.id.clone());
        }
        let limit = settings.per_person;
        app.propose(Command::BeginSession { session: row, limit }).await?;
    }
    go_on(app, &principal, until)
}

/// Another token of the session that the principal came with.
///
/// # Errors
/// Where signing fails.
pub fn go_on(app: &App, principal: &Principal, until: Option<Timestamp>) -> Result<Begun, Problem> {
    let (token, expires) = token::issue_until(app, Some(principal), None, until)?;
    Ok(Begun { token, expires })
}

/// The factor, where it is asked for.
pub fn confirmed<R: Read>(
    query: Query<'_, R>,
    user: &str,
) -> Result<Option<SecondFactor>, Problem> {
    let factor = query.second_factor(user)?;
    Ok(factor.filter(|factor| factor.confirmed_at.is_some()))
}

fn wrong_code() -> Problem {
    let message = "the code is wrong, was used already, or is too old";
    Problem { code: "code_wrong", message: message.into(), ..Problem::unauthorized() }
}

/// Takes a code by time or a recovery code of the user's, once.
///
/// # Errors
/// 401 for one that is not good; 403 where too many were tried; 404 where there is no second
/// factor.
pub async fn take_code(
    app: &App,
    client: Option<IpAddr>,
    user: &str,
    code: &str,
) -> Result<LoginMeans, Problem> {
    let view = app.view().await?;
    barred(app, app.lockout.check_address(view.query(), client))?;
    barred(app, app.lockout.check_account(view.query(), user))?;
    let factor =
        confirmed(view.query(), user)?.ok_or_else(|| Problem::not_found("second factor"))?;
    let proof = proof_of(app, user, &factor, code)?;
    drop(view);
    let failed = || {
        app.metrics.login_failed("code");
        app.lockout.note_password(user, client);
        let name = Suspect::account(user).to_string();
        let wrong = AuditResult::Refused("the code is wrong".to_owned());
        app.services.audit.note("session.login", name, wrong);
        wrong_code()
    };
    let proof = proof.ok_or_else(failed)?;
    let means = match proof {
        Proof::Step(_) => LoginMeans::PasswordAndCode,
        Proof::Recovery(_) => LoginMeans::PasswordAndRecoveryCode,
    };
    match app.propose(Command::UseSecondFactor { user: user.to_owned(), proof }).await {
        Ok(_) => Ok(means),
        Err(ProposeError::Refused(Refusal::CodeUsed | Refusal::NotFound(_))) => Err(failed()),
        Err(error) => Err(error.into()),
    }
}

/// What is right about the code, if anything.
pub fn proof_of(
    app: &App,
    user: &str,
    factor: &SecondFactor,
    code: &str,
) -> Result<Option<Proof>, Problem> {
    let code = code.trim();
    if code.len() > CODE_BYTES_MAX {
        return Ok(None);
    }
    let secret = one_time::open(&app.keys.sealing, user, &factor.secret);
    let secret = secret.map_err(|error| Problem::internal(&error))?;
    if let Some(step) = one_time::step_of(&secret, code, now().as_millis() / 1000) {
        return Ok(Some(Proof::Step(step)));
    }
    let hash = one_time::recovery_hash(code);
    Ok(factor.recovery.contains(&hash).then_some(Proof::Recovery(hash)))
}

/// What a ticket is bound to: the password that it was got by, and the codes that may be asked for.
fn binding(user: &User, factor: Option<&SecondFactor>) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("shoal 2026 login ticket");
    hasher.update(&user.password_hash.0);
    if let Some(factor) = factor {
        hasher.update(&factor.secret.0);
    }
    hex::encode(&hasher.finalize().as_bytes()[..16])
}

/// A ticket for the second step, and the second it expires in.
///
/// # Errors
/// Where signing fails, or the rows cannot be read.
pub fn issue_ticket<R: Read>(
    app: &App,
    query: Query<'_, R>,
    user: &User,
) -> Result<(String, u64), Problem> {
    let factor = confirmed(query, &user.name)?;
    token::issue_ticket(app, &user.name, binding(user, factor.as_ref()), TICKET_TTL)
}

/// Whose ticket it is.
///
/// # Errors
/// 401 for one that is forged, too old, or of a password that was changed.
pub fn read_ticket<R: Read>(app: &App, query: Query<'_, R>, ticket: &str) -> Result<User, Problem> {
    let over = || Problem {
        code: "ticket_invalid",
        message: "the login took too long; begin again with the password".into(),
        ..Problem::new(StatusCode::UNAUTHORIZED, "ticket_invalid", "")
    };
    let (name, bound) = token::read_ticket(app, ticket).ok_or_else(over)?;
    let user = query.user(&name)?.ok_or_else(over)?;
    let factor = confirmed(query, &name)?;
    let same = binding(&user, factor.as_ref()) == bound;
    if same && query.needs_second_factor(&name)? { Ok(user) } else { Err(over()) }
}
