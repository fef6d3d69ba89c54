//! Passwords: checked against argon2id hashes, and never kept.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use moka::future::Cache;
use parking_lot::Mutex;
use shoal_metadata::{AuditResult, AuditSource, Secret, Suspect};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::http::problem::Problem;
use crate::state::App;

/// A password that was right is not hashed again for this long.
const VERIFIED_TTL: Duration = Duration::from_secs(600);
const VERIFIED_MAX: u64 = 10_000;
/// Argon2 takes 19 MiB and tens of milliseconds each: more at once only wait.
const HASHES_AT_ONCE_MAX: usize = 2;
/// Passwords that wait for their turn, of one address and of all: one more is turned away, so that
/// who guesses does not hold up who knows.
const WAITING_OF_ONE_MAX: usize = 8;
const WAITING_MAX: usize = 256;

/// Checks passwords, remembering for a while which were right.
#[derive(Debug)]
pub struct Accounts {
    /// Keyed BLAKE3 of name, password and the stored hash: a changed password misses.
    verified: Cache<[u8; 32], ()>,
    key: [u8; 32],
    hashing: Arc<Semaphore>,
    waiting: Arc<Mutex<Waiting>>,
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
            waiting: Arc::default(),
            nobody: hash_password("nobody")?,
        })
    }

    pub(super) async fn check(
        &self,
        attempt: Attempt,
        password: Zeroizing<String>,
        stored: Option<Secret>,
    ) -> Checked {
        // An account without a password costs as much time as one that is not there.
        let stored = stored.filter(|stored| stored.0.starts_with(b"$"));
        let known = stored.is_some();
        let stored = stored.unwrap_or_else(|| self.nobody.clone());
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        for part in [attempt.name.as_bytes(), password.as_bytes(), &stored.0] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        let key = *hasher.finalize().as_bytes();
        if known && self.verified.contains_key(&key) {
            return Checked::Right;
        }
        let Some(place) = Place::take(&self.waiting, attempt.client) else {
            return Checked::Crowded;
        };
        let Ok(permit) = Arc::clone(&self.hashing).acquire_owned().await else {
            return Checked::Crowded;
        };
        // Those before may have failed too often.
        if let Err(problem) = attempt.is_let_in() {
            return Checked::Barred(problem);
        }
        let check = move || {
            // A request that is given up leaves its hash running: the next one waits all the same,
            // and it counts.
            let _held = (permit, place);
            let hash = std::str::from_utf8(&stored.0).unwrap_or_default();
            let right = Argon2::default().verify_password(password.as_bytes(), hash).is_ok();
            let right = known & right;
            if !right {
                attempt.failed();
            }
            right
        };
        let right = tokio::task::spawn_blocking(check).await.unwrap_or(false);
        if !right {
            return Checked::Wrong;
        }
        self.verified.insert(key, ()).await;
        Checked::Right
    }
}

/// Who tries a password for whom.
pub(super) struct Attempt {
    pub app: App,
    pub client: Option<IpAddr>,
    pub name: String,
    pub source: AuditSource,
}

impl Attempt {
    pub(super) fn is_let_in(&self) -> Result<(), Problem> {
        let view = self.app.raft.local();
        self.app.lockout.check_address(view.query(), self.client)?;
        self.app.lockout.check_account(view.query(), &self.name)
    }

    fn failed(&self) {
        self.app.metrics.login_failed("password");
        self.app.lockout.note_password(&self.name, self.client);
        // What was typed as a name may be a password.
        let name = Suspect::account(&self.name).to_string();
        let wrong = AuditResult::Refused("the name or the password is wrong".to_owned());
        self.app.services.audit.note_as(self.source.clone(), "session.login", name, wrong);
    }
}

/// How an attempt ended.
pub(super) enum Checked {
    Right,
    Wrong,
    /// Too many are waiting already.
    Crowded,
    /// The account or the address was locked while it waited.
    Barred(Problem),
}

#[derive(Debug, Default)]
struct Waiting {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A place among those that wait, given back when it is dropped.
struct Place {
    waiting: Arc<Mutex<Waiting>>,
    client: Option<IpAddr>,
}

impl Place {
    fn take(waiting: &Arc<Mutex<Waiting>>, client: Option<IpAddr>) -> Option<Self> {
        let mut counts = waiting.lock();
        if counts.all >= WAITING_MAX {
            return None;
        }
        if let Some(client) = client {
            let own = counts.by_address.entry(client).or_default();
            if *own >= WAITING_OF_ONE_MAX {
                return None;
            }
            *own += 1;
        }
        counts.all += 1;
        Some(Self { waiting: Arc::clone(waiting), client })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.waiting.lock();
        counts.all -= 1;
        if let Some(client) = self.client
            && let Some(own) = counts.by_address.get_mut(&client)
        {
            *own -= 1;
            if *own == 0 {
                counts.by_address.remove(&client);
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_the_places_of_others() {
        let waiting = Arc::default();
        let (guesser, other) = (Some([10, 0, 0, 1].into()), Some([10, 0, 0, 2].into()));
        let mut taken: Vec<Place> =
            (0..WAITING_OF_ONE_MAX).map(|_| Place::take(&waiting, guesser).unwrap()).collect();
        assert!(Place::take(&waiting, guesser).is_none());
        assert!(Place::take(&waiting, other).is_some());
        taken.pop();
        assert!(Place::take(&waiting, guesser).is_some());
        drop(taken);
        assert!(waiting.lock().by_address.is_empty() && waiting.lock().all == 0);
    }
}
