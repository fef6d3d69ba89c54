//! Master keys that a key management service holds, which a program speaks to (see `program`).
//!
//! The service wraps no data key itself but a key that wraps data keys: this node makes one for each
//! master key, has it wrapped once, and keeps it in memory, like those that it had unwrapped. So
//! neither a read nor a rotation over thousands of data keys costs a call for each, the service never
//! sees a data key, and what opens a data key is AES-256-GCM, whatever the program does.
//!
//! Layout of a wrapped data key: 1 (one byte), the length of the wrapped key (two bytes, big-endian),
//! the wrapped key as the program gave it, and the data key as `store::sealed::wrap` wraps it.
//!
//! Invariants: nothing is wrapped with a key that the program did not unwrap again; a key is
//! remembered only once it has opened something. One call runs at a time, and who has waited while
//! one failed fails with it, so that an absent service holds nobody up for longer than two calls.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use shoal_content::DataKeyId;
use tokio::sync::MutexGuard;
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

use super::master::{MasterKey, MasterKeyError, purpose};
use super::program::{KmsError, Program};
use crate::store::sealed::{KEY_BYTES, KeyBytes, unwrap, wrap};

/// What its keys' ids begin with among all master keys.
const ID_PREFIX: &str = "kms-";
const FORM: u8 = 1;
/// Keys that are remembered; a node makes one for each of its runs that needs one.
const KEYS_MAX: usize = 4096;

/// A service, through its program.
pub(super) struct Kms {
    program: Program,
    /// One call at a time; how the last one failed, if it did.
    turn: tokio::sync::Mutex<Option<Failure>>,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Failure {
    at: Instant,
    operation: &'static str,
    reason: String,
}

#[derive(Default)]
struct Known {
    /// By the hash of the key's id and of the wrapped key.
    opened: HashMap<blake3::Hash, KeyBytes>,
    /// What this node wraps with, and that as the service has wrapped it.
    wraps: HashMap<String, (Vec<u8>, KeyBytes)>,
}

impl fmt::Debug for Kms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kms({})", self.program.name())
    }
}

/// One key of the service, which stays what it is.
#[derive(Debug)]
struct KmsKey {
    id: String,
    key_id: String,
    kms: Arc<Kms>,
}

fn name(key_id: &str, wrapped: &[u8]) -> blake3::Hash {
    // No id has a zero byte.
    let mut hasher = blake3::Hasher::new();
    hasher.update(key_id.as_bytes()).update(&[0]).update(wrapped);
    hasher.finalize()
}

impl Kms {
    /// `command` has at least the program's path; each call ends within `limit`.
    pub(super) fn new(command: &[String], limit: Duration) -> Self {
        let program = Program::new(command, limit);
        Self { program, turn: tokio::sync::Mutex::new(None), known: Mutex::default() }
    }

    /// The keys that the service has now, the one that wraps first.
    ///
    /// # Errors
    /// See [`KmsError`].
    pub(super) async fn keys(self: &Arc<Self>) -> Result<Vec<Arc<dyn MasterKey>>, KmsError> {
        let mut turn = self.turn().await?;
        let keys = noted(&mut turn, "identify", self.program.identify().await)?;
        self.known.lock().wraps.retain(|key_id, _| keys.contains(key_id));
        let key = |key_id: String| {
            let id = format!("{ID_PREFIX}{key_id}");
            Arc::new(KmsKey { id, key_id, kms: Arc::clone(self) }) as Arc<dyn MasterKey>
        };
        Ok(keys.into_iter().map(key).collect())
    }

