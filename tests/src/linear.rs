//! Decides whether what clients saw of one tag could have happened one thing at a time.
//!
//! Herlihy and Wing's linearizability, decided by Wing and Gong's search with Lowe's memory of the
//! states that were seen ("Testing for linearizability", 2017). Each tag is an object of its own;
//! linearizability is local, so a history of many tags is right where each tag's is. A command
//! that touches several tags, as the deletion of a manifest does, stands in the history of each.
//!
//! Invariants: an operation without an outcome may take effect at any time after its call, or
//! never. A search that grows too long is no verdict, and says so.
//!
//! Non-goal: recording; see `chaos::history`.

use std::collections::HashSet;

/// What a tag points to: the history's own name of a manifest.
pub type Value = u32;
type State = Option<Value>;

/// The most states that are looked at before the search is given up.
const STATES_MAX: usize = 3_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The tag was set.
    Set(Value),
    /// This is what the tag pointed to, if to anything.
    Saw(Option<Value>),
    /// The tag was there and was deleted.
    Clear,
    /// The manifest was deleted, and with it the tag where it pointed there.
    Forget(Value),
    /// There was no such manifest, so the tag did not point there.
    Lacks(Value),
}

/// One request of a client, with the times of one clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    pub client: usize,
    pub action: Action,
    pub called: u64,
    /// Missing where nobody knows whether it took effect.
    pub returned: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Linearizable,
    /// No order explains it. These, by their index, could not be placed after the longest order
    /// found, in which the tag pointed to `state`.
    Violated {
        state: Option<Value>,
        stuck: Vec<usize>,
    },
    /// The search was given up.
    Undecided,
}

impl Action {
    /// The state after it; `None` where it cannot happen in `state`.
    fn step(self, state: State) -> Option<State> {
        match self {
            Self::Set(value) => Some(Some(value)),
            Self::Saw(seen) => (seen == state).then_some(state),
            Self::Clear => state.map(|_| None),
            Self::Forget(value) => Some(state.filter(|held| *held != value)),
            Self::Lacks(value) => (state != Some(value)).then_some(state),
        }
    }
}

/// How far an order has come: all of `certain` below `base` and what is in `beyond`, and of the
/// operations without outcome those in `used`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Reached {
    base: u32,
    beyond: Vec<u32>,
    used: Vec<u32>,
    state: State,
}

impl Reached {
    fn count(&self) -> usize {
        self.base as usize + self.beyond.len()
    }

    /// The same with a certain operation more.
    fn with(&self, index: u32, state: State) -> Self {
        let mut next = Self { state, ..self.clone() };
        if index == next.base {
            next.base += 1;
            while next.beyond.first() == Some(&next.base) {
                next.beyond.remove(0);
                next.base += 1;
            }
        } else if let Err(place) = next.beyond.binary_search(&index) {
            next.beyond.insert(place, index);
        }
        next
    }

    fn using(&self, index: u32, state: State) -> Self {
        let mut next = Self { state, ..self.clone() };
        if let Err(place) = next.used.binary_search(&index) {
            next.used.insert(place, index);
        }
        next
    }
}

struct Search<'a> {
    operations: &'a [Operation],
    /// Indices of operations with an outcome, by the time of their call.
    certain: Vec<usize>,
    uncertain: Vec<usize>,
}

/// Judges the history of one tag that pointed to `initial` before all of it.
pub fn check(initial: Option<Value>, operations: &[Operation]) -> Verdict {
    let mut order: Vec<usize> = (0..operations.len()).collect();
    order.sort_by_key(|index| operations[*index].called);
    let (certain, uncertain) =
        order.into_iter().partition(|index| operations[*index].returned.is_some());
    Search { operations, certain, uncertain }.run(initial)
}

