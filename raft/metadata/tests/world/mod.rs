//! A small world of ids and rows for the tests of the state machine.
#![allow(dead_code)]

pub mod counting;
pub mod counts;
pub mod lists;
pub mod retention;

use std::collections::{BTreeMap, BTreeSet};

use shoal_content::{
    AccountName, ClusterId, DataKeyId, DeploymentId, Digest, ImageId, InstanceName, Labels, NodeId,
    ObjectKey, PackId, PeerId, Priority, RecipeId, RepositoryName, ScanId, TagName, Timestamp,
    UploadId, VersionId, Zone,
};
use shoal_metadata::*;

/// The state, and the time that passes by one for each command.
#[derive(Default)]
pub struct World {
    pub rows: Memory,
    pub now: u64,
}

impl World {
    /// A founded cluster.
    pub fn founded() -> Self {
        let mut world = Self::default();
        let found = Command::Found { cluster: cluster(), admin: user("admin", UserRole::Admin) };
        world.accepts(found);
        world
    }

    /// Applies a command, and holds that a refusal changes nothing.
    pub fn propose(&mut self, command: Command) -> Result<Outcome, Refusal> {
        self.now += 1;
        let at = Timestamp::from_millis(self.now);
        let mut transaction = Transaction::new(&self.rows);
        let answer = apply(&mut transaction, at, command).expect("the rows can be read");
        if answer.is_err() {
            assert!(transaction.is_empty(), "a refused command wrote");
        }
        let writes = transaction.into_writes();
        self.rows.commit(writes);
        answer
    }

    pub fn accepts(&mut self, command: Command) -> Response {
        let shown = format!("{command:?}");
        match self.propose(command) {
            Ok(outcome) => outcome.response,
            Err(refusal) => panic!("{shown} was refused: {refusal}"),
        }
    }

    pub fn refuses(&mut self, command: Command) -> Refusal {
        match self.propose(command) {
            Err(refusal) => refusal,
            Ok(outcome) => panic!("accepted: {outcome:?}"),
        }
    }

    pub fn query(&self) -> Query<'_, Memory> {
        Query::new(&self.rows)
    }

    pub fn count(&self, object: &ObjectKey) -> Option<u64> {
        self.query().object(object).unwrap().map(|used| used.count)
    }
}

pub fn id<T: std::str::FromStr<Err = shoal_content::IdError>>(prefix: &str, number: u64) -> T {
    format!("{prefix}{number:032x}").parse().unwrap()
}

pub fn image_id(number: u64) -> ImageId {
    id("img-", number)
}

pub fn version_id(number: u64) -> VersionId {
    id("ver-", number)
}

pub fn upload_id(number: u64) -> UploadId {
    id("upload-", number)
}

pub fn deployment_id(number: u64) -> DeploymentId {
    id("dep-", number)
}

pub fn peer(number: u8) -> PeerId {
    PeerId::from_public_key([number; 32])
}

pub fn digest(number: u8) -> Digest {
    Digest::sha256([number; 32])
}

pub fn name(text: &str) -> RepositoryName {
    text.parse().unwrap()
}

pub fn tag(text: &str) -> TagName {
    text.parse().unwrap()
}

pub fn recipe(number: u8) -> RecipeId {
    RecipeId::from_bytes([number; 32])
}

pub fn pack(number: u8) -> ObjectKey {
    ObjectKey::Pack(PackId::of(&[number]))
}

pub fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

pub fn cluster() -> Cluster {
    let id: ClusterId = id("cluster-", 1);
    Cluster {
        id,
        founded_at: at(1),
        authority_certificate: "certificate".into(),
        authority_key: Secret(vec![1]),
        ticket_key: Secret(vec![2]),
        token_key: Secret(vec![3]),
        network_key: Secret(vec![4; 32]),
    }
}

pub fn user(name: &str, role: UserRole) -> User {
    User { name: name.into(), password_hash: Secret(b"hash".to_vec()), role, created_at: at(1) }
}

pub fn node(number: u8) -> Node {
    Node {
        id: NodeId::new(number.into()),
        name: format!("node-{number}"),
        peer: peer(100 + number),
        zone: Zone::default(),
        raft_address: "host:1".into(),
        peer_address: "host:2".into(),
        discovery_address: "host:3".into(),
        api_url: "https://host:4".into(),
        command_version: COMMAND_VERSION,
        joined_at: at(1),
    }
}

