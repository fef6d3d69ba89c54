//! Passkeys: whose they are, what is taken once, and what goes with what.

mod world;

use shoal_metadata::*;
use world::*;

/// Later than any time of a sample.
const SOON: u64 = 1_000_000;

fn with_user() -> World {
    let mut world = World::founded();
    world.accepts(Command::PutUser(user("u", UserRole::User)));
    world
}

fn add(id: &str, credential: u8, registered: u64) -> Command {
    Command::AddPasskey { passkey: passkey("u", id, credential), owner: passkey_owner(registered) }
}

fn with_passkey() -> World {
    let mut world = with_user();
    world.accepts(add("p", 1, 0));
    world
}

fn take(challenge: u8, expires: u64, counter: u32) -> Command {
    let (user, id) = ("u".into(), "p".into());
    Command::UsePasskey { user, id, answered: answered(challenge, expires), counter, key: None }
}

fn spent(world: &World) -> usize {
    world.rows.rows().filter(|(table, ..)| *table == Table::SpentChallenges).count()
}

#[test]
fn a_registration_is_over_once_another_one_has_ended() {
    let mut world = with_user();
    world.accepts(add("a", 1, 0));
    // It began before, or is brought a second time; also when what it made is gone.
    assert_eq!(world.refuses(add("b", 2, 0)), Refusal::ChallengeUsed);
    world.accepts(Command::RemovePasskeys { user: "u".into(), id: Some("a".into()) });
    assert_eq!(world.refuses(add("a", 1, 0)), Refusal::ChallengeUsed);
    let owner = PasskeyOwner { handle: [8; 16], registered: 1 };
    let foreign = Command::AddPasskey { passkey: passkey("u", "b", 2), owner };
    assert_eq!(world.refuses(foreign), Refusal::ChallengeUsed);
    world.accepts(add("b", 2, 1));
    assert_eq!(world.query().passkey_owner("u").unwrap(), Some(passkey_owner(2)));
    let nobody = Command::AddPasskey { passkey: passkey("x", "a", 9), owner: passkey_owner(0) };
    assert_eq!(world.refuses(nobody), Refusal::NotFound(Subject::User));
}

#[test]
fn a_credential_is_one_users_and_passkeys_have_names_of_their_own() {
    let mut world = with_passkey();
    world.accepts(Command::PutUser(user("u2", UserRole::User)));
    let taken = Command::AddPasskey { passkey: passkey("u2", "q", 1), owner: passkey_owner(0) };
    assert_eq!(world.refuses(taken), Refusal::Exists(Subject::Passkey));
    let named = Passkey { name: "the p".into(), ..passkey("u", "q", 2) };
    let named = Command::AddPasskey { passkey: named, owner: passkey_owner(1) };
    assert_eq!(world.refuses(named), Refusal::Exists(Subject::Passkey));
    world.accepts(add("q", 2, 1));
    let rename = |name: &str| Command::UpdatePasskey {
        user: "u".into(),
        id: "q".into(),
        name: Some(name.into()),
        second_factor: None,
    };
    assert_eq!(world.refuses(rename("the p")), Refusal::Exists(Subject::Passkey));
    assert!(matches!(world.refuses(rename("")), Refusal::Limit(_)));
    assert!(matches!(world.refuses(rename(&"x".repeat(401))), Refusal::Limit(_)));
    world.accepts(rename("the q"));
    world.accepts(rename("the red one"));
    assert_eq!(world.query().passkey("u", "q").unwrap().unwrap().name, "the red one");
}

#[test]
fn a_user_has_at_most_so_many_and_none_is_too_long() {
    let mut world = with_user();
    for number in 0..PASSKEYS_MAX {
        world.accepts(add(&format!("p{number}"), number as u8, number as u64));
    }
    let more = add("more", 200, PASSKEYS_MAX as u64);
    assert!(matches!(world.refuses(more.clone()), Refusal::Limit(_)));
    world.accepts(Command::RemovePasskeys { user: "u".into(), id: Some("p0".into()) });
    for unfit in [
        Passkey { credential: Vec::new(), ..passkey("u", "x", 1) },
        Passkey { credential: vec![1; CREDENTIAL_BYTES_MAX + 1], ..passkey("u", "x", 1) },
        Passkey { key: vec![1; PASSKEY_BYTES_MAX + 1], ..passkey("u", "x", 99) },
        Passkey { name: String::new(), ..passkey("u", "x", 99) },
    ] {
        let unfit = Command::AddPasskey { passkey: unfit, owner: passkey_owner(16) };
        assert!(matches!(world.refuses(unfit), Refusal::Limit(_)));
    }
    world.accepts(more);
}

