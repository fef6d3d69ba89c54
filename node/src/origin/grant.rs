//! Issues tickets: the right of one enrolled peer to one recipe, for a while.
//!
//! Invariant: the key comes from the replicated metadata, so that every node's tickets are good at
//! every peer. Non-goal: deciding who gets one; the handler has checked that the peer may.

use std::time::Duration;

use shoal_content::{PeerId, RecipeId, Ticket, Timestamp};
use shoal_p2p::TICKET_LIFE_MAX;
use shoal_p2p::identity::KeyPair;

/// How long a ticket holds. Longer than any transfer should take; a longer one asks again.
pub const TICKET_TTL: Duration = TICKET_LIFE_MAX;

/// The right of `holder` to `recipe` from now on, signed by the cluster's ticket key.
pub fn issue_ticket(key: &KeyPair, recipe: RecipeId, holder: PeerId, now: Timestamp) -> Ticket {
    let expires = now.plus_millis(TICKET_TTL.as_millis() as u64);
    Ticket::issue(recipe, holder, expires, |message| key.sign(message))
}
