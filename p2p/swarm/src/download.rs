//! One recipe on its way: what is held, who holds what, what is asked of whom, what to ask next.
//!
//! Invariants: a chunk is in flight from at most one source, except in the endgame; a chunk that
//! no neighbour holds is asked of a node only by its designated first fetcher, unless nothing else
//! moved for [`TAKE_OVER`].
//! Non-goals: connections, the tracker; see `swarm`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use shoal_content::{PeerId, RecipeId};

use crate::chunk_set::ChunkSet;
use crate::rendezvous::{mix, weight};

/// Requests under way at one source.
pub(crate) const REQUESTS_PER_SOURCE: usize = 2;
/// Chunks in one request.
const RUN_CHUNKS: usize = 8;
/// The rarest are chosen among so many candidates, found from a random start.
const CANDIDATES_MAX: usize = 64;
/// Without any chunk for so long, whoever lacks one asks a node, and a silent designate loses its
/// right.
pub(crate) const TAKE_OVER: Duration = Duration::from_millis(1500);
/// Demanded ranges remembered; the newest win.
const DEMANDS_MAX: usize = 16;

/// A neighbour in this swarm.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) have: ChunkSet,
    /// What it said it is fetching from a node.
    claims: BTreeSet<u32>,
    /// When it last got further, or joined.
    pub(crate) progress_at: Duration,
}

#[derive(Debug)]
pub(crate) struct Download {
    recipe: RecipeId,
    pub(crate) have: ChunkSet,
    /// Chunks in flight, with how many requests hold each.
    flight: BTreeMap<u32, u8>,
    pub(crate) sources: BTreeMap<PeerId, Source>,
    /// How many sources hold each chunk.
    rarity: Vec<u16>,
    demands: Vec<Range<u32>>,
    pub(crate) progress_at: Duration,
    salt: u64,
}

/// What may be asked of the source at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    Peer(PeerId),
    /// A node, which holds all.
    Node,
    /// A node, with nobody else left to wait for.
    NodeUnasked,
}

impl Download {
    pub(crate) fn new(now: Duration, recipe: RecipeId, have: ChunkSet, salt: u64) -> Self {
        let rarity = vec![0; have.len() as usize];
        Self {
            recipe,
            have,
            flight: BTreeMap::new(),
            sources: BTreeMap::new(),
            rarity,
            demands: Vec::new(),
            progress_at: now,
            salt,
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.flight.len()
    }

    /// A neighbour said that it holds these, and joined if it is new.
    pub(crate) fn learn(
        &mut self,
        now: Duration,
        peer: PeerId,
        indices: impl Iterator<Item = u32>,
    ) {
        let len = self.have.len();
        let source = self.sources.entry(peer).or_insert_with(|| Source {
            have: ChunkSet::empty(len),
            claims: BTreeSet::new(),
            progress_at: now,
        });
        for index in indices {
            if source.have.insert(index) {
                source.progress_at = now;
                source.claims.remove(&index);
                self.rarity[index as usize] += 1;
            }
        }
    }

    pub(crate) fn claimed(&mut self, peer: PeerId, indices: impl Iterator<Item = u32>) {
        if let Some(source) = self.sources.get_mut(&peer) {
            source.claims.extend(indices.filter(|&index| !source.have.contains(index)));
        }
    }

    pub(crate) fn lose(&mut self, peer: PeerId) {
        if let Some(source) = self.sources.remove(&peer) {
            source.have.iter().for_each(|index| self.rarity[index as usize] -= 1);
        }
    }

    pub(crate) fn demand(&mut self, range: Range<u32>) {
        if self.demands.len() >= DEMANDS_MAX {
            self.demands.remove(0);
        }
        self.demands.push(range);
    }

    /// Whether the chunk is new here.
    pub(crate) fn arrived(&mut self, now: Duration, index: u32) -> bool {
        self.progress_at = now;
        self.have.insert(index)
    }

    pub(crate) fn begin(&mut self, indices: &[u32]) {
        indices.iter().for_each(|&index| *self.flight.entry(index).or_default() += 1);
    }

    pub(crate) fn end(&mut self, indices: &[u32]) {
        for index in indices {
            if let Some(count) = self.flight.get_mut(index) {
                *count -= 1;
                if *count == 0 {
                    self.flight.remove(index);
                }
            }
        }
    }

    fn lacks(&self, index: u32) -> bool {
        !self.have.contains(index) && !self.flight.contains_key(&index)
    }

    /// Whether `me` is the first fetcher of `index`: nobody alive claimed it, and no other
    /// incomplete member that gets on has more weight.
    fn designated(&self, now: Duration, me: PeerId, index: u32) -> bool {
        let mine = weight(me, self.recipe, index);
        let alive =
            |source: &&Source| !source.have.is_full() && now < source.progress_at + TAKE_OVER;
        let rival = |(&peer, source): (&PeerId, &Source)| {
            alive(&source)
                && (source.claims.contains(&index) || weight(peer, self.recipe, index) > mine)
        };
        !self.sources.iter().any(rival)
    }

    fn may(&self, now: Duration, me: PeerId, from: From, index: u32) -> bool {
        match from {
            From::Peer(peer) => {
                self.sources.get(&peer).is_some_and(|source| source.have.contains(index))
            }
            From::Node => self.rarity[index as usize] == 0 && self.designated(now, me, index),
            From::NodeUnasked => true,
        }
    }

    /// The next run to ask of one source: what is demanded in order, else the rarest of a sample
    /// from a random start. Empty where there is nothing to ask.
    pub(crate) fn choose(&self, now: Duration, me: PeerId, from: From, draw: u64) -> Vec<u32> {
        let len = self.have.len();
        let fits = |&index: &u32| self.lacks(index) && self.may(now, me, from, index);
        let demanded = self.demands.iter().rev().flat_map(|range| range.clone());
        let mut run: Vec<u32> = Vec::new();
        for index in demanded.filter(|&index| index < len).filter(fits) {
            if !run.contains(&index) {
                run.push(index);
            }
            if run.len() == RUN_CHUNKS {
                return run;
            }
        }
        if !run.is_empty() || len == 0 {
            return run;
        }
        let start = (mix(self.salt ^ draw) % u64::from(len)) as u32;
        let around = (start..len).chain(0..start);
        let mut sample: Vec<u32> = around.filter(fits).take(CANDIDATES_MAX).collect();
        sample.sort_by_key(|&index| (self.rarity[index as usize], mix(draw ^ u64::from(index))));
        sample.truncate(RUN_CHUNKS);
        sample.sort_unstable();
        sample
    }

    /// In the endgame: what is lacking, in flight once, and this peer could bring too. A slow
    /// request may still list what another one brought; that is not asked for again.
    pub(crate) fn choose_again(&self, peer: PeerId, late: &BTreeSet<u32>) -> Vec<u32> {
        let Some(source) = self.sources.get(&peer) else { return Vec::new() };
        let once = |&index: &u32| {
            !self.have.contains(index)
                && self.flight.get(&index) == Some(&1)
                && source.have.contains(index)
        };
        late.iter().copied().filter(once).take(RUN_CHUNKS).collect()
    }

    pub(crate) fn all_under_way(&self) -> bool {
        let lacking = self.flight.keys().filter(|&&index| !self.have.contains(index)).count();
        self.have.count() as usize + lacking >= self.have.len() as usize
    }
}
