//! Images, versions, tags, and the upload of a disk in parts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shoal_content::{Digest, ImageId, RecipeId, RepositoryName, TagName, UploadId, VersionId};

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    pub data: Vec<T>,
    pub pagination: Pagination,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pagination {
    /// From 1.
    pub page: u64,
    pub page_size: u64,
    pub total_pages: u64,
    pub total_count: u64,
}

/// `POST /api/v1/images`: makes an image without versions. The name alone is enough.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateImage {
    pub name: RepositoryName,
    #[serde(default)]
    pub display_name: String,
    #[serde(default)]
    pub description: String,
    #[serde(default)]
    pub image_type: String,
    #[serde(default)]
    pub os_type: String,
    #[serde(default)]
    pub os_version: String,
    #[serde(default)]
    pub architecture: String,
    /// What downloads default to: `raw`, `qcow2`, `vmdk`, `vmdk-stream`, `vhd`, `vhd-fixed`, `vhdx`
    /// or `ova`; `qcow2` where empty.
    #[serde(default)]
    pub format: String,
    #[serde(default)]
    pub visibility: String,
    #[serde(default)]
    pub min_cpu_cores: u32,
    #[serde(default)]
    pub min_memory_mb: u64,
    #[serde(default)]
    pub min_disk_gb: u64,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// An image as lists show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    pub id: ImageId,
    pub name: RepositoryName,
    /// `disk` or `container`.
    pub kind: String,
    pub display_name: String,
    pub description: String,
    pub image_type: String,
    pub os_type: String,
    pub os_version: String,
    pub architecture: String,
    pub format: String,
    pub visibility: String,
    /// Of the latest version: what a guest sees, or the sum of the layers.
    pub total_size_bytes: u64,
    /// `pending` without a version, else `active`.
    pub status: String,
    pub latest_version: Option<String>,
    pub tags: Vec<TagName>,
    pub labels: BTreeMap<String, String>,
    pub owner: String,
    pub created_at: String,
    pub updated_at: String,
}

/// `GET /api/v1/images/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDetail {
    #[serde(flatten)]
    pub image: Image,
    pub min_cpu_cores: u32,
    pub min_memory_mb: u64,
    pub min_disk_gb: u64,
    pub versions: Vec<Version>,
    pub tag_details: Vec<Tag>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    pub id: VersionId,
    /// A disk's version number; a container's is its sequence.
    pub version: String,
    pub version_sequence: u64,
    pub is_latest: bool,
    pub manifest_digest: Digest,
    pub media_type: String,
    /// What a guest sees, or the sum of the layers.
    pub total_size_bytes: u64,
    /// Content that is not zero (disks).
    pub content_size_bytes: u64,
    /// What this version added to storage (disks).
    pub added_size_bytes: u64,
    pub status: String,
    pub tags: Vec<TagName>,
    pub created_at: String,
    pub created_by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pulled_at: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tag {
    pub name: TagName,
    pub version: String,
    pub manifest_digest: Digest,
    /// When something was last pushed under it.
    #[serde(default)]
    pub pushed_at: String,
    /// By its name, or by the digest of what it names; known a minute later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pulled_at: Option<String>,
}

/// `PUT /api/v1/images/{id}/tags/{tag}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveTag {
    pub version_id: VersionId,
}

/// `POST /api/v1/images/{id}/versions/upload/init`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitUpload {
    /// For instance `1.0.1`; unique in the image.
    pub version: String,
    /// Length of the file to come.
    pub total_size_bytes: u64,
    /// The length of every part but the last; the node may answer another one, which counts.
    #[serde(default)]
    pub chunk_size_bytes: Option<u64>,
    /// `raw`, `qcow2`, `vmdk`, `vhd`, `vhdx` or `ova`; found out where missing.
    #[serde(default)]
    pub format: Option<String>,
    /// Tags that the version gets besides `latest`.
    #[serde(default)]
    pub tags: Vec<TagName>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadStarted {
    pub upload_id: UploadId,
    pub total_chunks: u32,
    pub chunk_size: u64,
    pub expires_at: String,
}

/// The answer to `PUT …/upload/{upload}/chunks/{n}` (from 0).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChunkReceived {
    pub chunk_index: u32,
    /// `sha256:…` of the part; a request may carry the same in `x-shoal-checksum` and is refused
    /// where they differ.
    pub checksum: String,
    pub uploaded_chunks: u32,
    pub total_chunks: u32,
    /// Percent.
    pub progress: f64,
}

/// `GET …/upload/{upload}`, and the answer to `POST …/complete`: 201 when `status` is `active`,
/// 202 while it is `processing`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UploadStatus {
    pub upload_id: UploadId,
    /// `receiving`, `processing`, `active` or `failed`.
    pub status: String,
    pub total_chunks: u32,
    /// Those that are safe in storage.
    pub received_chunks: Vec<u32>,
    pub chunk_size: u64,
    pub total_size_bytes: u64,
    /// Of the disk, once it is being read, on the node that reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processed_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_id: Option<VersionId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_digest: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    pub expires_at: String,
}

/// `GET /api/v1/resolve?reference=NAME:TAG`: everything about one version in one call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolution {
    pub image_id: ImageId,
    pub image: RepositoryName,
    /// `disk` or `container`.
    pub kind: String,
    pub version_id: VersionId,
    pub version: String,
    pub manifest_digest: Digest,
    pub media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskContent>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskContent {
    pub recipe: RecipeId,
    pub virtual_size_bytes: u64,
    pub content_size_bytes: u64,
    /// The format it was uploaded in.
    pub source_format: String,
}