pub fn token(id: &str, role: JoinRole, uses_left: Option<u32>) -> JoinToken {
    let expires_at = at(1000);
    JoinToken {
        id: id.into(),
        secret_hash: [7; 32],
        role,
        created_at: at(1),
        expires_at,
        uses_left,
    }
}

pub fn agent(number: u8) -> Agent {
    Agent {
        peer: peer(number),
        name: format!("host-{number}"),
        role: AgentRole::Host,
        zone: Zone::default(),
        labels: Labels::default(),
        enrolled_at: at(1),
    }
}

pub fn create_image(number: u64, repository: &str, kind: ImageKind) -> Command {
    Command::CreateImage {
        id: image_id(number),
        name: name(repository),
        kind,
        profile: ImageProfile::default(),
        owner: "admin".into(),
    }
}

pub fn blob_upload(number: u64, repository: &str) -> Upload {
    Upload {
        id: upload_id(number),
        owner: "admin".into(),
        created_at: at(1),
        expires_at: at(500),
        purpose: UploadPurpose::Blob {
            repository: name(repository),
            offset: 0,
            checkpoint: None,
            multipart: None,
        },
    }
}

/// 25 bytes in parts of 10.
pub fn disk_upload(number: u64, image: u64, version: &str) -> Upload {
    Upload {
        purpose: UploadPurpose::Disk {
            image: image_id(image),
            number: version.into(),
            tags: vec![],
            total_bytes: 25,
            part_bytes: 10,
            format: None,
            parts: BTreeMap::new(),
            state: DiskUploadState::Receiving,
        },
        ..blob_upload(number, "unused")
    }
}

pub fn part(upload: u64, part: u32, bytes: u64) -> Command {
    Command::RecordPart {
        upload: upload_id(upload),
        part,
        received: UploadPart { bytes, sha256: [0; 32] },
        expires_at: at(600),
    }
}

/// The blob with this digest; its object is of the same number.
pub fn commit_blob(repository: &str, image: u64, blob: u8) -> Command {
    Command::CommitBlob {
        upload: None,
        repository: name(repository),
        digest: digest(blob),
        size: 10,
        object: ObjectKey::Blob(upload_id(blob.into())),
        recipe: recipe(blob),
        owner: "admin".into(),
        image: image_id(image),
    }
}

pub fn blob_reference(blob: u8) -> Reference {
    Reference::Blob { digest: digest(blob), size: 10 }
}

/// A container's manifest over blobs.
pub fn container(repository: &str, image: u64, manifest: u8, blobs: &[u8]) -> PutManifest {
    PutManifest {
        repository: name(repository),
        image: image_id(image),
        version: version_id(u64::from(manifest) * 1000 + image),
        kind: ImageKind::Container,
        digest: digest(manifest),
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        manifest: vec![manifest; 4],
        artifact_type: None,
        annotations: BTreeMap::new(),
        subject: None,
        references: blobs.iter().copied().map(blob_reference).collect(),
        disk: None,
        tags: vec![],
        owner: "admin".into(),
        upload: None,
    }
}

/// A disk's manifest over packs.
pub fn disk(repository: &str, image: u64, manifest: u8, packs: &[u8]) -> PutManifest {
    let mut objects: BTreeSet<ObjectKey> = packs.iter().copied().map(pack).collect();
    objects.insert(ObjectKey::Recipe(recipe(manifest)));
    PutManifest {
        kind: ImageKind::Disk,
        references: BTreeSet::new(),
        disk: Some(Disk {
            recipe: recipe(manifest),
            virtual_bytes: 100,
            content_bytes: 50,
            added_bytes: 25,
            objects,
            number: format!("1.0.{manifest}"),
            source_format: "raw".into(),
        }),
        ..container(repository, image, manifest, &[])
    }
}

/// An index over manifests that are there.
pub fn index(repository: &str, image: u64, manifest: u8, listed: &[u8]) -> PutManifest {
    let reference = |number: &u8| Reference::Manifest { digest: digest(*number), size: 4 };
    PutManifest {
        media_type: "application/vnd.oci.image.index.v1+json".into(),
        references: listed.iter().map(reference).collect(),
        ..container(repository, image, manifest, &[])
    }
}

