//! The stored form of commands, pinned: what is in a log today must be read by every later version.
//!
//! Where this test fails, the encoding of a released version has changed. Add a variant or a field
//! at the end under a new version instead.

mod world;

use shoal_content::{NodeId, ObjectKey, Priority};
use shoal_metadata::*;
use world::*;

/// One command of each variant, in the order of the enum.
fn samples() -> Vec<Command> {
    let (repository, owner) = (name("a/b"), "o".to_owned());
    // A row says which version its node knows, whatever this program does.
    let node = |number| Node { command_version: 1, ..node(number) };
    let profile = ImageProfile { min_memory_mb: 512, ..ImageProfile::default() };
    let mut samples = vec![
        Command::Found { cluster: cluster(), admin: user("admin", UserRole::Admin) },
        Command::RegisterNode(node(1)),
        Command::RemoveNode(NodeId::new(300)),
        Command::PutUser(user("u", UserRole::User)),
        Command::RemoveUser { name: "u".into() },
        Command::CreateJoinToken(token("t", JoinRole::Node, Some(3))),
        Command::RevokeJoinToken { id: "t".into() },
        Command::EnrolAgent { token: "t".into(), secret_hash: [7; 32], agent: agent(1) },
        Command::AdmitNode { token: "t".into(), secret_hash: [7; 32], node: node(2) },
        Command::RemoveAgent(peer(1)),
        create_image(1, "a/b", ImageKind::Container),
        Command::UpdateImage { id: image_id(1), profile },
        Command::DeleteImage { id: image_id(1) },
        Command::BeginUpload(disk_upload(1, 1, "1.0")),
        Command::AdvanceUpload {
            upload: upload_id(1),
            from: 0,
            to: 1 << 40,
            checkpoint: Some(ObjectKey::UploadCheckpoint { upload: upload_id(1), number: 9 }),
            multipart: Some(Multipart { object: ObjectKey::Blob(upload_id(7)), id: "m".into() }),
            expires_at: at(1),
        },
        part(1, 2, 3),
        Command::ClaimIngest { upload: upload_id(1), node: NodeId::new(1), lease_until: at(2) },
        Command::FailIngest { upload: upload_id(1), reason: "r".into() },
        Command::AbortUpload { upload: upload_id(1) },
        commit_blob("a/b", 1, 1),
        Command::MountBlob {
            from: Some(repository.clone()),
            to: repository.clone(),
            digest: digest(1),
            owner: owner.clone(),
            image: image_id(1),
        },
        Command::UnlinkBlob { repository: repository.clone(), digest: digest(1) },
        Command::PutManifest(disk("a/b", 1, 1, &[1])),
        Command::DeleteManifest { repository: repository.clone(), digest: digest(1) },
        Command::PutTag { repository: repository.clone(), tag: tag("t"), digest: digest(1) },
        Command::DeleteTag { repository: repository.clone(), tag: tag("t") },
        Command::CreateDeployment {
            id: deployment_id(1),
            image: repository,
            digest: digest(1),
            tag: Some(tag("t")),
            hosts: [peer(1)].into(),
            owner,
        },
        Command::ReportHost {
            deployment: deployment_id(1),
            peer: peer(1),
            state: HostState::Done { bytes_from_peers: 1, bytes_from_nodes: 2, bytes_local: 300 },
        },
        Command::CancelDeployment { id: deployment_id(1) },
        Command::SweepObjects { candidates: [pack(1)].into(), unreferenced_before: at(5) },
        Command::ExpireUploads { limit: 100 },
        Command::RetryDeletion { objects: [pack(1)].into() },
        Command::ForgetObjects { objects: [pack(1)].into(), deleting_before: at(5) },
        Command::UnlinkLooseBlobs { links: [(image_id(1), digest(1))].into(), loose_before: at(5) },
        Command::AdoptObjects { objects: [pack(1)].into() },
        Command::PutAcmeAccount(AcmeAccount {
            directory_url: "https://d".into(),
            credentials: Secret(vec![1, 2]),
        }),
        Command::PutAcmeChallenges { answers: [("t".to_owned(), "t.k".to_owned())].into() },
        Command::PutHttpCertificate(HttpCertificate {
            names: vec!["a.b".into()],
            chain: "c".into(),
            key: Secret(vec![3]),
            valid_from: at(1),
            valid_until: at(300),
        }),
        Command::RaiseLevel { to: 2 },
        Command::DescribeNode { id: NodeId::new(300), program: "0.1.0".into() },
        Command::HealBlob {
            digest: digest(1),
            missing: pack(1),
            object: pack(2),
            recipe: recipe(1),
        },
        Command::CreateUser(user("u", UserRole::Auditor)),
        Command::CreateOrganization { organization: organization("acme"), owner: account("u") },
        Command::RemoveOrganization { name: account("acme") },
        Command::CreateGroup(group("acme", "dev")),
        Command::RemoveGroup { organization: account("acme"), name: account("dev") },
        Command::CreateProject(project("a", Owner::Organization(account("acme")))),
        Command::UpdateProject {
            name: "a".parse().unwrap(),
            visibility: Visibility::Public,
            description: "d".into(),
            owner: Some(Owner::User("u".into())),
        },
        Command::RemoveProject { name: "a".parse().unwrap() },
        Command::PutRight {
            place: Place::Project("a".parse().unwrap()),
            grantee: Grantee::Group { organization: account("acme"), group: account("dev") },
            right: Right::Project(ProjectRole::Developer),
        },
        Command::RemoveRight {
            place: Place::Image(image_id(1)),
            grantee: Grantee::User(account("u")),
        },
        Command::PutRobot(robot("robot$a+ci", &[Scope::Read])),
        Command::RemoveRobot("robot$a+ci".parse().unwrap()),
        Command::CreatePersonalToken(personal_token("u", 1)),
        Command::RemovePersonalToken { user: account("u"), id: "1".into() },
        Command::NoteTokenUses { uses: [([1; 32], at(5))].into() },
        Command::SetPolicy {
            project: "a".parse().unwrap(),
            rules: PolicyRules {
                automatic: true,
                retention: vec![
                    rule("v*", Keep::Newest(300)),
                    rule("?", Keep::PushedWithin { days: 7 }),
                    rule("!x", Keep::PulledWithin { days: 30 }),
                    rule("**", Keep::Always),
                ],
                untagged_days: Some(14),
                immutable: vec![selection("b/*", "1.*")],
            },
            expected: Some(0),
            by: "o".into(),
        },
        Command::RemovePolicy { project: "a".parse().unwrap() },
        Command::Retire(Retire {
            image: image_id(1),
            revision: 300,
            judged_at: at(9),
            quiet_before: Some(at(5)),
            tags: [(tag("t"), used(1))].into(),
            numbers: [("1.0".to_owned(), used(2))].into(),
            untagged: vec![digest(3)],
        }),
        Command::NotePulls {
            pulls: [(
                image_id(1),
                ImagePulls {
                    tags: [(tag("t"), at(5))].into(),
                    versions: [(digest(1), at(6))].into(),
                },
            )]
            .into(),
        },
        set_quota(
            "group:acme/dev",
            QuotaLimits { max_bytes: Some(1 << 40), max_images: Some(3), max_image_bytes: None },
        ),
        Command::RemoveQuota { of: "default:project".parse().unwrap() },
        Command::ReserveUpload { upload: upload_id(1), bytes: 300 },
        Command::CountUsage,
        Command::NoteFailures {
            failures: [
                (
                    Failure::Password {
                        account: Suspect::account("u"),
                        address: Some(Suspect::address([10, 0, 0, 1].into())),
                    },
                    2,
                ),
                (Failure::Token { address: Suspect::address([10, 0, 0, 1].into()) }, 300),
            ]
            .into(),
            rules: LockoutRules {
                account_failures: 10,
                account_window_ms: 1,
                account_block_ms: 2,
                address_accounts: 3,
                address_window_ms: 4,
                token_failures: 5,
                token_window_ms: 6,
                token_block_ms: 7,
            },
        },
        Command::Unblock { suspect: Suspect::account("u") },
        Command::Audited {
            source: audit_source(),
            command: Box::new(Command::DeleteImage { id: image_id(1) }),
        },
        Command::NoteAudit(AuditBatch {
            node: NodeId::new(300),
            run: 1,
            batch: 2,
            phase: AuditPhase::Ends,
            notes: vec![audit_note("image.pull", "a/b:v")],
            lost: 3,
        }),
        Command::ArchiveAudit(AuditArchive {
            first: 1,
            last: 300,
            from: at(1),
            until: at(2),
            object: pack(1),
            bytes: 4,
            before: [1; 32],
            head: [2; 32],
        }),
    ];
    samples.extend(catalog_samples());
    samples
}

