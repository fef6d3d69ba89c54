//! The rows of the metadata: what the cluster agrees on, one struct for each table.
//!
//! Rows are stored with a version byte (see `codec`); a field is only ever added with a new
//! version, and the old one is migrated on reading.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use shoal_content::{
    ClusterId, DeploymentId, Digest, ImageId, Labels, NodeId, ObjectKey, PeerId, RecipeId,
    RepositoryName, TagName, Timestamp, UploadId, VersionId, Zone,
};

/// The cluster itself: one row, written when it is founded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    pub id: ClusterId,
    pub founded_at: Timestamp,
    /// The certificate authority that every node and agent is signed by, PEM.
    pub authority_certificate: String,
    /// Its private key, PKCS#8 PEM. Every node can sign, so any of them can enrol an agent.
    pub authority_key: Secret,
    /// Ed25519 PKCS#8 (DER): signs tickets.
    pub ticket_key: Secret,
    /// Ed25519 PKCS#8 (DER): signs Bearer tokens.
    pub token_key: Secret,
    /// 32 bytes: the pre-shared key of the libp2p private network.
    pub network_key: Secret,
}

/// Bytes that no log and no `Debug` output shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(pub Vec<u8>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A member of the Raft group, as others reach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    pub name: String,
    pub peer: PeerId,
    pub zone: Zone,
    /// `host:port` of its Raft endpoint (QUIC).
    pub raft_address: String,
    /// `host:port` of its peer endpoint (QUIC; chunks and tracker).
    pub peer_address: String,
    /// `host:port` of its libp2p endpoint (TCP).
    pub discovery_address: String,
    /// `https://host:port` of its HTTP API.
    pub api_url: String,
    /// The newest command version it can apply.
    pub command_version: u8,
    pub joined_at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UserRole {
    Admin,
    User,
    /// Sees everything and changes nothing.
    Auditor,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub name: String,
    /// An argon2id hash in PHC form.
    pub password_hash: Secret,
    pub role: UserRole,
    pub created_at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinRole {
    Agent,
    Node,
}

/// A token that lets new members in; known by the BLAKE3 of its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// Public; 12 to 32 letters and digits.
    pub id: String,
    pub secret_hash: [u8; 32],
    pub role: JoinRole,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    /// How many more may join with it; `None` is any number until it expires.
    pub uses_left: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentRole {
    Host,
    /// An edge room's cache: bigger, preferred by its zone.
    Cache,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    pub peer: PeerId,
    /// Unique among agents; usually the host's name.
    pub name: String,
    pub role: AgentRole,
    pub zone: Zone,
    pub labels: Labels,
    pub enrolled_at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageKind {
    Disk,
    Container,
}

/// A repository: a name with versions and tags.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    pub id: ImageId,
    pub name: RepositoryName,
    pub kind: ImageKind,
    pub profile: ImageProfile,
    /// The user who made it.
    pub owner: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// The sequence that the next version gets; from 1, never used again.
    pub next_sequence: u64,
    /// The version that was pushed last and is still there.
    pub latest: Option<Digest>,
}

/// What people say of an image; nothing here decides anything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageProfile {
    pub display_name: String,
    pub description: String,
    pub image_type: String,
    pub os_type: String,
    pub os_version: String,
    pub architecture: String,
    /// The format that downloads default to, for instance `qcow2`.
    pub format: String,
    pub visibility: String,
    pub min_cpu_cores: u32,
    pub min_memory_mb: u64,
    pub min_disk_gb: u64,
    pub labels: Labels,
}

/// What a version refers to inside its own repository.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Reference {
    /// A blob that must be there when the manifest is put.
    Blob { digest: Digest, size: u64 },
    /// Another manifest (of an index) that must be there.
    Manifest { digest: Digest, size: u64 },
}

impl Reference {
    pub fn digest(&self) -> &Digest {
        match self {
            Self::Blob { digest, .. } | Self::Manifest { digest, .. } => digest,
        }
    }
}

/// An immutable version, by the digest of its manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    pub id: VersionId,
    pub image: ImageId,
    pub digest: Digest,
    pub media_type: String,
    pub artifact_type: Option<String>,
    /// None of them, where they are longer than [`crate::ANNOTATIONS_KEPT_BYTES_MAX`].
    pub annotations: BTreeMap<String, String>,
    /// The manifest that this one is about (OCI `subject`); it need not exist.
    pub subject: Option<Digest>,
    pub references: BTreeSet<Reference>,
    /// For disks: the content, where a container has references.
    pub disk: Option<Disk>,
    pub sequence: u64,
    /// Length of the manifest, in bytes.
    pub manifest_bytes: u64,
    pub created_at: Timestamp,
    pub created_by: String,
}

