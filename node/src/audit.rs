//! The audit trail at this node: notes on their way into it, and old entries on their way out.
//!
//! A change is recorded by the command that makes it (see `shoal_metadata`, `audit`). What changes
//! nothing – pulls, logins, refusals – is noted here, in memory and in a file (`journal`), in the order in
//! which it happens, and goes into the trail with one command a second. A node that fell puts in what it
//! had noted, when it starts again, and goes on where it was.
//!
//! What can be lost: a machine that falls takes along what was noted since the last command, which is
//! [`FLUSH_INTERVAL`] of notes while there is a leader, and the trail says since when; notes beyond
//! [`NOTES_MAX`], and refusals beyond [`REFUSALS_OF_ONE_MAX`], with which somebody could displace what others
//! do, are only counted, and the trail says how many (at least one, where the node fell before it said so).
//!
//! Crash order of an archive: the object, then the command that lets the entries go. A crash
//! between leaves an object that no row names, for the scrub.

pub mod journal;

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use shoal_content::{NodeId, ObjectKey, PackId, Timestamp};
use shoal_metadata::{
    AUDIT_BATCH_MAX, AuditArchive, AuditBatch, AuditEntry, AuditHash, AuditNote, AuditPhase,
    AuditResult, AuditSource, CodecError, Command, Fault, KeyOwner, Query, Read, Refusal, chained,
    command_version, decode_row, encode_row, folded,
};
use shoal_raft::{ProposeError, Raft, ReadError};
use thiserror::Error;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::{debug, info, warn};

use crate::clock;
use crate::http::noted;
use crate::http::problem::chain;
use crate::store::{self, BlobStore, StoreError};
use journal::{Found, Journal};

/// Between two commands.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// Notes that wait.
const NOTES_MAX: usize = 20_000;
/// Refusals of one account among them, or of one address where nobody is known.
const REFUSALS_OF_ONE_MAX: u32 = 200;
/// The longest archive that is read back.
const ARCHIVE_BYTES_MAX: u64 = 64 * 1024 * 1024;

