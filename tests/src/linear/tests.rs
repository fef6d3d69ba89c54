//! The checker against trying every order, and on long histories.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use Action::{Clear, Forget, Lacks, Saw, Set};

fn done(action: Action, called: u64, returned: u64) -> Operation {
    Operation { client: 0, action, called, returned: Some(returned) }
}

fn open(action: Action, called: u64) -> Operation {
    Operation { client: 0, action, called, returned: None }
}

fn is_right(operations: &[Operation]) -> bool {
    match check(None, operations) {
        Verdict::Linearizable => true,
        Verdict::Violated { .. } => false,
        Verdict::Undecided => panic!("undecided: {operations:?}"),
    }
}

#[test]
fn what_happens_at_the_same_time_may_happen_in_any_order() {
    assert!(is_right(&[]));
    assert!(is_right(&[done(Set(1), 0, 10), done(Saw(None), 5, 6), done(Saw(Some(1)), 5, 7)]));
    assert!(is_right(&[
        done(Set(1), 0, 9),
        done(Set(2), 1, 8),
        done(Saw(Some(2)), 10, 11),
        done(Clear, 12, 13),
        done(Saw(None), 14, 15)
    ]));
}

#[test]
fn a_stale_read_is_refused() {
    let history =
        [done(Set(1), 0, 1), done(Set(2), 2, 3), done(Saw(Some(1)), 4, 5), done(Clear, 6, 7)];
    let verdict = check(None, &history);
    assert_eq!(verdict, Verdict::Violated { state: Some(2), stuck: vec![2] });
    assert!(!is_right(&[done(Set(1), 0, 1), done(Saw(None), 2, 3)]));
}

#[test]
fn two_reads_that_disagree_about_the_order_are_refused() {
    assert!(!is_right(&[
        done(Set(1), 0, 100),
        done(Set(2), 0, 100),
        done(Saw(Some(1)), 10, 11),
        done(Saw(Some(2)), 12, 13),
        done(Saw(Some(1)), 14, 15)
    ]));
}

#[test]
fn what_has_no_outcome_may_take_effect_late_once_or_never() {
    assert!(is_right(&[open(Set(1), 0), done(Saw(None), 1, 2), done(Saw(Some(1)), 3, 4)]));
    assert!(is_right(&[open(Set(1), 0), done(Saw(None), 1, 2)]));
    // Once.
    assert!(!is_right(&[
        open(Set(1), 0),
        done(Set(2), 1, 2),
        done(Saw(Some(1)), 3, 4),
        done(Set(2), 5, 6),
        done(Saw(Some(1)), 7, 8)
    ]));
    // Not before it was asked for.
    assert!(!is_right(&[done(Saw(Some(1)), 0, 1), open(Set(1), 2)]));
    // Two of them in a row may be what is seen.
    assert!(is_right(&[
        done(Set(1), 0, 1),
        open(Set(2), 2),
        open(Forget(2), 2),
        done(Saw(None), 3, 4)
    ]));
    assert!(is_right(&[done(Set(1), 0, 1), open(Clear, 2), done(Saw(None), 5, 6)]));
}

#[test]
fn deletions_are_held_to_what_they_said() {
    assert!(!is_right(&[done(Clear, 0, 1)]));
    assert!(!is_right(&[done(Set(1), 0, 1), done(Forget(1), 2, 3), done(Clear, 4, 5)]));
    assert!(!is_right(&[done(Set(1), 0, 1), done(Lacks(1), 2, 3)]));
    assert!(is_right(&[done(Set(1), 0, 1), done(Forget(2), 2, 3), done(Saw(Some(1)), 4, 5)]));
    assert!(!is_right(&[done(Set(1), 0, 1), done(Clear, 2, 3), done(Saw(Some(1)), 4, 5)]));
}

/// A value that nobody set, early, in the middle and late in a long history in which a tenth of
/// all changes has no outcome.
#[test]
fn one_wrong_read_among_thousands_is_found_behind_dozens_of_unknown_outcomes() {
    let history = simulated(7, 3000, 8, 10);
    let unknown = history.iter().filter(|one| one.returned.is_none()).count();
    assert!(unknown > 100, "{unknown} without an outcome");
    assert_eq!(check(None, &history), Verdict::Linearizable);
    // One that was answered: what nobody heard of may never have been.
    let read = |one: &&mut Operation| matches!(one.action, Saw(_)) && one.returned.is_some();
    for tenth in [1, 5, 9] {
        let mut history = history.clone();
        let from = history.len() * tenth / 10;
        let read = history.iter_mut().skip(from).find(read);
        read.unwrap().action = Saw(Some(u32::MAX));
        let verdict = check(None, &history);
        assert!(matches!(verdict, Verdict::Violated { .. }), "after {from}: {verdict:?}");
    }
}

