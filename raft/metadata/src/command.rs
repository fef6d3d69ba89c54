//! What can be asked of the state machine, what it answers, and why it refuses.
//!
//! The enums here are encoded in the Raft log (see `codec`): variants and fields are only ever
//! added at the end, under a new [`COMMAND_VERSION`], so that a rolling upgrade can mix binaries.
//! Ids and times come from the proposer; `apply` has neither clock nor randomness.
//!
//! One file, long as it is: what is added has to be seen below all that is encoded before it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use shoal_content::{
    AccountName, DataKeyId, DeploymentId, Digest, ImageId, InstanceName, ObjectKey, PeerId,
    ProjectName, RecipeId, RepositoryName, ScanId, TagName, Timestamp, UploadId, VersionId,
};
use thiserror::Error;

use crate::audit::{AuditArchive, AuditBatch, AuditSource};
use crate::authority::AuthorityStep;
use crate::catalog::{DownloadBatch, ImageDescription, ImageNote, Instance, UploadNote};
use crate::delta::{DeltaBundle, DeltaKey};
use crate::deployment::{DeploymentOrder, HostReport, WarmUp};
use crate::encryption::{HandedKey, KeyOwner};
use crate::keys::KeyPurpose;
use crate::lockout::{Failure, LockoutRules, Suspect};
use crate::login::{Identity, Proof, Session};
use crate::passkey::{Answered, Passkey, PasskeyOwner};
use crate::quota::{Exceeded, QuotaLimits, QuotaOf};
use crate::record::{
    AcmeAccount, Agent, Cluster, Disk, HostState, HttpCertificate, ImageKind, ImageProfile,
    JoinToken, Multipart, Node, Reference, Secret, Upload, UploadPart, User,
};
use crate::relocation::MovedChunks;
use crate::retention::{NameUse, PolicyError, PolicyRules};
use crate::rights::{
    Grantee, Group, Organization, Owner, PersonalToken, Place, Project, Right, Robot, RobotName,
    Visibility, WorkloadRule,
};
use crate::scan::{ScanKey, ScanOutcome};
use crate::secrets::{SealedSecret, SecretPlace};

/// The newest command version that this program can apply. A leader proposes no command newer
/// than the cluster's level (see [`Command::RaiseLevel`]), which is at most what its oldest member
/// can apply.
pub const COMMAND_VERSION: u8 = 2;

/// The level of a cluster that has never raised it.
pub const FIRST_LEVEL: u8 = 1;