    /// Waits for no longer than a call may take.
    async fn turn(&self) -> Result<MutexGuard<'_, Option<Failure>>, KmsError> {
        let asked_at = Instant::now();
        let busy = |_| KmsError::Busy { program: self.program.name() };
        let turn = timeout(self.program.limit(), self.turn.lock()).await.map_err(busy)?;
        let failed = turn.as_ref().filter(|failure| failure.at >= asked_at);
        let failed = failed.map(|failure| KmsError::Failed {
            program: self.program.name(),
            operation: failure.operation,
            reason: failure.reason.clone(),
        });
        match failed {
            Some(error) => Err(error),
            None => Ok(turn),
        }
    }

    fn remembered(&self, name: &blake3::Hash) -> Option<KeyBytes> {
        self.known.lock().opened.get(name).cloned()
    }

    fn remember(&self, name: blake3::Hash, key: &KeyBytes) {
        let mut known = self.known.lock();
        if known.opened.len() >= KEYS_MAX {
            known.opened.clear();
        }
        known.opened.insert(name, key.clone());
    }

    fn wraps(&self, key_id: &str) -> Option<(Vec<u8>, KeyBytes)> {
        self.known.lock().wraps.get(key_id).cloned()
    }

    /// The key to wrap with, as the service has wrapped it, and itself.
    async fn to_wrap(&self, key_id: &str) -> Result<(Vec<u8>, KeyBytes), KmsError> {
        if let Some(known) = self.wraps(key_id) {
            return Ok(known);
        }
        let mut turn = self.turn().await?;
        if let Some(known) = self.wraps(key_id) {
            return Ok(known);
        }
        let key: KeyBytes = Zeroizing::new(rand::random::<[u8; KEY_BYTES]>());
        let wrapped = noted(&mut turn, "wrap", self.program.wrap(key_id, &key).await)?;
        let back = noted(&mut turn, "unwrap", self.program.unwrap(key_id, &wrapped).await)?;
        if back != key {
            return Err(KmsError::Lost { program: self.program.name(), key_id: key_id.to_owned() });
        }
        self.remember(name(key_id, &wrapped), &key);
        self.known.lock().wraps.insert(key_id.to_owned(), (wrapped.clone(), key.clone()));
        Ok((wrapped, key))
    }

    /// What `open` gets out of it with the key that the service has wrapped so; `None` where a key
    /// that has opened others does not open this.
    async fn opened(
        &self,
        key_id: &str,
        wrapped: &[u8],
        open: impl Fn(&KeyBytes) -> Option<KeyBytes>,
    ) -> Result<Option<KeyBytes>, KmsError> {
        let name = name(key_id, wrapped);
        if let Some(key) = self.remembered(&name) {
            return Ok(open(&key));
        }
        let mut turn = self.turn().await?;
        if let Some(key) = self.remembered(&name) {
            return Ok(open(&key));
        }
        let key = noted(&mut turn, "unwrap", self.program.unwrap(key_id, wrapped).await)?;
        let other = || KmsError::Other { program: self.program.name(), key_id: key_id.to_owned() };
        let opened = open(&key).ok_or_else(other)?;
        self.remember(name, &key);
        Ok(Some(opened))
    }
}

/// Writes down how a call ended, for those who wait. What concerns one key alone is not theirs.
fn noted<T>(
    turn: &mut Option<Failure>,
    operation: &'static str,
    ended: Result<T, KmsError>,
) -> Result<T, KmsError> {
    *turn = match &ended {
        Err(error) if error.is_retryable() => {
            let reason = match error {
                KmsError::Failed { reason, .. } => reason.clone(),
                error => error.to_string(),
            };
            Some(Failure { at: Instant::now(), operation, reason })
        }
        _ => None,
    };
    ended
}

/// The key as the service has wrapped it, and the data key as that has.
fn split(row: &[u8]) -> Option<(&[u8], &[u8])> {
    let (head, rest) = row.split_at_checked(3)?;
    let length = usize::from(u16::from_be_bytes([head[1], head[2]]));
    if head[0] == FORM { rest.split_at_checked(length) } else { None }
}

#[async_trait]
impl MasterKey for KmsKey {
    fn id(&self) -> &str {
        &self.id
    }

    async fn wrap(&self, id: DataKeyId, key: &KeyBytes) -> Result<Vec<u8>, MasterKeyError> {
        let (wrapped, by) = self.kms.to_wrap(&self.key_id).await?;
        let length = u16::try_from(wrapped.len()).map_err(|_| MasterKeyError::Damaged(id))?;
        let mut row = vec![FORM];
        row.extend(length.to_be_bytes());
        row.extend(wrapped);
        row.extend(wrap(&by, &purpose(id), &key[..]));
        Ok(row)
    }

