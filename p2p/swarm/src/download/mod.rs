//! One recipe on its way: what is held, who holds what, what is asked of whom.
//!
//! Invariants: a chunk is in flight from at most one source, unless that one is late; the
//! number of holders of a chunk is that of the sources whose maps say so.
//! Non-goals: connections, the tracker (see `swarm`); what to ask next (`picker`); who may bring
//! a chunk in (`heads`).

mod heads;
mod picker;

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use shoal_content::{CHUNK_BYTES_MAX, PeerId, RecipeId};

use crate::chunk_set::ChunkSet;
use crate::rendezvous::{mix, weight};

pub(crate) use self::heads::Heads;
use self::heads::Way;
pub(crate) use self::picker::Wanted;

/// Demanded ranges remembered; the newest win.
const DEMANDS_MAX: usize = 16;
/// Requests in which one chunk is open at most: each but the last is late.
const SOURCES_MAX: usize = 3;
/// As long a source may be busy before it is doubted.
const BUSY_MAX: Duration = Duration::from_secs(1);
/// What came last weighs so much in an average.
const SMOOTHING: f64 = 0.1;
/// Without any chunk for so long at first, and for between so long and so many times a chunk's
/// usual time later, somebody else brings in what the designated one did not.
const PATIENCE_FIRST: Duration = Duration::from_millis(1500);
const PATIENCE_MIN: Duration = Duration::from_millis(200);
const PATIENCE_CHUNKS: f64 = 10.0;
/// The last one waits so many times longer than the first, so that one is enough for all.
const PATIENCE_SPREAD: f64 = 6.0;
/// What a reader waits for is brought in by this peer itself after so long, longer likewise.
const DEMAND_PATIENCE: Duration = Duration::from_millis(30);

/// A neighbour in this swarm.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) have: ChunkSet,
    /// In the same room.
    pub(crate) near: bool,
    /// It told all that it holds and brings in.
    introduced: bool,
    /// It was late, or is always busy: what it says it holds is not relied on.
    pub(crate) doubted: bool,
    /// Since when it says "busy" and brings nothing.
    busy_since: Option<Duration>,
}

#[derive(Debug)]
pub(crate) struct Download {
    pub(crate) have: ChunkSet,
    /// Held or in flight.
    taken: ChunkSet,
    /// Requests in which each chunk is open.
    flight: Vec<u8>,
    /// Chunks that are open in any.
    in_flight: u32,
    pub(crate) sources: BTreeMap<PeerId, Source>,
    /// How many sources hold each chunk.
    rarity: Vec<u16>,
    pub(crate) heads: Heads,
    demands: Vec<Range<u32>>,
    demanded_at: Duration,
    /// When anything arrived, or was tried because nothing did.
    pub(crate) progress_at: Duration,
    pub(crate) arrived_at: Duration,
    /// From asking for a chunk to having it, in seconds; 0 before the first.
    pub(crate) usual: f64,
    /// The same of chunks from a node or from another room.
    usual_in: f64,
    /// What one chunk takes on the line, in bytes.
    pub(crate) chunk_bytes: f64,
    /// Since when nothing of its own duty is left to be asked for, on each way.
    idle_since: BTreeMap<Way, Duration>,
    /// From 0 to 1: this peer's turn where one of many is enough.
    turn: f64,
}

impl Download {
    pub(crate) fn new(now: Duration, me: PeerId, recipe: RecipeId, have: ChunkSet) -> Self {
        let len = have.len() as usize;
        Self {
            taken: have.clone(),
            have,
            flight: vec![0; len],
            in_flight: 0,
            sources: BTreeMap::new(),
            rarity: vec![0; len],
            heads: Heads::new(me, recipe),
            demands: Vec::new(),
            demanded_at: now,
            progress_at: now,
            arrived_at: now,
            usual: 0.0,
            usual_in: 0.0,
            chunk_bytes: f64::from(CHUNK_BYTES_MAX),
            idle_since: BTreeMap::new(),
            turn: (weight(me, recipe, u32::MAX - 1) >> 11) as f64 / (1u64 << 53) as f64,
        }
    }

