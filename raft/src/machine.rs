//! The state machine that openraft drives: applies entries, takes and installs snapshots.
//!
//! Invariants: what a batch of entries changed is written in one piece, with the id of its last
//! entry; answers and events go out after that. A proposal that was applied before is not applied
//! again but answered as it was then. All work on RocksDB is done off the async threads. Nothing is
//! written of a cluster whose level is above what this program knows.

use std::io;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use openraft::entry::RaftEntry;
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use parking_lot::RwLock;
use rustc_hash::FxHashMap;
use shoal_metadata::{Event, Query, Read, Transaction, apply, decode_command_up_to};
use tokio::sync::broadcast;
use tracing::info;

use crate::error::{Error, fault};
use crate::folder::Home;
use crate::log::blocking;
use crate::memo::Memo;
use crate::metrics::Metrics;
use crate::proposal::{
    Applied, Entry, LogId, Membership, PROPOSALS_REMEMBERED, Proposal, SnapshotMeta, TypeConfig,
};
use crate::snapshot::{Builder, Checkpoint, CurrentSnapshot, StateSnapshot, take};
use crate::space::Space;
use crate::store::{AnswerForm, Batch, Store};

/// The most entries that are applied in one write.
const BATCH_ENTRIES_MAX: usize = 256;

/// A batch is written once its commands have so many bytes.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// Looking for what is to be forgotten costs as much for one proposal as for so many.
const FORGOTTEN_TOGETHER: u64 = 256;

/// The state's database as everyone sees it; an installed snapshot replaces it.
pub type CurrentStore = Arc<RwLock<Arc<Store>>>;

/// See the module's documentation.
pub struct StateMachine {
    pub home: Arc<Home>,
    pub store: CurrentStore,
    pub snapshot: CurrentSnapshot,
    pub events: broadcast::Sender<Event>,
    pub space: Arc<Space>,
    pub metrics: Arc<Metrics>,
    /// The newest commands that are applied here.
    pub command_version: u8,
}

impl StateMachine {
    fn store(&self) -> Arc<Store> {
        self.store.read().clone()
    }

    async fn apply_batch(&self, batch: Vec<Entry>) -> io::Result<Vec<Applied>> {
        let (store, count) = (self.store(), batch.len() as u64);
        let newest = self.command_version;
        let (answers, events) = blocking(move || apply_entries(&store, batch, newest)).await?;
        self.metrics.entries_applied.inc_by(count);
        for event in events {
            // Nobody listening is no failure.
            let _ = self.events.send(event);
        }
        Ok(answers)
    }
}

/// Applies entries to `store` and writes the result in one piece.
fn apply_entries(
    store: &Store,
    entries: Vec<Entry>,
    newest: u8,
) -> io::Result<(Vec<Applied>, Vec<Event>)> {
    // The store is written only when all of them are applied.
    let memo = Memo::new(store, store.take_kept());
    let form = AnswerForm::at(Query::new(&memo).level().map_err(|error| fault(&error))?);
    let mut rows = Transaction::new(&memo);
    let mut batch = Batch::default();
    let mut answers = Vec::with_capacity(entries.len());
    let mut events = Vec::new();
    // Which of the answers belong to proposals of this batch, which the database does not know yet.
    let mut recent: FxHashMap<u128, usize> = FxHashMap::default();
    let mut last: Option<LogId> = None;
    let mut membership: Option<Membership> = None;
    forget_old(store, &mut batch, &entries)?;
    // Others may have cut the log into other batches, and have forgotten more or less by now: which
    // answers count as known follows from the entry alone.
    for entry in entries {
        let id = entry.log_id();
        last = Some(id);
        let answer = match entry.payload {
            EntryPayload::Blank => Applied::Nothing,
            EntryPayload::Membership(members) => {
                membership = Some(Membership::new(Some(id), members));
                Applied::Nothing
            }
            EntryPayload::Normal(proposal) => {
                let earlier = recent.get(&proposal.id).and_then(|&place| answers.get(place));
                let known = match earlier {
                    Some(answer) => Some(Applied::clone(answer)),
                    None => store.answer(proposal.id, forgotten(id.index))?,
                };
                match known {
                    Some(answer) => answer,
                    None => {
                        let answer = apply_proposal(&mut rows, &proposal, newest, &mut events)?;
                        batch.remember(id.index, proposal.id, &answer, form)?;
                        recent.insert(proposal.id, answers.len());
                        answer
                    }
                }
            }
        };
        answers.push(answer);
    }
    check_level(&rows, newest)?;
    let writes = rows.into_writes();
    batch.rows(&writes);
    if let Some(last) = &last {
        batch.applied(last)?;
    }
    if let Some(membership) = &membership {
        batch.membership(membership)?;
    }
    store.write(batch)?;
    let mut kept = memo.into_kept();
    kept.update(&writes);
    store.put_kept(kept);
    Ok((answers, events))
}

