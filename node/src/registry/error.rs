//! Errors in the form of the distribution-spec, section "Error Codes".

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use shoal_metadata::{Fault, Refusal, Subject};
use shoal_raft::{ProposeError, ReadError};

use super::answers::{RegistryErrors, RegistryProblem};
use super::intake::IntakeError;
use crate::http::problem::Problem;
use crate::store::StoreError;

/// When whoever found no room here may look again: who is slow has lost it by then.
const ROOM_RETRY_AFTER_SECONDS: &str = "60";

/// An answer of `/v2` that is no success.
#[derive(Debug, Clone)]
pub struct RegistryError {
    status: StatusCode,
    code: &'static str,
    message: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    detail: serde_json::Value,
}

impl RegistryError {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            headers: Vec::new(),
            detail: serde_json::Value::Null,
        }
    }

    /// The same with a header besides.
    pub fn with(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.push((name, value));
        }
        self
    }

    pub fn name_invalid(error: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "NAME_INVALID", error.to_string())
    }

    pub fn name_unknown() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "the registry has no such repository")
    }

    pub fn digest_invalid(error: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", error.to_string())
    }

    pub fn blob_unknown() -> Self {
        Self::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "the repository has no such blob")
    }

    pub fn manifest_unknown() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "MANIFEST_UNKNOWN",
            "the repository has no such manifest or tag",
        )
    }

    pub fn upload_unknown() -> Self {
        let message = "there is no such upload, or it has expired; begin a new one";
        Self::new(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", message)
    }

    /// There is no room here, or none any more. Docker sends the blob again; told
    /// `TOOMANYREQUESTS`, it would give the push up.
    pub fn crowded(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "BLOB_UPLOAD_INVALID", message)
            .with(header::RETRY_AFTER, ROOM_RETRY_AFTER_SECONDS)
    }

    /// In the words of a problem, which say what is wrong with the credentials that were brought.
    #[must_use]
    pub fn saying(self, problem: &Problem) -> Self {
        Self { message: problem.message.clone(), ..self }
    }

    pub fn unsupported() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "the method is not supported here")
    }
}

impl std::fmt::Display for RegistryError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl IntoResponse for RegistryError {
    fn into_response(self) -> Response {
        let problem = RegistryProblem {
            code: self.code.to_owned(),
            message: self.message,
            detail: self.detail,
        };
        let body = RegistryErrors { errors: vec![problem] };
        let mut response = (self.status, Json(body)).into_response();
        response.headers_mut().extend(self.headers);
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().entry(header::RETRY_AFTER).or_insert(1.into());
        }
        response
    }
}

impl From<Problem> for RegistryError {
    fn from(problem: Problem) -> Self {
        let code = match problem.status {
            StatusCode::UNAUTHORIZED => "UNAUTHORIZED",
            StatusCode::FORBIDDEN => "DENIED",
            StatusCode::TOO_MANY_REQUESTS => "TOOMANYREQUESTS",
            StatusCode::NOT_FOUND => "NAME_UNKNOWN",
            StatusCode::BAD_REQUEST => "MANIFEST_INVALID",
            StatusCode::PAYLOAD_TOO_LARGE => "SIZE_INVALID",
            _ => "UNKNOWN",
        };
        let retry_after = problem.retry_after_seconds();
        let detail = problem.quota.map(|quota| json!({ "quota": quota }));
        let detail = detail.unwrap_or(serde_json::Value::Null);
        let error = Self { detail, ..Self::new(problem.status, code, problem.message) };
        match retry_after {
            Some(seconds) => error.with(header::RETRY_AFTER, &seconds.to_string()),
            None => error,
        }
    }
}

impl From<Refusal> for RegistryError {
    fn from(refusal: Refusal) -> Self {
        match &refusal {
            Refusal::NotFound(Subject::Image) => Self::name_unknown(),
            Refusal::NotFound(Subject::Blob) => Self::blob_unknown(),
            Refusal::NotFound(Subject::Upload) => Self::upload_unknown(),
            Refusal::NotFound(Subject::Version | Subject::Tag) => Self::manifest_unknown(),
            Refusal::MissingReference(digest) => Self::new(
                StatusCode::NOT_FOUND,
                "MANIFEST_BLOB_UNKNOWN",
                format!(
                    "the manifest refers to {digest}, which the repository does not have, or not \
                     in the size that the manifest says"
                ),
            ),
            // Docker repeats what is refused with a code that it does not know.
            Refusal::Immutable { .. } | Refusal::BlobNeeded(_) => {
                Self::new(StatusCode::PRECONDITION_FAILED, "DENIED", refusal.to_string())
            }
            Refusal::WrongKind(_) => {
                Self::new(StatusCode::CONFLICT, "UNSUPPORTED", refusal.to_string())
            }
            Refusal::InUse { .. } => Self::new(StatusCode::CONFLICT, "DENIED", refusal.to_string()),
            _ => Problem::from(refusal).into(),
        }
    }
}

impl From<ProposeError> for RegistryError {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::Refused(refusal) => refusal.into(),
            error => Problem::from(error).into(),
        }
    }
}

impl From<ReadError> for RegistryError {
    fn from(error: ReadError) -> Self {
        Problem::from(error).into()
    }
}

impl From<Fault> for RegistryError {
    fn from(error: Fault) -> Self {
        Problem::from(error).into()
    }
}

impl From<StoreError> for RegistryError {
    fn from(error: StoreError) -> Self {
        Problem::from(error).into()
    }
}

impl From<IntakeError> for RegistryError {
    fn from(error: IntakeError) -> Self {
        match error {
            // Somebody else closed or cancelled the session.
            IntakeError::Store(StoreError::Multipart) => Self::upload_unknown(),
            IntakeError::Store(error) => error.into(),
            IntakeError::TooLong(_) => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", error.to_string())
            }
            IntakeError::Checkpoint | IntakeError::Torn => Problem::internal(&error).into(),
            IntakeError::Crowded => Self::crowded(error.to_string()),
            IntakeError::Stopping => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNKNOWN", error.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_finds_no_room_hears_when_to_come_again() {
        for (error, after) in [(IntakeError::Crowded, "60"), (IntakeError::Stopping, "1")] {
            let response = RegistryError::from(error).into_response();
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(response.headers()[header::RETRY_AFTER], after);
        }
    }
}