    /// The neighbour joined.
    pub(crate) fn welcome(&mut self, peer: PeerId, near: bool) {
        let len = self.have.len();
        self.sources.entry(peer).or_insert_with(|| Source {
            have: ChunkSet::empty(len),
            near,
            introduced: false,
            doubted: false,
            busy_since: None,
        });
    }

    /// The neighbour told all that it holds and brings in; whether it is the first time.
    pub(crate) fn introduced(&mut self, peer: PeerId) -> bool {
        let source = self.sources.get_mut(&peer);
        source.is_some_and(|source| !std::mem::replace(&mut source.introduced, true))
    }

    /// A neighbour said that it holds these; whether any of them is of use.
    pub(crate) fn learn(&mut self, peer: PeerId, indices: impl Iterator<Item = u32>) -> bool {
        let Some(source) = self.sources.get_mut(&peer) else { return false };
        let mut useful = false;
        for index in indices {
            if source.have.insert(index)
                && let Some(count) = self.rarity.get_mut(index as usize)
            {
                *count += 1;
                useful |= !self.taken.contains(index);
            }
        }
        useful
    }

    pub(crate) fn lose(&mut self, peer: PeerId) {
        if let Some(source) = self.sources.remove(&peer) {
            for index in source.have.iter() {
                if let Some(count) = self.rarity.get_mut(index as usize) {
                    *count -= 1;
                }
            }
        }
        self.heads.mistrust(peer);
    }

    /// A node gave the chunk to somebody else.
    pub(crate) fn put_off(&mut self, now: Duration, index: u32, by: PeerId) {
        if !self.have.contains(index) {
            self.heads.put_off(now, index, by);
        }
    }

    /// Whether a node put all of these off before.
    pub(crate) fn is_put_off(&self, indices: &[u32]) -> bool {
        indices.iter().all(|&index| self.heads.was_put_off(index))
    }

    pub(crate) fn demand(&mut self, now: Duration, range: Range<u32>) {
        if self.demands.len() >= DEMANDS_MAX {
            self.demands.remove(0);
        }
        self.demands.retain(|known| *known != range);
        self.demands.push(range);
        self.demanded_at = now;
    }

    /// Whether the chunk is new here.
    pub(crate) fn arrived(&mut self, now: Duration, from: PeerId, index: u32) -> bool {
        (self.progress_at, self.arrived_at) = (now, now);
        if let Some(source) = self.sources.get_mut(&from) {
            (source.doubted, source.busy_since) = (false, None);
        }
        self.taken.insert(index);
        self.have.insert(index)
    }

    /// How long a chunk took from being asked for, of how many bytes on the line, and whether it came
    /// from a node or from another room.
    pub(crate) fn measure(&mut self, took: f64, bytes: u32, brought_in: bool) {
        let smooth =
            |old: f64, new: f64| if old == 0.0 { new } else { old + (new - old) * SMOOTHING };
        self.usual = smooth(self.usual, took);
        if brought_in {
            self.usual_in = smooth(self.usual_in, took);
        }
        self.chunk_bytes = smooth(self.chunk_bytes, f64::from(bytes).max(1.0));
    }

    /// It is here and being written: it is not asked for again, though it was given up as late, unless
    /// its request ends without it.
    pub(crate) fn landed(&mut self, index: u32) {
        self.taken.insert(index);
    }

    pub(crate) fn begin(&mut self, indices: &[u32]) {
        for &index in indices {
            let count = &mut self.flight[index as usize];
            self.in_flight += u32::from(*count == 0);
            *count = count.saturating_add(1);
            self.taken.insert(index);
        }
    }

