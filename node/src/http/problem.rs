//! The one place where errors become HTTP answers of `/api/v1`.
//!
//! The user gets a status, a stable code and a safe message; the log gets the whole chain, once,
//! here. `/v2` has its own form (`registry::error`), made from the same [`Problem`].

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use shoal_content::Timestamp;
use shoal_metadata::{Exceeded, Fault, Refusal};
use shoal_raft::{ProposeError, ReadError};
use tracing::{error, info};

use super::noted;
use crate::authorities;
use crate::clock;
use crate::keys;
use crate::store::StoreError;

/// When a client may try again after [`StatusCode::SERVICE_UNAVAILABLE`], in seconds.
const RETRY_AFTER_SECONDS: u32 = 1;
/// When whoever has too many uploads open may look again: one of them may have ended.
const UPLOADS_RETRY_AFTER: Duration = Duration::from_secs(60);

/// An answer that is no success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub status: StatusCode,
    /// For programs; never changes its meaning.
    pub code: &'static str,
    /// For people: says what to do.
    pub message: String,
    /// Which quota stands in the way.
    pub quota: Option<Box<shoal_api::QuotaExceeded>>,
    /// When trying again may help.
    pub retry_after: Option<Duration>,
}

impl Problem {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), quota: None, retry_after: None }
    }

    pub fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no such {what}"))
    }

    pub fn unauthorized() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "log in first: Basic or Bearer credentials are needed",
        )
    }

    /// Somebody asks more often than its rate allows.
    pub fn too_often(wait: Duration) -> Self {
        let text = "too many requests; wait as long as Retry-After says";
        Self {
            retry_after: Some(wait),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many", text)
        }
    }

    /// Of a command whose limit passes with time, as few do: whoever is refused by it hears when, if
    /// anything is known to end.
    #[must_use]
    pub fn passing(self, ends: Option<Timestamp>) -> Self {
        if self.status != StatusCode::TOO_MANY_REQUESTS || self.retry_after.is_some() {
            return self;
        }
        let left = |ends: Timestamp| ends.as_millis().saturating_sub(clock::now().as_millis());
        let wait = ends.map(|ends| Duration::from_millis(left(ends).max(1)));
        Self { retry_after: wait, ..self }
    }

    /// For the header, in whole seconds.
    pub fn retry_after_seconds(&self) -> Option<u64> {
        self.retry_after.map(|wait| wait.as_secs() + u64::from(wait.subsec_nanos() > 0))
    }

    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    /// Our own fault: the log has the chain, the user a request id.
    pub fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        error!(error = %chain(error), "a request failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the node failed; its log says why",
        )
    }

    fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
    }

    fn storage_full(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INSUFFICIENT_STORAGE, "storage_full", message)
    }
}

/// An error with all its causes.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let retry_after = self.retry_after_seconds();
        let body = shoal_api::Problem {
            code: self.code.to_owned(),
            message: self.message,
            request_id: noted::request_id(),
            quota: self.quota,
        };
        let mut response = (self.status, Json(body)).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Basic realm=\"shoal\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        } else if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_SECONDS.into());
        }
        response
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Full(message) => Self::storage_full(message),
            StoreError::Unavailable { .. } => {
                info!(error = %chain(&error), "storage did not answer");
                Self::unavailable("storage does not answer; try again in a moment")
            }
            StoreError::NotFound(_)
            | StoreError::Range { .. }
            | StoreError::Refused { .. }
            | StoreError::Folder { .. }
            | StoreError::Multipart
            | StoreError::Sealed(_)
            | StoreError::Shredded(_) => Self::internal(&error),
        }
    }
}

impl From<ProposeError> for Problem {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::Refused(refusal) => refusal.into(),
            ProposeError::Storage(message) => Self::storage_full(message),
            ProposeError::Unavailable { .. } => Self::unavailable(error.to_string()),
            ProposeError::Unsupported { .. } => {
                Self::new(StatusCode::NOT_IMPLEMENTED, "unsupported", error.to_string())
            }
        }
    }
}

impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Self {
        Self::unavailable(error.to_string())
    }
}

impl From<Fault> for Problem {
    fn from(error: Fault) -> Self {
        Self::internal(&error)
    }
}

impl From<keys::Error> for Problem {
    fn from(error: keys::Error) -> Self {
        Self::internal(&error)
    }
}

