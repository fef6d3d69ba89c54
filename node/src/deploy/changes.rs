//! What hosts come to in their deployments, written down together.
//!
//! A deployment's row has all of its hosts, thousands perhaps, and many of them begin and end at the same
//! moment. So what comes within [`GATHERED_FOR`] is judged by one reading of the rows and written by
//! few commands, and each host is answered once that is applied.
//!
//! Invariant: at most [`WAITING_MAX`] wait; further ones are sent away, and come again.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use parking_lot::Mutex;
use shoal_api::TransferProgress;
use shoal_content::{DeploymentId, PeerId};
use shoal_metadata::{Command, HostReport, HostState, Query, REPORTS_MAX, Read};
use shoal_raft::{ProposeError, Raft};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::board::{Board, Reported};
use crate::clock;
use crate::http::problem::Problem;

const GATHERED_FOR: Duration = Duration::from_millis(100);
/// More than one deployment has hosts.
const WAITING_MAX: usize = 20_000;
/// The longest reason that is kept.
pub const REASON_CHARS_MAX: usize = 1000;

/// What a host says of its attempt.
#[derive(Debug, Clone)]
pub struct HostChange {
    pub deployment: DeploymentId,
    pub peer: PeerId,
    pub attempt: u32,
    pub progress: TransferProgress,
}

type Answer = Result<(), Problem>;
type HostReports = BTreeMap<DeploymentId, BTreeMap<PeerId, HostReport>>;
/// Of each change its verdict, and what of them is written.
type Judged = (Vec<Result<Verdict, Problem>>, HostReports);

#[derive(Debug)]
struct Waiting {
    change: HostChange,
    answer: Asker,
}

/// Who waits, and its place among those who may.
#[derive(Debug)]
struct Asker {
    answer: oneshot::Sender<Answer>,
    _place: OwnedSemaphorePermit,
}

impl Asker {
    fn tell(self, answer: Answer) {
        // Whoever gave up needs no answer.
        let _ = self.answer.send(answer);
    }
}

/// See the module's documentation. Clones gather together.
#[derive(Debug, Clone)]
pub struct HostChanges {
    raft: Raft,
    board: Board,
    waiting: Arc<Mutex<Vec<Waiting>>>,
    places: Arc<Semaphore>,
}

/// What becomes of what a host said.
#[derive(Debug, Clone, Copy)]
struct Verdict {
    /// Whether watchers are to see it: what an attempt that is over says is no news, but that the
    /// version is there.
    is_news: bool,
    is_written: bool,
}

impl HostChanges {
    pub fn new(raft: Raft, board: Board) -> Self {
        let places = Arc::new(Semaphore::new(WAITING_MAX));
        Self { raft, board, waiting: Arc::default(), places }
    }

    /// Returns once it is on the board, and in the rows where it belongs there.
    ///
    /// # Errors
    /// Where the host has no such deployment, its state is none, too many wait, or the metadata do
    /// not answer.
    pub async fn report(&self, change: HostChange) -> Answer {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return Err(Problem::too_often(GATHERED_FOR));
        };
        let answer = {
            let mut waiting = self.waiting.lock();
            let (sender, answer) = oneshot::channel();
            let is_first = waiting.is_empty();
            waiting.push(Waiting { change, answer: Asker { answer: sender, _place: place } });
            if is_first {
                // Not in the request: that may be given up, and others wait for this.
                tokio::spawn(self.clone().write_down());
            }
            answer
        };
        answer.await.unwrap_or_else(|_| Err(Problem::too_often(GATHERED_FOR)))
    }

    /// Notes on the board what needs no more than that.
    pub fn record(&self, change: HostChange) {
        let HostChange { deployment, peer, attempt, progress } = change;
        self.board.record(deployment, peer, Reported { progress, heard_at: clock::now(), attempt });
    }

    async fn write_down(self) {
        tokio::time::sleep(GATHERED_FOR).await;
        let mut waiting = std::mem::take(&mut *self.waiting.lock());
        while !waiting.is_empty() {
            let rest = waiting.split_off(waiting.len().min(REPORTS_MAX));
            self.write(std::mem::replace(&mut waiting, rest)).await;
        }
    }

    async fn write(&self, waiting: Vec<Waiting>) {
        let (changes, answers): (Vec<HostChange>, Vec<_>) =
            waiting.into_iter().map(|one| (one.change, one.answer)).unzip();
        let (verdicts, reports) = match self.judged(&changes).await {
            Ok(judged) => judged,
            Err(problem) => {
                for asker in answers {
                    asker.tell(Err(problem.clone()));
                }
                return;
            }
        };
        let begins = |change: &HostChange, verdict: &Verdict| {
            verdict.is_written && change.progress.state == "running"
        };
        // Before the row has an end: whoever watches looks no more then.
        for (change, verdict) in changes.iter().zip(&verdicts) {
            if let Ok(verdict) = verdict
                && verdict.is_news
                && !begins(change, verdict)
            {
                self.record(change.clone());
            }
        }
        let written = if reports.is_empty() { Ok(()) } else { self.propose(reports).await };
        for ((change, verdict), asker) in changes.into_iter().zip(verdicts).zip(answers) {
            let outcome = match verdict {
                Ok(verdict) if !verdict.is_written => Ok(()),
                Ok(verdict) => {
                    // That it began is replicated first: once it is on the board, the row is not
                    // looked at.
                    if written.is_ok() && verdict.is_news && begins(&change, &verdict) {
                        self.record(change);
                    }
                    written.clone()
                }
                Err(problem) => Err(problem),
            };
            asker.tell(outcome);
        }
    }

    /// By the leader's rows: an end is said once, and this node may be behind.
    async fn judged(&self, changes: &[HostChange]) -> Result<Judged, Problem> {
        let view = self.raft.read().await?;
        judge(view.query(), changes)
    }

    async fn propose(&self, reports: HostReports) -> Answer {
        let together = Command::ReportHosts { reports: reports.clone() };
        match self.raft.propose(clock::now(), together).await {
            Err(ProposeError::Unsupported { .. }) => {}
            answer => return answer.map(drop).map_err(Problem::from),
        }
        // Nodes of an earlier version know only what is said of one host, and no plans.
        for (deployment, hosts) in reports {
            for (peer, HostReport { state, .. }) in hosts {
                let alone = Command::ReportHost { deployment, peer, state };
                self.raft.propose(clock::now(), alone).await?;
            }
        }
        Ok(())
    }
}

