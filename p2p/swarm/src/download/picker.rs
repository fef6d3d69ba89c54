//! Chooses the next chunks to ask of one source.
//!
//! What a reader waits for comes first, in order. Else the rarest of a sample from a random place:
//! what few hold is what others will want. From a node and from other rooms only what this peer is
//! to bring in, and only what nobody near has.
//!
//! Invariant: what is held or in flight is not chosen, but for what [`Download::release`] gave up
//! waiting for.

use std::time::Duration;

use shoal_content::PeerId;

use super::heads::{Right, Way};
use super::{Download, shuffled};
use crate::chunk_set::bits;

/// The rarest are chosen among so many.
const SAMPLE: usize = 64;
/// A head whose duty is done takes over from others after so many times a chunk's usual time.
const IDLE_CHUNKS: u32 = 2;
const IDLE_MIN: Duration = Duration::from_millis(5);
const IDLE_FEW: Duration = Duration::from_millis(200);
const IDLE_MAX: Duration = Duration::from_millis(500);
/// Chunks from where a reader stands that go before all others.
const READER_WINDOW: usize = 256;

/// What is wanted of the source at hand.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    /// `None` for a node, which holds all.
    pub(crate) source: Option<PeerId>,
    /// Chunks in one request at most.
    pub(crate) run: usize,
    pub(crate) draw: u64,
    /// Duties are put aside: nothing else brings anything.
    pub(crate) relief: bool,
}

impl Download {
    fn way(&self, source: Option<PeerId>) -> Way {
        match source.map(|peer| self.sources.get(&peer).is_none_or(|source| source.near)) {
            None => Way::Node,
            Some(true) => Way::Near,
            Some(false) => Way::Far,
        }
    }

    /// The next run to ask for, ascending; empty where there is nothing to ask of this source.
    pub(crate) fn choose(&mut self, now: Duration, wanted: Wanted) -> Vec<u32> {
        let way = self.way(wanted.source);
        if way != Way::Near && !self.heads.has_duty() && !wanted.relief && self.demands.is_empty() {
            return Vec::new();
        }
        if way != Way::Near {
            self.heads.prepare(self.have.len());
        }
        self.trim_demands();
        if way != Way::Near && !wanted.relief && !self.is_settled(now) {
            return Vec::new();
        }
        let demanded = self.demanded(now, way, wanted);
        if !demanded.is_empty() {
            return demanded;
        }
        let own = |index: u32| match way {
            Way::Near => true,
            Way::Node if wanted.relief => !self.is_awaited(now, index),
            _ => wanted.relief || self.may(now, way, Right::Own, index),
        };
        let mut sample = self.sample(wanted, own);
        if sample.is_empty() && way != Way::Near && self.is_idle(now, way) {
            sample = self.sample(wanted, |index| self.may(now, way, Right::TakeOver, index));
        }
        if way == Way::Node {
            // A node's runs keep together, as they lie in storage.
            self.keep_insistent(&mut sample);
        } else {
            let rarity = |index: u32| self.rarity[index as usize];
            sample.sort_unstable_by_key(|&index| (rarity(index), shuffled(wanted.draw, index)));
        }
        sample.truncate(wanted.run);
        sample.sort_unstable();
        sample
    }

    /// A request insists on all of its chunks or on none: what a node put off before goes first.
    fn keep_insistent(&self, run: &mut Vec<u32>) {
        if run.iter().any(|&index| self.heads.was_put_off(index)) {
            run.retain(|&index| self.heads.was_put_off(index));
        }
    }

    fn is_awaited(&self, now: Duration, index: u32) -> bool {
        self.heads.is_awaited(now, self.usual(), self.arrived_at, index)
    }

    fn may(&self, now: Duration, way: Way, right: Right, index: u32) -> bool {
        if way == Way::Node && self.is_awaited(now, index) {
            return false;
        }
        self.heads.right(way, index) == right
            && !self.heads.is_claimed(now, self.usual_in(), index)
            && !self.is_nearer(way, index)
    }