/// The longest manifest, in bytes (notes: at least 4 MiB must be accepted).
pub const MANIFEST_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The longest annotations that a version's row has, in bytes of keys and values. Longer ones are
/// in the manifest alone, so that no row is as long as that.
pub const ANNOTATIONS_KEPT_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The first command of a cluster's life; refused ever after.
    Found {
        cluster: Cluster,
        admin: User,
    },
    RegisterNode(Node),
    RemoveNode(shoal_content::NodeId),
    PutUser(User),
    RemoveUser {
        name: String,
    },
    CreateJoinToken(JoinToken),
    RevokeJoinToken {
        id: String,
    },
    /// Spends one use of a token, for an agent that brings it (compare with `secret_hash`).
    EnrolAgent {
        token: String,
        secret_hash: [u8; 32],
        agent: Agent,
    },
    /// Spends one use of a node token; the node registers itself once it is a member.
    AdmitNode {
        token: String,
        secret_hash: [u8; 32],
        node: Node,
    },
    RemoveAgent(PeerId),
    CreateImage {
        id: ImageId,
        name: RepositoryName,
        kind: ImageKind,
        profile: ImageProfile,
        owner: String,
    },
    UpdateImage {
        id: ImageId,
        profile: ImageProfile,
    },
    /// With all its versions, tags and links.
    DeleteImage {
        id: ImageId,
    },
    BeginUpload(Upload),
    /// Moves a blob upload from `from` to `to`: compare-and-set, so that of two requests at the
    /// same offset one wins.
    AdvanceUpload {
        upload: UploadId,
        from: u64,
        to: u64,
        checkpoint: Option<ObjectKey>,
        multipart: Option<Multipart>,
        expires_at: Timestamp,
    },
    /// Records a part of a disk upload that is safe in storage; sending it again replaces it.
    RecordPart {
        upload: UploadId,
        part: u32,
        received: UploadPart,
        expires_at: Timestamp,
    },
    /// Takes the lease on a disk upload whose parts are all there (or whose lease ran out).
    ClaimIngest {
        upload: UploadId,
        node: shoal_content::NodeId,
        lease_until: Timestamp,
    },
    FailIngest {
        upload: UploadId,
        reason: String,
    },
    /// Ends a session without a result. Its parts are the proposer's to delete.
    AbortUpload {
        upload: UploadId,
    },
    /// Publishes a blob and links it to its repository, ending the session where there was one.
    /// Where the digest is there already, the stored object stays and the answer says so.
    CommitBlob {
        upload: Option<UploadId>,
        repository: RepositoryName,
        digest: Digest,
        size: u64,
        object: ObjectKey,
        recipe: RecipeId,
        owner: String,
        /// For the image row, where this makes the repository.
        image: ImageId,
    },
    /// Links a blob that another repository (or any, for `from: None`) holds.
    MountBlob {
        from: Option<RepositoryName>,
        to: RepositoryName,
        digest: Digest,
        owner: String,
        image: ImageId,
    },
    UnlinkBlob {
        repository: RepositoryName,
        digest: Digest,
    },
    PutManifest(PutManifest),
    DeleteManifest {
        repository: RepositoryName,
        digest: Digest,
    },
    /// Moves a tag to a version that is there.
    PutTag {
        repository: RepositoryName,
        tag: TagName,
        digest: Digest,
    },
    DeleteTag {
        repository: RepositoryName,
        tag: TagName,
    },
    CreateDeployment {
        id: DeploymentId,
        image: RepositoryName,
        digest: Digest,
        tag: Option<TagName>,
        hosts: BTreeSet<PeerId>,
        owner: String,
    },
    /// Only changes of state are replicated; progress is soft and stays outside Raft.
    ReportHost {
        deployment: DeploymentId,
        peer: PeerId,
        state: HostState,
    },
    CancelDeployment {
        id: DeploymentId,
    },
    /// Marks objects as being deleted whose count is zero and was since before
    /// `unreferenced_before`; those that are in use again are left out of the answer, which lists
    /// what may now be deleted. Until it is forgotten, no row can name such an object.
    SweepObjects {
        candidates: BTreeSet<ObjectKey>,
        unreferenced_before: Timestamp,
    },
    /// Ends sessions that expired at or before the command's time, at most `limit` of them.
    ExpireUploads {
        limit: u32,
    },
    /// Begins the deletion of these anew, of those that are being deleted: their bytes were found
    /// to be there still.
    RetryDeletion {
        objects: BTreeSet<ObjectKey>,
    },
    /// Forgets objects whose deletion began before `deleting_before` and whose bytes are gone.
    ForgetObjects {
        objects: BTreeSet<ObjectKey>,
        deleting_before: Timestamp,
    },
    /// Lets repositories let go of blobs that no version of theirs has referred to since before
    /// `loose_before`; links that are in use again stay.
    UnlinkLooseBlobs {
        links: BTreeSet<(ImageId, Digest)>,
        loose_before: Timestamp,
    },
    /// Counts objects that were found in storage and that no row knows: unreferenced from now on,
    /// so that they are kept for the grace period and then swept.
    AdoptObjects {
        objects: BTreeSet<ObjectKey>,
    },
    /// Keeps the account at an ACME server, in place of the one before.
    PutAcmeAccount(AcmeAccount),
    /// What any node answers to an ACME server's questions: token -> key authorization. Replaces
    /// those before.
    PutAcmeChallenges {
        answers: BTreeMap<String, String>,
    },
    /// Keeps the certificate that an ACME server has issued, in place of the one before.
    PutHttpCertificate(HttpCertificate),
    /// From now on commands up to this version may be proposed, and no node that knows less is let
    /// in. Refused while a member knows less; lower than the level there is, it changes nothing.
    RaiseLevel {
        to: u8,
    },
    /// Notes which program a node runs, for people to see.
    DescribeNode {
        id: shoal_content::NodeId,
        program: String,
    },
    /// Gives a blob, whose object storage has lost, the one that was stored when it was pushed
    /// again.
    HealBlob {
        digest: Digest,
        missing: ObjectKey,
        object: ObjectKey,
        recipe: RecipeId,
    },
    /// Refused where there is such a user.
    CreateUser(User),
    /// With its first owner, who is a user.
    CreateOrganization {
        organization: Organization,
        owner: AccountName,
    },
    /// Refused while it owns a project. Its groups go with it.
    RemoveOrganization {
        name: AccountName,
    },
    CreateGroup(Group),
    RemoveGroup {
        organization: AccountName,
        name: AccountName,
    },
    CreateProject(Project),
    UpdateProject {
        name: ProjectName,
        visibility: Visibility,
        description: String,
        /// `None` stays as it is.
        owner: Option<Owner>,
    },
    /// Refused while it has images. Its members and robots go with it.
    RemoveProject {
        name: ProjectName,
    },
    /// Gives a right, in place of the one that the grantee has there.
    PutRight {
        place: Place,
        grantee: Grantee,
        right: Right,
    },
    RemoveRight {
        place: Place,
        grantee: Grantee,
    },
    /// Makes a robot, or replaces it with its secret.
    PutRobot(Robot),
    RemoveRobot(RobotName),
    CreatePersonalToken(PersonalToken),
    RemovePersonalToken {
        user: AccountName,
        id: String,
    },
    /// Notes when tokens were last used, by the hash of their secrets.
    NoteTokenUses {
        uses: BTreeMap<[u8; 32], Timestamp>,
    },
    /// Sets a project's policy, where the one it has is of revision `expected` (0 is none).
    SetPolicy {
        project: ProjectName,
        rules: PolicyRules,
        expected: Option<u64>,
        by: String,
    },
    RemovePolicy {
        project: ProjectName,
    },
    /// Drops what was judged, as far as it is still as it was judged.
    Retire(Retire),
    /// Notes when tags and versions were last pulled.
    NotePulls {
        pulls: BTreeMap<ImageId, ImagePulls>,
    },
    /// Sets what may be held, in place of the limits there are.
    SetQuota {
        of: QuotaOf,
        limits: QuotaLimits,
        by: String,
    },
    RemoveQuota {
        of: QuotaOf,
    },
    /// Reserves so many bytes in all for a blob's session, before they come.
    ReserveUpload {
        upload: UploadId,
        bytes: u64,
    },
    /// Counts what is held anew, and keeps accounts from now on.
    CountUsage,
    /// Adds up what was tried in vain since the last time, by the rules of who noted it.
    NoteFailures {
        failures: BTreeMap<Failure, u32>,
        rules: LockoutRules,
    },
    /// Lets somebody in again.
    Unblock {
        suspect: Suspect,
    },
    /// Carries a command out on somebody's behalf, and records it.
    Audited {
        source: AuditSource,
        command: Box<Command>,
    },
    /// Records what happened at a node and changed nothing.
    NoteAudit(AuditBatch),
    /// Lets the oldest entries of the audit trail go, which are in storage now.
    ArchiveAudit(AuditArchive),
    /// Makes an image with all that is said of it.
    CreateDescribedImage {
        id: ImageId,
        name: RepositoryName,
        kind: ImageKind,
        profile: ImageProfile,
        note: ImageNote,
        owner: String,
    },
    /// Replaces what is said of an image.
    DescribeImage {
        id: ImageId,
        profile: ImageProfile,
        note: ImageNote,
    },
    /// Deletes an image so that it can be restored; refused while an instance uses it.
    TrashImage {
        id: ImageId,
        by: String,
    },
    /// Brings a deleted image back under its name, which must be free.
    RestoreImage {
        id: ImageId,
    },
    /// Begins an upload with what its version will be told of.
    BeginDescribedUpload {
        upload: Upload,
        note: UploadNote,
    },
    /// Publishes a disk. It becomes the latest version, with the tag `latest`, where its number says
    /// so or that tag is among its own.
    PublishDisk {
        put: PutManifest,
        compressed_bytes: u64,
    },
    /// What is `None` stays as it is.
    DescribeVersion {
        image: ImageId,
        digest: Digest,
        changelog: Option<String>,
        build_info: Option<String>,
        by: String,
    },
    /// Says that a version should be used no more; without a message, that it may be again.
    DeprecateVersion {
        image: ImageId,
        digest: Digest,
        message: Option<String>,
        by: String,
    },
    /// Moves a tag that is there to another version; with `latest` that is the latest one then.
    Rollback {
        image: ImageId,
        tag: TagName,
        to: Digest,
    },
    /// Registers an instance, or (`replace`) says that it runs something else from now on.
    RegisterInstance {
        instance: Instance,
        replace: bool,
    },
    RemoveInstance {
        name: InstanceName,
    },
    /// Stars images, or takes stars back; what is gone is passed over.
    NoteStars {
        stars: BTreeMap<(String, ImageId), bool>,
    },
    NoteDownloads(DownloadBatch),
    /// Takes, renews or takes over the work of getting an upload's file from elsewhere.
    ClaimImport {
        upload: UploadId,
        node: shoal_content::NodeId,
        lease_until: Timestamp,
    },
    /// Gives a user a second factor, which is asked for once it is confirmed.
    BeginSecondFactor {
        user: String,
        secret: Secret,
    },
    /// With the hashes of the codes for when the device is lost.
    ConfirmSecondFactor {
        user: String,
        step: u64,
        recovery: BTreeSet<[u8; 32]>,
    },
    /// Takes what was brought, so that it is not good a second time.
    UseSecondFactor {
        user: String,
        proof: Proof,
    },
    PutRecoveryCodes {
        user: String,
        recovery: BTreeSet<[u8; 32]>,
    },
    RemoveSecondFactor {
        user: String,
    },
    /// Of the user's sessions at most `limit` stay, this one among them.
    BeginSession {
        session: Session,
        limit: u32,
    },
    EndSession {
        user: String,
        id: String,
    },
    /// All of a user's, but one.
    EndSessions {
        user: String,
        keep: Option<String>,
    },
    /// Ends the user's sessions but one.
    ChangePassword {
        user: String,
        password_hash: Secret,
        keep: Option<String>,
    },
    /// Says who somebody is here whom another issuer vouches for; makes the account where `create`
    /// has it.
    LinkIdentity {
        identity: Identity,
        create: Option<User>,
    },
    UnlinkIdentity {
        issuer: String,
        subject: String,
    },
    PutWorkloadRule(WorkloadRule),
    RemoveWorkloadRule {
        project: ProjectName,
        name: AccountName,
    },
    /// The user is removed at that time, unless it changes its mind.
    LeaveLater {
        user: String,
        due: Timestamp,
    },
    Stay {
        user: String,
    },
    /// Writes down who holds which blob and how many uploads each account has open, and keeps that
    /// from now on.
    IndexBlobs,
    /// Begins an upload of a blob, unless its account has `open_max` open already.
    BeginBlobUpload {
        upload: Upload,
        open_max: u64,
    },
    /// A deployment with how it is to be carried out.
    OrderDeployment(DeploymentOrder),
    /// Holds a deployment up, or lets it go on.
    PauseDeployment {
        id: DeploymentId,
        paused: bool,
    },
    /// Lets the hosts that failed try again, until another deadline where the last one is over.
    RetryDeployment {
        id: DeploymentId,
        deadline: Option<Timestamp>,
    },
    /// Adds hosts to a deployment, or lets those of them that failed try again.
    ExtendDeployment {
        id: DeploymentId,
        hosts: BTreeSet<PeerId>,
    },
    /// Like `ReportHost`, of one attempt: what is said of an attempt before counts no more, but for
    /// that the version is there.
    ReportAttempt {
        deployment: DeploymentId,
        peer: PeerId,
        attempt: u32,
        state: HostState,
    },
    /// Ends what deployments have not done whose deadlines are at or before the command's time; of
    /// at most `limit` deployments.
    PassDeadlines {
        limit: u32,
    },
    CreateWarmUp(WarmUp),
    RemoveWarmUp {
        name: AccountName,
    },
    /// Orders what a policy's tag names now, in place of what the policy had ordered (`expected`).
    RunWarmUp {
        name: AccountName,
        expected: Option<DeploymentId>,
        id: DeploymentId,
        digest: Digest,
        hosts: BTreeSet<PeerId>,
    },
    /// Takes, renews or takes over the work of making a bundle that leads from one version to another.
    ClaimDelta {
        of: DeltaKey,
        node: shoal_content::NodeId,
        lease_until: Timestamp,
    },
    /// Ends that work; without a bundle where none is worth its bytes.
    EndDelta {
        of: DeltaKey,
        node: shoal_content::NodeId,
        bundle: Option<DeltaBundle>,
    },
    /// Notes when bundles were last given to somebody.
    NoteDeltaUses {
        uses: BTreeMap<DeltaKey, Timestamp>,
    },
    /// Drops bundles that nobody was given since then.
    DropDeltas {
        deltas: BTreeSet<DeltaKey>,
        unused_before: Timestamp,
    },
    /// Keeps a manifest of another registry's, in a project that is there. What it refers to may
    /// come later: it is held from then on.
    CacheManifest(PutManifest),
    /// A new key to sign with; refused where `newest` is not the newest any more.
    RotateSigningKey {
        purpose: KeyPurpose,
        newest: u32,
        private: Secret,
        /// Others learn of it before.
        signs_from: Timestamp,
        /// Nothing is believed that those before it have signed, and it signs at once.
        distrusted: bool,
    },
    /// Gives a user a passkey; refused where `owner` is not what is there any more.
    AddPasskey {
        passkey: Passkey,
        owner: PasskeyOwner,
    },
    /// Takes a passkey's answer to a challenge, so that it is not good a second time.
    UsePasskey {
        user: String,
        id: String,
        answered: Answered,
        counter: u32,
        /// `None` stays as it is.
        key: Option<Vec<u8>>,
    },
    /// What is `None` stays as it is.
    UpdatePasskey {
        user: String,
        id: String,
        name: Option<String>,
        second_factor: Option<bool>,
    },
    /// One of the user's, or all of them.
    RemovePasskeys {
        user: String,
        id: Option<String>,
    },
    /// Gives a project, or the cluster itself, a key to seal objects with, in place of the one of
    /// `replaces`; refused where that is not the one it has.
    MakeDataKey {
        owner: KeyOwner,
        id: DataKeyId,
        replaces: Option<DataKeyId>,
        master: String,
        wrapped: Secret,
    },
    /// Data keys as another master key has wrapped them; those that are destroyed stay so.
    WrapDataKeys {
        master: String,
        keys: BTreeMap<DataKeyId, Secret>,
    },
    /// Makes objects readable by other data keys than those that they were sealed with.
    HandOverObjects {
        objects: BTreeMap<ObjectKey, HandedKey>,
    },
    /// Destroys those of these data keys whose project was removed before `retired_before`.
    DestroyDataKeys {
        keys: BTreeSet<DataKeyId>,
        retired_before: Timestamp,
    },
    /// Notes which master keys a node has, by their ids.
    NoteMasterKeys {
        node: shoal_content::NodeId,
        masters: BTreeSet<String>,
    },
    /// Removes an agent whose certificate holds until then at the latest: peers are told to have
    /// nothing to do with it.
    ExpelAgent {
        peer: PeerId,
        until: Timestamp,
    },
    /// Seals secrets of the cluster where they are.
    SealSecrets {
        secrets: BTreeMap<SecretPlace, SealedSecret>,
    },
    /// Gives an administrator who has lost the way in another password, and takes away all that it
    /// logged in with before. Nobody else's account is opened so.
    RecoverAdministrator {
        user: String,
        password_hash: Secret,
    },
    /// Goes on with putting another certificate authority in the place of the one that there is.
    StepAuthority(AuthorityStep),
    /// Replaces what is said of an image; refused where that is not `from` any more.
    RedescribeImage {
        id: ImageId,
        from: Box<ImageDescription>,
        to: Box<ImageDescription>,
    },
    /// Ends an image for good, whether it was deleted before or not: from the first of these on it
    /// has no name and cannot be restored. Each lets versions and what else there is go until
    /// `rows_max` rows were written; to be sent until the answer says that all is gone.
    PurgeImage {
        id: ImageId,
        by: String,
        rows_max: u32,
    },
    /// Like `ReportAttempt` of many hosts, or `ReportHost` where a deployment has no plan. What is gone
    /// is passed over.
    ReportHosts {
        reports: BTreeMap<DeploymentId, BTreeMap<PeerId, HostReport>>,
    },
    /// Has a user be in a group exactly where (`belongs`) the groups that it has elsewhere say so. The
    /// membership of the organization that this takes is given with it, and ends with the last group;
    /// one that was given by itself stays.
    FollowGroup {
        organization: AccountName,
        group: AccountName,
        user: AccountName,
        belongs: bool,
    },
    /// Says where a user gets mail; an empty text says nothing any more.
    SetEmail {
        user: String,
        email: String,
    },
    /// Orders that vulnerabilities are looked for in a version; where that is ordered already, the
    /// answer names the order that there is.
    OrderScan {
        of: ScanKey,
        id: ScanId,
        by: String,
    },
    /// Takes or takes over that work, or (`renews`) says that it is still under way.
    ClaimScan {
        of: ScanKey,
        id: ScanId,
        node: shoal_content::NodeId,
        lease_until: Timestamp,
        renews: bool,
    },
    EndScan {
        of: ScanKey,
        id: ScanId,
        node: shoal_content::NodeId,
        outcome: ScanOutcome,
    },
    /// Has disk versions live where their chunks were written anew, and let go of the packs in which
    /// they lay. Versions that are gone are passed over; refused where chunks of one of the recipes
    /// were moved by somebody else meanwhile.
    MoveChunks(MovedChunks),
    /// Says that images were looked through for packs that are mostly garbage since they lost a
    /// version, with the time when they had lost the last one.
    SettleImages {
        images: BTreeMap<ImageId, Timestamp>,
    },
    /// Writes down what lists go by, in a cluster that was founded before that was kept: the audiences and
    /// owners of projects, how much images have, the order in which tags were set. Once more changes
    /// nothing but the time.
    IndexLists,
    /// Counts somebody who asks for an account of its own from `address`, which is blocked without an
    /// end by the one that makes `limit` within the window.
    NoteRegistration {
        address: Suspect,
        limit: u32,
        window_ms: u64,
    },
    /// Keeps a user's password by another hash of it, where the one that it is kept by is `from` (its
    /// BLAKE3). Sessions go on.
    RehashPassword {
        user: String,
        from: [u8; 32],
        to: Secret,
    },
}

