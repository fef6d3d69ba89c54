//! The cluster's certificate authorities: which there are, and how another one takes the place of the one
//! that signs.

use axum::Json;
use axum::extract::State;
use shoal_api::{AuthorityInfo, AuthorityRotation, AuthorityStatus, RotateAuthority};
use shoal_metadata::{
    AuthorityState, AuthorityStep, Command, Query, Read, command_version, signing_authority,
};
use shoal_p2p::identity::{self, AuthorityPin};
use tracing::{info, warn};

use super::caller::{Admin, Reader};
use super::input::Body;
use super::problem::conflict;
use crate::authorities::{self, rotation};
use crate::clock::rfc3339;
use crate::http::problem::Problem;
use crate::state::App;

pub async fn status(
    State(app): State<App>,
    _caller: Reader,
) -> Result<Json<AuthorityStatus>, Problem> {
    Ok(Json(shown(app.view().await?.query())?))
}

pub async fn rotate(
    State(app): State<App>,
    _caller: Admin,
    Body(request): Body<RotateAuthority>,
) -> Result<Json<AuthorityStatus>, Problem> {
    let vault = app.keys.ring.vault();
    // Sealing may have begun a moment ago.
    vault.unlock(&app.raft).await.map_err(|error| Problem::internal(&error))?;
    let view = app.view().await?;
    let step = match view.query().authority_next()? {
        Some(next) if request.now => {
            Command::StepAuthority(AuthorityStep::Hurry { number: next.number })
        }
        Some(next) => {
            let text = format!(
                "authority {} takes the place of the one before already; with 'now' that is cut short",
                next.number
            );
            return Err(conflict("rotation_under_way", text));
        }
        None => {
            let held = app.keys.authorities.refresh(view.query())?;
            rotation::announce(&held, &app.keys.cluster, request.now, vault)?
        }
    };
    if view.query().level()? < command_version(&step) {
        let text =
            "the cluster's level is too low: upgrade all nodes, then 'shoal cluster upgrade'";
        return Err(conflict("level_too_low", text));
    }
    drop(view);
    app.propose(step).await?;
    if request.now {
        warn!("the cluster's authority is replaced at once");
    } else {
        info!("another authority takes the place of the cluster's");
    }
    Ok(Json(shown(app.view().await?.query())?))
}

fn shown<R: Read>(query: Query<'_, R>) -> Result<AuthorityStatus, Problem> {
    let rows = query.authorities()?;
    let signs = signing_authority(&rows);
    let hurried = rows.last().is_some_and(|last| last.hurried);
    let mut all = Vec::with_capacity(rows.len());
    for (at, row) in rows.iter().enumerate() {
        let (state, since) = match row.state {
            AuthorityState::Announced { since } => ("announced", since),
            AuthorityState::Signs { since } if Some(at) == signs => ("signs", since),
            AuthorityState::Signs { since } => ("believed", since),
            AuthorityState::Retired { at, distrusted: false } => ("retired", at),
            AuthorityState::Retired { at, distrusted: true } => ("distrusted", at),
        };
        let broken =
            |error| Problem::from(authorities::Error::Authority { number: row.number, error });
        let pin = AuthorityPin::of_certificate(&row.certificate).map_err(broken)?;
        all.push(AuthorityInfo {
            number: row.number,
            fingerprint: hex::encode(pin.fingerprint()),
            state: state.to_owned(),
            since: rfc3339(since),
            ends_at: rfc3339(identity::ends_at(&row.certificate).map_err(broken)?),
        });
    }
    let rotation = query.authority_next()?.map(|next| AuthorityRotation {
        number: next.number,
        next: if next.retires { "retire" } else { "sign" }.to_owned(),
        not_before: rfc3339(next.not_before),
        waits_for: next.nodes,
        hurried,
    });
    Ok(AuthorityStatus { authorities: all, rotation })
}
