//! Limits hold in the command that would break them, for everyone who pays, and sessions give back
//! what they reserved.

mod world;

use shoal_metadata::*;
use world::*;

fn payer(text: &str) -> Payer {
    text.parse().unwrap()
}

fn used(world: &World, text: &str) -> Account {
    assert_eq!(drift(world.query()).unwrap(), []);
    world.query().account(&payer(text)).unwrap()
}

fn exceeded(of: &str, kind: QuotaKind, limit: u64, used: u64, wanted: u64) -> Refusal {
    Refusal::Quota(Exceeded { payer: payer(of), kind, limit, used, wanted })
}

fn advance(number: u64, from: u64, to: u64) -> Command {
    Command::AdvanceUpload {
        upload: upload_id(number),
        from,
        to,
        checkpoint: None,
        multipart: None,
        expires_at: at(500),
    }
}

#[test]
fn a_project_pays_once_for_what_it_holds_and_so_does_its_neighbour() {
    let mut world = World::founded();
    world.accepts(commit_blob("shop/a", 1, 1));
    // The same blob in another repository, and in two versions.
    world.accepts(commit_blob("shop/b", 2, 1));
    world.accepts(Command::PutManifest(container("shop/a", 1, 10, &[1])));
    world.accepts(Command::PutManifest(container("shop/b", 2, 10, &[1])));
    assert_eq!(used(&world, "project:shop"), Account { bytes: 14, images: 2, reserved_bytes: 0 });
    world.accepts(Command::MountBlob {
        from: Some(name("shop/a")),
        to: name("lab/x"),
        digest: digest(1),
        owner: "admin".into(),
        image: image_id(3),
    });
    assert_eq!(used(&world, "project:lab").bytes, 10);
    assert_eq!(used(&world, "user:admin"), Account { bytes: 24, images: 3, reserved_bytes: 0 });
    // A disk pays for its content, whatever it has in common with others.
    world.accepts(Command::PutManifest(disk("vm", 4, 20, &[1, 2])));
    world.accepts(Command::PutManifest(disk("vm", 4, 21, &[1, 2])));
    assert_eq!(used(&world, "project:vm").bytes, 2 * (50 + 4));
    // What the neighbour deletes is its own affair.
    world.accepts(Command::DeleteImage { id: image_id(1) });
    world.accepts(Command::DeleteImage { id: image_id(2) });
    assert_eq!(used(&world, "project:shop"), Account::default());
    assert_eq!(used(&world, "project:lab").bytes, 10);
    assert_eq!(used(&world, "cluster").bytes, 10 + 2 * 54);
}

#[test]
fn a_push_beyond_a_limit_says_whose_it_is_and_changes_nothing() {
    let mut world = World::founded();
    world.accepts(commit_blob("shop/a", 1, 1));
    world.accepts(set_quota("project:shop", bytes_limit(20)));
    world.accepts(commit_blob("shop/a", 1, 2));
    let refused = exceeded("project:shop", QuotaKind::Bytes, 20, 20, 10);
    assert_eq!(world.refuses(commit_blob("shop/a", 1, 3)), refused);
    // What is there already costs nothing more.
    world.accepts(commit_blob("shop/b", 2, 2));
    let refused = exceeded("project:shop", QuotaKind::Bytes, 20, 20, 4);
    assert_eq!(world.refuses(Command::PutManifest(container("shop/a", 1, 10, &[1]))), refused);
    world.accepts(Command::RemoveQuota { of: "project:shop".parse().unwrap() });
    world.accepts(Command::PutManifest(container("shop/a", 1, 10, &[1])));

    world.accepts(set_quota(
        "default:user",
        QuotaLimits { max_images: Some(2), ..bytes_limit(1000) },
    ));
    let refused = exceeded("user:admin", QuotaKind::Images, 2, 2, 1);
    assert_eq!(world.refuses(commit_blob("lab/x", 3, 1)), refused);
    // A limit of its own takes the default's place.
    world.accepts(set_quota("user:admin", bytes_limit(40)));
    world.accepts(commit_blob("lab/x", 3, 1));
    let refused = exceeded("user:admin", QuotaKind::Bytes, 40, 34, 10);
    assert_eq!(world.refuses(commit_blob("lab/x", 3, 2)), refused);
    // Below what is used it can be set; nothing grows then, and everything can be deleted.
    world.accepts(set_quota("user:admin", bytes_limit(1)));
    world.accepts(Command::PutTag {
        repository: name("shop/a"),
        tag: tag("v1"),
        digest: digest(10),
    });
    world.accepts(Command::DeleteImage { id: image_id(1) });
    assert_eq!(used(&world, "user:admin").images, 2);
}

