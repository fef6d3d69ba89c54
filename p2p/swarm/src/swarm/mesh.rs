//! One recipe's mesh: whom this peer knows, joins and tells.
//!
//! A member has about ten neighbours in its room; a head besides has the other heads, and some
//! neighbours in other rooms. Whoever has too many refuses with a Leave and names others.
//!
//! Invariants: a neighbour is joined once for each connection; at most [`KNOWN_MAX`] members of a
//! recipe are remembered, whoever names more.
//! Non-goals: what to ask of whom, see `requests`; the tracker, see `tracking`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_content::{PeerId, RecipeId, Zone};

use super::standby::Standby;
use super::{STEP_MAX, Swarm};
use crate::download::Download;
use crate::event::Action;
use crate::frames::{ChunkRange, Contact, Frame, Member, RANGES_MAX, mapped};
use crate::rendezvous::{mix, word};

/// Neighbours wanted for one recipe, in this room; a head wants so many in other rooms, too, beside
/// the heads of the whole. With fewer, what a room needs is for long with nobody that it knows.
const NEIGHBOURS: usize = 10;
const FAR_NEIGHBOURS: usize = 10;
/// Neighbours let in from this room, and from others; heads are always let in by heads.
const NEIGHBOURS_MAX: usize = 28;
/// Members remembered for one recipe.
const KNOWN_MAX: usize = 64;
/// What arrived is told at once, or so long after the last time.
const TELL_INTERVAL: Duration = Duration::from_millis(1);
/// Members that a refusal, or gossip, names.
const GOSSIP: usize = 6;

/// One recipe here: on its way, or only offered.
#[derive(Debug)]
pub(super) struct Membership {
    pub(super) download: Option<Download>,
    pub(super) known: BTreeMap<PeerId, Member>,
    /// Peers that were sent a Join on their connection.
    pub(super) joined: BTreeSet<PeerId>,
    pub(super) tracker: Option<PeerId>,
    /// Asked while the tracker is silent.
    pub(super) standby: Option<Standby>,
    pub(super) announce_at: Duration,
    /// Since when there is no tracker.
    pub(super) alone_since: Duration,
    /// The heads were not named by a tracker.
    pub(super) leads_alone: bool,
    pub(super) step_at: Duration,
    pub(super) fresh: Vec<u32>,
    pub(super) told_at: Duration,
}

impl Membership {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            download: None,
            known: BTreeMap::new(),
            joined: BTreeSet::new(),
            tracker: None,
            standby: None,
            announce_at: now,
            alone_since: now,
            leads_alone: false,
            step_at: now,
            fresh: Vec::new(),
            told_at: Duration::ZERO,
        }
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.download.as_ref().is_some_and(|download| !download.have.is_full())
    }

    /// Whether it is on its way here or at a neighbour.
    pub(super) fn is_lively(&self) -> bool {
        let Some(download) = &self.download else { return false };
        !download.have.is_full() || download.sources.values().any(|source| !source.have.is_full())
    }

    /// When it is to be looked at again.
    pub(super) fn due(&self) -> Duration {
        let mut due = self.announce_at;
        if self.is_under_way() {
            due = due.min(self.step_at);
        }
        if !self.fresh.is_empty() {
            due = due.min(self.told_at + TELL_INTERVAL);
        }
        due
    }
}

impl Swarm {
    pub(super) fn is_near(&self, zone: &Zone) -> bool {
        zone.shares_room(&self.settings.zone)
    }

    /// A member that discovery found: its place is not known before it says hello.
    pub(super) fn hint(&mut self, recipe: RecipeId, contact: Contact) {
        let zone = self.settings.zone.clone();
        self.know(recipe, Member { contact, zone, cache: false });
        self.gather_soon(recipe);
    }

    pub(super) fn know(&mut self, recipe: RecipeId, member: Member) {
        let peer = member.contact.peer;
        let node = self.nodes.iter().any(|node| node.peer == peer);
        if peer == self.settings.me || node || self.is_banned(peer) {
            return;
        }
        if let Some(membership) = self.memberships.get_mut(&recipe)
            && (membership.known.len() < KNOWN_MAX || membership.known.contains_key(&peer))
        {
            membership.known.insert(peer, member);
        }
    }

    /// Someone who came by itself is remembered in place of someone who is not there, but not of a
    /// head that is being dialled: one that has all does not join by itself, and is waited for.
    fn know_present(&mut self, recipe: RecipeId, member: Member) {
        self.know_instead(recipe, member, |swarm, peer| {
            !swarm.peers.contains_key(&peer) && !swarm.is_head(recipe, peer)
        });
    }

    /// A head is remembered in place of another member: its share is waited for.
    pub(super) fn know_head(&mut self, recipe: RecipeId, member: Member) {
        self.know_instead(recipe, member, |swarm, peer| !swarm.is_head(recipe, peer));
    }

    fn is_head(&self, recipe: RecipeId, peer: PeerId) -> bool {
        self.peek(recipe).is_some_and(|download| download.heads.contains(peer))
    }

