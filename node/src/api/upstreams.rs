//! Other registries, whose images are pulled through: what they are, and how they stand.

use axum::Json;
use axum::extract::State;
use shoal_api::UpstreamInfo;
use shoal_metadata::{Action, What, Who, permission};

use super::caller::Caller;
use crate::clock::rfc3339;
use crate::http::problem::Problem;
use crate::state::App;
use crate::upstreams::{Shown, Upstream};

/// Those that the caller may pull from. An agent may, and so learns their names.
pub async fn list(
    State(app): State<App>,
    caller: Caller,
) -> Result<Json<Vec<UpstreamInfo>>, Problem> {
    let (query, who) = (caller.view.query(), caller.who());
    let mut shown = Vec::new();
    for upstream in app.upstreams.all() {
        if permission(query, &who, Action::List, What::Project(&upstream.name))?.is_allowed() {
            let project = What::Project(&upstream.name);
            let public = permission(query, &Who::Anonymous, Action::Pull, project)?.is_allowed();
            shown.push(UpstreamInfo { public, ..info(upstream) });
        }
    }
    Ok(Json(shown))
}

fn info(upstream: &Upstream) -> UpstreamInfo {
    let (shown, settings): (Shown, _) = (upstream.shown(), &upstream.settings);
    let (last_error_at, last_error) = shown.error.unzip();
    UpstreamInfo {
        name: upstream.name.to_string(),
        aliases: settings.aliases.clone(),
        url: settings.url.clone(),
        public: false,
        login: settings.password_file.is_some(),
        tag_seconds: settings.tag_seconds,
        hits: shown.hits,
        misses: shown.misses,
        stale: shown.stale,
        received_bytes: shown.bytes,
        limit: shown.limit,
        limit_remaining: shown.remaining,
        paused_seconds: shown.paused.map(|paused| paused.as_secs() + 1),
        asked_at: shown.asked_at.map(rfc3339),
        answered_at: shown.answered_at.map(rfc3339),
        last_error,
        last_error_at: last_error_at.map(rfc3339),
    }
}
