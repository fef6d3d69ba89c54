//! Who may do what, as one table, and what becomes of rights when people and places go.

mod world;

use shoal_content::RepositoryName;
use shoal_metadata::*;
use world::counting::Counting;
use world::*;

/// People of every kind, and projects of every visibility: `pub`, `org` and `priv` belong to the
/// organization acme, `own` to the user owner. Each has an image `x`.
fn populated() -> World {
    let mut world = World::founded();
    for name in [
        "owner",
        "boss",
        "member",
        "padmin",
        "maintainer",
        "developer",
        "guest",
        "limited",
        "grouped",
        "reader",
        "writer",
        "master",
        "stranger",
    ] {
        world.accepts(Command::PutUser(user(name, UserRole::User)));
    }
    world.accepts(Command::PutUser(user("auditor", UserRole::Auditor)));
    let acme = account("acme");
    world.accepts(Command::CreateOrganization {
        organization: organization("acme"),
        owner: account("boss"),
    });
    for name in ["member", "grouped"] {
        let right = Right::Organization(OrganizationRole::Member);
        give(&mut world, Place::Organization(acme.clone()), name, right);
    }
    world.accepts(Command::CreateGroup(group("acme", "dev")));
    let dev = Place::Group { organization: acme.clone(), group: account("dev") };
    give(&mut world, dev, "grouped", Right::Group);
    let projects = [
        ("pub", Visibility::Public, Owner::Organization(acme.clone())),
        ("org", Visibility::Organization, Owner::Organization(acme.clone())),
        ("priv", Visibility::Private, Owner::Organization(acme.clone())),
        ("own", Visibility::Private, Owner::User("owner".into())),
    ];
    for (number, (name, visibility, owner)) in projects.into_iter().enumerate() {
        let image = 100 + number as u64;
        world.accepts(Command::CreateProject(Project { visibility, ..project(name, owner) }));
        world.accepts(create_image(image, &format!("{name}/x"), ImageKind::Container));
        let place = Place::Project(name.parse().unwrap());
        for (user, role) in [
            ("padmin", ProjectRole::Admin),
            ("maintainer", ProjectRole::Maintainer),
            ("developer", ProjectRole::Developer),
            ("guest", ProjectRole::Guest),
            ("limited", ProjectRole::LimitedGuest),
        ] {
            give(&mut world, place.clone(), user, Right::Project(role));
        }
        let group = Grantee::Group { organization: acme.clone(), group: account("dev") };
        let right = Right::Project(ProjectRole::Developer);
        world.accepts(Command::PutRight { place, grantee: group, right });
        let place = Place::Image(image_id(image));
        for (user, access) in
            [("reader", Access::Read), ("writer", Access::Write), ("master", Access::Admin)]
        {
            give(&mut world, place.clone(), user, Right::Image(access));
        }
        let all = [Scope::Read, Scope::Write, Scope::Delete];
        world.accepts(Command::PutRobot(robot(&format!("robot${name}+all"), &all)));
        world.accepts(Command::PutRobot(robot(&format!("robot${name}+read"), &[Scope::Read])));
    }
    world
}

fn give(world: &mut World, place: Place, user: &str, right: Right) {
    let grantee = Grantee::User(account(user));
    world.accepts(Command::PutRight { place, grantee, right });
}

/// One letter for each action, in the order of [`Action::ALL`]: a capital (Pull, List, pUsh,
/// Delete, Manage, Audit) where it is allowed, else why not: `h`idden, `r`ole, `s`cope,
/// `u`nauthenticated, `a`dministrators only.
fn letters(world: &World, who: &Who, what: What<'_>) -> String {
    let decide = |action| permission(world.query(), who, action, what).unwrap();
    let letter = |(action, capital)| match decide(action) {
        Decision::Allowed(_) => capital,
        Decision::Refused(Denial::Hidden) => 'h',
        Decision::Refused(Denial::Role) => 'r',
        Decision::Refused(Denial::Scope(_)) => 's',
        Decision::Refused(Denial::Unauthenticated) => 'u',
        Decision::Refused(Denial::Administrator) => 'a',
    };
    Action::ALL.into_iter().zip("PLUDMA".chars()).map(letter).collect()
}