/// The annotations of a disk version that say which file the registry gives for it.
pub const FILE_DIGEST: &str = "io.shoal.disk.file-digest";
pub const FILE_BYTES: &str = "io.shoal.disk.file-bytes";

impl Version {
    /// The file that the registry gives for a disk: its digest and its length in bytes. `None` for
    /// a container, and for a disk of which none was made.
    pub fn file(&self) -> Option<(Digest, u64)> {
        self.disk.as_ref()?;
        let digest = self.annotations.get(FILE_DIGEST)?.parse().ok()?;
        let bytes = self.annotations.get(FILE_BYTES)?.parse().ok()?;
        Some((digest, bytes))
    }
}

/// A disk version's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    pub recipe: RecipeId,
    /// What the guest sees, in bytes.
    pub virtual_bytes: u64,
    /// Content that is not zero, in bytes.
    pub content_bytes: u64,
    /// What this version alone added to storage, in bytes.
    pub added_bytes: u64,
    /// Every object the version lives in: its recipe and its packs, and a placement where chunks were
    /// moved (see `relocation`).
    pub objects: BTreeSet<ObjectKey>,
    /// `1.2.3` or whatever its uploader called it; unique in the image.
    pub number: String,
    /// The format it was uploaded in.
    pub source_format: String,
}

/// A blob, cluster-wide: once in storage however many repositories hold it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    pub digest: Digest,
    pub size: u64,
    pub object: ObjectKey,
    pub recipe: RecipeId,
}

/// How many rows refer to an object of central storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectUse {
    pub count: u64,
    /// When the count last fell to zero; collection waits a grace period from here.
    pub unreferenced_since: Option<Timestamp>,
}

/// What an upload session is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum UploadPurpose {
    /// An OCI blob: one stream, in order.
    Blob {
        repository: RepositoryName,
        /// Bytes that are safe in storage.
        offset: u64,
        /// The object that holds what the next request needs to go on; `None` at offset 0.
        checkpoint: Option<ObjectKey>,
        /// Where the bytes go, once there is more than a checkpoint holds.
        multipart: Option<Multipart>,
    },
    /// A disk file in parts of equal size, in any order.
    Disk {
        image: ImageId,
        /// The version number it will get.
        number: String,
        tags: Vec<TagName>,
        total_bytes: u64,
        part_bytes: u64,
        /// `None` is: find out.
        format: Option<String>,
        parts: BTreeMap<u32, UploadPart>,
        state: DiskUploadState,
    },
}

/// A multipart upload that storage has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Multipart {
    /// What it will be once it is whole.
    pub object: ObjectKey,
    /// Storage's own name for it.
    pub id: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadPart {
    pub bytes: u64,
    pub sha256: [u8; 32],
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskUploadState {
    Receiving,
    /// A node is reading the disk; it renews the lease or another may take over.
    Ingesting {
        node: NodeId,
        lease_until: Timestamp,
    },
    Published {
        version: VersionId,
    },
    /// With the reason that the user is told.
    Failed {
        reason: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    pub id: UploadId,
    pub owner: String,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    pub purpose: UploadPurpose,
}

/// What one host has come to in a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostState {
    Waiting,
    Running,
    Done {
        bytes_from_peers: u64,
        bytes_from_nodes: u64,
        bytes_local: u64,
    },
    Failed {
        reason: String,
    },
    /// Not told yet: the deployment is held up, or as many are at work as may be.
    Queued,
}

/// One order: this version, on those hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    pub id: DeploymentId,
    pub image: RepositoryName,
    pub digest: Digest,
    /// The tag it was ordered by, if any: agents keep the name for their mirror.
    pub tag: Option<TagName>,
    pub created_at: Timestamp,
    pub created_by: String,
    pub hosts: BTreeMap<PeerId, HostState>,
    pub cancelled: bool,
}

/// The account at an ACME server (RFC 8555) that the nodes' certificate is ordered by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcmeAccount {
    /// Of the server that knows it.
    pub directory_url: String,
    /// As the client of the protocol keeps them: its URL and its private key.
    pub credentials: Secret,
}

/// A certificate for HTTPS that all nodes serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpCertificate {
    /// Names and addresses that it was ordered for, sorted.
    pub names: Vec<String>,
    /// PEM, the server's own certificate first.
    pub chain: String,
    /// PKCS#8, PEM.
    pub key: Secret,
    pub valid_from: Timestamp,
    pub valid_until: Timestamp,
}
