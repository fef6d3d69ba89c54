//! The HTTP server's routes, and what every request passes through.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use shoal_api::{Health, HealthData};
use tokio::time::timeout;
use tower_http::catch_panic::CatchPanicLayer;

use super::access::observe;
use super::auth::Principal;
use super::backlog::{Backlog, bound_backlog};
use super::cors;
use super::drain::say_goodbye;
use super::forwarded::see_through;
use super::leftover::read_leftover;
use super::problem::Problem;
use super::rates::slow_down;
use super::readiness::READY_TIMEOUT;
use super::routes::{Routes, get};
use super::safeguards::guard;
use super::silence::bound_silence;
use crate::api;
use crate::registry;
use crate::state::App;

/// What a node answers to.
pub fn routes() -> Routes {
    Routes::new()
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .merge(registry::router())
        .merge(api::router())
}

/// All routes, with what every request passes through.
pub fn router(app: App) -> Router {
    let router = routes()
        .into_router()
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(from_fn_with_state(app.clone(), slow_down))
        .layer(from_fn(read_leftover))
        .layer(from_fn(bound_silence))
        .layer(from_fn_with_state(Backlog::default(), bound_backlog))
        .layer(CatchPanicLayer::new());
    let router = match cors::layer(&app.config.cors) {
        Some(cors) => router.layer(cors),
        None => router,
    };
    let router = router.layer(from_fn_with_state(app.clone(), guard));
    let router = router.layer(from_fn_with_state(app.clone(), observe));
    let router = router.layer(from_fn_with_state(app.clone(), see_through));
    router.layer(from_fn_with_state(app.clone(), say_goodbye)).with_state(app)
}

async fn no_such_path() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "no_such_path",
        "nothing is here; the REST API is below /api/v1, the registry below /v2",
    )
}

async fn no_such_method() -> Problem {
    let message = "this path knows no such method";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

async fn health() -> Json<Health> {
    let (status, version) = ("healthy".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    Json(Health { success: true, data: HealthData { status, version } })
}

/// Whether this node can do its work: it is a member, a majority answers, and so does storage.
async fn ready(State(app): State<App>) -> Response {
    if app.drain.is_leaving() {
        return (StatusCode::SERVICE_UNAVAILABLE, "the node is stopping\n").into_response();
    }
    match timeout(READY_TIMEOUT, app.view()).await {
        Ok(Ok(view)) if matches!(view.query().node(app.node), Ok(None)) => {
            let text = "this node was removed from the cluster\n";
            return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
        }
        Ok(Ok(_)) => {}
        Ok(Err(_)) | Err(_) => {
            let text = "no leader answers for a majority\n";
            return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
        }
    }
    if app.readiness.storage_answers(app.store.probe()).await {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "storage does not answer; the log says more\n")
        .into_response()
}

async fn metrics(
    State(app): State<App>,
    principal: Result<Principal, Problem>,
) -> Result<Response, Problem> {
    if !app.config.metrics.public {
        principal?;
    }
    let text = app.metrics.text().map_err(|error| Problem::internal(&error))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}
