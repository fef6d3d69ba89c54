//! Everything that can end a command, what a person can do about it, and the exit code.
//!
//! Invariant: each message says what was being done; [`Error::hint`] says what to do next.

use std::io;
use std::path::PathBuf;

use shoal_api::Problem;
use thiserror::Error;

/// What the process ends with. Part of the interface: `--help` lists them.
pub const EXIT_FAILED: u8 = 1;
pub const EXIT_USAGE: u8 = 2;
pub const EXIT_UNAUTHENTICATED: u8 = 3;
pub const EXIT_NOT_FOUND: u8 = 4;
pub const EXIT_UNREACHABLE: u8 = 5;
pub const EXIT_DEPLOYMENT_FAILED: u8 = 6;
pub const EXIT_VULNERABLE: u8 = 7;
pub const EXIT_INTERRUPTED: u8 = 130;

/// Why a command ended without its result.
#[derive(Debug, Error)]
pub enum Error {
    #[error("{0}")]
    Usage(String),
    #[error("not logged in to any cluster")]
    NoContext,
    #[error("there is no context '{0}'")]
    UnknownContext(String),
    #[error("{path}: {reason}")]
    Config { path: PathBuf, reason: String },
    #[error("{doing} {path}: {source}", path = path.display())]
    File { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("{message}", message = problem.message)]
    Refused { status: u16, problem: Problem },
    #[error("no node answered; {0}")]
    Unreachable(String),
    #[error("the connection is not trusted: {0}")]
    Untrusted(String),
    #[error("the node's answer makes no sense: {0}")]
    Answer(String),
    #[error("{0}")]
    Disk(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{what} failed: {reason}")]
    Failed { what: String, reason: String },
    #[error("{failed} of {hosts} hosts failed")]
    HostsFailed { failed: usize, hosts: usize },
    /// An answer that is not yes, with an exit code that scripts know from qemu-img.
    #[error("{message}")]
    Judged { code: u8, word: &'static str, message: String },
    #[error("{0}")]
    Interrupted(String),
}

impl Error {
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => EXIT_USAGE,
            Self::NoContext => EXIT_UNAUTHENTICATED,
            Self::Refused { status: 401 | 403, .. } => EXIT_UNAUTHENTICATED,
            Self::Refused { status: 404, .. } | Self::NotFound(_) => EXIT_NOT_FOUND,
            Self::Unreachable(_) | Self::Untrusted(_) => EXIT_UNREACHABLE,
            Self::HostsFailed { .. } => EXIT_DEPLOYMENT_FAILED,
            Self::Judged { code, .. } => *code,
            Self::Interrupted(_) => EXIT_INTERRUPTED,
            _ => EXIT_FAILED,
        }
    }

    /// A stable word for programs.
    pub fn code(&self) -> &str {
        match self {
            Self::Usage(_) => "usage",
            Self::NoContext => "not_logged_in",
            Self::UnknownContext(_) => "unknown_context",
            Self::Config { .. } => "config",
            Self::File { .. } => "file",
            Self::Refused { problem, .. } => &problem.code,
            Self::Unreachable(_) => "unreachable",
            Self::Untrusted(_) => "untrusted",
            Self::Answer(_) => "bad_answer",
            Self::Disk(_) => "disk",
            Self::NotFound(_) => "not_found",
            Self::Failed { .. } => "failed",
            Self::HostsFailed { .. } => "hosts_failed",
            Self::Judged { word, .. } => word,
            Self::Interrupted(_) => "interrupted",
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoContext => Some("log in first: shoal login https://NODE:PORT".into()),
            Self::UnknownContext(_) => Some("see 'shoal context list'".into()),
            Self::Refused { status: 401, .. } => {
                Some("log in (again): shoal login https://NODE:PORT".into())
            }
            Self::Refused { problem, .. } if problem.code == "too_few_nodes" => Some(
                "'shoal cluster nodes' lists them; remove lost ones first, or repeat it with --force"
                    .into(),
            ),
            Self::Refused { status: 500.., problem } => problem
                .request_id
                .as_ref()
                .map(|id| format!("the node's log has more under request id {id}")),
            Self::Unreachable(_) => {
                Some("see that a node runs and that its address and port are right".into())
            }
            Self::Untrusted(_) => Some(
                "give the cluster's CA with --ca FILE, or its SHA-256 with --fingerprint HEX"
                    .into(),
            ),
            Self::HostsFailed { .. } => Some("'shoal explain DEPLOYMENT' shows each error".into()),
            _ => None,
        }
    }

    /// For use in `map_err` around file operations.
    pub fn file(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { doing, path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_log_is_named_only_where_it_has_more() {
        let refused = |status| {
            let problem = Problem {
                code: String::new(),
                message: String::new(),
                request_id: Some("r1".into()),
                quota: None,
            };
            Error::Refused { status, problem }.hint()
        };
        assert!(refused(500).is_some_and(|hint| hint.contains("r1")));
        assert_eq!(refused(404), None);
    }
}
