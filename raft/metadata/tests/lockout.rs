//! Who guesses is blocked, wherever the guesses were made, and nothing grows without bound.

mod world;

use std::collections::BTreeMap;

use proptest::prelude::*;
use shoal_metadata::*;
use world::counting::Counting;
use world::*;

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;

fn rules() -> LockoutRules {
    LockoutRules {
        account_failures: 10,
        account_window_ms: MINUTE,
        account_block_ms: 24 * HOUR,
        address_accounts: 100,
        address_window_ms: HOUR,
        token_failures: 100,
        token_window_ms: MINUTE,
        token_block_ms: 15 * MINUTE,
    }
}

fn address(number: u8) -> Suspect {
    Suspect::address([10, 0, 0, number].into())
}

fn password(name: &str, from: u8) -> Failure {
    Failure::Password { account: Suspect::account(name), address: Some(address(from)) }
}

fn failed(of: impl IntoIterator<Item = (Failure, u32)>) -> Command {
    Command::NoteFailures { failures: of.into_iter().collect(), rules: rules() }
}

fn is_blocked(world: &World, who: &Suspect) -> bool {
    world.query().block(who, at(world.now)).unwrap().is_some()
}

/// Of these names, one wrong password each, from an address that is never blocked.
fn unknown(names: std::ops::Range<u32>) -> impl Iterator<Item = (Failure, u32)> {
    names.map(|number| {
        let account = Suspect::account(&format!("user-{number}"));
        (Failure::Password { account, address: None }, 1)
    })
}

/// As if there were so many rows.
fn pretend(world: &mut World, count: &str, rows: u64) {
    let key = (Table::Counts, count.as_bytes().to_vec());
    world.rows.commit([(key, Some(encode_row(&rows)))].into());
}

fn count(world: &World, table: Table) -> usize {
    world.rows.rows().filter(|(of, ..)| *of == table).count()
}

#[test]
fn ten_wrong_passwords_in_a_minute_lock_an_account_for_a_day() {
    let mut world = World::founded();
    let (alice, nobody) = (Suspect::account("alice"), Suspect::account("nobody"));
    // From anywhere, noted by any node; and an account that is not there alike.
    for from in 0..9 {
        world.accepts(failed([(password("alice", from), 1), (password("nobody", from), 1)]));
    }
    assert!(!is_blocked(&world, &alice));
    assert_eq!(world.query().password_failures(&alice, at(0)).unwrap(), 9);
    world.accepts(failed([(password("alice", 9), 1), (password("nobody", 9), 1)]));
    assert!(is_blocked(&world, &alice) && is_blocked(&world, &nobody));
    let block = world.query().block(&alice, at(world.now)).unwrap().unwrap();
    assert_eq!(block.reason, BlockReason::Passwords);
    assert_eq!(block.until, Some(at(world.now + 24 * HOUR)));
    world.now += 24 * HOUR;
    assert!(!is_blocked(&world, &alice));

    // The window has no beginning that one could wait for.
    let start = world.now;
    world.accepts(failed([(password("bob", 1), 5)]));
    world.now = start + MINUTE - 10;
    world.accepts(failed([(password("bob", 1), 4)]));
    world.now = start + MINUTE + 10;
    world.accepts(failed([(password("bob", 1), 5)]));
    assert!(!is_blocked(&world, &Suspect::account("bob")), "5 of 14 are too old");
    world.accepts(failed([(password("bob", 1), 1)]));
    assert!(is_blocked(&world, &Suspect::account("bob")));
}

