//! The REST API, `/api/v1`, and what of other managers' it answers to: its routes, and nothing else
//! in this file.
//!
//! Invariants: every handler says in its signature who may call it (see `caller`); whatever is not
//! carried out is answered with a `Problem`; a handler reads the metadata linearizably unless its
//! documentation says why not.
//! Non-goals: `/v2` (see `registry`), TLS and limits of connections (see `http`).

mod agents;
mod caller;
mod cluster;
mod compatible;
mod deployments;
mod download;
mod host;
mod images;
mod input;
mod problem;
mod services;
mod session;
mod storage;
mod tokens;
mod uploads;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{delete, get, post, put};

use crate::state::App;

pub(crate) use download::check_range as check_download_range;
pub use services::Services;

/// The longest body of a request that is no part of an upload.
const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// All routes of `/api/v1`, with their full paths.
pub fn router() -> Router<App> {
    let uploads = "/api/v1/images/{image}/versions/upload";
    // Parts have their own bound, in memory and length.
    let parts = Router::new()
        .route(&format!("{uploads}/{{upload}}/chunks/{{part}}"), put(uploads::put_part))
        .layer(DefaultBodyLimit::disable());
    Router::new()
        .route("/api/v1/auth/login", post(session::login))
        .route("/api/v1/auth/me", get(session::me))
        .route("/api/v1/images", get(images::list).post(images::create))
        .route("/api/v1/images/{image}", get(images::show).delete(images::delete))
        .route("/api/v1/images/{image}/versions", get(images::versions))
        .route("/api/v1/images/{image}/versions/{version}/download", get(download::download))
        .route("/api/v1/images/{image}/tags/{tag}", put(images::put_tag).delete(images::delete_tag))
        .route("/api/images", get(images::list))
        .route("/api/images/search", get(compatible::search))
        .route("/api/images/{*path}", get(compatible::show).delete(compatible::delete))
        .route("/api/v1/resolve", get(images::resolve))
        .route(&format!("{uploads}/init"), post(uploads::init))
        .route(&format!("{uploads}/{{upload}}"), get(uploads::status).delete(uploads::abort))
        .route(&format!("{uploads}/{{upload}}/complete"), post(uploads::complete))
        .route("/api/v1/join-tokens", get(tokens::list).post(tokens::create))
        .route("/api/v1/join-tokens/{token}", delete(tokens::revoke))
        .route("/api/v1/agents", get(agents::list))
        .route("/api/v1/agents/enrol", post(agents::enrol))
        .route("/api/v1/agents/{agent}", delete(agents::remove))
        .route("/api/v1/agents/self/resolve", post(host::resolve))
        .route("/api/v1/agents/self/orders", get(host::orders))
        .route("/api/v1/agents/self/progress", post(host::progress))
        .route("/api/v1/deployments", get(deployments::list).post(deployments::create))
        .route("/api/v1/deployments/{deployment}", get(deployments::show))
        .route("/api/v1/deployments/{deployment}/cancel", post(deployments::cancel))
        .route("/api/v1/deployments/{deployment}/events", get(deployments::events))
        .route("/api/v1/cluster", get(cluster::status))
        .route("/api/v1/cluster/join", post(cluster::join))
        .route("/api/v1/cluster/nodes/{node}", delete(cluster::remove_node))
        .route("/api/v1/cluster/reports/{deployment}", get(cluster::reports))
        .route("/api/v1/cluster/streams", get(cluster::streams))
        .route("/api/v1/storage", get(storage::status))
        .route("/api/v1/storage/collect", post(storage::collect))
        .route("/api/v1/storage/scrub", post(storage::scrub))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .merge(parts)
}