pub fn selection(repositories: &str, tags: &str) -> Selection {
    let (repositories, tags) = (repositories.parse().unwrap(), tags.parse().unwrap());
    Selection { repositories, tags }
}

pub fn rule(tags: &str, keep: Keep) -> RetentionRule {
    RetentionRule { selection: selection("**", tags), keep }
}

pub fn set_policy(project: &str, rules: PolicyRules) -> Command {
    let project = project.parse().unwrap();
    Command::SetPolicy { project, rules, expected: None, by: "admin".into() }
}

pub fn audit_source() -> AuditSource {
    AuditSource { who: "alice".into(), from: "10.0.0.1".into(), request: "r1".into(), node: 1 }
}

pub fn audit_note(action: &str, target: &str) -> AuditNote {
    AuditNote {
        at: at(1),
        source: audit_source(),
        action: action.into(),
        target: target.into(),
        result: AuditResult::Done,
        count: 1,
    }
}

pub fn set_quota(of: &str, limits: QuotaLimits) -> Command {
    Command::SetQuota { of: of.parse().unwrap(), limits, by: "admin".into() }
}

pub fn bytes_limit(bytes: u64) -> QuotaLimits {
    QuotaLimits { max_bytes: Some(bytes), ..QuotaLimits::default() }
}

pub fn account(text: &str) -> AccountName {
    text.parse().unwrap()
}

pub fn organization(text: &str) -> Organization {
    Organization { name: account(text), description: String::new(), created_at: at(1) }
}

pub fn group(organization: &str, text: &str) -> Group {
    let (organization, name) = (account(organization), account(text));
    Group { organization, name, description: String::new(), created_at: at(1) }
}

pub fn project(text: &str, owner: Owner) -> Project {
    Project {
        name: text.parse().unwrap(),
        owner,
        visibility: Visibility::Private,
        description: String::new(),
        created_at: at(1),
        updated_at: at(1),
    }
}

pub fn robot(text: &str, scopes: &[Scope]) -> Robot {
    Robot {
        name: text.parse().unwrap(),
        description: String::new(),
        secret_hash: [9; 32],
        scopes: scopes.iter().copied().collect(),
        repositories: BTreeSet::new(),
        created_at: at(1),
        created_by: "admin".into(),
        expires_at: None,
    }
}

pub fn personal_token(user: &str, number: u8) -> PersonalToken {
    PersonalToken {
        id: number.to_string(),
        user: account(user),
        name: format!("token {number}"),
        secret_hash: [number; 32],
        scopes: [Scope::Read].into(),
        created_at: at(1),
        expires_at: None,
        last_used_at: None,
    }
}

pub fn instance_name(text: &str) -> InstanceName {
    text.parse().unwrap()
}

/// An instance of the version that [`container`] or [`disk`] makes.
pub fn instance(text: &str, image: u64, manifest: u8) -> Instance {
    Instance {
        name: instance_name(text),
        image: image_id(image),
        version: version_id(u64::from(manifest) * 1000 + image),
        digest: digest(manifest),
        tag: Some(tag("latest")),
        owner: "admin".into(),
        registered_at: at(0),
        updated_at: at(0),
    }
}

/// A disk of that number, published as nodes do it.
pub fn publish_disk(repository: &str, image: u64, manifest: u8, number: &str) -> Command {
    let mut put = disk(repository, image, manifest, &[1]);
    if let Some(disk) = &mut put.disk {
        disk.number = number.into();
    }
    Command::PublishDisk { put, compressed_bytes: 7 }
}

pub fn session(user: &str, id: &str, means: LoginMeans) -> Session {
    Session {
        id: id.into(),
        user: user.into(),
        created_at: at(1),
        expires_at: at(1000),
        address: "10.0.0.1".into(),
        agent: "curl".into(),
        means,
    }
}

pub fn passkey(user: &str, id: &str, credential: u8) -> Passkey {
    Passkey {
        id: id.into(),
        user: user.into(),
        name: format!("the {id}"),
        credential: vec![credential; 16],
        key: vec![1],
        counter: 0,
        second_factor: false,
        created_at: at(1),
        last_used_at: None,
        uses: 0,
        uses_since: at(1),
    }
}