/// Looks at each deployment once, however many of its hosts say something.
fn judge<R: Read>(query: Query<'_, R>, changes: &[HostChange]) -> Result<Judged, Problem> {
    let (mut verdicts, mut reports) = (Vec::with_capacity(changes.len()), HostReports::new());
    let mut standings: BTreeMap<DeploymentId, BTreeMap<PeerId, Standing>> = BTreeMap::new();
    for change in changes {
        let HostChange { deployment, peer, attempt, progress } = change;
        let hosts = match standings.entry(*deployment) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(all_standings(query, *deployment)?),
        };
        let Some(standing) = hosts.get_mut(peer) else {
            let text = "this agent has no such deployment";
            let unknown = Problem::new(StatusCode::NOT_FOUND, "deployment_not_found", text);
            verdicts.push(Err(unknown));
            continue;
        };
        verdicts.push(next_state(standing, *attempt, progress).map(|next| {
            let is_news = *attempt == standing.attempt || progress.state == "done";
            let is_written = next.is_some();
            if let Some(state) = next {
                // Should the same host say more, it is judged by this.
                standing.state = state.clone();
                let report = HostReport { attempt: *attempt, state };
                reports.entry(*deployment).or_default().insert(*peer, report);
            }
            Verdict { is_news, is_written }
        }));
    }
    Ok((verdicts, reports))
}

/// What the rows have of a host in a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub state: HostState,
    pub attempt: u32,
}

/// Nothing for a deployment that is not there, or a host that has no part in it.
///
/// # Errors
/// Where the rows cannot be read.
pub fn standing<R: Read>(
    query: Query<'_, R>,
    id: DeploymentId,
    peer: PeerId,
) -> Result<Option<Standing>, Problem> {
    Ok(all_standings(query, id)?.remove(&peer))
}

fn all_standings<R: Read>(
    query: Query<'_, R>,
    id: DeploymentId,
) -> Result<BTreeMap<PeerId, Standing>, Problem> {
    let Some(row) = query.deployment(id)? else { return Ok(BTreeMap::new()) };
    let plan = query.deployment_plan(id)?.unwrap_or_default();
    let standing = |(peer, state)| (peer, Standing { state, attempt: plan.attempt(peer) });
    Ok(row.hosts.into_iter().map(standing).collect())
}

