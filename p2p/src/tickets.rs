//! Which signatures on tickets are believed here.
//!
//! Invariants: a ticket counts where one of the keys that are known now made it, and its own words
//! say that it holds; however far a host's clock is behind, none counts there for longer than it was
//! made for and [`CLOCK_SKEW_MAX`] besides. Non-goal: where the keys come from; a node reads them in the metadata, an
//! agent is told by a node.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use shoal_content::{PeerId, RecipeId, Ticket, Timestamp};

use crate::identity::verify_ed25519;

/// The longest that a ticket is made for.
pub const TICKET_LIFE_MAX: Duration = Duration::from_secs(6 * 3600);
/// Clocks of hosts and nodes may differ by so much. A host that is further behind takes no new ticket,
/// since it would go on taking it after its end.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(20 * 60);
/// Keys that are looked at for one ticket; a cluster has one or two.
const KEYS_MAX: usize = 16;

/// One of the cluster's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TicketKey {
    /// Raw Ed25519.
    pub public: [u8; 32],
    /// When the last that it signed has run out; `None` where it may still sign.
    pub until: Option<Timestamp>,
}

/// The cluster's keys as they are known here. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct TicketKeys {
    keys: Arc<RwLock<Vec<TicketKey>>>,
}

impl TicketKeys {
    /// Of more keys than [`KEYS_MAX`] the last count.
    pub fn new(mut keys: Vec<TicketKey>) -> Self {
        keys.drain(..keys.len().saturating_sub(KEYS_MAX));
        Self { keys: Arc::new(RwLock::new(keys)) }
    }

    /// Whether `ticket` gives `peer` a right to `recipe` at `now`.
    pub fn entitles(
        &self,
        ticket: &Ticket,
        recipe: RecipeId,
        peer: PeerId,
        now: Timestamp,
    ) -> bool {
        let longest = TICKET_LIFE_MAX.as_millis() + CLOCK_SKEW_MAX.as_millis();
        if ticket.expires() > now.plus_millis(longest as u64) {
            return false;
        }
        let keys = self.keys.read();
        let verify = |message: &[u8], signature: &[u8]| {
            let Ok(signature) = <&[u8; 64]>::try_from(signature) else { return false };
            let good = keys.iter().filter(|key| key.until.is_none_or(|until| until > now));
            good.rev().any(|key| verify_ed25519(&key.public, message, signature))
        };
        ticket.check(recipe, peer, now, verify).is_ok()
    }

    /// These count from now on, and no others; says whether one is gone that was believed until
    /// now.
    pub(crate) fn replace(&self, keys: Vec<TicketKey>, now: Timestamp) -> bool {
        let Self { keys: new } = Self::new(keys);
        let new = std::mem::take(&mut *new.write());
        let mut held = self.keys.write();
        let stays = |old: &TicketKey| new.iter().any(|key| key.public == old.public);
        let distrusted =
            held.iter().any(|old| old.until.is_none_or(|until| until > now) && !stays(old));
        *held = new;
        distrusted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::KeyPair;

    const RECIPE: RecipeId = RecipeId::from_bytes([1; 32]);

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn key(pair: &KeyPair, until: Option<u64>) -> TicketKey {
        TicketKey { public: *pair.peer_id().as_public_key(), until: until.map(at) }
    }

    #[test]
    fn a_ticket_counts_while_its_key_is_believed() {
        let [old, new, holder] = [(); 3].map(|()| KeyPair::generate().unwrap());
        let by = |pair: &KeyPair| {
            Ticket::issue(RECIPE, holder.peer_id(), at(1_000), |message| pair.sign(message))
        };
        let keys = TicketKeys::new(vec![key(&old, None)]);
        let counts = |pair: &KeyPair, now| {
            keys.clone().entitles(&by(pair), RECIPE, holder.peer_id(), at(now))
        };
        assert!(counts(&old, 1));
        assert!(!counts(&new, 1));
        assert!(!keys.replace(vec![key(&old, Some(500)), key(&new, None)], at(1)));
        assert!(counts(&old, 499) && counts(&new, 499));
        assert!(!counts(&old, 500) && counts(&new, 500));
        assert!(!counts(&new, 1_000), "it has expired");
        assert!(!keys.entitles(&by(&new), RECIPE, old.peer_id(), at(1)), "it is another's");
        // Its time was over, so nobody loses anything.
        assert!(!keys.replace(vec![key(&new, None)], at(500)));
        assert!(keys.replace(vec![key(&old, None)], at(500)));
        assert!(!counts(&new, 500));
    }

    #[test]
    fn a_clock_that_is_behind_gives_a_ticket_little_more_time() {
        const MINUTE: u64 = 60_000;
        let [pair, holder] = [(); 2].map(|()| KeyPair::generate().unwrap());
        let keys = TicketKeys::new(vec![key(&pair, None)]);
        // As a node makes it, whose clock is right.
        let (made, ends) = (1_000 * MINUTE, 1_360 * MINUTE);
        assert_eq!(u128::from(ends - made), TICKET_LIFE_MAX.as_millis());
        let ticket =
            Ticket::issue(RECIPE, holder.peer_id(), at(ends), |message| pair.sign(message));
        let counts = |now| keys.entitles(&ticket, RECIPE, holder.peer_id(), at(now));
        for (now, good) in [
            (made, true),
            (made - 20 * MINUTE, true),
            (made - 20 * MINUTE - 1, false),
            (0, false),
            (ends - 1, true),
            (ends, false),
        ] {
            assert_eq!(counts(now), good, "{now}");
        }
        // Nor is one for ever that was made so.
        let ticket =
            Ticket::issue(RECIPE, holder.peer_id(), at(u64::MAX), |message| pair.sign(message));
        assert!(!keys.entitles(&ticket, RECIPE, holder.peer_id(), at(made)));
    }

    #[test]
    fn the_last_of_too_many_keys_count() {
        let pairs: Vec<_> = (0..=KEYS_MAX).map(|_| KeyPair::generate().unwrap()).collect();
        let keys = TicketKeys::new(pairs.iter().map(|pair| key(pair, None)).collect());
        let holder = pairs[0].peer_id();
        let counts = |pair: &KeyPair| {
            let ticket = Ticket::issue(RECIPE, holder, at(9), |message| pair.sign(message));
            keys.entitles(&ticket, RECIPE, holder, at(1))
        };
        assert!(!counts(&pairs[0]) && counts(&pairs[1]) && counts(&pairs[KEYS_MAX]));
    }
}
