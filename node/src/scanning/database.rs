//! What the scanner knows of vulnerabilities: databases that it gets by itself, in a folder of this
//! node's that all its scans share.
//!
//! They are got in a run of their own, without the secret of any image: what is sent to the registry
//! that they come from is nothing of this cluster's.
//!
//! Invariants: while one is got, nothing is scanned, and the other way round; one that cannot be got
//! anew is used as it is.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use shoal_content::Timestamp;
use tokio::sync::{RwLock, RwLockReadGuard};
use tokio::time::Instant;
use tracing::warn;

use super::program::{ProgramError, Run};
use crate::clock;
use crate::config;
use crate::http::problem::chain;

/// How often the scanner is asked to see whether there is a newer one, after it was and after it was
/// in vain.
const LOOK_INTERVAL: Duration = Duration::from_secs(3600);
const RETRY_INTERVAL: Duration = Duration::from_secs(300);
/// How long getting one may take.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(3600);
/// What is longer says nothing of a database.
const METADATA_BYTES_MAX: u64 = 64 * 1024;
/// What is not looked at without the other database.
const JAVA_ARCHIVES: &str = "**/*.jar,**/*.war,**/*.ear,**/*.par";

/// See the module's documentation.
#[derive(Debug)]
pub struct Database {
    /// The scanner's own; under `db` and `java-db`.
    cache: PathBuf,
    /// When it is to be looked for again.
    due: RwLock<Option<Instant>>,
}

/// Nothing is changed under whoever has one.
pub type InUse<'a> = RwLockReadGuard<'a, Option<Instant>>;

#[derive(Deserialize)]
struct Metadata {
    #[serde(rename = "UpdatedAt")]
    updated_at: Option<String>,
}

impl Database {
    pub fn new(cache: PathBuf) -> Self {
        Self { cache, due: RwLock::new(None) }
    }

