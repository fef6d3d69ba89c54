//! The OCI artifact manifest of a disk version (image-spec, "Guidelines for Artifact Usage").
//!
//! Invariant: the same recipe, number and format give the same bytes, so that an ingest that is
//! done twice publishes one version. Nothing of storage stands in it.

use serde_json::json;
use sha2::{Digest as _, Sha256};
use shoal_content::{Digest, RecipeId};
use shoal_formats::Format;
use std::collections::BTreeMap;

/// What the artifact is.
pub const ARTIFACT_TYPE: &str = "application/vnd.shoal.disk.v1";
pub const MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
const EMPTY: &[u8] = b"{}";
/// [`EMPTY`] in base64, as a descriptor's `data`.
const EMPTY_BASE64: &str = "e30=";

/// What a disk's manifest says.
#[derive(Debug, Clone)]
pub struct DiskManifest<'a> {
    pub recipe: RecipeId,
    pub number: &'a str,
    pub virtual_bytes: u64,
    pub content_bytes: u64,
    pub source_format: Format,
}

impl DiskManifest<'_> {
    pub fn annotations(&self) -> BTreeMap<String, String> {
        let pairs = [
            ("io.shoal.disk.content-bytes", self.content_bytes.to_string()),
            ("io.shoal.disk.recipe", self.recipe.to_string()),
            ("io.shoal.disk.source-format", self.source_format.to_string()),
            ("io.shoal.disk.virtual-bytes", self.virtual_bytes.to_string()),
            ("org.opencontainers.image.version", self.number.to_owned()),
        ];
        pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// The manifest and its digest.
    pub fn encode(&self) -> (Vec<u8>, Digest) {
        let empty = json!({
            "mediaType": EMPTY_TYPE,
            "digest": sha256(EMPTY).to_string(),
            "size": EMPTY.len(),
            "data": EMPTY_BASE64,
        });
        // Keys come in byte order: serde_json's map is a tree.
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MEDIA_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": empty,
            "layers": [empty],
            "annotations": self.annotations(),
        });
        let bytes = manifest.to_string().into_bytes();
        let digest = sha256(&bytes);
        (bytes, digest)
    }
}

fn sha256(bytes: &[u8]) -> Digest {
    Digest::sha256(Sha256::digest(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_disk_has_the_same_manifest() {
        let manifest = DiskManifest {
            recipe: RecipeId::of(b"r"),
            number: "1.0.0",
            virtual_bytes: 5,
            content_bytes: 3,
            source_format: Format::Qcow2,
        };
        let (bytes, digest) = manifest.encode();
        assert_eq!(manifest.encode(), (bytes.clone(), digest.clone()));
        assert_eq!(digest, sha256(&bytes));
        let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        // The well-known digest of the empty descriptor (image-spec, descriptor.md).
        let empty = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
        assert_eq!(value["config"]["digest"], empty);
        let other = DiskManifest { number: "1.0.1", ..manifest };
        assert_ne!(other.encode().1, digest);
    }
}