fn catalog_samples() -> Vec<Command> {
    let note = ImageNote {
        recommended_cpu_cores: 4,
        recommended_memory_mb: 300,
        recommended_disk_gb: 40,
        annotations: [("k".to_owned(), "v".to_owned())].into(),
        updated_by: "o".into(),
    };
    let profile = ImageProfile { min_memory_mb: 512, ..ImageProfile::default() };
    let import = Import {
        url: "https://h/f".into(),
        validator: Some("e".into()),
        node: NodeId::new(300),
        lease_until: at(9),
    };
    vec![
        Command::CreateDescribedImage {
            id: image_id(1),
            name: name("a/b"),
            kind: ImageKind::Disk,
            profile: profile.clone(),
            note: note.clone(),
            owner: "o".into(),
        },
        Command::DescribeImage { id: image_id(1), profile, note },
        Command::TrashImage { id: image_id(1), by: "o".into() },
        Command::RestoreImage { id: image_id(1) },
        Command::BeginDescribedUpload {
            upload: disk_upload(1, 1, "1.0"),
            note: UploadNote {
                changelog: "c".into(),
                build_info: "{}".into(),
                layers: vec![(digest(1), 300)],
                import: Some(import),
            },
        },
        Command::PublishDisk { put: disk("a/b", 1, 1, &[1]), compressed_bytes: 300 },
        Command::DescribeVersion {
            image: image_id(1),
            digest: digest(1),
            changelog: Some("c".into()),
            build_info: None,
            by: "o".into(),
        },
        Command::DeprecateVersion {
            image: image_id(1),
            digest: digest(1),
            message: Some("m".into()),
            by: "o".into(),
        },
        Command::Rollback { image: image_id(1), tag: tag("latest"), to: digest(1) },
        Command::RegisterInstance { instance: instance("vm-1", 1, 1), replace: true },
        Command::RemoveInstance { name: instance_name("vm-1") },
        Command::NoteStars { stars: [(("u".to_owned(), image_id(1)), true)].into() },
        Command::NoteDownloads(DownloadBatch {
            node: NodeId::new(300),
            run: 1,
            batch: 2,
            downloads: [(image_id(1), [(digest(1), 300)].into())].into(),
        }),
        Command::ClaimImport { upload: upload_id(1), node: NodeId::new(300), lease_until: at(9) },
        Command::BeginSecondFactor { user: "u".into(), secret: Secret(vec![1, 2]) },
        Command::ConfirmSecondFactor { user: "u".into(), step: 300, recovery: [[7; 32]].into() },
        Command::UseSecondFactor { user: "u".into(), proof: Proof::Recovery([7; 32]) },
        Command::PutRecoveryCodes { user: "u".into(), recovery: [[7; 32]].into() },
        Command::RemoveSecondFactor { user: "u".into() },
        Command::BeginSession {
            session: session("u", "s", LoginMeans::Issuer("i".into())),
            limit: 5,
        },
        Command::EndSession { user: "u".into(), id: "s".into() },
        Command::EndSessions { user: "u".into(), keep: Some("s".into()) },
        Command::ChangePassword { user: "u".into(), password_hash: Secret(vec![1]), keep: None },
        Command::LinkIdentity { identity: identity("u"), create: Some(user("u", UserRole::User)) },
        Command::UnlinkIdentity { issuer: "i".into(), subject: "s".into() },
        Command::PutWorkloadRule(workload_rule("robot$p+r", "ci")),
        Command::RemoveWorkloadRule { project: "p".parse().unwrap(), name: account("ci") },
        Command::LeaveLater { user: "u".into(), due: at(300) },
        Command::Stay { user: "u".into() },
        Command::IndexBlobs,
        Command::BeginBlobUpload { upload: blob_upload(1, "a/b"), open_max: 300 },
        Command::OrderDeployment(DeploymentOrder {
            id: deployment_id(1),
            image: name("a/b"),
            digest: digest(1),
            tag: Some(tag("t")),
            hosts: [peer(1)].into(),
            owner: "o".into(),
            plan: DeploymentPlan {
                priority: Priority::High,
                parallel: Some(300),
                deadline: Some(at(300)),
                paused: true,
                attempts: [(peer(1), 2)].into(),
                warm_up: Some(account("w")),
            },
        }),
        Command::PauseDeployment { id: deployment_id(1), paused: true },
        Command::RetryDeployment { id: deployment_id(1), deadline: Some(at(300)) },
        Command::ExtendDeployment { id: deployment_id(1), hosts: [peer(1)].into() },
        Command::ReportAttempt {
            deployment: deployment_id(1),
            peer: peer(1),
            attempt: 300,
            state: HostState::Queued,
        },
        Command::PassDeadlines { limit: 300 },
        Command::CreateWarmUp(warm_up("w", "a/b")),
        Command::RemoveWarmUp { name: account("w") },
        Command::RunWarmUp {
            name: account("w"),
            expected: Some(deployment_id(1)),
            id: deployment_id(2),
            digest: digest(1),
            hosts: [peer(1)].into(),
        },
        Command::ClaimDelta { of: delta_key(1, 1, 2), node: NodeId::new(300), lease_until: at(3) },
        Command::EndDelta {
            of: delta_key(1, 1, 2),
            node: NodeId::new(300),
            bundle: Some(delta_bundle(7)),
        },
        Command::NoteDeltaUses { uses: [(delta_key(1, 1, 2), at(300))].into() },
        Command::DropDeltas { deltas: [delta_key(1, 1, 2)].into(), unused_before: at(300) },
        Command::CacheManifest(PutManifest {
            tags: vec![tag("t")],
            ..container("a/b", 1, 2, &[1])
        }),
        Command::RotateSigningKey {
            purpose: KeyPurpose::Ticket,
            newest: 300,
            private: Secret(vec![1, 2]),
            signs_from: at(300),
            distrusted: true,
        },
        Command::AddPasskey { passkey: passkey("u", "p", 7), owner: passkey_owner(300) },
        Command::UsePasskey {
            user: "u".into(),
            id: "p".into(),
            answered: answered(7, 300),
            counter: 300,
            key: Some(vec![1, 2]),
        },
        Command::UpdatePasskey {
            user: "u".into(),
            id: "p".into(),
            name: Some("n".into()),
            second_factor: Some(true),
        },
        Command::RemovePasskeys { user: "u".into(), id: Some("p".into()) },
        make_data_key(KeyOwner::Project("p".parse().unwrap()), 7, Some(3), "m"),
        Command::WrapDataKeys {
            master: "m".into(),
            keys: [(data_key_id(7), Secret(vec![1, 2]))].into(),
        },
        hand_over(&[ObjectKey::Blob(upload_id(7))], 7, 3),
        Command::DestroyDataKeys { keys: [data_key_id(7)].into(), retired_before: at(300) },
        Command::NoteMasterKeys { node: NodeId::new(300), masters: ["m".to_owned()].into() },
        Command::ExpelAgent { peer: peer(1), until: at(300) },
        Command::SealSecrets {
            secrets: [(
                SecretPlace::Signing(KeyPurpose::Ticket, 300),
                SealedSecret { of: [7; 32], sealed: Secret(vec![1, 2]) },
            )]
            .into(),
        },
        Command::RecoverAdministrator { user: "u".into(), password_hash: Secret(vec![1, 2]) },
        Command::StepAuthority(AuthorityStep::Announce {
            newest: 300,
            certificate: "c".into(),
            vouched: "v".into(),
            key: Secret(vec![1, 2]),
            hurried: true,
        }),
        Command::RedescribeImage {
            id: image_id(1),
            from: Box::default(),
            to: Box::new(ImageDescription {
                note: ImageNote { updated_by: "o".into(), ..ImageNote::default() },
                ..ImageDescription::default()
            }),
        },
        Command::PurgeImage { id: image_id(1), by: "o".into(), rows_max: 300 },
        Command::ReportHosts {
            reports: [(
                deployment_id(1),
                [(peer(1), HostReport { attempt: 300, state: HostState::Queued })].into(),
            )]
            .into(),
        },
        Command::FollowGroup {
            organization: account("acme"),
            group: account("dev"),
            user: account("u"),
            belongs: true,
        },
        Command::SetEmail { user: "u".into(), email: "a@b.example".into() },
        Command::OrderScan { of: scan_key(1, 1), id: scan_id(7), by: "o".into() },
        Command::ClaimScan {
            of: scan_key(1, 1),
            id: scan_id(7),
            node: NodeId::new(300),
            lease_until: at(300),
            renews: true,
        },
        Command::EndScan {
            of: scan_key(1, 1),
            id: scan_id(7),
            node: NodeId::new(300),
            outcome: ScanOutcome::Completed(scan_report(7, Some(1))),
        },
        move_chunks(9, &[1], &[(1, Some(8), &[2])], &[(1, 1)]),
        Command::SettleImages { images: [(image_id(1), at(300))].into() },
        Command::IndexLists,
        Command::NoteRegistration {
            address: Suspect::address([10, 0, 0, 1].into()),
            limit: 300,
            window_ms: 300,
        },
        Command::RehashPassword { user: "u".into(), from: [7; 32], to: Secret(vec![1, 2]) },
    ]
}