    /// A request for these ended, or a part of it; whether any is free again.
    pub(crate) fn end(&mut self, indices: &[u32]) -> bool {
        let mut free = false;
        for &index in indices {
            let count = &mut self.flight[index as usize];
            self.in_flight -= u32::from(*count == 1);
            *count = count.saturating_sub(1);
            if *count == 0 && !self.have.contains(index) {
                free |= self.taken.remove(index);
            }
        }
        free
    }

    /// What this one says it holds is not relied on until it brings something.
    pub(crate) fn doubt(&mut self, peer: PeerId) {
        if let Some(source) = self.sources.get_mut(&peer) {
            source.doubted = true;
        }
    }

    /// It said that it is busy.
    pub(crate) fn refused(&mut self, now: Duration, peer: PeerId) {
        if let Some(source) = self.sources.get_mut(&peer) {
            let doubted = now >= *source.busy_since.get_or_insert(now) + BUSY_MAX;
            if doubted && !std::mem::replace(&mut source.doubted, true) {
                self.heads.mistrust(peer);
            }
        }
    }

    /// Whether the other heads are neighbours by now, or were waited for: before that, what they
    /// hold would be brought in again.
    fn is_settled(&self, now: Duration) -> bool {
        let is_introduced = |peer| self.sources.get(&peer).is_some_and(|source| source.introduced);
        self.heads.is_settled(now, is_introduced)
    }

    /// Lets chunks be asked for once more whose every request is late. `late` is sorted, and has
    /// a chunk once for each late request.
    pub(crate) fn release(&mut self, late: &[u32]) {
        for run in late.chunk_by(|a, b| a == b) {
            let index = run[0];
            let all_late = usize::from(self.flight[index as usize]) == run.len();
            if all_late && run.len() < SOURCES_MAX && !self.have.contains(index) {
                self.taken.remove(index);
            }
        }
    }

    /// Whether two requests are open for it.
    pub(crate) fn is_doubled(&self, index: u32) -> bool {
        self.flight[index as usize] > 1
    }

    /// The usual time of a chunk, as a duration of sense.
    pub(crate) fn usual(&self) -> Duration {
        if self.usual == 0.0 {
            PATIENCE_FIRST / 6
        } else {
            Duration::from_secs_f64(self.usual.min(10.0))
        }
    }

    /// The usual time of a chunk that is brought in; many want those, so it may be longer.
    fn usual_in(&self) -> Duration {
        self.usual().max(Duration::from_secs_f64(self.usual_in.min(10.0)))
    }

    /// Nothing came for so long that this peer brings something in though it is not its duty.
    pub(crate) fn is_starving(&self, now: Duration) -> bool {
        let patience = if self.usual == 0.0 {
            PATIENCE_FIRST
        } else {
            self.usual().mul_f64(PATIENCE_CHUNKS).clamp(PATIENCE_MIN, PATIENCE_FIRST)
        };
        now >= self.progress_at + patience.mul_f64(1.0 + PATIENCE_SPREAD * self.turn)
    }

    /// A reader waits too long.
    fn is_overdue(&self, now: Duration) -> bool {
        now >= self.demanded_at + DEMAND_PATIENCE.mul_f64(1.0 + PATIENCE_SPREAD * self.turn)
    }

    /// Frees what only fetching needs: all is here, and was told, and stays offered for long.
    pub(crate) fn settle(&mut self) {
        if !self.have.is_full() || self.flight.is_empty() {
            return;
        }
        (self.flight, self.rarity, self.demands) = (Vec::new(), Vec::new(), Vec::new());
        self.heads.settle();
    }

    /// Chunks that are counted one by one: how rare they are, and how often asked for.
    pub(crate) fn chunks_counted(&self) -> usize {
        self.flight.len()
    }

    /// Whether everything that is lacking is in flight.
    pub(crate) fn all_under_way(&self) -> bool {
        self.have.count() + self.in_flight >= self.have.len()
    }
}

/// A random number of the picker's own.
fn shuffled(draw: u64, index: u32) -> u64 {
    mix(draw ^ u64::from(index))
}