#[test]
fn a_challenge_is_answered_once_and_not_too_late() {
    let mut world = with_passkey();
    world.accepts(add("q", 2, 1));
    world.now = 1000;
    world.accepts(take(1, SOON, 0));
    assert_eq!(world.refuses(take(1, SOON, 0)), Refusal::ChallengeUsed);
    // Nor by another passkey.
    let (user, id, answered) = ("u".into(), "q".into(), answered(1, SOON));
    let other = Command::UsePasskey { user, id, answered, counter: 1, key: None };
    assert_eq!(world.refuses(other), Refusal::ChallengeUsed);
    assert_eq!(world.refuses(take(2, 900, 0)), Refusal::ChallengeUsed);
    world.accepts(take(2, SOON, 0));
    assert_eq!(spent(&world), 2);
    // They are kept a while behind their end, and then forgotten.
    world.now = SOON + CHALLENGE_KEPT_MS - 10;
    world.accepts(take(3, world.now + 1000, 0));
    assert_eq!(spent(&world), 3);
    world.now = SOON + CHALLENGE_KEPT_MS + 1;
    world.accepts(take(4, world.now + 1000, 0));
    assert_eq!(spent(&world), 2);
}

#[test]
fn a_counter_never_goes_back() {
    let mut world = with_passkey();
    let mut challenge = 0;
    let mut taken = |world: &mut World, counter: u32| {
        challenge += 1;
        world.propose(take(challenge, SOON, counter)).map(drop)
    };
    taken(&mut world, 0).unwrap();
    taken(&mut world, 5).unwrap();
    for counter in [5, 4, 0] {
        let behind = Refusal::CounterBehind { counter, before: 5 };
        assert_eq!(taken(&mut world, counter), Err(behind));
    }
    taken(&mut world, 6).unwrap();
    let row = world.query().passkey("u", "p").unwrap().unwrap();
    assert_eq!((row.counter, row.key.as_slice()), (6, &[1][..]));
    assert!(row.last_used_at.is_some());
    // What the authenticator said anew comes along.
    let (user, id, answered) = ("u".into(), "p".into(), answered(99, SOON));
    let key = Some(vec![2]);
    world.accepts(Command::UsePasskey { user, id, answered, counter: 7, key });
    assert_eq!(world.query().passkey("u", "p").unwrap().unwrap().key, [2]);
}

#[test]
fn a_passkey_is_used_so_often_in_a_while_and_no_oftener() {
    let mut world = with_passkey();
    world.now = SOON;
    for use_ in 0..PASSKEY_USES_MAX {
        world.accepts(take(use_ as u8, 2 * SOON, 0));
    }
    assert!(matches!(world.refuses(take(200, 2 * SOON, 0)), Refusal::Limit(_)));
    world.now += PASSKEY_WINDOW_MS;
    world.accepts(take(200, 2 * SOON, 0));
}

#[test]
fn a_password_alone_lets_nobody_in_while_a_passkey_says_so() {
    let mut world = with_passkey();
    let needed = |world: &World| world.query().needs_second_factor("u").unwrap();
    assert!(!needed(&world));
    let wanted = |wanted: bool| Command::UpdatePasskey {
        user: "u".into(),
        id: "p".into(),
        name: None,
        second_factor: Some(wanted),
    };
    world.accepts(wanted(true));
    assert!(needed(&world));
    world.accepts(wanted(false));
    assert!(!needed(&world));
    world.accepts(wanted(true));
    // Codes may come besides.
    let codes = Command::BeginSecondFactor { user: "u".into(), secret: Secret(vec![1]) };
    world.accepts(codes);
    world.accepts(Command::RemovePasskeys { user: "u".into(), id: None });
    assert!(!needed(&world));
    assert_eq!(world.refuses(wanted(true)), Refusal::NotFound(Subject::Passkey));
}

#[test]
fn passkeys_go_with_their_user_and_come_along_in_a_backup() {
    let mut world = with_passkey();
    world.accepts(Command::PutUser(user("u2", UserRole::User)));
    let other = Command::AddPasskey { passkey: passkey("u2", "z", 9), owner: passkey_owner(0) };
    world.accepts(other);
    for (table, key, row) in world.rows.rows() {
        if matches!(table, Table::Passkeys | Table::Credentials | Table::PasskeyOwners) {
            assert_eq!(carry(table, key, row).unwrap(), Carried::AsItIs);
        }
    }
    let found = |world: &World, credential: u8| {
        world.query().passkey_of(&[credential; 16]).unwrap().map(|row| row.user)
    };
    assert_eq!(found(&world, 1).as_deref(), Some("u"));
    world.accepts(Command::RemoveUser { name: "u".into() });
    assert_eq!(found(&world, 1), None);
    assert!(world.query().passkeys("u").unwrap().is_empty());
    assert_eq!(world.query().passkey_owner("u").unwrap(), None);
    assert_eq!(found(&world, 9).as_deref(), Some("u2"));
    let gone = Command::RemovePasskeys { user: "u".into(), id: None };
    assert_eq!(world.refuses(gone), Refusal::NotFound(Subject::Passkey));
    // Whoever has the name next begins anew.
    world.accepts(Command::PutUser(user("u", UserRole::User)));
    world.accepts(add("p", 1, 0));
}
