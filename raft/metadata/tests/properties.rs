//! What holds after any sequence of commands: counts agree with a recount, indexes with their
//! rows, and the same commands give the same rows.

mod world;

use proptest::prelude::*;
use shoal_content::{NodeId, ObjectKey};
use shoal_metadata::*;
use world::counts::check;
use world::*;

const CONTAINERS: [&str; 2] = ["a", "b"];
const DISKS: [&str; 2] = ["vm", "vm/x"];

/// Scans of disks, and what they refer to.
fn scanned() -> impl Strategy<Value = Command> {
    let of = || (0u64..2, 20u8..24).prop_map(|(image, manifest)| scan_key(10 + image, manifest));
    prop_oneof![
        3 => (of(), 0u64..2).prop_map(|(of, id)| Command::OrderScan {
            of,
            id: scan_id(id),
            by: "admin".into(),
        }),
        3 => (of(), 0u64..2, 1u64..3, any::<bool>()).prop_map(|(of, id, node, renews)| {
            let node = NodeId::new(node);
            Command::ClaimScan { of, id: scan_id(id), node, lease_until: at(40), renews }
        }),
        3 => (of(), 0u64..2, prop::option::of(0u8..4)).prop_map(|(of, id, list)| {
            let outcome = ScanOutcome::Completed(scan_report(id, list));
            Command::EndScan { of, id: scan_id(id), node: NodeId::new(1), outcome }
        }),
        1 => (of(), 0u64..2).prop_map(|(of, id)| Command::EndScan {
            of,
            id: scan_id(id),
            node: NodeId::new(1),
            outcome: ScanOutcome::Failed { reason: "r".into() },
        }),
    ]
}

/// Chunks of disks that come to lie in other packs.
fn moved() -> impl Strategy<Value = Command> {
    let placement = || 40u8..43;
    let of = (20u8..24, prop::option::of(placement()), 4u8..6);
    let versions = prop_oneof![Just(vec![10u64]), Just(vec![11u64]), Just(vec![10u64, 11u64])];
    prop_oneof![
        8 => (placement(), 0u8..6, of, versions).prop_map(
            |(placement, dropped, (manifest, from, pack), images)| {
                let versions: Vec<_> = images.iter().map(|image| (*image, manifest)).collect();
                move_chunks(placement, &[dropped], &[(manifest, from, &[pack])], &versions)
            }
        ),
        1 => (10u64..12, 0u64..60).prop_map(|(image, since)| Command::SettleImages {
            images: [(image_id(image), at(since))].into(),
        }),
    ]
}

