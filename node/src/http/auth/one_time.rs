//! Codes by time (RFC 6238, with SHA-1, six digits and thirty seconds, as every authenticator
//! knows them), codes for when the device is lost, and how their secrets are sealed.
//!
//! Invariants: a code is compared in constant time, whatever the others before it were; what seals
//! a secret names the account, so that a row that was moved to another one cannot be opened.
//! Non-goals: that a code is taken once (the metadata), how many may be tried (see `lockout`).

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use shoal_metadata::Secret;
use shoal_p2p::identity::KeyPair;
use zeroize::Zeroizing;

/// As RFC 4226 recommends.
pub const SECRET_BYTES: usize = 20;
const STEP_SECONDS: u64 = 30;
const DIGITS: u32 = 6;
/// Steps before and after that of now, for clocks that differ.
const STEPS_AROUND: u64 = 1;
pub const RECOVERY_CODES: usize = 10;
/// 80 bits: a row that gets into the wrong hands does not tell them.
const RECOVERY_BYTES: usize = 10;
/// Letters between two dashes of a recovery code.
const RECOVERY_GROUP: usize = 4;
const NONCE_BYTES: usize = 12;
const SEAL_VERSION: u8 = 1;

/// The code of one step (RFC 4226, section 5.3).
fn code(secret: &[u8], step: u64) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret);
    let tag = hmac::sign(&key, &step.to_be_bytes());
    let bytes = tag.as_ref();
    let offset = bytes.last().map_or(0, |last| usize::from(last & 0x0f));
    let picked = bytes.get(offset..offset + 4).and_then(|four| four.try_into().ok());
    let number = picked.map_or(0, u32::from_be_bytes) & 0x7fff_ffff;
    format!("{:0width$}", number % 10_u32.pow(DIGITS), width = DIGITS as usize)
}

/// The step whose code `given` is, of those around `seconds`.
pub fn step_of(secret: &[u8], given: &str, seconds: u64) -> Option<u64> {
    let now = seconds / STEP_SECONDS;
    let mut found = None;
    for step in now.saturating_sub(STEPS_AROUND)..=now + STEPS_AROUND {
        let right = code(secret, step);
        if verify_slices_are_equal(right.as_bytes(), given.as_bytes()).is_ok() {
            found = Some(step);
        }
    }
    found
}

/// Base 32 (RFC 4648, section 6) without padding, as authenticators take secrets.
pub fn base32(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut text = String::with_capacity(bytes.len().div_ceil(5) * 8);
    for group in bytes.chunks(5) {
        let mut five = [0; 8];
        five[3..3 + group.len()].copy_from_slice(group);
        let bits = u64::from_be_bytes(five);
        for at in 0..(group.len() * 8).div_ceil(5) {
            text.push(char::from(LETTERS[(bits >> (35 - 5 * at)) as usize & 31]));
        }
    }
    text
}

/// What authenticators read: `otpauth://totp/…`.
pub fn address(issuer: &str, account: &str, secret: &[u8]) -> String {
    let plain = |text: &str| -> String {
        let plain = |c: &char| c.is_ascii_alphanumeric() || "-._~".contains(*c);
        text.chars().filter(plain).collect()
    };
    let (issuer, account) = (plain(issuer), plain(account));
    let secret = base32(secret);
    format!(
        "otpauth://totp/{issuer}:{account}?secret={secret}&issuer={issuer}&algorithm=SHA1&digits={DIGITS}&period={STEP_SECONDS}"
    )
}

pub fn recovery_code() -> Zeroizing<String> {
    let letters = base32(&rand::random::<[u8; RECOVERY_BYTES]>()).to_lowercase();
    let groups: Vec<&str> = (0..letters.len())
        .step_by(RECOVERY_GROUP)
        .map(|at| &letters[at..at + RECOVERY_GROUP])
        .collect();
    Zeroizing::new(groups.join("-"))
}

/// However somebody types it.
pub fn recovery_hash(code: &str) -> [u8; 32] {
    let letters: String = code.chars().filter(char::is_ascii_alphanumeric).collect();
    *blake3::hash(letters.to_lowercase().as_bytes()).as_bytes()
}

/// What seals the secrets of second factors, made of a key that only the nodes have.
fn sealing_key(key: &KeyPair) -> Result<RandomizedNonceKey, Unsealable> {
    let bytes = blake3::derive_key("shoal 2026 second factors", key.to_pkcs8_der());
    RandomizedNonceKey::new(&AES_256_GCM, &bytes).map_err(|_| Unsealable)
}

