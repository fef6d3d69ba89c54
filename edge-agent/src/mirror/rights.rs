//! Whether whoever asks the mirror may have what it asks for: a node's word, and how long that is
//! remembered.
//!
//! A node is asked for the very manifest or blob with the asker's own credentials. Its yes is a
//! right to the repository, good for a short while (`fresh`) for what the repository is known to
//! hold. Where no node answers, what was allowed to the same credentials is allowed for a longer
//! while (`kept`), and so is what a node said to be public.
//!
//! Invariants: nothing is remembered but yes, and which credentials were wrong; credentials are
//! remembered by a keyed hash alone; both tables are bounded. A digest is served only where a node
//! has just said, to this asker or in a resolution, that the repository holds it.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderValue, Method, StatusCode};
use parking_lot::Mutex;
use shoal_content::{Digest, Pin, RepositoryName};

use super::error::Error;
use super::login::Caller;
use crate::catalogue::Catalogue;
use crate::fetch::Fetcher;

/// Pairs of credentials and repository that are remembered.
const ALLOWED_MAX: usize = 8192;
/// Credentials that are remembered to be wrong, so that an engine that goes on with them is not
/// locked out at the nodes, and its host with it.
const WRONG_MAX: usize = 1024;
/// After a round in which no node answered, what is remembered is asked first for so long.
const AWAY_PAUSE: Duration = Duration::from_secs(5);

type Key = [u8; 32];

/// What is asked for in a repository.
#[derive(Debug, Clone, Copy)]
pub enum Thing<'a> {
    Manifest(&'a Pin),
    Blob(&'a Digest),
}

impl Thing<'_> {
    fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Manifest(Pin::Tag(_)) => None,
            Self::Manifest(Pin::Digest(digest)) => Some(digest),
            Self::Blob(digest) => Some(digest),
        }
    }

    fn path(&self, name: &RepositoryName) -> String {
        match self {
            Self::Manifest(Pin::Tag(tag)) => format!("/v2/{name}/manifests/{tag}"),
            Self::Manifest(Pin::Digest(digest)) => format!("/v2/{name}/manifests/{digest}"),
            Self::Blob(digest) => format!("/v2/{name}/blobs/{digest}"),
        }
    }

    fn unknown(&self) -> Error {
        match self {
            Self::Manifest(_) => Error::UnknownManifest,
            Self::Blob(_) => Error::UnknownBlob,
        }
    }
}

#[derive(Debug, Default)]
struct Table {
    allowed: HashMap<Key, Instant>,
    wrong: HashMap<Key, Instant>,
    away_since: Option<Instant>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Rights {
    key: Key,
    fresh: Duration,
    kept: Duration,
    table: Mutex<Table>,
}

impl Rights {
    pub fn new(fresh: Duration, kept: Duration) -> Self {
        Self { key: rand::random(), fresh, kept: kept.max(fresh), table: Mutex::default() }
    }