impl From<authorities::Error> for Problem {
    fn from(error: authorities::Error) -> Self {
        Self::internal(&error)
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let mut quota = None;
        let (status, code) = match &refusal {
            Refusal::Quota(exceeded) => {
                quota = Some(Box::new(shown(exceeded)));
                (StatusCode::FORBIDDEN, "quota_exceeded")
            }
            Refusal::CodeUsed => (StatusCode::UNAUTHORIZED, "code_wrong"),
            Refusal::ChallengeUsed => (StatusCode::UNAUTHORIZED, "challenge_over"),
            Refusal::CounterBehind { .. } => (StatusCode::UNAUTHORIZED, "passkey_counter"),
            Refusal::NotFound(_) => (StatusCode::NOT_FOUND, "not_found"),
            Refusal::Exists(_) | Refusal::AlreadyFounded => (StatusCode::CONFLICT, "exists"),
            Refusal::OffsetMismatch(_) => (StatusCode::RANGE_NOT_SATISFIABLE, "offset_mismatch"),
            Refusal::UploadState(_)
            | Refusal::DeploymentState(_)
            | Refusal::WrongKind(_)
            | Refusal::Leased => (StatusCode::CONFLICT, "wrong_state"),
            Refusal::PartOutOfRange { .. } => (StatusCode::BAD_REQUEST, "part_out_of_range"),
            Refusal::MissingReference(_) => (StatusCode::BAD_REQUEST, "missing_reference"),
            Refusal::ManifestTooLong => (StatusCode::PAYLOAD_TOO_LARGE, "manifest_too_long"),
            Refusal::JoinToken => (StatusCode::FORBIDDEN, "join_token"),
            Refusal::BeingDeleted(_) => (StatusCode::SERVICE_UNAVAILABLE, "being_deleted"),
            Refusal::LastAdmin => (StatusCode::CONFLICT, "last_admin"),
            Refusal::LastNode => (StatusCode::CONFLICT, "last_node"),
            Refusal::LastOwner => (StatusCode::CONFLICT, "last_owner"),
            Refusal::InUse { .. } => (StatusCode::CONFLICT, "in_use"),
            Refusal::WrongRight => (StatusCode::BAD_REQUEST, "wrong_right"),
            // What its pusher can change is the name, not when to try again.
            Refusal::Immutable { .. } | Refusal::BlobNeeded(_) => {
                (StatusCode::PRECONDITION_FAILED, "immutable")
            }
            Refusal::PolicyChanged => (StatusCode::CONFLICT, "policy_changed"),
            Refusal::Changed(_) => (StatusCode::CONFLICT, "changed"),
            Refusal::Policy(_) => (StatusCode::BAD_REQUEST, "policy_invalid"),
            Refusal::NotYours => (StatusCode::FORBIDDEN, "forbidden"),
            Refusal::Limit(_) => (StatusCode::TOO_MANY_REQUESTS, "limit"),
            Refusal::TooManyUploads { .. } => (StatusCode::TOO_MANY_REQUESTS, "too_many_uploads"),
            Refusal::MasterKeyMissing { .. } | Refusal::OtherMasterKey(_) => {
                (StatusCode::CONFLICT, "master_key_missing")
            }
            Refusal::TooOld { .. } => (StatusCode::CONFLICT, "node_too_old"),
        };
        let uploads = matches!(refusal, Refusal::TooManyUploads { .. });
        let retry_after = uploads.then_some(UPLOADS_RETRY_AFTER);
        Self { quota, retry_after, ..Self::new(status, code, refusal.to_string()) }
    }
}

fn shown(exceeded: &Exceeded) -> shoal_api::QuotaExceeded {
    shoal_api::QuotaExceeded {
        of: exceeded.payer.to_string(),
        kind: exceeded.kind.as_str().to_owned(),
        limit: exceeded.limit,
        used: exceeded.used,
        wanted: exceeded.wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_meets_a_limit_that_passes_hears_when() {
        let later = |millis| Some(Timestamp::from_millis(clock::now().as_millis() + millis));
        let limit = || Problem::from(Refusal::Limit("1000 join tokens".to_owned()));
        let after = |problem: Problem| {
            let headers = problem.into_response().headers().clone();
            headers.get(header::RETRY_AFTER).map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(after(limit()), None, "most limits stay");
        assert_eq!(after(limit().passing(None)), None);
        let hour = after(limit().passing(later(3_600_000))).unwrap();
        assert!((3000..=3600).contains(&hour.parse::<u32>().unwrap()), "{hour}");
        let over = limit().passing(Some(Timestamp::from_millis(0)));
        assert_eq!(after(over).as_deref(), Some("1"));
        let missing = Problem::not_found("image").passing(later(3_600_000));
        assert_eq!(after(missing), None, "no limit");
        let uploads = Problem::from(Refusal::TooManyUploads { open: 3, most: 2 });
        assert_eq!(after(uploads.passing(later(3_600_000))).as_deref(), Some("60"));
    }
}
