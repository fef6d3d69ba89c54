//! Who may bring a chunk in: from a node, or from another room.
//!
//! A group of [`GROUP`] chunks has one owner among the heads of the whole, by rendezvous hashing:
//! it alone asks a node. In every other room one head owns the group, and it alone asks holders in
//! other rooms. A head that has nothing of its own left on one of these ways takes over there what
//! others have not begun (they are slow). What comes from other rooms is claimed before the other
//! heads of the room; a node needs it only where one takes over, since its ledger gives nothing
//! twice. The groups of a head that is lost, or of which nothing is heard, fall to the others at
//! once. Without a tracker, whoever is near and this peer are the heads.
//!
//! Non-goal: choosing the heads; see `tracker`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_content::{PeerId, RecipeId};

use crate::rendezvous::weight;

/// Chunks with one owner.
const GROUP: u32 = 4;
/// How long a claim counts.
const CLAIM_MIN: Duration = Duration::from_millis(5);
/// The same among few heads, where all is claimed.
const CLAIM_FEW: Duration = Duration::from_millis(300);
const CLAIM_CHUNKS: u32 = 3;
/// Claims remembered.
const CLAIMS_MAX: usize = 4096;
/// As long a head that was just named may take to become a neighbour.
const SETTLE: Duration = Duration::from_millis(500);
/// As long a silent head is passed over at least: one that is slow is not to come and go.
const HUSHED_MIN: Duration = Duration::from_millis(250);
/// So few heads tell each other all that they bring in.
const FEW: usize = 12;
/// What a node says another was given is insisted on after so many times a chunk's usual time,
/// or at once where that one is lost or refuses all.
const INSIST_CHUNKS: u32 = 8;
const INSIST_MIN: Duration = Duration::from_millis(50);
const INSIST_SMALL: Duration = Duration::from_secs(1);
const INSIST_MAX: Duration = Duration::from_secs(4);
/// With so few other heads, all members of the swarm are heads.
const SMALL: usize = 7;

/// Where a chunk would come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// A neighbour in the room: no right is needed.
    Near,
    /// A neighbour in another room.
    Far,
    Node,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    Own,
    TakeOver,
    No,
}

/// This peer's rights to one group.
#[derive(Debug, Clone, Copy)]
struct Duty {
    node: Right,
    far: Right,
}

#[derive(Debug, Clone, Copy)]
struct Silence {
    since: Duration,
    /// It ended.
    heard: bool,
}

#[derive(Debug)]
pub(crate) struct Heads {
    me: PeerId,
    recipe: RecipeId,
    /// With whether it is in this room.
    whole: Vec<(PeerId, bool)>,
    room: Vec<PeerId>,
    lost: BTreeSet<PeerId>,
    /// Heads from which nothing is heard while others are: they may be gone.
    silent: BTreeMap<PeerId, Silence>,
    /// For so long a head that came back was silent, doubled: it was not gone.
    pub(crate) pause: Duration,
    /// When each other head was first named; `None` where it will be no neighbour.
    named: BTreeMap<PeerId, Option<Duration>>,
    claims: BTreeMap<u32, (PeerId, Duration)>,
    /// What a node gave to others, since when it is waited for; at most all chunks.
    put_off: BTreeMap<u32, (PeerId, Duration)>,
    /// For each group, what this peer may do; made when needed.
    duties: Vec<Duty>,
}

impl Heads {
    pub(super) fn new(me: PeerId, recipe: RecipeId) -> Self {
        Self {
            me,
            recipe,
            whole: Vec::new(),
            room: Vec::new(),
            lost: BTreeSet::new(),
            silent: BTreeMap::new(),
            pause: Duration::ZERO,
            named: BTreeMap::new(),
            claims: BTreeMap::new(),
            put_off: BTreeMap::new(),
            duties: Vec::new(),
        }
    }

    /// Replaces the lists; whoever was lost before is back.
    pub(crate) fn set(&mut self, now: Duration, whole: Vec<(PeerId, bool)>, room: Vec<PeerId>) {
        if (&whole, &room) != (&self.whole, &self.room) {
            self.duties.clear();
            (self.whole, self.room) = (whole, room);
            let others = self.others();
            self.named.retain(|peer, _| others.contains(peer));
            self.silent.retain(|peer, _| others.contains(peer));
            for peer in others {
                self.named.entry(peer).or_insert(Some(now));
            }
        }
        if !self.lost.is_empty() {
            self.lost.clear();
            self.duties.clear();
        }
    }

    pub(crate) fn lose(&mut self, peer: PeerId) {
        if self.contains(peer) && self.lost.insert(peer) {
            self.duties.clear();
            self.claims.retain(|_, (claimer, _)| *claimer != peer);
            self.mistrust(peer);
        }
    }

