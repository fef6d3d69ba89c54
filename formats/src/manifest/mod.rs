//! skeleton
use shoal_content::Digest;
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;

pub const MANIFEST_BYTES_MAX: usize = 4 * 1024 * 1024;
pub const REFERENCES_MAX: usize = 16 * 1024;

/// The media types of manifests.
pub mod media_type {
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ManifestKind {
    Image,
    Index,
}

/// What must be there for a manifest to be whole.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reference {
    /// A config or a layer.
    Blob { digest: Digest, size: u64 },
    /// A manifest of an index.
    Manifest { digest: Digest, size: u64 },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedManifest {
    pub media_type: String,
    pub kind: ManifestKind,
    pub references: BTreeSet<Reference>,
    pub subject: Option<Digest>,
    /// As said, else the config's media type (image manifests only).
    pub artifact_type: Option<String>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ManifestError {
    #[error("the manifest is longer than {MANIFEST_BYTES_MAX} bytes")]
    TooLong,
}

pub fn parse_manifest(
    media_type: Option<&str>,
    bytes: &[u8],
) -> Result<ParsedManifest, ManifestError> {
    let _ = (media_type, bytes);
    todo!()
}
