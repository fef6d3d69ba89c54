//! Lists of repositories and of tags: each asker's pages, and what a page costs where there are many.

mod world;

use shoal_content::RepositoryName;
use shoal_metadata::*;
use world::counting::Counting;
use world::*;

/// Projects in turn public, the user's, and somebody else's, which holds one image that was granted
/// to the user. Their names are near each other, also by what sorts before `/`.
fn populated(projects: usize, images_each: usize) -> World {
    let mut world = World::founded();
    for name in ["user", "other"] {
        world.accepts(Command::PutUser(user(name, UserRole::User)));
    }
    let mut number = 0;
    for at in 0..projects {
        let (visibility, owner) = match at % 3 {
            0 => (Visibility::Public, "other"),
            1 => (Visibility::Private, "user"),
            _ => (Visibility::Private, "other"),
        };
        let name = ["p", "p-a", "p.a", "p0"][at % 4];
        let project_name = format!("{name}{:04}", at / 4);
        let owner = Owner::User(owner.into());
        world.accepts(Command::CreateProject(Project {
            visibility,
            ..project(&project_name, owner)
        }));
        for image in 0..images_each {
            number += 1;
            let name = format!("{project_name}/{image:06}");
            world.accepts(create_image(number, &name, ImageKind::Container));
            if at % 3 == 2 && image == images_each / 2 {
                let (place, right) = (Place::Image(image_id(number)), Right::Image(Access::Read));
                let grantee = Grantee::User(account("user"));
                world.accepts(Command::PutRight { place, grantee, right });
            }
        }
    }
    world
}

fn askers() -> Vec<Who> {
    let people =
        ["admin", "user", "other"].map(|name| Who::User { name: name.into(), scopes: None });
    let robot = Who::Robot("robot$p0000+all".parse().unwrap());
    people.into_iter().chain([Who::Anonymous, Who::Agent, robot]).collect()
}

#[test]
fn pages_hold_what_each_asker_may_list_and_nothing_else() {
    let mut world = populated(12, 7);
    let mut robot = robot("robot$p0000+all", &[Scope::Read]);
    robot.repositories = [name("p0000/000003")].into();
    world.accepts(Command::PutRobot(robot));
    check_pages(&world, askers());
}

fn check_pages(world: &World, askers: Vec<Who>) {
    for who in askers {
        lists::check(world, &who, &[1, 2, 5, 84, 1000]);
    }
}

/// Each way in which a project may be open to somebody: by itself, by a group or an organization, as
/// its owner's or its members'.
#[test]
fn pages_hold_what_groups_and_organizations_open() {
    let mut world = World::founded();
    for (name, role) in
        [("user", UserRole::User), ("other", UserRole::User), ("auditor", UserRole::Auditor)]
    {
        world.accepts(Command::PutUser(user(name, role)));
    }
    let owner = account("other");
    world.accepts(Command::CreateOrganization { organization: organization("acme"), owner });
    world.accepts(Command::CreateGroup(group("acme", "dev")));
    let person = || Grantee::User(account("user"));
    let whole = || Grantee::Organization(account("acme"));
    let (of, dev) = (account("acme"), account("dev"));
    let some = || Grantee::Group { organization: account("acme"), group: account("dev") };
    let other = || Owner::User("other".into());
    let acme = || Owner::Organization(account("acme"));
    let open = [
        ("closed", other(), Visibility::Private, None),
        ("closed-acme", acme(), Visibility::Private, None),
        ("guest", other(), Visibility::Private, Some((person(), ProjectRole::Guest))),
        ("guests", other(), Visibility::Private, Some((some(), ProjectRole::Guest))),
        ("limited", other(), Visibility::Private, Some((person(), ProjectRole::LimitedGuest))),
        ("members", other(), Visibility::Private, Some((whole(), ProjectRole::Developer))),
        ("mine", Owner::User("user".into()), Visibility::Private, None),
        ("open", other(), Visibility::Public, None),
        ("open-acme", acme(), Visibility::Organization, None),
    ];
    let mut number = 0;
    for (name, owner, visibility, right) in open {
        world.accepts(Command::CreateProject(Project { visibility, ..project(name, owner) }));
        if let Some((grantee, role)) = right {
            let place = Place::Project(name.parse().unwrap());
            world.accepts(Command::PutRight { place, grantee, right: Right::Project(role) });
        }
        for image in [name.to_owned(), format!("{name}/app")] {
            number += 1;
            world.accepts(create_image(number, &image, ImageKind::Container));
        }
    }
    check_pages(&world, askers());
    // Nothing of acme's is open to who is not in it.
    let group = Place::Group { organization: of.clone(), group: dev };
    let member = Right::Organization(OrganizationRole::Member);
    for (place, right) in [(Place::Organization(of), member), (group, Right::Group)] {
        world.accepts(Command::PutRight { place, grantee: person(), right });
        let people = ["user", "other", "auditor"]
            .map(|name| Who::User { name: name.into(), scopes: None })
            .to_vec();
        check_pages(&world, people);
    }
    let user = Who::User { name: "user".into(), scopes: None };
    let (seen, more) = Visible::new(world.query(), user).unwrap().page(None, 100).unwrap();
    let seen: Vec<&str> = seen.iter().map(RepositoryName::as_str).collect();
    let expected = ["guest", "guests", "members", "mine", "open", "open-acme"];
    let expected: Vec<_> =
        expected.iter().flat_map(|name| [name.to_string(), format!("{name}/app")]).collect();
    let mut expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    expected.sort_unstable();
    assert_eq!((seen, more), (expected, false));
}