#[test]
fn one_image_may_be_too_large_though_there_is_room() {
    let mut world = World::founded();
    let limits = QuotaLimits { max_image_bytes: Some(30), ..QuotaLimits::default() };
    world.accepts(set_quota("default:project", limits));
    for blob in 0..3 {
        world.accepts(commit_blob("shop/a", 1, blob));
    }
    world.accepts(Command::PutManifest(container("shop/a", 1, 10, &[0, 1])));
    let refused = exceeded("project:shop", QuotaKind::ImageBytes, 30, 0, 34);
    let large = Command::PutManifest(container("shop/a", 1, 11, &[0, 1, 2]));
    assert_eq!(world.refuses(large), refused);
    let refused = exceeded("project:vm", QuotaKind::ImageBytes, 30, 0, 54);
    assert_eq!(world.refuses(Command::PutManifest(disk("vm", 4, 20, &[1]))), refused);
    // Not begun, or not gone on with, where it is clear from the start.
    world.accepts(create_image(5, "vm", ImageKind::Disk));
    world.accepts(Command::BeginUpload(disk_upload(1, 5, "1.0")));
    world.accepts(Command::BeginUpload(blob_upload(2, "shop/a")));
    let refused = exceeded("project:shop", QuotaKind::ImageBytes, 30, 0, 31);
    assert_eq!(world.refuses(advance(2, 0, 31)), refused);
    assert_eq!(world.refuses(Command::ReserveUpload { upload: upload_id(2), bytes: 31 }), refused);
}

#[test]
fn a_session_reserves_what_it_announced_until_it_ends() {
    let mut world = World::founded();
    world.accepts(create_image(1, "vm", ImageKind::Disk));
    world.accepts(set_quota("project:vm", bytes_limit(60)));
    world.accepts(Command::BeginUpload(disk_upload(1, 1, "1.0")));
    world.accepts(Command::BeginUpload(disk_upload(2, 1, "1.1")));
    let refused = exceeded("project:vm", QuotaKind::Bytes, 60, 50, 25);
    assert_eq!(world.refuses(Command::BeginUpload(disk_upload(3, 1, "1.2"))), refused);
    world.accepts(Command::AbortUpload { upload: upload_id(2) });
    assert_eq!(used(&world, "project:vm").reserved_bytes, 25);
    for index in 0..3 {
        world.accepts(part(1, index, if index == 2 { 5 } else { 10 }));
    }
    world.accepts(Command::ClaimIngest {
        upload: upload_id(1),
        node: shoal_content::NodeId::new(1),
        lease_until: at(900),
    });
    // What is published takes the reservation's place.
    let put = PutManifest { upload: Some(upload_id(1)), ..disk("vm", 1, 20, &[1]) };
    world.accepts(Command::PutManifest(put));
    assert_eq!(used(&world, "project:vm"), Account { bytes: 54, images: 1, reserved_bytes: 0 });

    world.accepts(set_quota("user:admin", bytes_limit(104)));
    world.accepts(Command::BeginUpload(blob_upload(4, "shop/a")));
    world.accepts(Command::CreateProject(project("shop", Owner::User("admin".into()))));
    world.accepts(Command::ReserveUpload { upload: upload_id(4), bytes: 50 });
    assert_eq!(used(&world, "user:admin").taken_bytes(), 104);
    world.accepts(Command::BeginUpload(blob_upload(5, "shop/a")));
    let refused = exceeded("user:admin", QuotaKind::Bytes, 104, 104, 1);
    assert_eq!(world.refuses(advance(5, 0, 1)), refused);
    // What came is what is reserved from then on.
    world.accepts(advance(4, 0, 20));
    world.accepts(advance(5, 0, 30));
    assert_eq!(used(&world, "project:shop").reserved_bytes, 50);
    world.now = 1000;
    world.accepts(Command::ExpireUploads { limit: 10 });
    assert_eq!(used(&world, "project:shop"), Account::default());
    // So does one whose project goes, or whose disk cannot be read.
    world
        .accepts(Command::BeginUpload(Upload { expires_at: at(2000), ..blob_upload(6, "shop/a") }));
    world.accepts(advance(6, 0, 10));
    world.accepts(Command::RemoveProject { name: "shop".parse().unwrap() });
    assert_eq!(used(&world, "cluster").reserved_bytes, 0);
    world.accepts(advance(6, 10, 20));
    assert_eq!(used(&world, "cluster").reserved_bytes, 20);
    world.accepts(Command::CommitBlob {
        upload: Some(upload_id(6)),
        repository: name("shop/a"),
        digest: digest(1),
        size: 20,
        object: shoal_content::ObjectKey::Blob(upload_id(6)),
        recipe: recipe(1),
        owner: "admin".into(),
        image: image_id(9),
    });
    let account = Account { bytes: 20, images: 1, reserved_bytes: 0 };
    assert_eq!(used(&world, "project:shop"), account);
}

