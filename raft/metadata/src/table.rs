//! The tables, and how they are read.
//!
//! Every table is ordered by the bytes of its keys (see `key`), and a page of any list is one
//! scan. Invariant: a table's number is never used again for another one, since it is the first
//! byte of its keys on disk.

use thiserror::Error;

use crate::codec::CodecError;

/// What rows are stored under. The number is part of the stored form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    /// The cluster's own: nothing -> `Cluster`, `level` -> its level, `program` and a node id -> what
    /// that node runs, `acme-account` -> `AcmeAccount`, `acme-challenges` -> answers by token,
    /// `http-certificate` -> `HttpCertificate`.
    Cluster = 1,
    /// Node id -> `Node`.
    Nodes = 2,
    /// Node ids that were removed and are never given out again -> the peer that it was.
    RetiredNodes = 3,
    /// Name -> `User`.
    Users = 4,
    /// Id -> `JoinToken`.
    JoinTokens = 5,
    /// Peer -> `Agent`.
    Agents = 6,
    /// Name -> peer.
    AgentNames = 7,
    /// Image id -> `Image`.
    Images = 8,
    /// Repository name -> image id.
    ImageNames = 9,
    /// Image, digest -> `Version`.
    Versions = 10,
    /// Version id -> image, digest.
    VersionIds = 11,
    /// Image, sequence counted down -> digest; so the newest comes first.
    VersionSequences = 12,
    /// Image, a disk's version number -> digest.
    VersionNumbers = 13,
    /// Image, digest -> the manifest's bytes, exactly as sent.
    Manifests = 14,
    /// Image, subject, digest -> nothing.
    Referrers = 15,
    /// Image, tag -> digest.
    Tags = 16,
    /// Image, digest, tag -> nothing.
    VersionTags = 17,
    /// Digest -> `Blob`.
    Blobs = 18,
    /// Digest -> how many links and version references hold the blob.
    BlobHolds = 19,
    /// Image, digest -> nothing: the repository holds the blob.
    BlobLinks = 20,
    /// Image, digest -> how many versions of the image refer to the blob.
    BlobReferences = 21,
    /// Object key (text) -> `ObjectUse`.
    Objects = 22,
    /// Time, object key -> nothing, for objects whose count is zero since then.
    UnreferencedObjects = 23,
    /// Upload id -> `Upload`.
    Uploads = 24,
    /// Time of expiry, upload id -> nothing.
    UploadExpiries = 25,
    /// Deployment id -> `Deployment`.
    Deployments = 26,
    /// Time of creation counted down, deployment id -> nothing.
    DeploymentTimes = 27,
    /// Peer, deployment id -> which attempt, or nothing for the first; while the host has not come to
    /// an end.
    PendingDeployments = 28,
    /// Name of a count -> the count.
    Counts = 29,
    /// Object key (text) -> since when its bytes are being deleted.
    DeletingObjects = 30,
    /// Image, digest -> since when the repository holds the blob without any version of it that
    /// refers to the blob.
    LooseBlobs = 31,
    /// Name -> `Project`.
    Projects = 32,
    /// Name -> `Organization`.
    Organizations = 33,
    /// Organization, name -> `Group`.
    Groups = 34,
    /// Place, grantee -> `Right`.
    Rights = 35,
    /// Grantee, place -> `Place`.
    GranteePlaces = 36,
    /// Project, name -> `Robot`.
    Robots = 37,
    /// Hash of the secret -> `PersonalToken`.
    PersonalTokens = 38,
    /// User, token's id -> hash of the secret.
    UserTokens = 39,
    /// Project -> `Policy`.
    Policies = 40,
    /// Image, tag -> when it was last pushed, since this is kept.
    TagPushes = 41,
    /// Image, tag -> when it was last pulled by its name.
    TagPulls = 42,
    /// Image, digest -> when it was last pulled by its digest or a name.
    VersionPulls = 43,
    /// Image, digest -> since when the version has no tag.
    UntaggedVersions = 44,
    /// Image, digest, the digest of an index that lists it -> nothing.
    ManifestParents = 45,
    /// Whom it is for, as text -> `Quota`.
    Quotas = 46,
    /// Who pays, as text -> `Account`.
    Accounts = 47,
    /// Project, digest or recipe -> how many of the project's links and versions hold it, and its
    /// length.
    ProjectContents = 48,
    /// Upload id -> what the session has reserved.
    Reservations = 49,
    /// Kind of failure, suspect -> the times of the last ones.
    Suspicions = 50,
    /// Suspect, as text -> `Block`.
    Blocks = 51,
    /// Time of its end, the key of a suspicion, or 4 and the key of a block -> nothing.
    SuspicionEnds = 52,
    /// Number counted down -> `AuditEntry`; so the newest comes first.
    AuditEntries = 53,
    /// Number of its first entry -> `AuditArchive`.
    AuditArchives = 54,
    /// Node id -> how its batches of notes go.
    AuditRuns = 55,
    /// Image -> `ImageNote`.
    ImageNotes = 56,
    /// Name, image -> `DeletedImage`; such an image has no row under its name alone.
    DeletedImages = 57,
    /// Image, digest -> `VersionNote`.
    VersionNotes = 58,
    /// Upload id -> `UploadNote`.
    UploadNotes = 59,
    /// Name -> `Instance`.
    Instances = 60,
    /// Image, digest, instance's name -> nothing.
    VersionInstances = 61,
    /// Image, user -> since when.
    Stars = 62,
    /// User, image -> nothing.
    UserStars = 63,
    /// Image -> `ImageCounters`.
    ImageCounters = 64,
    /// Image, digest -> how often it was downloaded.
    VersionDownloads = 65,
    /// Node id -> run and number of its last batch of downloads.
    DownloadRuns = 66,
    /// Image, tag -> when it came to be.
    TagBirths = 67,
    /// User -> `SecondFactor`.
    SecondFactors = 68,
    /// User, id -> `Session`.
    Sessions = 69,
    /// Issuer, subject -> `Identity`.
    Identities = 70,
    /// User, the key of an identity -> that key.
    UserIdentities = 71,
    /// Project, name -> `WorkloadRule`.
    WorkloadRules = 72,
    /// User -> `Leaving`.
    Leavings = 73,
    /// Digest, project, image -> nothing: the repository holds the blob.
    BlobHolders = 74,
    /// Account -> how many of its uploads of blobs are open.
    OpenUploads = 75,
    /// Deployment id -> `DeploymentPlan`; without a row, the plan that `Default` makes.
    DeploymentPlans = 76,
    /// Deadline, deployment id -> nothing.
    DeploymentDeadlines = 77,
    /// Name -> `WarmUp`.
    WarmUps = 78,
    /// Image, old recipe, new recipe -> `Delta`.
    Deltas = 79,
    /// Image, digest of a blob or manifest that is not there yet, digest of a version that refers to
    /// it -> `Reference`.
    AwaitedContents = 80,
    /// Image, digest of a version, digest of what it awaits -> nothing.
    AwaitingVersions = 81,
    /// User, id -> `Passkey`.
    Passkeys = 82,
    /// A credential's id -> the key of its passkey.
    Credentials = 83,
    /// User -> `PasskeyOwner`.
    PasskeyOwners = 84,
    /// When a challenge was over, its hash -> nothing: it was answered.
    SpentChallenges = 85,
    /// Id -> `DataKey`.
    DataKeys = 86,
    /// Project, or nothing for the cluster itself -> ids of its data keys, oldest first.
    OwnerDataKeys = 87,
    /// Object key (text) -> `HandedKey`.
    HandedKeys = 88,
    /// Node id -> ids of the master keys that it has.
    NodeMasterKeys = 89,
    /// Peer of an agent that was removed -> itself, and until when its certificate may hold.
    Expelled = 90,
    /// Image, digest of the file that a disk version is pulled as, digest of the version -> nothing.
    DiskFiles = 91,
    /// Image -> nothing: it is among the deleted and goes for good, some of it with each command.
    PurgedImages = 92,
    /// The key of a right in an organization -> nothing: it was given with a group's, by what the user
    /// is in elsewhere.
    MappedMembers = 93,
    /// User -> where it gets mail.
    Emails = 94,
    /// Digest, image -> `Scan`.
    Scans = 95,
    /// When it was ordered, image, digest -> nothing: a scan that has not come to an end.
    OpenScans = 96,
    /// Image, tag -> `TagAuthors`.
    TagAuthors = 97,
    /// Place, grantee -> `Grant`: who gave the right, and when.
    Grants = 98,
    /// Recipe id -> `Relocation`.
    Relocations = 99,
    /// Image -> when a disk version last left it, until it was looked through for packs that are
    /// mostly garbage since.
    ThinnedImages = 100,
    /// Audience, project -> how many images are in it.
    ProjectAudiences = 101,
    /// Image, when a tag was last set counted down, tag -> nothing; so the one that was set last comes
    /// first.
    TagOrder = 102,
    /// Image -> `ImageTally`.
    ImageTallies = 103,
    /// Owner, project -> nothing.
    OwnerProjects = 104,
}