    /// Whether somebody who is not doubted holds the chunk on a shorter way than `way`.
    fn is_nearer(&self, way: Way, index: u32) -> bool {
        self.rarity[index as usize] > 0
            && self.sources.values().any(|source| {
                !source.doubted && (source.near || way == Way::Node) && source.have.contains(index)
            })
    }

    /// Whether a neighbour in the room holds the chunk by now.
    pub(crate) fn is_held_near(&self, index: u32) -> bool {
        self.is_nearer(Way::Far, index)
    }

    /// Whether this peer's own duty is done for a while, so that whoever has not done his is slow.
    fn is_idle(&mut self, now: Duration, way: Way) -> bool {
        if self.has_own_left(now, way) {
            self.idle_since.remove(&way);
            return false;
        }
        let since = *self.idle_since.entry(way).or_insert(now);
        // Few heads have large shares: one that is only a little slower keeps its own.
        let least = if self.heads.are_few() { IDLE_FEW } else { IDLE_MIN };
        now >= since + (self.usual() * IDLE_CHUNKS).clamp(least, IDLE_MAX)
    }

    /// Whether any chunk of this peer's own duty is neither held nor in flight, nor comes by others.
    fn has_own_left(&self, now: Duration, way: Way) -> bool {
        let words = (0u32..).zip(self.taken.words());
        let mut lacking = words.flat_map(|(at, &word)| bits(at, !word));
        let awaited = |index| self.is_awaited(now, index);
        lacking.any(|index| self.heads.right(way, index) == Right::Own && !awaited(index))
    }

    /// Readers get on from where everything is there.
    fn trim_demands(&mut self) {
        let have = &self.have;
        self.demands.retain_mut(|range| {
            range.start = range.clone().find(|&index| !have.contains(index)).unwrap_or(range.end);
            range.start < range.end
        });
    }

    fn demanded(&self, now: Duration, way: Way, wanted: Wanted) -> Vec<u32> {
        let mut run: Vec<u32> = Vec::new();
        let overdue = self.is_overdue(now);
        let source = wanted.source.and_then(|peer| self.sources.get(&peer));
        let len = self.have.len();
        let windows = self.demands.iter().rev();
        for index in windows.flat_map(|range| range.clone().take(READER_WINDOW)) {
            let there = source.is_none_or(|source| source.have.contains(index));
            if index >= len || !there || self.taken.contains(index) || run.contains(&index) {
                continue;
            }
            let may = way == Way::Near
                || self.may(now, way, Right::Own, index)
                || (overdue && !self.is_nearer(way, index) && !self.is_awaited(now, index));
            if may {
                run.push(index);
                if run.len() == wanted.run {
                    break;
                }
            }
        }
        if way == Way::Node {
            self.keep_insistent(&mut run);
        }
        run
    }

    /// Some chunks that the source has and `fits`, from a random place on.
    fn sample(&self, wanted: Wanted, fits: impl Fn(u32) -> bool) -> Vec<u32> {
        let taken = self.taken.words();
        let have = match wanted.source.map(|peer| self.sources.get(&peer)) {
            Some(Some(source)) => Some(source.have.words()),
            Some(None) => return Vec::new(),
            None => None,
        };
        let mut sample = Vec::new();
        let start = wanted.draw as usize % taken.len().max(1);
        for at in (start..taken.len()).chain(0..start) {
            let word = have.map_or(u64::MAX, |have| have[at]) & !taken[at];
            for index in bits(at as u32, word) {
                if index < self.have.len() && fits(index) {
                    sample.push(index);
                }
            }
            if sample.len() >= SAMPLE {
                break;
            }
        }
        sample
    }

    /// Whether the other heads are to be told that these come from a node: where it is not this
    /// peer's duty, and towards the end, when others take over what has not begun.
    pub(crate) fn must_claim(&self, indices: &[u32]) -> bool {
        let ending = self.have.count() >= self.have.len() / 8 * 7;
        let duty = |&index: &u32| self.heads.right(Way::Node, index) == Right::Own;
        let few = self.heads.are_few();
        self.heads.has_duty() && (few || ending || !indices.iter().all(duty))
    }
}

