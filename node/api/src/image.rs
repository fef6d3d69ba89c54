//! Images as a whole.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shoal_content::{Digest, ImageId, RepositoryName, TagName};

use crate::absent::{or_default, or_null};
use crate::{Tag, Version, VulnerabilityCounts};

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "PageOf{T}")]
pub struct Page<T> {
    pub data: Vec<T>,
    pub pagination: Pagination,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pagination {
    /// From 1.
    pub page: u64,
    pub page_size: u64,
    pub total_pages: u64,
    pub total_count: u64,
}

/// `POST /api/v1/images`: makes an image without versions. The name alone is enough.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = or_null)]
pub struct CreateImage {
    pub name: RepositoryName,
    #[serde(default, deserialize_with = "or_default")]
    pub display_name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub description: String,
    /// `os_base`, `application` or `snapshot`, if anything.
    #[serde(default, deserialize_with = "or_default")]
    pub image_type: String,
    #[serde(default, deserialize_with = "or_default")]
    pub os_type: String,
    #[serde(default, deserialize_with = "or_default")]
    pub os_version: String,
    /// For instance `arm64`; `x86_64` where empty.
    #[serde(default, deserialize_with = "or_default")]
    pub architecture: String,
    /// What downloads default to: `raw`, `qcow2`, `vmdk`, `vmdk-stream`, `vhd`, `vhd-fixed`, `vhdx`
    /// or `ova`; `qcow2` where empty. `docker` and `oci` make a container image.
    #[serde(default, deserialize_with = "or_default")]
    pub format: String,
    /// `public`, `organization` or `private`: of the project, where this makes it. Of one that is
    /// there it has to be that one's.
    #[serde(default, deserialize_with = "or_default")]
    pub visibility: String,
    /// The same as `public`, where no visibility is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_public: Option<bool>,
    /// The organization that is to own the project, where this makes it. Of one that is there it has
    /// to be that one's.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub organization_id: String,
    #[serde(default, deserialize_with = "or_default")]
    pub min_cpu_cores: u32,
    #[serde(default, deserialize_with = "or_default")]
    pub min_memory_mb: u64,
    #[serde(default, deserialize_with = "or_default")]
    pub min_disk_gb: u64,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "is_zero")]
    pub recommended_cpu_cores: u32,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "is_zero")]
    pub recommended_memory_mb: u64,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "is_zero")]
    pub recommended_disk_gb: u64,
    #[serde(default, deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}

/// `PUT /api/v1/images/{id}`: what is to change; the rest stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct UpdateImage {
    /// The one that it has, which it keeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// That of its project, which gets another one where this is its only image and who asks may
    /// change the project.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub visibility: Option<String>,
    /// The same as `public`, where no visibility is given; else of no account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_public: Option<bool>,
    /// The one that owns its project, whose to change it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub organization_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_cpu_cores: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_memory_mb: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_disk_gb: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recommended_cpu_cores: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recommended_memory_mb: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recommended_disk_gb: Option<u64>,
    /// All of them, in place of those there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// All of them, in place of those there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// An image as lists show it: with the names of its tags, and of its owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Image")]
pub struct Image<T = TagName, O = String> {
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
    /// Of its project, which decides: `public`, `organization` or `private`.
    pub visibility: String,
    /// Whether that is `public`.
    #[serde(default)]
    pub is_public: bool,
    /// Of the latest version: what a guest sees, or the sum of the layers (of an index, those of all
    /// that it lists).
    pub total_size_bytes: u64,
    /// Of the latest version: what it takes in storage, shared or not, where that is known.
    #[serde(default)]
    pub compressed_size_bytes: Option<u64>,
    /// `pending` without a version, `deleted` while it can be restored, else `active`.
    pub status: String,
    #[serde(default)]
    pub download_count: u64,
    #[serde(default)]
    pub star_count: u64,
    /// How the scan stands that was ordered last of the latest version: `pending`, `scanning`,
    /// `completed` or `failed`. None where there was none.
    #[serde(default)]
    pub scan_status: Option<String>,
    /// What the last scan of the latest version has found that was completed.
    #[serde(default)]
    pub vulnerabilities: Option<VulnerabilityCounts>,
    /// The same numbers; none where no scan was completed, so that `last_scan_at` says what they mean.
    #[serde(default)]
    pub vulnerabilities_critical: u32,
    #[serde(default)]
    pub vulnerabilities_high: u32,
    #[serde(default)]
    pub vulnerabilities_medium: u32,
    #[serde(default)]
    pub vulnerabilities_low: u32,
    /// When that was.
    #[serde(default)]
    pub last_scan_at: Option<String>,
    pub latest_version: Option<String>,
    pub tags: Vec<T>,
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    pub owner: O,
    #[serde(default)]
    pub owner_id: String,
    /// The organization that owns its project, if one does.
    #[serde(default)]
    pub organization_id: Option<String>,
    pub created_at: String,
    /// Its owner, who made it.
    #[serde(default)]
    pub created_by: String,
    pub updated_at: String,
    /// Who described it last; empty where nobody has since it was made.
    #[serde(default)]
    pub updated_by: String,
    /// None while it is there; so is who did it.
    #[serde(default)]
    pub deleted_at: Option<String>,
    #[serde(default)]
    pub deleted_by: Option<String>,
}

/// Who an image belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageOwner {
    pub id: String,
    pub name: String,
    /// Where it gets mail, if that was said; for itself, and for who administers the image's project.
    #[serde(default)]
    pub email: Option<String>,
}

/// `GET /api/v1/images/{id}`: with the tags that were set last, at most 1000, and the versions with
/// the highest numbers, at most 100; all of them are in lists of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageDetail {
    #[serde(flatten)]
    pub image: Image<Tag, ImageOwner>,
    pub min_cpu_cores: u32,
    pub min_memory_mb: u64,
    pub min_disk_gb: u64,
    #[serde(default)]
    pub recommended_cpu_cores: u32,
    #[serde(default)]
    pub recommended_memory_mb: u64,
    #[serde(default)]
    pub recommended_disk_gb: u64,
    pub versions: Vec<Version>,
    /// Whether the asker has starred it.
    #[serde(default)]
    pub starred: bool,
}

/// `GET /api/images/NAME/TAG`: one image as other registry managers show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CompatibleImage {
    pub id: ImageId,
    pub name: RepositoryName,
    /// None where it was asked for by its digest.
    pub tag: Option<TagName>,
    pub digest: Digest,
    pub media_type: String,
    /// Of the configuration and the layers together, in bytes; of an index, those of one platform:
    /// linux/amd64, or the first that is there.
    pub size: u64,
    /// As its manifest has it.
    pub config: serde_json::Value,
    /// As its manifest has them.
    pub layers: Vec<serde_json::Value>,
    pub tags: Vec<TagName>,
    pub created_at: String,
    pub pull_command: String,
}
