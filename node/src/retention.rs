//! Carries out what projects say about what they keep.
//!
//! The leader does so at every interval, for the policies that are automatic; anyone who manages a
//! project may ask for it at any node, and for what it would do. The decision is the metadata's
//! own (`shoal_metadata::judge`), the same for both; what goes, goes by commands that look at all
//! of it again, so that pushes and pulls go on meanwhile and win.
//!
//! Where a policy looks at pulls, all nodes write down first what they have noted. One that does not
//! answer writes its own down once an interval, if it lives: nothing is dropped by pulls before it was
//! silent for so long. What it lets be pulled after it fell silent may not count.
//!
//! Invariants: one repository is judged at a time; a command drops at most [`DROPPED_AT_ONCE`]
//! names; a policy that changes ends the run. Dropped versions free storage by way of `collection`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use shoal_content::{ProjectName, RepositoryName, Timestamp};
use shoal_metadata::{
    AuditSource, Command, Fault, Image, ImageKind, JudgeError, Judgement, Policy, PolicyRules,
    Refusal, Response, Subject, command_version, judge,
};
use shoal_raft::{ProposeError, Raft, ReadError};
use thiserror::Error;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use tracing::{info, warn};

use crate::clock;
use crate::deploy::Siblings;
use crate::pulls::Pulls;

const PAGE_ROWS: usize = 100;
/// Names and untagged versions of one command.
const DROPPED_AT_ONCE: usize = 200;
/// The same where each is a disk, which refers to thousands of objects.
const DISKS_AT_ONCE: usize = 4;
const PULLS_PATH: &str = "/api/v1/cluster/pulls";
/// How long a node may take to write its pulls down once their interval is over.
const WRITTEN_WITHIN: Duration = Duration::from_secs(2);

/// A silence that was last seen so many waits ago is over: the node may have been up since, and have
/// noted other pulls.
const SILENCE_AGES: u32 = 10;

