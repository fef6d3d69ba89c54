//! Who is in which swarm, as a node remembers it: soft state that expires.
//!
//! Names some members to whoever joins, near ones first, and chooses the heads: a few for each
//! room, caches first, then whoever came first, so that newcomers change nothing; and of those a
//! few for the whole, one of each room in turn.
//!
//! Invariants: never more than [`MEMBERS_MAX`] members a swarm and [`SWARMS_MAX`] swarms; an
//! answer takes no time that grows with the swarm.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use shoal_content::{PeerId, RecipeId, Zone};

use crate::frames::Member;
use crate::rendezvous::mix;

const MEMBERS_MAX: usize = 16 * 1024;
const SWARMS_MAX: usize = 64 * 1024;
/// A member that does not announce again for so long is forgotten.
const MEMBER_EXPIRY: Duration = Duration::from_secs(300);
/// Other swarms that are looked at with each announcement.
const SWEPT_AT_ONCE: usize = 2;
/// Members that one answer names: of the asker's room, and of all.
const ANSWER_NEAR: usize = 16;
const ANSWER_ANY: usize = 8;
/// Heads of one room, and of the whole.
const ROOM_HEADS: usize = 8;
/// Those of one that is alone and not small. What a node sends comes to a head beside what many
/// neighbours send: fewer than ten do not fill the node's line.
const ONLY_ROOM_HEADS: usize = 12;
/// With no more members eight do as well, and one that dies takes more along if most are heads.
const SMALL_ROOM: usize = 48;
const WHOLE_HEADS: usize = 16;

#[derive(Debug)]
struct Entry {
    member: Member,
    room: Zone,
    /// Its place in its room's list.
    place: usize,
    expires: Duration,
}

#[derive(Debug, Default)]
struct Room {
    members: Vec<PeerId>,
    heads: Vec<PeerId>,
}

#[derive(Debug, Default)]
struct Tracked {
    entries: BTreeMap<PeerId, Entry>,
    rooms: BTreeMap<Zone, Room>,
    whole: Vec<PeerId>,
    /// Heads changed and were not told.
    changed: bool,
    swept_at: Duration,
}

#[derive(Debug, Default)]
pub(crate) struct Tracker {
    swarms: BTreeMap<RecipeId, Tracked>,
    changed: bool,
    /// The swarm that was looked at last, of those that nobody may announce any more.
    swept: Option<RecipeId>,
}

impl Tracker {
    /// Whether the member is new.
    pub(crate) fn announce(&mut self, now: Duration, recipe: RecipeId, member: Member) -> bool {
        self.sweep_some(now);
        if !self.swarms.contains_key(&recipe) && self.swarms.len() >= SWARMS_MAX {
            return false;
        }
        let tracked = self.swarms.entry(recipe).or_default();
        tracked.sweep(now);
        self.changed |= tracked.changed;
        let expires = now + MEMBER_EXPIRY;
        let peer = member.contact.peer;
        if let Some(entry) = tracked.entries.get_mut(&peer)
            && entry.member == member
        {
            entry.expires = expires;
            return false;
        }
        tracked.remove(peer);
        if tracked.entries.len() >= MEMBERS_MAX {
            return false;
        }
        tracked.insert(member, expires);
        self.changed |= tracked.changed;
        true
    }

    /// Looks at some swarms in turn: of one that nobody announces nothing else would free the entry.
    fn sweep_some(&mut self, now: Duration) {
        for _ in 0..SWEPT_AT_ONCE {
            let after = self.swept.map_or(Bound::Unbounded, Bound::Excluded);
            let next = self.swarms.range_mut((after, Bound::Unbounded)).next();
            let Some((&recipe, tracked)) = next else {
                self.swept = None;
                return;
            };
            self.swept = Some(recipe);
            tracked.sweep(now);
            self.changed |= tracked.changed;
            if tracked.entries.is_empty() {
                self.swarms.remove(&recipe);
            }
        }
    }

    pub(crate) fn leave(&mut self, recipe: RecipeId, peer: PeerId) {
        if let Some(tracked) = self.swarms.get_mut(&recipe) {
            tracked.remove(peer);
            self.changed |= tracked.changed;
            if tracked.entries.is_empty() {
                self.swarms.remove(&recipe);
            }
        }
    }