impl Search<'_> {
    fn run(&self, initial: State) -> Verdict {
        let first = Reached { base: 0, beyond: Vec::new(), used: Vec::new(), state: initial };
        let mut best = first.clone();
        let mut seen = HashSet::from([first.clone()]);
        let mut open = vec![first];
        while let Some(reached) = open.pop() {
            if reached.count() == self.certain.len() {
                return Verdict::Linearizable;
            }
            if reached.count() > best.count() {
                best = reached.clone();
            }
            for next in self.successors(&reached) {
                if seen.len() >= STATES_MAX {
                    return Verdict::Undecided;
                }
                if seen.insert(next.clone()) {
                    open.push(next);
                }
            }
        }
        let stuck = self.candidates(&best).map(|index| self.certain[index as usize]).collect();
        Verdict::Violated { state: best.state, stuck }
    }

    /// The one to try first stands last: a certain operation before one without outcome, and of
    /// each kind the one that was called first.
    fn successors(&self, reached: &Reached) -> Vec<Reached> {
        let deadline = self.deadline(reached);
        let mut all = Vec::new();
        for (index, operation) in self.uncertain.iter().enumerate().rev() {
            let index = index as u32;
            let operation = self.operations[*operation];
            if operation.called > deadline || reached.used.binary_search(&index).is_ok() {
                continue;
            }
            // What changes nothing may as well never have happened.
            match operation.action.step(reached.state) {
                Some(state) if state != reached.state => all.push(reached.using(index, state)),
                _ => {}
            }
        }
        let certain: Vec<u32> = self.candidates(reached).collect();
        for index in certain.into_iter().rev() {
            let action = self.operations[self.certain[index as usize]].action;
            if let Some(state) = action.step(reached.state) {
                all.push(reached.with(index, state));
            }
        }
        all
    }

    /// Certain operations that may come next: called before any that is left had returned.
    fn candidates(&self, reached: &Reached) -> impl Iterator<Item = u32> {
        let deadline = self.deadline(reached);
        let called = move |index: &u32| self.certain_at(*index).called <= deadline;
        self.left(reached).take_while(called).collect::<Vec<_>>().into_iter()
    }

    /// When the first of the certain operations that are left had returned.
    fn deadline(&self, reached: &Reached) -> u64 {
        let mut deadline = u64::MAX;
        for index in self.left(reached) {
            let operation = self.certain_at(index);
            if operation.called > deadline {
                break;
            }
            deadline = deadline.min(operation.returned.unwrap_or(u64::MAX));
        }
        deadline
    }

    fn left(&self, reached: &Reached) -> impl Iterator<Item = u32> {
        let beyond = reached.beyond.clone();
        (reached.base..self.certain.len() as u32)
            .filter(move |index| beyond.binary_search(index).is_err())
    }

    fn certain_at(&self, index: u32) -> Operation {
        self.operations[self.certain[index as usize]]
    }
}

#[cfg(test)]
mod tests {
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

    /// A value that nobody set, in a long history.
    #[test]
    fn one_wrong_read_among_thousands_is_found() {
        let mut history = simulated(7, 4000, 8);
        assert_eq!(check(None, &history), Verdict::Linearizable);
        // One that was answered: what nobody heard of may never have been.
        let read = |one: &&mut Operation| matches!(one.action, Saw(_)) && one.returned.is_some();
        // Where some dozens of operations without outcome may have been before it, the search is
        // given up instead, and says so.
        let read = history.iter_mut().skip(200).find(read);
        read.unwrap().action = Saw(Some(u32::MAX));
        assert!(matches!(check(None, &history), Verdict::Violated { .. }));
    }

    /// What `clients` see of a true register, in which operations without outcome take effect
    /// late or never.
    fn simulated(seed: u64, operations: usize, clients: usize) -> Vec<Operation> {
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
            let lost = random.random_range(0..100) < 2 && !matches!(action, Saw(_));
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
            assert_eq!(check(None, &simulated(seed, 600, 6)), Verdict::Linearizable, "seed {seed}");
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
}