    async fn unwrap(&self, id: DataKeyId, wrapped: &[u8]) -> Result<KeyBytes, MasterKeyError> {
        let (by, sealed) = split(wrapped).ok_or(MasterKeyError::Damaged(id))?;
        let open = |by: &KeyBytes| {
            let key = unwrap(by, &purpose(id), sealed)?;
            <[u8; KEY_BYTES]>::try_from(&key[..]).ok().map(Zeroizing::new)
        };
        let key = self.kms.opened(&self.key_id, by, open).await?;
        key.ok_or(MasterKeyError::Damaged(id))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use uuid::Uuid;

    use super::*;

    const SERVICE: &str = include_str!("../../tests/http/kms.sh");
    const LIMIT: Duration = Duration::from_secs(60);

    /// A service in a folder of its own, with two versions of its key.
    fn service(script: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in
            [("kms.sh", script), ("secret-1", "one"), ("secret-2", "two"), ("newest", "1")]
        {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn kms(folder: &Path) -> Arc<Kms> {
        let script = folder.join("kms.sh").display().to_string();
        let command = ["/bin/sh".to_owned(), script, folder.display().to_string()];
        Arc::new(Kms::new(&command, LIMIT))
    }

    async fn newest(kms: &Arc<Kms>) -> Arc<dyn MasterKey> {
        Arc::clone(&kms.keys().await.unwrap()[0])
    }

    /// How often it was asked to do that.
    fn calls(folder: &Path, operation: &str) -> usize {
        let calls = fs::read_to_string(folder.join("calls")).unwrap();
        calls.lines().filter(|line| *line == operation).count()
    }

    fn data_key(number: u8) -> (DataKeyId, KeyBytes) {
        let id = DataKeyId::from_uuid(Uuid::from_u128(number.into()));
        (id, Zeroizing::new([number; KEY_BYTES]))
    }

    #[tokio::test]
    async fn many_data_keys_cost_one_call_and_each_opens_as_itself_only() {
        let folder = service(SERVICE);
        let master = newest(&kms(folder.path())).await;
        assert_eq!(master.id(), "kms-test:1");
        let mut rows = Vec::new();
        for number in 1..=20 {
            let (id, key) = data_key(number);
            rows.push((id, master.wrap(id, &key).await.unwrap()));
        }
        // Once, and once to see that it opens.
        assert_eq!((calls(folder.path(), "wrap"), calls(folder.path(), "unwrap")), (1, 1));
        assert!(rows.iter().all(|(_, row)| row.len() <= shoal_metadata::DATA_KEY_BYTES_MAX));

        // Another process, all at once.
        let later = newest(&kms(folder.path())).await;
        let opened = rows.iter().map(|(id, row)| later.unwrap(*id, row));
        let opened = futures::future::try_join_all(opened).await.unwrap();
        assert!(opened.iter().zip(1..).all(|(key, number)| *key == data_key(number).1));
        assert_eq!(calls(folder.path(), "unwrap"), 2);
        let swapped = later.unwrap(rows[0].0, &rows[1].1).await.unwrap_err();
        assert!(matches!(swapped, MasterKeyError::Damaged(id) if id == rows[0].0), "{swapped}");
        for length in 0..rows[0].1.len() {
            assert!(later.unwrap(rows[0].0, &rows[0].1[..length]).await.is_err(), "{length}");
        }
    }

    #[tokio::test]
    async fn a_new_version_of_the_key_wraps_and_the_one_before_opens() {
        let folder = service(SERVICE);
        let kms = kms(folder.path());
        let (id, key) = data_key(7);
        let row = newest(&kms).await.wrap(id, &key).await.unwrap();
        fs::write(folder.path().join("newest"), "2").unwrap();
        let keys = kms.keys().await.unwrap();
        let ids: Vec<&str> = keys.iter().map(|key| key.id()).collect();
        assert_eq!(ids, ["kms-test:2", "kms-test:1"]);
        assert_eq!(keys[1].unwrap(id, &row).await.unwrap(), key);
        let anew = keys[0].wrap(id, &key).await.unwrap();
        assert_eq!(keys[0].unwrap(id, &anew).await.unwrap(), key);
        assert_ne!(row, anew);
    }

    #[tokio::test]
    async fn what_a_lying_program_says_seals_and_opens_nothing() {
        let other = "A".repeat(43) + "=";
        let lies = SERVICE.replace("text=$(field wrapped | cipher -d)", &format!("text={other}"));
        let folder = service(&lies);
        let (id, key) = data_key(7);
        let lost = newest(&kms(folder.path())).await.wrap(id, &key).await.unwrap_err();
        assert!(matches!(lost, MasterKeyError::Kms(KmsError::Lost { .. })), "{lost}");

        let folder = service(SERVICE);
        let row = newest(&kms(folder.path())).await.wrap(id, &key).await.unwrap();
        fs::write(folder.path().join("kms.sh"), lies).unwrap();
        let kms = kms(folder.path());
        let lie = newest(&kms).await.unwrap(id, &row).await.unwrap_err();
        let is_said = matches!(&lie, MasterKeyError::Kms(KmsError::Other { .. }));
        assert!(is_said && !lie.is_retryable(), "{lie}");
        // What it said is not remembered.
        fs::write(folder.path().join("kms.sh"), SERVICE).unwrap();
        assert_eq!(newest(&kms).await.unwrap(id, &row).await.unwrap(), key);
    }

    #[tokio::test]
    async fn an_absent_service_is_asked_once_for_all_who_wait_and_again_later() {
        let folder = service(SERVICE);
        let (id, key) = data_key(7);
        let row = newest(&kms(folder.path())).await.wrap(id, &key).await.unwrap();
        let master = newest(&kms(folder.path())).await;
        let before = calls(folder.path(), "unwrap");
        fs::write(folder.path().join("away"), "").unwrap();
        let tries = (0..10).map(|_| master.unwrap(id, &row));
        for refused in futures::future::join_all(tries).await {
            let refused = refused.unwrap_err();
            assert!(refused.is_retryable(), "{refused}");
            assert!(refused.to_string().contains("the service is away"), "{refused}");
        }
        assert_eq!(calls(folder.path(), "unwrap"), before + 1);
        fs::remove_file(folder.path().join("away")).unwrap();
        assert_eq!(master.unwrap(id, &row).await.unwrap(), key);
    }
}
