//! The keys to sign with: announced before they sign, believed until what they signed has run out.

mod world;

use shoal_metadata::*;
use world::*;

fn rotate(purpose: KeyPurpose, newest: u32, private: u8, signs_from: u64) -> Command {
    let private = Secret(vec![private]);
    Command::RotateSigningKey {
        purpose,
        newest,
        private,
        signs_from: at(signs_from),
        distrusted: false,
    }
}

fn distrust(purpose: KeyPurpose, newest: u32, private: u8) -> Command {
    let private = Secret(vec![private]);
    Command::RotateSigningKey { purpose, newest, private, signs_from: at(0), distrusted: true }
}

/// The numbers of the keys, with their first bytes and when they begin.
fn keys(world: &World, purpose: KeyPurpose) -> Vec<(u32, u8, u64)> {
    let keys = world.query().signing_keys(purpose).unwrap();
    keys.iter().map(|key| (key.number, key.private.0[0], key.signs_from.as_millis())).collect()
}

#[test]
fn a_cluster_begins_with_the_keys_it_was_founded_with() {
    let nobodys = World::default();
    assert_eq!(keys(&nobodys, KeyPurpose::Token), []);
    let world = World::founded();
    let founded = cluster();
    let began = founded.founded_at.as_millis();
    assert_eq!(keys(&world, KeyPurpose::Token), [(0, founded.token_key.0[0], began)]);
    assert_eq!(keys(&world, KeyPurpose::Ticket), [(0, founded.ticket_key.0[0], began)]);
}

#[test]
fn a_new_key_stands_beside_the_old_until_what_that_signed_has_run_out() {
    let mut world = World::founded();
    let purpose = KeyPurpose::Ticket;
    let first = keys(&world, purpose)[0];
    world.accepts(rotate(purpose, 0, 11, 5_000));
    assert_eq!(keys(&world, purpose), [first, (1, 11, 5_000)]);
    let held = world.query().signing_keys(purpose).unwrap();
    assert_eq!(accepted_until(&held, 0), Some(at(5_000 + SIGNATURES_LIVE_MS)));
    assert_eq!(accepted_until(&held, 1), None);
    // One less than it takes, and then so much.
    world.now = 5_000 + SIGNATURES_LIVE_MS - 2;
    world.accepts(rotate(purpose, 1, 12, 9_000_000_000));
    assert_eq!(keys(&world, purpose), [first, (1, 11, 5_000), (2, 12, 9_000_000_000)]);
    world.accepts(rotate(purpose, 2, 13, 9_000_000_000));
    let left = [(1, 11, 5_000), (2, 12, 9_000_000_000), (3, 13, 9_000_000_000)];
    assert_eq!(keys(&world, purpose), left);
    assert_eq!(keys(&world, KeyPurpose::Token).len(), 1, "the other purpose has its own");
}

#[test]
fn of_two_that_rotate_at_once_one_does() {
    let mut world = World::founded();
    world.accepts(rotate(KeyPurpose::Token, 0, 11, 100));
    let late = world.refuses(rotate(KeyPurpose::Token, 0, 12, 100));
    assert_eq!(late, Refusal::Exists(Subject::SigningKey));
    let early = world.refuses(rotate(KeyPurpose::Token, 2, 12, 100));
    assert_eq!(early, Refusal::Exists(Subject::SigningKey));
    // It would sign before the one that comes before it.
    world.accepts(rotate(KeyPurpose::Token, 1, 12, 50));
    assert_eq!(keys(&world, KeyPurpose::Token)[2], (2, 12, 100));
}

#[test]
fn distrust_leaves_the_new_key_alone_and_at_once() {
    let mut world = World::founded();
    let purpose = KeyPurpose::Token;
    world.accepts(rotate(purpose, 0, 11, 1_000_000));
    world.now = 500;
    world.accepts(distrust(purpose, 1, 12));
    assert_eq!(keys(&world, purpose), [(2, 12, 501)]);
    world.accepts(rotate(purpose, 2, 13, 1_000));
    assert_eq!(keys(&world, purpose), [(2, 12, 501), (3, 13, 1_000)]);
}

#[test]
fn how_many_there_are_and_how_long_they_are_is_bounded() {
    let mut world = World::founded();
    let purpose = KeyPurpose::Token;
    let most = u32::try_from(SIGNING_KEYS_MAX).unwrap();
    for number in 1..most {
        world.accepts(rotate(purpose, number - 1, 1, 1_000));
    }
    assert!(matches!(world.refuses(rotate(purpose, most - 1, 1, 1_000)), Refusal::Limit(_)));
    // Who has to can still begin anew.
    world.accepts(distrust(purpose, most - 1, 2));
    assert_eq!(keys(&world, purpose).len(), 1);
    let long = Command::RotateSigningKey {
        purpose,
        newest: most,
        private: Secret(vec![0; SIGNING_KEY_BYTES_MAX + 1]),
        signs_from: at(1),
        distrusted: false,
    };
    assert!(matches!(world.refuses(long), Refusal::Limit(_)));
    let mut nobodys = World::default();
    assert_eq!(nobodys.refuses(rotate(purpose, 0, 1, 1)), Refusal::NotFound(Subject::Cluster));
}

#[test]
fn a_rotation_stands_in_the_trail() {
    let world = World::founded();
    let named = |command| audited(world.query(), &command).unwrap();
    let kept = named(rotate(KeyPurpose::Ticket, 0, 1, 1));
    assert_eq!(kept, Some(("key.rotate", "ticket".to_owned())));
    let thrown = named(distrust(KeyPurpose::Token, 0, 1));
    assert_eq!(thrown, Some(("key.distrust", "token".to_owned())));
}
