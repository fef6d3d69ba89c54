//! The cluster's signing keys: which there are, and how one is replaced.

use axum::Json;
use axum::extract::State;
use shoal_api::{RotateKey, SigningKeyInfo};
use shoal_content::Timestamp;
use shoal_metadata::{KeyPurpose, accepted_until};
use tracing::{info, warn};

use super::caller::Admin;
use super::input::{Body, Path};
use super::problem::missing;
use crate::clock::rfc3339;
use crate::http::problem::Problem;
use crate::keys::{Keyring, rotation};
use crate::state::App;

pub async fn list(
    State(app): State<App>,
    _caller: Admin,
) -> Result<Json<Vec<SigningKeyInfo>>, Problem> {
    unlock(&app).await?;
    let view = app.view().await?;
    Ok(Json(shown(&Keyring::read(view.query(), app.keys.ring.vault().clone())?, app.now())))
}

pub async fn rotate(
    State(app): State<App>,
    _caller: Admin,
    Path(purpose): Path<String>,
    Body(request): Body<RotateKey>,
) -> Result<Json<Vec<SigningKeyInfo>>, Problem> {
    let found = KeyPurpose::ALL.into_iter().find(|one| one.name() == purpose);
    let unknown = || missing("key_not_found", "there are keys for 'token' and for 'ticket'");
    let purpose = found.ok_or_else(unknown)?;
    unlock(&app).await?;
    let view = app.view().await?;
    let keys = view.query().signing_keys(purpose)?;
    let newest = keys.last().map_or(0, |key| key.number);
    let vault = app.keys.ring.vault();
    let command = rotation::command(purpose, newest, app.now(), request.distrust, vault)
        .map_err(|error| Problem::internal(&error))?;
    if let Err(error) = app.propose(command).await {
        let ends = (0..keys.len()).filter_map(|at| accepted_until(&keys, at));
        let ends = ends.filter(|end| *end > app.now()).min();
        return Err(Problem::from(error).passing(ends));
    }
    if request.distrust {
        warn!(purpose = purpose.name(), "nothing is believed any more that its keys have signed");
    } else {
        info!(purpose = purpose.name(), "a new key was made");
    }
    let view = app.view().await?;
    // What this node answers next is to be by the new one already.
    app.keys.ring.refresh(view.query())?;
    Ok(Json(shown(&app.keys.ring, app.now())))
}

/// Sealing may have begun a moment ago.
async fn unlock(app: &App) -> Result<(), Problem> {
    let opened = app.keys.ring.vault().unlock(&app.raft).await;
    opened.map_err(|error| Problem::internal(&error))
}

fn shown(ring: &Keyring, now: Timestamp) -> Vec<SigningKeyInfo> {
    let mut all = Vec::new();
    for purpose in KeyPurpose::ALL {
        let signs = ring.signer(purpose, now).number;
        for key in ring.keys(purpose).iter() {
            let state = match key.number {
                number if number == signs => "signs",
                number if number > signs => "announced",
                _ if key.is_believed(now) => "believed",
                _ => "ended",
            };
            all.push(SigningKeyInfo {
                purpose: purpose.name().to_owned(),
                number: key.number,
                public_key: hex::encode(key.public().as_public_key()),
                state: state.to_owned(),
                signs_from: rfc3339(key.signs_from),
                believed_until: key.until.map(rfc3339),
            });
        }
    }
    all
}
