//! Threads that compress jobs, whose results come back in the order they were begun.
//!
//! Each job has a channel of its own for its answer, so that a thread that dies takes nobody else
//! into a wait without end. Buffers go round.
//!
//! Invariants: at most [`JOBS_MAX`] jobs exist; threads end when the [`Workers`] are dropped, and
//! the scope joins them.

use std::collections::VecDeque;
use std::io;
use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Scope;

use super::codec::{Codec, Compressor, PACKED_BYTES_MAX};
use super::{CompressError, UNIT_BYTES};
use crate::zero::is_zero;

/// Guest bytes of one job.
pub(super) const JOB_BYTES: usize = 8 * UNIT_BYTES;
pub(super) const THREADS_MAX: usize = 16;
/// So that each thread finds its next job there, and the one who reads and writes some time.
pub(super) const JOBS_MAX: usize = 2 * THREADS_MAX + JOBS_MORE;
const JOBS_MORE: usize = 2;

/// Guest bytes, and what became of them.
#[derive(Debug, Default)]
pub(super) struct Job {
    /// Guest bytes from the disk's start, a multiple of the unit.
    pub at: u64,
    /// Whole units.
    pub raw: Vec<u8>,
    packed: Vec<u8>,
    /// Where each unit ends in `packed`: where it starts, if it is all zero.
    ends: Vec<usize>,
    failed: Option<io::Error>,
}

/// One unit with content.
#[derive(Debug)]
pub(super) struct Block<'a> {
    /// Counted in units from the disk's start.
    pub number: u64,
    pub raw: &'a [u8],
    pub packed: &'a [u8],
}

impl Job {
    /// The units that are not zero, in order; and at the end the error, if there was one.
    pub fn blocks(&self) -> impl Iterator<Item = Result<Block<'_>, CompressError>> {
        let first = self.at / UNIT_BYTES as u64;
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let units = self.raw.chunks_exact(UNIT_BYTES).zip(starts.zip(&self.ends)).enumerate();
        let blocks = units.filter(|(_, (_, (start, end)))| start < end);
        let blocks = blocks.map(move |(place, (raw, (start, &end)))| {
            Ok(Block { number: first + place as u64, raw, packed: &self.packed[start..end] })
        });
        let failed = self.failed.as_ref().map(|error| {
            let error = io::Error::new(error.kind(), error.to_string());
            Err(CompressError::Compress { at: self.at, error })
        });
        blocks.chain(failed)
    }

    fn compress(&mut self, compressor: &mut Compressor, room: &mut [u8]) -> io::Result<()> {
        for unit in self.raw.chunks_exact(UNIT_BYTES) {
            if !is_zero(unit) {
                let length = compressor.compress(unit, room)?;
                self.packed.extend_from_slice(&room[..length]);
            }
            self.ends.push(self.packed.len());
        }
        Ok(())
    }
}

/// See the module's documentation.
pub(super) struct Workers {
    jobs: SyncSender<(Job, SyncSender<Job>)>,
    /// In the order the jobs were begun.
    answers: VecDeque<Receiver<Job>>,
    answers_max: usize,
    idle: Vec<Job>,
}

impl Workers {
    pub fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        threads: NonZeroUsize,
        codec: Codec,
    ) -> Self {
        let threads = threads.get().min(THREADS_MAX);
        let answers_max = 2 * threads + JOBS_MORE;
        let (jobs, waiting) = sync_channel(answers_max);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..threads {
            let waiting = Arc::clone(&waiting);
            scope.spawn(move || work(&waiting, codec));
        }
        Self { jobs, answers: VecDeque::new(), answers_max, idle: Vec::new() }
    }

    /// Whether another job may be begun.
    pub fn has_room(&self) -> bool {
        self.answers.len() < self.answers_max
    }

    /// For the next job's bytes.
    pub fn buffer(&mut self) -> Vec<u8> {
        self.idle.last_mut().map_or_else(Vec::new, |job| std::mem::take(&mut job.raw))
    }

    /// `raw`, whole units, stands at `at` of the guest.
    pub fn begin(&mut self, at: u64, raw: Vec<u8>) {
        let job = Job { at, raw, ..self.idle.pop().unwrap_or_default() };
        let (answer, answered) = sync_channel(1);
        self.jobs.send((job, answer)).expect("threads wait for jobs as long as this is there");
        self.answers.push_back(answered);
    }

    /// The oldest job, once it is done; `None` when all were given.
    pub fn next(&mut self) -> Option<Job> {
        let answer = self.answers.pop_front()?;
        Some(answer.recv().expect("compressing does not panic"))
    }

    /// Its buffers are used again.
    pub fn give_back(&mut self, mut job: Job) {
        job.packed.clear();
        job.ends.clear();
        self.idle.push(job);
    }
}

fn work(waiting: &Mutex<Receiver<(Job, SyncSender<Job>)>>, codec: Codec) {
    let mut compressor = Compressor::new(codec);
    let mut room = vec![0; PACKED_BYTES_MAX];
    loop {
        // Whoever holds the lock waits for the next job; the others for the lock.
        let taken = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((mut job, answer)) = taken else { return };
        let done = match &mut compressor {
            Ok(compressor) => job.compress(compressor, &mut room),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        job.failed = done.err();
        // Nobody is there to take it where the writing was cancelled.
        let _ = answer.send(job);
    }
}
