//! Hashes cached content ahead of whoever copies it out.
//!
//! Threads take blocks of extents in the order of the content and hash them; the copying side waits
//! for what it is about to read ([`Verification::wait`]). They run no farther ahead than
//! [`AHEAD_BLOCKS`], so that what was hashed is still in memory when it is copied.
//!
//! Invariant: `wait` returns only when every extent of the range was read and has its chunk's hash.
//! Non-goal: what becomes of wrong chunks; see [`Verification::corrupt`].

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::FileExt;

use parking_lot::{Condvar, Mutex};
use tracing::warn;

use crate::cache::{Loaded, is_unreadable};

/// Extents that are hashed in one go: 4 MiB at most.
const BLOCK_EXTENTS: usize = 16;
const AHEAD_BLOCKS: usize = 16;
/// One core hashes as fast as most disks read.
const THREADS_MAX: usize = 4;

#[derive(Debug, Default)]
struct State {
    /// The next block to be hashed.
    next: usize,
    /// The block that the copying side is at.
    reader: usize,
    /// By block.
    done: Vec<bool>,
    corrupt: BTreeSet<u32>,
    failure: Option<io::Error>,
    failed: bool,
    /// Nothing is copied any more: hash to the end to find everything that is wrong.
    finding: bool,
    stopped: bool,
}

/// The content of one recipe while it is hashed.
#[derive(Debug)]
pub struct Verification<'a> {
    loaded: &'a Loaded,
    state: Mutex<State>,
    changed: Condvar,
}

/// Why waiting came to nothing; `io` is for reads that failed.
#[derive(Debug)]
pub enum Refused {
    Corrupt,
    Io(io::Error),
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Corrupt => Self::new(io::ErrorKind::InvalidData, "cached content is corrupt"),
            Refused::Io(error) => error,
        }
    }
}

/// Runs `copy` while the content of `loaded` is hashed beside. Gives what `copy` gave, and the
/// chunks that have wrong content at any of their places, where it met one.
pub fn verified<T>(
    loaded: &Loaded,
    copy: impl FnOnce(&Verification<'_>) -> T,
) -> (T, BTreeSet<u32>) {
    let blocks = loaded.places.recipe().extents().len().div_ceil(BLOCK_EXTENTS);
    let state = State { done: vec![false; blocks], ..State::default() };
    let this = Verification { loaded, state: Mutex::new(state), changed: Condvar::new() };
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    std::thread::scope(|scope| {
        // Also where `copy` panics: the scope waits for the threads.
        let stop = StopOnDrop(&this);
        for _ in 0..cores.min(THREADS_MAX).min(blocks) {
            scope.spawn(|| this.hash_blocks());
        }
        let outcome = copy(&this);
        let corrupt = this.corrupt();
        drop(stop);
        (outcome, corrupt)
    })
}

struct StopOnDrop<'a>(&'a Verification<'a>);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.state.lock().stopped = true;
        self.0.changed.notify_all();
    }
}

impl Verification<'_> {
    /// Waits until the extents that touch bytes `offset..offset + length` are hashed.
    pub fn wait(&self, offset: u64, length: u64) -> Result<(), Refused> {
        let recipe = self.loaded.places.recipe();
        let extents = recipe.extents();
        let touched = recipe.extents_in(offset, length);
        let Some(start) = touched.first() else { return Ok(()) };
        let first = extents.partition_point(|extent| extent.offset < start.offset);
        let blocks = first / BLOCK_EXTENTS..=(first + touched.len() - 1) / BLOCK_EXTENTS;
        let mut state = self.state.lock();
        state.reader = state.reader.max(*blocks.start());
        self.changed.notify_all();
        for block in blocks {
            state.reader = state.reader.max(block);
            while !state.done[block] {
                self.refuse(&mut state)?;
                self.changed.wait(&mut state);
            }
        }
        self.refuse(&mut state)
    }

    fn refuse(&self, state: &mut State) -> Result<(), Refused> {
        match state.failure.take() {
            Some(error) => Err(Refused::Io(error)),
            None if state.corrupt.is_empty() => Ok(()),
            None => Err(Refused::Corrupt),
        }
    }

    /// Where a wrong chunk was met: waits until all are known, so that one fetch mends all.
    fn corrupt(&self) -> BTreeSet<u32> {
        let mut state = self.state.lock();
        if !state.corrupt.is_empty() {
            state.finding = true;
            self.changed.notify_all();
            while !state.failed && state.done.contains(&false) {
                self.changed.wait(&mut state);
            }
        }
        std::mem::take(&mut state.corrupt)
    }

    fn hash_blocks(&self) {
        let mut buffer = Vec::new();
        while let Some(block) = self.claim() {
            let outcome = self.hash(block, &mut buffer);
            let mut state = self.state.lock();
            state.done[block] = true;
            match outcome {
                Ok(corrupt) => state.corrupt.extend(corrupt),
                Err(error) => (state.failure, state.failed) = (Some(error), true),
            }
            self.changed.notify_all();
        }
    }

    /// The next block, once the copying side is near; none where there is no use in more.
    fn claim(&self) -> Option<usize> {
        let mut state = self.state.lock();
        loop {
            if state.stopped || state.failed || state.next == state.done.len() {
                return None;
            }
            if state.finding || state.next <= state.reader + AHEAD_BLOCKS {
                state.next += 1;
                return Some(state.next - 1);
            }
            self.changed.wait(&mut state);
        }
    }

    /// The chunks of `block` that do not check, or that the disk does not give back.
    fn hash(&self, block: usize, buffer: &mut Vec<u8>) -> io::Result<Vec<u32>> {
        let recipe = self.loaded.places.recipe();
        let extents = recipe.extents().iter().skip(block * BLOCK_EXTENTS).take(BLOCK_EXTENTS);
        let mut corrupt = Vec::new();
        for extent in extents {
            let chunk = &recipe.chunks()[extent.chunk as usize];
            buffer.resize(chunk.length as usize, 0);
            match self.loaded.content.read_exact_at(buffer, extent.offset) {
                Ok(()) if chunk.id.verifies(buffer) => {}
                Ok(()) => corrupt.push(extent.chunk),
                // The file was cut.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    corrupt.push(extent.chunk);
                }
                Err(error) if is_unreadable(&error) => {
                    warn!(chunk = extent.chunk, %error, "cached content is unreadable");
                    corrupt.push(extent.chunk);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(corrupt)
    }
}