fn who(text: &str) -> Who {
    match text {
        "anonymous" => Who::Anonymous,
        "agent" => Who::Agent,
        "node" => Who::Node,
        name if name.starts_with("robot$") => Who::Robot(name.parse().unwrap()),
        name => Who::User { name: name.to_owned(), scopes: None },
    }
}

/// Rows: who; columns: the image `x` of `pub`, `org`, `priv`, `own`, and of no project.
const REPOSITORIES: &str = "
    admin              PLUDMA PLUDMA PLUDMA PLUDMA PLUDMA
    auditor            PLrrrA rLrrrA rLrrrA rLrrrA rLrrrA
    owner              PLrrrr hhhhhh hhhhhh PLUDMA hhUhhh
    boss               PLUDMA PLUDMA PLUDMA hhhhhh hhUhhh
    member             PLrrrr PLrrrr hhhhhh hhhhhh hhUhhh
    padmin             PLUDMA PLUDMA PLUDMA PLUDMA hhUhhh
    maintainer         PLUDrr PLUDrr PLUDrr PLUDrr hhUhhh
    developer          PLrrrr PLUrrr PLUrrr PLUrrr hhUhhh
    grouped            PLrrrr PLUrrr PLUrrr PLUrrr hhUhhh
    guest              PLrrrr PLrrrr PLrrrr PLrrrr hhUhhh
    limited            PLrrrr Prrrrr Prrrrr Prrrrr hhUhhh
    reader             PLrrrr PLrrrr PLrrrr PLrrrr hhUhhh
    writer             PLUrrr PLUrrr PLUrrr PLUrrr hhUhhh
    master             PLUDMr PLUDMr PLUDMr PLUDMr hhUhhh
    stranger           PLrrrr hhhhhh hhhhhh hhhhhh hhUhhh
    nobody-of-the-name uuuuuu uuuuuu uuuuuu uuuuuu uuuuuu
    anonymous          PLuuuu uuuuuu uuuuuu uuuuuu uuuuuu
    robot$priv+all     PLrrrr hhhhhh PLUDss hhhhhh hhhhhh
    robot$priv+read    PLrrrr hhhhhh PLssss hhhhhh hhhhhh
    robot$priv+none    hhhhhh hhhhhh hhhhhh hhhhhh hhhhhh
    agent              PLrrrr PLrrrr PLrrrr PLrrrr PLrrrr
    node               PLrrrr PLrrrr PLrrrr PLrrrr PLrrrr
";

#[test]
fn rights_in_repositories_are_as_the_table_says() {
    let world = populated();
    let mut actual = String::from("\n");
    for line in REPOSITORIES.lines().filter(|line| !line.trim().is_empty()) {
        let name = line.split_whitespace().next().unwrap();
        let columns = ["pub/x", "org/x", "priv/x", "own/x", "none/x"].map(|repository| {
            let repository: RepositoryName = repository.parse().unwrap();
            letters(&world, &who(name), What::Repository(&repository))
        });
        actual += &format!("    {name:18} {}\n", columns.join(" "));
    }
    assert_eq!(actual, REPOSITORIES, "{actual}");
}

/// Columns: the projects `pub`, `org`, `priv`; the organization acme; the cluster.
const PLACES: &str = "
    admin              PLUDMA PLUDMA PLUDMA PLUDMA PLUDMA
    auditor            PLrrrA rLrrrA rLrrrA rLrrrA aLaaaA
    boss               PLUDMA PLUDMA PLUDMA PLUDMA aaaaaa
    member             PLrrrr PLrrrr hhhhhh rLrrrr aaaaaa
    padmin             PLUDMA PLUDMA PLUDMA hhhhhh aaaaaa
    maintainer         PLUDrr PLUDrr PLUDrr hhhhhh aaaaaa
    developer          PLUrrr PLUrrr PLUrrr hhhhhh aaaaaa
    limited            PLrrrr Prrrrr Prrrrr hhhhhh aaaaaa
    reader             PLrrrr hhhhhh hhhhhh hhhhhh aaaaaa
    stranger           PLrrrr hhhhhh hhhhhh hhhhhh aaaaaa
    anonymous          PLuuuu uuuuuu uuuuuu uuuuuu uuuuuu
    robot$priv+all     PLrrrr hhhhhh rLrrrr hhhhhh aaaaaa
    agent              PLrrrr PLrrrr PLrrrr PLrrrr PLrrrr
