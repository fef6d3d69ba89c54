//! A person's second factor: begun with the password, confirmed with a first code, taken away with
//! a code, or by an administrator where all of it is lost.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use axum::Json;
use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;
use shoal_api::{BeginSecondFactor, Code, Hidden, RecoveryCodes, SecondFactor, SecondFactorBegun};
use shoal_metadata::{Command, Proof, Refusal, Scope, Subject};
use shoal_raft::ProposeError;
use zeroize::Zeroizing;

use super::caller::{Admin, Caller};
use super::input::{Body, Path};
use super::problem::{conflict, missing};
use crate::clock::rfc3339;
use crate::http::auth::session::{proof_of, take_code};
use crate::http::auth::{one_time, own_password};
use crate::http::problem::Problem;
use crate::state::App;

/// What authenticators show the account under.
const ISSUER: &str = "shoal";

fn none() -> Problem {
    missing("second_factor_not_found", "the account has no second factor")
}

fn person(caller: &Caller) -> Result<String, Problem> {
    let name = caller.person()?.to_owned();
    caller.scope(Scope::Admin)?;
    Ok(name)
}

pub async fn show(caller: Caller) -> Result<Json<SecondFactor>, Problem> {
    shown(&caller)
}

pub(super) fn shown(caller: &Caller) -> Result<Json<SecondFactor>, Problem> {
    let row = caller.view.query().second_factor(caller.person()?)?;
    let row = row.filter(|row| row.confirmed_at.is_some());
    Ok(Json(SecondFactor {
        enabled: row.is_some(),
        confirmed_at: row.as_ref().and_then(|row| row.confirmed_at).map(rfc3339),
        recovery_codes_left: row.map_or(0, |row| row.recovery.len() as u64),
    }))
}

pub async fn begin(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    caller: Caller,
    Body(request): Body<BeginSecondFactor>,
) -> Result<(StatusCode, Json<SecondFactorBegun>), Problem> {
    let user = person(&caller)?;
    let password = Zeroizing::new(request.current_password.0);
    own_password(&app, &caller.view, Some(client.ip()), &user, password).await?;
    drop(caller);
    let secret = Zeroizing::new(rand::random::<[u8; one_time::SECRET_BYTES]>());
    let sealed = one_time::seal(&app.keys.sealing, &user, secret.as_slice());
    let sealed = sealed.map_err(|error| Problem::internal(&error))?;
    let begun = SecondFactorBegun {
        secret: Hidden(one_time::base32(secret.as_slice())),
        address: Hidden(one_time::address(ISSUER, &user, secret.as_slice())),
    };
    let command = Command::BeginSecondFactor { user, secret: sealed };
    app.propose(command).await.map_err(there_already)?;
    Ok((StatusCode::CREATED, Json(begun)))
}

fn there_already(error: ProposeError) -> Problem {
    match error {
        ProposeError::Refused(Refusal::Exists(Subject::SecondFactor)) => {
            conflict("second_factor_exists", "there is a second factor; remove it first")
        }
        error => error.into(),
    }
}

fn made_up() -> (RecoveryCodes, BTreeSet<[u8; 32]>) {
    let codes: Vec<_> = (0..one_time::RECOVERY_CODES).map(|_| one_time::recovery_code()).collect();
    let hashes = codes.iter().map(|code| one_time::recovery_hash(code)).collect();
    let codes = codes.iter().map(|code| Hidden(code.to_string())).collect();
    (RecoveryCodes { codes }, hashes)
}

/// The first code shows that the authenticator has the secret. From then on one is asked for.
pub async fn confirm(
    State(app): State<App>,
    caller: Caller,
    Body(request): Body<Code>,
) -> Result<Json<RecoveryCodes>, Problem> {
    let user = person(&caller)?;
    let row = caller.view.query().second_factor(&user)?.ok_or_else(none)?;
    drop(caller);
    if row.confirmed_at.is_some() {
        // Before the code is looked at: else it could be guessed here.
        return Err(there_already(ProposeError::Refused(Refusal::Exists(Subject::SecondFactor))));
    }
    let code = Zeroizing::new(request.code.0);
    let Some(Proof::Step(step)) = proof_of(&app, &user, &row, &code)? else {
        let text = "the code is not of now; see that the clocks are right";
        return Err(Problem::bad_request("code_wrong", text));
    };
    let (codes, recovery) = made_up();
    let command = Command::ConfirmSecondFactor { user, step, recovery };
    app.propose(command).await.map_err(there_already)?;
    Ok(Json(codes))
}

/// New ones in place of those before.
pub async fn recovery_codes(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    caller: Caller,
    Body(request): Body<Code>,
) -> Result<Json<RecoveryCodes>, Problem> {
    let user = person(&caller)?;
    drop(caller);
    let code = Zeroizing::new(request.code.0);
    take_code(&app, Some(client.ip()), &user, &code).await?;
    let (codes, recovery) = made_up();
    app.propose(Command::PutRecoveryCodes { user, recovery }).await?;
    Ok(Json(codes))
}

pub async fn remove(
    State(app): State<App>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    caller: Caller,
    Body(request): Body<Code>,
) -> Result<StatusCode, Problem> {
    let user = person(&caller)?;
    drop(caller);
    let code = Zeroizing::new(request.code.0);
    take_code(&app, Some(client.ip()), &user, &code).await?;
    app.propose(Command::RemoveSecondFactor { user }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Somebody's who has lost the device and the recovery codes.
pub async fn remove_of(
    State(app): State<App>,
    _caller: Admin,
    Path(user): Path<String>,
) -> Result<StatusCode, Problem> {
    app.propose(Command::RemoveSecondFactor { user }).await.map_err(|error| match error {
        ProposeError::Refused(Refusal::NotFound(_)) => none(),
        error => error.into(),
    })?;
    Ok(StatusCode::NO_CONTENT)
}
