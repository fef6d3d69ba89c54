//! What is kept of images, versions and tags beyond the registry's needs: what people say of them,
//! who uses them, what was deleted and may come back, how often they were pulled and starred.
//!
//! These rows stand beside those of `record`, under the same keys, so that a row there never
//! changes its form; a row that is missing is one with nothing in it.
//!
//! Invariants: an instance's version is there as long as the instance is; counters agree with the
//! stars, and never fall but by a star taken back.
//! Non-goal: telling instances anything; who asks is answered.

mod latest;
mod query;
mod tally;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shoal_content::{Digest, ImageId, InstanceName, NodeId, TagName, Timestamp, VersionId};

use crate::record::ImageProfile;

pub use latest::newest_first;
pub(crate) use latest::{LATEST, is_later, latest_of};
pub(crate) use query::INSTANCES_COUNT;
pub use tally::ImageTally;

/// What people say of an image besides its profile.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageNote {
    pub recommended_cpu_cores: u32,
    pub recommended_memory_mb: u64,
    pub recommended_disk_gb: u64,
    pub annotations: BTreeMap<String, String>,
    pub updated_by: String,
}

/// All that people say of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDescription {
    pub profile: ImageProfile,
    pub note: ImageNote,
}

/// An image that was deleted and can be restored; its versions and tags are kept, its name is free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletedImage {
    pub id: ImageId,
    pub at: Timestamp,
    pub by: String,
}

/// What is known of a version besides its manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionNote {
    pub changelog: String,
    /// A JSON object as text, or nothing.
    pub build_info: String,
    /// What a disk's chunks take in storage, shared or not.
    pub compressed_bytes: Option<u64>,
    pub deprecation: Option<Deprecation>,
    pub updated_at: Timestamp,
    pub updated_by: String,
}

/// That a version should be used no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deprecation {
    pub at: Timestamp,
    pub by: String,
    /// What to do instead.
    pub message: String,
}

/// What an upload's version will be told of, and what the uploaded file is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadNote {
    pub changelog: String,
    pub build_info: String,
    /// The file, cut one after another: each with its digest and length. Empty is: not said.
    pub layers: Vec<(Digest, u64)>,
    /// Where nodes get the file by themselves.
    pub import: Option<Import>,
}

/// A file that nodes get from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    pub url: String,
    /// What tells this content of the address from a later one: an entity tag, or a date.
    pub validator: Option<String>,
    pub node: NodeId,
    /// After it another node goes on.
    pub lease_until: Timestamp,
}

/// A virtual machine that runs a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    pub name: InstanceName,
    pub image: ImageId,
    pub version: VersionId,
    pub digest: Digest,
    /// What it was chosen by.
    pub tag: Option<TagName>,
    /// The account that registered it.
    pub owner: String,
    pub registered_at: Timestamp,
    pub updated_at: Timestamp,
}

/// On whose behalf a tag was set; an empty text is nobody that is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagAuthors {
    /// For the first time.
    pub created_by: String,
    /// The last time.
    pub updated_by: String,
}

/// How often.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageCounters {
    pub downloads: u64,
    pub stars: u64,
}

/// Downloads that a node has seen since its last batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownloadBatch {
    pub node: NodeId,
    /// Names the node's run: greater with each start.
    pub run: u64,
    /// From 0, one more with each; one that came already counts no second time.
    pub batch: u64,
    pub downloads: BTreeMap<ImageId, BTreeMap<Digest, u64>>,
}
