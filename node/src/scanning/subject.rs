//! What of a version the scanner is to look at: a disk, or one container image.
//!
//! Of an index, which lists an image for each platform, one is scanned: that for `linux/amd64`, else
//! the first one for a known platform.
//!
//! Non-goal: how the scanner gets it; see `source` and `disk`.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;
use shoal_content::{Digest, ImageId, ObjectKey, RecipeId};
use shoal_metadata::{Fault, Query, Read, Reference, ScanKey, Version};
use thiserror::Error;

/// Media types of a container image's configuration.
const CONFIGURATIONS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// Why a version cannot be scanned.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unfit {
    #[error("version_gone: the version is not there any more")]
    Gone,
    #[error("not_an_image: this is neither a disk nor a container image")]
    NotAnImage,
    #[error("no_platform: the index lists no image that is here for a known platform")]
    NoPlatform,
    #[error("not_here_yet: {0} parts of the image were not pulled from its upstream yet")]
    Awaited(usize),
}

/// What is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    Disk { recipe: RecipeId, content_bytes: u64 },
    Image(Box<Manifest>),
}

/// A container image: its manifest, and where the blobs lie that it refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub digest: Digest,
    pub media_type: String,
    pub bytes: Bytes,
    /// With their lengths.
    pub blobs: BTreeMap<Digest, (ObjectKey, u64)>,
}

#[derive(Deserialize)]
struct Said {
    config: Option<Configuration>,
    manifests: Option<Vec<Listed>>,
}

#[derive(Deserialize)]
struct Configuration {
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
}

#[derive(Deserialize)]
struct Listed {
    digest: Option<String>,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    os: Option<String>,
    architecture: Option<String>,
}

impl Platform {
    /// The lower, the sooner it is taken.
    fn rank(&self) -> Option<u8> {
        let (os, architecture) = (self.os.as_deref()?, self.architecture.as_deref()?);
        match (os, architecture) {
            ("linux", "amd64") => Some(0),
            // What is attached to images stands in indexes like that.
            ("unknown", _) | (_, "unknown") => None,
            _ => Some(1),
        }
    }
}

/// # Errors
/// The inner error is an answer; the outer one says that the rows could not be read.
pub fn of<R: Read>(query: Query<'_, R>, of: &ScanKey) -> Result<Result<Subject, Unfit>, Fault> {
    let Some(version) = query.version(of.image, &of.digest)? else { return Ok(Err(Unfit::Gone)) };
    if let Some(disk) = &version.disk {
        let (recipe, content_bytes) = (disk.recipe, disk.content_bytes);
        return Ok(Ok(Subject::Disk { recipe, content_bytes }));
    }
    let said = said(query, of.image, &of.digest)?;
    let Some(listed) = said.manifests.filter(|_| said.config.is_none()) else {
        return image(query, version);
    };
    let mut children: Vec<(u8, Digest)> = listed
        .into_iter()
        .filter_map(|one| Some((one.platform?.rank()?, one.digest?.parse().ok()?)))
        .collect();
    // Those of one rank stay in their order.
    children.sort_by_key(|(rank, _)| *rank);
    for (_, child) in children {
        if let Some(version) = query.version(of.image, &child)? {
            return image(query, version);
        }
    }
    Ok(Err(Unfit::NoPlatform))
}

fn said<R: Read>(query: Query<'_, R>, image: ImageId, digest: &Digest) -> Result<Said, Fault> {
    let manifest = query.manifest(image, digest)?.unwrap_or_default();
    Ok(serde_json::from_slice(&manifest).unwrap_or(Said { config: None, manifests: None }))
}

fn image<R: Read>(query: Query<'_, R>, version: Version) -> Result<Result<Subject, Unfit>, Fault> {
    let Version { image, digest, media_type, references, .. } = version;
    let configuration = said(query, image, &digest)?.config.and_then(|config| config.media_type);
    if !configuration.is_some_and(|it| CONFIGURATIONS.contains(&it.as_str())) {
        return Ok(Err(Unfit::NotAnImage));
    }
    let awaited = query.awaited_by(image, &digest)?.len();
    if awaited > 0 {
        return Ok(Err(Unfit::Awaited(awaited)));
    }
    let mut blobs = BTreeMap::new();
    for reference in references {
        let Reference::Blob { digest, size } = reference else { continue };
        let blob = query.blob(&digest)?.ok_or(Fault::Contradiction("a reference names no blob"))?;
        blobs.insert(digest, (blob.object, size));
    }
    let bytes = Bytes::from(query.manifest(image, &digest)?.unwrap_or_default());
    Ok(Ok(Subject::Image(Box::new(Manifest { digest, media_type, bytes, blobs }))))
}
