//! Chunks out of the content file, each hashed before it counts or leaves.
//!
//! Invariant: what does not check, or what the disk does not give back, is as if it were not there.
//! Non-goal: fetching it again, which is the swarm's work.

use std::io::ErrorKind;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use tracing::warn;

use super::{CONTENT_FILE, Entry, Loaded};
use crate::cache::held::Held;
use crate::cache::{Error, is_unreadable};

impl Entry {
    /// Hashes what was journalled after the last checkpoint before the process ended, and holds
    /// what checks. Gives how many chunks did not. `go_on` is asked before each; where it refuses,
    /// nothing has changed.
    pub(in crate::cache) fn verify_doubtful(
        &self,
        go_on: &mut dyn FnMut() -> Result<(), Error>,
    ) -> Result<u32, Error> {
        let _one = self.checkpoint.lock();
        let doubtful = self.state.lock().doubtful.clone();
        if doubtful.is_empty() {
            return Ok(0);
        }
        let loaded = self.load()?;
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for index in doubtful.iter() {
            go_on()?;
            // Every place of it, since an export copies from each.
            match self.read_verified(&loaded, index, usize::MAX)? {
                Some(_) => good.push(index),
                None => bad.push(index),
            }
        }
        if !good.is_empty() {
            // Trusted from now on, so it has to be on the disk first.
            let path = self.folder.join(CONTENT_FILE);
            let synced = loaded.content.sync_data();
            synced.map_err(|e| Error::io("syncing cached content", &path, e))?;
        }
        let mut state = self.state.lock();
        for index in &good {
            state.held.insert(*index);
        }
        state.doubtful = Held::empty(doubtful.count());
        state.stale = true;
        for index in &bad {
            self.release(&state, &loaded, *index);
        }
        drop(state);
        self.bump();
        Ok(bad.len() as u32)
    }

    /// The content of chunk `index`; `None` where it is not held, or was and did not check.
    pub fn read(&self, index: u32) -> Result<Option<Bytes>, Error> {
        if !self.contains(index) {
            return Ok(None);
        }
        let loaded = self.load()?;
        let content = self.read_verified(&loaded, index, 1)?;
        if content.is_none() {
            warn!(recipe = %self.id, chunk = index, "cached content does not check; dropped");
            self.drop_chunk(index)?;
        }
        Ok(content)
    }

    /// Whether chunk `index`, where it is held, reads back right at each of its places. Drops nothing.
    pub(in crate::cache) fn is_sound(&self, index: u32) -> Result<bool, Error> {
        if !self.contains(index) {
            return Ok(true);
        }
        let loaded = self.load()?;
        Ok(self.read_verified(&loaded, index, usize::MAX)?.is_some() || !self.contains(index))
    }

    /// Reads a chunk at its first `places` places; `None` where one of them does not check, or the
    /// disk does not give it back.
    fn read_verified(
        &self,
        loaded: &Loaded,
        index: u32,
        places: usize,
    ) -> Result<Option<Bytes>, Error> {
        let Some(chunk) = loaded.places.chunk(index) else { return Ok(None) };
        let mut buffer = vec![0; chunk.length as usize];
        for offset in loaded.places.offsets(index).iter().take(places) {
            match loaded.content.read_exact_at(&mut buffer, *offset) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
                Err(error) if is_unreadable(&error) => {
                    warn!(recipe = %self.id, chunk = index, %error, "cached content is unreadable");
                    return Ok(None);
                }
                Err(error) => {
                    let path = self.folder.join(CONTENT_FILE);
                    return Err(Error::io("reading cached content", &path, error));
                }
            }
            if !chunk.id.verifies(&buffer) {
                return Ok(None);
            }
        }
        Ok(Some(Bytes::from(buffer)))
    }
}