/// A program that was put back must not go on from here: what comes next is not meant for it. The next
/// start says the same (see `core`).
fn check_level(rows: &impl Read, knows: u8) -> io::Result<()> {
    let level = Query::new(rows).level().map_err(|error| fault(&error))?;
    if level > knows {
        return Err(io::Error::other(Error::TooOld { level, knows }));
    }
    Ok(())
}

/// To the entry at `index`, the proposals in entries below this are forgotten; [`FORGOTTEN_TOGETHER`]
/// at once.
fn forgotten(index: u64) -> u64 {
    index.saturating_sub(PROPOSALS_REMEMBERED) / FORGOTTEN_TOGETHER * FORGOTTEN_TOGETHER
}

/// Forgets the proposals that are too far behind these entries, whose indices follow each other.
fn forget_old(store: &Store, batch: &mut Batch, entries: &[Entry]) -> io::Result<()> {
    let index = |entry: Option<&Entry>| entry.map_or(0, |entry| entry.log_id().index);
    let (start, end) = (forgotten(index(entries.first())), forgotten(index(entries.last()) + 1));
    if start == end {
        return Ok(());
    }
    for old in store.proposals(start, end)? {
        batch.forget(old);
    }
    Ok(())
}

fn apply_proposal(
    rows: &mut Transaction<'_, Memo<'_, Store>>,
    proposal: &Proposal,
    newest: u8,
    events: &mut Vec<Event>,
) -> io::Result<Applied> {
    // Nobody proposes what the oldest member does not know; where it happens all the same, going
    // on would make this replica differ from the others.
    let command = decode_command_up_to(newest, &proposal.command)
        .map_err(|error| io::Error::other(format!("a command of the log: {error}")))?;
    let answer = apply(rows, proposal.at, command).map_err(|error| fault(&error))?;
    Ok(Applied::Answer(answer.map(|outcome| {
        events.extend(outcome.events);
        outcome.response
    })))
}

type Waiting = Vec<Option<ApplyResponder<TypeConfig>>>;