";

#[test]
fn rights_in_projects_and_above_are_as_the_table_says() {
    let world = populated();
    let acme = account("acme");
    let mut actual = String::from("\n");
    for line in PLACES.lines().filter(|line| !line.trim().is_empty()) {
        let name = line.split_whitespace().next().unwrap();
        let who = who(name);
        let mut columns = ["pub", "org", "priv"]
            .map(|project| letters(&world, &who, What::Project(&project.parse().unwrap())))
            .to_vec();
        columns.push(letters(&world, &who, What::Organization(&acme)));
        columns.push(letters(&world, &who, What::System));
        actual += &format!("    {name:18} {}\n", columns.join(" "));
    }
    assert_eq!(actual, PLACES, "{actual}");
}

#[test]
fn a_token_has_no_more_than_its_scopes_and_no_more_than_its_user() {
    let world = populated();
    let scoped = |name: &str, scopes: &[Scope]| Who::User {
        name: name.to_owned(),
        scopes: Some(scopes.iter().copied().collect()),
    };
    let repository: RepositoryName = "priv/x".parse().unwrap();
    let of = |who: Who| letters(&world, &who, What::Repository(&repository));
    assert_eq!(of(scoped("admin", &[Scope::Read])), "PLssss");
    assert_eq!(of(scoped("padmin", &[Scope::Read, Scope::Write])), "PLUsss");
    assert_eq!(of(scoped("guest", &Scope::ALL)), "PLrrrr");
    assert_eq!(of(scoped("guest", &[])), "ssssss");
    // What its user may not see, a token does not tell of.
    assert_eq!(of(scoped("stranger", &[])), "hhhhhh");
}

#[test]
fn a_robot_may_be_held_to_some_repositories() {
    let mut world = populated();
    let only = Robot {
        repositories: ["priv/y".parse().unwrap()].into(),
        ..robot("robot$priv+one", &[Scope::Read, Scope::Write])
    };
    world.accepts(Command::PutRobot(only.clone()));
    let of = |world: &World, repository: &str| {
        let repository: RepositoryName = repository.parse().unwrap();
        letters(world, &who("robot$priv+one"), What::Repository(&repository))
    };
    assert_eq!(
        (of(&world, "priv/x").as_str(), of(&world, "priv/y").as_str()),
        ("hhhhhh", "PLUsss")
    );
    let elsewhere = Robot { repositories: ["own/x".parse().unwrap()].into(), ..only.clone() };
    assert_eq!(world.refuses(Command::PutRobot(elsewhere)), Refusal::WrongRight);
    let mighty = Robot { scopes: [Scope::Admin].into(), ..only };
    assert_eq!(world.refuses(Command::PutRobot(mighty)), Refusal::WrongRight);
    world.accepts(Command::RemoveRobot("robot$priv+one".parse().unwrap()));
    assert_eq!(of(&world, "priv/y"), "hhhhhh");
}

#[test]
fn an_auditor_changes_nothing_whatever_it_was_given() {
    let mut world = populated();
    let admin = Right::Project(ProjectRole::Admin);
    give(&mut world, Place::Project("priv".parse().unwrap()), "auditor", admin);
    // The image of the project `own`.
    give(&mut world, Place::Image(image_id(103)), "auditor", Right::Image(Access::Admin));
    for repository in ["priv/x", "own/x"] {
        let repository: RepositoryName = repository.parse().unwrap();
        let letters = letters(&world, &who("auditor"), What::Repository(&repository));
        assert_eq!(letters, "PLrrrA", "{repository}");
    }
}

