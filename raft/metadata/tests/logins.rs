//! Second factors and sessions: what is taken once, and what ends with what.

mod world;

use shoal_metadata::*;
use world::*;

fn with_factor() -> World {
    let mut world = World::founded();
    world.accepts(Command::PutUser(user("u", UserRole::User)));
    let secret = Secret(vec![1]);
    world.accepts(Command::BeginSecondFactor { user: "u".into(), secret });
    world
}

fn confirm(step: u64) -> Command {
    Command::ConfirmSecondFactor { user: "u".into(), step, recovery: [[7; 32], [8; 32]].into() }
}

fn take(proof: Proof) -> Command {
    Command::UseSecondFactor { user: "u".into(), proof }
}

#[test]
fn a_second_factor_holds_once_it_is_confirmed() {
    let mut world = with_factor();
    let needed = |world: &World| world.query().needs_second_factor("u").unwrap();
    assert!(!needed(&world));
    assert_eq!(world.refuses(take(Proof::Step(9))), Refusal::CodeUsed);
    // Not confirmed, it is replaced by another one; confirmed, it is not.
    let other = || Command::BeginSecondFactor { user: "u".into(), secret: Secret(vec![2]) };
    world.accepts(other());
    world.accepts(confirm(5));
    assert!(needed(&world));
    assert_eq!(world.refuses(other()), Refusal::Exists(Subject::SecondFactor));
    assert_eq!(world.refuses(confirm(6)), Refusal::Exists(Subject::SecondFactor));
    world.accepts(Command::RemoveSecondFactor { user: "u".into() });
    assert!(!needed(&world));
    let nobody = Command::BeginSecondFactor { user: "x".into(), secret: Secret(vec![1]) };
    assert_eq!(world.refuses(nobody), Refusal::NotFound(Subject::User));
}

#[test]
fn no_code_is_taken_twice_and_none_from_before() {
    let mut world = with_factor();
    world.accepts(confirm(5));
    for (step, good) in [(5, false), (6, true), (6, false), (4, false), (9, true), (8, false)] {
        match good {
            true => drop(world.accepts(take(Proof::Step(step)))),
            false => assert_eq!(world.refuses(take(Proof::Step(step))), Refusal::CodeUsed),
        }
    }
    world.accepts(take(Proof::Recovery([7; 32])));
    assert_eq!(world.refuses(take(Proof::Recovery([7; 32]))), Refusal::CodeUsed);
    assert_eq!(world.refuses(take(Proof::Recovery([9; 32]))), Refusal::CodeUsed);
    world.accepts(Command::PutRecoveryCodes { user: "u".into(), recovery: [[9; 32]].into() });
    assert_eq!(world.refuses(take(Proof::Recovery([8; 32]))), Refusal::CodeUsed);
    world.accepts(take(Proof::Recovery([9; 32])));
}

#[test]
fn sessions_go_with_their_user_its_password_and_their_number() {
    let mut world = World::founded();
    world.accepts(Command::PutUser(user("u", UserRole::User)));
    world.accepts(Command::PutUser(user("u2", UserRole::User)));
    let begin = |world: &mut World, user: &str, id: &str, created: u64| {
        let row = Session { created_at: at(created), ..session(user, id, LoginMeans::Password) };
        world.accepts(Command::BeginSession { session: row, limit: 2 });
    };
    let ids = |world: &World, user: &str| -> Vec<String> {
        world.query().sessions(user).unwrap().into_iter().map(|row| row.id).collect()
    };
    begin(&mut world, "u2", "z", 1);
    for (id, created) in [("c", 1), ("a", 2), ("b", 3)] {
        begin(&mut world, "u", id, created);
    }
    // The oldest has gone, and a name that begins like another's has sessions of its own.
    assert_eq!(
        (ids(&world, "u"), ids(&world, "u2")),
        (vec!["a".into(), "b".into()], vec!["z".into()])
    );
    let row = session("u", "a", LoginMeans::Password);
    let again = Command::BeginSession { session: row, limit: 2 };
    assert_eq!(world.refuses(again), Refusal::Exists(Subject::Session));
    let password_hash = Secret(b"new".to_vec());
    let keep = Some("b".to_owned());
    world.accepts(Command::ChangePassword { user: "u".into(), password_hash, keep });
    assert_eq!(ids(&world, "u"), ["b"]);
    // A change of the role ends none, one of the password by an administrator all.
    let same = world.query().user("u").unwrap().unwrap();
    world.accepts(Command::PutUser(User { role: UserRole::Auditor, ..same.clone() }));
    assert_eq!(ids(&world, "u"), ["b"]);
    world.accepts(Command::PutUser(User { password_hash: Secret(vec![3]), ..same }));
    assert!(ids(&world, "u").is_empty());
    begin(&mut world, "u", "d", 4);
    world.accepts(Command::RemoveUser { name: "u".into() });
    assert!(ids(&world, "u").is_empty());
    assert_eq!(ids(&world, "u2"), ["z"]);
}

