//! Where a blob is found to be mounted from, by whom, and at what cost; and how many uploads an
//! account may have open.

mod world;

use shoal_content::RepositoryName;
use shoal_metadata::*;
use world::counting::Counting;
use world::*;

fn person(name: &str) -> Who {
    Who::User { name: name.into(), scopes: None }
}

fn add_project(world: &mut World, text: &str, owner: &str, visibility: Visibility) {
    let project = project(text, Owner::User(owner.into()));
    world.accepts(Command::CreateProject(Project { visibility, ..project }));
}

/// Blob 1 in each of these, whose ids follow `first`.
fn push(world: &mut World, first: u64, repositories: &[&str]) {
    for (number, repository) in (first..).zip(repositories) {
        world.accepts(commit_blob(repository, number, 1));
    }
}

/// The repository that `who` mounts blob 1 from into the project.
fn found(world: &World, who: &Who, project: &str) -> Option<RepositoryName> {
    holder(world.query(), who, &digest(1), &project.parse().unwrap()).unwrap()
}

fn world() -> World {
    let mut world = World::founded();
    for name in ["user", "other"] {
        world.accepts(Command::PutUser(user(name, UserRole::User)));
    }
    world
}

#[test]
fn a_blob_is_found_near_by_then_wherever_the_asker_may_pull_and_nowhere_else() {
    let mut world = world();
    // Names that are the beginnings of each other, or sort beside the end of one.
    for (text, owner, visibility) in [
        ("a", "other", Visibility::Private),
        ("a-b", "other", Visibility::Private),
        ("ab", "other", Visibility::Public),
        ("mine", "user", Visibility::Private),
        ("to", "user", Visibility::Private),
    ] {
        add_project(&mut world, text, owner, visibility);
    }
    let user = person("user");
    push(&mut world, 1, &["a/x", "a-b/x"]);
    assert_eq!(found(&world, &user, "to"), None, "what lies elsewhere is told to nobody");
    assert_eq!(found(&world, &Who::Anonymous, "to"), None);
    assert_eq!(found(&world, &person("nobody"), "to"), None);
    assert_eq!(found(&world, &person("other"), "a-b"), Some(name("a-b/x")));
    assert_eq!(found(&world, &person("other"), "to"), Some(name("a/x")));
    assert_eq!(found(&world, &person("admin"), "to"), Some(name("a/x")));
    push(&mut world, 3, &["ab/x"]);
    assert_eq!(found(&world, &user, "to"), Some(name("ab/x")));
    assert_eq!(found(&world, &Who::Anonymous, "to"), Some(name("ab/x")));
    push(&mut world, 4, &["mine/x"]);
    assert_eq!(found(&world, &user, "mine"), Some(name("mine/x")));
    // A token that may only write must not read by this way either.
    let writes = Who::User { name: "user".into(), scopes: Some([Scope::Write].into()) };
    assert_eq!(found(&world, &writes, "mine"), None);
    world.accepts(Command::UnlinkBlob { repository: name("mine/x"), digest: digest(1) });
    assert_eq!(found(&world, &user, "mine"), Some(name("ab/x")));
    world.accepts(Command::DeleteImage { id: image_id(3) });
    assert_eq!(found(&world, &user, "mine"), None);
}

#[test]
fn what_was_given_to_somebody_is_found_among_much_that_is_closed() {
    let mut world = world();
    world.accepts(Command::CreateOrganization {
        organization: organization("acme"),
        owner: account("other"),
    });
    world.accepts(Command::CreateGroup(group("acme", "dev")));
    let join = |place, grantee, right| Command::PutRight { place, grantee, right };
    let user = Grantee::User(account("user"));
    let organization = Place::Organization(account("acme"));
    let member = Right::Organization(OrganizationRole::Member);
    world.accepts(join(organization, user.clone(), member));
    let dev = Place::Group { organization: account("acme"), group: account("dev") };
    world.accepts(join(dev, user.clone(), Right::Group));
    add_project(&mut world, "to", "user", Visibility::Private);
    for number in 0..400 {
        let project = format!("closed{number:03}");
        add_project(&mut world, &project, "other", Visibility::Private);
        push(&mut world, 1_000 + number * 2, &[&format!("{project}/a"), &format!("{project}/b")]);
    }
    assert_eq!(found(&world, &person("user"), "to"), None);
    let group = Grantee::Group { organization: account("acme"), group: account("dev") };
    let read = Right::Image(Access::Read);
    // One of the last, beyond what is looked at in the order of names.
    world.accepts(join(Place::Image(image_id(1_000 + 399 * 2 + 1)), group.clone(), read));
    assert_eq!(found(&world, &person("user"), "to"), Some(name("closed399/b")));
    let reader = Right::Project(ProjectRole::Guest);
    world.accepts(join(Place::Project("closed398".parse().unwrap()), user, reader));
    let first = found(&world, &person("user"), "to").unwrap();
    assert!(["closed398/a", "closed399/b"].contains(&first.as_str()), "{first}");
    // A robot that is held to one repository has no other of its project.
    let mut robot = robot("robot$closed399+ci", &[Scope::Read]);
    robot.repositories = [name("closed399/b")].into();
    let who = Who::Robot(robot.name.clone());
    world.accepts(Command::PutRobot(robot));
    assert_eq!(found(&world, &who, "closed399"), Some(name("closed399/b")));
    assert_eq!(found(&world, &who, "to"), Some(name("closed399/b")));
}

