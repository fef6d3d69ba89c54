//! Lists show what each asker may list, whatever the state: page by page as name by name.

mod world;

use proptest::prelude::*;
use shoal_metadata::*;
use world::*;

/// Names that are the beginnings of each other, or sort beside the end of one.
const PROJECTS: [&str; 8] = ["a", "a-b", "a-b.c", "a.b", "a0", "a_b", "b", "b--c"];
const REPOSITORIES: [&str; 3] = ["", "/x", "/y/z"];
const PEOPLE: [&str; 3] = ["alice", "bob", "eve"];

fn project_name() -> impl Strategy<Value = &'static str> {
    prop::sample::select(PROJECTS.to_vec())
}

fn person() -> impl Strategy<Value = &'static str> {
    prop::sample::select(PEOPLE.to_vec())
}

fn grantee() -> impl Strategy<Value = Grantee> {
    prop_oneof![
        person().prop_map(|name| Grantee::User(account(name))),
        Just(Grantee::Organization(account("acme"))),
        Just(Grantee::Group { organization: account("acme"), group: account("dev") }),
    ]
}

fn image() -> impl Strategy<Value = u64> {
    0..(PROJECTS.len() * REPOSITORIES.len()) as u64
}

fn owner() -> impl Strategy<Value = Owner> {
    prop_oneof![
        person().prop_map(|name| Owner::User(name.into())),
        Just(Owner::Organization(account("acme"))),
    ]
}

fn visibility() -> impl Strategy<Value = Visibility> {
    prop_oneof![
        Just(Visibility::Public),
        Just(Visibility::Organization),
        Just(Visibility::Private),
        Just(Visibility::Private),
    ]
}

fn role() -> impl Strategy<Value = Right> {
    prop_oneof![
        Just(Right::Project(ProjectRole::LimitedGuest)),
        Just(Right::Project(ProjectRole::Guest)),
        Just(Right::Project(ProjectRole::Admin)),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    let acme = || Place::Organization(account("acme"));
    let dev = || Place::Group { organization: account("acme"), group: account("dev") };
    prop_oneof![
        6 => (project_name(), owner(), visibility()).prop_map(|(name, owner, visibility)| {
            Command::CreateProject(Project { visibility, ..project(name, owner) })
        }),
        8 => image().prop_map(|number| {
            let at = number as usize;
            let (of, rest) = (PROJECTS[at / REPOSITORIES.len()], REPOSITORIES[at % REPOSITORIES.len()]);
            create_image(number, &format!("{of}{rest}"), ImageKind::Container)
        }),
        3 => (project_name(), visibility(), prop::option::of(owner())).prop_map(
            |(name, visibility, owner)| Command::UpdateProject {
                name: name.parse().unwrap(),
                visibility,
                description: String::new(),
                owner,
            }
        ),
        1 => project_name()
            .prop_map(|name| Command::RemoveProject { name: name.parse().unwrap() }),
        4 => (project_name(), grantee(), role()).prop_map(|(name, grantee, right)| {
            Command::PutRight { place: Place::Project(name.parse().unwrap()), grantee, right }
        }),
        4 => (image(), grantee()).prop_map(|(number, grantee)| Command::PutRight {
            place: Place::Image(image_id(number)),
            grantee,
            right: Right::Image(Access::Read),
        }),
        2 => (person(), any::<bool>()).prop_map(move |(name, owns)| Command::PutRight {
            place: acme(),
            grantee: Grantee::User(account(name)),
            right: Right::Organization(match owns {
                true => OrganizationRole::Owner,
                false => OrganizationRole::Member,
            }),
        }),
        1 => person().prop_map(move |name| Command::PutRight {
            place: dev(),
            grantee: Grantee::User(account(name)),
            right: Right::Group,
        }),
        1 => person().prop_map(move |name| Command::RemoveRight {
            place: acme(),
            grantee: Grantee::User(account(name)),
        }),
        2 => image()
            .prop_map(|number| Command::TrashImage { id: image_id(number), by: "admin".into() }),
        2 => image().prop_map(|number| Command::RestoreImage { id: image_id(number) }),
        1 => image().prop_map(|number| Command::DeleteImage { id: image_id(number) }),
        1 => person().prop_map(|name| Command::RemoveUser { name: name.into() }),
        1 => Just(Command::IndexLists),
    ]
}

fn askers() -> Vec<Who> {
    let person = |name: &str, scopes| Who::User { name: name.into(), scopes };
    let mut askers: Vec<Who> = ["admin", "auditor", "nobody"].map(|name| person(name, None)).into();
    askers.extend(PEOPLE.map(|name| person(name, None)));
    askers.push(person("alice", Some([Scope::Read].into())));
    askers.push(person("alice", Some([Scope::Write].into())));
    askers.extend(
        ["all", "held", "writes"]
            .map(|name| Who::Robot(format!("robot$a-b+{name}").parse().unwrap())),
    );
    askers.extend([Who::Anonymous, Who::Agent]);
    askers
}

/// People, and an organization that the administrator owns.
fn peopled(indexed: bool) -> World {
    let mut world = World::founded();
    if !indexed {
        world.rows.commit([((Table::Counts, b"lists-kept-since".to_vec()), None)].into());
    }
    for name in PEOPLE {
        world.accepts(Command::CreateUser(user(name, UserRole::User)));
    }
    world.accepts(Command::CreateUser(user("auditor", UserRole::Auditor)));
    let owner = account("admin");
    world.accepts(Command::CreateOrganization { organization: organization("acme"), owner });
    world.accepts(Command::CreateGroup(group("acme", "dev")));
    world
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn pages_are_what_may_be_listed_name_by_name(
        commands in prop::collection::vec(command(), 10..60),
        behind in "(a|b)[-._/0]{0,2}[abcxyz]?(/[xyz])?",
        indexed in prop::bool::weighted(0.8),
    ) {
        let mut world = peopled(indexed);
        for command in commands {
            // Most are taken; what is refused changes nothing.
            drop(world.propose(command));
        }
        let held = Robot {
            repositories: [name("a-b/x"), name("a-b/y/z")].into(),
            ..robot("robot$a-b+held", &[Scope::Read])
        };
        let all = robot("robot$a-b+all", &[Scope::Read]);
        for robot in [all, held, robot("robot$a-b+writes", &[Scope::Write])] {
            drop(world.propose(Command::PutRobot(robot)));
        }
        counts::check(&world);
        for who in askers() {
            lists::check(&world, &who, &[1, 3, 100]);
            lists::check_behind(&world, &who, &behind);
        }
    }
}
