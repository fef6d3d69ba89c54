//! Storage of the kind that the settings name, opened, with what stands before it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use prometheus_client::registry::Registry;
use tracing::warn;
use zeroize::Zeroizing;

use crate::config::{Config, StorageKind};
use crate::encryption::DataKeys;
use crate::home::Home;
use crate::metrics::CacheReads;
use crate::store::{BlobStore, CachedStore, FolderStore, S3Settings, S3Store, SealedStore};

/// How long a node that starts waits for storage that does not answer.
const DEADLINE: Duration = Duration::from_secs(120);
const INTERVAL: Duration = Duration::from_secs(1);

/// A node that starts while storage is away waits for it, as one that runs does.
async fn open_bucket(settings: &S3Settings) -> Result<S3Store> {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        match S3Store::open(settings).await {
            Err(error) if error.is_retryable() && tokio::time::Instant::now() < deadline => {
                warn!(%error, "storage cannot be opened yet");
                tokio::time::sleep(INTERVAL).await;
            }
            opened => return Ok(opened?),
        }
    }
}

/// Storage as the node uses it, and itself, without a cache before it.
pub(crate) struct Stores {
    pub(crate) front: Arc<dyn BlobStore>,
    pub(crate) behind: Arc<dyn BlobStore>,
}

impl Stores {
    /// The same, with everything sealed that comes; and the one behind by itself.
    pub(crate) fn sealed(self, keys: &DataKeys) -> (Self, SealedStore) {
        let Self { front, behind } = self;
        let sealed = |store: &Arc<dyn BlobStore>| {
            let keys = Arc::new(keys.clone());
            SealedStore::new(Arc::clone(store), Arc::clone(&behind), keys)
        };
        let (front, behind) = (Arc::new(sealed(&front)), sealed(&behind));
        (Self { front, behind: Arc::new(behind.clone()) }, behind)
    }
}

/// # Errors
/// With what cannot be opened, or does not answer in time.
pub(crate) async fn open_store(
    config: &Config,
    home: &Home,
    reads: &CacheReads,
    registry: &mut Registry,
) -> Result<Stores> {
    let storage = &config.storage;
    Ok(match storage.kind {
        StorageKind::Folder => {
            let path = storage.path.clone().unwrap_or_else(|| home.storage_folder());
            let store = Arc::new(FolderStore::open(&path, storage.reserve_bytes)?);
            Stores { front: Arc::clone(&store) as Arc<dyn BlobStore>, behind: store }
        }
        StorageKind::S3 => {
            let secret_key = match &storage.secret_key_file {
                Some(path) => read_secret(path)?,
                None => Zeroizing::new(storage.secret_key.clone()),
            };
            let settings = S3Settings {
                endpoint: storage.endpoint.clone(),
                redirect_endpoint: storage.redirect_endpoint.clone(),
                region: storage.region.clone(),
                bucket: storage.bucket.clone(),
                access_key: storage.access_key.clone(),
                secret_key,
                path_style: storage.path_style,
            };
            let behind: Arc<dyn BlobStore> = Arc::new(open_bucket(&settings).await?);
            let front: Arc<dyn BlobStore> = match storage.cache_bytes {
                0 => Arc::clone(&behind),
                most => {
                    let behind = Arc::clone(&behind);
                    Arc::new(CachedStore::open(
                        behind,
                        &home.cache_folder(),
                        most,
                        reads.clone(),
                        registry,
                    )?)
                }
            };
            Stores { front, behind }
        }
    })
}

fn read_secret(path: &Path) -> Result<Zeroizing<String>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("the secret key file {} cannot be read", path.display()))?;
    Ok(Zeroizing::new(text.trim().to_owned()))
}