/// Why a run ended early.
#[derive(Debug, Error)]
pub enum RetentionError {
    #[error("the project has no policy")]
    NoPolicy,
    #[error("the policy was changed meanwhile")]
    PolicyChanged,
    #[error("a run is under way at this node")]
    UnderWay,
    #[error("the node is stopping")]
    Stopping,
    #[error(
        "{nodes} may know of pulls that are not written down yet, and does not answer; it is waited for \
         {} s more at most", left.as_secs() + 1
    )]
    Silent { nodes: String, left: Duration },
    #[error("the metadata cannot be read")]
    Read(#[from] ReadError),
    #[error("the metadata cannot be read")]
    Rows(#[from] Fault),
    #[error("the metadata did not take a command")]
    Propose(#[from] ProposeError),
}

/// What a run did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retained {
    pub repositories: u64,
    pub tags: u64,
    pub versions: u64,
    /// Names and untagged versions that were to go, and had changed when it came to them.
    pub changed: u64,
    /// Repositories that were too large to be judged.
    pub skipped: Vec<RepositoryName>,
}

/// See the module's documentation. Clones are the same.
#[derive(Debug, Clone)]
pub struct Retainer {
    raft: Raft,
    pulls: Pulls,
    siblings: Option<Siblings>,
    /// Nodes that do not answer, by name, and since when.
    silent: Arc<Silences>,
    interval: Duration,
    running: Arc<Mutex<()>>,
    tags: Counter,
    versions: Counter,
    failures: Counter,
}

impl Retainer {
    pub fn new(raft: Raft, pulls: Pulls, interval: Duration, registry: &mut Registry) -> Self {
        let (tags, versions, failures) =
            (Counter::default(), Counter::default(), Counter::default());
        for (name, help, counter) in [
            ("shoal_retention_tags", "Tags dropped by retention", &tags),
            ("shoal_retention_versions", "Versions dropped by retention", &versions),
            ("shoal_retention_failures", "Runs of retention that ended early", &failures),
        ] {
            registry.register(name, help, counter.clone());
        }
        let (running, silent) = (Arc::new(Mutex::new(())), Arc::default());
        let siblings = None;
        Self { raft, pulls, siblings, silent, interval, running, tags, versions, failures }
    }

    /// Has pulls of these nodes count, too, that they have not written down.
    #[must_use]
    pub fn hearing(self, siblings: Siblings) -> Self {
        Self { siblings: Some(siblings), ..self }
    }

    /// Has all pulls written down that were before this, at all nodes, where `rules` look at them.
    async fn gather_pulls(&self, rules: &PolicyRules) -> Result<(), RetentionError> {
        if !rules.looks_at_pulls() {
            return Ok(());
        }
        self.pulls.write_down().await?;
        let Some(siblings) = &self.siblings else { return Ok(()) };
        let silent = siblings.tell(PULLS_PATH).await;
        match self.silent.left(&silent, Instant::now(), self.pulls.interval() + WRITTEN_WITHIN) {
            Some(left) => Err(RetentionError::Silent { nodes: silent.join(", "), left }),
            None => Ok(()),
        }
    }

    /// Runs every automatic policy at every interval while this node leads, until it is dropped.
    pub async fn run(self) {
        let mut ticks = interval_at(Instant::now() + self.interval, self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.raft.status().is_leader
                && let Err(error) = self.run_all().await
            {
                self.failures.inc();
                warn!(error = crate::http::problem::chain(&error), "retention ended early");
            }
        }
    }

    async fn run_all(&self) -> Result<(), RetentionError> {
        let mut after: Option<ProjectName> = None;
        loop {
            let page = self.raft.read().await?.query().policies(after.as_ref(), PAGE_ROWS)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.project.clone());
            for policy in page.into_iter().filter(|policy| policy.rules.automatic) {
                if let Err(RetentionError::Silent { nodes, left }) =
                    self.gather_pulls(&policy.rules).await
                {
                    info!(nodes, "retention waits for pulls of nodes that do not answer");
                    sleep(left).await;
                }
                let guard = Arc::clone(&self.running).lock_owned().await;
                let project = policy.project.clone();
                match self.carry_out(guard, policy).await {
                    Ok(_) => {}
                    // It is judged by its new policy next time.
                    Err(RetentionError::PolicyChanged) => {}
                    Err(error) => {
                        self.failures.inc();
                        let error = crate::http::problem::chain(&error);
                        warn!(%project, error, "retention of a project ended early");
                    }
                }
            }
        }
    }

    /// Carries a project's policy out now, automatic or not.
    ///
    /// # Errors
    /// What stopped it; what was dropped stays dropped.
    pub async fn run_now(&self, project: &ProjectName) -> Result<Retained, RetentionError> {
        let guard = Arc::clone(&self.running).try_lock_owned();
        let guard = guard.map_err(|_| RetentionError::UnderWay)?;
        let policy = self.raft.read().await?.query().policy(project)?;
        self.carry_out(guard, policy.ok_or(RetentionError::NoPolicy)?).await
    }

    async fn carry_out(
        &self,
        _guard: OwnedMutexGuard<()>,
        policy: Policy,
    ) -> Result<Retained, RetentionError> {
        // What was pulled a moment ago counts.
        self.gather_pulls(&policy.rules).await?;
        let (mut done, now) = (Retained::default(), clock::now());
        let mut after = None;
        while let Some(image) = self.next_image(&policy.project, after.as_ref()).await? {
            after = Some(image.name.clone());
            done.repositories += 1;
            let kind = image.kind;
            match self.judge(image, &policy.rules, now).await? {
                Some(judgement) => self.drop_judged(&judgement, kind, &policy, &mut done).await?,
                None => done.skipped.extend(after.clone()),
            }
        }
        let Retained { repositories, tags, versions, changed, .. } = done;
        if tags + versions + changed > 0 {
            let project = policy.project;
            info!(%project, repositories, tags, versions, changed, "retention was carried out");
        }
        Ok(done)
    }

    /// A project's policy does it; by whom that was set is in the trail.
    fn audited(&self, command: Command) -> Command {
        let level = self.raft.local().query().level();
        if !level.is_ok_and(|level| level >= command_version(&Command::CountUsage)) {
            return command;
        }
        let source = AuditSource { who: "policy".to_owned(), ..AuditSource::default() };
        Command::Audited { source, command: Box::new(command) }
    }

    async fn drop_judged(
        &self,
        judgement: &Judgement,
        kind: ImageKind,
        policy: &Policy,
        done: &mut Retained,
    ) -> Result<(), RetentionError> {
        let at_once = match kind {
            ImageKind::Container => DROPPED_AT_ONCE,
            ImageKind::Disk => DISKS_AT_ONCE,
        };
        for batch in judgement.retire(policy.revision).batches(at_once) {
            let wanted = (batch.tags.len() + batch.numbers.len() + batch.untagged.len()) as u64;
            let retire = self.audited(Command::Retire(batch));
            match self.raft.propose(clock::now(), retire).await {
                Ok(Response::Retired { tags, versions }) => {
                    let (tags, versions) = (tags.len() as u64, versions.len() as u64);
                    self.tags.inc_by(tags);
                    self.versions.inc_by(versions);
                    done.tags += tags;
                    done.versions += versions;
                    done.changed += wanted.saturating_sub(tags + versions);
                }
                Ok(_) => {}
                Err(ProposeError::Refused(Refusal::NotFound(Subject::Image))) => return Ok(()),
                Err(ProposeError::Refused(Refusal::PolicyChanged)) => {
                    return Err(RetentionError::PolicyChanged);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Hands what would be decided about each repository now to `each`, and changes nothing; gives
    /// the repositories that are too large to be judged.
    ///
    /// # Errors
    /// Where the metadata cannot be read.
    pub async fn dry_run(
        &self,
        project: &ProjectName,
        rules: &PolicyRules,
        mut each: impl FnMut(Judgement),
    ) -> Result<Vec<RepositoryName>, RetentionError> {
        match self.gather_pulls(rules).await {
            // Nothing is dropped by this.
            Ok(()) | Err(RetentionError::Silent { .. }) => {}
            Err(error) => return Err(error),
        }
        let (now, mut skipped) = (clock::now(), Vec::new());
        let mut after = None;
        while let Some(image) = self.next_image(project, after.as_ref()).await? {
            after = Some(image.name.clone());
            match self.judge(image, rules, now).await? {
                Some(judgement) => each(judgement),
                None => skipped.extend(after.clone()),
            }
        }
        Ok(skipped)
    }

    async fn next_image(
        &self,
        project: &ProjectName,
        after: Option<&RepositoryName>,
    ) -> Result<Option<Image>, RetentionError> {
        Ok(self.raft.read().await?.query().images_of(project, after, 1)?.pop())
    }

    /// `None` where it is too large.
    async fn judge(
        &self,
        image: Image,
        rules: &PolicyRules,
        now: Timestamp,
    ) -> Result<Option<Judgement>, RetentionError> {
        let (view, rules) = (self.raft.read().await?, rules.clone());
        let repository = image.name.clone();
        let judged = tokio::task::spawn_blocking(move || judge(view.query(), &rules, &image, now));
        match judged.await.map_err(|_| RetentionError::Stopping)? {
            Ok(judgement) => Ok(Some(judgement)),
            Err(JudgeError::Fault(fault)) => Err(fault.into()),
            Err(error @ JudgeError::TooLarge) => {
                warn!(%repository, %error, "retention leaves a repository alone");
                Ok(None)
            }
        }
    }
}

/// Since when which nodes do not answer, and when that was last seen.
#[derive(Debug, Default)]
struct Silences(parking_lot::Mutex<BTreeMap<String, (Instant, Instant)>>);

impl Silences {
    /// How much longer those that are silent `now` are to be waited for, so that none was silent for
    /// less than `wait`.
    fn left(&self, silent: &[String], now: Instant, wait: Duration) -> Option<Duration> {
        let ages = wait.saturating_mul(SILENCE_AGES);
        let mut known = self.0.lock();
        known.retain(|node, (_, seen)| {
            silent.contains(node) && now.saturating_duration_since(*seen) <= ages
        });
        let since = |node: &String| {
            let (since, seen) = known.entry(node.clone()).or_insert((now, now));
            *seen = now;
            *since
        };
        let since = silent.iter().map(since).max()?;
        let left = (since + wait).saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_silent_is_waited_for_from_when_it_fell_silent() {
        let silences = Silences::default();
        let (begin, wait) = (Instant::now(), Duration::from_secs(60));
        let left = |nodes: &[&str], seconds| {
            let nodes: Vec<String> = nodes.iter().map(|node| (*node).to_owned()).collect();
            let left = silences.left(&nodes, begin + Duration::from_secs(seconds), wait);
            left.map(|left| left.as_secs())
        };
        assert_eq!(left(&[], 0), None);
        assert_eq!(left(&["a"], 10), Some(60));
        assert_eq!(left(&["a"], 50), Some(20));
        assert_eq!(left(&["a", "b"], 65), Some(60));
        assert_eq!(left(&["a"], 70), None);
        // Who has answered since may know of other pulls.
        assert_eq!(left(&[], 80), None);
        assert_eq!(left(&["a"], 90), Some(60));
        // So may who was not asked for long.
        assert_eq!(left(&["a"], 690), None);
        assert_eq!(left(&["a"], 1_291), Some(60));
    }
}
