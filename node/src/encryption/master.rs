//! Master keys: what wraps data keys, and is never among the metadata.
//!
//! A key in a file is one kind; a service that holds keys and never gives them out is another
//! implementation of [`MasterKey`].

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use shoal_content::DataKeyId;
use zeroize::Zeroizing;

use super::Error;
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
    /// A service that did not answer.
    #[error("the master key {id} cannot be asked: {reason}")]
    Unavailable { id: String, reason: String },
}

/// Wraps data keys. What was wrapped for one data key opens as no other.
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

fn purpose(id: DataKeyId) -> Vec<u8> {
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

/// Those that this node has: first the one that wraps, then those that only open.
#[derive(Debug, Clone)]
pub struct MasterKeys(Arc<[Arc<dyn MasterKey>]>);

impl MasterKeys {
    /// `None` where the settings name none.
    ///
    /// # Errors
    /// Where a file holds no key, or others may read it.
    pub fn read(settings: &config::Encryption) -> Result<Option<Self>, MasterKeyError> {
        let Some(first) = &settings.master_key_file else { return Ok(None) };
        let files = [first].into_iter().chain(&settings.previous_master_key_files);
        let keys: Result<Vec<Arc<dyn MasterKey>>, MasterKeyError> =
            files.map(|file| Ok(Arc::new(FileKey::read(file)?) as Arc<dyn MasterKey>)).collect();
        Ok(Some(Self(keys?.into())))
    }

    pub fn newest(&self) -> &dyn MasterKey {
        &*self.0[0]
    }

    /// The one of that id.
    ///
    /// # Errors
    /// Where this node does not have it.
    pub fn find(&self, id: &str) -> Result<&dyn MasterKey, Error> {
        let found = self.0.iter().find(|key| key.id() == id);
        found.map(|key| &**key).ok_or_else(|| Error::OtherMaster {
            wanted: id.to_owned(),
            has: self.ids().into_iter().collect::<Vec<_>>().join(", "),
        })
    }

    pub fn ids(&self) -> BTreeSet<String> {
        self.0.iter().map(|key| key.id().to_owned()).collect()
    }
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
