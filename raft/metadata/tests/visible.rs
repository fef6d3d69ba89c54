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

/// Every asker's pages, of any size, are what it may list, name by name.
fn check_pages(world: &World, askers: Vec<Who>) {
    let names = world.query().image_names("", usize::MAX).unwrap();
    for who in askers {
        let listed = |name: &&RepositoryName| {
            let what = What::Repository(name);
            permission(world.query(), &who, Action::List, what).unwrap().is_allowed()
        };
        let expected: Vec<_> = names.iter().filter(listed).cloned().collect();
        for size in [1, 2, 5, 84, 1000] {
            let mut visible = Visible::new(world.query(), who.clone()).unwrap();
            let (mut found, mut more) = (Vec::new(), true);
            while more {
                let page;
                (page, more) =
                    visible.page(found.last().map(RepositoryName::as_str), size).unwrap();
                assert!(page.len() == size || !more, "{who:?} {size}: {}", page.len());
                found.extend(page);
            }
            assert_eq!(found, expected, "{who:?}, {size} at once");
        }
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

/// A repository whose name has one part is a project of its own.
#[test]
fn a_closed_project_costs_one_row_however_many_there_are() {
    const PROJECTS: usize = 3_000;
    let mut world = World::founded();
    for name in ["user", "other"] {
        world.accepts(Command::PutUser(user(name, UserRole::User)));
    }
    for at in 0..PROJECTS {
        let name = format!("app{at:05}");
        let visibility = if at + 1 == PROJECTS { Visibility::Public } else { Visibility::Private };
        let closed = project(&name, Owner::User("other".into()));
        world.accepts(Command::CreateProject(Project { visibility, ..closed }));
        world.accepts(create_image(at as u64 + 1, &name, ImageKind::Container));
    }
    for name in ["user", "nobody-like-that"] {
        let counting = Counting::of(&world.rows);
        let who = Who::User { name: name.into(), scopes: None };
        let mut visible = Visible::new(Query::new(&counting), who).unwrap();
        let (names, more) = visible.page(None, 1_000).unwrap();
        assert!(!more && names.len() == usize::from(name == "user"), "{names:?}");
    }
    let counting = Counting::of(&world.rows);
    let who = Who::User { name: "user".into(), scopes: None };
    Visible::new(Query::new(&counting), who).unwrap().page(None, 1_000).unwrap();
    let read = counting.read.get();
    // Its name, and whose it is.
    assert!(read <= 2 * PROJECTS + 50, "{read} rows were read");
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