/// What moves accounts: limits, sessions, owners, members.
fn accounted() -> impl Strategy<Value = Command> {
    let project = prop_oneof![Just("a"), Just("b"), Just("vm")];
    let of = prop_oneof![
        Just("cluster"),
        Just("user:admin"),
        Just("user:alice"),
        Just("group:acme/dev"),
        Just("organization:acme"),
        Just("project:a"),
        Just("default:project"),
        Just("default:user"),
    ];
    let limit = |most: u64| prop::option::weighted(0.3, 0..most);
    let limits = (limit(150), limit(3), limit(60)).prop_map(|(bytes, images, image)| QuotaLimits {
        max_bytes: bytes,
        max_images: images,
        max_image_bytes: image,
    });
    let group = Place::Group { organization: account("acme"), group: account("dev") };
    let (joined, left) = (group.clone(), group);
    let user = || prop_oneof![Just("admin"), Just("alice")];
    prop_oneof![
        1 => (of.clone(), limits).prop_map(|(of, limits)| set_quota(of, limits)),
        1 => of.prop_map(|of| Command::RemoveQuota { of: of.parse().unwrap() }),
        2 => (3u64..6, 0usize..2).prop_map(|(number, at)| {
            Command::BeginUpload(blob_upload(number, CONTAINERS[at]))
        }),
        2 => (3u64..6, 0u64..3, 0u64..4).prop_map(|(number, from, by)| Command::AdvanceUpload {
            upload: upload_id(number),
            from: from * 10,
            to: (from + by) * 10,
            checkpoint: None,
            multipart: None,
            expires_at: at(80),
        }),
        2 => (3u64..6, 0u64..100).prop_map(|(number, bytes)| Command::ReserveUpload {
            upload: upload_id(number),
            bytes,
        }),
        2 => (3u64..6, 0usize..2, 0u8..3).prop_map(|(number, at, blob)| {
            let upload = Some(upload_id(number));
            match commit_blob(CONTAINERS[at], at as u64, blob) {
                Command::CommitBlob { repository, digest, size, object, recipe, owner, image, .. } =>
                    Command::CommitBlob {
                        upload, repository, digest, size, object, recipe, owner, image,
                    },
                other => other,
            }
        }),
        1 => (3u64..6).prop_map(|number| Command::AbortUpload { upload: upload_id(number) }),
        2 => (project.clone(), prop::option::of(user()), any::<bool>())
            .prop_map(|(name, user, public)| Command::UpdateProject {
                name: name.parse().unwrap(),
                visibility: if public { Visibility::Public } else { Visibility::Private },
                description: String::new(),
                owner: Some(match user {
                    Some(user) => Owner::User(user.into()),
                    None => Owner::Organization(account("acme")),
                }),
            }),
        1 => project.prop_map(|name| Command::RemoveProject { name: name.parse().unwrap() }),
        2 => user().prop_map(move |user| Command::PutRight {
            place: joined.clone(),
            grantee: Grantee::User(account(user)),
            right: Right::Group,
        }),
        1 => user().prop_map(move |user| Command::RemoveRight {
            place: left.clone(),
            grantee: Grantee::User(account(user)),
        }),
        1 => Just(Command::CreateGroup(group_dev())),
        1 => Just(Command::RemoveGroup { organization: account("acme"), name: account("dev") }),
        1 => Just(Command::RemoveUser { name: "alice".into() }),
        1 => Just(Command::CreateUser(user_alice())),
        1 => Just(Command::CountUsage),
        1 => Just(Command::IndexBlobs),
        1 => Just(Command::IndexLists),
        2 => (3u64..6, 0usize..2).prop_map(|(number, at)| {
            let upload = blob_upload(number, CONTAINERS[at]);
            Command::BeginBlobUpload { upload, open_max: 2 }
        }),
    ]
}

fn group_dev() -> Group {
    group("acme", "dev")
}

fn user_alice() -> User {
    user("alice", UserRole::User)
}

/// A cluster with people in it; sometimes one that was founded before usage was counted.
fn peopled(counts: bool) -> World {
    let mut world = World::founded();
    world.accepts(Command::CreateUser(user_alice()));
    let owner = account("admin");
    world.accepts(Command::CreateOrganization { organization: organization("acme"), owner });
    let alice = Grantee::User(account("alice"));
    let right = Right::Organization(OrganizationRole::Member);
    let place = Place::Organization(account("acme"));
    world.accepts(Command::PutRight { place, grantee: alice, right });
    world.accepts(Command::CreateGroup(group_dev()));
    if !counts {
        for since in ["usage-since", "blobs-indexed-since", "lists-kept-since"] {
            world.rows.commit([((Table::Counts, since.into()), None)].into());
        }
    }
    world
}

