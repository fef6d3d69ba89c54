//! The bytes that rows are stored under.
//!
//! Numbers and times are big-endian, so that byte order is their order; where the newest must come
//! first they are counted down from the maximum. Every part before the last has a fixed length, or
//! says its own (a digest starts with its algorithm), so that no key is the beginning of another
//! of the same shape and a prefix names exactly one thing.

use shoal_content::{
    AccountName, Algorithm, DataKeyId, DeploymentId, Digest, ImageId, InstanceName, NodeId,
    ObjectKey, PeerId, ProjectName, RepositoryName, TagName, Timestamp, UploadId, VersionId,
};

use crate::delta::DeltaKey;
use crate::encryption::KeyOwner;
use crate::keys::KeyPurpose;
use crate::lockout::Suspect;
use crate::passkey::Answered;
use crate::quota::{Content, Payer, QuotaOf};
use crate::rights::{Audience, Grantee, Owner, Place, PlaceKind, RobotName};
use crate::scan::ScanKey;
use crate::table::Fault;

pub const ID_BYTES: usize = 16;
pub const TIME_BYTES: usize = 8;

/// The cluster's level, in its table.
pub const LEVEL: &[u8] = b"level";

/// Before a node's id: what it runs.
const PROGRAM: &[u8] = b"program";

/// What a node runs, in the cluster's table.
pub fn program(id: NodeId) -> Vec<u8> {
    join(&[PROGRAM, &node(id)])
}

pub fn is_program(key: &[u8]) -> bool {
    key.starts_with(PROGRAM)
}

/// The keys to sign with, in the cluster's table.
pub fn signing_keys(purpose: KeyPurpose) -> &'static [u8] {
    match purpose {
        KeyPurpose::Token => b"signing-token",
        KeyPurpose::Ticket => b"signing-ticket",
    }
}

/// Before a node's id: what it says of authorities.
const NODE_AUTHORITY: &[u8] = b"authority-of";

/// What a node says of authorities, in the cluster's table.
pub fn node_authority(id: NodeId) -> Vec<u8> {
    join(&[NODE_AUTHORITY, &node(id)])
}

pub fn is_node_authority(key: &[u8]) -> bool {
    key.starts_with(NODE_AUTHORITY)
}

/// Rows of the cluster's besides its own, which has no key.
pub const AUTHORITIES: &[u8] = b"authorities";
pub const ACME_ACCOUNT: &[u8] = b"acme-account";
pub const ACME_CHALLENGES: &[u8] = b"acme-challenges";
pub const HTTP_CERTIFICATE: &[u8] = b"http-certificate";

/// Parts, one after another.
pub fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

pub fn node(id: NodeId) -> [u8; 8] {
    id.number().to_be_bytes()
}

pub fn image(id: ImageId) -> [u8; ID_BYTES] {
    *id.as_uuid().as_bytes()
}

pub fn version(id: VersionId) -> [u8; ID_BYTES] {
    *id.as_uuid().as_bytes()
}

pub fn upload(id: UploadId) -> [u8; ID_BYTES] {
    *id.as_uuid().as_bytes()
}

pub fn deployment(id: DeploymentId) -> [u8; ID_BYTES] {
    *id.as_uuid().as_bytes()
}

pub fn peer(id: PeerId) -> [u8; 32] {
    *id.as_public_key()
}

/// The algorithm (1 is SHA-256, 2 is SHA-512), then the raw bytes.
pub fn digest(digest: &Digest) -> Vec<u8> {
    let algorithm = match digest.algorithm() {
        Algorithm::Sha256 => 1,
        Algorithm::Sha512 => 2,
    };
    join(&[&[algorithm], digest.as_bytes()])
}

pub fn image_digest(id: ImageId, of: &Digest) -> Vec<u8> {
    join(&[&image(id), &digest(of)])
}

pub fn sequence(id: ImageId, sequence: u64) -> Vec<u8> {
    join(&[&image(id), &(u64::MAX - sequence).to_be_bytes()])
}

pub fn number(id: ImageId, number: &str) -> Vec<u8> {
    join(&[&image(id), number.as_bytes()])
}

pub fn delta(of: &DeltaKey) -> Vec<u8> {
    join(&[&image(of.image), of.old.as_bytes(), of.new.as_bytes()])
}

/// The digest first, so that the repositories that have one stand together.
pub fn scan(of: &ScanKey) -> Vec<u8> {
    join(&[&digest(&of.digest), &image(of.image)])
}

/// The one that was ordered first comes first.
pub fn open_scan(ordered: Timestamp, of: &ScanKey) -> Vec<u8> {
    join(&[&time(ordered), &image_digest(of.image, &of.digest)])
}

