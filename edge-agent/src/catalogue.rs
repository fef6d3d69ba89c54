//! What this host knows of images: the last resolution of each reference it was asked for.
//!
//! Serves `list` and `remove`, and the mirror when no node answers. One JSON file for each
//! reference, named by the BLAKE3 of its text, written before it is used and read at the start. One
//! that cannot be written is known until the process ends.
//!
//! Invariants: a resolution is kept as the node gave it, tickets included, so what it allows ends
//! when they expire; at most [`IMAGES_MAX`] are kept, and [`BYTES_MAX`] of them, but for the last
//! one; the least recently resolved go first.
//! Non-goal: chunks; a name here says nothing of what the cache holds.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use shoal_api::{AgentResolution, BlobGrant};
use shoal_content::{Digest, ImageReference, RecipeId, RepositoryName};
use tracing::warn;

use crate::enrolment::{Error, clear_unfinished, read_json, write_json};
use crate::nodes::chain;

/// The most references that are remembered.
const IMAGES_MAX: usize = 4096;
/// The most memory that they take, in bytes: manifests are long where somebody wants them to be.
const BYTES_MAX: usize = 32 << 20;
/// What a blob takes besides its ticket: names and numbers.
const BLOB_BYTES: usize = 256;

/// A reference and what it last meant.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Known {
    pub reference: String,
    /// Milliseconds since the Unix epoch.
    pub resolved_at: u64,
    pub resolution: AgentResolution,
    /// All of it was here, as far as somebody looked; it may have left since.
    #[serde(default)]
    pub was_whole: bool,
}

impl Known {
    /// Every recipe that belongs to it.
    pub fn recipes(&self) -> Vec<RecipeId> {
        let disk = self.resolution.disk.iter().map(|disk| disk.recipe);
        disk.chain(self.resolution.blobs.iter().map(|blob| blob.recipe)).collect()
    }

    /// About what it takes in memory.
    fn bytes(&self) -> usize {
        let AgentResolution { manifest, manifests, blobs, .. } = &self.resolution;
        let manifests: usize = manifests.iter().map(|one| one.content.len() + BLOB_BYTES).sum();
        let blobs: usize = blobs.iter().map(|blob| blob.ticket.len() + BLOB_BYTES).sum();
        self.reference.len() + manifest.len() + manifests + blobs + BLOB_BYTES
    }
}

/// A manifest as it is served: media type and bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub digest: Digest,
    pub media_type: String,
    pub bytes: Vec<u8>,
}

/// A handle; clones share one catalogue.
#[derive(Debug, Clone)]
pub struct Catalogue {
    folder: PathBuf,
    images: Arc<RwLock<HashMap<String, Arc<Known>>>>,
    /// Held over a change and the writing of its file, so that the last change is the one that is kept.
    changing: Arc<Mutex<()>>,
}

impl Catalogue {
    /// Reads what `folder` holds; a damaged file is left out with a warning, since a node knows it
    /// better.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let context =
            |source| Error::Io { doing: "opening the catalogue", path: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(context)?;
        clear_unfinished(folder).map_err(context)?;
        let mut images = HashMap::new();
        for found in fs::read_dir(folder).map_err(context)? {
            let path = found.map_err(context)?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read_json::<Known>(&path) {
                Ok(Some(known)) => {
                    images.insert(known.reference.clone(), Arc::new(known));
                }
                Ok(None) => {}
                Err(error) => warn!(%error, "an image's record is left out"),
            }
        }
        let images = Arc::new(RwLock::new(images));
        let catalogue = Self { folder: folder.to_owned(), images, changing: Arc::default() };
        if let Err(error) = catalogue.shrink(BYTES_MAX) {
            warn!(%error, "an image's record cannot be removed");
        }
        Ok(catalogue)
    }