fn answer_all(waiting: Waiting, answers: Vec<Applied>) {
    for (responder, answer) in waiting.into_iter().zip(answers) {
        if let Some(responder) = responder {
            responder.send(answer);
        }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = Checkpoint;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, Membership)> {
        let store = self.store();
        Ok((store.applied()?, store.membership()?))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let (mut batch, mut waiting, mut bytes) = (Vec::new(), Waiting::new(), 0);
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            if let EntryPayload::Normal(proposal) = &entry.payload {
                bytes += proposal.command.len();
            }
            batch.push(entry);
            waiting.push(responder);
            if batch.len() >= BATCH_ENTRIES_MAX || bytes >= BATCH_BYTES {
                let answers = self.apply_batch(std::mem::take(&mut batch)).await?;
                answer_all(std::mem::take(&mut waiting), answers);
                bytes = 0;
            }
        }
        if !batch.is_empty() {
            let answers = self.apply_batch(batch).await?;
            answer_all(waiting, answers);
        }
        Ok(())
    }

    /// Without need no snapshot is taken on a disk that is nearly full: it would keep files alive.
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        if !force && !self.space.has_reserve() {
            return None;
        }
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            store: self.store(),
            home: self.home.clone(),
            current: self.snapshot.clone(),
            metrics: self.metrics.clone(),
        }
    }

    /// The folder is complete, synced and looked into (see `transfer`); the order of the switch
    /// stands in `folder`. Views of the old state stay good: its folder goes with the last of them.
    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Checkpoint,
    ) -> io::Result<()> {
        let (home, newest) = (self.home.clone(), self.command_version);
        let (new, fresh) = blocking(move || {
            let path = home.switch_to(snapshot.folder.path())?;
            snapshot.folder.keep();
            let store = Store::open(&path).map_err(io::Error::other)?;
            check_level(&store, newest)?;
            let fresh = take(&store, &home)?;
            Ok((Arc::new(store), fresh))
        })
        .await?;
        let old = std::mem::replace(&mut *self.store.write(), new);
        old.retire();
        *self.snapshot.lock() = Some(fresh);
        self.metrics.snapshots_installed.inc();
        info!(last = ?meta.last_log_id, "installed a snapshot");
        // Nobody listening is no failure.
        let _ = self.events.send(Event::AllChanged);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<StateSnapshot>> {
        Ok(self.snapshot.lock().clone())
    }
}

#[cfg(test)]
mod tests {
    use openraft::entry::RaftEntry;
    use openraft::vote::RaftLeaderId;
    use shoal_content::{Digest, ImageId, ObjectKey, RecipeId, Timestamp};
    use shoal_metadata::{
        COMMAND_VERSION, Command, ImageKind, ImageProfile, Memory, PutManifest, Reference, Refusal,
        Response, Subject, Table, encode_command,
    };

    use super::*;
    use crate::harness::put_admin;
    use crate::proposal::Entry;

    type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;

    fn proposed(index: u64, id: u128, command: &Command) -> Entry {
        let proposal = Proposal {
            id,
            at: Timestamp::from_millis(index),
            command: encode_command(command).into(),
        };
        let log_id = LogId::new(LeaderId::new(1, 1).to_committed(), index);
        Entry::new(log_id, EntryPayload::Normal(proposal))
    }

    fn create() -> Command {
        Command::CreateImage {
            id: image_id(),
            name: "library/debian".parse().unwrap(),
            kind: ImageKind::Disk,
            profile: ImageProfile::default(),
            owner: "admin".into(),
        }
    }

    fn image_id() -> ImageId {
        format!("img-{:032x}", 7).parse().unwrap()
    }