/// What is to be replicated of a report, if anything.
///
/// # Errors
/// Where its state is none.
pub fn next_state(
    standing: &Standing,
    attempt: u32,
    progress: &TransferProgress,
) -> Result<Option<HostState>, Problem> {
    let sum = |bytes: &BTreeMap<String, u64>| bytes.values().sum();
    let next = match progress.state.as_str() {
        "running" => HostState::Running,
        "done" => HostState::Done {
            bytes_from_peers: sum(&progress.bytes_by_peer),
            bytes_from_nodes: sum(&progress.bytes_by_node),
            // What did not cross the network: a bundle's own bytes did.
            bytes_local: progress.bytes_local
                + progress.bytes_by_delta.saturating_sub(progress.delta_bundle_bytes),
        },
        "failed" => {
            let reason = progress.last_error.as_deref().unwrap_or("the agent gave no reason");
            HostState::Failed { reason: reason.chars().take(REASON_CHARS_MAX).collect() }
        }
        _ => {
            let text = "state is running, done or failed";
            return Err(Problem::bad_request("state_invalid", text));
        }
    };
    let changes = match (&standing.state, &next) {
        (HostState::Done { .. }, _) => false,
        (_, HostState::Done { .. }) => true,
        _ if attempt != standing.attempt => false,
        (HostState::Queued, _) => false,
        (HostState::Waiting, _) => true,
        (HostState::Running | HostState::Failed { .. }, HostState::Running) => false,
        (old, next) => old != next,
    };
    Ok(changes.then_some(next))
}

#[cfg(test)]
mod tests {
    use shoal_content::{Digest, Timestamp};
    use shoal_metadata::{Deployment, Memory, Table, encode_row};
    use uuid::Uuid;

    use super::*;

    fn progress(state: &str) -> TransferProgress {
        TransferProgress { state: state.into(), bytes_local: 4, ..TransferProgress::default() }
    }

    #[test]
    fn only_changes_of_state_are_replicated() {
        let done = HostState::Done { bytes_from_peers: 0, bytes_from_nodes: 0, bytes_local: 4 };
        let of = |state: &HostState| Standing { state: state.clone(), attempt: 2 };
        let next = |state: &HostState, text| next_state(&of(state), 2, &progress(text)).unwrap();
        assert_eq!(next(&HostState::Waiting, "running"), Some(HostState::Running));
        assert_eq!(next(&HostState::Running, "running"), None);
        assert_eq!(next(&HostState::Running, "done"), Some(done.clone()));
        assert_eq!(next(&done, "done"), None);
        assert_eq!(next(&done, "failed"), None);
        let failed = next(&HostState::Running, "failed").unwrap();
        assert_eq!(next(&failed, "failed"), None);
        assert_eq!(next(&failed, "done"), Some(done));
        assert!(next_state(&of(&HostState::Waiting), 2, &progress("odd")).is_err());
        // Of an attempt before, only the end that is for good counts.
        let before = |text| next_state(&of(&HostState::Waiting), 1, &progress(text)).unwrap();
        assert_eq!((before("running"), before("failed")), (None, None));
        assert_eq!(before("done"), next(&HostState::Queued, "done"));
        assert_eq!(next(&HostState::Queued, "running"), None);
    }

    #[test]
    fn hosts_are_judged_together_by_one_row_and_each_after_what_it_said_before() {
        let (mut rows, id) = (Memory::default(), DeploymentId::from_uuid(Uuid::from_u128(5)));
        let host = |number| PeerId::from_public_key([number; 32]);
        let row = Deployment {
            id,
            image: "a/b".parse().unwrap(),
            digest: Digest::sha256([1; 32]),
            tag: None,
            created_at: Timestamp::from_millis(1),
            created_by: "admin".to_owned(),
            hosts: (1..=3).map(|number| (host(number), HostState::Waiting)).collect(),
            cancelled: false,
        };
        let key = (Table::Deployments, id.as_uuid().as_bytes().to_vec());
        rows.commit([(key, Some(encode_row(&row)))].into());
        let says = |number, attempt, state| HostChange {
            deployment: id,
            peer: host(number),
            attempt,
            progress: progress(state),
        };
        let changes = [
            says(1, 0, "running"),
            says(1, 0, "done"),
            says(1, 0, "failed"),
            says(2, 4, "failed"),
            says(3, 0, "odd"),
            says(9, 0, "done"),
        ];
        let (verdicts, reports) = judge(Query::new(&rows), &changes).unwrap();
        let shown = |verdict: &Result<Verdict, Problem>| match verdict {
            Ok(verdict) => Ok((verdict.is_news, verdict.is_written)),
            Err(problem) => Err(problem.status.as_u16()),
        };
        let shown: Vec<_> = verdicts.iter().map(shown).collect();
        let (written, over) = (Ok((true, true)), Ok((false, false)));
        assert_eq!(shown, [written, written, Ok((true, false)), over, Err(400), Err(404)]);
        let [(peer, report)] = reports[&id].iter().collect::<Vec<_>>()[..] else {
            panic!("{reports:?}")
        };
        assert_eq!((*peer, report.attempt), (host(1), 0));
        assert!(matches!(report.state, HostState::Done { .. }), "{report:?}");
    }
}