/// What `clients` see of a true register, in which operations without outcome take effect
/// late or never.
fn simulated(seed: u64, operations: usize, clients: usize, lost_percent: u32) -> Vec<Operation> {
    let mut random = StdRng::seed_from_u64(seed);
    let (mut state, mut now) = (None, 0u64);
    let mut free_at = vec![0u64; clients];
    // When it takes effect, what it is.
    let mut pending: Vec<(u64, usize)> = Vec::new();
    let mut all: Vec<Operation> = Vec::new();
    while all.len() < operations || !pending.is_empty() {
        now += 1;
        pending.sort_unstable();
        while pending.first().is_some_and(|(at, _)| *at <= now) {
            let (_, index) = pending.remove(0);
            let known = all[index].returned.is_some();
            all[index].action = match all[index].action {
                Saw(_) => Saw(state),
                Clear if state.is_none() && known => Saw(None),
                other => other,
            };
            state = all[index].action.step(state).unwrap_or(state);
        }
        let client = random.random_range(0..clients);
        if all.len() >= operations || free_at[client] > now {
            continue;
        }
        let action = match random.random_range(0..10) {
            0..3 => Set(all.len() as u32),
            3..4 => Clear,
            4..5 => Forget(random.random_range(0..=all.len()) as u32),
            _ => Saw(None),
        };
        let lost = random.random_range(0..100) < lost_percent && !matches!(action, Saw(_));
        let effect = now + random.random_range(1..if lost { 500 } else { 20 });
        let returned = (!lost).then(|| effect + random.random_range(0..10));
        free_at[client] = returned.unwrap_or(now + 30) + 1;
        if !lost || random.random_range(0..2) == 0 {
            pending.push((effect, all.len()));
        }
        all.push(Operation { client, action, called: now, returned });
    }
    all
}

#[test]
fn the_histories_of_a_true_register_are_right() {
    for seed in 0..20 {
        for lost_percent in [2, 30] {
            let history = simulated(seed, 600, 6, lost_percent);
            assert_eq!(check(None, &history), Verdict::Linearizable, "seed {seed}");
        }
    }
}

/// Tries every order of every choice of operations without outcome.
fn by_force(operations: &[Operation], placed: &mut Vec<usize>, state: State) -> bool {
    let left = |index: &usize| !placed.contains(index);
    let certain = |index: &usize| operations[*index].returned.is_some();
    let rest: Vec<usize> = (0..operations.len()).filter(left).collect();
    if !rest.iter().any(certain) {
        return true;
    }
    let returned = rest.iter().filter_map(|index| operations[*index].returned).min();
    for index in rest {
        if operations[index].called > returned.unwrap_or(u64::MAX) {
            continue;
        }
        if let Some(state) = operations[index].action.step(state) {
            placed.push(index);
            let found = by_force(operations, placed, state);
            placed.pop();
            if found {
                return true;
            }
        }
    }
    false
}

#[test]
fn it_says_what_trying_every_order_says() {
    let mut right = 0;
    for seed in 0..3000 {
        let mut random = StdRng::seed_from_u64(seed);
        let count = random.random_range(1..7);
        let history: Vec<Operation> = (0..count)
            .map(|client| {
                let value = random.random_range(0..2);
                let action = match random.random_range(0..7) {
                    0 | 1 => Set(value),
                    2 => Saw(Some(value)),
                    3 => Saw(None),
                    4 => Clear,
                    5 => Forget(value),
                    _ => Lacks(value),
                };
                let called = random.random_range(0..12);
                let observes = matches!(action, Saw(_) | Lacks(_));
                let lost = !observes && random.random_range(0..4) == 0;
                let returned = (!lost).then(|| called + random.random_range(0..6));
                Operation { client, action, called, returned }
            })
            .collect();
        let expected = by_force(&history, &mut Vec::new(), None);
        right += usize::from(expected);
        assert_eq!(is_right(&history), expected, "seed {seed}: {history:?}");
    }
    assert!((300..2700).contains(&right), "{right} of 3000 are right: the sample says little");
}