/// `file` is what the disk version is pulled as.
pub fn disk_file(id: ImageId, file: &Digest, version: &Digest) -> Vec<u8> {
    join(&[&image(id), &digest(file), &digest(version)])
}

pub fn referrer(id: ImageId, subject: &Digest, referrer: &Digest) -> Vec<u8> {
    join(&[&image(id), &digest(subject), &digest(referrer)])
}

/// `parent` is an index that lists `child`.
pub fn manifest_parent(id: ImageId, child: &Digest, parent: &Digest) -> Vec<u8> {
    join(&[&image(id), &digest(child), &digest(parent)])
}

/// `version` refers to `content`, which is not there yet.
pub fn awaited_content(id: ImageId, content: &Digest, version: &Digest) -> Vec<u8> {
    join(&[&image(id), &digest(content), &digest(version)])
}

/// The same the other way round.
pub fn awaiting_version(id: ImageId, version: &Digest, content: &Digest) -> Vec<u8> {
    join(&[&image(id), &digest(version), &digest(content)])
}

pub fn tag(id: ImageId, name: &TagName) -> Vec<u8> {
    join(&[&image(id), name.as_str().as_bytes()])
}

/// Those that were set last come first.
pub fn tag_order(id: ImageId, pushed: Timestamp, name: &TagName) -> Vec<u8> {
    let counted_down = (u64::MAX - pushed.as_millis()).to_be_bytes();
    join(&[&image(id), &counted_down, name.as_str().as_bytes()])
}

pub fn version_tag(id: ImageId, of: &Digest, name: &TagName) -> Vec<u8> {
    join(&[&image(id), &digest(of), name.as_str().as_bytes()])
}

pub fn object(key: &ObjectKey) -> Vec<u8> {
    key.to_string().into_bytes()
}

pub fn time(at: Timestamp) -> [u8; TIME_BYTES] {
    at.as_millis().to_be_bytes()
}

pub fn unreferenced(since: Timestamp, key: &ObjectKey) -> Vec<u8> {
    join(&[&time(since), &object(key)])
}

pub fn upload_expiry(at: Timestamp, id: UploadId) -> Vec<u8> {
    join(&[&time(at), &upload(id)])
}

pub fn deployment_time(at: Timestamp, id: DeploymentId) -> Vec<u8> {
    join(&[&(u64::MAX - at.as_millis()).to_be_bytes(), &deployment(id)])
}

pub fn deployment_deadline(at: Timestamp, id: DeploymentId) -> Vec<u8> {
    join(&[&time(at), &deployment(id)])
}

pub fn pending(of: PeerId, id: DeploymentId) -> Vec<u8> {
    join(&[&peer(of), &deployment(id)])
}

/// No name has it: it ends a name inside a key.
const END: u8 = 0;

pub fn group_prefix(organization: &AccountName) -> Vec<u8> {
    join(&[organization.as_str().as_bytes(), &[END]])
}

pub fn group(organization: &AccountName, name: &AccountName) -> Vec<u8> {
    join(&[&group_prefix(organization), name.as_str().as_bytes()])
}

/// What the keys of all rights at a place begin with.
pub fn place(place: &Place) -> Vec<u8> {
    let name = match place {
        Place::Project(name) => name.as_str().as_bytes().to_vec(),
        Place::Image(id) => return join(&[&[place.kind() as u8], &image(*id)]),
        Place::Organization(name) => name.as_str().as_bytes().to_vec(),
        Place::Group { organization, group: name } => group(organization, name),
    };
    join(&[&[place.kind() as u8], &name, &[END]])
}

pub fn right(at: &Place, grantee: &Grantee) -> Vec<u8> {
    join(&[&place(at), grantee.to_string().as_bytes()])
}

pub fn grantee_prefix(grantee: &Grantee) -> Vec<u8> {
    join(&[grantee.to_string().as_bytes(), &[END]])
}

pub fn grantee_place(grantee: &Grantee, at: &Place) -> Vec<u8> {
    join(&[&grantee_prefix(grantee), &place(at)])
}

/// What the keys of a grantee's memberships begin with: of organizations, and of groups.
pub fn membership_prefixes(grantee: &Grantee) -> [Vec<u8>; 2] {
    let of = |kind: PlaceKind| join(&[&grantee_prefix(grantee), &[kind as u8]]);
    [of(PlaceKind::Organization), of(PlaceKind::Group)]
}

/// What the keys of an audience's projects begin with. The numbers are never used again for another
/// kind.
pub fn audience(of: &Audience) -> Vec<u8> {
    let (kind, name): (u8, &str) = match of {
        Audience::Everyone => return vec![1],
        Audience::User(name) => (2, name.as_str()),
        Audience::Members(name) => (3, name.as_str()),
        Audience::Owners(name) => (4, name.as_str()),
    };
    join(&[&[kind], name.as_bytes(), &[END]])
}