/// What goes from one repository. Sound whatever it holds: everything is looked at again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retire {
    pub image: ImageId,
    /// Of the policy that was judged by.
    pub revision: u64,
    pub judged_at: Timestamp,
    /// Untagged versions go that are quiet since then or longer; `None` is none.
    pub quiet_before: Option<Timestamp>,
    /// With what they were judged by.
    pub tags: BTreeMap<TagName, NameUse>,
    /// Disk versions by their numbers; those that have a tag stay.
    pub numbers: BTreeMap<String, NameUse>,
    /// Container versions without a tag, in the order in which they go.
    pub untagged: Vec<Digest>,
}

/// The last pulls from one repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagePulls {
    pub tags: BTreeMap<TagName, Timestamp>,
    pub versions: BTreeMap<Digest, Timestamp>,
}

/// A manifest with what was read out of it: the state machine knows no OCI JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutManifest {
    pub repository: RepositoryName,
    /// For the image row, where this makes the repository.
    pub image: ImageId,
    pub version: VersionId,
    pub kind: ImageKind,
    pub digest: Digest,
    pub media_type: String,
    /// Exactly as sent; at most [`MANIFEST_BYTES_MAX`].
    pub manifest: Vec<u8>,
    pub artifact_type: Option<String>,
    pub annotations: BTreeMap<String, String>,
    pub subject: Option<Digest>,
    pub references: BTreeSet<Reference>,
    pub disk: Option<Disk>,
    pub tags: Vec<TagName>,
    pub owner: String,
    /// The disk upload that this publishes, which it ends.
    pub upload: Option<UploadId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    Done,
    Image(ImageId),
    Version {
        id: VersionId,
        sequence: u64,
        created: bool,
    },
    /// `stored` is the object that now holds the blob: where it is not the committed one, the
    /// proposer's bytes are a duplicate to delete.
    Blob {
        stored: ObjectKey,
    },
    /// Objects no row refers to any more, to be deleted by the proposer now.
    Swept(BTreeSet<ObjectKey>),
    /// The sessions that ended, whose parts are the proposer's to delete.
    Expired(Vec<Upload>),
    /// The session that was aborted.
    Aborted(Upload),
    /// So many objects were counted that no row knew.
    Adopted(u64),
    Policy {
        revision: u64,
    },
    /// What is gone now.
    Retired {
        tags: BTreeSet<TagName>,
        versions: BTreeSet<Digest>,
    },
    /// Whether an image that is to be gone for good is.
    Purged {
        gone: bool,
    },
    /// The order that stands.
    Scan(ScanId),
}

