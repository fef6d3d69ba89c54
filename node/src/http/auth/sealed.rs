//! What goes along with somebody who is sent away and comes back, perhaps to another node: sealed with
//! a key that only the nodes have.
//!
//! Invariant: what was sealed for one purpose opens for no other.
//! Non-goals: how long it is good, and how often; what is sealed says the one, rows the other.

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::clock::now;
use crate::http::problem::Problem;
use crate::state::App;

const NONCE_BYTES: usize = 12;
/// Of what is sealed, as text, in bytes.
const TEXT_BYTES_MAX: usize = 4096;

fn sealing_key(app: &App, purpose: &str) -> Result<RandomizedNonceKey, Problem> {
    let key = blake3::derive_key(purpose, app.keys.sealing.to_pkcs8_der());
    RandomizedNonceKey::new(&AES_256_GCM, &key).map_err(|error| Problem::internal(&error))
}

/// The nonce, then AES-256-GCM over JSON, as text.
///
/// # Errors
/// Where there is no randomness.
pub fn seal<T: Serialize>(app: &App, purpose: &str, value: &T) -> Result<String, Problem> {
    let mut sealed = serde_json::to_vec(value).map_err(|error| Problem::internal(&error))?;
    let nonce = sealing_key(app, purpose)?
        .seal_in_place_append_tag(Aad::empty(), &mut sealed)
        .map_err(|error| Problem::internal(&error))?;
    Ok(URL_SAFE_NO_PAD.encode([nonce.as_ref().as_slice(), &sealed].concat()))
}

/// Nothing where it is not what was sealed for that purpose.
pub fn open<T: DeserializeOwned>(app: &App, purpose: &str, text: &str) -> Option<T> {
    if text.len() > TEXT_BYTES_MAX {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (nonce, sealed) = bytes.split_at_checked(NONCE_BYTES)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let mut sealed = sealed.to_vec();
    let key = sealing_key(app, purpose).ok()?;
    let opened = key.open_in_place(nonce, Aad::empty(), &mut sealed).ok()?;
    serde_json::from_slice(opened).ok()
}

/// Of now.
pub fn seconds() -> u64 {
    now().as_millis() / 1000
}