#[test]
fn what_is_reserved_never_comes_near_the_end_of_its_number() {
    let mut world = World::founded();
    world.accepts(create_image(1, "vm", ImageKind::Disk));
    let begin = |number, bytes| {
        let mut upload = disk_upload(number, 1, &format!("1.{number}"));
        if let UploadPurpose::Disk { total_bytes, part_bytes, .. } = &mut upload.purpose {
            (*total_bytes, *part_bytes) = (bytes, u64::MAX / 5_000);
        }
        Command::BeginUpload(upload)
    };
    let most = i64::MAX as u64;
    assert!(matches!(world.refuses(begin(1, u64::MAX)), Refusal::Limit(_)));
    world.accepts(begin(1, most));
    for bytes in [1, u64::MAX] {
        assert!(matches!(world.refuses(begin(2, bytes)), Refusal::Limit(_)), "{bytes}");
    }
    world.accepts(Command::BeginUpload(blob_upload(3, "shop/a")));
    let reserve = |bytes| Command::ReserveUpload { upload: upload_id(3), bytes };
    assert!(matches!(world.refuses(reserve(1)), Refusal::Limit(_)));
    world.accepts(Command::AbortUpload { upload: upload_id(1) });
    // What a session has reserved before does not count twice.
    for bytes in [most - 1, most] {
        world.accepts(reserve(bytes));
    }
    assert_eq!(used(&world, "cluster").reserved_bytes, most);
    assert!(matches!(world.refuses(begin(2, 1)), Refusal::Limit(_)));
}

#[test]
fn owners_and_groups_pay_for_what_their_members_own() {
    let mut world = World::founded();
    world.accepts(Command::CreateUser(user("alice", UserRole::User)));
    let owner = account("alice");
    world.accepts(Command::CreateOrganization { organization: organization("acme"), owner });
    world.accepts(Command::CreateGroup(group("acme", "dev")));
    let place = Place::Group { organization: account("acme"), group: account("dev") };
    let alice = Grantee::User(account("alice"));
    let blob = |blob, image, repository: &str| match commit_blob(repository, image, blob) {
        Command::CommitBlob { upload, repository, digest, size, object, recipe, image, .. } => {
            let owner = "alice".to_owned();
            Command::CommitBlob { upload, repository, digest, size, object, recipe, owner, image }
        }
        other => other,
    };
    world.accepts(blob(1, 1, "hers/x"));
    let join =
        Command::PutRight { place: place.clone(), grantee: alice.clone(), right: Right::Group };
    world.accepts(join.clone());
    world.accepts(join);
    assert_eq!(used(&world, "group:acme/dev").bytes, 10);
    world.accepts(set_quota("group:acme/dev", bytes_limit(15)));
    let refused = exceeded("group:acme/dev", QuotaKind::Bytes, 15, 10, 10);
    assert_eq!(world.refuses(blob(2, 1, "hers/x")), refused);
    world.accepts(Command::RemoveRight { place, grantee: alice });
    assert_eq!(used(&world, "group:acme/dev"), Account::default());
    world.accepts(blob(2, 1, "hers/x"));

    // Given away, it is the new owner's; who has no room for it does not get it.
    let give = |owner| Command::UpdateProject {
        name: "hers".parse().unwrap(),
        visibility: Visibility::Private,
        description: String::new(),
        owner: Some(owner),
    };
    world.accepts(set_quota("organization:acme", bytes_limit(19)));
    let refused = exceeded("organization:acme", QuotaKind::Bytes, 19, 0, 20);
    assert_eq!(world.refuses(give(Owner::Organization(account("acme")))), refused);
    world.accepts(set_quota("organization:acme", bytes_limit(20)));
    world.accepts(give(Owner::Organization(account("acme"))));
    assert_eq!(used(&world, "user:alice"), Account::default());
    assert_eq!(used(&world, "organization:acme").bytes, 20);
    world.accepts(give(Owner::User("alice".into())));
    // Who goes leaves nothing: projects are nobody's, and a name given again has no limit.
    world.accepts(set_quota("user:alice", bytes_limit(20)));
    world.accepts(Command::PutRight {
        place: Place::Organization(account("acme")),
        grantee: Grantee::User(account("admin")),
        right: Right::Organization(OrganizationRole::Owner),
    });
    world.accepts(Command::RemoveUser { name: "alice".into() });
    assert_eq!(used(&world, "user:alice"), Account::default());
    assert_eq!(world.query().quota(&QuotaOf::One(payer("user:alice"))).unwrap(), None);
    assert_eq!(used(&world, "project:hers").bytes, 20);
}