    /// Gets what is newer, where that is to be looked for, and holds it as it is then.
    ///
    /// # Errors
    /// Where there is none and none can be got.
    pub async fn ready(
        &self,
        settings: &config::Scanner,
        scratch: &Path,
    ) -> Result<InUse<'_>, ProgramError> {
        let is_due = |due: Option<Instant>| due.is_none_or(|due| due <= Instant::now());
        let held = self.due.read().await;
        if settings.offline || !is_due(*held) {
            return Ok(held);
        }
        drop(held);
        let mut due = self.due.write().await;
        // Somebody may have been quicker.
        if is_due(*due) {
            let got = self.get_all(settings, scratch).await;
            let pause = if got.is_ok() { LOOK_INTERVAL } else { RETRY_INTERVAL };
            match got {
                Err(error) if !self.cache.join("db/trivy.db").exists() => return Err(error),
                Err(error) => {
                    warn!(error = chain(&error), "the database of vulnerabilities stays as it is");
                }
                Ok(()) => {}
            }
            *due = Some(Instant::now() + pause);
        }
        Ok(due.downgrade())
    }

    async fn get_all(
        &self,
        settings: &config::Scanner,
        scratch: &Path,
    ) -> Result<(), ProgramError> {
        self.get(settings, scratch, "--download-db-only", &settings.db_repository).await?;
        if settings.java {
            let repository = &settings.java_db_repository;
            self.get(settings, scratch, "--download-java-db-only", repository).await?;
        }
        Ok(())
    }

    async fn get(
        &self,
        settings: &config::Scanner,
        scratch: &Path,
        which: &str,
        repository: &Option<String>,
    ) -> Result<(), ProgramError> {
        let mut arguments = vec!["image".to_owned(), which.to_owned()];
        arguments.extend(["--quiet", "--no-progress", "--cache-dir"].map(str::to_owned));
        arguments.push(self.cache.display().to_string());
        if let Some(repository) = repository {
            let option = match which {
                "--download-java-db-only" => "--java-db-repository",
                _ => "--db-repository",
            };
            arguments.extend([option.to_owned(), repository.clone()]);
        }
        let run = Run {
            command: &settings.command,
            arguments,
            variables: Vec::new(),
            folder: scratch,
            limit: DOWNLOAD_TIMEOUT,
        };
        run.output().await.map(drop)
    }

    /// What every scan is told of it.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments: Vec<String> =
            ["--skip-db-update", "--skip-java-db-update", "--offline-scan", "--cache-dir"]
                .map(str::to_owned)
                .into();
        arguments.push(self.cache.display().to_string());
        if !self.cache.join("java-db/trivy-java.db").exists() {
            // One that is met without its database fails the whole scan.
            arguments.extend(["--skip-files".to_owned(), JAVA_ARCHIVES.to_owned()]);
        }
        arguments
    }

    /// Of when it is, where it says so.
    pub fn updated_at(&self) -> Option<Timestamp> {
        let metadata: Metadata = serde_json::from_slice(&self.metadata().ok()?).ok()?;
        clock::parsed(&metadata.updated_at?)
    }

    fn metadata(&self) -> io::Result<Vec<u8>> {
        use std::io::Read;
        let mut bytes = Vec::new();
        let file = std::fs::File::open(self.cache.join("db/metadata.json"))?;
        file.take(METADATA_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A scanner that writes down what it is asked, and gets a database unless it is told not to.
    const SCRIPT: &str = "echo \"$*\" >> $0.asked; [ ! -e $0.away ] || exit 1; \
                          mkdir -p $0.cache/db; echo > $0.cache/db/trivy.db";

    struct World(tempfile::TempDir);

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("s"), SCRIPT).unwrap();
            Self(folder)
        }

        fn settings(&self) -> config::Scanner {
            let script = self.0.path().join("s").display().to_string();
            let command = vec!["/bin/sh".to_owned(), script];
            config::Scanner { command, ..config::Scanner::default() }
        }

        fn database(&self) -> Database {
            Database::new(self.0.path().join("s.cache"))
        }

        fn asked(&self) -> Vec<String> {
            let text = fs::read_to_string(self.0.path().join("s.asked")).unwrap_or_default();
            text.lines().map(|line| line.split(" --quiet").next().unwrap().to_owned()).collect()
        }
    }

    #[tokio::test]
    async fn it_is_got_once_and_used_by_all() {
        let world = World::new();
        let database = world.database();
        let settings = config::Scanner { java: true, ..world.settings() };
        let one = database.ready(&settings, world.0.path()).await.unwrap();
        let other = database.ready(&settings, world.0.path()).await.unwrap();
        drop((one, other));
        assert_eq!(world.asked(), ["image --download-db-only", "image --download-java-db-only"]);
    }

    #[tokio::test]
    async fn one_that_cannot_be_got_anew_is_used_and_without_any_nothing_is_scanned() {
        let world = World::new();
        fs::write(world.0.path().join("s.away"), "").unwrap();
        let (settings, folder) = (world.settings(), world.0.path());
        assert!(world.database().ready(&settings, folder).await.is_err());
        fs::create_dir_all(folder.join("s.cache/db")).unwrap();
        fs::write(folder.join("s.cache/db/trivy.db"), "").unwrap();
        drop(world.database().ready(&settings, folder).await.unwrap());
        assert_eq!(world.asked().len(), 2);
    }

    #[tokio::test]
    async fn offline_nothing_is_got() {
        let world = World::new();
        let settings = config::Scanner { offline: true, ..world.settings() };
        drop(world.database().ready(&settings, world.0.path()).await.unwrap());
        assert!(world.asked().is_empty());
    }

    #[test]
    fn says_of_when_it_is_and_leaves_java_archives_out_without_theirs() {
        let world = World::new();
        let (database, cache) = (world.database(), world.0.path().join("s.cache"));
        assert_eq!(database.updated_at(), None);
        assert!(database.arguments().contains(&JAVA_ARCHIVES.to_owned()));
        for folder in ["db", "java-db"] {
            fs::create_dir_all(cache.join(folder)).unwrap();
        }
        let text = r#"{"Version":2,"UpdatedAt":"2026-01-01T00:00:00.5Z"}"#;
        fs::write(cache.join("db/metadata.json"), text).unwrap();
        fs::write(cache.join("java-db/trivy-java.db"), "").unwrap();
        assert_eq!(database.updated_at(), clock::parsed("2026-01-01T00:00:00.5Z"));
        assert!(!database.arguments().contains(&JAVA_ARCHIVES.to_owned()));
    }
}
