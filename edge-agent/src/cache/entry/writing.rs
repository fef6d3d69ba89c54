//! Chunks into the content file, and out of it: content, journal record, memory, in this order.
//!
//! Invariants: what is held stands at every place of its chunk; blocks go back to the file system
//! only where their chunk is neither held nor being written.
//! Non-goals: verifying what is handed in (its caller did), room on the disk (see `space`).

use std::os::unix::fs::FileExt;
use std::time::SystemTime;

use nix::fcntl::{FallocateFlags, fallocate};

use super::{CONTENT_FILE, Entry, JOURNAL_FILE, Loaded, State};
use crate::cache::Error;

/// A writer that brings the unsynced bytes past this makes the checkpoint itself.
pub const CHECKPOINT_BYTES: u64 = 8 << 20;
/// A chunk with many places is written in steps of about so many bytes.
const WRITE_STEP_BYTES: u64 = 16 << 20;

impl Entry {
    /// What chunk `index` takes in the content file, at all of its places.
    pub fn chunk_bytes(&self, index: u32) -> Result<u64, Error> {
        Ok(self.load()?.places.bytes(index))
    }

    /// Takes a chunk that the caller has verified. Gives the bytes that it took on the disk: 0
    /// where it was there already. A chunk can have so many places that it fills a disk, so it is
    /// written in steps; `step` hears the bytes of each but the first and may refuse it.
    pub fn write(
        &self,
        index: u32,
        content: &[u8],
        step: &mut dyn FnMut(u64) -> Result<(), Error>,
    ) -> Result<u64, Error> {
        let loaded = self.load()?;
        let length = loaded.places.chunk(index).map(|chunk| chunk.length as usize);
        if length != Some(content.len()) {
            return Err(Error::Unusable(
                "a chunk's content has another length than the recipe says",
            ));
        }
        {
            let mut state = self.state.lock();
            if state.held.contains(index) {
                return Ok(0);
            }
            state.writing.push(index);
        }
        let written = self.write_places(&loaded, index, content, step);
        let mut state = self.state.lock();
        if let Some(at) = state.writing.iter().position(|other| *other == index) {
            state.writing.swap_remove(at);
        }
        let bytes = loaded.places.bytes(index);
        let noted = written.and_then(|()| self.note_written(&mut state, index, bytes));
        if !matches!(noted, Ok(true)) {
            self.release(&state, &loaded, index);
            return noted.map(|_| 0);
        }
        let due = state.unsynced_bytes >= CHECKPOINT_BYTES;
        drop(state);
        self.bump();
        if due {
            self.sync()?;
        }
        Ok(bytes)
    }

    /// Whether it was not held before.
    fn note_written(&self, state: &mut State, index: u32, bytes: u64) -> Result<bool, Error> {
        if state.removed {
            return Err(Error::Unknown(self.id));
        }
        let path = self.folder.join(JOURNAL_FILE);
        self.journal(state)?
            .append_written(index)
            .map_err(|e| Error::io("writing to the cache's journal", &path, e))?;
        if !state.held.insert(index) {
            return Ok(false);
        }
        state.unsynced.push(index);
        state.unsynced_bytes += bytes;
        state.used = SystemTime::now();
        Ok(true)
    }

    fn write_places(
        &self,
        loaded: &Loaded,
        index: u32,
        content: &[u8],
        step: &mut dyn FnMut(u64) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let path = self.folder.join(CONTENT_FILE);
        let at_once = (WRITE_STEP_BYTES / (content.len() as u64).max(1)).max(1) as usize;
        for (number, offsets) in loaded.places.offsets(index).chunks(at_once).enumerate() {
            if number > 0 {
                step(content.len() as u64 * offsets.len() as u64)?;
            }
            for offset in offsets {
                loaded
                    .content
                    .write_all_at(content, *offset)
                    .map_err(|e| Error::io("writing to the cache", &path, e))?;
            }
        }
        Ok(())
    }

    /// Gives the blocks of a chunk that is not held back to the file system, where that can; where
    /// not, the next write of the chunk uses them.
    pub(super) fn release(&self, state: &State, loaded: &Loaded, index: u32) {
        if state.held.contains(index) || state.writing.contains(&index) {
            return;
        }
        let length = loaded.places.chunk(index).map_or(0, |chunk| chunk.length);
        let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        for offset in loaded.places.offsets(index) {
            let (at, length) = (offset.cast_signed(), i64::from(length));
            if fallocate(&loaded.content, how, at, length).is_err() {
                return;
            }
        }
    }

    /// Forgets chunk `index`, so that it is fetched again.
    pub fn drop_chunk(&self, index: u32) -> Result<(), Error> {
        let loaded = self.load()?;
        let mut state = self.state.lock();
        if !state.held.remove(index) {
            return Ok(());
        }
        let path = self.folder.join(JOURNAL_FILE);
        let dropped = self.journal(&mut state).and_then(|j| {
            j.append_dropped(index).map_err(|e| Error::io("dropping a chunk", &path, e))
        });
        state.stale |= dropped.is_err();
        // Before the hole is there: whoever copies the content sees that it was not let be.
        self.bump();
        self.release(&state, &loaded, index);
        dropped
    }
}