impl Table {
    /// All of them, by number.
    pub const ALL: [Self; 104] = [
        Self::Cluster,
        Self::Nodes,
        Self::RetiredNodes,
        Self::Users,
        Self::JoinTokens,
        Self::Agents,
        Self::AgentNames,
        Self::Images,
        Self::ImageNames,
        Self::Versions,
        Self::VersionIds,
        Self::VersionSequences,
        Self::VersionNumbers,
        Self::Manifests,
        Self::Referrers,
        Self::Tags,
        Self::VersionTags,
        Self::Blobs,
        Self::BlobHolds,
        Self::BlobLinks,
        Self::BlobReferences,
        Self::Objects,
        Self::UnreferencedObjects,
        Self::Uploads,
        Self::UploadExpiries,
        Self::Deployments,
        Self::DeploymentTimes,
        Self::PendingDeployments,
        Self::Counts,
        Self::DeletingObjects,
        Self::LooseBlobs,
        Self::Projects,
        Self::Organizations,
        Self::Groups,
        Self::Rights,
        Self::GranteePlaces,
        Self::Robots,
        Self::PersonalTokens,
        Self::UserTokens,
        Self::Policies,
        Self::TagPushes,
        Self::TagPulls,
        Self::VersionPulls,
        Self::UntaggedVersions,
        Self::ManifestParents,
        Self::Quotas,
        Self::Accounts,
        Self::ProjectContents,
        Self::Reservations,
        Self::Suspicions,
        Self::Blocks,
        Self::SuspicionEnds,
        Self::AuditEntries,
        Self::AuditArchives,
        Self::AuditRuns,
        Self::ImageNotes,
        Self::DeletedImages,
        Self::VersionNotes,
        Self::UploadNotes,
        Self::Instances,
        Self::VersionInstances,
        Self::Stars,
        Self::UserStars,
        Self::ImageCounters,
        Self::VersionDownloads,
        Self::DownloadRuns,
        Self::TagBirths,
        Self::SecondFactors,
        Self::Sessions,
        Self::Identities,
        Self::UserIdentities,
        Self::WorkloadRules,
        Self::Leavings,
        Self::BlobHolders,
        Self::OpenUploads,
        Self::DeploymentPlans,
        Self::DeploymentDeadlines,
        Self::WarmUps,
        Self::Deltas,
        Self::AwaitedContents,
        Self::AwaitingVersions,
        Self::Passkeys,
        Self::Credentials,
        Self::PasskeyOwners,
        Self::SpentChallenges,
        Self::DataKeys,
        Self::OwnerDataKeys,
        Self::HandedKeys,
        Self::NodeMasterKeys,
        Self::Expelled,
        Self::DiskFiles,
        Self::PurgedImages,
        Self::MappedMembers,
        Self::Emails,
        Self::Scans,
        Self::OpenScans,
        Self::TagAuthors,
        Self::Grants,
        Self::Relocations,
        Self::ThinnedImages,
        Self::ProjectAudiences,
        Self::TagOrder,
        Self::ImageTallies,
        Self::OwnerProjects,
    ];

