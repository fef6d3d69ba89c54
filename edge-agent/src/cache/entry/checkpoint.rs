//! Checkpoints of an entry, and the journal that agrees with what is held.
//!
//! Order: how many records there are, the content synced, then the journal's word for it, synced.
//! Invariants: nothing stands under a checkpoint that was not certainly synced; a journal that no
//! longer matches `held` is written anew before anything else is noted in it.
//! Non-goals: the records' layout (see `journal`); when a checkpoint is due (see `writing` and the
//! cache's `upkeep`).

use super::{CONTENT_FILE, Entry, JOURNAL_FILE, State};
use crate::cache::Error;
use crate::cache::journal::Journal;

impl Entry {
    /// Makes a checkpoint where anything is not under one.
    pub fn sync(&self) -> Result<(), Error> {
        let _one = self.checkpoint.lock();
        let (covered, generation) = {
            let mut state = self.state.lock();
            if state.removed || (state.unsynced.is_empty() && !state.stale) {
                return Ok(());
            }
            if state.unsynced.is_empty() {
                // What was verified after a restart, or failed to be noted before.
                return self.journal(&mut state).map(drop);
            }
            let covered = self.journal(&mut state)?.records();
            state.unsynced_bytes = 0;
            state.syncing = std::mem::take(&mut state.unsynced);
            (covered, state.generation)
        };
        let synced = self.load().and_then(|loaded| {
            let path = self.folder.join(CONTENT_FILE);
            let done = loaded.content.sync_data();
            done.map_err(|e| Error::io("syncing cached content", &path, e))
        });
        let path = self.folder.join(JOURNAL_FILE);
        let appended = {
            let mut state = self.state.lock();
            let syncing = std::mem::take(&mut state.syncing);
            if let Err(error) = synced {
                // The kernel reports lost pages once and then forgets them: none of what it was
                // asked to sync counts any more.
                for index in &syncing {
                    state.held.remove(*index);
                }
                state.stale = true;
                drop(state);
                self.bump();
                return Err(error);
            }
            // A checkpoint over the records would cover those of what is in doubt as well.
            state.stale |= state.generation != generation || !state.doubtful.is_empty();
            let rewritten = state.stale;
            let journal = self.journal(&mut state)?;
            // A rewrite trusts and syncs what is held; there is nothing left to say.
            if rewritten {
                return Ok(());
            }
            journal.append_checkpoint(covered).and_then(|()| journal.syncer())
        };
        appended.and_then(|journal| journal.sync_data()).map_err(|error| {
            // The content is safe, only the word for it is not: written anew next time.
            self.state.lock().stale = true;
            Error::io("syncing the cache's journal", &path, error)
        })
    }

    /// All chunks are there: makes that durable and the journal short.
    pub fn complete(&self) -> Result<(), Error> {
        self.sync()?;
        let mut state = self.state.lock();
        if !state.held.is_complete() {
            let missing = state.held.count() - state.held.len();
            return Err(Error::Incomplete { recipe: self.id, missing });
        }
        if state.journal.is_none() && !state.stale {
            return Ok(());
        }
        state.stale = true;
        self.journal(&mut state)?;
        // A complete entry needs no open journal; dropping a chunk opens it again.
        state.journal = None;
        Ok(())
    }

    /// The open journal, written anew first where it does not match what is held.
    pub(super) fn journal<'a>(&self, state: &'a mut State) -> Result<&'a mut Journal, Error> {
        let path = self.folder.join(JOURNAL_FILE);
        if state.journal.is_none() || state.stale {
            // Only what is certainly synced may stand under the new journal's checkpoint.
            let (mut certain, mut uncertain) = (state.held.clone(), state.doubtful.clone());
            for &index in state.unsynced.iter().chain(&state.syncing) {
                uncertain.insert(index);
            }
            for index in uncertain.iter() {
                certain.remove(index);
            }
            let rewritten = Journal::rewrite(&path, self.id, &certain, &uncertain);
            let journal =
                rewritten.map_err(|e| Error::io("writing the cache's journal", &path, e))?;
            state.journal = Some(journal);
            state.generation += 1;
            state.stale = false;
        }
        state.journal.as_mut().ok_or(Error::Unknown(self.id))
    }
}