/// Why a command changed nothing. These are answers for users, not failures.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum Refusal {
    #[error("the cluster was founded already")]
    AlreadyFounded,
    #[error("there is no such {0}")]
    NotFound(Subject),
    #[error("there is such a {0} already")]
    Exists(Subject),
    /// Compare-and-set: the session stands at this offset.
    #[error("the upload stands at byte {0}")]
    OffsetMismatch(u64),
    #[error("the upload is not in a state for that: {0}")]
    UploadState(String),
    #[error("a part is out of range: part {part}, {bytes} bytes")]
    PartOutOfRange { part: u32, bytes: u64 },
    #[error("referenced content is missing: {0}")]
    MissingReference(Digest),
    #[error("the manifest is longer than {MANIFEST_BYTES_MAX} bytes")]
    ManifestTooLong,
    #[error("the join token is unknown, spent or has expired")]
    JoinToken,
    #[error(
        "the image holds {}, and what was pushed is of the other kind; take another name",
        match .0 { ImageKind::Disk => "disks", ImageKind::Container => "container images" }
    )]
    WrongKind(ImageKind),
    #[error("the last administrator cannot be removed")]
    LastAdmin,
    #[error("a limit was reached: {0}")]
    Limit(String),
    #[error("another node holds the work until its lease runs out")]
    Leased,
    #[error("the stored object {0} is being deleted; try again later")]
    BeingDeleted(ObjectKey),
    #[error("node {node} knows commands up to version {knows} only; upgrade it first")]
    TooOld { node: shoal_content::NodeId, knows: u8 },
    #[error("the {subject} is in use: {by}")]
    InUse { subject: Subject, by: String },
    #[error("the last owner of an organization cannot leave it")]
    LastOwner,
    #[error("such a right cannot be had there")]
    WrongRight,
    #[error("in the meantime the project came to be somebody else's, or your right to it ended")]
    NotYours,
    /// By the project's policy.
    #[error("{repository}:{name} is immutable by its project's policy, and so is what it names")]
    Immutable { repository: RepositoryName, name: String },
    #[error("immutable images may need {0}, so that the repository keeps it")]
    BlobNeeded(Digest),
    #[error("the project's policy was changed in the meantime")]
    PolicyChanged,
    #[error(transparent)]
    Policy(PolicyError),
    #[error(transparent)]
    Quota(Exceeded),
    #[error("the code was used already")]
    CodeUsed,
    #[error(
        "the account has {open} uploads open, and may have {most} at once: end some, or cancel them \
         (DELETE of their Location); where nothing comes any more they end by themselves after a day"
    )]
    TooManyUploads { open: u64, most: u64 },
    #[error("the deployment is not in a state for that: {0}")]
    DeploymentState(String),
    #[error("this was answered already, or too late; begin again")]
    ChallengeUsed,
    #[error(
        "the passkey's counter went back, from {before} to {counter}: somebody may have a copy of it; \
         remove it, and register it anew"
    )]
    CounterBehind { counter: u32, before: u32 },
    #[error(
        "node {node} has not said that it has the master key {master}; start it with that key, or remove it"
    )]
    MasterKeyMissing { node: shoal_content::NodeId, master: String },
    #[error("data keys are wrapped by the master key {0}")]
    OtherMasterKey(String),
    /// Compare-and-set: it is not what it is to be changed from.
    #[error("the {0} was changed in the meantime")]
    Changed(Subject),
    #[error("the last node cannot be removed")]
    LastNode,
}