#[test]
fn an_address_that_tries_many_accounts_is_blocked_until_somebody_lets_it_in() {
    let mut world = World::founded();
    for number in 0..99 {
        world.accepts(failed([(password(&format!("user-{number}"), 7), 1)]));
        world.accepts(failed([(password("user-0", 8), 0)]));
    }
    // The same accounts again are no further ones.
    world.accepts(failed([(password("user-5", 7), 1)]));
    assert!(!is_blocked(&world, &address(7)));
    world.accepts(failed([(password("user-99", 7), 1)]));
    assert!(is_blocked(&world, &address(7)) && !is_blocked(&world, &address(8)));
    world.now += 1000 * 24 * HOUR;
    assert!(is_blocked(&world, &address(7)));
    let listed = world.query().blocks(at(world.now)).unwrap();
    assert_eq!(listed.len(), 1, "{listed:?}");
    world.accepts(Command::Unblock { suspect: address(7) });
    assert!(!is_blocked(&world, &address(7)));
    let refused = world.refuses(Command::Unblock { suspect: address(7) });
    assert_eq!(refused, Refusal::NotFound(Subject::Block));
    // It begins anew.
    world.accepts(failed([(password("user-1", 7), 1)]));
    assert!(!is_blocked(&world, &address(7)));
}

#[test]
fn wrong_tokens_block_an_address_for_a_while_and_no_account() {
    let mut world = World::founded();
    let token = Failure::Token { address: address(3) };
    world.accepts(failed([(token.clone(), 99)]));
    assert!(!is_blocked(&world, &address(3)));
    world.accepts(failed([(token, 1)]));
    assert!(is_blocked(&world, &address(3)));
    world.now += 15 * MINUTE;
    assert!(!is_blocked(&world, &address(3)));
    // An address that is never blocked leaves no row.
    let exempt = Failure::Password { account: Suspect::account("alice"), address: None };
    let before = count(&world, Table::Suspicions);
    world.accepts(failed([(exempt, 1)]));
    assert!(count(&world, Table::Suspicions) <= before + 1);
}

#[test]
fn the_tenth_account_asked_for_within_an_hour_blocks_an_address_until_it_is_let_in() {
    let mut world = World::founded();
    let ask = |world: &mut World, of: u8, times: u32| {
        for _ in 0..times {
            let address = address(of);
            world.accepts(Command::NoteRegistration { address, limit: 10, window_ms: HOUR });
        }
    };
    ask(&mut world, 1, 9);
    ask(&mut world, 2, 1);
    // What is over does not count, and what came within the hour does, wherever that began.
    world.now += HOUR;
    ask(&mut world, 1, 9);
    world.now += HOUR / 2;
    assert!(!is_blocked(&world, &address(1)));
    ask(&mut world, 1, 1);
    let block = world.query().block(&address(1), at(world.now)).unwrap().unwrap();
    assert_eq!((block.reason, block.until), (BlockReason::Registrations, None));
    assert!(!is_blocked(&world, &address(2)));
    world.now += 365 * 24 * HOUR;
    assert!(is_blocked(&world, &address(1)));
    // Wrong passwords are another count, and what was counted ends with the block.
    world.accepts(Command::Unblock { suspect: address(1) });
    ask(&mut world, 1, 9);
    world.accepts(failed([(password("a", 1), 1)]));
    assert!(!is_blocked(&world, &address(1)));
    ask(&mut world, 1, 1);
    world.accepts(Command::Unblock { suspect: address(1) });
    assert_eq!(count(&world, Table::Blocks), 0);
    // Whoever is let in again has a clean slate; the account that the password was for is another.
    assert_eq!(count(&world, Table::Suspicions), 1);
}

#[test]
fn what_is_over_is_forgotten_and_a_flood_has_a_bound() {
    let mut world = World::founded();
    for batch in 0..20 {
        world.accepts(failed(unknown(batch * 100..batch * 100 + 100)));
    }
    world.accepts(failed([(password("alice", 1), 10)]));
    assert_eq!(count(&world, Table::Suspicions), 2001);
    world.now += 25 * HOUR;
    for _ in 0..2 {
        world.accepts(failed([]));
    }
    for table in [Table::Suspicions, Table::SuspicionEnds, Table::Blocks] {
        assert_eq!(count(&world, table), 0, "{table:?}");
    }
    let many = (0..=FAILURES_MAX).map(|number| (password(&number.to_string(), 1), 1));
    assert!(matches!(world.refuses(failed(many)), Refusal::Limit(_)));
}