#[test]
fn limits_are_for_who_is_there() {
    let mut world = World::founded();
    for (of, subject) in [
        ("user:nobody", Subject::User),
        ("project:none", Subject::Project),
        ("organization:none", Subject::Organization),
        ("group:none/x", Subject::Group),
    ] {
        assert_eq!(world.refuses(set_quota(of, bytes_limit(1))), Refusal::NotFound(subject));
    }
    let remove = Command::RemoveQuota { of: "cluster".parse().unwrap() };
    assert_eq!(world.refuses(remove), Refusal::NotFound(Subject::Quota));
    world.accepts(set_quota("cluster", bytes_limit(9)));
    let refused = exceeded("cluster", QuotaKind::Bytes, 9, 0, 10);
    assert_eq!(world.refuses(commit_blob("shop/a", 1, 1)), refused);
}

#[test]
fn a_cluster_that_did_not_count_begins_with_what_is_there() {
    let mut world = World::founded();
    world.rows.commit([((Table::Counts, b"usage-since".to_vec()), None)].into());
    world.accepts(commit_blob("shop/a", 1, 1));
    world.accepts(Command::PutManifest(container("shop/a", 1, 10, &[1])));
    world.accepts(Command::BeginUpload(blob_upload(4, "shop/a")));
    world.accepts(advance(4, 0, 10));
    assert!(!world.query().counts_usage().unwrap());
    assert_eq!(used(&world, "project:shop"), Account::default());
    world.accepts(Command::CountUsage);
    assert_eq!(used(&world, "project:shop"), Account { bytes: 14, images: 1, reserved_bytes: 0 });
    world.accepts(advance(4, 10, 20));
    assert_eq!(used(&world, "project:shop").reserved_bytes, 20);
    world.accepts(Command::CountUsage);
    assert_eq!(used(&world, "user:admin").taken_bytes(), 34);
}

#[test]
fn a_recount_finds_what_does_not_add_up() {
    let mut world = World::founded();
    world.accepts(commit_blob("shop/a", 1, 1));
    let wrong = Account { bytes: 11, images: 1, reserved_bytes: 0 };
    let key = (Table::Accounts, b"project:shop".to_vec());
    world.rows.commit([(key, Some(encode_row(&wrong)))].into());
    let counted = Account { bytes: 10, images: 1, reserved_bytes: 0 };
    let payer = "project:shop".to_owned();
    let expected = Drift::Account { payer, stored: wrong, counted };
    assert_eq!(drift(world.query()).unwrap(), [expected]);
    let strays: Vec<_> = world
        .rows
        .rows()
        .filter(|(table, ..)| *table == Table::ProjectContents)
        .map(|(table, key, _)| ((table, key.to_vec()), None))
        .collect();
    world.rows.commit(strays.into_iter().collect());
    let found = drift(world.query()).unwrap();
    let missing = Drift::Contents { project: "shop".parse().unwrap(), wrong: 1 };
    assert!(found.contains(&missing), "{found:?}");
    world.accepts(Command::CountUsage);
    assert_eq!(drift(world.query()).unwrap(), []);
}