/// A user with something of each kind among as many closed projects: owned, by an organization, by a
/// group, by a right of its own, one image, and what everyone sees; and a robot of a closed project.
fn shut_in(closed: usize) -> World {
    let mut world = World::founded();
    for name in ["user", "other"] {
        world.accepts(Command::PutUser(user(name, UserRole::User)));
    }
    let owner = account("other");
    world.accepts(Command::CreateOrganization { organization: organization("acme"), owner });
    world.accepts(Command::CreateGroup(group("acme", "dev")));
    let person = || Grantee::User(account("user"));
    let whole = Place::Organization(account("acme"));
    let dev = Place::Group { organization: account("acme"), group: account("dev") };
    let member = Right::Organization(OrganizationRole::Member);
    for (place, right) in [(whole, member), (dev, Right::Group)] {
        world.accepts(Command::PutRight { place, grantee: person(), right });
    }
    let mut number = 0;
    // A repository whose name has one part is a project of its own.
    let mut add = |world: &mut World, name: &str, owner: Owner, visibility: Visibility| {
        number += 1;
        world.accepts(Command::CreateProject(Project { visibility, ..project(name, owner) }));
        world.accepts(create_image(number, name, ImageKind::Container));
        number
    };
    let other = || Owner::User("other".into());
    for at in 0..closed {
        // The projects of an organization that are closed to its members, too.
        let owner = if at % 2 == 0 { other() } else { Owner::Organization(account("acme")) };
        add(&mut world, &format!("app{at:05}"), owner, Visibility::Private);
    }
    for at in (0..10).map(|part| closed * part / 10) {
        let name = |kind: &str| format!("app{at:05}-{kind}");
        let acme = Owner::Organization(account("acme"));
        add(&mut world, &name("acme"), acme, Visibility::Organization);
        add(&mut world, &name("mine"), Owner::User("user".into()), Visibility::Private);
        add(&mut world, &name("open"), other(), Visibility::Public);
        add(&mut world, &name("given"), other(), Visibility::Private);
        let place = Place::Project(name("given").parse().unwrap());
        let right = Right::Project(ProjectRole::Guest);
        let dev = Grantee::Group { organization: account("acme"), group: account("dev") };
        world.accepts(Command::PutRight { place, grantee: dev, right });
        let image = add(&mut world, &name("image"), other(), Visibility::Private);
        let (place, right) = (Place::Image(image_id(image)), Right::Image(Access::Read));
        world.accepts(Command::PutRight { place, grantee: person(), right });
    }
    world.accepts(Command::PutRobot(robot("robot$app00000+all", &[Scope::Read])));
    world
}

#[test]
fn a_page_costs_the_same_however_many_projects_are_closed_to_who_asks() {
    let person = |name: &str| Who::User { name: name.into(), scopes: None };
    let robot = Who::Robot("robot$app00000+all".parse().unwrap());
    for (who, seen, most) in [
        (person("user"), 50, 2_500),
        (person("nobody-like-that"), 0, 10),
        (Who::Anonymous, 10, 250),
        (robot, 11, 350),
    ] {
        let cost = |closed: usize| {
            let world = shut_in(closed);
            let counting = Counting::of(&world.rows);
            let mut visible = Visible::new(Query::new(&counting), who.clone()).unwrap();
            let (names, more) = visible.page(None, 1_000).unwrap();
            assert_eq!((names.len(), more), (seen, false), "{who:?} among {closed}");
            assert_eq!(visible.count().unwrap(), Some(seen as u64), "{who:?} among {closed}");
            visible.projects("", 1_000).unwrap();
            counting.read.get()
        };
        let (few, many) = (cost(200), cost(2_000));
        assert_eq!(few, many, "{who:?}");
        assert!(many <= most, "{who:?}: {many} rows were read");
    }
}

