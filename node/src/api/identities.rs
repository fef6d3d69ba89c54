//! Whom other issuers vouch for, and which account here they are: linked by administrators, where
//! accounts are not made at the first login.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use shoal_api::Identity;
use shoal_metadata::{self as metadata, Action, Command, Refusal, Subject, What};
use shoal_raft::ProposeError;

use super::caller::{Admin, Caller};
use super::input::{Body, Path};
use super::problem::{conflict, missing};
use crate::clock::{now, rfc3339};
use crate::http::problem::Problem;
use crate::state::App;

fn no_user() -> Problem {
    missing("user_not_found", "there is no such user")
}

pub(super) fn shown(row: metadata::Identity) -> Identity {
    Identity { issuer: row.issuer, subject: row.subject, linked_at: rfc3339(row.linked_at) }
}

pub async fn list(
    caller: Caller,
    Path(user): Path<String>,
) -> Result<Json<Vec<Identity>>, Problem> {
    if caller.person().ok() != Some(&user) {
        caller.permit(Action::Audit, What::System)?;
    }
    caller.view.query().user(&user)?.ok_or_else(no_user)?;
    let rows = caller.view.query().identities_of(&user)?;
    Ok(Json(rows.into_iter().map(shown).collect()))
}

pub async fn link(
    State(app): State<App>,
    _caller: Admin,
    Path(user): Path<String>,
    Body(Identity { issuer, subject, .. }): Body<Identity>,
) -> Result<StatusCode, Problem> {
    let identity = metadata::Identity { issuer, subject, user, linked_at: now() };
    let linked = app.propose(Command::LinkIdentity { identity, create: None }).await;
    linked.map_err(|error| match error {
        ProposeError::Refused(Refusal::NotFound(_)) => no_user(),
        ProposeError::Refused(Refusal::Exists(Subject::Identity)) => {
            conflict("identity_taken", "this identity is an account's already")
        }
        error => error.into(),
    })?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn unlink(
    State(app): State<App>,
    _caller: Admin,
    Path(user): Path<String>,
    Body(Identity { issuer, subject, .. }): Body<Identity>,
) -> Result<StatusCode, Problem> {
    let none = || missing("identity_not_found", "the account has no such identity");
    let found = app.view().await?.query().identity(&issuer, &subject)?;
    if found.is_none_or(|found| found.user != user) {
        return Err(none());
    }
    app.propose(Command::UnlinkIdentity { issuer, subject }).await?;
    Ok(StatusCode::NO_CONTENT)
}
