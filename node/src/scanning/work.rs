//! One scan: claimed, carried out, its list stored, ended.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shoal_content::{ObjectKey, PackId, Timestamp};
use shoal_metadata::{
    Command, Fault, Refusal, SCAN_REASON_BYTES_MAX, Scan, ScanOutcome, ScanReport, ScanState,
};
use shoal_raft::{ProposeError, ReadError};
use thiserror::Error;
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::disk::DiskError;
use super::program::{ProgramError, Run};
use super::report::{Found, ReportError, cut, parse};
use super::source::Source;
use super::subject::{self, Subject, Unfit};
use super::{Scanner, Settings, disk};
use crate::clock;
use crate::collection::first_missing;
use crate::http::problem::chain;
use crate::store::{StoreError, put_once};

/// How long a node may be silent before another one takes over.
const LEASE: Duration = Duration::from_secs(20);
const LEASE_RENEWAL: Duration = Duration::from_secs(5);
/// How often a scan is begun, by whichever node, before it is given up: one that ends its node each
/// time must come to an end.
const ATTEMPTS_MAX: u32 = 3;
/// How often what passes is waited for, and how long each time, longer by this.
const TRIES_MAX: u32 = 4;
const PAUSE: Duration = Duration::from_secs(1);
/// How long a claim that was refused is not tried again.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
const GIB: u64 = 1024 * 1024 * 1024;

/// How a scan ended.
pub(super) enum End {
    Completed {
        found: u64,
        seconds: u64,
    },
    Failed {
        reason: String,
    },
    /// Another node is at it or has ended it, or the version is gone.
    NotOurs,
}