#[test]
fn a_cluster_that_kept_no_audiences_shows_the_same_and_begins_with_what_is_there() {
    let mut world = World::founded();
    world.rows.commit([((Table::Counts, b"lists-kept-since".to_vec()), None)].into());
    for name in ["user", "other"] {
        world.accepts(Command::PutUser(user(name, UserRole::User)));
    }
    for (number, (name, visibility)) in (1..).zip([
        ("a", Visibility::Public),
        ("a-b", Visibility::Private),
        ("b", Visibility::Private),
    ]) {
        let owner = Owner::User("user".into());
        world.accepts(Command::CreateProject(Project { visibility, ..project(name, owner) }));
        world.accepts(create_image(number, &format!("{name}/x"), ImageKind::Container));
    }
    let update = |name: &str, visibility| Command::UpdateProject {
        name: name.parse().unwrap(),
        visibility,
        description: String::new(),
        owner: None,
    };
    let trash = |number| Command::TrashImage { id: image_id(number), by: "admin".into() };
    world.accepts(update("b", Visibility::Public));
    check_pages(&world, askers());
    let counted = |world: &World| Visible::new(world.query(), Who::Anonymous).unwrap().count();
    assert_eq!(counted(&world).unwrap(), None);
    for _ in 0..2 {
        world.accepts(Command::IndexLists);
        counts::check(&world);
        check_pages(&world, askers());
        assert_eq!(counted(&world).unwrap(), Some(2));
    }
    world.accepts(update("b", Visibility::Private));
    world.accepts(trash(1));
    counts::check(&world);
    check_pages(&world, askers());
    assert_eq!(counted(&world).unwrap(), Some(0));
}

#[test]
fn a_page_out_of_a_hundred_thousand_costs_what_is_on_it() {
    const PAGE: usize = 100;
    let world = populated(20, 5_000);
    for who in askers() {
        for after in [None, Some("p0003/002500"), Some("p-a0002/004999")] {
            let counting = Counting::of(&world.rows);
            let mut visible = Visible::new(Query::new(&counting), who.clone()).unwrap();
            visible.page(after, PAGE).unwrap();
            // Each closed project costs at most a batch of names and its rights.
            let most = 25 * (PAGE + 20);
            let read = counting.read.get();
            assert!(read <= most, "{who:?} after {after:?}: {read} rows were read");
        }
    }
}

#[test]
fn a_page_of_tags_out_of_a_hundred_thousand_costs_what_is_on_it() {
    const PAGE: usize = 100;
    const TAGS: usize = 100_000;
    let mut world = World::founded();
    // Neighbours in the table of tags, of which nothing may be read.
    for (number, repository, tags) in [(1, "p/a", 1000), (2, "p/b", TAGS), (3, "p/c", 1000)] {
        let of = name(repository);
        world.accepts(commit_blob(repository, number, 7));
        world.accepts(Command::PutManifest(container(repository, number, 9, &[7])));
        for at in 0..tags {
            let (repository, tag) = (of.clone(), tag(&format!("v{at:06}")));
            world.accepts(Command::PutTag { repository, tag, digest: digest(9) });
        }
    }
    let who = Who::User { name: "admin".into(), scopes: None };
    // As `GET /v2/p/b/tags/list` reads it: whether it may, which image it is, and a page and whether
    // there is more.
    let page = |after: Option<usize>, size: usize| {
        let counting = Counting::of(&world.rows);
        let (query, repository) = (Query::new(&counting), name("p/b"));
        let what = What::Repository(&repository);
        assert!(permission(query, &who, Action::List, what).unwrap().is_allowed());
        let image = query.image_by_name(&repository).unwrap().unwrap();
        let after = after.map(|at| format!("v{at:06}"));
        let found = query.tags(image.id, after.as_deref(), size + 1).unwrap();
        (found, counting.read.get())
    };
    let (first, read) = page(None, PAGE);
    assert_eq!(first.len(), PAGE + 1);
    assert_eq!(first[0].0, tag("v000000"));
    assert!(read <= PAGE + 20, "{read} rows were read");
    for after in [PAGE - 1, TAGS / 2, TAGS - PAGE - 2] {
        let (found, later) = page(Some(after), PAGE);
        assert_eq!(found[0].0, tag(&format!("v{:06}", after + 1)));
        assert_eq!((found.len(), later), (PAGE + 1, read), "after {after}");
    }
    // The last page is short, and does not go on into the next image.
    let (last, later) = page(Some(TAGS - 11), PAGE);
    assert_eq!(last.len(), 10);
    assert!(later < read, "{later} rows were read");
    let (_, small) = page(Some(TAGS / 2), 1);
    assert!(small <= read - PAGE + 1, "{small} rows were read for one tag");
}