    #[test]
    fn a_proposal_that_comes_again_is_answered_as_before_and_applied_once() {
        let folder = tempfile::tempdir().unwrap();
        let done = Applied::Answer(Ok(Response::Image(image_id())));
        let exists = Applied::Answer(Err(Refusal::Exists(Subject::Image)));
        {
            let store = Store::open(folder.path()).unwrap();
            apply_entries(&store, vec![proposed(0, 9, &put_admin())], COMMAND_VERSION).unwrap();
            // Twice in one batch, and a third that only looks the same.
            let batch = vec![
                proposed(1, 10, &create()),
                proposed(2, 10, &create()),
                proposed(3, 11, &create()),
            ];
            let (answers, _) = apply_entries(&store, batch, COMMAND_VERSION).unwrap();
            assert_eq!(answers, [done.clone(), done.clone(), exists.clone()]);
        }
        // And again after a restart.
        let store = Store::open(folder.path()).unwrap();
        let batch = vec![proposed(4, 10, &create()), proposed(5, 11, &create())];
        let (answers, events) = apply_entries(&store, batch, COMMAND_VERSION).unwrap();
        assert_eq!(answers, [done, exists.clone()]);
        assert_eq!(events, []);
        assert_eq!(Query::new(&store).image_count().unwrap(), 1);
        assert_eq!(store.applied().unwrap().map(|id| id.index), Some(5));

        // It is forgotten in the end: what is remembered is bounded.
        let end = PROPOSALS_REMEMBERED + FORGOTTEN_TOGETHER;
        let late = |store: &Store, index, id| {
            let batch = vec![proposed(index, id, &create())];
            apply_entries(store, batch, COMMAND_VERSION).unwrap().0
        };
        late(&store, end - 2, 12);
        assert_eq!(store.answer(11, 0).unwrap(), Some(exists.clone()));
        late(&store, end - 1, 13);
        assert_eq!((store.answer(10, 0).unwrap(), store.answer(11, 0).unwrap()), (None, None));
        assert_eq!(store.answer(12, 0).unwrap(), Some(exists.clone()));

        // Above the first level they are kept in another form, beside what was kept before.
        let raise = proposed(end, 14, &Command::RaiseLevel { to: COMMAND_VERSION });
        let batch = vec![raise, proposed(end + 1, 15, &create())];
        apply_entries(&store, batch, COMMAND_VERSION).unwrap();
        assert_eq!(late(&store, end + 2, 16)[0], exists);
        drop(store);
        let store = Store::open(folder.path()).unwrap();
        for (index, id) in (end + 3..).zip([12, 13, 15, 16]) {
            assert_eq!(late(&store, index, id)[0], exists);
        }
        assert_eq!(store.answer(14, 0).unwrap(), Some(Applied::Answer(Ok(Response::Done))));
        let forms = |id| store.proposals(0, u64::MAX).unwrap().into_iter().find(|one| one.id == id);
        let form = |id| forms(id).map(|one| one.form);
        assert_eq!(form(13), Some(AnswerForm::TwoRows));
        // The form changes between two batches.
        assert_eq!(form(15), Some(AnswerForm::TwoRows));
        assert_eq!(form(16), Some(AnswerForm::OneRow));
        late(&store, end + PROPOSALS_REMEMBERED - 1, 17);
        late(&store, end + PROPOSALS_REMEMBERED + FORGOTTEN_TOGETHER - 1, 18);
        for id in 12..=16 {
            assert_eq!(store.answer(id, 0).unwrap(), None, "{id}");
        }
        assert_eq!(store.answer(18, 0).unwrap(), Some(exists));
    }

    #[test]
    fn what_is_forgotten_does_not_depend_on_the_batches() {
        // Behind the edge at which the first entries are forgotten.
        let edge = PROPOSALS_REMEMBERED + FORGOTTEN_TOGETHER;
        let run = |size: usize| {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(folder.path()).unwrap();
            apply_entries(&store, vec![proposed(0, 9, &put_admin())], COMMAND_VERSION).unwrap();
            let made = apply_entries(&store, vec![proposed(1, 10, &create())], COMMAND_VERSION);
            let made = made.unwrap().0;
            let late: Vec<Entry> = (edge - 2..edge + 2)
                .map(|index| {
                    let id = if index == edge { 10 } else { u128::from(index) };
                    proposed(index, id, &create())
                })
                .collect();
            let mut answers = Vec::new();
            for batch in late.chunks(size) {
                answers.extend(apply_entries(&store, batch.to_vec(), COMMAND_VERSION).unwrap().0);
            }
            (made, answers, store.answer(10, 0).unwrap())
        };
        let (made, answers, last) = run(1);
        assert_ne!(answers[2], made[0], "it was forgotten, and is applied anew");
        assert_eq!(last, Some(answers[2].clone()));
        for size in [2, 3, 4] {
            assert_eq!(run(size), (made.clone(), answers.clone(), last.clone()), "{size}");
        }
    }

