//! Passwords: checked against argon2id hashes, and never kept.
//!
//! Invariants: whoever is told whether a password is right had a place among those that wait, and
//! counts if it is not; no hash is made but in turn.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use argon2::Argon2;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use axum::http::StatusCode;
use moka::future::Cache;
use parking_lot::Mutex;
use shoal_metadata::{AuditResult, AuditSource, Command, Secret, Suspect, User};
use tokio::sync::Semaphore;
use tracing::debug;
use zeroize::Zeroizing;

use super::bcrypt::Hash;
use crate::clock::now;
use crate::http::problem::Problem;
use crate::state::App;

/// A password that was right is not hashed again for this long.
const VERIFIED_TTL: Duration = Duration::from_secs(600);
const VERIFIED_MAX: u64 = 10_000;
/// Argon2 takes 19 MiB and tens of milliseconds each: more at once only wait.
const HASHES_AT_ONCE_MAX: usize = 2;
/// Passwords that wait for their turn, of one network and of all: one more is turned away, so that
/// who guesses does not hold up those elsewhere who know.
const WAITING_OF_ONE_MAX: usize = 8;
const WAITING_MAX: usize = 256;
/// How often a place is asked for, and the pause between.
const ADMISSION_TRIES: usize = 20;
const ADMISSION_PAUSE: Duration = Duration::from_millis(50);
/// When somebody may come again who found too many waiting.
const CROWDED_RETRY: Duration = Duration::from_secs(1);

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
        let bcrypt = attempt.app.config.accounts.bcrypt;
        let fits = |stored: &Secret| bcrypt || Hash::read(&stored.0).is_none();
        let stored = stored.filter(|stored| stored.0.starts_with(b"$") && fits(stored));
        let known = stored.is_some();
        let stored = stored.unwrap_or_else(|| self.nobody.clone());
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        for part in [attempt.name.as_bytes(), password.as_bytes(), &stored.0] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        let key = *hasher.finalize().as_bytes();
        let Some((place, was_right)) = self.admitted(attempt.client, &key).await else {
            return Checked::Crowded;
        };
        if known && was_right {
            return Checked::Right;
        }
        let Ok(permit) = Arc::clone(&self.hashing).acquire_owned().await else {
            return Checked::Crowded;
        };
        // Those before may have failed too often.
        if !attempt.counted
            && let Err(problem) = attempt.is_let_in()
        {
            return Checked::Barred(problem);
        }
        // Or have brought the same one, as many hosts at once may.
        if known && self.verified.contains_key(&key) {
            return Checked::Right;
        }
        let check = move || {
            // A request that is given up leaves its hash running: the next one waits all the same,
            // and it counts.
            let _held = (permit, place);
            let right = known & is_of(&stored, &password);
            if !right && !attempt.counted {
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

    /// A place, and whether that password was right a while ago. Without a place nothing is said:
    /// who is turned away is not counted, and would learn what a guess is worth.
    fn admit(&self, client: Option<IpAddr>, key: &[u8; 32]) -> Option<(Place, bool)> {
        let place = Place::take(&self.waiting, client)?;
        Some((place, self.verified.contains_key(key)))
    }

    /// The same, a moment later if need be: those before from one network are soon done. A right
    /// password waits as long as a wrong one.
    async fn admitted(&self, client: Option<IpAddr>, key: &[u8; 32]) -> Option<(Place, bool)> {
        for _ in 0..ADMISSION_TRIES {
            let admitted = self.admit(client, key);
            if admitted.is_some() {
                return admitted;
            }
            tokio::time::sleep(ADMISSION_PAUSE).await;
        }
        self.admit(client, key)
    }

    /// A hash of a new password, made in turn with those that are checked.
    ///
    /// # Errors
    /// 429 where too many wait already.
    pub async fn hash(
        &self,
        client: Option<IpAddr>,
        password: Zeroizing<String>,
    ) -> Result<Secret, Problem> {
        let place = Place::take(&self.waiting, client).ok_or_else(crowded)?;
        let permit = Arc::clone(&self.hashing).acquire_owned().await.map_err(|_| crowded())?;
        let make = move || {
            // One that is given up is made all the same, and the next one waits for it.
            let _held = (permit, place);
            hash_password(&password)
        };
        match tokio::task::spawn_blocking(make).await {
            Ok(Ok(hash)) => Ok(hash),
            Ok(Err(error)) => Err(Problem::internal(&std::io::Error::other(error.to_string()))),
            Err(error) => Err(Problem::internal(&error)),
        }
    }
}

fn is_of(stored: &Secret, password: &str) -> bool {
    if let Some(hash) = Hash::read(&stored.0) {
        return hash.is_of(password.as_bytes());
    }
    let hash = std::str::from_utf8(&stored.0).unwrap_or_default();
    Argon2::default().verify_password(password.as_bytes(), hash).is_ok()
}

/// Keeps a password that was right by a hash of ours, where it came with another program's. Until that
/// could be done it is compared with the one that it came with.
pub(super) async fn keep_anew(
    app: &App,
    client: Option<IpAddr>,
    user: &User,
    password: Zeroizing<String>,
) {
    let kept = async {
        let to = app.accounts.hash(client, password).await?;
        let from = *blake3::hash(&user.password_hash.0).as_bytes();
        let anew = Command::RehashPassword { user: user.name.clone(), from, to };
        app.raft.propose(now(), anew).await?;
        Ok::<(), Problem>(())
    };
    if let Err(problem) = kept.await {
        debug!(user = %user.name, problem = %problem.message, "a bcrypt hash is kept for now");
    }
}

/// What somebody is answered who finds too many waiting.
pub(super) fn crowded() -> Problem {
    let text = "too many passwords are being checked; try again in a moment";
    Problem {
        retry_after: Some(CROWDED_RETRY),
        ..Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many", text)
    }
}

/// Who tries a password for whom.
#[derive(Clone)]
pub(super) struct Attempt {
    pub app: App,
    pub client: Option<IpAddr>,
    pub name: String,
    pub source: AuditSource,
    /// Whether it has failed at a directory, and counts already.
    pub counted: bool,
}

impl Attempt {
    pub(super) fn is_let_in(&self) -> Result<(), Problem> {
        let view = self.app.raft.local();
        self.app.lockout.check_address(view.query(), self.client)?;
        self.app.lockout.check_account(view.query(), &self.name)
    }

    /// Counts it as one for `account`, too, which a directory knows by the name that was typed: it
    /// takes many spellings of one name.
    pub(super) fn failed_for(&self, account: &str) {
        self.failed();
        if account != self.name {
            self.app.lockout.note_password(account, self.client);
        }
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
    by_network: HashMap<IpAddr, usize>,
}

/// A place among those that wait, given back when it is dropped.
struct Place {
    waiting: Arc<Mutex<Waiting>>,
    network: Option<IpAddr>,
}

impl Place {
    fn take(waiting: &Arc<Mutex<Waiting>>, client: Option<IpAddr>) -> Option<Self> {
        let mut counts = waiting.lock();
        if counts.all >= WAITING_MAX {
            return None;
        }
        let network = client.map(Suspect::network);
        if let Some(network) = network {
            let own = counts.by_network.entry(network).or_default();
            if *own >= WAITING_OF_ONE_MAX {
                return None;
            }
            *own += 1;
        }
        counts.all += 1;
        Some(Self { waiting: Arc::clone(waiting), network })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.waiting.lock();
        counts.all -= 1;
        if let Some(network) = self.network
            && let Some(own) = counts.by_network.get_mut(&network)
        {
            *own -= 1;
            if *own == 0 {
                counts.by_network.remove(&network);
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
    fn one_network_cannot_take_the_places_of_others() {
        let waiting = Arc::default();
        let address = |text: &str| Some(text.parse().unwrap());
        for (guesser, beside, other) in [
            ("10.0.0.1", "::ffff:10.0.0.1", "10.0.0.2"),
            ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"),
        ] {
            let mut taken: Vec<Place> = (0..WAITING_OF_ONE_MAX)
                .map(|_| Place::take(&waiting, address(guesser)).unwrap())
                .collect();
            assert!(Place::take(&waiting, address(guesser)).is_none());
            assert!(Place::take(&waiting, address(beside)).is_none());
            assert!(Place::take(&waiting, address(other)).is_some());
            taken.pop();
            assert!(Place::take(&waiting, address(beside)).is_some());
            drop(taken);
            assert!(waiting.lock().by_network.is_empty() && waiting.lock().all == 0);
        }
    }

    #[tokio::test]
    async fn who_finds_no_place_does_not_learn_which_password_is_right() {
        let accounts = Accounts::new().unwrap();
        let (right, wrong) = ([1; 32], [2; 32]);
        accounts.verified.insert(right, ()).await;
        let (guesser, other) = (Some([10, 0, 0, 1].into()), Some([10, 0, 0, 2].into()));
        let known = |client, key| accounts.admit(client, key).map(|(_, known)| known);
        assert_eq!((known(guesser, &right), known(guesser, &wrong)), (Some(true), Some(false)));
        let _taken: Vec<Place> = (0..WAITING_OF_ONE_MAX)
            .map(|_| Place::take(&accounts.waiting, guesser).unwrap())
            .collect();
        assert_eq!((known(guesser, &right), known(guesser, &wrong)), (None, None));
        assert_eq!(known(other, &right), Some(true));
        // Nor does a new password go past those that wait.
        let password = Zeroizing::new("correct-horse-7".to_owned());
        let crowded = accounts.hash(guesser, password.clone()).await.unwrap_err();
        assert_eq!((crowded.status, crowded.code), (StatusCode::TOO_MANY_REQUESTS, "too_many"));
        assert!(accounts.hash(other, password).await.unwrap().0.starts_with(b"$"));
    }

    #[tokio::test]
    async fn new_passwords_are_hashed_in_turn() {
        let accounts = Accounts::new().unwrap();
        let busy = Arc::clone(&accounts.hashing).acquire_many_owned(HASHES_AT_ONCE_MAX as u32);
        let busy = busy.await.unwrap();
        let hash = accounts.hash(None, Zeroizing::new("correct-horse-7".to_owned()));
        let mut hash = std::pin::pin!(hash);
        assert!(futures::poll!(&mut hash).is_pending());
        drop(busy);
        assert!(hash.await.is_ok());
    }
}
