//! Who is locked out, and letting them in again.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use shoal_api::Block;
use shoal_metadata::{Action, Command, Suspect, SuspectError, What};

use super::caller::{Caller, Sibling};
use super::input::Path;
use crate::clock::{now, rfc3339};
use crate::http::problem::Problem;
use crate::state::App;

/// `GET /api/v1/blocks`.
pub async fn list(caller: Caller) -> Result<Json<Vec<Block>>, Problem> {
    caller.permit(Action::Audit, What::System)?;
    let blocks = caller.view.query().blocks(now())?;
    let shown = blocks.into_iter().map(|(suspect, block)| Block {
        who: suspect.to_string(),
        since: rfc3339(block.since),
        until: block.until.map(rfc3339),
        reason: block.reason.to_string(),
    });
    Ok(Json(shown.collect()))
}

/// `DELETE /api/v1/blocks/account:NAME`, or `address:IP`; by an administrator, or on a node's own
/// machine (see `unblocking`).
pub async fn remove(
    State(app): State<App>,
    _caller: Sibling,
    Path(who): Path<String>,
) -> Result<StatusCode, Problem> {
    let suspect: Suspect = who.parse().map_err(|error: SuspectError| {
        Problem::bad_request("suspect_invalid", error.to_string())
    })?;
    app.propose(Command::Unblock { suspect }).await?;
    Ok(StatusCode::NO_CONTENT)
}
