//! Instances: which virtual machine runs which version.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shoal_content::{Digest, ImageId, InstanceName, RepositoryName, TagName, VersionId};

use crate::Deprecation;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Instance {
    /// What the system that runs it calls it.
    pub id: InstanceName,
    pub image_id: ImageId,
    pub image: RepositoryName,
    pub image_version_id: VersionId,
    pub version: String,
    #[serde(default)]
    pub image_tag_used: Option<TagName>,
    pub image_digest: Digest,
    /// Of its version: `active` or `deprecated`.
    pub version_status: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deprecation: Option<Deprecation>,
    pub registered_by: String,
    pub registered_at: String,
    pub updated_at: String,
}

/// `POST /api/v1/instances`; `PUT /api/v1/instances/{id}` for one that may be there already. The
/// image is given by its id or its name; the version by its id, its digest, or the tag, which is
/// looked up then. Whatever else is given has to agree.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RegisterInstance {
    /// Not with `PUT`, whose path has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<InstanceName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_id: Option<ImageId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<RepositoryName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_version_id: Option<VersionId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_tag_used: Option<TagName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<Digest>,
}
