//! The listener without TLS that an ACME server asks (HTTP-01, RFC 8555, section 8.3). It answers
//! that, and sends everyone else to HTTPS.

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use shoal_raft::Raft;
use tracing::info;

/// Longer than any token; nothing else is looked up.
const TOKEN_BYTES_MAX: usize = 256;

#[derive(Debug, Clone)]
struct Answering {
    raft: Raft,
    /// Where HTTPS is, without a path.
    https: String,
}

/// `https` is where everyone else belongs: `https://shoal.example:5000`.
pub fn router(raft: Raft, https: &str) -> Router {
    let https = https.trim_end_matches('/').to_owned();
    Router::new()
        .route("/.well-known/acme-challenge/{token}", get(answer))
        .fallback(elsewhere)
        .with_state(Answering { raft, https })
}

/// Reads what the leader had replicated before it told the server to ask.
async fn answer(State(answering): State<Answering>, Path(token): Path<String>) -> Response {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if token.len() > TOKEN_BYTES_MAX || !token.bytes().all(plain) {
        return StatusCode::NOT_FOUND.into_response();
    }
    let view = match answering.raft.read().await {
        Ok(view) => view,
        Err(error) => {
            return (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response();
        }
    };
    match view.query().acme_challenge(&token) {
        Ok(Some(answer)) => {
            info!(token, "an ACME server's challenge was answered");
            ([(header::CONTENT_TYPE, "application/octet-stream")], answer).into_response()
        }
        Ok(None) => StatusCode::NOT_FOUND.into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

/// The host is ours and not the request's: nobody is sent where a stranger wants them.
async fn elsewhere(State(answering): State<Answering>, request: Request) -> Response {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let address = format!("{}{path}", answering.https);
    (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, address)]).into_response()
}
