//! What the node does about storage: collection of what nobody needs, and the scrub.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `GET /api/v1/storage`: what is known to be on its way out. Nothing is changed by asking.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StorageStatus {
    /// What nothing refers to is kept this long.
    pub grace_seconds: u64,
    /// Blobs that a repository holds without any version needing them.
    pub loose_blobs: Waiting,
    /// Objects that nothing refers to.
    pub unreferenced: Waiting,
    /// Objects whose bytes are being deleted.
    pub deleting_objects: u64,
    /// Uploads that have not come to their end, and what they hold.
    #[serde(default)]
    pub open_uploads: u64,
    #[serde(default)]
    pub open_upload_bytes: u64,
    #[serde(default)]
    pub collection: CollectionStatus,
    #[serde(default)]
    pub compaction: CompactionStatus,
    pub scrub: ScrubStatus,
    #[serde(default)]
    pub verification: VerificationStatus,
}

/// `POST /api/v1/storage/verify`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VerifyStorage {
    /// Whether everything is read and compared with what it is named by.
    #[serde(default)]
    pub read: bool,
}

/// The verification under way at the node that answers, or its last one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VerificationStatus {
    pub running: bool,
    /// Whether everything is read.
    pub read: bool,
    pub started_at: Option<String>,
    /// Looked at, of those that the metadata name.
    pub objects: u64,
    /// Of those that are as they should be.
    pub bytes: u64,
    pub missing: u64,
    pub wrong_size: u64,
    /// Read, and something else than they are named by.
    pub damaged: u64,
    /// The first of those that are not as they should be.
    pub flaws: Vec<FlawedObject>,
    /// Why it ended early.
    pub error: Option<String>,
}

/// An object that the metadata name and that is not in storage as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlawedObject {
    pub object: String,
    /// Of a blob.
    pub digest: Option<String>,
    pub flaw: String,
}

/// An upload that has not come to its end, and holds space in storage until it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OpenUpload {
    pub id: String,
    pub image: String,
    pub owner: String,
    /// So far.
    pub received_bytes: u64,
    pub created_at: String,
    pub expires_at: String,
}

/// Things that wait for their grace to be over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Waiting {
    pub total: u64,
    /// Of those: what a collection now would take.
    pub due: u64,
    /// The first few that are due, by name.
    pub examples: Vec<String>,
    /// Whether counting was given up at `total`, because there are more.
    pub more: bool,
}

/// The collection under way at the node that answers, or its last one. The leader collects by
/// itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CollectionStatus {
    pub running: bool,
    pub started_at: Option<String>,
    pub ended_at: Option<String>,
    /// Objects that were due when it began.
    pub due: u64,
    /// Whether counting was given up at `due`, because there are more.
    pub more_due: bool,
    /// Of those that were or became due: not deleted yet.
    pub left: u64,
    pub done: CollectionDone,
    /// Why it ended early.
    pub error: Option<String>,
}

/// `POST /api/v1/storage/collect`: what was done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CollectionDone {
    /// Objects deleted.
    pub deleted: u64,
    /// What they took in storage, as far as storage said so.
    #[serde(default)]
    pub freed_bytes: u64,
    /// Objects that were still there after they had been deleted, and were deleted again.
    pub deleted_again: u64,
    /// Names that are free for new content again.
    pub forgotten: u64,
    /// Blobs that repositories let go of.
    pub unlinked: u64,
}

/// `POST /api/v1/storage/compact`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CompactStorage {
    /// Whether nothing is changed: it is counted what would be.
    #[serde(default)]
    pub dry_run: bool,
}

/// The compaction under way at the node that answers, or its last one: what is needed of packs that
/// are mostly garbage is written anew, so that they can go. The leader compacts by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CompactionStatus {
    pub running: bool,
    /// Whether nothing is changed.
    pub dry_run: bool,
    pub started_at: Option<String>,
    pub ended_at: Option<String>,
    /// Images that lost versions, and are yet to be looked through.
    pub images_left: u64,
    /// Packs that are not needed any more.
    pub packs: u64,
    /// What was needed of them, and is in other packs now.
    pub written_bytes: u64,
    /// What storage gets back once the packs are deleted, after the grace period.
    pub saved_bytes: u64,
    /// Why it ended early, or what kept it from an image.
    pub error: Option<String>,
}

/// The scrub under way at the node that answers, or its last one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ScrubStatus {
    pub running: bool,
    pub started_at: Option<String>,
    /// Looked at in storage.
    pub objects: u64,
    pub bytes: u64,
    /// Content that no row knew; it goes after the grace period.
    pub orphans: u64,
    /// What ended sessions had left; it was deleted.
    pub leftovers: u64,
    /// Objects read and compared with their names.
    pub verified: u64,
    pub verified_bytes: u64,
    /// Of those: damaged or missing.
    pub damaged: u64,
    /// Why it ended early.
    pub error: Option<String>,
}