pub fn passkey_owner(registered: u64) -> PasskeyOwner {
    PasskeyOwner { handle: [7; 16], registered }
}

pub fn answered(challenge: u8, expires: u64) -> Answered {
    Answered { challenge: [challenge; 32], expires_at: at(expires) }
}

pub fn identity(user: &str) -> Identity {
    Identity {
        issuer: "https://i".into(),
        subject: format!("subject of {user}"),
        user: user.into(),
        linked_at: at(1),
    }
}

pub fn workload_rule(robot: &str, name: &str) -> WorkloadRule {
    let robot: RobotName = robot.parse().unwrap();
    WorkloadRule {
        project: robot.project,
        name: account(name),
        issuer: "https://ci".into(),
        subject: "repo:acme/shop:ref:refs/heads/*".into(),
        claims: [("ref_type".to_owned(), "branch".to_owned())].into(),
        robot: robot.name,
        created_at: at(1),
        created_by: "u".into(),
    }
}

/// Keeps the tag `latest` on hosts with the label `name=host-1`.
pub fn warm_up(text: &str, repository: &str) -> WarmUp {
    WarmUp {
        name: account(text),
        image: name(repository),
        tag: tag("latest"),
        selector: "name=host-1".parse().unwrap(),
        priority: Priority::Low,
        parallel: Some(2),
        created_at: at(1),
        created_by: "admin".into(),
        deployment: None,
    }
}

/// Leads from one disk's recipe to another's.
pub fn data_key_id(number: u64) -> DataKeyId {
    id("datakey-", number)
}

pub fn make_data_key(owner: KeyOwner, number: u64, replaces: Option<u64>, master: &str) -> Command {
    Command::MakeDataKey {
        owner,
        id: data_key_id(number),
        replaces: replaces.map(data_key_id),
        master: master.to_owned(),
        wrapped: Secret(vec![number as u8]),
    }
}

pub fn hand_over(objects: &[ObjectKey], from: u64, to: u64) -> Command {
    let handed = HandedKey {
        from: data_key_id(from),
        to: data_key_id(to),
        sealed: Secret(vec![from as u8, to as u8]),
    };
    let objects = objects.iter().map(|object| (*object, handed.clone())).collect();
    Command::HandOverObjects { objects }
}

pub fn delta_key(image: u64, old: u8, new: u8) -> DeltaKey {
    DeltaKey { image: image_id(image), old: recipe(old), new: recipe(new) }
}

/// In one pack.
pub fn delta_bundle(number: u8) -> DeltaBundle {
    DeltaBundle {
        recipe: recipe(100 + number),
        bytes: 300,
        content_bytes: 900,
        stored_bytes: 400,
        objects: [pack(number), ObjectKey::Recipe(recipe(100 + number))].into(),
    }
}

pub fn scan_id(number: u64) -> ScanId {
    id("scan-", number)
}

pub fn scan_key(image: u64, manifest: u8) -> ScanKey {
    ScanKey { image: image_id(image), digest: digest(manifest) }
}

/// Its list is in a pack.
pub fn scan_report(number: u64, list: Option<u8>) -> ScanReport {
    ScanReport {
        id: scan_id(number),
        completed_at: at(300),
        found: SeverityCounts { critical: 1, high: 2, medium: 3, low: 4, unknown: 300 },
        listed: 300,
        list: list.map(pack),
        list_bytes: 300,
        scanner: "s".into(),
        database_at: Some(at(300)),
    }
}

/// Recipes with the placements that they had, and the packs that they are led to.
pub fn move_chunks(
    placement: u8,
    dropped: &[u8],
    recipes: &[(u8, Option<u8>, &[u8])],
    versions: &[(u64, u8)],
) -> Command {
    let moving = |(of, from, packs): &(u8, Option<u8>, &[u8])| {
        let mut objects: BTreeSet<ObjectKey> = packs.iter().copied().map(pack).collect();
        objects.insert(ObjectKey::Recipe(recipe(placement)));
        (recipe(*of), Moving { from: from.map(recipe), objects })
    };
    Command::MoveChunks(MovedChunks {
        placement: recipe(placement),
        dropped: dropped.iter().copied().map(pack).collect(),
        recipes: recipes.iter().map(moving).collect(),
        versions: versions.iter().map(|(image, of)| (image_id(*image), digest(*of))).collect(),
    })
}