#[cfg(test)]
mod tests {
    use shoal_content::RecipeId;

    use super::*;
    use crate::chunk_set::ChunkSet;

    fn peer(n: u8) -> PeerId {
        PeerId::from_public_key([n; 32])
    }

    fn download(chunks: u32) -> Download {
        Download::new(Duration::ZERO, peer(1), RecipeId::of(b"r"), ChunkSet::empty(chunks))
    }

    fn of(source: Option<PeerId>, run: usize) -> Wanted {
        Wanted { source, run, draw: 7, relief: false }
    }

    #[test]
    fn the_rarest_come_first_but_after_what_a_reader_waits_for() {
        let mut download = download(100);
        for n in [2, 3] {
            download.welcome(peer(n), true);
        }
        download.learn(peer(2), 0..100);
        download.learn(peer(3), (0..100).filter(|index| index % 10 != 0));
        let run = download.choose(Duration::ZERO, of(Some(peer(2)), 4));
        assert!(run.len() == 4 && run.iter().all(|index| index % 10 == 0), "{run:?}");
        download.demand(Duration::ZERO, 41..44);
        let run = download.choose(Duration::ZERO, of(Some(peer(2)), 4));
        assert_eq!(run, [41, 42, 43]);
        download.begin(&run);
        let next = download.choose(Duration::ZERO, of(Some(peer(2)), 4));
        assert!(next.iter().all(|index| !run.contains(index)), "{next:?}");
    }

    #[test]
    fn a_head_takes_over_at_the_node_while_its_duty_to_the_room_is_open() {
        let mut download = download(400);
        for (n, near) in [(2, true), (9, false)] {
            download.welcome(peer(n), near);
            download.introduced(peer(n));
        }
        let whole = vec![(peer(1), true), (peer(9), false)];
        download.heads.set(Duration::ZERO, whole, vec![peer(1), peer(2)]);
        download.heads.prepare(400);
        let own = |&index: &u32| download.heads.right(Way::Node, index) == Right::Own;
        let own: Vec<u32> = (0..400).filter(own).collect();
        download.begin(&own);
        let mut choose = |ms, source| download.choose(Duration::from_millis(ms), of(source, 8));
        assert!(choose(0, None).is_empty());
        assert!(choose(1, Some(peer(9))).is_empty(), "it holds nothing");
        assert!(!choose(1000, None).is_empty());
    }

    #[test]
    fn only_its_owner_asks_a_node_and_others_take_over_when_they_have_no_more_of_their_own() {
        let mut download = download(64);
        assert!(download.choose(Duration::ZERO, of(None, 8)).is_empty(), "no duty");
        download.welcome(peer(2), true);
        download.introduced(peer(2));
        let heads = vec![(peer(1), true), (peer(2), true)];
        download.heads.set(Duration::ZERO, heads, vec![peer(1), peer(2)]);
        let mut own = Vec::new();
        loop {
            let run = download.choose(Duration::from_secs(own.len() as u64), of(None, 8));
            let mine = |&index: &u32| download.heads.right(Way::Node, index) == Right::Own;
            if run.is_empty() || !run.iter().all(mine) {
                assert!(run.iter().all(|index| !mine(index)), "{run:?}");
                break;
            }
            download.begin(&run);
            own.extend(run);
        }
        assert!((16..48).contains(&own.len()), "{} of 64 are its own", own.len());
        let left = (0..64).filter(|index| !own.contains(index));
        let now = Duration::from_secs(100);
        left.clone().for_each(|index| download.heads.claim(now, peer(2), index));
        assert!(download.choose(now, of(None, 8)).is_empty(), "all is claimed");
        let later = Duration::from_secs(160);
        assert!(!download.choose(later, of(None, 8)).is_empty(), "a claim does not last");
    }
}