    pub(crate) fn forget(&mut self, peer: PeerId) {
        let changed = &mut self.changed;
        self.swarms.retain(|_, tracked| {
            if tracked.entries.contains_key(&peer) {
                tracked.remove(peer);
                *changed |= tracked.changed;
            }
            !tracked.entries.is_empty()
        });
    }

    /// Some members but `asker`, drawn by `salt`: of its room, and where those are few, of all.
    pub(crate) fn some(&self, recipe: RecipeId, asker: PeerId, salt: u64) -> Vec<Member> {
        let Some(tracked) = self.swarms.get(&recipe) else { return Vec::new() };
        let Some(room) = tracked.entries.get(&asker).and_then(|e| tracked.rooms.get(&e.room))
        else {
            return Vec::new();
        };
        let mut named: Vec<PeerId> = Vec::new();
        draw(&room.members, ANSWER_NEAR, salt, &mut named);
        if room.members.len() <= ANSWER_ANY || room.heads.contains(&asker) {
            let rooms: Vec<&Room> = tracked.rooms.values().collect();
            for turn in 0..ANSWER_ANY as u64 {
                let chosen = mix(salt ^ mix(turn)) as usize % rooms.len();
                draw(&rooms[chosen].heads, 1, mix(salt ^ turn), &mut named);
            }
        }
        named.retain(|&peer| peer != asker);
        let member = |peer: &PeerId| Some(tracked.entries.get(peer)?.member.clone());
        named.iter().filter_map(member).collect()
    }

    /// The heads of the whole and of `peer`'s room, where it is one of them.
    pub(crate) fn heads(
        &self,
        recipe: RecipeId,
        peer: PeerId,
    ) -> Option<(Vec<Member>, Vec<Member>)> {
        let tracked = self.swarms.get(&recipe)?;
        let room = &tracked.rooms.get(&tracked.entries.get(&peer)?.room)?.heads;
        if !room.contains(&peer) {
            return None;
        }
        let members = |list: &[PeerId]| {
            list.iter().filter_map(|at| Some(tracked.entries.get(at)?.member.clone())).collect()
        };
        Some((members(&tracked.whole), members(room)))
    }

    /// How many swarms are tracked, and how many members they have.
    pub(crate) fn entries(&self) -> (usize, usize) {
        let members = self.swarms.values().map(|tracked| tracked.entries.len()).sum();
        (self.swarms.len(), members)
    }

    /// Whether heads changed that were not told.
    pub(crate) fn has_changes(&self) -> bool {
        self.changed
    }

    /// The swarms whose heads changed since the last time, with all their heads.
    pub(crate) fn changes(&mut self) -> Vec<(RecipeId, Vec<PeerId>)> {
        if !std::mem::take(&mut self.changed) {
            return Vec::new();
        }
        let changed = |(&recipe, tracked): (&RecipeId, &mut Tracked)| {
            let rooms = tracked.rooms.values();
            let heads = || rooms.flat_map(|room| room.heads.iter().copied()).collect();
            std::mem::take(&mut tracked.changed).then(|| (recipe, heads()))
        };
        self.swarms.iter_mut().filter_map(changed).collect()
    }
}

impl Tracked {
    fn insert(&mut self, member: Member, expires: Duration) {
        let (peer, name) = (member.contact.peer, member.zone.room());
        let room = self.rooms.entry(name.clone()).or_default();
        let place = room.members.len();
        room.members.push(peer);
        let cache = member.cache;
        self.entries.insert(peer, Entry { member, room: name.clone(), place, expires });
        let (heads, members) = (room.heads.len(), room.members.len());
        if cache || heads < self.room_heads(members) {
            self.choose_heads(&name);
        }
    }