/// Deleting and restoring, instances, stars, downloads, deprecations.
fn catalogued() -> impl Strategy<Value = Command> {
    let image = || prop_oneof![Just(0u64), Just(1), Just(10), Just(11)];
    // Of containers, or of disks.
    let version = || prop_oneof![(0u64..2, 10u8..14), (10u64..12, 20u8..24)];
    prop_oneof![
        2 => image().prop_map(|id| Command::TrashImage { id: image_id(id), by: "admin".into() }),
        3 => image().prop_map(|id| Command::RestoreImage { id: image_id(id) }),
        4 => (0u8..3, version(), any::<bool>()).prop_map(|(name, (image, manifest), replace)| {
            let instance = instance(&format!("vm-{name}"), image, manifest);
            Command::RegisterInstance { instance, replace }
        }),
        2 => (0u8..3).prop_map(|name| Command::RemoveInstance {
            name: instance_name(&format!("vm-{name}")),
        }),
        2 => (image(), any::<bool>()).prop_map(|(image, star)| Command::NoteStars {
            stars: [(("alice".to_owned(), image_id(image)), star)].into(),
        }),
        2 => (0u64..4, version()).prop_map(|(batch, (image, manifest))| {
            let versions = [(digest(manifest), 3)].into();
            Command::NoteDownloads(DownloadBatch {
                node: NodeId::new(1),
                run: 1,
                batch,
                downloads: [(image_id(image), versions)].into(),
            })
        }),
        1 => version().prop_map(|(image, manifest)| Command::DeprecateVersion {
            image: image_id(image),
            digest: digest(manifest),
            message: Some("old".into()),
            by: "admin".into(),
        }),
        1 => (10u64..12, 20u8..24).prop_map(|(image, manifest)| Command::Rollback {
            image: image_id(image),
            tag: tag("stable"),
            to: digest(manifest),
        }),
    ]
}