#[derive(Debug, Error)]
pub enum Error {
    #[error("the rows cannot be read")]
    Rows(#[from] Fault),
    #[error("the metadata do not answer")]
    Read(#[from] ReadError),
    #[error("the metadata do not take it")]
    Propose(#[from] ProposeError),
    #[error("storage does not answer")]
    Store(#[from] StoreError),
    #[error("the archive {0} is not there, or far too long")]
    Missing(ObjectKey),
    #[error("an archive cannot be read")]
    Archive(#[from] CodecError),
}

#[derive(Debug, Default)]
struct Pending {
    notes: Vec<AuditNote>,
    /// Refusals since the last batch was made up, by whom they met.
    refused: HashMap<String, u32>,
    lost: u64,
    /// Of this process, or of the one before that it goes on with.
    run: u64,
    /// The number of the next batch.
    batch: u64,
    /// A batch that was proposed, and whose answer did not come.
    sent: Option<AuditBatch>,
    /// `None` where it cannot be written: then a fall is told as a gap.
    journal: Option<Journal>,
}

impl Pending {
    /// Says whether there was room.
    fn take(&mut self, note: AuditNote) -> bool {
        let room = self.notes.len() < NOTES_MAX && self.has_room_for_refusal(&note);
        match room {
            true => {
                self.keep(|journal| journal.note(&note));
                self.notes.push(note);
            }
            false => {
                if self.lost == 0 {
                    self.keep(Journal::lost);
                }
                self.lost += 1;
            }
        }
        room
    }

    /// What cannot be kept ends the journal: half of one would tell of a run that it does not know.
    fn keep(&mut self, write: impl FnOnce(&mut Journal) -> io::Result<()>) {
        let Some(journal) = &mut self.journal else { return };
        if let Err(error) = write(journal) {
            warn!(%error, "notes for the audit trail are kept in memory alone from now on");
            self.end_journal();
        }
    }

    fn end_journal(&mut self) {
        if let Some(Err(error)) = self.journal.take().map(Journal::end) {
            warn!(%error, "what was kept for the audit trail cannot be removed");
        }
    }

    /// Nothing is on its way any more.
    fn keep_rest(&mut self) {
        let Self { run, batch, notes, lost, journal: Some(journal), .. } = self else { return };
        let written = journal.restart((*run, *batch), notes, *lost);
        self.keep(|_| written);
    }

    /// Takes over what an earlier process has left, of whose batches the trail has those up to `last`.
    fn recover(&mut self, node: NodeId, at: Timestamp, found: Found, last: Option<(u64, u64)>) {
        let Found { run, batch, sent, mut notes, lost, is_whole } = found;
        let ended = sent.as_ref().is_some_and(|sent| sent.phase == AuditPhase::Ends);
        let sent_notes = sent.as_ref().map_or(0, |sent| sent.notes.len());
        let next = batch + u64::from(sent.is_some());
        // The file may be an old copy, with numbers that were given out again since.
        if is_whole && !ended && last.is_none_or(|last| last < (run, next)) {
            (self.run, self.batch) = (run, next);
        } else {
            // Another run, which says in the trail that the one before did not end.
            self.run = self.run.max(run.saturating_add(1));
        }
        self.sent = sent.map(|sent| AuditBatch {
            node,
            run,
            batch,
            phase: sent.phase,
            notes: folded(sent.notes),
            lost: sent.lost,
        });
        // A machine that fell may have kept the file as it was some batches ago, of which each took what
        // stood first then.
        if let Some((of, done)) = last
            && of == run
            && done >= next
        {
            let batches = usize::try_from(done - next).unwrap_or(usize::MAX).saturating_add(1);
            notes.drain(..notes.len().min(batches.saturating_mul(AUDIT_BATCH_MAX)));
        }
        self.lost = lost;
        let kept = (sent_notes + notes.len()) as u64;
        self.notes = notes;
        info!(notes = kept, "notes for the audit trail were left by a process that fell");
        let source = AuditSource {
            who: format!("node:{node}"),
            node: node.number(),
            ..AuditSource::default()
        };
        let (action, target) = ("audit.recover".to_owned(), format!("{kept} notes"));
        let result = AuditResult::Done;
        self.take(AuditNote { at, source, action, target, result, count: 1 });
    }

    fn has_room_for_refusal(&mut self, note: &AuditNote) -> bool {
        if note.result == AuditResult::Done {
            return true;
        }
        let AuditSource { who, from, .. } = &note.source;
        let whose = if who.is_empty() { from } else { who };
        let count = self.refused.entry(whose.clone()).or_default();
        *count = count.saturating_add(1);
        *count <= REFUSALS_OF_ONE_MAX
    }
}

#[derive(Debug)]
struct Inner {
    raft: Raft,
    node: NodeId,
    pending: Mutex<Pending>,
    /// One batch at a time.
    turn: tokio::sync::Mutex<()>,
    store: Arc<dyn BlobStore>,
    keep_ms: u64,
    every: Duration,
    lost: Counter,
}

/// See the module's documentation. Clones note together.
#[derive(Debug, Clone)]
pub struct Audit {
    inner: Arc<Inner>,
}

impl Audit {
    /// With a file for notes that wait, of which what `member` has left is taken over.
    pub fn new(
        raft: Raft,
        node: NodeId,
        store: Arc<dyn BlobStore>,
        settings: &crate::config::Audit,
        (file, member): (&Path, &str),
        registry: &mut Registry,
    ) -> Self {
        const DAY_MS: u64 = 24 * 3600 * 1000;
        let lost = Counter::default();
        let help = "Notes for the audit trail that there was no room for";
        registry.register("shoal_audit_lost", help, lost.clone());
        let pending = Mutex::new(begun(&raft, node, file, member));
        let inner = Inner {
            raft,
            node,
            pending,
            turn: tokio::sync::Mutex::new(()),
            store,
            keep_ms: u64::from(settings.keep_days) * DAY_MS,
            every: Duration::from_secs(settings.archive_interval_seconds),
            lost,
        };
        Self { inner: Arc::new(inner) }
    }

    /// On whose behalf this request is answered; nothing outside of one.
    pub fn source(&self) -> Option<AuditSource> {
        noted::current().map(|noted| self.source_of(&noted))
    }

    pub fn source_of(&self, noted: &noted::Noted) -> AuditSource {
        AuditSource {
            who: noted.user.get().cloned().unwrap_or_default(),
            from: noted.client.map(|client| client.to_canonical().to_string()).unwrap_or_default(),
            request: noted.id.clone(),
            node: self.inner.node.number(),
        }
    }

    /// Notes what happened in this request.
    pub fn note(&self, action: &str, target: impl Into<String>, result: AuditResult) {
        let source = self.source().unwrap_or_default();
        self.note_as(source, action, target, result);
    }

    pub fn note_as(
        &self,
        source: AuditSource,
        action: &str,
        target: impl Into<String>,
        result: AuditResult,
    ) {
        let (at, action, target) = (clock::now(), action.to_owned(), target.into());
        let note = AuditNote { at, source, action, target, result, count: 1 };
        if !self.inner.pending.lock().take(note) {
            self.inner.lost.inc();
        }
    }

    /// The command as it is proposed on this request's behalf.
    pub fn signed(&self, command: Command) -> Command {
        match self.source() {
            Some(source) if self.is_known() => {
                Command::Audited { source, command: Box::new(command) }
            }
            _ => command,
        }
    }

    /// Whether every node knows of the trail.
    fn is_known(&self) -> bool {
        let archive = |level| level >= command_version(&Command::CountUsage);
        self.inner.raft.local().query().level().is_ok_and(archive)
    }

    /// Proposes what was noted, and archives what is old. Runs until it is dropped.
    pub async fn run(self) {
        let mut ticks = interval_at(Instant::now(), FLUSH_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut archived = Instant::now();
        loop {
            ticks.tick().await;
            if let Err(error) = self.flush(AuditPhase::Goes).await {
                debug!(error = chain(&error), "the notes wait for the audit trail");
            }
            let due = archived.elapsed() >= self.inner.every;
            if due && self.inner.raft.status().is_leader {
                archived = Instant::now();
                if let Err(error) = self.archive(clock::now()).await {
                    warn!(error = chain(&error), "old entries of the audit trail stay for now");
                }
            }
        }
    }

    /// Puts what was noted into the trail.
    ///
    /// # Errors
    /// Where the metadata do not take it; it waits for the next time.
    pub async fn flush(&self, phase: AuditPhase) -> Result<(), Error> {
        if !self.is_known() {
            return Ok(());
        }
        let _turn = self.inner.turn.lock().await;
        loop {
            let Some(batch) = self.next_batch(phase) else { return Ok(()) };
            let (done, run) = (batch.phase == AuditPhase::Ends, batch.run);
            let noted = Command::NoteAudit(batch);
            self.inner.raft.propose(clock::now(), noted).await?;
            let mut pending = self.inner.pending.lock();
            pending.sent = None;
            // That of a process before has ended nothing here.
            if done && run == pending.run {
                pending.end_journal();
                return Ok(());
            }
            pending.keep_rest();
        }
    }

    /// The one whose answer did not come, as it was: which is passed over where it came through.
    fn next_batch(&self, phase: AuditPhase) -> Option<AuditBatch> {
        let mut pending = self.inner.pending.lock();
        if let Some(sent) = &pending.sent {
            return Some(sent.clone());
        }
        let count = pending.notes.len().min(AUDIT_BATCH_MAX);
        let last = count == pending.notes.len();
        let phase = match phase {
            _ if pending.batch == 0 => AuditPhase::Begins,
            AuditPhase::Ends if last => AuditPhase::Ends,
            _ => AuditPhase::Goes,
        };
        if phase == AuditPhase::Goes && count == 0 && pending.lost == 0 {
            return None;
        }
        let lost = std::mem::take(&mut pending.lost);
        pending.keep(|journal| journal.sent(count, phase, lost));
        let notes = folded(pending.notes.drain(..count).collect());
        pending.refused.clear();
        let batch = AuditBatch {
            node: self.inner.node,
            run: pending.run,
            batch: pending.batch,
            phase,
            notes,
            lost,
        };
        pending.batch += 1;
        pending.sent = Some(batch.clone());
        Some(batch)
    }

    /// Moves entries that are older than they are kept to storage; says how many.
    ///
    /// # Errors
    /// Where storage or the metadata do not answer; what was not moved stays.
    pub async fn archive(&self, at: Timestamp) -> Result<u64, Error> {
        let before = at.as_millis().saturating_sub(self.inner.keep_ms);
        let mut moved = 0;
        loop {
            let (entries, chain_before) = {
                let view = self.inner.raft.read().await?;
                let query = view.query();
                let mut entries = query.oldest_audit(AUDIT_BATCH_MAX)?;
                let old = entries.iter().take_while(|one| one.note.at.as_millis() < before).count();
                entries.truncate(old);
                let last = query.audit_archives()?.pop();
                (entries, last.map_or_else(AuditHash::default, |archive| archive.head))
            };
            let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
                return Ok(moved);
            };
            let bytes = encode_row(&entries);
            let object = ObjectKey::Pack(PackId::of(&bytes));
            let archive = AuditArchive {
                first: first.number,
                last: last.number,
                from: first.note.at,
                until: last.note.at,
                object,
                bytes: bytes.len() as u64,
                before: chain_before,
                head: last.hash,
            };
            self.inner.store.put(object, &KeyOwner::Cluster, bytes.into()).await?;
            match self.inner.raft.propose(clock::now(), Command::ArchiveAudit(archive)).await {
                Ok(_) => moved += entries.len() as u64,
                // Another node was quicker, which made the same object.
                Err(ProposeError::Refused(Refusal::UploadState(_))) => return Ok(moved),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The entries of an archive, as they were.
    ///
    /// # Errors
    /// Where the object is not there, or is none.
    pub async fn read(&self, archive: &AuditArchive) -> Result<Vec<AuditEntry>, Error> {
        let (store, object) = (self.inner.store.as_ref(), archive.object);
        let length = store.length(object).await?;
        let length = length.filter(|length| *length <= ARCHIVE_BYTES_MAX);
        let length = length.ok_or(Error::Missing(object))?;
        Ok(decode_row(&store::read(store, object, 0..length).await?)?)
    }

    /// What is wrong with an archive, if something is: its entries must lead from its row's first
    /// hash to its last.
    pub async fn flaw(&self, archive: &AuditArchive) -> Option<String> {
        let name = format!("the archive of entries {} to {}", archive.first, archive.last);
        let entries = match self.read(archive).await {
            Ok(entries) => entries,
            Err(error) => return Some(format!("{name}: {}", chain(&error))),
        };
        let (mut before, mut number) = (archive.before, archive.first);
        for entry in &entries {
            if entry.number != number || chained(&before, number, &entry.note) != entry.hash {
                return Some(format!("{name}: entry {number} does not follow from the one before"));
            }
            (before, number) = (entry.hash, number + 1);
        }
        let whole = number == archive.last + 1 && before == archive.head;
        (!whole).then(|| format!("{name}: entries are missing"))
    }
}

/// What waits when a process starts.
fn begun(raft: &Raft, node: NodeId, file: &Path, member: &str) -> Pending {
    let at = clock::now();
    let last = raft.local().query().audit_run(node).unwrap_or_else(|error| {
        warn!(%error, "it cannot be read what of this node is in the audit trail");
        None
    });
    // Also where the clock went back: else the trail would take its batches for those of before.
    let after = last.map_or(0, |(run, _)| run.saturating_add(1));
    let mut pending = Pending { run: at.as_millis().max(after), ..Pending::default() };
    match Journal::open(file, member) {
        Ok((journal, found)) => {
            pending.journal = Some(journal);
            if let Some(found) = found {
                pending.recover(node, at, found, last);
            }
            if pending.sent.is_none() {
                pending.keep_rest();
            }
        }
        Err(error) => {
            warn!(%error, "notes for the audit trail are kept in memory alone");
        }
    }
    pending
}

/// What a command is called in the trail and what it is done to.
pub fn named<R: Read>(query: Query<'_, R>, command: &Command) -> Option<(&'static str, String)> {
    shoal_metadata::audited(query, command).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(who: &str, from: &str, result: AuditResult) -> AuditNote {
        let source = AuditSource { who: who.into(), from: from.into(), ..AuditSource::default() };
        let (at, action, target) = (Timestamp::from_millis(1), "a.b".into(), "c".into());
        AuditNote { at, source, action, target, result, count: 1 }
    }

    #[test]
    fn what_the_trail_has_already_is_not_put_in_again() {
        let done = || note("alice", "", AuditResult::Done);
        for (is_sent, last, left) in [
            (false, None, 2),
            (false, Some((6, 9)), 2),
            (false, Some((7, 2)), 2),
            (false, Some((7, 3)), 0),
            (true, Some((7, 2)), 2),
            (true, Some((7, 3)), 2),
            (true, Some((7, 4)), 0),
        ] {
            let sent = is_sent.then(|| {
                let notes = vec![done()];
                journal::Sent { phase: AuditPhase::Goes, notes, lost: 0 }
            });
            let notes = vec![done(), done()];
            let found = Found { run: 7, batch: 3, sent, notes, lost: 0, is_whole: false };
            let mut pending = Pending { run: 9, ..Pending::default() };
            pending.recover(NodeId::new(1), Timestamp::from_millis(1), found, last);
            // One tells of it.
            assert_eq!(pending.notes.len(), left + 1, "{is_sent} {last:?}");
            assert_eq!((pending.run, pending.batch, pending.sent.is_some()), (9, 0, is_sent));
        }
    }

    #[test]
    fn refusals_of_one_leave_room_for_what_others_do() {
        let refused = || AuditResult::Refused("forbidden".into());
        let mut pending = Pending::default();
        let mut taken = |who: &str, from: &str| {
            (0..NOTES_MAX).filter(|_| pending.take(note(who, from, refused()))).count()
        };
        let most = REFUSALS_OF_ONE_MAX as usize;
        assert_eq!((taken("eve", "10.0.0.1"), taken("eve", "10.0.0.2")), (most, 0));
        // Where nobody is known, the address is; and others are others.
        assert_eq!((taken("", "10.0.0.1"), taken("bob", "10.0.0.1")), (most, most));
        assert!(pending.take(note("eve", "10.0.0.1", AuditResult::Done)));
        assert_eq!(pending.notes.len(), 3 * most + 1);
        assert_eq!(pending.lost, (4 * NOTES_MAX - 3 * most) as u64);
    }
}