    fn remove(&mut self, peer: PeerId) {
        let Some(entry) = self.entries.remove(&peer) else { return };
        let Some(room) = self.rooms.get_mut(&entry.room) else { return };
        room.members.swap_remove(entry.place);
        if let Some(moved) = room.members.get(entry.place).and_then(|at| self.entries.get_mut(at)) {
            moved.place = entry.place;
        }
        let was_head = room.heads.contains(&peer);
        room.heads.retain(|&head| head != peer);
        if room.members.is_empty() {
            self.rooms.remove(&entry.room);
        }
        self.whole.retain(|&head| head != peer);
        if was_head {
            self.changed = true;
            self.choose_heads(&entry.room);
        }
    }

    /// How many heads a room of so many members has.
    fn room_heads(&self, members: usize) -> usize {
        let alone = self.rooms.len() == 1 && members > SMALL_ROOM;
        if alone { ONLY_ROOM_HEADS } else { ROOM_HEADS }
    }

    /// Fills the room's heads and the whole's; whoever is one stays one, but for a cache.
    fn choose_heads(&mut self, name: &Zone) {
        let members = self.rooms.get(name).map_or(0, |room| room.members.len());
        let most = self.room_heads(members);
        if let Some(room) = self.rooms.get_mut(name) {
            let is_cache =
                |peer: &PeerId| self.entries.get(peer).is_some_and(|entry| entry.member.cache);
            let caches = room.members.iter().copied().filter(is_cache);
            let mut wanted: Vec<PeerId> = caches.take(most).collect();
            // Those who are heads, then the first of the list: the longest here.
            for &peer in room.heads.iter().chain(room.members.iter().take(most * 2)) {
                if wanted.len() < most && !wanted.contains(&peer) {
                    wanted.push(peer);
                }
            }
            self.changed |= wanted != room.heads;
            room.heads = wanted;
        }
        let rooms = &self.rooms;
        self.whole.retain(|peer| rooms.values().any(|room| room.heads.contains(peer)));
        for rank in 0..ONLY_ROOM_HEADS {
            for room in self.rooms.values() {
                if let Some(&peer) = room.heads.get(rank)
                    && self.whole.len() < WHOLE_HEADS
                    && !self.whole.contains(&peer)
                {
                    self.whole.push(peer);
                    self.changed = true;
                }
            }
        }
    }

    fn sweep(&mut self, now: Duration) {
        if now < self.swept_at + MEMBER_EXPIRY / 8 {
            return;
        }
        self.swept_at = now;
        let gone = self.entries.iter().filter(|(_, entry)| entry.expires <= now);
        let gone: Vec<PeerId> = gone.map(|(&peer, _)| peer).collect();
        gone.into_iter().for_each(|peer| self.remove(peer));
    }
}

