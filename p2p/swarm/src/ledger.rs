//! What a node gave to whom of late: one copy of a chunk is enough for a swarm.
//!
//! Members decide by what they know of each other, which is little while their mesh forms and late
//! where hosts are slow. The node knows better what it sent. Whoever asks for what another member
//! was given is told by whom it comes, and may insist when it does not come.
//!
//! Invariants: a member gets again what it was given itself; a member that is gone was given
//! nothing; whoever insists gets the chunk unless somebody else got it a moment ago, and the more
//! have got it the longer that moment is; never more than [`ENTRIES_MAX`] entries, and what is not entered is given to all who ask.
//! Non-goal: who may have a recipe at all; see the tickets.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_content::{PeerId, RecipeId};

/// How long it is remembered.
const MEMORY: Duration = Duration::from_secs(60);
/// Of those who insist at the same time, one is enough; each time it is waited for four times as
/// long whether it passes the chunk on.
const HOLD: Duration = Duration::from_millis(100);
const HOLD_GROWTH: u32 = 4;
const HOLDS_MAX: u32 = 5;
const ENTRIES_MAX: usize = 128 * 1024;

#[derive(Debug, Clone, Copy)]
struct Entry {
    to: PeerId,
    at: Duration,
    /// How many got it before, by insisting.
    times: u32,
}

impl Entry {
    fn hold(&self) -> Duration {
        HOLD * HOLD_GROWTH.pow(self.times.min(HOLDS_MAX))
    }
}

#[derive(Debug, Default)]
pub struct Ledger {
    swarms: BTreeMap<RecipeId, BTreeMap<u32, Entry>>,
    /// How many entries a member has.
    given: BTreeMap<PeerId, usize>,
    entries: usize,
    swept_at: Duration,
}

impl Ledger {
    /// Enters that `to` gets the chunk now, or says who was given it before.
    ///
    /// # Errors
    /// With that member.
    pub fn give(
        &mut self,
        now: Duration,
        recipe: RecipeId,
        index: u32,
        to: PeerId,
        insists: bool,
    ) -> Result<(), PeerId> {
        if now >= self.swept_at + MEMORY / 4 {
            self.swept_at = now;
            self.retain(|_, entry| now < entry.at + MEMORY);
        }
        let before = self.swarms.get(&recipe).and_then(|given| given.get(&index)).copied();
        if let Some(entry) = before.filter(|entry| entry.to != to && now < entry.at + MEMORY)
            && (!insists || now < entry.at + entry.hold())
        {
            return Err(entry.to);
        }
        let times = before.map_or(0, |entry| entry.times + u32::from(entry.to != to));
        self.remove(recipe, index);
        if self.entries < ENTRIES_MAX {
            let entry = Entry { to, at: now, times };
            self.swarms.entry(recipe).or_default().insert(index, entry);
            *self.given.entry(to).or_default() += 1;
            self.entries += 1;
        }
        Ok(())
    }

    /// `to` did not get the chunk after all.
    pub fn take_back(&mut self, recipe: RecipeId, index: u32, to: PeerId) {
        let entry = self.swarms.get(&recipe).and_then(|given| given.get(&index));
        if entry.is_some_and(|entry| entry.to == to) {
            self.remove(recipe, index);
        }
    }

    /// The member is gone, and what it got with it.
    pub fn forget(&mut self, peer: PeerId) {
        if self.given.contains_key(&peer) {
            self.retain(|_, entry| entry.to != peer);
        }
    }

    fn remove(&mut self, recipe: RecipeId, index: u32) {
        let Some(given) = self.swarms.get_mut(&recipe) else { return };
        let Some(entry) = given.remove(&index) else { return };
        if given.is_empty() {
            self.swarms.remove(&recipe);
        }
        self.entries -= 1;
        if let Some(count) = self.given.get_mut(&entry.to) {
            *count -= 1;
            if *count == 0 {
                self.given.remove(&entry.to);
            }
        }
    }

    fn retain(&mut self, keep: impl Fn(u32, &Entry) -> bool) {
        for given in self.swarms.values_mut() {
            given.retain(|&index, entry| keep(index, entry));
        }
        self.swarms.retain(|_, given| !given.is_empty());
        self.given.clear();
        self.entries = 0;
        for entry in self.swarms.values().flat_map(BTreeMap::values) {
            *self.given.entry(entry.to).or_default() += 1;
            self.entries += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> PeerId {
        PeerId::from_public_key([n; 32])
    }

    const NOW: Duration = Duration::from_secs(9);

    #[test]
    fn the_second_who_asks_hears_of_the_first_unless_it_insists() {
        let (mut ledger, recipe) = (Ledger::default(), RecipeId::of(b"r"));
        assert_eq!(ledger.give(NOW, recipe, 3, peer(1), false), Ok(()));
        assert_eq!(ledger.give(NOW, recipe, 3, peer(1), false), Ok(()), "it asks again");
        assert_eq!(ledger.give(NOW, recipe, 3, peer(2), false), Err(peer(1)));
        assert_eq!(ledger.give(NOW, RecipeId::of(b"s"), 3, peer(2), false), Ok(()));
        let later = NOW + HOLD;
        assert_eq!(ledger.give(later, recipe, 3, peer(2), false), Err(peer(1)));
        assert_eq!(ledger.give(later, recipe, 3, peer(2), true), Ok(()));
        let after = later + HOLD;
        assert_eq!(ledger.give(after, recipe, 3, peer(3), true), Err(peer(2)), "one is enough");
        let after = later + HOLD * HOLD_GROWTH;
        assert_eq!(ledger.give(after, recipe, 3, peer(3), true), Ok(()));
        assert_eq!(ledger.give(after + MEMORY, recipe, 3, peer(2), false), Ok(()));
    }

    #[test]
    fn what_was_not_sent_or_went_with_its_receiver_is_given_anew() {
        let (mut ledger, recipe) = (Ledger::default(), RecipeId::of(b"r"));
        for index in 0..4 {
            assert_eq!(ledger.give(NOW, recipe, index, peer(1), false), Ok(()));
        }
        ledger.take_back(recipe, 0, peer(2));
        assert_eq!(ledger.give(NOW, recipe, 0, peer(2), false), Err(peer(1)));
        ledger.take_back(recipe, 0, peer(1));
        assert_eq!(ledger.give(NOW, recipe, 0, peer(2), false), Ok(()));
        ledger.forget(peer(1));
        assert_eq!(ledger.give(NOW, recipe, 3, peer(2), false), Ok(()));
        ledger.forget(peer(2));
        assert_eq!((ledger.entries, ledger.given.len(), ledger.swarms.len()), (0, 0, 0));
    }

    #[test]
    fn entries_end_at_their_limit_and_with_time() {
        let (mut ledger, recipe) = (Ledger::default(), RecipeId::of(b"r"));
        for index in 0..ENTRIES_MAX as u32 + 9 {
            assert_eq!(ledger.give(NOW, recipe, index, peer(1), false), Ok(()));
        }
        assert_eq!(ledger.entries, ENTRIES_MAX);
        assert_eq!(ledger.give(NOW, recipe, ENTRIES_MAX as u32, peer(2), false), Ok(()));
        assert_eq!(ledger.give(NOW + MEMORY, recipe, 0, peer(2), false), Ok(()));
        assert_eq!(ledger.entries, 1);
    }
}