#[test]
fn a_search_costs_the_same_however_many_hold_the_blob() {
    let mut reads = Vec::new();
    for projects in [300, 900] {
        let mut world = world();
        for number in 0..projects {
            let project = format!("closed{number:03}");
            add_project(&mut world, &project, "other", Visibility::Private);
            push(&mut world, 10_000 + number, &[&format!("{project}/a")]);
        }
        let counting = Counting::of(&world.rows);
        let to = "to".parse().unwrap();
        let query = Query::new(&counting);
        assert_eq!(holder(query, &person("user"), &digest(1), &to).unwrap(), None);
        reads.push(counting.read.get());
    }
    assert_eq!(reads[0], reads[1]);
    assert!(reads[0] < 10_000, "{reads:?}");
}

#[test]
fn a_cluster_that_did_not_write_it_down_begins_with_what_is_there() {
    let mut world = world();
    let since = (Table::Counts, b"blobs-indexed-since".to_vec());
    world.rows.commit([(since, None)].into());
    push(&mut world, 1, &["a/x", "b/x"]);
    world.accepts(Command::BeginUpload(blob_upload(1, "a/x")));
    let admin = person("admin");
    assert_eq!(found(&world, &admin, "a"), None);
    assert_eq!(world.query().open_uploads("admin").unwrap(), 0);
    for _ in 0..2 {
        world.accepts(Command::IndexBlobs);
        assert_eq!(found(&world, &admin, "b"), Some(name("b/x")));
        assert_eq!(world.query().open_uploads("admin").unwrap(), 1);
    }
    counts::check(&world);
    world.accepts(Command::AbortUpload { upload: upload_id(1) });
    assert_eq!(world.query().open_uploads("admin").unwrap(), 0);
}

#[test]
fn an_account_has_so_many_uploads_open_and_no_more() {
    let mut world = world();
    let begin = |number, owner: &str| {
        let upload = Upload { owner: owner.into(), ..blob_upload(number, "a/x") };
        Command::BeginBlobUpload { upload, open_max: 2 }
    };
    world.accepts(begin(1, "user"));
    // However they were begun, they count.
    let plain = Upload { owner: "user".into(), ..blob_upload(2, "a/x") };
    world.accepts(Command::BeginUpload(plain));
    let refused = Refusal::TooManyUploads { open: 2, most: 2 };
    assert_eq!(world.refuses(begin(3, "user")), refused);
    world.accepts(begin(4, "other"));
    world.accepts(Command::AbortUpload { upload: upload_id(1) });
    world.accepts(begin(3, "user"));
    assert_eq!(world.refuses(begin(5, "user")), refused);
    // The end of an upload makes room, and so does its expiry.
    let Command::CommitBlob { repository, digest, size, object, recipe, image, .. } =
        commit_blob("a/x", 1, 1)
    else {
        unreachable!("a commit")
    };
    let (upload, owner) = (Some(upload_id(3)), "user".into());
    world.accepts(Command::CommitBlob {
        upload,
        repository,
        digest,
        size,
        object,
        recipe,
        owner,
        image,
    });
    world.accepts(begin(5, "user"));
    world.now = 1_000;
    world.accepts(Command::ExpireUploads { limit: 100 });
    assert_eq!(world.query().open_uploads("user").unwrap(), 0);
    world.accepts(begin(6, "user"));
    let disk = Command::BeginBlobUpload { upload: disk_upload(7, 1, "1.0"), open_max: 9 };
    assert!(matches!(world.refuses(disk), Refusal::UploadState(_)));
}
