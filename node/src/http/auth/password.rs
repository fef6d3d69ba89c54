//! Passwords: checked against argon2id hashes, and never kept.

use std::sync::Arc;
use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use moka::future::Cache;
use shoal_metadata::Secret;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

/// A password that was right is not hashed again for this long.
const VERIFIED_TTL: Duration = Duration::from_secs(60);
const VERIFIED_MAX: u64 = 10_000;
/// Argon2 takes 19 MiB and tens of milliseconds each: more at once only wait.
const HASHES_AT_ONCE_MAX: usize = 2;

/// Checks passwords, remembering for a while which were right.
#[derive(Debug)]
pub struct Accounts {
    /// Keyed BLAKE3 of name, password and the stored hash: a changed password misses.
    verified: Cache<[u8; 32], ()>,
    key: [u8; 32],
    hashing: Arc<Semaphore>,
    /// What an unknown user's password is compared with.
    nobody: Secret,
}

impl Accounts {
    /// # Errors
    /// Where hashing fails, which only a broken system brings about.
    pub fn new() -> Result<Self, argon2::password_hash::Error> {
        Ok(Self {
            verified: Cache::builder()
                .time_to_live(VERIFIED_TTL)
                .max_capacity(VERIFIED_MAX)
                .build(),
            key: rand::random(),
            hashing: Arc::new(Semaphore::new(HASHES_AT_ONCE_MAX)),
            nobody: hash_password("nobody")?,
        })
    }

    pub(super) async fn check(
        &self,
        name: &str,
        password: Zeroizing<String>,
        stored: Option<Secret>,
    ) -> bool {
        let known = stored.is_some();
        let stored = stored.unwrap_or_else(|| self.nobody.clone());
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        for part in [name.as_bytes(), password.as_bytes(), &stored.0] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        let key = *hasher.finalize().as_bytes();
        if known && self.verified.contains_key(&key) {
            return true;
        }
        let Ok(_permit) = self.hashing.acquire().await else { return false };
        let check = move || {
            let hash = std::str::from_utf8(&stored.0).unwrap_or_default();
            Argon2::default().verify_password(password.as_bytes(), hash).is_ok()
        };
        let right = known & tokio::task::spawn_blocking(check).await.unwrap_or(false);
        if right {
            self.verified.insert(key, ()).await;
        }
        right
    }
}

/// An argon2id hash in PHC form, with the library's recommended costs.
///
/// # Errors
/// Where there is no randomness for a salt.
pub fn hash_password(password: &str) -> Result<Secret, argon2::password_hash::Error> {
    let hash = Argon2::default().hash_password(password.as_bytes())?;
    Ok(Secret(hash.to_string().into_bytes()))
}