    /// Lets the asker have `thing` of `name`, or says what it is answered.
    ///
    /// # Errors
    /// What a node answered, or that none did and nothing that is remembered allows it.
    pub async fn check(
        &self,
        fetcher: &Fetcher,
        caller: &Caller,
        name: &RepositoryName,
        thing: Thing<'_>,
    ) -> Result<(), Error> {
        let catalogue = &fetcher.catalogue;
        let key = self.key(caller, Some(name));
        let holds = |at_most| thing.digest().is_none_or(|one| holds(catalogue, name, one, at_most));
        let may = |at_most| self.is_allowed(&key, at_most) || is_public(catalogue, name, at_most);
        if may(self.fresh) && holds(self.fresh) {
            return Ok(());
        }
        // A tag is looked up at a node anyway; a digest has to be one that the repository had.
        let remembered = || may(self.kept) && holds(Duration::MAX);
        if self.is_away() && remembered() {
            return Ok(());
        }
        self.refuse_wrong(caller)?;
        match self.ask(fetcher, caller, &thing.path(name)).await {
            Ok(status) if status.is_success() => {
                self.allow(key);
                Ok(())
            }
            Ok(StatusCode::UNAUTHORIZED) => {
                self.note_refused(caller, name);
                Err(Error::Unauthorized)
            }
            // That there is none, or that the asker may not know of it: of a digest that was never
            // here, it tells nothing of the right.
            Ok(status) => {
                if status == StatusCode::FORBIDDEN || holds(Duration::MAX) {
                    self.forget(&key);
                }
                Err(thing.unknown())
            }
            Err(Error::Unavailable(_)) if remembered() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// What a node has said now that was asked for something of `name` itself, with the asker's
    /// credentials: 401. They are brought there no more, as each time counts against the account and
    /// this host.
    pub fn note_refused(&self, caller: &Caller, name: &RepositoryName) {
        self.forget(&self.key(caller, Some(name)));
        // Of a token, it may be that it is not for this repository.
        if caller.brings_password() {
            let key = self.key(caller, None);
            self.forget(&key);
            self.note_wrong(key);
        }
    }

    /// Whether the asker's credentials are good at all.
    ///
    /// # Errors
    /// Where they are not, or no node can be asked and they are not remembered.
    pub async fn check_login(&self, fetcher: &Fetcher, caller: &Caller) -> Result<(), Error> {
        if caller.is_nobody() {
            return Ok(());
        }
        let key = self.key(caller, None);
        if self.is_allowed(&key, self.fresh) {
            return Ok(());
        }
        let remembered = || self.is_allowed(&key, self.kept);
        if self.is_away() && remembered() {
            return Ok(());
        }
        self.refuse_wrong(caller)?;
        match self.ask(fetcher, caller, "/v2/").await {
            Ok(status) if status.is_success() => {
                self.allow(key);
                Ok(())
            }
            Ok(_) => {
                self.forget(&key);
                self.note_wrong(key);
                Err(Error::Unauthorized)
            }
            Err(Error::Unavailable(_)) if remembered() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The status of a node's answer: a yes or a refusal, never a failure of its own.
    async fn ask(
        &self,
        fetcher: &Fetcher,
        caller: &Caller,
        path: &str,
    ) -> Result<StatusCode, Error> {
        let answer = fetcher.nodes.ask_for(Method::HEAD, path, caller.authorization()).await;
        self.table.lock().away_since = answer.is_err().then(Instant::now);
        let answer = answer.map_err(|error| Error::Unavailable(error.to_string()))?;
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            return Err(Error::Busy { retry_after: answer.retry_after });
        }
        Ok(answer.status)
    }

    fn key(&self, caller: &Caller, name: Option<&RepositoryName>) -> Key {
        let credentials = caller.authorization().map_or(&b""[..], HeaderValue::as_bytes);
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&(credentials.len() as u64).to_le_bytes()).update(credentials);
        hasher.update(name.map_or("", |name| name.as_str()).as_bytes());
        *hasher.finalize().as_bytes()
    }

    fn is_away(&self) -> bool {
        self.table.lock().away_since.is_some_and(|since| since.elapsed() < AWAY_PAUSE)
    }

    fn is_allowed(&self, key: &Key, at_most: Duration) -> bool {
        self.table.lock().allowed.get(key).is_some_and(|since| since.elapsed() < at_most)
    }

    fn allow(&self, key: Key) {
        put(&mut self.table.lock().allowed, key, ALLOWED_MAX, self.kept);
    }

    fn forget(&self, key: &Key) {
        self.table.lock().allowed.remove(key);
    }

    fn note_wrong(&self, key: Key) {
        put(&mut self.table.lock().wrong, key, WRONG_MAX, self.fresh);
    }

    fn refuse_wrong(&self, caller: &Caller) -> Result<(), Error> {
        let key = self.key(caller, None);
        let noted = self.table.lock().wrong.get(&key).copied();
        match noted.is_some_and(|since| since.elapsed() < self.fresh) {
            true => Err(Error::Unauthorized),
            false => Ok(()),
        }
    }
}

/// Puts `key` with the present time, after making room where there is none.
fn put(table: &mut HashMap<Key, Instant>, key: Key, most: usize, lasts: Duration) {
    if table.len() >= most && !table.contains_key(&key) {
        table.retain(|_, since| since.elapsed() < lasts);
    }
    if table.len() >= most && !table.contains_key(&key) {
        let oldest = table.iter().min_by_key(|(_, since)| **since).map(|(key, _)| *key);
        if let Some(oldest) = oldest {
            table.remove(&oldest);
        }
    }
    table.insert(key, Instant::now());
}

/// Whether a resolution that is at most so old says that `name` holds `digest`.
fn holds(catalogue: &Catalogue, name: &RepositoryName, digest: &Digest, at_most: Duration) -> bool {
    catalogue.held_at(name, digest).is_some_and(|at| is_within(at, at_most))
}

/// Whether the last resolution, which is at most so old, says that `name` is public.
fn is_public(catalogue: &Catalogue, name: &RepositoryName, at_most: Duration) -> bool {
    catalogue.public_at(name).is_some_and(|at| is_within(at, at_most))
}

/// Whether a time, in milliseconds since the epoch, is at most so long ago. One that lies ahead is
/// no time to go by: the clock was set.
fn is_within(at: u64, at_most: Duration) -> bool {
    let at = UNIX_EPOCH + Duration::from_millis(at);
    SystemTime::now().duration_since(at).is_ok_and(|age| age < at_most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_and_repositories_have_rights_of_their_own() {
        let rights = Rights::new(Duration::from_secs(60), Duration::from_secs(600));
        let (one, other) = (Caller::bringing("Basic YTpi"), Caller::bringing("Basic YTpj"));
        let nobody = Caller::nobody();
        let (app, tool) = ("shop/app".parse().unwrap(), "shop/tool".parse().unwrap());
        rights.allow(rights.key(&one, Some(&app)));
        let allowed = |caller: &Caller, name: Option<&RepositoryName>| {
            rights.is_allowed(&rights.key(caller, name), Duration::from_secs(60))
        };
        assert!(allowed(&one, Some(&app)));
        for (caller, name) in
            [(&one, Some(&tool)), (&other, Some(&app)), (&nobody, Some(&app)), (&one, None)]
        {
            assert!(!allowed(caller, name), "{caller:?} {name:?}");
        }
        rights.forget(&rights.key(&one, Some(&app)));
        assert!(!allowed(&one, Some(&app)));
    }

    #[test]
    fn a_password_that_a_node_did_not_take_after_all_is_not_brought_there_again() {
        let rights = Rights::new(Duration::from_secs(60), Duration::from_secs(600));
        let (changed, other) = (Caller::bringing("Basic YTpi"), Caller::bringing("Basic YTpj"));
        let token = Caller::bringing("Bearer abc");
        let app = "shop/app".parse().unwrap();
        for caller in [&changed, &other, &token] {
            rights.allow(rights.key(caller, None));
            rights.allow(rights.key(caller, Some(&app)));
        }
        for caller in [&changed, &token] {
            rights.note_refused(caller, &app);
        }
        let allowed = |caller: &Caller, name: Option<&RepositoryName>| {
            rights.is_allowed(&rights.key(caller, name), Duration::from_secs(600))
        };
        assert!(!allowed(&changed, None) && !allowed(&changed, Some(&app)));
        assert!(rights.refuse_wrong(&changed).is_err());
        assert!(allowed(&other, None) && allowed(&other, Some(&app)));
        assert!(rights.refuse_wrong(&other).is_ok());
        // It may be good for another repository.
        assert!(allowed(&token, None) && !allowed(&token, Some(&app)));
        assert!(rights.refuse_wrong(&token).is_ok());
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_oldest_goes_first() {
        let mut table = HashMap::new();
        let key = |number: usize| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&(number as u64).to_le_bytes());
            key
        };
        let lasts = Duration::from_secs(3600);
        for number in 0..20 {
            put(&mut table, key(number), 8, lasts);
        }
        assert_eq!(table.len(), 8);
        assert!(table.contains_key(&key(19)) && !table.contains_key(&key(0)));
        // Coming again makes no room.
        put(&mut table, key(19), 8, lasts);
        assert_eq!(table.len(), 8);
    }

    #[test]
    fn a_time_ahead_is_no_right() {
        let ahead = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        assert!(!is_within(ahead + 600_000, Duration::from_secs(60)));
        assert!(is_within(ahead - 1000, Duration::from_secs(60)));
        assert!(!is_within(ahead - 61_000, Duration::from_secs(60)));
    }
}
