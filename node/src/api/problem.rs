//! The answers of `/api/v1` that are no success and that `http::problem` has no word for.

use std::time::Duration;

use axum::http::StatusCode;
use shoal_formats::{ExportError, FormatError, TargetError};

use crate::http::problem::Problem;
use crate::origin;

pub fn missing(code: &'static str, message: impl Into<String>) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, code, message)
}

pub fn conflict(code: &'static str, message: impl Into<String>) -> Problem {
    Problem::new(StatusCode::CONFLICT, code, message)
}

pub fn unavailable(message: impl Into<String>) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
}

/// `after` is when to look again.
pub fn crowded(message: impl Into<String>, after: Duration) -> Problem {
    let refused = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many", message);
    Problem { retry_after: Some(after), ..refused }
}

impl From<&origin::Error> for Problem {
    fn from(error: &origin::Error) -> Self {
        if error.is_retryable() {
            unavailable("storage does not answer; try again in a moment")
        } else {
            Self::internal(error)
        }
    }
}

impl From<origin::Error> for Problem {
    fn from(error: origin::Error) -> Self {
        (&error).into()
    }
}

impl From<FormatError> for Problem {
    fn from(error: FormatError) -> Self {
        Self::bad_request("format_invalid", error.to_string())
    }
}

impl From<TargetError> for Problem {
    fn from(error: TargetError) -> Self {
        Self::bad_request("format_invalid", error.to_string())
    }
}

impl From<ExportError> for Problem {
    fn from(error: ExportError) -> Self {
        match error {
            ExportError::TooLarge(_) => Self::bad_request("disk_too_large", error.to_string()),
            error => Self::internal(&error),
        }
    }
}
