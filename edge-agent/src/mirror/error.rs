//! What the mirror refuses, as container engines expect to hear it (distribution-spec, "Errors").

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use thiserror::Error;
use tracing::warn;

/// Why a request was not served.
#[derive(Debug, Error)]
pub enum Error {
    #[error("there is nothing at this path; this is a registry mirror, see /v2/")]
    NotFound,
    #[error("the cluster has no such repository")]
    UnknownName,
    #[error("the cluster has no such manifest")]
    UnknownManifest,
    #[error("the cluster has no such blob in this repository")]
    UnknownBlob,
    #[error(
        "this mirror is read only; push to a node{}",
        .node.as_ref().map(|url| format!(", for instance {url}")).unwrap_or_default()
    )]
    ReadOnly { node: Option<String> },
    #[error("the range is not within the blob's {length} bytes")]
    Range { length: u64 },
    #[error("no node answers, and what is known here gives no right to this any more: {0}")]
    Unavailable(String),
    #[error("it cannot be had for now: {0}")]
    NoSource(String),
    #[error("this needs a login that may have it")]
    Unauthorized,
    #[error("the node takes no more such requests for now")]
    Busy { retry_after: Option<HeaderValue> },
    #[error("the form is too long")]
    Form,
    #[error("only grant_type=password is supported; use GET with Basic")]
    Grant,
}

impl Error {
    pub fn is_not_found(&self) -> bool {
        matches!(
            self,
            Self::NotFound | Self::UnknownName | Self::UnknownManifest | Self::UnknownBlob
        )
    }

    fn status_and_code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::NotFound => (StatusCode::NOT_FOUND, "UNSUPPORTED"),
            Self::UnknownName => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
            Self::UnknownManifest => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
            Self::UnknownBlob => (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
            Self::ReadOnly { .. } => (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
            Self::Range { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, "SIZE_INVALID"),
            Self::Unavailable(_) | Self::NoSource(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE")
            }
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"),
            Self::Busy { .. } => (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
            Self::Form => (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID"),
            Self::Grant => (StatusCode::NOT_FOUND, "UNSUPPORTED"),
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let (status, code) = self.status_and_code();
        if status.is_server_error() {
            warn!(error = %self, "the mirror could not serve");
        }
        let body = json!({ "errors": [{ "code": code, "message": self.to_string() }] });
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        match self {
            Self::ReadOnly { .. } => {
                headers.insert(header::ALLOW, "GET, HEAD".parse().expect("a constant"));
            }
            Self::Range { length } => {
                if let Ok(value) = format!("bytes */{length}").parse() {
                    headers.insert(header::CONTENT_RANGE, value);
                }
            }
            Self::Busy { retry_after: Some(after) } => {
                headers.insert(header::RETRY_AFTER, after);
            }
            _ => {}
        }
        response
    }
}