#[test]
fn another_hash_of_the_same_password_ends_nothing_and_takes_no_later_ones_place() {
    let mut world = World::founded();
    let ours = || Secret(b"$argon2id$".to_vec());
    let anew = |from: &[u8], to| Command::RehashPassword {
        user: "u".into(),
        from: *blake3::hash(from).as_bytes(),
        to,
    };
    assert_eq!(world.refuses(anew(b"hash", ours())), Refusal::NotFound(Subject::User));
    world.accepts(Command::CreateUser(user("u", UserRole::Auditor)));
    let before = world.query().user("u").unwrap().unwrap();
    let session = session("u", "s", LoginMeans::Password);
    world.accepts(Command::BeginSession { session, limit: 2 });
    world.accepts(anew(&before.password_hash.0, ours()));
    let now = world.query().user("u").unwrap().unwrap();
    assert_eq!(now, User { password_hash: ours(), ..before.clone() });
    assert_eq!(world.query().sessions("u").unwrap().len(), 1);
    // One that was compared before somebody gave the account another password comes too late.
    let late = anew(&before.password_hash.0, before.password_hash.clone());
    assert_eq!(world.refuses(late), Refusal::Changed(Subject::User));
    assert_eq!(world.query().user("u").unwrap().unwrap(), now);
}

#[test]
fn an_administrator_who_is_let_in_again_has_a_new_password_and_no_factor() {
    let mut world = World::founded();
    for (name, role) in [("a", UserRole::Admin), ("a2", UserRole::Admin), ("u", UserRole::Auditor)]
    {
        world.accepts(Command::PutUser(user(name, role)));
        let (begun, confirmed) = (Secret(vec![1]), [[7; 32]].into());
        world.accepts(Command::BeginSecondFactor { user: name.into(), secret: begun });
        let confirm =
            Command::ConfirmSecondFactor { user: name.into(), step: 5, recovery: confirmed };
        world.accepts(confirm);
        let session = session(name, "s", LoginMeans::PasswordAndCode);
        world.accepts(Command::BeginSession { session, limit: 2 });
    }
    world.accepts(Command::AddPasskey { passkey: passkey("a", "p", 7), owner: passkey_owner(0) });
    world.accepts(Command::LeaveLater { user: "a".into(), due: at(9000) });
    let rules = LockoutRules {
        account_failures: 1,
        account_window_ms: 1000,
        account_block_ms: 60_000,
        address_accounts: 100,
        address_window_ms: 1000,
        token_failures: 100,
        token_window_ms: 1000,
        token_block_ms: 1000,
    };
    let account = Suspect::account("a");
    let failure = Failure::Password { account: account.clone(), address: None };
    world.accepts(Command::NoteFailures { failures: [(failure, 1)].into(), rules });
    assert!(world.query().block(&account, at(world.now)).unwrap().is_some());

    let recover = |name: &str| Command::RecoverAdministrator {
        user: name.into(),
        password_hash: Secret(b"new".to_vec()),
    };
    world.accepts(recover("a"));
    let query = world.query();
    let row = query.user("a").unwrap().unwrap();
    assert_eq!((row.role, row.password_hash.0), (UserRole::Admin, b"new".to_vec()));
    assert!(
        !query.needs_second_factor("a").unwrap() && query.second_factor("a").unwrap().is_none()
    );
    assert!(query.passkeys("a").unwrap().is_empty() && query.sessions("a").unwrap().is_empty());
    assert!(query.leaving("a").unwrap().is_none());
    assert!(query.block(&account, at(world.now)).unwrap().is_none());
    // What was asked before its passkey was made is still over.
    assert_eq!(query.passkey_owner("a").unwrap(), Some(passkey_owner(1)));
    // Nobody else's.
    assert!(query.needs_second_factor("a2").unwrap());
    assert_eq!(query.sessions("a2").unwrap().len(), 1);
    for name in ["u", "nobody"] {
        assert_eq!(world.refuses(recover(name)), Refusal::NotFound(Subject::User), "{name}");
    }
    assert!(world.query().needs_second_factor("u").unwrap());
    // Nothing is missing where nothing was there.
    world.accepts(recover("a"));
}