/// Makes an image on somebody's behalf.
fn by(number: u64, name: &str, owner: &str) -> Command {
    match create_image(number, name, ImageKind::Disk) {
        Command::CreateImage { id, name, kind, profile, .. } => {
            Command::CreateImage { id, name, kind, profile, owner: owner.into() }
        }
        other => other,
    }
}

#[test]
fn no_project_comes_to_be_for_who_is_gone_or_may_make_none() {
    let mut world = populated();
    world.accepts(Command::RemoveUser { name: "stranger".into() });
    world.accepts(Command::RemoveRobot("robot$priv+all".parse().unwrap()));
    for owner in ["stranger", "robot$priv+all", "robot$new+all", "auditor", ""] {
        assert_eq!(world.refuses(by(1, "new/a", owner)), Refusal::NotYours, "{owner}");
    }
    assert_eq!(world.refuses(by(1, "priv/a", "robot$priv+all")), Refusal::NotYours);
    let made = Command::CreateProject(project("new", Owner::User("stranger".into())));
    assert_eq!(world.refuses(made), Refusal::NotFound(Subject::User));
    assert_eq!(world.query().project(&"new".parse().unwrap()).unwrap(), None);
}

#[test]
fn the_first_image_makes_its_project_and_nobody_else_gets_in() {
    let mut world = populated();
    world.accepts(by(1, "new/a", "stranger"));
    let project = world.query().project(&"new".parse().unwrap()).unwrap().unwrap();
    assert_eq!(project.owner, Owner::User("stranger".into()));
    assert_eq!(project.visibility, Visibility::Private);
    // The guest looked before the project was there, and comes after it.
    assert_eq!(world.refuses(by(2, "new/b", "guest")), Refusal::NotYours);
    assert_eq!(world.refuses(by(2, "new/b", "robot$priv+all")), Refusal::NotYours);
    world.accepts(by(2, "new/b", "stranger"));
    world.accepts(by(3, "priv/b", "robot$priv+all"));
    world.accepts(by(4, "new/c", "admin"));
}

#[test]
fn who_goes_takes_all_rights_along() {
    let mut world = populated();
    let name = "grouped";
    assert_eq!(world.query().grantees_of(name).unwrap().len(), 3);
    world.accepts(Command::CreatePersonalToken(personal_token(name, 1)));
    world.accepts(Command::RemoveUser { name: name.into() });
    world.accepts(Command::PutUser(user(name, UserRole::User)));
    assert_eq!(world.query().grantees_of(name).unwrap(), [Grantee::User(account(name))]);
    assert_eq!(world.query().personal_token(&[1; 32]).unwrap(), None);
    let repository: RepositoryName = "priv/x".parse().unwrap();
    assert_eq!(letters(&world, &who(name), What::Repository(&repository)), "hhhhhh");

    // Projects are left to nobody.
    world.accepts(Command::RemoveUser { name: "owner".into() });
    world.accepts(Command::PutUser(user("owner", UserRole::User)));
    let repository: RepositoryName = "own/x".parse().unwrap();
    assert_eq!(letters(&world, &who("owner"), What::Repository(&repository)), "hhhhhh");
    world.accepts(Command::UpdateProject {
        name: "own".parse().unwrap(),
        visibility: Visibility::Private,
        description: String::new(),
        owner: Some(Owner::User("owner".into())),
    });
    assert_eq!(letters(&world, &who("owner"), What::Repository(&repository)), "PLUDMA");

    // A group goes with what it was given.
    let (organization, dev) = (account("acme"), account("dev"));
    world.accepts(Command::RemoveGroup { organization: organization.clone(), name: dev.clone() });
    let group = Grantee::Group { organization, group: dev };
    assert!(world.query().places_of(&group).unwrap().is_empty());
    let members = world.query().rights_at(&Place::Project("priv".parse().unwrap())).unwrap();
    assert!(members.iter().all(|(grantee, _)| *grantee != group));

    // An image goes with its grants.
    let reader = Grantee::User(account("reader"));
    assert_eq!(world.query().places_of(&reader).unwrap().len(), 4);
    world.accepts(Command::DeleteImage { id: image_id(102) });
    assert_eq!(world.query().places_of(&reader).unwrap().len(), 3);
}

