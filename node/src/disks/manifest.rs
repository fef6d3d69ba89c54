//! The OCI artifact manifest of a disk version (image-spec, "Guidelines for Artifact Usage").
//!
//! Its one layer is the disk as a qcow2 file, so that `oras pull` and the like give an image that
//! boots. That file stands nowhere: its bytes are written whenever it is read (see `export`), which
//! is why only its digest had to be found.
//!
//! Invariant: the same recipe, number, format and name give the same bytes, so that an ingest that
//! is done twice publishes one version. Nothing of storage stands in it.

use serde_json::json;
use sha2::{Digest as _, Sha256};
use shoal_content::{Digest, RecipeId, RepositoryName};
use shoal_formats::{Format, Target};
use shoal_metadata::{FILE_BYTES, FILE_DIGEST, Version};
use std::collections::BTreeMap;

/// What the artifact is.
pub const ARTIFACT_TYPE: &str = "application/vnd.shoal.disk.v1";
pub const MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
/// The content of the empty descriptor (image-spec, "Guidance for an Empty Descriptor").
pub const EMPTY: &[u8] = b"{}";
/// [`EMPTY`] in base64, as a descriptor's `data`.
const EMPTY_BASE64: &str = "e30=";

/// What a qcow2 file is called in the database of media types that desktops share.
const FILE_TYPE: &str = "application/x-qemu-disk";
const TITLE: &str = "org.opencontainers.image.title";

/// The format of the file that the registry gives.
pub fn file_target() -> Target {
    Target::Qcow2
}

/// The file that the registry gives for a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFile {
    pub digest: Digest,
    /// In bytes.
    pub length: u64,
}

impl DiskFile {
    /// That of a version; `None` for one that was published before there were any.
    pub fn of(version: &Version) -> Option<Self> {
        version.file().map(|(digest, length)| Self { digest, length })
    }
}

/// What a disk's manifest says.
#[derive(Debug, Clone)]
pub struct DiskManifest<'a> {
    pub image: &'a RepositoryName,
    pub file: Option<DiskFile>,
    pub recipe: RecipeId,
    pub number: &'a str,
    pub virtual_bytes: u64,
    pub content_bytes: u64,
    pub source_format: Format,
}

impl DiskManifest<'_> {
    pub fn annotations(&self) -> BTreeMap<String, String> {
        let file = self.file.iter().flat_map(|file| {
            [(FILE_DIGEST, file.digest.to_string()), (FILE_BYTES, file.length.to_string())]
        });
        let pairs = [
            ("io.shoal.disk.content-bytes", self.content_bytes.to_string()),
            ("io.shoal.disk.recipe", self.recipe.to_string()),
            ("io.shoal.disk.source-format", self.source_format.to_string()),
            ("io.shoal.disk.virtual-bytes", self.virtual_bytes.to_string()),
            ("org.opencontainers.image.version", self.number.to_owned()),
        ];
        let pairs = pairs.into_iter().chain(file);
        pairs.map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// The manifest and its digest.
    pub fn encode(&self) -> (Vec<u8>, Digest) {
        let empty = json!({
            "mediaType": EMPTY_TYPE,
            "digest": sha256(EMPTY).to_string(),
            "size": EMPTY.len(),
            "data": EMPTY_BASE64,
        });
        let layer = self.file.as_ref().map(|file| {
            let name = self.image.as_str().rsplit('/').next().unwrap_or_default();
            json!({
                "mediaType": FILE_TYPE,
                "digest": file.digest.to_string(),
                "size": file.length,
                "annotations": {
                    TITLE: format!("{name}-{}.{}", self.number, file_target().extension()),
                },
            })
        });
        // Keys come in byte order: serde_json's map is a tree.
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MEDIA_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": empty,
            "layers": [layer.unwrap_or_else(|| empty.clone())],
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
        let image = "zedge/base".parse().unwrap();
        let file = DiskFile { digest: sha256(b"file"), length: 4 };
        let manifest = DiskManifest {
            image: &image,
            file: Some(file.clone()),
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
        let layer = &value["layers"][0];
        assert_eq!(
            (&layer["digest"], &layer["size"]),
            (&file.digest.to_string().into(), &4.into())
        );
        assert_eq!(layer["annotations"][TITLE], "base-1.0.0.qcow2");
        let other = DiskManifest { number: "1.0.1", ..manifest.clone() };
        assert_ne!(other.encode().1, digest);
        let before = DiskManifest { file: None, ..manifest };
        let value: serde_json::Value = serde_json::from_slice(&before.encode().0).unwrap();
        assert_eq!(value["layers"][0]["digest"], empty);
    }
}