#[test]
fn an_identity_is_one_accounts_and_goes_with_it() {
    let mut world = World::founded();
    let create = |name: &str| Command::LinkIdentity {
        identity: identity(name),
        create: Some(user(name, UserRole::User)),
    };
    world.accepts(create("u"));
    let found = |world: &World| world.query().identity("https://i", "subject of u").unwrap();
    assert_eq!(found(&world).unwrap().user, "u");
    assert_eq!(world.refuses(create("u")), Refusal::Exists(Subject::Identity));
    // Whom an issuer calls like an account that is there does not get it.
    let taken = Identity { subject: "another".into(), ..identity("u") };
    let takes =
        Command::LinkIdentity { identity: taken.clone(), create: Some(user("u", UserRole::Admin)) };
    assert_eq!(world.refuses(takes), Refusal::Exists(Subject::User));
    world.accepts(Command::LinkIdentity { identity: taken, create: None });
    assert_eq!(world.query().identities_of("u").unwrap().len(), 2);
    let nobody = Command::LinkIdentity { identity: identity("x"), create: None };
    assert_eq!(world.refuses(nobody), Refusal::NotFound(Subject::User));
    let (issuer, subject) = ("https://i".to_owned(), "another".to_owned());
    world.accepts(Command::UnlinkIdentity { issuer, subject });
    world.accepts(Command::RemoveUser { name: "u".into() });
    assert_eq!(found(&world), None);
    assert!(world.query().identities_of("u").unwrap().is_empty());
}

#[test]
fn a_workload_rule_goes_with_its_robot_and_its_project() {
    let mut world = World::founded();
    world.accepts(Command::CreateProject(project("p", Owner::User("admin".into()))));
    let rule = |name: &str| Command::PutWorkloadRule(workload_rule("robot$p+r", name));
    let rules = |world: &World| world.query().workload_rules(&"p".parse().unwrap()).unwrap().len();
    assert_eq!(world.refuses(rule("ci")), Refusal::NotFound(Subject::Robot));
    world.accepts(Command::PutRobot(robot("robot$p+r", &[Scope::Read])));
    world.accepts(rule("ci"));
    world.accepts(rule("ci"));
    world.accepts(rule("cd"));
    assert_eq!(rules(&world), 2);
    let wide = WorkloadRule { subject: "repo:*".into(), ..workload_rule("robot$p+r", "x") };
    assert!(matches!(world.refuses(Command::PutWorkloadRule(wide)), Refusal::Limit(_)));
    let (name, project) = (account("cd"), "p".parse().unwrap());
    world.accepts(Command::RemoveWorkloadRule { project, name });
    world.accepts(Command::RemoveRobot("robot$p+r".parse().unwrap()));
    assert_eq!(rules(&world), 0);
    world.accepts(Command::PutRobot(robot("robot$p+r", &[Scope::Read])));
    world.accepts(rule("ci"));
    world.accepts(Command::RemoveProject { name: "p".parse().unwrap() });
    assert_eq!(rules(&world), 0);
}

#[test]
fn who_asks_to_leave_goes_later_and_leaves_nothing_to_nobody() {
    let mut world = World::founded();
    world.accepts(Command::PutUser(user("u", UserRole::User)));
    let leave = |name: &str| Command::LeaveLater { user: name.into(), due: at(300) };
    world.accepts(leave("u"));
    assert_eq!(world.query().leavings().unwrap().len(), 1);
    world.accepts(Command::Stay { user: "u".into() });
    let stay = Command::Stay { user: "u".into() };
    assert_eq!(world.refuses(stay), Refusal::NotFound(Subject::Leaving));
    assert_eq!(world.refuses(leave("admin")), Refusal::LastAdmin);
    assert_eq!(world.refuses(leave("x")), Refusal::NotFound(Subject::User));
    let (organization, owner) = (organization("acme"), account("u"));
    world.accepts(Command::CreateOrganization { organization, owner });
    assert_eq!(world.refuses(leave("u")), Refusal::LastOwner);
    world.accepts(Command::RemoveOrganization { name: account("acme") });
    world.accepts(leave("u"));
    world.accepts(Command::RemoveUser { name: "u".into() });
    assert!(world.query().leavings().unwrap().is_empty());
}

#[test]
fn an_address_is_its_user_s_and_goes_with_it() {
    let mut world = World::founded();
    world.accepts(Command::PutUser(user("u", UserRole::User)));
    let set =
        |user: &str, email: &str| Command::SetEmail { user: user.into(), email: email.into() };
    let known = |world: &World| world.query().email("u").unwrap();
    assert_eq!(known(&world), None);
    world.accepts(set("u", "u@one.example"));
    world.accepts(set("u", "u@two.example"));
    assert_eq!(known(&world).as_deref(), Some("u@two.example"));
    assert_eq!(world.refuses(set("x", "x@one.example")), Refusal::NotFound(Subject::User));
    let long = format!("{}@one.example", "u".repeat(EMAIL_BYTES_MAX));
    for odd in ["u@one.example\r\nBcc: x@one.example", "u", "@one.example", "u@", "a b@c", &long] {
        assert!(matches!(world.refuses(set("u", odd)), Refusal::Limit(_)), "{odd}");
    }
    world.accepts(set("u", ""));
    assert_eq!(known(&world), None);
    // Whoever has the name next has not its address.
    world.accepts(set("u", "u@one.example"));
    world.accepts(Command::RemoveUser { name: "u".into() });
    world.accepts(Command::PutUser(user("u", UserRole::User)));
    assert_eq!(known(&world), None);
}