    /// It refused to be a neighbour: it is a head, and not waited for.
    pub(crate) fn give_up(&mut self, peer: PeerId) {
        if let Some(since) = self.named.get_mut(&peer) {
            *since = None;
        }
    }

    /// It is there (again).
    pub(crate) fn find(&mut self, peer: PeerId) {
        if self.lost.remove(&peer) {
            self.duties.clear();
        }
    }

    /// Nothing is heard of it: others do its duty until it is heard again, after a while.
    pub(crate) fn hush(&mut self, now: Duration, peer: PeerId) {
        if self.contains(peer) && !self.silent.contains_key(&peer) {
            self.silent.insert(peer, Silence { since: now, heard: false });
            self.duties.clear();
        }
    }

    /// It is heard.
    pub(crate) fn hear(&mut self, now: Duration, peer: PeerId) {
        let Some(silence) = self.silent.get_mut(&peer) else { return };
        let lasted = now.saturating_sub(silence.since);
        if !std::mem::replace(&mut silence.heard, true) {
            self.pause = self.pause.max(lasted * 2);
        }
        if lasted >= HUSHED_MIN {
            self.silent.remove(&peer);
            self.duties.clear();
        }
    }

    /// Whether each other head is a neighbour, is lost, or was waited for.
    pub(super) fn is_settled(&self, now: Duration, is_neighbour: impl Fn(PeerId) -> bool) -> bool {
        self.named.iter().all(|(&peer, &named)| {
            named.is_none_or(|named| now >= named + SETTLE)
                || is_neighbour(peer)
                || self.lost.contains(&peer)
        })
    }

    pub(super) fn are_few(&self) -> bool {
        self.named.len() < FEW
    }

    pub(crate) fn contains(&self, peer: PeerId) -> bool {
        self.room.contains(&peer) || self.whole.iter().any(|&(head, _)| head == peer)
    }

    /// Whether this peer may bring anything in.
    pub(crate) fn has_duty(&self) -> bool {
        self.contains(self.me)
    }

    /// All heads but this peer.
    pub(crate) fn others(&self) -> Vec<PeerId> {
        let all = self.room.iter().copied().chain(self.whole.iter().map(|&(head, _)| head));
        let all: BTreeSet<PeerId> = all.filter(|&peer| peer != self.me).collect();
        all.into_iter().collect()
    }

    /// Those of this room.
    pub(crate) fn others_in_room(&self) -> Vec<PeerId> {
        self.room.iter().copied().filter(|&peer| peer != self.me).collect()
    }

    pub(crate) fn claim(&mut self, now: Duration, peer: PeerId, index: u32) {
        if self.claims.len() < CLAIMS_MAX || self.claims.contains_key(&index) {
            self.claims.insert(index, (peer, now));
        }
    }

    /// Whether somebody else said of late that it brings this in.
    pub(super) fn is_claimed(&self, now: Duration, usual: Duration, index: u32) -> bool {
        let least = if self.are_few() { CLAIM_FEW } else { CLAIM_MIN };
        let fresh = (usual * CLAIM_CHUNKS).max(least);
        self.claims.get(&index).is_some_and(|&(_, at)| now < at + fresh)
    }

    /// A node gave the chunk to `by`.
    pub(super) fn put_off(&mut self, since: Duration, index: u32, by: PeerId) {
        let since = if self.lost.contains(&by) { Duration::ZERO } else { since };
        self.put_off.insert(index, (by, since));
    }

    /// What this one was given is not waited for any longer.
    pub(super) fn mistrust(&mut self, peer: PeerId) {
        let of_it = self.put_off.values_mut().filter(|(by, _)| *by == peer);
        of_it.for_each(|(_, since)| *since = Duration::ZERO);
    }

    pub(super) fn was_put_off(&self, index: u32) -> bool {
        self.put_off.contains_key(&index)
    }

    /// Whether it is to be waited for that another passes on what a node gave it. In a small swarm that
    /// is so while anything arrived of late, at `progress_at`: the others are slow, not gone.
    pub(super) fn is_awaited(
        &self,
        now: Duration,
        usual: Duration,
        progress_at: Duration,
        index: u32,
    ) -> bool {
        let Some(&(_, since)) = self.put_off.get(&index) else { return false };
        let (least, from) = match self.named.len() < SMALL {
            true => (INSIST_SMALL, since.max(progress_at)),
            false => (INSIST_MIN, since),
        };
        since != Duration::ZERO && now < from + (usual * INSIST_CHUNKS).clamp(least, INSIST_MAX)
    }

    pub(crate) fn arrived(&mut self, index: u32) {
        self.put_off.remove(&index);
        if !self.claims.is_empty() {
            self.claims.remove(&index);
        }
    }

    /// Frees what only who brings chunks in needs.
    pub(super) fn settle(&mut self) {
        self.claims.clear();
        self.put_off.clear();
        self.duties = Vec::new();
    }