    fn know_instead(
        &mut self,
        recipe: RecipeId,
        member: Member,
        may_go: impl Fn(&Self, PeerId) -> bool,
    ) {
        let Some(membership) = self.memberships.get(&recipe) else { return };
        let known = &membership.known;
        if known.len() >= KNOWN_MAX && !known.contains_key(&member.contact.peer) {
            let Some(one) = known.keys().find(|&&peer| may_go(self, peer)).copied() else { return };
            if let Some(membership) = self.memberships.get_mut(&recipe) {
                membership.known.remove(&one);
            }
        }
        self.know(recipe, member);
    }

    pub(super) fn gather_soon(&mut self, recipe: RecipeId) {
        if self.under_way.contains(&recipe)
            && let Some(membership) = self.memberships.get_mut(&recipe)
        {
            membership.step_at = self.now;
            self.wake_by(self.now);
        }
    }

    pub(super) fn joined(&mut self, peer: PeerId, recipe: RecipeId) {
        if self.retiring {
            return self.refuse(peer, recipe);
        }
        let Some(found) = self.peers.get(&peer) else { return };
        let (member, near) = (found.member.clone(), found.near);
        let Some(membership) = self.memberships.get_mut(&recipe) else {
            return self.track(peer, recipe, member, true);
        };
        let Some(download) = &mut membership.download else {
            return self.know_present(recipe, member);
        };
        let alike = download.sources.values().filter(|source| source.near == near).count();
        let full = alike >= NEIGHBOURS_MAX && !download.heads.contains(peer);
        if full && !download.sources.contains_key(&peer) {
            return self.refuse(peer, recipe);
        }
        download.welcome(peer, near);
        self.know_present(recipe, member);
        let joins = self.join(recipe, peer);
        if !joins {
            self.introduce(recipe, peer);
        }
    }

    /// All that is held here and being brought in.
    fn introduce(&mut self, recipe: RecipeId, peer: PeerId) {
        self.tell_all(recipe, peer);
        self.claim_to(recipe, peer);
    }

    /// "I cannot be your neighbour, but these may."
    fn refuse(&mut self, peer: PeerId, recipe: RecipeId) {
        let members = self.some_known(recipe, peer);
        self.send(peer, Frame::Peers { recipe, members });
        self.send(peer, Frame::Leave { recipe });
    }

    /// Some members that are neighbours here, at random.
    pub(super) fn some_known(&mut self, recipe: RecipeId, but: PeerId) -> Vec<Member> {
        let draw = self.draw();
        let Some(membership) = self.memberships.get(&recipe) else { return Vec::new() };
        let present = membership.known.values().filter(|member| {
            member.contact.peer != but && self.peers.contains_key(&member.contact.peer)
        });
        let mut some: Vec<&Member> = present.collect();
        some.sort_by_key(|member| mix(draw ^ word(member.contact.peer.as_public_key())));
        some.into_iter().take(GOSSIP).cloned().collect()
    }

    /// Everything that is held here.
    fn tell_all(&mut self, recipe: RecipeId, peer: PeerId) {
        let Some(download) = self.download(recipe) else { return };
        let frames = Frame::holdings(recipe, &download.have);
        frames.into_iter().for_each(|frame| self.send(peer, frame));
    }

    /// Whether it is joined only now.
    fn join(&mut self, recipe: RecipeId, peer: PeerId) -> bool {
        let Some(membership) = self.memberships.get_mut(&recipe) else { return false };
        let joins = membership.is_under_way() && membership.joined.insert(peer);
        if joins {
            self.actions.push_back(Action::Join { peer, recipe });
            self.introduce(recipe, peer);
        }
        joins
    }

    pub(super) fn frame(&mut self, peer: PeerId, frame: Frame) {
        let now = self.now;
        let Some(known) = self.peers.get_mut(&peer) else { return };
        known.heard_at = now;
        let near = known.near;
        match frame {
            Frame::Have { recipe, chunks } => {
                let Some(download) = self.download(recipe) else { return };
                let len = download.have.len();
                let indices = chunks.iter().flat_map(|range| range.within(len));
                self.learn(recipe, peer, near, indices);
            }
            Frame::Map { recipe, start, bits } => {
                self.learn(recipe, peer, near, mapped(start, &bits));
            }
            Frame::Claim { recipe, chunks } => {
                let Some(membership) = self.memberships.get_mut(&recipe) else { return };
                let Some(download) = &mut membership.download else { return };
                download.heads.hear(now, peer);
                if membership.joined.contains(&peer) {
                    download.welcome(peer, near);
                }
                if download.heads.contains(peer) {
                    let len = download.have.len();
                    for index in chunks.iter().flat_map(|range| range.within(len)) {
                        download.heads.claim(now, peer, index);
                    }
                }
                if download.introduced(peer) {
                    // Now that it is known what this one holds, something may be this peer's to
                    // bring in.
                    self.ask_nodes(recipe);
                }
            }
            Frame::Announce { recipe } => {
                let member = known.member.clone();
                self.track(peer, recipe, member, false);
            }
            Frame::Peers { recipe, members } => {
                self.standby_answered(recipe, peer);
                members.into_iter().for_each(|member| self.know(recipe, member));
                self.gather_soon(recipe);
            }
            Frame::Heads { recipe, whole, room } => self.heads(peer, recipe, whole, room),
            Frame::Free => self.freed(peer),
            Frame::Leave { recipe } => self.left(peer, recipe),
            // The shell turns these into events of their own, or takes them itself.
            Frame::Hello { .. } | Frame::Join { .. } | Frame::Pass => {}
        }
    }

