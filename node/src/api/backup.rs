//! Backups, for administrators: the metadata as one file, and the objects that they name.
//!
//! A backup holds the cluster's secrets, so each one is noted in the log with who asked for it.

use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::Response;
use futures::TryStreamExt;
use shoal_content::ObjectKey;
use tokio_stream::wrappers::ReceiverStream;
use tracing::warn;

use super::caller::Admin;
use super::input::Path;
use super::problem::{crowded, missing};
use crate::backup::Error;
use crate::http::problem::Problem;
use crate::state::App;

const KIND: &str = "application/vnd.shoal.backup";
/// When whoever finds another backup under way may look again.
const BUSY_RETRY_AFTER: Duration = Duration::from_secs(60);

/// `GET /api/v1/backup`: see `shoal_formats::backup`. An answer that ends without the file's last
/// frame is no backup.
pub async fn metadata(State(app): State<App>, _caller: Admin) -> Result<Response, Problem> {
    let view = app.view().await?;
    let (head, pieces) = app.services.backups.begin(view, app.keys.cluster).map_err(problem)?;
    warn!(index = head.index, "an administrator takes a backup, which holds the cluster's keys");
    let name = format!("attachment; filename=\"shoal-{}.backup\"", head.index);
    let answer = Response::builder()
        .header(header::CONTENT_TYPE, KIND)
        .header(header::CACHE_CONTROL, "no-store")
        .header(header::CONTENT_DISPOSITION, name)
        .body(Body::from_stream(ReceiverStream::new(pieces)));
    answer.map_err(|error| Problem::internal(&error))
}

fn problem(error: Error) -> Problem {
    match error {
        Error::Busy => {
            let text = "another backup is being made at this node; ask another, or later";
            crowded(text, BUSY_RETRY_AFTER)
        }
        error => Problem::internal(&error),
    }
}

/// `GET /api/v1/backup/objects/{key}`: an object's bytes out of central storage.
pub async fn object(
    State(app): State<App>,
    _caller: Admin,
    Path(key): Path<String>,
) -> Result<Response, Problem> {
    let no_such = || missing("object_not_found", format!("storage has no object {key}"));
    let object: ObjectKey = key.parse().map_err(|_| no_such())?;
    let store = app.services.verifier.store();
    let length = store.length(object).await?.ok_or_else(no_such)?;
    let pieces = store.get(object, 0..length).await?;
    let answer = Response::builder()
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_LENGTH, length)
        .body(Body::from_stream(pieces.into_stream()));
    answer.map_err(|error| Problem::internal(&error))
}