    /// Remembers what `reference` means now, across the next start where the disk takes it. Blocks on
    /// the disk.
    pub fn remember(&self, reference: &ImageReference, resolution: AgentResolution) -> Arc<Known> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let reference = reference.to_string();
        let resolved_at = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let _changing = self.changing.lock();
        let known = {
            let mut images = self.images.write();
            let was_whole = images.get(&reference).is_some_and(|old| {
                old.was_whole && old.resolution.manifest_digest == resolution.manifest_digest
            });
            let reference = reference.clone();
            let known = Arc::new(Known {
                reference: reference.clone(),
                resolved_at,
                resolution,
                was_whole,
            });
            images.insert(reference, known.clone());
            known
        };
        let kept = [write_json(&self.file(&reference), &*known), self.shrink(BYTES_MAX)];
        for error in kept.into_iter().filter_map(Result::err) {
            let error = chain(&error);
            warn!(reference, error, "an image will be unknown after a restart");
        }
        known
    }

    /// Remembers that all of it is here, where it is known. Blocks on the disk.
    pub fn note_whole(&self, reference: &ImageReference) {
        let reference = reference.to_string();
        let _changing = self.changing.lock();
        let known = {
            let mut images = self.images.write();
            let Some(known) = images.get_mut(&reference) else { return };
            Arc::make_mut(known).was_whole = true;
            known.clone()
        };
        if let Err(error) = write_json(&self.file(&reference), &*known) {
            let error = chain(&error);
            warn!(reference, error, "that an image is here is unknown after a restart");
        }
    }

    /// Forgets the oldest while there are too many, or they take more than `bytes_max`.
    fn shrink(&self, bytes_max: usize) -> Result<(), Error> {
        let oldest = {
            let images = self.images.read();
            let mut bytes: usize = images.values().map(|known| known.bytes()).sum();
            if images.len() <= IMAGES_MAX && bytes <= bytes_max {
                return Ok(());
            }
            let mut all: Vec<_> = images.values().collect();
            all.sort_unstable_by_key(|known| known.resolved_at);
            let mut oldest = Vec::new();
            // The last one was asked for just now.
            for known in &all[..all.len() - 1] {
                if all.len() - oldest.len() <= IMAGES_MAX && bytes <= bytes_max {
                    break;
                }
                bytes -= known.bytes();
                oldest.push(known.reference.clone());
            }
            oldest
        };
        oldest.iter().try_for_each(|reference| self.drop_record(reference).map(drop))
    }

    /// Forgets a reference; gives what it meant.
    pub fn forget(&self, reference: &str) -> Result<Option<Arc<Known>>, Error> {
        let _changing = self.changing.lock();
        self.drop_record(reference)
    }

    fn drop_record(&self, reference: &str) -> Result<Option<Arc<Known>>, Error> {
        let known = self.images.write().remove(reference);
        let path = self.file(reference);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::Io { doing: "removing", path, source })
            }
            _ => Ok(known),
        }
    }

    pub fn find(&self, reference: &ImageReference) -> Option<Arc<Known>> {
        self.images.read().get(&reference.to_string()).cloned()
    }

    /// All of them, by reference.
    pub fn all(&self) -> Vec<Arc<Known>> {
        let mut all: Vec<_> = self.images.read().values().cloned().collect();
        all.sort_by(|a, b| a.reference.cmp(&b.reference));
        all
    }

    /// A manifest of `name` by digest, from any resolution of that repository.
    pub fn manifest(&self, name: &RepositoryName, digest: &Digest) -> Option<Manifest> {
        let images = self.images.read();
        let mut of_name = images.values().filter(|known| known.resolution.image == *name);
        of_name.find_map(|known| manifest_in(&known.resolution, digest))
    }

    /// The latest right to a blob of `name`.
    pub fn blob(&self, name: &RepositoryName, digest: &Digest) -> Option<BlobGrant> {
        let images = self.images.read();
        let of_name = images.values().filter(|known| known.resolution.image == *name);
        let grants = of_name.filter_map(|known| {
            let grant = known.resolution.blobs.iter().find(|blob| blob.digest == *digest)?;
            Some((known.resolved_at, grant))
        });
        grants.max_by_key(|(resolved_at, _)| *resolved_at).map(|(_, grant)| grant.clone())
    }

    /// When a node last said that `name` holds `digest`, be it a manifest or a blob; in
    /// milliseconds since the epoch.
    pub fn held_at(&self, name: &RepositoryName, digest: &Digest) -> Option<u64> {
        let images = self.images.read();
        let of_name = images.values().filter(|known| known.resolution.image == *name);
        let holding = of_name.filter(|known| {
            let AgentResolution { manifest_digest, manifests, blobs, .. } = &known.resolution;
            manifest_digest == digest
                || manifests.iter().any(|manifest| manifest.digest == *digest)
                || blobs.iter().any(|blob| blob.digest == *digest)
        });
        holding.map(|known| known.resolved_at).max()
    }

    /// When a node last spoke of `name`, where it then said that anyone may pull it.
    pub fn public_at(&self, name: &RepositoryName) -> Option<u64> {
        let images = self.images.read();
        let of_name = images.values().filter(|known| known.resolution.image == *name);
        let last = of_name.max_by_key(|known| known.resolved_at)?;
        last.resolution.public.then_some(last.resolved_at)
    }

    /// A reference to `name` that some node knew, to ask about one more of its blobs.
    pub fn any_reference(&self, name: &RepositoryName) -> Option<ImageReference> {
        let images = self.images.read();
        let of_name = images.values().filter(|known| known.resolution.image == *name);
        of_name.max_by_key(|known| known.resolved_at).and_then(|known| known.reference.parse().ok())
    }

    fn file(&self, reference: &str) -> PathBuf {
        let hash = blake3::hash(reference.as_bytes()).to_hex();
        self.folder.join(format!("{}.json", &hash[..32]))
    }
}