    /// Must be called before [`Self::right`], after any change.
    pub(super) fn prepare(&mut self, chunks: u32) {
        if !self.duties.is_empty() {
            return;
        }
        let (me, recipe) = (self.me, self.recipe);
        let whole = self.alive(self.whole.iter().copied());
        let room = self.alive(self.room.iter().map(|&peer| (peer, true)));
        let leads = |list: &[(PeerId, bool)]| list.iter().any(|&(peer, _)| peer == me);
        let (leads_whole, leads_room) = (leads(&whole), leads(&room));
        let best = |list: &[(PeerId, bool)], group: u32| {
            list.iter().copied().max_by_key(|&(peer, _)| weight(peer, recipe, group))
        };
        let duty = |group: u32| {
            let by_node = best(&whole, group);
            if by_node.is_some_and(|(peer, _)| peer == me) {
                return Duty { node: Right::Own, far: Right::Own };
            }
            // What a neighbour in the room gets from a node does not come from another room.
            let from_room = by_node.is_none_or(|(_, near)| !near);
            let mine = || from_room && best(&room, group).is_some_and(|(peer, _)| peer == me);
            let far = match leads_room {
                true if mine() => Right::Own,
                true => Right::TakeOver,
                false => Right::No,
            };
            Duty { node: if leads_whole { Right::TakeOver } else { Right::No }, far }
        };
        self.duties = (0..chunks.div_ceil(GROUP)).map(duty).collect();
    }

    fn alive(&self, heads: impl Iterator<Item = (PeerId, bool)>) -> Vec<(PeerId, bool)> {
        heads
            .filter(|(peer, _)| !self.lost.contains(peer) && !self.silent.contains_key(peer))
            .collect()
    }

    pub(super) fn right(&self, way: Way, index: u32) -> Right {
        let Some(duty) = self.duties.get((index / GROUP) as usize) else { return Right::No };
        match way {
            Way::Near => Right::Own,
            Way::Far => duty.far,
            Way::Node => duty.node,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> PeerId {
        PeerId::from_public_key([n; 32])
    }

    #[test]
    fn every_chunk_has_one_owner_and_a_loss_gives_its_chunks_to_the_others() {
        let all: Vec<PeerId> = (1..=5).map(peer).collect();
        let view = |me: u8| {
            let mut heads = Heads::new(peer(me), RecipeId::of(b"r"));
            heads.set(Duration::ZERO, all.iter().map(|&peer| (peer, true)).collect(), all.clone());
            heads
        };
        let mut views: Vec<Heads> = (1..=5).map(view).collect();
        let owners = |views: &mut [Heads], index| {
            views.iter_mut().for_each(|view| view.prepare(400));
            let own = |view: &&Heads| view.right(Way::Node, index) == Right::Own;
            views.iter().filter(own).map(|view| view.me).collect::<Vec<_>>()
        };
        let before: Vec<_> = (0..400).map(|index| owners(&mut views, index)).collect();
        assert!(before.iter().all(|owners| owners.len() == 1));
        views.pop();
        views.iter_mut().for_each(|view| view.lose(peer(5)));
        for (index, before) in before.iter().enumerate() {
            let now = owners(&mut views, index as u32);
            assert!(now.len() == 1 && (now == *before || *before == [peer(5)]), "{index}");
        }
    }

    #[test]
    fn a_head_that_refuses_is_not_waited_for_and_keeps_its_duty() {
        let mut heads = Heads::new(peer(1), RecipeId::of(b"r"));
        heads.set(Duration::ZERO, vec![(peer(1), true), (peer(9), false)], vec![peer(1)]);
        let own = |heads: &mut Heads| {
            heads.prepare(400);
            (0..400).filter(|&index| heads.right(Way::Node, index) == Right::Own).count()
        };
        let before = own(&mut heads);
        assert!(!heads.is_settled(Duration::ZERO, |_| false));
        heads.give_up(peer(9));
        assert!(heads.is_settled(Duration::ZERO, |_| false));
        assert_eq!(own(&mut heads), before);
        heads.lose(peer(9));
        assert_eq!(own(&mut heads), 400);
    }

    #[test]
    fn a_room_leaves_to_the_node_what_one_of_it_fetches_there() {
        let mut heads = Heads::new(peer(1), RecipeId::of(b"r"));
        heads.set(Duration::ZERO, vec![(peer(2), true), (peer(9), false)], vec![peer(1)]);
        heads.prepare(400);
        let rights: Vec<Right> = (0..400).map(|index| heads.right(Way::Far, index)).collect();
        let own = rights.iter().filter(|&&right| right == Right::Own).count();
        assert!((100..300).contains(&own), "{own} of 400 come from other rooms");
        assert!((0..400).all(|index| heads.right(Way::Node, index) == Right::No));
    }
}