/// The kinds of thing that can be missing or there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subject {
    Cluster,
    Node,
    User,
    JoinToken,
    Agent,
    Image,
    Version,
    Tag,
    Blob,
    Upload,
    Deployment,
    Project,
    Organization,
    Group,
    Right,
    Robot,
    Token,
    Policy,
    Quota,
    Block,
    Instance,
    SecondFactor,
    Session,
    Identity,
    WorkloadRule,
    Leaving,
    WarmUp,
    Delta,
    SigningKey,
    Passkey,
    DataKey,
    Authority,
    Scan,
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cluster => "cluster",
            Self::Node => "node",
            Self::User => "user",
            Self::JoinToken => "join token",
            Self::Agent => "agent",
            Self::Image => "image",
            Self::Version => "version",
            Self::Tag => "tag",
            Self::Blob => "blob",
            Self::Upload => "upload",
            Self::Deployment => "deployment",
            Self::Project => "project",
            Self::Organization => "organization",
            Self::Group => "group",
            Self::Right => "membership or grant",
            Self::Robot => "robot",
            Self::Token => "token",
            Self::Policy => "policy",
            Self::Quota => "quota",
            Self::Block => "block",
            Self::Instance => "instance",
            Self::SecondFactor => "second factor",
            Self::Session => "session",
            Self::Identity => "identity",
            Self::WorkloadRule => "workload rule",
            Self::Leaving => "deletion of the account",
            Self::WarmUp => "warm-up policy",
            Self::Delta => "delta bundle",
            Self::SigningKey => "signing key",
            Self::Passkey => "passkey",
            Self::DataKey => "data key",
            Self::Authority => "authority",
            Self::Scan => "scan",
        })
    }
}

/// What observers on every node are told after a command was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    DeploymentChanged(DeploymentId),
    MembersChanged,
    AgentsChanged,
    TagMoved {
        repository: RepositoryName,
        tag: TagName,
    },
    UploadChanged(UploadId),
    WarmUpsChanged,
    DeltaChanged(DeltaKey),
    SigningKeysChanged,
    /// A snapshot took the place of all rows: what was observed is to be looked at again, as where
    /// events were missed.
    AllChanged,
    AuthoritiesChanged,
    ScansChanged,
}