    /// The table whose keys start with `number`, if there is one.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// The first byte of its keys on disk.
    pub const fn number(self) -> u8 {
        self as u8
    }
}

/// The rows could not be read: the storage failed, or holds what no version of this program wrote.
/// Unlike a refusal it says nothing about the command; a replica stops rather than go on from it.
#[derive(Debug, Error)]
pub enum Fault {
    #[error("the metadata's storage failed: {0}")]
    Storage(String),
    #[error("a row of {table:?} cannot be read")]
    Row { table: Table, source: CodecError },
    /// An index and the rows it stands for disagree.
    #[error("the metadata contradict themselves: {0}")]
    Contradiction(&'static str),
}

/// Consistent reading of the tables: all calls on one value see the same state.
pub trait Read {
    /// The row under `key`.
    ///
    /// # Errors
    /// [`Fault::Storage`] where the storage fails.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault>;

    /// Rows whose key starts with `prefix` and is not before `from`, in byte order of their keys,
    /// at most `limit`. A `from` before the prefix is the start of the prefix.
    ///
    /// # Errors
    /// [`Fault::Storage`] where the storage fails.
    fn scan(&self, table: Table, from: &[u8], prefix: &[u8], limit: usize) -> Result<Rows, Fault>;
}

/// Keys and rows, in byte order of the keys.
pub type Rows = Vec<(Vec<u8>, Vec<u8>)>;

impl<R: Read + ?Sized> Read for &R {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        (**self).get(table, key)
    }

    fn scan(&self, table: Table, from: &[u8], prefix: &[u8], limit: usize) -> Result<Rows, Fault> {
        (**self).scan(table, from, prefix, limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_fixed() {
        for (at, table) in Table::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(table.number()), at + 1);
            assert_eq!(Table::from_number(table.number()), Some(table));
        }
    }
}
