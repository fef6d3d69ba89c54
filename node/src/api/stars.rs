//! Stars: each person's own.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use shoal_api::Image;
use shoal_content::ImageId;
use shoal_metadata::{Action, Scope};

use super::caller::Caller;
use super::images::existing;
use super::input::Path;
use super::shown;
use crate::http::problem::Problem;
use crate::state::App;

/// Starred images that one answer shows.
const STARRED_SHOWN_MAX: usize = 1000;

/// `PUT /api/v1/images/{id}/star`.
pub async fn put(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
) -> Result<StatusCode, Problem> {
    set(&app, caller, id, true).await
}

/// `DELETE /api/v1/images/{id}/star`.
pub async fn remove(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
) -> Result<StatusCode, Problem> {
    set(&app, caller, id, false).await
}

async fn set(app: &App, caller: Caller, id: ImageId, starred: bool) -> Result<StatusCode, Problem> {
    existing(&caller, id, Action::List)?;
    let user = caller.person()?.to_owned();
    caller.scope(Scope::Write)?;
    drop(caller);
    app.services.stars.put(user, id, starred).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /api/v1/user/stars`: what the asker has starred and may still see.
pub async fn list(caller: Caller) -> Result<Json<Vec<Image>>, Problem> {
    let query = caller.view.query();
    let mut shown = Vec::new();
    for id in query.stars_of(caller.person()?, STARRED_SHOWN_MAX)? {
        if let Ok(image) = existing(&caller, id, Action::List) {
            shown.push(shown::image(query, &image)?);
        }
    }
    Ok(Json(shown))
}