/// Few ids, so that commands meet each other's rows.
fn command() -> impl Strategy<Value = Command> {
    let few = 0u8..3;
    prop_oneof![
        3 => (0usize..2, few.clone()).prop_map(|(at, blob)| {
            commit_blob(CONTAINERS[at], at as u64, blob)
        }),
        1 => (0usize..2, 0usize..2, few.clone()).prop_map(|(from, to, blob)| Command::MountBlob {
            from: Some(name(CONTAINERS[from])),
            to: name(CONTAINERS[to]),
            digest: digest(blob),
            owner: "admin".into(),
            image: image_id(to as u64),
        }),
        1 => (0usize..2, few.clone()).prop_map(|(at, blob)| Command::UnlinkBlob {
            repository: name(CONTAINERS[at]),
            digest: digest(blob),
        }),
        4 => (0usize..2, 10u8..14, prop::collection::vec(0u8..3, 0..3), any::<bool>()).prop_map(
            |(at, manifest, blobs, tagged)| {
                let put = container(CONTAINERS[at], at as u64, manifest, &blobs);
                let tags = if tagged { vec![tag("latest")] } else { vec![] };
                Command::PutManifest(PutManifest { tags, ..put })
            }
        ),
        4 => (0usize..2, 10u8..14, prop::collection::vec(0u8..3, 0..3), any::<bool>()).prop_map(
            |(at, manifest, blobs, tagged)| {
                let put = container(CONTAINERS[at], at as u64, manifest, &blobs);
                let tags = if tagged { vec![tag("latest")] } else { vec![] };
                Command::CacheManifest(PutManifest { tags, ..put })
            }
        ),
        2 => (0usize..2, 14u8..16, prop::collection::vec(10u8..14, 0..3)).prop_map(
            |(at, manifest, listed)| {
                Command::CacheManifest(index(CONTAINERS[at], at as u64, manifest, &listed))
            }
        ),
        4 => (0usize..2, 20u8..24, prop::collection::vec(0u8..4, 0..3)).prop_map(
            |(at, manifest, packs)| {
                Command::PutManifest(disk(DISKS[at], 10 + at as u64, manifest, &packs))
            }
        ),
        2 => (0usize..2, 10u8..16).prop_map(|(at, manifest)| Command::DeleteManifest {
            repository: name(CONTAINERS[at]),
            digest: digest(manifest),
        }),
        2 => (0usize..2, 20u8..24).prop_map(|(at, manifest)| Command::DeleteManifest {
            repository: name(DISKS[at]),
            digest: digest(manifest),
        }),
        1 => (0usize..2, 10u8..14).prop_map(|(at, manifest)| Command::PutTag {
            repository: name(CONTAINERS[at]),
            tag: tag("stable"),
            digest: digest(manifest),
        }),
        1 => (0usize..2).prop_map(|at| Command::DeleteTag {
            repository: name(CONTAINERS[at]),
            tag: tag("latest"),
        }),
        1 => prop_oneof![Just(0u64), Just(1), Just(10), Just(11)]
            .prop_map(|number| Command::DeleteImage { id: image_id(number) }),
        1 => (prop_oneof![Just(0u64), Just(1), Just(10), Just(11)], 1u32..40).prop_map(
            |(number, rows_max)| Command::PurgeImage {
                id: image_id(number),
                by: "admin".into(),
                rows_max,
            }
        ),
        1 => (0u8..4, 0u64..60).prop_map(|(number, before)| Command::SweepObjects {
            candidates: [pack(number), ObjectKey::Recipe(recipe(number))].into(),
            unreferenced_before: at(before),
        }),
        1 => (0u64..2, 0u8..3, 0u64..60).prop_map(|(image, blob, before)| {
            Command::UnlinkLooseBlobs {
                links: [(image_id(image), digest(blob))].into(),
                loose_before: at(before),
            }
        }),
        1 => (0u8..4).prop_map(|number| Command::AdoptObjects {
            objects: [pack(number), ObjectKey::Recipe(recipe(number))].into(),
        }),
        1 => (0u8..4).prop_map(|number| Command::RetryDeletion {
            objects: [pack(number), ObjectKey::Recipe(recipe(number))].into(),
        }),
        1 => (0u8..4, 0u64..60).prop_map(|(number, before)| Command::ForgetObjects {
            objects: [pack(number), ObjectKey::Recipe(recipe(number))].into(),
            deleting_before: at(before),
        }),
        1 => (0u64..3).prop_map(|number| Command::BeginUpload(disk_upload(number, 10, "9.9"))),
        1 => (0u64..3, 0u32..4).prop_map(|(number, index)| {
            part(number, index, if index == 2 { 5 } else { 10 })
        }),
        1 => (0u64..3).prop_map(|number| Command::ClaimIngest {
            upload: upload_id(number),
            node: NodeId::new(1),
            lease_until: at(40),
        }),
        1 => Just(Command::ExpireUploads { limit: 1 }),
        1 => (0u64..3).prop_map(|number| Command::AbortUpload { upload: upload_id(number) }),
        4 => (0u64..2, 20u8..24, 20u8..24, 1u64..3).prop_map(|(image, old, new, node)| {
            let of = delta_key(10 + image, old, new);
            Command::ClaimDelta { of, node: NodeId::new(node), lease_until: at(40) }
        }),
        4 => (0u64..2, 20u8..24, 20u8..24, prop::option::of(0u8..4)).prop_map(
            |(image, old, new, pack)| Command::EndDelta {
                of: delta_key(10 + image, old, new),
                node: NodeId::new(1),
                bundle: pack.map(delta_bundle),
            }
        ),
        1 => (0u64..2, 20u8..24, 20u8..24, 0u64..60).prop_map(|(image, old, new, before)| {
            let deltas = [delta_key(10 + image, old, new)].into();
            Command::DropDeltas { deltas, unused_before: at(before) }
        }),
        12 => accounted(),
        8 => catalogued(),
        6 => scanned(),
        6 => moved(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn counts_and_indexes_agree_with_the_rows(
        commands in prop::collection::vec(command(), 1..60),
        counts in prop::bool::weighted(0.8),
    ) {
        let (mut first, mut second) = (peopled(counts), peopled(counts));
        for command in commands {
            // `World::propose` holds that a refused command wrote nothing.
            let answer = first.propose(command.clone());
            prop_assert_eq!(answer, second.propose(command));
            check(&first);
        }
        prop_assert_eq!(first.rows, second.rows);
    }
}
