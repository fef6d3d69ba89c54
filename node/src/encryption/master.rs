//! Master keys: what wraps data keys, and is never among the metadata.
//!
//! A key in a file is one kind; a service that holds keys and never gives them out is the other (see
//! `kms`). Which of them has wrapped a row its id says, so that a node that has several opens what any
//! of them has wrapped: rotation goes from any of them to any other.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::RwLock;
use shoal_content::DataKeyId;
use shoal_metadata::MASTER_KEYS_MAX;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::Error;
use super::kms::Kms;
use super::program::KmsError;
use crate::config;
use crate::store::sealed::{KEY_BYTES, KeyBytes, unwrap, wrap};

/// A file is longer than any key.
const FILE_BYTES_MAX: u64 = 4096;
const ID_PURPOSE: &str = "shoal 2026-11 id of a master key";
/// Bytes of the hash that stand for a key.
const ID_BYTES: usize = 8;
/// Whoever is in none of the file's groups.
const OTHERS: u32 = 0o007;

#[derive(Debug, thiserror::Error)]
pub enum MasterKeyError {
    #[error("the master key file {} cannot be read", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("others may read the master key file {}: chmod 0400 it, and give it to the node's user", .0.display())]
    Open(PathBuf),
    #[error(
        "the master key file {} has no 32 bytes as base64 or hexadecimal; \
         'openssl rand -base64 32' makes such a key", .0.display()
    )]
    Form(PathBuf),
    #[error("the data key {0} does not open with the master key that it names: it is damaged")]
    Damaged(DataKeyId),
    #[error(transparent)]
    Kms(#[from] KmsError),
}

impl MasterKeyError {
    /// Whether trying again may help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Kms(error) => error.is_retryable(),
            Self::File { .. } | Self::Open(_) | Self::Form(_) | Self::Damaged(_) => false,
        }
    }
}

/// Wraps data keys. What was wrapped for one data key opens as no other, and what was wrapped is known
/// to open again before it is given out. A call ends in bounded time, whatever becomes of a service;
/// that the same key has opened something before makes the next call cheap.
#[async_trait]
pub trait MasterKey: Send + Sync + fmt::Debug {
    /// Names it among all others, and says nothing of it.
    fn id(&self) -> &str;

    async fn wrap(&self, id: DataKeyId, key: &KeyBytes) -> Result<Vec<u8>, MasterKeyError>;

    async fn unwrap(&self, id: DataKeyId, wrapped: &[u8]) -> Result<KeyBytes, MasterKeyError>;
}

/// A key that was read from a file.
struct FileKey {
    id: String,
    bytes: KeyBytes,
}

impl fmt::Debug for FileKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileKey({})", self.id)
    }
}

impl FileKey {
    fn read(path: &Path) -> Result<Self, MasterKeyError> {
        let failed = |source| MasterKeyError::File { path: path.to_owned(), source };
        let metadata = std::fs::metadata(path).map_err(failed)?;
        if metadata.mode() & OTHERS != 0 {
            return Err(MasterKeyError::Open(path.to_owned()));
        }
        let malformed = || MasterKeyError::Form(path.to_owned());
        if metadata.len() > FILE_BYTES_MAX {
            return Err(malformed());
        }
        let text = Zeroizing::new(std::fs::read_to_string(path).map_err(failed)?);
        Ok(Self::new(parse(text.trim()).ok_or_else(malformed)?))
    }

    fn new(bytes: KeyBytes) -> Self {
        let hash = blake3::derive_key(ID_PURPOSE, &bytes[..]);
        Self { id: format!("file-{}", hex::encode(&hash[..ID_BYTES])), bytes }
    }
}

fn parse(text: &str) -> Option<KeyBytes> {
    let bytes = Zeroizing::new(hex::decode(text).or_else(|_| STANDARD.decode(text)).ok()?);
    <[u8; KEY_BYTES]>::try_from(&bytes[..]).ok().map(Zeroizing::new)
}

/// What a data key is wrapped for.
pub(super) fn purpose(id: DataKeyId) -> Vec<u8> {
    format!("data key: {id}").into_bytes()
}

#[async_trait]
impl MasterKey for FileKey {
    fn id(&self) -> &str {
        &self.id
    }

    async fn wrap(&self, id: DataKeyId, key: &KeyBytes) -> Result<Vec<u8>, MasterKeyError> {
        Ok(wrap(&self.bytes, &purpose(id), &key[..]))
    }

    async fn unwrap(&self, id: DataKeyId, wrapped: &[u8]) -> Result<KeyBytes, MasterKeyError> {
        let key = unwrap(&self.bytes, &purpose(id), wrapped);
        let key = key.and_then(|key| <[u8; KEY_BYTES]>::try_from(&key[..]).ok());
        key.map(Zeroizing::new).ok_or(MasterKeyError::Damaged(id))
    }
}

/// Where master keys come from.
#[derive(Debug)]
enum Source {
    File(Arc<dyn MasterKey>),
    Kms(Arc<Kms>),
}

type Keys = Arc<[Arc<dyn MasterKey>]>;

/// Those that this node has: first the one that wraps, then those that only open. Clones are the same.
#[derive(Debug, Clone)]
pub struct MasterKeys(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sources: Vec<Source>,
    /// At least one.
    keys: RwLock<Keys>,
}

