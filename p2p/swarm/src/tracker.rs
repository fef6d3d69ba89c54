//! Who is in which swarm, as a node remembers it: soft state that expires.
//!
//! Invariant: never more than [`MEMBERS_MAX`] members a swarm and [`SWARMS_MAX`] swarms.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_content::{PeerId, RecipeId};

use crate::frames::Contact;
use crate::rendezvous::mix;

const MEMBERS_MAX: usize = 16 * 1024;
const SWARMS_MAX: usize = 64 * 1024;
/// A member that does not announce again for so long is forgotten.
const MEMBER_EXPIRY: Duration = Duration::from_secs(30);
/// Members that one answer names.
pub(crate) const ANSWER_CONTACTS: usize = 16;

#[derive(Debug, Clone, Copy)]
struct Member {
    contact: Contact,
    expires: Duration,
}

#[derive(Debug, Default)]
pub(crate) struct Tracker {
    swarms: BTreeMap<RecipeId, BTreeMap<PeerId, Member>>,
}

impl Tracker {
    /// Whether the member is new.
    pub(crate) fn announce(&mut self, now: Duration, recipe: RecipeId, contact: Contact) -> bool {
        if !self.swarms.contains_key(&recipe) && self.swarms.len() >= SWARMS_MAX {
            return false;
        }
        let members = self.swarms.entry(recipe).or_default();
        members.retain(|_, member| member.expires > now);
        if members.len() >= MEMBERS_MAX && !members.contains_key(&contact.peer) {
            return false;
        }
        let member = Member { contact, expires: now + MEMBER_EXPIRY };
        members.insert(contact.peer, member).is_none()
    }

    pub(crate) fn leave(&mut self, recipe: RecipeId, peer: PeerId) {
        if let Some(members) = self.swarms.get_mut(&recipe) {
            members.remove(&peer);
            if members.is_empty() {
                self.swarms.remove(&recipe);
            }
        }
    }

    pub(crate) fn forget(&mut self, peer: PeerId) {
        self.swarms.retain(|_, members| {
            members.remove(&peer);
            !members.is_empty()
        });
    }

    /// Some members but `asker`, drawn by `salt`.
    pub(crate) fn some(&self, recipe: RecipeId, asker: PeerId, salt: u64) -> Vec<Contact> {
        let members = self.swarms.get(&recipe).into_iter().flatten();
        let mut drawn: Vec<(u64, Contact)> = members
            .filter(|&(&peer, _)| peer != asker)
            .enumerate()
            .map(|(at, (_, member))| (mix(salt ^ mix(at as u64)), member.contact))
            .collect();
        drawn.sort_unstable_by_key(|&(order, _)| order);
        drawn.into_iter().take(ANSWER_CONTACTS).map(|(_, contact)| contact).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_expires_unless_it_announces_again() {
        let contact = |n| Contact {
            peer: PeerId::from_public_key([n; 32]),
            address: ([127, 0, 0, n], 1).into(),
        };
        let (mut tracker, recipe) = (Tracker::default(), RecipeId::of(b"r"));
        assert!(tracker.announce(Duration::ZERO, recipe, contact(1)));
        assert!(!tracker.announce(Duration::from_secs(20), recipe, contact(1)));
        assert!(tracker.announce(Duration::from_secs(40), recipe, contact(2)));
        assert_eq!(tracker.some(recipe, contact(2).peer, 1), [contact(1)]);
        assert!(tracker.announce(Duration::from_secs(60), recipe, contact(3)));
        assert_eq!(tracker.some(recipe, contact(3).peer, 1), [contact(2)]);
        tracker.forget(contact(2).peer);
        assert_eq!(tracker.some(recipe, contact(3).peer, 1), []);
    }
}