pub fn audience_project(of: &Audience, project: &ProjectName) -> Vec<u8> {
    join(&[&audience(of), project.as_str().as_bytes()])
}

/// What the keys of an owner's projects begin with.
pub fn owner(of: &Owner) -> Vec<u8> {
    let (kind, name): (u8, &str) = match of {
        Owner::User(name) => (1, name.as_str()),
        Owner::Organization(name) => (2, name.as_str()),
    };
    join(&[&[kind], name.as_bytes(), &[END]])
}

pub fn owner_project(of: &Owner, project: &ProjectName) -> Vec<u8> {
    join(&[&owner(of), project.as_str().as_bytes()])
}

/// What the counts of audiences' images begin with.
pub const AUDIENCE_IMAGES: &[u8] = b"images-for:";

pub fn audience_images(of: &Audience) -> Vec<u8> {
    join(&[AUDIENCE_IMAGES, &audience(of)])
}

/// The name first, so that a project's stand together.
pub fn deleted_image(name: &RepositoryName, id: ImageId) -> Vec<u8> {
    join(&[name.as_str().as_bytes(), &[END], &image(id)])
}

/// What the keys of a project's deleted images begin with: of the one that has its very name, and
/// of those in it.
pub fn deleted_prefixes(project: &ProjectName) -> [Vec<u8>; 2] {
    [&[END], b"/"].map(|end| join(&[project.as_str().as_bytes(), end]))
}

pub fn version_instance(id: ImageId, of: &Digest, name: &InstanceName) -> Vec<u8> {
    join(&[&image(id), &digest(of), name.as_str().as_bytes()])
}

/// Where the digest ends that follows an image's id.
pub fn digest_end(key: &[u8]) -> Result<usize, Fault> {
    match key.get(ID_BYTES) {
        Some(1) => Ok(ID_BYTES + 1 + 32),
        Some(2) => Ok(ID_BYTES + 1 + 64),
        _ => Err(Fault::Contradiction("a key has no digest after its image")),
    }
}

pub fn star(id: ImageId, user: &str) -> Vec<u8> {
    join(&[&image(id), user.as_bytes()])
}

pub fn user_stars(user: &str) -> Vec<u8> {
    join(&[user.as_bytes(), &[END]])
}

pub fn user_star(user: &str, id: ImageId) -> Vec<u8> {
    join(&[&user_stars(user), &image(id)])
}

pub fn robot_prefix(project: &ProjectName) -> Vec<u8> {
    join(&[project.as_str().as_bytes(), &[END]])
}

pub fn robot(name: &RobotName) -> Vec<u8> {
    join(&[&robot_prefix(&name.project), name.name.as_str().as_bytes()])
}

pub fn user_tokens(user: &AccountName) -> Vec<u8> {
    join(&[user.as_str().as_bytes(), &[END]])
}

pub fn user_token(user: &AccountName, id: &str) -> Vec<u8> {
    join(&[&user_tokens(user), id.as_bytes()])
}

/// What the keys of a user's sessions begin with, and of its passkeys. No name has a zero byte.
pub fn sessions(user: &str) -> Vec<u8> {
    join(&[user.as_bytes(), &[END]])
}

pub fn session(user: &str, id: &str) -> Vec<u8> {
    join(&[&sessions(user), id.as_bytes()])
}

/// Those that are forgotten first come first.
pub fn spent_challenge(answered: &Answered) -> Vec<u8> {
    join(&[&time(answered.expires_at), &answered.challenge])
}

/// No issuer has a zero byte.
pub fn identity(issuer: &str, subject: &str) -> Vec<u8> {
    join(&[issuer.as_bytes(), &[END], subject.as_bytes()])
}

/// Below the same beginning as the user's sessions.
pub fn user_identity(user: &str, identity: &[u8]) -> Vec<u8> {
    join(&[&sessions(user), identity])
}

pub fn workload_rule(project: &ProjectName, name: &AccountName) -> Vec<u8> {
    join(&[&robot_prefix(project), name.as_str().as_bytes()])
}

pub fn data_key(id: DataKeyId) -> [u8; ID_BYTES] {
    *id.as_uuid().as_bytes()
}

/// No project has an empty name.
pub fn key_owner(owner: &KeyOwner) -> &[u8] {
    match owner {
        KeyOwner::Cluster => b"",
        KeyOwner::Project(name) => name.as_str().as_bytes(),
    }
}

/// What the keys of a project's contents begin with.
pub fn project_prefix(project: &ProjectName) -> Vec<u8> {
    join(&[project.as_str().as_bytes(), &[END]])
}