impl MasterKeys {
    /// `None` where the settings name none.
    ///
    /// # Errors
    /// Where a file holds no key, or others may read it; where a service does not say what its keys
    /// are.
    pub async fn read(settings: &config::Encryption) -> Result<Option<Self>, MasterKeyError> {
        if settings.master_key_file.is_none() && settings.kms_command.is_empty() {
            return Ok(None);
        }
        let limit = Duration::from_secs(settings.kms_timeout_seconds);
        let kms = |command: &[String]| Source::Kms(Arc::new(Kms::new(command, limit)));
        let mut sources = Vec::new();
        if !settings.kms_command.is_empty() {
            sources.push(kms(&settings.kms_command));
        }
        for file in settings.master_key_file.iter().chain(&settings.previous_master_key_files) {
            sources.push(Source::File(Arc::new(FileKey::read(file)?)));
        }
        if !settings.previous_kms_command.is_empty() {
            sources.push(kms(&settings.previous_kms_command));
        }
        let keys = keys_of(&sources).await?;
        Ok(Some(Self(Arc::new(Inner { sources, keys: RwLock::new(keys) }))))
    }

    /// Asks services for their keys again: there may be a new one. Files stay what they were.
    ///
    /// # Errors
    /// Where one does not say what its keys are; then those from before count.
    pub async fn refresh(&self) -> Result<(), MasterKeyError> {
        let keys = keys_of(&self.0.sources).await?;
        *self.0.keys.write() = keys;
        Ok(())
    }

    fn keys(&self) -> Keys {
        Arc::clone(&self.0.keys.read())
    }

    pub fn newest(&self) -> Arc<dyn MasterKey> {
        Arc::clone(&self.keys()[0])
    }

    /// The one of that id.
    ///
    /// # Errors
    /// Where this node does not have it.
    pub fn find(&self, id: &str) -> Result<Arc<dyn MasterKey>, Error> {
        let found = self.keys().iter().find(|key| key.id() == id).cloned();
        found.ok_or_else(|| Error::OtherMaster {
            wanted: id.to_owned(),
            has: self.ids().into_iter().collect::<Vec<_>>().join(", "),
        })
    }

    /// Of the first ones, as many as a node says that it has: of a service, versions of long ago are
    /// left out, which open all the same.
    pub fn ids(&self) -> BTreeSet<String> {
        self.keys().iter().take(MASTER_KEYS_MAX).map(|key| key.id().to_owned()).collect()
    }

    /// Sees whether the newest one wraps, and opens what it has wrapped.
    ///
    /// # Errors
    /// Where it does not.
    pub async fn prove(&self) -> Result<(), MasterKeyError> {
        let id = DataKeyId::from_uuid(Uuid::new_v4());
        let key = Zeroizing::new(rand::random::<[u8; KEY_BYTES]>());
        let newest = self.newest();
        let wrapped = newest.wrap(id, &key).await?;
        match newest.unwrap(id, &wrapped).await? == key {
            true => Ok(()),
            false => Err(MasterKeyError::Damaged(id)),
        }
    }
}

/// Each once, in the order of where they come from.
async fn keys_of(sources: &[Source]) -> Result<Keys, MasterKeyError> {
    let mut keys: Vec<Arc<dyn MasterKey>> = Vec::new();
    for source in sources {
        let more = match source {
            Source::File(key) => vec![Arc::clone(key)],
            Source::Kms(kms) => kms.keys().await?,
        };
        for key in more {
            if keys.iter().all(|other| other.id() != key.id()) {
                keys.push(key);
            }
        }
    }
    Ok(keys.into())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use uuid::Uuid;

    use super::*;

    fn read(text: &str, mode: u32) -> Result<FileKey, MasterKeyError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        FileKey::read(&path)
    }

    #[test]
    fn a_file_holds_a_key_as_base64_or_hexadecimal_and_is_nobody_elses() {
        let (hex, base64) = (hex::encode([7; 32]), STANDARD.encode([7; 32]));
        let key = read(&hex, 0o400).unwrap();
        assert_eq!(key.id, read(&format!("{base64}\n"), 0o640).unwrap().id);
        assert_ne!(key.id, read(&hex::encode([8; 32]), 0o400).unwrap().id);
        assert!(!format!("{key:?}").contains("0707"));
        assert!(matches!(read(&hex, 0o404), Err(MasterKeyError::Open(_))));
        for form in ["", "secret", &hex[2..], &STANDARD.encode([7; 31])] {
            let error = read(form, 0o400).unwrap_err();
            assert!(error.to_string().contains("openssl rand -base64 32"), "{error}");
        }
        let nowhere = FileKey::read(Path::new("/nowhere/master")).unwrap_err();
        assert!(matches!(nowhere, MasterKeyError::File { .. }));
    }

    #[tokio::test]
    async fn what_it_wraps_opens_as_that_key_only() {
        let master = FileKey::new(Zeroizing::new([1; 32]));
        let [one, other] = [1, 2].map(|n| DataKeyId::from_uuid(Uuid::from_u128(n)));
        let key = Zeroizing::new([9; 32]);
        let wrapped = master.wrap(one, &key).await.unwrap();
        assert_eq!(master.unwrap(one, &wrapped).await.unwrap(), key);
        assert!(master.unwrap(other, &wrapped).await.is_err());
        let stranger = FileKey::new(Zeroizing::new([2; 32]));
        assert!(stranger.unwrap(one, &wrapped).await.is_err());
    }
}
