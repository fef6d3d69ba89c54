//! Why an upstream did not give what it was asked for, and what its asker is told.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::RETRY_AFTER;
use shoal_metadata::Fault;
use shoal_raft::{ProposeError, ReadError};
use thiserror::Error;

use crate::registry::{IntakeError, RegistryError};
use crate::store::StoreError;

/// An error is given to everyone who waited for the same.
#[derive(Debug, Clone, Error)]
pub enum Error {
    #[error("{0} has no such manifest or blob")]
    Unknown(String),
    #[error("{0} does not let this node have that, or has no such repository")]
    Denied(String),
    #[error("{name} takes no more requests for {} s", .after.as_secs())]
    Limited { name: String, after: Duration },
    #[error("{name} cannot be reached: {why}")]
    Away { name: String, why: String },
    #[error("{name} does not take this node's login: {why}")]
    Login { name: String, why: String },
    #[error("{name} answers something odd: {why}")]
    Odd { name: String, why: String },
    /// All of it came, or more than all.
    #[error("{name} sends something else: {why}")]
    Content { name: String, why: String },
    #[error("{0} is not among what may be pulled from there ([upstreams] allow)")]
    Forbidden(String),
    #[error("there is nothing for {wanted} in it, but for {named}")]
    Platform { wanted: String, named: String },
    #[error("{digest} came from {name}, and cannot be kept: {why}")]
    Unkept { name: String, digest: String, why: String },
    #[error("this node cannot take more from other registries now: {0}")]
    Busy(&'static str),
    /// What failed is this cluster's own.
    #[error("{0}")]
    Here(Box<RegistryError>),
}

impl Error {
    /// Whether what is known from before may be given instead.
    pub fn is_of_the_moment(&self) -> bool {
        !matches!(
            self,
            Self::Unknown(_) | Self::Denied(_) | Self::Forbidden(_) | Self::Platform { .. }
        )
    }

    /// Whether asking again soon would only be told the same.
    pub fn is_settled(&self) -> bool {
        matches!(self, Self::Unknown(_) | Self::Denied(_))
    }

    /// What metrics call it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unknown(_) => "unknown",
            Self::Denied(_) => "denied",
            Self::Limited { .. } => "limited",
            Self::Away { .. } => "away",
            Self::Login { .. } => "login",
            Self::Odd { .. } | Self::Content { .. } => "odd",
            Self::Forbidden(_) | Self::Platform { .. } | Self::Busy(_) => "refused",
            Self::Unkept { .. } | Self::Here(_) => "here",
        }
    }
}

macro_rules! here {
    ($($failure:ty)*) => {
        $(impl From<$failure> for Error {
            fn from(failure: $failure) -> Self {
                Self::Here(Box::new(failure.into()))
            }
        })*
    };
}

here! { ReadError Fault ProposeError StoreError IntakeError }

impl From<Error> for RegistryError {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Unknown(_) => Self::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", text),
            // Whoever asks has been let in here: a login of its own would not help.
            Error::Denied(_) => Self::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", text),
            Error::Limited { after, .. } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", text)
                    .with(RETRY_AFTER, &after.as_secs().max(1).to_string())
            }
            Error::Platform { .. } => Self::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", text),
            Error::Away { .. } | Error::Busy(_) | Error::Unkept { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", text)
            }
            Error::Login { .. } | Error::Odd { .. } | Error::Content { .. } => {
                Self::new(StatusCode::BAD_GATEWAY, "UNAVAILABLE", text)
            }
            Error::Forbidden(_) => Self::new(StatusCode::FORBIDDEN, "DENIED", text),
            Error::Here(error) => *error,
        }
    }
}
