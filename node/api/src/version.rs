//! Versions and tags of images.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shoal_content::{Digest, ImageId, InstanceName, RecipeId, RepositoryName, TagName, VersionId};

use crate::absent::{or_default, or_null};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Version {
    pub id: VersionId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_id: Option<ImageId>,
    /// A disk's version number; a container's is its sequence.
    pub version: String,
    pub version_sequence: u64,
    pub is_latest: bool,
    pub manifest_digest: Digest,
    pub media_type: String,
    /// What a guest sees, or the sum of the layers (of an index, those of all that it lists).
    pub total_size_bytes: u64,
    /// The same number.
    #[serde(default)]
    pub size_bytes: u64,
    /// What it takes in storage, shared or not, where that is known.
    #[serde(default)]
    pub compressed_size_bytes: Option<u64>,
    /// Content that is not zero (disks).
    pub content_size_bytes: u64,
    /// What this version added to storage (disks).
    pub added_size_bytes: u64,
    /// `active` or `deprecated`.
    pub status: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deprecation: Option<Deprecation>,
    pub tags: Vec<TagName>,
    #[serde(default)]
    pub changelog: String,
    /// What was said of how it was built, if anything.
    #[serde(default)]
    pub build_info: Option<serde_json::Value>,
    #[serde(default)]
    pub download_count: u64,
    /// Whether an instance runs it.
    #[serde(default)]
    pub in_use: bool,
    pub created_at: String,
    pub created_by: String,
    #[serde(default)]
    pub updated_at: String,
    /// Who described it last; empty where nobody has since it was made.
    #[serde(default)]
    pub updated_by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pulled_at: Option<String>,
}

/// `POST /api/v1/images/{id}/versions`: another version of content that is there, under a number of
/// its own. What it is made of is not stored again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = or_null)]
pub struct CreateVersion {
    pub version: String,
    /// Of the version that it is made of; or
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_digest: Option<Digest>,
    /// that one's number, id or tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub tags: Vec<TagName>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub changelog: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_info: Option<serde_json::Map<String, serde_json::Value>>,
}

/// That a version should be used no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Deprecation {
    pub deprecated_at: String,
    pub deprecated_by: String,
    /// What to do instead.
    pub message: String,
}

/// A piece of a version: a container's layer, a manifest of an index, the file that a disk is pulled
/// as; or a run of a file that is uploaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Layer {
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    /// As the manifest has it; of no account in an upload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
}

/// `GET /api/v1/images/{id}/versions/{version}`, and the answer to what changes one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VersionDetail {
    #[serde(flatten)]
    pub version: Version,
    /// Of the configuration that the manifest names; a disk's is empty, and an index has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_digest: Option<Digest>,
    /// In the manifest's order, without the configuration.
    pub layers: Vec<Layer>,
    /// Instances that run it, by name.
    pub instances: Vec<InstanceName>,
    /// Whether there are more of them.
    pub more_instances: bool,
}

/// `POST /api/v1/images/{id}/versions/{version}/deprecate`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = or_null)]
pub struct DeprecateVersion {
    /// What to do instead.
    #[serde(default, deserialize_with = "or_default")]
    pub message: String,
}

/// `PUT /api/v1/images/{id}/versions/{version}`: what is to change; the rest stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UpdateVersion {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changelog: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_info: Option<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Tag {
    pub name: TagName,
    /// The same, by the name that it has where tags are changed.
    #[serde(default)]
    pub tag_name: String,
    /// `version`, `semantic`, `environment`, `time` or `other`, by its text.
    #[serde(default)]
    pub kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_id: Option<ImageId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_id: Option<VersionId>,
    /// The same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_version_id: Option<VersionId>,
    pub version: String,
    pub manifest_digest: Digest,
    /// When it came to be, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// On whose behalf; empty where that is not known.
    #[serde(default)]
    pub created_by: String,
    /// When it was last set.
    #[serde(default)]
    pub updated_at: String,
    /// On whose behalf; empty where that is not known.
    #[serde(default)]
    pub updated_by: String,
    /// The same: when something was last pushed under it.
    #[serde(default)]
    pub pushed_at: String,
    /// By its name, or by the digest of what it names; known a minute later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pulled_at: Option<String>,
}

/// `PUT /api/v1/images/{id}/tags/{tag}`: by id or by number. What tags are shown with may be sent back:
/// where both are said, the id counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MoveTag {
    /// What is no id is one that there is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_id: Option<String>,
    /// The same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_version_id: Option<String>,
    /// A number, a digest or a tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// `POST /api/v1/images/{id}/rollback`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rollback {
    /// A number, or an id; `target_version` is another name for it.
    #[serde(alias = "target_version")]
    pub version: String,
    /// `latest` where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<TagName>,
}

/// `GET /api/v1/resolve?reference=NAME:TAG`, or `?name=NAME&tag=TAG`: everything about one version in one call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Resolution {
    pub image_id: ImageId,
    pub image: RepositoryName,
    /// `disk` or `container`.
    pub kind: String,
    pub version_id: VersionId,
    pub version: String,
    pub manifest_digest: Digest,
    pub media_type: String,
    /// The tag that it was found by; none where it was by number or digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<TagName>,
    /// `active` or `deprecated`.
    #[serde(default)]
    pub status: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deprecation: Option<Deprecation>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskContent>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiskContent {
    pub recipe: RecipeId,
    pub virtual_size_bytes: u64,
    pub content_size_bytes: u64,
    /// The format it was uploaded in.
    pub source_format: String,
}