    /// Commands that touch many tables, some of them refused.
    fn busy_commands() -> Vec<Command> {
        let repository = |number: u128| format!("library/image-{number}").parse().unwrap();
        let digest = |number: u128| Digest::sha256([number as u8; 32]);
        let mut commands = vec![put_admin()];
        for number in 0..60u128 {
            let (image, blob) = (number % 7, number % 11);
            let uuid = format!("{:032x}", number + 1);
            commands.push(Command::CommitBlob {
                upload: None,
                repository: repository(image),
                digest: digest(blob),
                size: 5,
                object: ObjectKey::Blob(format!("upload-{uuid}").parse().unwrap()),
                recipe: RecipeId::of(&[blob as u8]),
                owner: "admin".into(),
                image: format!("img-{:032x}", image + 1).parse().unwrap(),
            });
            commands.push(Command::PutManifest(PutManifest {
                repository: repository(image),
                image: format!("img-{:032x}", image + 1).parse().unwrap(),
                version: format!("ver-{uuid}").parse().unwrap(),
                kind: ImageKind::Container,
                digest: digest(100 + number),
                media_type: "m".into(),
                manifest: vec![number as u8; 9],
                artifact_type: None,
                annotations: Default::default(),
                subject: Some(digest(100)),
                references: [Reference::Blob { digest: digest(blob), size: 5 }].into(),
                disk: None,
                tags: vec!["latest".parse().unwrap()],
                owner: "admin".into(),
                upload: None,
            }));
            if number % 3 == 0 {
                let digest = digest(100 + number / 2);
                commands.push(Command::DeleteManifest { repository: repository(image), digest });
            }
            if number % 20 == 19 {
                let id = format!("img-{:032x}", image + 1).parse().unwrap();
                commands.push(Command::DeleteImage { id });
            }
        }
        commands
    }

    #[test]
    fn rows_in_rocksdb_and_in_memory_are_the_same_however_they_are_batched() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let mut memory = Memory::default();
        let commands = busy_commands();
        let mut expected = Vec::new();
        for (at, command) in commands.iter().enumerate() {
            let mut rows = Transaction::new(&memory);
            let at = Timestamp::from_millis(at as u64);
            let answer = apply(&mut rows, at, command.clone()).unwrap();
            let writes = rows.into_writes();
            memory.commit(writes);
            expected.push(Applied::Answer(answer.map(|outcome| outcome.response)));
        }
        let entries: Vec<Entry> = commands
            .iter()
            .enumerate()
            .map(|(at, command)| proposed(at as u64, at as u128, command))
            .collect();
        let mut answers = Vec::new();
        for (turn, batch) in entries.chunks(13).enumerate() {
            // Now in one piece, now one by one.
            let size = if turn % 2 == 0 { batch.len() } else { 1 };
            for piece in batch.chunks(size) {
                answers.extend(apply_entries(&store, piece.to_vec(), COMMAND_VERSION).unwrap().0);
            }
        }
        assert_eq!(answers, expected);
        assert!(answers.iter().any(|answer| matches!(answer, Applied::Answer(Err(_)))));
        for table in Table::ALL {
            let ours = store.scan(table, b"", b"", usize::MAX).unwrap();
            let theirs = memory.scan(table, b"", b"", usize::MAX).unwrap();
            assert_eq!(ours, theirs, "{table:?}");
        }
    }

    #[test]
    fn a_level_above_what_the_program_knows_stops_the_replica_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        // As an earlier program had the rows say, before it was put back.
        let raise = Command::RaiseLevel { to: COMMAND_VERSION + 1 };
        let batch = vec![proposed(1, 1, &create()), proposed(2, 2, &raise)];
        let error = apply_entries(&store, batch.clone(), COMMAND_VERSION).unwrap_err();
        assert!(error.to_string().contains("install the version that ran here before"), "{error}");
        assert_eq!(store.applied().unwrap(), None);
        // The program that knows it goes on.
        apply_entries(&store, batch, COMMAND_VERSION + 1).unwrap();
        assert_eq!(store.applied().unwrap().map(|id| id.index), Some(2));
    }

    #[test]
    fn a_command_from_the_future_stops_the_replica_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let mut newer = encode_command(&create());
        newer[0] = u8::MAX;
        let mut entry = proposed(1, 1, &create());
        if let EntryPayload::Normal(proposal) = &mut entry.payload {
            proposal.command = newer.into();
        }
        let error = apply_entries(&store, vec![entry], COMMAND_VERSION).unwrap_err();
        assert!(error.to_string().contains("newer than this program knows"), "{error}");
        assert_eq!(store.applied().unwrap(), None);
    }
}