/// Up to `count` of `from` that are not in `named` yet, from a random place on by random steps.
fn draw(from: &[PeerId], count: usize, salt: u64, named: &mut Vec<PeerId>) {
    let mut left = count;
    if from.len() <= count {
        named.extend(from.iter().filter(|peer| !named.contains(peer)).copied().collect::<Vec<_>>());
        return;
    }
    for turn in 0..count as u64 * 2 {
        let peer = from[mix(salt ^ mix(turn ^ 0x5eed)) as usize % from.len()];
        if left > 0 && !named.contains(&peer) {
            named.push(peer);
            left -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::Contact;

    fn peer(n: u8) -> PeerId {
        PeerId::from_public_key([n; 32])
    }

    fn member(n: u8, zone: &str, cache: bool) -> Member {
        let contact = Contact { peer: peer(n), address: ([127, 0, 0, n], 1).into() };
        Member { contact, zone: zone.parse().unwrap(), cache }
    }

    #[test]
    fn a_member_expires_unless_it_announces_again() {
        let (mut tracker, recipe) = (Tracker::default(), RecipeId::of(b"r"));
        let named = |tracker: &Tracker, to| {
            let some = tracker.some(recipe, peer(to), 1);
            some.iter().map(|member| member.contact.peer).collect::<Vec<_>>()
        };
        let at = |tenths: u32| MEMBER_EXPIRY * tenths / 10;
        assert!(tracker.announce(at(0), recipe, member(1, "", false)));
        assert!(!tracker.announce(at(7), recipe, member(1, "", false)));
        assert!(tracker.announce(at(14), recipe, member(2, "", false)));
        assert_eq!(named(&tracker, 2), [peer(1)]);
        assert!(tracker.announce(at(20), recipe, member(3, "", false)));
        assert_eq!(named(&tracker, 3), [peer(2)]);
        tracker.forget(peer(2));
        assert_eq!(named(&tracker, 3), []);
    }

    #[test]
    fn a_swarm_that_nobody_announces_any_more_is_forgotten_by_what_others_announce() {
        let mut tracker = Tracker::default();
        for n in 0..200u8 {
            tracker.announce(Duration::ZERO, RecipeId::of(&[n]), member(1, "", false));
        }
        assert_eq!(tracker.entries(), (200, 200));
        for turn in 0..200 {
            let now = MEMBER_EXPIRY + Duration::from_millis(turn);
            tracker.announce(now, RecipeId::of(b"r"), member(2, "", false));
        }
        assert_eq!(tracker.entries(), (1, 1));
    }

    #[test]
    fn heads_stay_while_they_are_there_and_a_cache_comes_first() {
        let (mut tracker, recipe) = (Tracker::default(), RecipeId::of(b"r"));
        for n in 1..=40 {
            let room = if n % 2 == 0 { "a/b/c" } else { "a/d" };
            tracker.announce(Duration::ZERO, recipe, member(n, room, false));
        }
        let heads = |tracker: &Tracker, of| {
            let (whole, room) = tracker.heads(recipe, peer(of)).unwrap();
            let ids = |list: Vec<Member>| {
                list.iter().map(|member| member.contact.peer).collect::<Vec<_>>()
            };
            (ids(whole), ids(room))
        };
        let (whole, room) = heads(&tracker, 2);
        assert_eq!(whole.len(), WHOLE_HEADS);
        assert_eq!(room, [2, 4, 6, 8, 10, 12, 14, 16].map(peer));
        assert!(tracker.heads(recipe, peer(40)).is_none(), "not a head");
        tracker.announce(Duration::ZERO, recipe, member(60, "a/b", true));
        assert_eq!(heads(&tracker, 2).1, [60, 2, 4, 6, 8, 10, 12, 14].map(peer));
        assert_eq!(tracker.changes().len(), 1);
        tracker.forget(peer(4));
        assert!(tracker.has_changes());
        let (whole, room) = heads(&tracker, 2);
        assert_eq!(room.len(), ROOM_HEADS);
        assert!(!room.contains(&peer(4)) && !whole.contains(&peer(4)));
    }

    #[test]
    fn a_room_that_is_alone_has_more_heads_unless_it_is_small() {
        let (mut tracker, recipe) = (Tracker::default(), RecipeId::of(b"r"));
        let heads = |tracker: &Tracker, of| {
            let (whole, room) = tracker.heads(recipe, peer(of)).unwrap();
            (whole.len(), room.len())
        };
        for n in 1..=SMALL_ROOM as u8 {
            tracker.announce(Duration::ZERO, recipe, member(n, "a/b", false));
        }
        assert_eq!(heads(&tracker, 1), (ROOM_HEADS, ROOM_HEADS));
        tracker.announce(Duration::ZERO, recipe, member(100, "a/b", false));
        assert_eq!(heads(&tracker, 1), (ONLY_ROOM_HEADS, ONLY_ROOM_HEADS));
        for n in 101..=200 {
            tracker.announce(Duration::ZERO, recipe, member(n, "a/c", false));
        }
        assert_eq!(heads(&tracker, 101), (WHOLE_HEADS, ROOM_HEADS));
    }

    #[test]
    fn an_answer_names_the_room_and_to_a_head_others_too() {
        let (mut tracker, recipe) = (Tracker::default(), RecipeId::of(b"r"));
        for n in 1..=200 {
            let room = format!("a/{}", n % 4);
            tracker.announce(Duration::ZERO, recipe, member(n, &room, false));
        }
        let far = |asker: u8| {
            let some = tracker.some(recipe, peer(asker), 7);
            assert!(some.len() >= ANSWER_NEAR / 2, "{} members", some.len());
            some.iter().filter(|m| m.contact.peer.as_public_key()[0] % 4 != asker % 4).count()
        };
        assert!(far(1) > 0);
        assert_eq!(far(199), 0);
    }
}