/// Digests begin with the number of their algorithm; a disk's recipe with a number of its own.
pub fn project_content(project: &ProjectName, content: &Content) -> Vec<u8> {
    const RECIPE: u8 = 0x80;
    let prefix = project_prefix(project);
    match content {
        Content::Digest(of) => join(&[&prefix, &digest(of)]),
        Content::Recipe(of) => join(&[&prefix, &[RECIPE], of.as_bytes()]),
    }
}

/// What the keys of a project's repositories begin with that hold the blob.
pub fn blob_holders_in(of: &Digest, project: &ProjectName) -> Vec<u8> {
    join(&[&digest(of), &project_prefix(project)])
}

/// The project before the image, so that a whole one can be stepped over.
pub fn blob_holder(of: &Digest, project: &ProjectName, id: ImageId) -> Vec<u8> {
    join(&[&blob_holders_in(of, project), &image(id)])
}

/// Behind all keys of that project's, and before those of any other that comes later: no name has
/// the byte that follows [`END`].
pub fn blob_holders_behind(of: &Digest, project: &ProjectName) -> Vec<u8> {
    join(&[&digest(of), project.as_str().as_bytes(), &[END + 1]])
}

/// Reads back who holds the blob.
pub fn read_blob_holder(of: &Digest, key: &[u8]) -> Result<(ProjectName, ImageId), Fault> {
    let broken = || Fault::Contradiction("a key names no holder of a blob");
    let rest = key.strip_prefix(&digest(of)[..]).ok_or_else(broken)?;
    let split = rest.len().checked_sub(ID_BYTES + 1).ok_or_else(broken)?;
    let project = str::from_utf8(&rest[..split]).ok().and_then(|text| text.parse().ok());
    Ok((project.ok_or_else(broken)?, ImageId::from_bytes(read_id(rest, split + 1)?)))
}

/// The newest first.
pub fn audit(number: u64) -> [u8; 8] {
    (u64::MAX - number).to_be_bytes()
}

/// What kind of failures a row is of; before the suspect in its key.
pub const PASSWORDS: u8 = 1;
pub const ACCOUNTS: u8 = 2;
pub const TOKENS: u8 = 3;
pub const REGISTRATIONS: u8 = 5;
/// Before the suspect of a block, in the index of ends.
pub const BLOCKED: u8 = 4;

pub fn suspect(of: &Suspect) -> Vec<u8> {
    of.to_string().into_bytes()
}

pub fn suspicion(kind: u8, of: &Suspect) -> Vec<u8> {
    join(&[&[kind], &suspect(of)])
}

pub fn ends(at: Timestamp, key: &[u8]) -> Vec<u8> {
    join(&[&time(at), key])
}

pub fn payer(payer: &Payer) -> Vec<u8> {
    payer.to_string().into_bytes()
}

pub fn quota(of: &QuotaOf) -> Vec<u8> {
    of.to_string().into_bytes()
}

/// The first key after every key that starts with `key`'s own bytes and ends there.
pub fn after(mut key: Vec<u8>) -> Vec<u8> {
    key.push(0);
    key
}

/// Reads back a digest that ends a key after `skip` bytes.
pub fn read_digest(key: &[u8], skip: usize) -> Result<Digest, Fault> {
    let broken = Fault::Contradiction("a key does not end in a digest");
    let Some((algorithm, bytes)) = key.get(skip..).and_then(<[u8]>::split_first) else {
        return Err(broken);
    };
    match (algorithm, bytes.len()) {
        (1, 32) => bytes.try_into().map(Digest::sha256).map_err(|_| broken),
        (2, 64) => bytes.try_into().map(Digest::sha512).map_err(|_| broken),
        _ => Err(broken),
    }
}

/// Reads back the image that a key begins with.
pub fn read_image(key: &[u8]) -> Result<ImageId, Fault> {
    read_id(key.get(..ID_BYTES).unwrap_or_default(), 0).map(ImageId::from_bytes)
}

/// Reads back an image and a digest, which are the whole key.
pub fn read_image_digest(key: &[u8]) -> Result<(ImageId, Digest), Fault> {
    Ok((read_image(key)?, read_digest(key, ID_BYTES)?))
}

/// Reads back a UUID that ends a key after `skip` bytes.
pub fn read_id(key: &[u8], skip: usize) -> Result<[u8; ID_BYTES], Fault> {
    key.get(skip..)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(Fault::Contradiction("a key does not end in an id"))
}

/// Reads back the text that ends a key after `skip` bytes.
pub fn read_text(key: &[u8], skip: usize) -> Result<&str, Fault> {
    key.get(skip..)
        .and_then(|bytes| str::from_utf8(bytes).ok())
        .ok_or(Fault::Contradiction("a key does not end in text"))
}
