//! What people and programs say they are: headers, and tokens for a key that is always the same.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use shoal_p2p::identity::{KeyPair, verify_ed25519};

use crate::http::auth::fuzzed::{Given, holds};

/// Whom the tokens here are for.
pub const AUDIENCE: &str = "11111111-1111-4111-8111-111111111111/v2";
/// The second in which they are looked at.
pub const NOW: u64 = 1_800_000_000;

/// The key that signs them: of a constant seed (RFC 8410, 7), so that the same inputs are made.
///
/// # Panics
/// Never: the seed is a good one.
pub fn key() -> KeyPair {
    const PREFIX: &str = "302e020100300506032b657004220420";
    let der = [hex::decode(PREFIX).unwrap_or_default(), vec![7; 32]].concat();
    KeyPair::from_pkcs8_der(&der).expect("a key of a constant seed")
}

/// Names have no colon, tokens no space around them, and no token is good that was not signed.
pub fn authorization(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match Given::parse(&text) {
        Some(Given::Basic { name, password }) => {
            assert!(!name.contains(':') && name.len() + password.len() < text.len());
        }
        Some(Given::Bearer(token)) => {
            assert_eq!(token, token.trim());
            token_holds(token);
        }
        None => token_holds(&text),
    }
}

fn token_holds(token: &str) {
    let key = key();
    if holds(token, key.peer_id(), AUDIENCE, NOW) {
        let signed = token.rsplit_once('.').and_then(|(message, signature)| {
            let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
            let public = key.peer_id();
            Some(verify_ed25519(public.as_public_key(), message.as_bytes(), &signature))
        });
        assert_eq!(signed, Some(true), "{token} was signed by nobody");
    }
}