/// The manifest `digest` out of a resolution: the one it is for, or one below its index.
pub fn manifest_in(resolution: &AgentResolution, digest: &Digest) -> Option<Manifest> {
    let decode = |media_type: &String, content: &String| {
        let bytes = STANDARD.decode(content).ok()?;
        Some(Manifest { digest: digest.clone(), media_type: media_type.clone(), bytes })
    };
    if resolution.manifest_digest == *digest {
        return decode(&resolution.media_type, &resolution.manifest);
    }
    let found = resolution.manifests.iter().find(|manifest| manifest.digest == *digest)?;
    decode(&found.media_type, &found.content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolution(name: &str, seed: u8) -> AgentResolution {
        AgentResolution {
            image: name.parse().unwrap(),
            kind: "container".into(),
            public: seed.is_multiple_of(2),
            version: "ver".into(),
            manifest_digest: Digest::sha256([seed; 32]),
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            manifest: STANDARD.encode(b"{}"),
            manifests: Vec::new(),
            disk: None,
            blobs: vec![BlobGrant {
                digest: Digest::sha256([seed + 1; 32]),
                size_bytes: 3,
                recipe: RecipeId::of(&[seed]),
                ticket: "t".into(),
            }],
            warning: None,
            awaited: None,
        }
    }

    #[test]
    fn remembers_across_a_restart_and_keeps_repositories_apart() {
        let folder = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::open(folder.path()).unwrap();
        let reference: ImageReference = "demo/app:v1".parse().unwrap();
        catalogue.remember(&reference, resolution("demo/app", 1));
        fs::write(folder.path().join("damaged.json"), b"[").unwrap();
        fs::write(folder.path().join("half.new"), b"[").unwrap();

        let catalogue = Catalogue::open(folder.path()).unwrap();
        assert!(!folder.path().join("half.new").exists());
        let (app, other) = ("demo/app".parse().unwrap(), "demo/other".parse().unwrap());
        let digest = Digest::sha256([1; 32]);
        assert_eq!(catalogue.manifest(&app, &digest).unwrap().bytes, b"{}");
        assert!(catalogue.manifest(&other, &digest).is_none());
        assert!(catalogue.blob(&app, &Digest::sha256([2; 32])).is_some());
        assert!(catalogue.blob(&other, &Digest::sha256([2; 32])).is_none());
        assert_eq!(catalogue.any_reference(&app), Some(reference.clone()));
        for held in [&digest, &Digest::sha256([2; 32])] {
            assert!(catalogue.held_at(&app, held).is_some());
            assert!(catalogue.held_at(&other, held).is_none());
        }
        assert!(catalogue.held_at(&app, &Digest::sha256([3; 32])).is_none());
        assert!(catalogue.public_at(&app).is_none());
        catalogue.remember(&"demo/other:v1".parse().unwrap(), resolution("demo/other", 4));
        assert!(catalogue.public_at(&other).is_some());
        catalogue.forget("demo/other:v1").unwrap();
        assert_eq!(catalogue.all().len(), 1);

        // What was here whole is the same version's, and is remembered with it.
        let was_whole = |catalogue: &Catalogue| catalogue.find(&reference).unwrap().was_whole;
        assert!(!was_whole(&catalogue));
        catalogue.note_whole(&reference);
        let catalogue = Catalogue::open(folder.path()).unwrap();
        assert!(was_whole(&catalogue));
        catalogue.remember(&reference, resolution("demo/app", 1));
        assert!(was_whole(&catalogue));
        catalogue.remember(&reference, resolution("demo/app", 7));
        assert!(!was_whole(&catalogue));

        catalogue.forget(&reference.to_string()).unwrap().unwrap();
        assert!(Catalogue::open(folder.path()).unwrap().find(&reference).is_none());
    }

    #[test]
    fn the_oldest_go_where_they_take_too_much_and_the_last_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::open(folder.path()).unwrap();
        let reference = |number: u64| format!("demo/app:v{number}");
        for number in 0..4 {
            let mut long = resolution("demo/app", 1);
            long.manifest = "x".repeat(10_000);
            catalogue.remember(&reference(number).parse().unwrap(), long);
            // In this order, however fast the clock goes.
            let mut images = catalogue.images.write();
            let known = images.get_mut(&reference(number)).unwrap();
            Arc::make_mut(known).resolved_at = number;
        }
        let left = |bytes_max| {
            catalogue.shrink(bytes_max).unwrap();
            catalogue.all().iter().map(|known| known.reference.clone()).collect::<Vec<_>>()
        };
        assert_eq!(left(100_000).len(), 4);
        assert_eq!(left(25_000), [reference(2), reference(3)]);
        assert_eq!(left(0), [reference(3)]);
        assert_eq!(Catalogue::open(folder.path()).unwrap().all().len(), 1);
    }

    #[test]
    fn an_image_that_cannot_be_kept_is_known_until_the_process_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("images");
        let catalogue = Catalogue::open(&path).unwrap();
        fs::remove_dir(&path).unwrap();
        let reference: ImageReference = "demo/app:v1".parse().unwrap();
        let known = catalogue.remember(&reference, resolution("demo/app", 1));
        assert_eq!(known.reference, reference.to_string());
        assert!(catalogue.find(&reference).is_some());
        assert!(Catalogue::open(&path).unwrap().all().is_empty());
    }
}
