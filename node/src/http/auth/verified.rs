//! Signatures that were found good, so that a client's next request costs no elliptic curve.
//!
//! Invariants: only what a signature binds is kept, and only where the signature was good; whom the
//! token is for, whether it holds now and what its account may do is asked for at each request. A
//! token is found by a hash of all its bytes and of who signed it.

use std::sync::Arc;

use moka::sync::Cache;
use shoal_content::PeerId;

use super::token::Claims;

/// Tokens that are kept, counted by their bytes.
const KEPT_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// What an entry costs besides its token, in bytes.
const ENTRY_BYTES: usize = 256;

/// See the module's documentation. Cloning is cheap; clones share what is kept.
#[derive(Debug, Clone)]
pub struct Verified {
    claims: Cache<[u8; 32], Kept>,
}

#[derive(Debug, Clone)]
struct Kept {
    claims: Arc<Claims>,
    bytes: u32,
}

impl Default for Verified {
    fn default() -> Self {
        let claims = Cache::builder()
            .weigher(|_, kept: &Kept| kept.bytes)
            .max_capacity(KEPT_BYTES_MAX)
            .build();
        Self { claims }
    }
}

impl Verified {
    /// The claims of `token`, where it is known that `signer` signed it.
    pub(super) fn known(&self, token: &str, signer: PeerId) -> Option<Arc<Claims>> {
        self.claims.get(&key(token, signer)).map(|kept| kept.claims)
    }

    /// The claims of `token`, if `signer` signed it; `check` finds out where that is not known.
    pub(super) fn claims<E>(
        &self,
        token: &str,
        signer: PeerId,
        check: impl FnOnce() -> Result<Claims, E>,
    ) -> Result<Arc<Claims>, E> {
        let key = key(token, signer);
        if let Some(kept) = self.claims.get(&key) {
            return Ok(kept.claims);
        }
        let claims = Arc::new(check()?);
        let bytes = u32::try_from(token.len() + ENTRY_BYTES).unwrap_or(u32::MAX);
        self.claims.insert(key, Kept { claims: Arc::clone(&claims), bytes });
        Ok(claims)
    }
}

fn key(token: &str, signer: PeerId) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(signer.as_public_key()).update(token.as_bytes());
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(exp: u64) -> Claims {
        serde_json::from_value(serde_json::json!({
            "iss": "cluster", "sub": "ann", "aud": "cluster", "iat": 1, "exp": exp,
        }))
        .unwrap()
    }

    #[test]
    fn a_signature_is_looked_at_once_for_a_token_and_its_signer() {
        let verified = Verified::default();
        let [one, other] = [1, 2].map(|byte| PeerId::from_public_key([byte; 32]));
        let none = || -> Result<Claims, &str> { Err("not signed") };
        assert!(verified.claims("token", one, none).is_err());
        assert!(verified.claims("token", one, none).is_err(), "a bad signature is not kept");
        let good = || Ok::<_, &str>(claims(7));
        assert_eq!(verified.claims("token", one, good).unwrap().exp, 7);
        assert_eq!(verified.claims("token", one, none).unwrap().exp, 7);
        assert!(verified.claims("token", other, none).is_err());
        assert!(verified.claims("tokem", one, none).is_err());
    }
}
