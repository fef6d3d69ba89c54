//! The right to get one recipe's chunks, which any peer can check without asking anyone.
//!
//! A ticket is signed by the cluster's ticket key (Ed25519), bound to one peer and one recipe, and
//! expires. This module knows its bytes; signing and verifying a signature is for those who hold
//! keys.
//!
//! Layout, version 1, all fixed width and big-endian:
//! ```text
//! domain    16 bytes  "shoal-ticket-v1\0"
//! recipe    32 bytes
//! peer      32 bytes  the holder's Ed25519 public key
//! expires    8 bytes  milliseconds since the Unix epoch
//! signature 64 bytes  Ed25519 over everything before it
//! ```

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::id::PeerId;
use crate::object::RecipeId;
use crate::timestamp::Timestamp;

const DOMAIN: &[u8; 16] = b"shoal-ticket-v1\0";
const SIGNED_BYTES: usize = 16 + 32 + 32 + 8;

/// The length of an encoded ticket; a longer one is refused unread.
pub const TICKET_BYTES_MAX: usize = SIGNED_BYTES + 64;

/// Why a ticket gives no right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TicketError {
    #[error("the bytes are no ticket of a version known here")]
    Malformed,
    #[error("the ticket's signature is not the cluster's")]
    Forged,
    #[error("the ticket belongs to another peer")]
    OtherPeer,
    #[error("the ticket is for another recipe")]
    OtherRecipe,
    #[error("the ticket has expired")]
    Expired,
}

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    recipe: RecipeId,
    peer: PeerId,
    expires: Timestamp,
    signature: Vec<u8>,
}

impl Ticket {
    /// Makes a ticket; `sign` gives the 64-byte Ed25519 signature of what it is handed.
    pub fn issue(
        recipe: RecipeId,
        peer: PeerId,
        expires: Timestamp,
        sign: impl FnOnce(&[u8]) -> [u8; 64],
    ) -> Self {
        let signature = sign(&signed_bytes(recipe, peer, expires)).to_vec();
        Self { recipe, peer, expires, signature }
    }

    /// Checks the right of `peer` to `recipe` at `now`. `verify(message, signature)` says whether
    /// the cluster's ticket key made the signature.
    ///
    /// # Errors
    /// The first check that fails, cheapest first.
    pub fn check(
        &self,
        recipe: RecipeId,
        peer: PeerId,
        now: Timestamp,
        verify: impl FnOnce(&[u8], &[u8]) -> bool,
    ) -> Result<(), TicketError> {
        if self.recipe != recipe {
            return Err(TicketError::OtherRecipe);
        }
        if self.peer != peer {
            return Err(TicketError::OtherPeer);
        }
        if self.expires <= now {
            return Err(TicketError::Expired);
        }
        if !verify(&signed_bytes(self.recipe, self.peer, self.expires), &self.signature) {
            return Err(TicketError::Forged);
        }
        Ok(())
    }

    pub fn recipe(&self) -> RecipeId {
        self.recipe
    }

    pub fn expires(&self) -> Timestamp {
        self.expires
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = signed_bytes(self.recipe, self.peer, self.expires).to_vec();
        bytes.extend_from_slice(&self.signature);
        bytes
    }

    /// # Errors
    /// [`TicketError::Malformed`]; rights are checked by [`Ticket::check`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TicketError> {
        let bytes: &[u8; TICKET_BYTES_MAX] =
            bytes.try_into().map_err(|_| TicketError::Malformed)?;
        let (domain, rest) = bytes.split_at(16);
        let (recipe, rest) = rest.split_at(32);
        let (peer, rest) = rest.split_at(32);
        let (expires, signature) = rest.split_at(8);
        if domain != DOMAIN {
            return Err(TicketError::Malformed);
        }
        let fixed = |slice: &[u8]| <[u8; 32]>::try_from(slice).map_err(|_| TicketError::Malformed);
        let expires = expires.try_into().map_err(|_| TicketError::Malformed)?;
        Ok(Self {
            recipe: RecipeId::from_bytes(fixed(recipe)?),
            peer: PeerId::from_public_key(fixed(peer)?),
            expires: Timestamp::from_millis(u64::from_be_bytes(expires)),
            signature: signature.to_vec(),
        })
    }
}

fn signed_bytes(recipe: RecipeId, peer: PeerId, expires: Timestamp) -> [u8; SIGNED_BYTES] {
    let mut bytes = [0; SIGNED_BYTES];
    bytes[..16].copy_from_slice(DOMAIN);
    bytes[16..48].copy_from_slice(recipe.as_bytes());
    bytes[48..80].copy_from_slice(peer.as_public_key());
    bytes[80..].copy_from_slice(&expires.as_millis().to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_serves_one_peer_one_recipe_and_not_for_ever() {
        let (recipe, peer) = (RecipeId::of(b"r"), PeerId::from_public_key([1; 32]));
        let ticket = Ticket::issue(recipe, peer, Timestamp::from_millis(100), |_| [7; 64]);
        let ticket = Ticket::from_bytes(&ticket.to_bytes()).unwrap();
        let now = Timestamp::from_millis(99);
        let good = |_: &[u8], signature: &[u8]| signature == [7; 64];
        assert_eq!(ticket.check(recipe, peer, now, good), Ok(()));
        assert_eq!(
            ticket.check(RecipeId::of(b"s"), peer, now, good),
            Err(TicketError::OtherRecipe)
        );
        let other = PeerId::from_public_key([2; 32]);
        assert_eq!(ticket.check(recipe, other, now, good), Err(TicketError::OtherPeer));
        assert_eq!(
            ticket.check(recipe, peer, Timestamp::from_millis(100), good),
            Err(TicketError::Expired)
        );
        assert_eq!(ticket.check(recipe, peer, now, |_, _| false), Err(TicketError::Forged));
        assert_eq!(Ticket::from_bytes(&[0; 3]), Err(TicketError::Malformed));
    }
}
