//! What an OCI or Docker manifest refers to.
//!
//! Reads image manifests and indexes (image-spec v1.1, "Image Manifest" and "Image Index") and
//! Docker's schema 2 of both. The bytes are never changed: their digest names the version.
//!
//! Invariants: what is read costs memory in proportion to at most [`MANIFEST_BYTES_MAX`]; unknown
//! fields are ignored; a layer that may not be pushed is no reference.
//! Non-goals: whether what is referred to is there.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use shoal_content::{Digest, DigestError};
use thiserror::Error;

/// The longest manifest that is read, in bytes.
pub const MANIFEST_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The most references of one manifest.
pub const REFERENCES_MAX: usize = 16 * 1024;
/// The longest artifact type, in bytes. A media type has at most 255 (RFC 6838, 4.2), and what is
/// said behind it.
const ARTIFACT_TYPE_BYTES_MAX: usize = 1024;

/// The media types of manifests.
pub mod media_type {
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

    /// What the types of such layers begin with (image-spec v1.1, "Non-Distributable Layers";
    /// docker's manifest v2, schema 2, "Media Types").
    pub const FOREIGN_LAYERS: [&str; 2] = [
        "application/vnd.oci.image.layer.nondistributable.",
        "application/vnd.docker.image.rootfs.foreign.",
    ];
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ManifestKind {
    Image,
    Index,
}

impl ManifestKind {
    fn of(media_type: &str) -> Option<Self> {
        match media_type {
            media_type::OCI_MANIFEST | media_type::DOCKER_MANIFEST => Some(Self::Image),
            media_type::OCI_INDEX | media_type::DOCKER_LIST => Some(Self::Index),
            _ => None,
        }
    }
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
    /// Layers that need not be pushed: their media types are deprecated (image-spec v1.1,
    /// "Non-Distributable Layers").
    pub foreign_layers: BTreeSet<Reference>,
    pub subject: Option<Digest>,
    /// As said, else the config's media type (image manifests only).
    pub artifact_type: Option<String>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ManifestError {
    #[error("the manifest is longer than {MANIFEST_BYTES_MAX} bytes")]
    TooLong,
    #[error("the manifest is no JSON of the expected shape: {0}")]
    Json(String),
    #[error("the schemaVersion is {0}; only 2 is supported")]
    SchemaVersion(u64),
    #[error("the media type '{0}' is not that of a manifest or an index")]
    MediaType(String),
    #[error("the Content-Type says '{header}', the manifest says '{manifest}'")]
    MediaTypesDiffer { header: String, manifest: String },
    #[error("a manifest has {0}, which its kind must not have or must have")]
    Shape(&'static str),
    #[error("the manifest refers to '{text}': {error}")]
    Digest { text: String, error: DigestError },
    #[error("the manifest has more than {REFERENCES_MAX} references")]
    TooManyReferences,
    #[error("the artifact type is longer than {ARTIFACT_TYPE_BYTES_MAX} bytes")]
    ArtifactType,
}

/// The fields that matter, of both kinds. A field that stands twice is refused.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u64,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    #[serde(default, deserialize_with = "list")]
    layers: List,
    #[serde(default, deserialize_with = "list")]
    manifests: List,
    subject: Option<Descriptor>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// Absent, or `null`, which is how programs in Go write an empty list, or a list.
type List = Option<Option<Vec<Descriptor>>>;

fn list<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<List, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// `null` is none of the lists that a manifest of the other kind has.
fn says_something(list: &List) -> bool {
    matches!(list, Some(Some(_)))
}

fn members(list: &List) -> Option<&[Descriptor]> {
    list.as_ref().map(|list| list.as_deref().unwrap_or_default())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: Option<String>,
    digest: String,
    size: u64,
}

impl Descriptor {
    fn digest(&self) -> Result<Digest, ManifestError> {
        self.digest.parse().map_err(|error| ManifestError::Digest {
            text: self.digest.chars().take(160).collect(),
            error,
        })
    }

    /// Foreign layers lie elsewhere and need not be pushed (image-spec, "Non-Distributable
    /// Layers").
    fn is_distributable(&self) -> bool {
        let media_type = self.media_type.as_deref().unwrap_or_default();
        !media_type::FOREIGN_LAYERS.iter().any(|begin| media_type.starts_with(begin))
    }

    fn blob(&self) -> Result<Reference, ManifestError> {
        Ok(Reference::Blob { digest: self.digest()?, size: self.size })
    }
}

/// Reads a manifest; `header` is the `Content-Type` it came with.
///
/// # Errors
/// What makes it no manifest that can be stored; see [`ManifestError`].
pub fn parse_manifest(header: Option<&str>, bytes: &[u8]) -> Result<ParsedManifest, ManifestError> {
    if bytes.len() > MANIFEST_BYTES_MAX {
        return Err(ManifestError::TooLong);
    }
    // serde_json bounds the depth of nesting by itself.
    let document: Document =
        serde_json::from_slice(bytes).map_err(|error| ManifestError::Json(error.to_string()))?;
    if document.schema_version != 2 {
        return Err(ManifestError::SchemaVersion(document.schema_version));
    }
    let media_type = media_type_of(header, &document)?;
    let kind = ManifestKind::of(&media_type)
        .ok_or_else(|| ManifestError::MediaType(media_type.chars().take(160).collect()))?;
    let references = match kind {
        ManifestKind::Image => image_references(&document)?,
        ManifestKind::Index => index_references(&document)?,
    };
    let subject = document.subject.as_ref().map(Descriptor::digest).transpose()?;
    let layers = members(&document.layers).unwrap_or_default();
    // One whose digest nobody here could check is not to be had here.
    let foreign_layers = layers.iter().filter(|layer| !layer.is_distributable());
    let foreign_layers: BTreeSet<Reference> =
        foreign_layers.filter_map(|layer| layer.blob().ok()).collect();
    if references.len().saturating_add(foreign_layers.len()) > REFERENCES_MAX {
        return Err(ManifestError::TooManyReferences);
    }
    let config_type = document.config.and_then(|config| config.media_type);
    let said = |text: &String| !text.is_empty();
    let artifact_type = document.artifact_type.filter(said).or(match kind {
        ManifestKind::Image => config_type,
        ManifestKind::Index => None,
    });
    if artifact_type.as_ref().is_some_and(|text| text.len() > ARTIFACT_TYPE_BYTES_MAX) {
        return Err(ManifestError::ArtifactType);
    }
    Ok(ParsedManifest {
        artifact_type,
        annotations: document.annotations.unwrap_or_default(),
        media_type,
        kind,
        references,
        foreign_layers,
        subject,
    })
}

/// The manifest's own word and the header's must agree where both speak. Where neither does, the
/// shape decides, as the specification lets old OCI manifests go without.
fn media_type_of(header: Option<&str>, document: &Document) -> Result<String, ManifestError> {
    let header = header
        .map(|header| header.split(';').next().unwrap_or_default().trim())
        .filter(|header| !header.is_empty() && *header != "application/json");
    match (header, document.media_type.as_deref()) {
        (Some(header), Some(manifest)) if header != manifest => {
            Err(ManifestError::MediaTypesDiffer {
                header: header.chars().take(160).collect(),
                manifest: manifest.chars().take(160).collect(),
            })
        }
        (Some(said), _) | (None, Some(said)) => Ok(said.to_owned()),
        (None, None) if says_something(&document.manifests) => Ok(media_type::OCI_INDEX.to_owned()),
        (None, None) => Ok(media_type::OCI_MANIFEST.to_owned()),
    }
}

fn image_references(document: &Document) -> Result<BTreeSet<Reference>, ManifestError> {
    if says_something(&document.manifests) {
        return Err(ManifestError::Shape("manifests"));
    }
    let config = document.config.as_ref().ok_or(ManifestError::Shape("config"))?;
    let layers = members(&document.layers).ok_or(ManifestError::Shape("layers"))?;
    let needed = layers.iter().filter(|layer| layer.is_distributable());
    needed.chain([config]).map(Descriptor::blob).collect()
}

fn index_references(document: &Document) -> Result<BTreeSet<Reference>, ManifestError> {
    if says_something(&document.layers) || document.config.is_some() {
        return Err(ManifestError::Shape("layers or config"));
    }
    let manifests = members(&document.manifests).ok_or(ManifestError::Shape("manifests"))?;
    let reference = |child: &Descriptor| {
        let (digest, size) = (child.digest()?, child.size);
        // Also other content may be listed (image-spec, "Image Index"), as BuildKit's cache does.
        let other = child.media_type.as_deref().is_some_and(|of| ManifestKind::of(of).is_none());
        Ok(if other {
            Reference::Blob { digest, size }
        } else {
            Reference::Manifest { digest, size }
        })
    };
    manifests.iter().map(reference).collect()
}

#[cfg(test)]
mod tests;