#[test]
fn who_leaves_an_organization_leaves_its_groups() {
    let mut world = populated();
    let place = Place::Organization(account("acme"));
    let grantee = Grantee::User(account("grouped"));
    world.accepts(Command::RemoveRight { place, grantee: grantee.clone() });
    let left: Vec<Place> = world.query().places_of(&grantee).unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn an_organization_keeps_an_owner_and_its_projects() {
    let mut world = populated();
    let place = Place::Organization(account("acme"));
    let boss = Grantee::User(account("boss"));
    let leave = Command::RemoveRight { place: place.clone(), grantee: boss.clone() };
    assert_eq!(world.refuses(leave.clone()), Refusal::LastOwner);
    assert_eq!(world.refuses(Command::RemoveUser { name: "boss".into() }), Refusal::LastOwner);
    let right = Right::Organization(OrganizationRole::Member);
    let demote = Command::PutRight { place: place.clone(), grantee: boss, right };
    assert_eq!(world.refuses(demote), Refusal::LastOwner);
    give(&mut world, place, "member", Right::Organization(OrganizationRole::Owner));
    world.accepts(leave);
    let remove = Command::RemoveOrganization { name: account("acme") };
    assert!(matches!(world.refuses(remove.clone()), Refusal::InUse { .. }));
    for (number, project) in ["pub", "org", "priv"].into_iter().enumerate() {
        let name: shoal_content::ProjectName = project.parse().unwrap();
        let removal = Command::RemoveProject { name };
        assert!(matches!(world.refuses(removal.clone()), Refusal::InUse { .. }));
        world.accepts(Command::DeleteImage { id: image_id(100 + number as u64) });
        world.accepts(removal);
    }
    world.accepts(remove);
    assert!(world.query().groups(&account("acme")).unwrap().is_empty());
    assert!(world.query().robots(&"priv".parse().unwrap()).unwrap().is_empty());
}

#[test]
fn rights_fit_their_places() {
    let mut world = populated();
    let group = Grantee::Group { organization: account("acme"), group: account("dev") };
    let put = |place, grantee: &Grantee, right| Command::PutRight {
        place,
        grantee: grantee.clone(),
        right,
    };
    let acme = || Place::Organization(account("acme"));
    let member = Right::Organization(OrganizationRole::Member);
    assert_eq!(world.refuses(put(acme(), &group, member)), Refusal::WrongRight);
    assert_eq!(world.refuses(put(acme(), &group, Right::Group)), Refusal::WrongRight);
    let nobody = Grantee::User(account("nobody"));
    let missing = Refusal::NotFound(Subject::User);
    assert_eq!(world.refuses(put(acme(), &nobody, member)), missing);
    // Only members of an organization are in its groups.
    let dev = Place::Group { organization: account("acme"), group: account("dev") };
    let stranger = Grantee::User(account("stranger"));
    assert_eq!(world.refuses(put(dev, &stranger, Right::Group)), missing);
    let gone = Place::Project("gone".parse().unwrap());
    let right = Right::Project(ProjectRole::Guest);
    assert_eq!(world.refuses(put(gone, &stranger, right)), Refusal::NotFound(Subject::Project));
    // A user's project has no organization to be open to.
    let opened = Command::UpdateProject {
        name: "own".parse().unwrap(),
        visibility: Visibility::Organization,
        description: String::new(),
        owner: None,
    };
    assert_eq!(world.refuses(opened), Refusal::WrongRight);
}

#[test]
fn tokens_are_counted_noted_and_forgotten() {
    let mut world = populated();
    world.accepts(Command::CreatePersonalToken(personal_token("guest", 1)));
    let twice = PersonalToken { secret_hash: [7; 32], ..personal_token("guest", 1) };
    let exists = Refusal::Exists(Subject::Token);
    assert_eq!(world.refuses(Command::CreatePersonalToken(twice)), exists);
    let stolen = PersonalToken { secret_hash: [1; 32], ..personal_token("member", 2) };
    assert_eq!(world.refuses(Command::CreatePersonalToken(stolen)), exists);
    let used =
        |world: &World| world.query().personal_token(&[1; 32]).unwrap().unwrap().last_used_at;
    for (noted, expected) in [(50, 50), (40, 50), (60, 60)] {
        let uses = [([1; 32], at(noted)), ([200; 32], at(noted))].into();
        world.accepts(Command::NoteTokenUses { uses });
        assert_eq!(used(&world), Some(at(expected)));
    }
    let remove = Command::RemovePersonalToken { user: account("guest"), id: "1".into() };
    world.accepts(remove.clone());
    assert_eq!(world.refuses(remove), Refusal::NotFound(Subject::Token));
    assert_eq!(world.query().personal_token(&[1; 32]).unwrap(), None);
}

#[test]
fn a_name_that_is_given_again_was_not_there_before() {
    let mut world = populated();
    let was_there =
        |world: &World, name: &str, millis: u64| world.query().was_there(name, at(millis)).unwrap();
    assert!(was_there(&world, "guest", 1) && was_there(&world, "guest", 50));
    assert!(!was_there(&world, "nobody", 50));
    world.accepts(Command::RemoveUser { name: "guest".into() });
    assert!(!was_there(&world, "guest", 50));
    let again = User { created_at: at(70), ..user("guest", UserRole::User) };
    world.accepts(Command::CreateUser(again));
    assert!(!was_there(&world, "guest", 69) && was_there(&world, "guest", 70));
    let name = "robot$priv+ci";
    assert!(!was_there(&world, name, 70));
    let made = Robot { created_at: at(80), ..robot(name, &[Scope::Read]) };
    world.accepts(Command::PutRobot(made));
    // Another secret makes no other robot.
    world.accepts(Command::PutRobot(Robot { created_at: at(90), ..robot(name, &[Scope::Read]) }));
    assert!(!was_there(&world, name, 79) && was_there(&world, name, 80));
}

#[test]
fn groups_elsewhere_give_a_membership_that_ends_with_the_last_of_them() {
    let mut world = populated();
    world.accepts(Command::CreateGroup(group("acme", "ops")));
    let follow = |user: &str, group: &str, belongs| Command::FollowGroup {
        organization: account("acme"),
        group: account(group),
        user: account(user),
        belongs,
    };
    let acme = || Place::Organization(account("acme"));
    let in_group = |group| Place::Group { organization: account("acme"), group: account(group) };
    let has = |world: &World, place: &Place, user: &str| {
        world.query().right(place, &Grantee::User(account(user))).unwrap().is_some()
    };
    for group in ["dev", "ops", "ops"] {
        world.accepts(follow("stranger", group, true));
        assert!(has(&world, &acme(), "stranger") && has(&world, &in_group(group), "stranger"));
    }
    world.accepts(follow("stranger", "dev", false));
    assert!(has(&world, &acme(), "stranger") && !has(&world, &in_group("dev"), "stranger"));
    assert!(!world.query().is_left_over(&account("acme"), &account("stranger")).unwrap());
    world.accepts(follow("stranger", "ops", false));
    assert!(!has(&world, &acme(), "stranger"));
    // That there is nothing to leave is no mistake; nor that the group is gone.
    world.accepts(follow("stranger", "ops", false));
    world.accepts(follow("stranger", "none", false));
    let missing = Refusal::NotFound(Subject::Group);
    assert_eq!(world.refuses(follow("stranger", "none", true)), missing);
    let nobody = Refusal::NotFound(Subject::User);
    assert_eq!(world.refuses(follow("nobody", "ops", true)), nobody);

    // A group that is removed leaves the membership over.
    world.accepts(follow("stranger", "ops", true));
    world.accepts(Command::RemoveGroup { organization: account("acme"), name: account("ops") });
    assert!(world.query().is_left_over(&account("acme"), &account("stranger")).unwrap());
    world.accepts(follow("stranger", "ops", false));
    assert!(!has(&world, &acme(), "stranger"));

    // By hand, before or since.
    world.accepts(follow("stranger", "dev", true));
    let right = Right::Organization(OrganizationRole::Member);
    give(&mut world, acme(), "stranger", right);
    world.accepts(follow("member", "dev", true));
    for user in ["stranger", "member"] {
        world.accepts(follow(user, "dev", false));
        assert!(has(&world, &acme(), user) && !has(&world, &in_group("dev"), user), "{user}");
    }
    // Who is removed leaves nothing that says how it came there.
    world.accepts(follow("reader", "dev", true));
    world.accepts(Command::RemoveUser { name: "reader".into() });
    let marks = world.rows.rows().filter(|(table, ..)| *table == Table::MappedMembers);
    assert_eq!(marks.count(), 0);
}

#[test]
fn a_right_says_who_gave_it_and_when() {
    let mut world = World::founded();
    let (place, bob) = (Place::Project("p".parse().unwrap()), Grantee::User(account("bob")));
    world.accepts(Command::PutUser(user("bob", UserRole::User)));
    world.accepts(Command::CreateProject(project("p", Owner::User("admin".into()))));
    let put = |role| Command::PutRight {
        place: place.clone(),
        grantee: bob.clone(),
        right: Right::Project(role),
    };
    let by = |who: &str, command| Command::Audited {
        source: AuditSource { who: who.into(), ..AuditSource::default() },
        command: Box::new(command),
    };
    let grant = |world: &World| world.query().grant(&place, &bob).unwrap();
    // A node of before would not know the row.
    world.accepts(by("alice", put(ProjectRole::Guest)));
    assert_eq!(grant(&world), None);
    world.accepts(Command::RaiseLevel { to: COMMAND_VERSION });
    world.accepts(by("alice", put(ProjectRole::Developer)));
    let changed = grant(&world).unwrap();
    assert_eq!((changed.given_at, changed.given_by.as_str()), (None, ""));

    let take = Command::RemoveRight { place: place.clone(), grantee: bob.clone() };
    world.accepts(take);
    assert_eq!(grant(&world), None);
    world.accepts(by("alice", put(ProjectRole::Guest)));
    let given = grant(&world).unwrap();
    assert_eq!((given.given_at, given.given_by.as_str()), (Some(given.changed_at), "alice"));
    world.accepts(by("carol", put(ProjectRole::Developer)));
    let changed = grant(&world).unwrap();
    assert_eq!((changed.given_at, &changed.given_by), (given.given_at, &given.given_by));
    assert!(changed.changed_at > given.changed_at);
    // It goes with its grantee, too.
    world.accepts(Command::RemoveUser { name: "bob".into() });
    assert_eq!(grant(&world), None);
}

#[test]
fn who_goes_costs_what_it_owns_however_many_projects_there_are() {
    let cost = |others: usize| {
        let mut world = World::founded();
        for name in ["user", "other"] {
            world.accepts(Command::PutUser(user(name, UserRole::User)));
        }
        let owner = account("other");
        world.accepts(Command::CreateOrganization { organization: organization("acme"), owner });
        let others = (0..others).map(|at| (format!("p{at:04}"), "other", Visibility::Public));
        let mine = [Visibility::Public, Visibility::Private].into_iter();
        let mine = mine.map(|visibility| (format!("mine-{visibility:?}"), "user", visibility));
        for (name, owner, visibility) in others.chain(mine) {
            let project = project(&name.to_lowercase(), Owner::User(owner.into()));
            world.accepts(Command::CreateProject(Project { visibility, ..project }));
        }
        let remove = Command::RemoveUser { name: "user".into() };
        [remove, Command::RemoveOrganization { name: account("acme") }].map(|command| {
            let counting = Counting::of(&world.rows);
            let mut transaction = Transaction::new(&counting);
            apply(&mut transaction, at(1), command).unwrap().unwrap();
            counting.read.get()
        })
    };
    assert_eq!(cost(3), cost(300));
}
