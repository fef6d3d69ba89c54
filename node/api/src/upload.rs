//! The upload of a disk in parts, and its import from elsewhere.

use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use shoal_content::{Digest, TagName, UploadId, VersionId};

use crate::Layer;
use crate::absent::{or_default, or_null};

/// `POST /api/v1/images/{id}/versions/upload/init`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = or_null)]
pub struct InitUpload {
    /// For instance `1.0.1`; unique in the image.
    pub version: String,
    /// Length of the file to come.
    pub total_size_bytes: u64,
    /// The length of every part but the last. More than 10,000 parts are refused; where this is more
    /// than 64 MiB the node may answer less, which counts.
    #[serde(default)]
    pub chunk_size_bytes: Option<u64>,
    /// `raw`, `qcow2`, `vmdk`, `vhd`, `vhdx` or `ova`; found out where missing.
    #[serde(default)]
    pub format: Option<String>,
    /// Where the disk in the file has content, for whoever knows it before the file is sent: clusters of
    /// 64 KiB of what the guest sees, from its beginning, by turns how many are zero or free and how many
    /// are neither. The version is there sooner after the last byte, above all for formats that do not
    /// say so themselves (`raw`, `vhd`, `vhdx`). It is compared with what comes, and costs that time
    /// where it is wrong; more than 100,000 numbers are not looked at.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub content_clusters: Vec<u32>,
    /// Tags that the version gets besides `latest`, which it gets where its number is the highest
    /// or where it is named here.
    #[serde(default, deserialize_with = "or_default")]
    pub tags: Vec<TagName>,
    /// What the file is; its format counts where none is given above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<UploadManifest>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub changelog: String,
    /// For instance `{"buildDate": "2024-01-01", "builder": "jenkins"}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_info: Option<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = or_null)]
pub struct UploadManifest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// The file cut one after another; where they are given, the file is compared with them before
    /// it becomes a version.
    #[serde(default, deserialize_with = "or_default")]
    pub layers: Vec<Layer>,
}

/// `POST /api/v1/images/{id}/versions/import`: the nodes get the file by themselves. The answer is
/// an [`UploadStatus`], and the import is an upload from then on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = or_null)]
pub struct ImportVersion {
    pub version: String,
    /// `https://…`; `http://…` only together with a checksum.
    pub url: String,
    /// `sha256:…` or `sha512:…` of the whole file, or the digits alone.
    #[serde(default, deserialize_with = "checksum", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub checksum: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub tags: Vec<TagName>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub changelog: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_info: Option<serde_json::Map<String, serde_json::Value>>,
}

fn checksum<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Digest>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    let digest = text.map(|text| Digest::of_checksum(&text)).transpose();
    digest.map_err(D::Error::custom)
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UploadStarted {
    pub upload_id: UploadId,
    pub total_chunks: u32,
    pub chunk_size: u64,
    pub expires_at: String,
}

/// The answer to `PUT …/upload/{upload}/chunks/{n}` (from 0).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
/// 202 while it is `processing`. One that failed is a problem there, with the same code and words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// When the version came to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// A code, a colon, and words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Where the nodes get the file from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub import_url: Option<String>,
    /// Of the file, in storage.
    #[serde(default)]
    pub received_bytes: u64,
    pub expires_at: String,
}