/// The sealed secret cannot be opened, or no secret be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a second factor's secret cannot be opened: it was sealed by another cluster's key")]
pub struct Unsealable;

/// The version, the nonce, then AES-256-GCM over `secret`.
///
/// # Errors
/// Where there is no randomness.
pub fn seal(key: &KeyPair, account: &str, secret: &[u8]) -> Result<Secret, Unsealable> {
    let mut sealed = secret.to_vec();
    let nonce = sealing_key(key)?
        .seal_in_place_append_tag(Aad::from(account.as_bytes()), &mut sealed)
        .map_err(|_| Unsealable)?;
    Ok(Secret([&[SEAL_VERSION], nonce.as_ref().as_slice(), &sealed].concat()))
}

/// # Errors
/// Where it was sealed for another account, or with another key.
pub fn open(
    key: &KeyPair,
    account: &str,
    sealed: &Secret,
) -> Result<Zeroizing<Vec<u8>>, Unsealable> {
    let (version, rest) = sealed.0.split_first().ok_or(Unsealable)?;
    let (nonce, rest) = rest.split_at_checked(NONCE_BYTES).ok_or(Unsealable)?;
    if *version != SEAL_VERSION {
        return Err(Unsealable);
    }
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Unsealable)?;
    let mut secret = Zeroizing::new(rest.to_vec());
    let length = sealing_key(key)?
        .open_in_place(nonce, Aad::from(account.as_bytes()), &mut secret)
        .map_err(|_| Unsealable)?
        .len();
    secret.truncate(length);
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6238, appendix B: the last six of its eight digits.
    #[test]
    fn codes_are_those_of_the_specification() {
        let secret = b"12345678901234567890";
        for (seconds, wanted) in [
            (59, "287082"),
            (1_111_111_109, "081804"),
            (1_111_111_111, "050471"),
            (1_234_567_890, "005924"),
            (2_000_000_000, "279037"),
            (20_000_000_000, "353130"),
        ] {
            assert_eq!(code(secret, seconds / 30), wanted, "{seconds}");
            assert_eq!(step_of(secret, wanted, seconds), Some(seconds / 30));
            assert_eq!(step_of(secret, wanted, seconds + 30), Some(seconds / 30));
            assert_eq!(step_of(secret, wanted, seconds + 90), None);
        }
        assert_eq!(step_of(secret, "", 59), None);
        assert_eq!(step_of(secret, "2870820", 59), None);
    }

    /// RFC 4648, section 10.
    #[test]
    fn base_32_is_that_of_the_specification() {
        for (bytes, wanted) in [
            ("", ""),
            ("f", "MY"),
            ("fo", "MZXQ"),
            ("foo", "MZXW6"),
            ("foob", "MZXW6YQ"),
            ("foobar", "MZXW6YTBOI"),
        ] {
            assert_eq!(base32(bytes.as_bytes()), wanted);
        }
        let address = address("shoal", "al ice", b"12345678901234567890");
        assert!(
            address
                .starts_with("otpauth://totp/shoal:alice?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&")
        );
    }

    #[test]
    fn what_was_sealed_opens_for_its_account_alone() {
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let sealed = seal(&key, "alice", b"a secret").unwrap();
        assert_eq!(open(&key, "alice", &sealed).unwrap().as_slice(), b"a secret");
        assert!(!sealed.0.windows(8).any(|bytes| bytes == b"a secret"));
        assert_eq!(open(&key, "bob", &sealed), Err(Unsealable));
        assert_eq!(open(&other, "alice", &sealed), Err(Unsealable));
        for at in 0..sealed.0.len() {
            let mut changed = sealed.clone();
            changed.0[at] ^= 1;
            assert_eq!(open(&key, "alice", &changed), Err(Unsealable), "{at}");
            assert_eq!(open(&key, "alice", &Secret(sealed.0[..at].to_vec())), Err(Unsealable));
        }
    }

    #[test]
    fn recovery_codes_are_read_however_they_are_typed() {
        let code = recovery_code();
        assert_eq!(code.len(), 19);
        let hash = recovery_hash(&code);
        assert_eq!(recovery_hash(&code.to_uppercase().replace('-', " ")), hash);
        assert_ne!(recovery_hash(&recovery_code()), hash);
    }
}
