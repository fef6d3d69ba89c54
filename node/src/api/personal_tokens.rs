//! A person's own tokens, for programs that act for it: made here, shown once.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use shoal_api::{CreatePersonalToken, Hidden, PersonalToken, PersonalTokenCreated};
use shoal_content::{AccountName, Timestamp};
use shoal_metadata::{self as metadata, Command, Scope};

use super::caller::Caller;
use super::input::{Body, Path};
use crate::clock::{now, rfc3339};
use crate::http::auth::PERSONAL_TOKEN_PREFIX;
use crate::http::problem::Problem;
use crate::state::App;

const NAME_CHARS_MAX: usize = 100;
const TTL_SECONDS_MAX: u64 = 10 * 366 * 24 * 3600;

/// The scopes that are asked for. Reading comes with writing and deleting: clients of registries look
/// what is there before they send or delete something, and give up where they may not.
///
/// # Errors
/// Where a scope is none.
pub(super) fn scopes_of(texts: &BTreeSet<String>) -> Result<BTreeSet<Scope>, Problem> {
    let parse = |text: &String| text.parse();
    let scopes: Result<BTreeSet<Scope>, String> = texts.iter().map(parse).collect();
    let mut scopes = scopes.map_err(|error| Problem::bad_request("scope_invalid", error))?;
    let reads = [Scope::Write, Scope::Delete].iter().any(|scope| scopes.contains(scope));
    if reads || scopes.is_empty() {
        scopes.insert(Scope::Read);
    }
    Ok(scopes)
}

pub(super) fn scope_names(scopes: &BTreeSet<Scope>) -> BTreeSet<String> {
    scopes.iter().map(|scope| scope.as_str().to_owned()).collect()
}

/// When something ends that lives so long from `at`; `None` is never.
pub(super) fn end(at: Timestamp, ttl_seconds: Option<u64>) -> Result<Option<Timestamp>, Problem> {
    match ttl_seconds {
        None => Ok(None),
        Some(ttl) if (1..=TTL_SECONDS_MAX).contains(&ttl) => {
            Ok(Some(at.plus_millis(ttl.saturating_mul(1000))))
        }
        Some(_) => {
            let text = format!("ttl_seconds is from 1 to {TTL_SECONDS_MAX}");
            Err(Problem::bad_request("ttl_invalid", text))
        }
    }
}

pub(super) fn shown(row: &metadata::PersonalToken) -> PersonalToken {
    PersonalToken {
        id: row.id.clone(),
        name: row.name.clone(),
        scopes: scope_names(&row.scopes),
        created_at: rfc3339(row.created_at),
        expires_at: row.expires_at.map(rfc3339),
        last_used_at: row.last_used_at.map(rfc3339),
    }
}

fn account(caller: &Caller) -> Result<AccountName, Problem> {
    let name = caller.person()?.parse();
    name.map_err(|error| Problem::bad_request("name_invalid", format!("{error}")))
}

pub async fn list(caller: Caller) -> Result<Json<Vec<PersonalToken>>, Problem> {
    let rows = caller.view.query().personal_tokens(&account(&caller)?)?;
    Ok(Json(rows.iter().map(shown).collect()))
}

/// A token makes no further ones, which would be good for more than it and outlive it.
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Body(request): Body<CreatePersonalToken>,
) -> Result<(StatusCode, Json<PersonalTokenCreated>), Problem> {
    let user = account(&caller)?;
    caller.itself()?;
    drop(caller);
    let name = request.name.trim().to_owned();
    let good = !name.is_empty() && !name.contains(char::is_control);
    if !good || name.chars().count() > NAME_CHARS_MAX {
        let text = format!("a token has a name of at most {NAME_CHARS_MAX} characters");
        return Err(Problem::bad_request("name_invalid", text));
    }
    let at = now();
    let secret = format!("{PERSONAL_TOKEN_PREFIX}{}", hex::encode(rand::random::<[u8; 16]>()));
    let row = metadata::PersonalToken {
        id: hex::encode(rand::random::<[u8; 8]>()),
        user,
        name,
        secret_hash: *blake3::hash(secret.as_bytes()).as_bytes(),
        scopes: scopes_of(&request.scopes)?,
        created_at: at,
        expires_at: end(at, request.ttl_seconds)?,
        last_used_at: None,
    };
    let info = shown(&row);
    app.propose(Command::CreatePersonalToken(row)).await?;
    Ok((StatusCode::CREATED, Json(PersonalTokenCreated { info, token: Hidden(secret) })))
}

pub async fn remove(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    let user = account(&caller)?;
    caller.scope(Scope::Admin)?;
    drop(caller);
    app.propose(Command::RemovePersonalToken { user, id }).await?;
    Ok(StatusCode::NO_CONTENT)
}
