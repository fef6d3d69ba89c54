//! Writes a container image as an OCI image layout (image-spec, "Image Layout").
//!
//! Blobs and manifests first, each under its digest and checked against it, `index.json` last: a
//! folder with an index is complete. Blobs that are there already are kept when they check.
//!
//! Blocks on the disk. The caller holds leases on the recipes.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use sha2::{Digest as _, Sha256, Sha512};
use shoal_api::AgentResolution;
use shoal_content::{Algorithm, Digest, ImageReference, Pin};
use thiserror::Error;

use super::Beside;
use crate::cache::{self, Cache};

const COPY_BYTES: usize = 1 << 20;
const INDEX_MEDIA_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// Why a layout was not written.
#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    Output(#[from] super::Error),
    #[error("the cached content cannot be read")]
    Cache(#[from] cache::Error),
    #[error("{0} is not in the cache")]
    Missing(Digest),
    #[error("{chunks} chunks of {digest} in the cache were corrupt and are to be fetched again")]
    Corrupt { digest: Digest, chunks: usize },
    #[error("the content of {0} does not have that digest; nothing was written for it")]
    Mismatch(Digest),
    #[error("the manifest {0} could not be read from the node's answer")]
    Manifest(Digest),
}

impl Error {
    /// Whether our own copy of a blob may be at fault.
    fn may_be_our_copy(&self) -> bool {
        match self {
            Self::Mismatch(_) => true,
            Self::Output(super::Error::Io { source, .. }) => cache::is_unreadable(source),
            _ => false,
        }
    }
}

/// Writes everything that `resolution` refers to below `folder`.
pub fn write(
    cache: &Cache,
    reference: &ImageReference,
    resolution: &AgentResolution,
    folder: &Path,
) -> Result<(), Error> {
    fs::create_dir_all(folder).map_err(|e| io_error("creating", folder, e))?;
    for blob in &resolution.blobs {
        let entry = cache.entry(blob.recipe).ok_or_else(|| Error::Missing(blob.digest.clone()))?;
        let loaded = entry.load()?;
        let mut source = Content { file: &loaded.content, at: 0 };
        match put(folder, &blob.digest, &mut source) {
            // What is rotten of it is dropped, and a fetch brings it again.
            Err(error) if error.may_be_our_copy() => {
                return Err(match super::drop_corrupt(cache, &entry)? {
                    0 => error,
                    chunks => Error::Corrupt { digest: blob.digest.clone(), chunks },
                });
            }
            outcome => outcome?,
        }
    }
    let top = [(&resolution.manifest_digest, &resolution.manifest)];
    let below = resolution.manifests.iter().map(|m| (&m.digest, &m.content));
    let mut top_bytes = 0;
    for (digest, content) in below.chain(top) {
        let bytes = STANDARD.decode(content).map_err(|_| Error::Manifest(digest.clone()))?;
        top_bytes = bytes.len();
        put(folder, digest, &mut bytes.as_slice())?;
    }
    let mut descriptor = json!({
        "mediaType": resolution.media_type,
        "digest": resolution.manifest_digest,
        "size": top_bytes,
    });
    if let Pin::Tag(tag) = &reference.pin {
        descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": INDEX_MEDIA_TYPE,
        "manifests": [descriptor],
    });
    small(&folder.join("oci-layout"), b"{\"imageLayoutVersion\":\"1.0.0\"}")?;
    small(&folder.join("index.json"), index.to_string().as_bytes())
}

/// Reads a cached content file from its start, without moving a shared cursor.
struct Content<'a> {
    file: &'a File,
    at: u64,
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Writes `source` under `digest`, unless that is there already.
fn put(folder: &Path, digest: &Digest, source: &mut dyn Read) -> Result<(), Error> {
    let parent = folder.join("blobs").join(digest.algorithm().as_str());
    fs::create_dir_all(&parent).map_err(|e| io_error("creating", &parent, e))?;
    let path = parent.join(digest.encoded());
    if let Ok(mut there) = File::open(&path)
        && pass(&mut there, digest, |_, _| Ok(())).is_ok_and(|found| found)
    {
        return Ok(());
    }
    let beside = Beside::create(&path)?;
    let copied = pass(source, digest, |part, at| beside.file().write_all_at(part, at));
    if !copied.map_err(beside.error("writing"))? {
        return Err(Error::Mismatch(digest.clone()));
    }
    beside.finish().map_err(Error::Output)
}

/// Reads `source` to its end through `take`; whether it has `digest`.
fn pass(
    source: &mut dyn Read,
    digest: &Digest,
    mut take: impl FnMut(&[u8], u64) -> io::Result<()>,
) -> io::Result<bool> {
    let (mut sha256, mut sha512) = (Sha256::new(), Sha512::new());
    let mut buffer = vec![0; COPY_BYTES];
    let mut at = 0;
    loop {
        let read = source.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        match digest.algorithm() {
            Algorithm::Sha256 => sha256.update(&buffer[..read]),
            Algorithm::Sha512 => sha512.update(&buffer[..read]),
        }
        take(&buffer[..read], at)?;
        at += read as u64;
    }
    Ok(match digest.algorithm() {
        Algorithm::Sha256 => sha256.finalize()[..] == *digest.as_bytes(),
        Algorithm::Sha512 => sha512.finalize()[..] == *digest.as_bytes(),
    })
}

fn small(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let beside = Beside::create(path)?;
    beside.file().write_all_at(bytes, 0).map_err(beside.error("writing"))?;
    beside.finish().map_err(Error::Output)
}

fn io_error(doing: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Output(super::Error::Io { doing, path: PathBuf::from(path), source })
}