#[test]
fn of_too_many_who_failed_those_are_forgotten_whose_time_is_over_first_whoever_is_blocked() {
    let mut world = World::founded();
    // Many blocks that end before any of the failures does.
    let address = |number: u16| {
        let [high, low] = number.to_be_bytes();
        Suspect::address([10, 1, high, low].into())
    };
    let tokens = (0..2_500).map(|number| (Failure::Token { address: address(number) }, 100));
    world.accepts(failed(tokens));
    let fails = |name: &str| {
        let failure = Failure::Password { account: Suspect::account(name), address: None };
        let rules = LockoutRules { account_window_ms: HOUR, ..rules() };
        Command::NoteFailures { failures: [(failure, 1)].into(), rules }
    };
    world.accepts(fails("alice"));
    world.accepts(fails("bob"));
    pretend(&mut world, "suspicions", SUSPICIONS_MAX);
    world.accepts(fails("carol"));
    let known = |name| world.query().password_failures(&Suspect::account(name), at(0)).unwrap();
    assert_eq!(["alice", "bob", "carol"].map(known), [0, 1, 1]);
    assert_eq!(count(&world, Table::Blocks), 2_500);
}

#[test]
fn one_more_where_there_are_too_many_costs_a_few_rows() {
    let mut world = World::founded();
    world.accepts(failed(unknown(0..5_000)));
    pretend(&mut world, "suspicions", SUSPICIONS_MAX);
    let counting = Counting::of(&world.rows);
    let mut transaction = Transaction::new(&counting);
    let more = failed(unknown(5_000..5_500));
    apply(&mut transaction, at(world.now + 1), more).unwrap().unwrap();
    let read = counting.read.get();
    assert!(read < 500 * 100, "{read} rows");
}

#[test]
fn of_too_many_blocks_the_one_that_ends_first_goes() {
    let mut world = World::founded();
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(Suspect::account);
    world.accepts(failed([(password("alice", 1), 10)]));
    pretend(&mut world, "blocks", BLOCKS_MAX);
    // This one would end before alice's.
    world.accepts(failed([(Failure::Token { address: address(3) }, 100)]));
    assert!(is_blocked(&world, &alice) && !is_blocked(&world, &address(3)));
    world.accepts(failed([(password("bob", 2), 10)]));
    assert!(!is_blocked(&world, &alice) && is_blocked(&world, &bob));
    let many = (0..100).map(|number| (password(&format!("user-{number}"), 7), 1));
    world.accepts(failed(many));
    assert!(!is_blocked(&world, &bob) && is_blocked(&world, &address(7)));
    // Without an end it stays.
    world.accepts(failed([(password("carol", 2), 10)]));
    assert!(!is_blocked(&world, &carol) && is_blocked(&world, &address(7)));
    assert_eq!(count(&world, Table::Blocks), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Against a model that remembers everything.
    #[test]
    fn an_account_is_locked_exactly_when_ten_failed_within_a_minute(
        steps in prop::collection::vec((0u64..30_000, 0u32..4, 0usize..2), 1..60),
    ) {
        let names = ["alice", "bob"];
        let mut world = World::founded();
        let mut model: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for (pause, failures, who) in steps {
            world.now += pause;
            let name = names[who];
            let known = model.entry(name).or_default();
            let who = Suspect::account(name);
            let open = !is_blocked(&world, &who);
            world.accepts(failed([(password(name, 1), failures)]));
            let now = world.now;
            if open {
                known.extend(std::iter::repeat_n(now, failures as usize));
            }
            let recent = known.iter().filter(|time| **time + MINUTE > now).count();
            prop_assert_eq!(is_blocked(&world, &who), !open || recent >= 10);
            prop_assert_eq!(
                count(&world, Table::SuspicionEnds),
                count(&world, Table::Suspicions)
                    + world.query().blocks(at(now)).unwrap().iter()
                        .filter(|(_, block)| block.until.is_some()).count()
            );
        }
    }
}