fn used(manifest: u8) -> NameUse {
    NameUse { digest: digest(manifest), pushed_at: at(5), pulled_at: Some(at(6)) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A variant's number as it is stored: seven bits in each byte, the lowest first.
fn number(variant: usize) -> Vec<u8> {
    match u8::try_from(variant).unwrap() {
        short @ 0..0x80 => vec![short],
        long => vec![long, long >> 7],
    }
}

#[test]
fn the_stored_form_of_each_command_is_what_it_was() {
    let samples = samples();
    let encoded: Vec<String> =
        samples.iter().map(|command| hex(&encode_command(command))).collect();
    let golden: Vec<&str> = include_str!("golden/commands-v1.txt").lines().collect();
    assert_eq!(encoded, golden);
    for (at, command) in samples.iter().enumerate() {
        let bytes = encode_command(command);
        // The version, then the variant's number: one sample for each, none left out.
        let number = number(at);
        assert_eq!((bytes[0], &bytes[1..=number.len()]), (command_version(command), &number[..]));
        assert!(bytes[0] <= COMMAND_VERSION);
        assert_eq!(decode_command(&bytes).as_ref(), Ok(command));
    }
    // The number after the last is no command: a new variant needs a sample here.
    let next = [vec![1], number(samples.len())].concat();
    let unknown = CodecError::Malformed(postcard::Error::SerdeDeCustom);
    assert_eq!(decode_command(&next), Err(unknown));
}