    fn learn(
        &mut self,
        recipe: RecipeId,
        peer: PeerId,
        near: bool,
        indices: impl Iterator<Item = u32>,
    ) {
        let now = self.now;
        let Some(membership) = self.memberships.get_mut(&recipe) else { return };
        let Some(download) = &mut membership.download else { return };
        download.heads.hear(now, peer);
        // One that only serves does not join back: what it holds is its welcome.
        if membership.joined.contains(&peer) && download.sources.len() < NEIGHBOURS_MAX * 2 {
            download.welcome(peer, near);
        }
        if download.learn(peer, indices) {
            self.ask(recipe, peer);
        }
    }

    fn left(&mut self, peer: PeerId, recipe: RecipeId) {
        self.untrack(peer, recipe);
        let Some(membership) = self.memberships.get_mut(&recipe) else { return };
        membership.known.remove(&peer);
        membership.joined.remove(&peer);
        membership.lose_standby(peer);
        if let Some(download) = &mut membership.download {
            // A head that has neighbours enough does its duty all the same.
            if download.sources.contains_key(&peer) {
                download.lose(peer);
                download.heads.lose(peer);
            } else {
                download.heads.give_up(peer);
            }
        }
        self.gather_soon(recipe);
    }

    /// Tells the neighbours what arrived, unless they were told a moment ago.
    pub(super) fn tell_fresh(&mut self, recipe: RecipeId) {
        let now = self.now;
        let Some(membership) = self.memberships.get_mut(&recipe) else { return };
        let due = membership.told_at + TELL_INTERVAL;
        if membership.fresh.is_empty() || now < due {
            if !membership.fresh.is_empty() {
                self.wake_by(due);
            }
            return;
        }
        membership.told_at = now;
        let mut fresh = std::mem::take(&mut membership.fresh);
        fresh.sort_unstable();
        let Some(download) = &membership.download else { return };
        let lacking = download.sources.iter().filter(|(_, source)| !source.have.is_full());
        let to: Vec<PeerId> = lacking.map(|(&peer, _)| peer).collect();
        let chunks = ChunkRange::gather(fresh);
        for part in chunks.chunks(RANGES_MAX) {
            for &peer in &to {
                self.send(peer, Frame::Have { recipe, chunks: part.to_vec() });
            }
        }
    }

    /// Lets go of what only fetching needs, once the neighbours were told of all.
    pub(super) fn settle(&mut self, recipe: RecipeId) {
        let Some(membership) = self.memberships.get_mut(&recipe) else { return };
        if !membership.fresh.is_empty() {
            return;
        }
        let peers = &self.peers;
        membership.known.retain(|peer, _| peers.contains_key(peer));
        if let Some(download) = &mut membership.download {
            download.settle();
        }
    }

    /// Joins who is connected, and dials until there are neighbours enough.
    pub(super) fn gather_neighbours(&mut self, recipe: RecipeId) {
        let salt = mix(self.settings.seed ^ word(recipe.as_bytes()));
        let Some(membership) = self.memberships.get(&recipe) else { return };
        let Some(download) = &membership.download else { return };
        let duty = download.heads.has_duty();
        let mut known: Vec<(u64, Contact, bool, bool)> = membership
            .known
            .values()
            .map(|member| {
                let peer = member.contact.peer;
                let order = mix(salt ^ word(peer.as_public_key()));
                let head = duty && download.heads.contains(peer);
                (order, member.contact, self.is_near(&member.zone), head)
            })
            .collect();
        known.sort_unstable_by_key(|&(order, ..)| order);
        let there = |peer: &PeerId| self.peers.contains_key(peer) || self.is_being_dialled(*peer);
        // Heads of other rooms are neighbours beside these: all want them, and they refuse most.
        let counts = |near: bool, head: bool| near || !head;
        let count = |of_room: bool| {
            let of_it = known.iter().filter(|&&(_, contact, near, head)| {
                near == of_room && counts(near, head) && there(&contact.peer)
            });
            of_it.count()
        };
        let mut room_near = NEIGHBOURS.saturating_sub(count(true));
        let far_wanted = if duty { FAR_NEIGHBOURS } else { 0 };
        let mut room_far = far_wanted.saturating_sub(count(false));
        for (_, contact, near, head) in known {
            if self.peers.contains_key(&contact.peer) {
                if near || duty {
                    self.join(recipe, contact.peer);
                }
                continue;
            }
            let room = if near { &mut room_near } else { &mut room_far };
            if head || *room > 0 {
                if counts(near, head) {
                    *room = room.saturating_sub(1);
                }
                self.dial(contact);
            }
        }
        self.wake_by(self.now + STEP_MAX);
    }
}