/// Why nothing was found out. The texts begin with a word for programs.
#[derive(Debug, Error)]
enum Error {
    #[error(transparent)]
    Unfit(#[from] Unfit),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Report(#[from] ReportError),
    #[error("no_room: the node's scratch folder cannot be used")]
    Scratch(#[source] std::io::Error),
    #[error("storage_failed: the list of vulnerabilities cannot be stored")]
    Store(#[from] StoreError),
    #[error("unavailable: {0} was deleted meanwhile")]
    Deleted(ObjectKey),
    #[error("unavailable: the metadata cannot be read")]
    Rows(#[from] Fault),
    #[error("unavailable: the metadata do not answer")]
    Read(#[from] ReadError),
    #[error("unavailable: the metadata do not answer")]
    Propose(#[source] ProposeError),
    /// Another node's by now, or gone.
    #[error("unavailable: the claim is lost")]
    Lost,
}

impl Error {
    fn is_retryable(&self) -> bool {
        match self {
            Self::Disk(error) => error.is_retryable(),
            Self::Store(error) => error.is_retryable(),
            Self::Deleted(_) | Self::Rows(_) | Self::Read(_) | Self::Propose(_) => true,
            _ => false,
        }
    }
}

/// A folder that goes with whoever has it.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            warn!(path = %self.0.display(), %error, "a scratch folder stays until the next start");
        }
    }
}

impl Scanner {
    pub(super) async fn carry_out(&self, scan: Scan) -> End {
        let Some(settings) = self.settings() else { return End::NotOurs };
        let begun = match scan.state {
            ScanState::Scanning { attempt, .. } => attempt,
            _ => 0,
        };
        if let Err(error) = self.claim(&scan, false).await {
            if !matches!(error, ProposeError::Refused(_)) {
                warn!(error = chain(&error), "a scan cannot be claimed");
            }
            sleep(REFUSED_PAUSE).await;
            return End::NotOurs;
        }
        let started = Instant::now();
        let done = async {
            if begun >= ATTEMPTS_MAX {
                let reason = "given_up: each node that began this scan ended during it".to_owned();
                return self.end(&scan, ScanOutcome::Failed { reason }).await;
            }
            Box::pin(self.found_out(&scan, settings)).await
        };
        let outcome = tokio::select! {
            outcome = done => outcome,
            () = self.hold_claim(&scan) => Err(Error::Lost),
        };
        match outcome {
            Ok(ScanOutcome::Completed(report)) => {
                End::Completed { found: report.found.total(), seconds: started.elapsed().as_secs() }
            }
            Ok(ScanOutcome::Failed { reason }) => End::Failed { reason },
            Err(Error::Lost) => End::NotOurs,
            Err(error) => {
                warn!(error = chain(&error), "the end of a scan cannot be written down");
                sleep(REFUSED_PAUSE).await;
                End::NotOurs
            }
        }
    }

    async fn claim(&self, scan: &Scan, renews: bool) -> Result<(), ProposeError> {
        let now = clock::now();
        let lease_until = now.plus_millis(LEASE.as_millis() as u64);
        let (of, id, node) = (scan.of.clone(), scan.id, self.inner.node);
        let claim = Command::ClaimScan { of, id, node, lease_until, renews };
        self.inner.raft.propose(now, claim).await.map(drop)
    }

    /// Renews the claim; returns when it is lost.
    async fn hold_claim(&self, scan: &Scan) {
        loop {
            sleep(LEASE_RENEWAL).await;
            match self.claim(scan, true).await {
                Ok(()) => {}
                Err(ProposeError::Refused(_)) => return,
                Err(error) => warn!(%error, "the claim on a scan could not be renewed"),
            }
        }
    }

    /// Scans, and writes down what came of it.
    async fn found_out(&self, scan: &Scan, settings: &Settings) -> Result<ScanOutcome, Error> {
        let mut tries = 1;
        let (found, database_at) = loop {
            match Box::pin(self.scanned(scan, settings)).await {
                Ok(found) => break found,
                Err(Error::Lost | Error::Unfit(Unfit::Gone)) => return Err(Error::Lost),
                Err(error) if error.is_retryable() && tries < TRIES_MAX => {
                    pause(&error, &mut tries).await;
                }
                Err(error) => return self.fail(scan, &error).await,
            }
        };
        let mut tries = 1;
        loop {
            let ended = match self.kept(scan, &found, database_at).await {
                Ok(report) => self.end(scan, ScanOutcome::Completed(report)).await,
                Err(error) => Err(error),
            };
            match ended {
                Err(error) if error.is_retryable() && tries < TRIES_MAX => {
                    pause(&error, &mut tries).await;
                }
                Err(error @ (Error::Store(_) | Error::Deleted(_))) => {
                    return self.fail(scan, &error).await;
                }
                ended => return ended,
            }
        }
    }

    async fn fail(&self, scan: &Scan, error: &Error) -> Result<ScanOutcome, Error> {
        self.end(scan, ScanOutcome::Failed { reason: reason(error) }).await
    }

    async fn end(&self, scan: &Scan, outcome: ScanOutcome) -> Result<ScanOutcome, Error> {
        let (of, id, node) = (scan.of.clone(), scan.id, self.inner.node);
        let command = Command::EndScan { of, id, node, outcome: outcome.clone() };
        match self.inner.raft.propose(clock::now(), command).await {
            Ok(_) => Ok(outcome),
            Err(ProposeError::Refused(Refusal::BeingDeleted(object))) => {
                Err(Error::Deleted(object))
            }
            Err(ProposeError::Refused(_)) => Err(Error::Lost),
            Err(error) => Err(Error::Propose(error)),
        }
    }

    /// What the program finds, and of when its knowledge is.
    async fn scanned(
        &self,
        scan: &Scan,
        settings: &Settings,
    ) -> Result<(Found, Option<Timestamp>), Error> {
        let subject = {
            let view = self.inner.raft.read().await?;
            subject::of(view.query(), &scan.of)??
        };
        if let Subject::Disk { content_bytes, .. } = subject
            && content_bytes > settings.config.max_disk_gib.saturating_mul(GIB)
        {
            return Err(DiskError::TooLarge { content_bytes }.into());
        }
        let folder = settings.scratch.join(scan.id.to_string());
        // Of an earlier try at this node.
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).map_err(Error::Scratch)?;
        let scratch = Scratch(folder);
        let in_use = settings.database.ready(&settings.config, &scratch.0).await?;
        let output = match subject {
            Subject::Disk { recipe, content_bytes } => {
                let place = settings.room.take(&scratch.0, content_bytes)?;
                let path = scratch.0.join("disk.img");
                disk::write(&self.inner.origin, recipe, &path).await?;
                let output = run(settings, &scratch.0, Target::Disk(&path)).await;
                drop(place);
                output?
            }
            Subject::Image(manifest) => {
                // It keeps none of it, but for what the program unpacks.
                let _place = settings.room.take(&scratch.0, 0)?;
                let store = Arc::clone(&self.inner.store);
                let source = Source::open(store, *manifest).await.map_err(Error::Scratch)?;
                run(settings, &scratch.0, Target::Image(&source)).await?
            }
        };
        let database_at = settings.database.updated_at();
        drop(in_use);
        let found = tokio::task::spawn_blocking(move || parse(&output)).await;
        Ok((found.map_err(|_| Error::Lost)??, database_at))
    }

    /// Stores the list.
    async fn kept(
        &self,
        scan: &Scan,
        found: &Found,
        database_at: Option<Timestamp>,
    ) -> Result<ScanReport, Error> {
        let list = match found.list.is_empty() {
            true => None,
            false => {
                let key = ObjectKey::Pack(PackId::of(&found.list));
                let under = self.inner.raft.local().query().key_owner(scan.of.image)?;
                let bytes = Bytes::from(found.list.clone());
                put_once(&*self.inner.store, key, &under, bytes).await?;
                // It may have been there before, and on its way out.
                match first_missing(&self.inner.store, &[key]).await? {
                    Some(missing) => return Err(Error::Deleted(missing)),
                    None => Some(key),
                }
            }
        };
        Ok(ScanReport {
            id: scan.id,
            completed_at: clock::now(),
            found: found.counts,
            listed: u32::try_from(found.listed.len()).unwrap_or(u32::MAX),
            list,
            list_bytes: found.list.len() as u64,
            scanner: found.scanner.clone(),
            database_at,
        })
    }
}

/// What the program is to look at.
enum Target<'a> {
    Disk(&'a Path),
    Image(&'a Source),
}

async fn run(settings: &Settings, scratch: &Path, target: Target<'_>) -> Result<Vec<u8>, Error> {
    let config = &settings.config;
    let mut arguments = match target {
        Target::Disk(_) => vec!["vm"],
        Target::Image(_) => vec!["image", "--image-src", "remote"],
    };
    arguments.extend(["--format", "json", "--quiet", "--no-progress", "--scanners", "vuln"]);
    arguments.extend(["--list-all-pkgs=false", "--disable-telemetry", "--skip-version-check"]);
    // What was found of layers is kept in a database that takes one process at a time.
    arguments.extend(["--cache-backend", "memory"]);
    if config.ignore_unfixed {
        arguments.push("--ignore-unfixed");
    }
    let mut arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
    arguments.extend(settings.database.arguments());
    // Its own limit is shorter than many disks take; ours ends it.
    arguments.extend(["--timeout".to_owned(), format!("{}s", config.timeout_seconds)]);
    let mut variables = vec![("GOMEMLIMIT", format!("{}MiB", config.memory_mib))];
    match target {
        Target::Disk(path) => arguments.push(path.display().to_string()),
        Target::Image(source) => {
            variables.push(("TRIVY_REGISTRY_TOKEN", source.secret().to_owned()));
            arguments.push(source.reference());
        }
    }
    let run = Run {
        command: &config.command,
        arguments,
        variables,
        folder: scratch,
        limit: Duration::from_secs(config.timeout_seconds),
    };
    tokio::select! {
        output = run.output() => Ok(output?),
        () = disk::filled(scratch) => Err(DiskError::Filled.into()),
    }
}

/// Before it is tried again.
async fn pause(error: &Error, tries: &mut u32) {
    warn!(error = chain(error), tries = *tries, "a scan is tried again");
    sleep(PAUSE * *tries).await;
    *tries += 1;
}

/// For people, on one line.
fn reason(error: &Error) -> String {
    cut(chain(error), SCAN_REASON_BYTES_MAX)
}
