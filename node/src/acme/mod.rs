//! Certificates from an ACME server (RFC 8555), for the nodes' HTTPS.
//!
//! The leader orders; what it takes is replicated: the account, the answers to challenges, the
//! certificate with its key. So any node may be asked by the server (HTTP-01), every node serves
//! the certificate, and whoever leads next goes on with the same account. Keys lie in the metadata
//! as the cluster's other keys do: sealed, where the cluster seals (see `encryption`).
//!
//! Invariants: a certificate is ordered anew after two thirds of its life, or when the names change;
//! a failure is tried again after a growing while, and the old certificate is served till then.
//! Non-goals: DNS-01 and wildcards; revocation.

mod challenge;
mod order;
mod transport;

use std::path::PathBuf;
use std::time::Duration;

use shoal_content::Timestamp;
use shoal_metadata::{Command, Fault, HttpCertificate};
use shoal_raft::{ProposeError, Raft, ReadError};
use thiserror::Error;
use tracing::{info, warn};

use crate::clock;
use crate::config;
use crate::encryption::{Vault, VaultError};

pub use challenge::router;

/// How often is looked whether something is due: the leader may have changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// After the first failure; twice as long after each further one.
const RETRY_INTERVAL_MIN: Duration = Duration::from_secs(30);
const RETRY_INTERVAL_MAX: Duration = Duration::from_secs(3600);
/// While this node does not lead, for the moment when it does.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);

/// Why there is no certificate yet.
#[derive(Debug, Error)]
pub enum Error {
    #[error("{path} holds no certificates of an ACME server's authority")]
    Authority { path: PathBuf },
    #[error("the HTTP client cannot be made")]
    Client(#[from] reqwest::Error),
    #[error("{doing}")]
    Protocol { doing: &'static str, source: instant_acme::Error },
    #[error("the server offers no HTTP-01 challenge for {0}")]
    Challenge(String),
    #[error("the server refused the order: {0}")]
    Refused(String),
    #[error("the certificate that was issued cannot be used: {0}")]
    Certificate(String),
    #[error(
        "the certificate that was issued is due to be replaced already; is this node's clock right?"
    )]
    Due,
    #[error("the account that is kept cannot be read")]
    Account(#[from] serde_json::Error),
    #[error(transparent)]
    Sealed(#[from] VaultError),
    #[error("the order took too long")]
    Timeout,
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Rows(#[from] Fault),
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

/// Orders certificates while this node leads.
#[derive(Debug)]
pub struct Acme {
    raft: Raft,
    vault: Vault,
    settings: config::Acme,
    names: Vec<String>,
}

impl Acme {
    /// `None` where no names are to be ordered for.
    pub fn new(raft: Raft, vault: Vault, settings: &config::Acme) -> Option<Self> {
        let mut names = settings.domains.clone();
        names.sort_unstable();
        names.dedup();
        let wanted = !names.is_empty();
        wanted.then(|| Self { raft, vault, settings: settings.clone(), names })
    }

    /// Runs until it is dropped.
    pub async fn run(self) {
        let mut failures = 0;
        loop {
            let wait = if self.raft.status().is_leader {
                self.attend(&mut failures).await
            } else {
                failures = 0;
                FOLLOW_INTERVAL
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Does what is due; gives how long to wait then.
    async fn attend(&self, failures: &mut u32) -> Duration {
        match self.order_if_due().await {
            Ok(wait) => {
                *failures = 0;
                wait.min(LOOK_INTERVAL)
            }
            Err(error) => {
                let wait = match error {
                    // What was issued is kept, and the next one would be no better.
                    Error::Due => RETRY_INTERVAL_MAX,
                    _ => backoff(*failures),
                };
                *failures = failures.saturating_add(1);
                let error = crate::http::problem::chain(&error);
                let again_seconds = wait.as_secs();
                warn!(names = ?self.names, error, again_seconds, "no certificate was issued");
                wait
            }
        }
    }

    async fn order_if_due(&self) -> Result<Duration, Error> {
        let kept = self.raft.read().await?.query().http_certificate()?;
        let left = |kept: &HttpCertificate| left(kept, &self.names, clock::now());
        if let Some(left) = kept.as_ref().and_then(left) {
            return Ok(left);
        }
        info!(names = ?self.names, directory = self.settings.directory_url, "ordering a certificate");
        let ordered = order::order(&self.raft, &self.vault, &self.settings, &self.names).await;
        // Nobody asks any more, however it ended.
        let nothing = Command::PutAcmeChallenges { answers: [].into() };
        let cleared = self.raft.propose(clock::now(), nothing).await;
        let certificate = ordered?;
        let valid_until = clock::rfc3339(certificate.valid_until);
        let left = left(&certificate);
        let put = Command::PutHttpCertificate(certificate);
        self.raft.propose(clock::now(), put).await?;
        info!(names = ?self.names, valid_until, "a certificate was issued");
        // Servers issue few a week: what was issued is kept first, whatever became of the answers.
        if let Err(error) = cleared {
            let error = crate::http::problem::chain(&error);
            warn!(error, "answers to challenges stay until the next order");
        }
        left.ok_or(Error::Due)
    }
}

/// How long until a certificate for `names` is to be ordered in place of `kept`, if it is not now.
fn left(kept: &HttpCertificate, names: &[String], now: Timestamp) -> Option<Duration> {
    let left = due(kept, names)?.as_millis().saturating_sub(now.as_millis());
    (left > 0).then(|| Duration::from_millis(left))
}

/// When a certificate for `names` is to be ordered in place of `kept`; at once where there is none.
fn due(kept: &HttpCertificate, names: &[String]) -> Option<Timestamp> {
    let life = kept.valid_until.as_millis().saturating_sub(kept.valid_from.as_millis());
    (kept.names == names).then(|| kept.valid_from.plus_millis(life / 3 * 2))
}

fn backoff(failures: u32) -> Duration {
    let factor = 2_u32.saturating_pow(failures);
    RETRY_INTERVAL_MIN.saturating_mul(factor).min(RETRY_INTERVAL_MAX)
}

#[cfg(test)]
mod tests {
    use shoal_metadata::Secret;

    use super::*;

    #[test]
    fn a_certificate_is_due_after_two_thirds_of_its_life_or_for_other_names() {
        let names = vec!["a.example".to_owned()];
        let kept = HttpCertificate {
            names: names.clone(),
            chain: String::new(),
            key: Secret(Vec::new()),
            valid_from: Timestamp::from_millis(1000),
            valid_until: Timestamp::from_millis(4000),
        };
        assert_eq!(due(&kept, &names), Some(Timestamp::from_millis(3000)));
        assert_eq!(due(&kept, &["b.example".to_owned()]), None);
        let left = |now| left(&kept, &names, Timestamp::from_millis(now));
        assert_eq!(left(1000), Some(Duration::from_millis(2000)));
        // By a clock that is ahead of the server's.
        assert_eq!((left(3000), left(5000)), (None, None));
    }

    #[test]
    fn failures_are_tried_again_less_and_less_often() {
        assert_eq!(backoff(0), RETRY_INTERVAL_MIN);
        assert_eq!(backoff(2), RETRY_INTERVAL_MIN * 4);
        assert_eq!(backoff(40), RETRY_INTERVAL_MAX);
    }
}
