//! Decides whether what clients saw of one tag could have happened one thing at a time.
//!
//! Herlihy and Wing's linearizability, decided by Wing and Gong's search with Lowe's memory of what
//! was seen ("Testing for linearizability", 2017). Each tag is an object of its own;
//! linearizability is local, so a history of many tags is right where each tag's is. A command
//! that touches several tags, as the deletion of a manifest does, stands in the history of each.
//!
//! Dozens of operations without an outcome would make such a search endless, so it knows what such
//! an operation is good for in a register, and gives up nothing by it:
//! - One is placed only right before an operation with an outcome that cannot go on, or would end
//!   otherwise, without it; the most that ever helps is two in a row (`Chain`). Any other place can
//!   be moved to such a one, or the operation dropped, and nothing else notices.
//! - Those of the same action are worth the same but for the time of their call, so only their
//!   number counts, and they are used in the order of their calls. Settings of values that nobody
//!   asks for any more are all one action (`POOL`).
//! - Of two ways to the same place, one that used no more of any of them is enough.
//! - What changes nothing and can be placed is placed: nothing can need it later.
//!
//! Invariants: an operation without an outcome may take effect at any time after its call, or
//! never. A search that grows too long is no verdict, and says so.
//!
//! Non-goal: recording; see `chaos::history`.

use std::collections::{BTreeMap, HashMap, HashSet};

/// What a tag points to: the history's own name of a manifest.
pub type Value = u32;
type State = Option<Value>;

/// The most states that are looked at before the search is given up.
const STATES_MAX: usize = 3_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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

    fn changes_nothing(self) -> bool {
        matches!(self, Self::Saw(_) | Self::Lacks(_))
    }
}

/// Judges the history of one tag that pointed to `initial` before all of it.
pub fn check(initial: Option<Value>, operations: &[Operation]) -> Verdict {
    Search::new(operations).run(initial)
}

/// An operation with an outcome.
struct Certain {
    /// In the history.
    index: usize,
    action: Action,
    called: u64,
    returned: u64,
}

/// Operations without an outcome that are worth the same: the times of their calls, in order.
struct Class {
    action: Action,
    calls: Vec<u64>,
}

/// All settings of values that nobody asks for any more.
const POOL: u32 = u32::MAX;

/// At most two classes, one of each to be used in this order.
type Chain = [Option<u32>; 2];

/// How far an order has come: all of `certain` below `base` and what is in `beyond`, and of each
/// class in `used` the first so many.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reached {
    place: Place,
    used: Used,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Place {
    base: u32,
    beyond: Vec<u32>,
    state: State,
}

/// By class, without those of which none is used; ordered.
type Used = Vec<(u32, u32)>;

impl Place {
    fn count(&self) -> usize {
        self.base as usize + self.beyond.len()
    }

    /// The same with an operation more.
    fn with(&self, index: u32, state: State) -> Self {
        let mut next = Self { state, ..self.clone() };
        if index == next.base {
            next.base += 1;
            let run = next.beyond.iter().zip(next.base..).take_while(|(at, base)| **at == *base);
            let run = run.count();
            next.beyond.drain(..run);
            next.base += run as u32;
        } else if let Err(place) = next.beyond.binary_search(&index) {
            next.beyond.insert(place, index);
        }
        next
    }
}

/// Whether `one` uses no more of any class than `other`.
fn is_within(one: &Used, other: &Used) -> bool {
    one.iter().all(|(class, count)| {
        let found = other.binary_search_by_key(class, |(class, _)| *class);
        found.is_ok_and(|place| other[place].1 >= *count)
    })
}

fn used_of(used: &Used, class: u32) -> u32 {
    let found = used.binary_search_by_key(&class, |(class, _)| *class);
    found.map_or(0, |place| used[place].1)
}

fn use_more(used: &mut Used, class: u32, count: u32) {
    match used.binary_search_by_key(&class, |(class, _)| *class) {
        Ok(place) => used[place].1 += count,
        Err(place) if count > 0 => used.insert(place, (class, count)),
        Err(_) => {}
    }
}

struct Search {
    /// By the time of their call.
    certain: Vec<Certain>,
    classes: Vec<Class>,
    /// Classes of `Set`, by value.
    setting: BTreeMap<Value, u32>,
    /// Classes of `Forget`, by value.
    forgetting: BTreeMap<Value, u32>,
    clearing: Option<u32>,
    /// The last certain operation that sets a value, and that asks for it.
    last_set: HashMap<Value, u32>,
    last_asked: HashMap<Value, u32>,
    /// A value that nobody asks for, in place of all such.
    nobodys: Value,
}

impl Search {
    fn new(operations: &[Operation]) -> Self {
        let asked: HashSet<Value> = operations.iter().filter_map(|one| one.action.asks()).collect();
        let mut search = Self {
            certain: Vec::new(),
            classes: Vec::new(),
            setting: BTreeMap::new(),
            forgetting: BTreeMap::new(),
            clearing: None,
            last_set: HashMap::new(),
            last_asked: HashMap::new(),
            nobodys: (0..Value::MAX).find(|value| !asked.contains(value)).unwrap_or(Value::MAX),
        };
        let mut uncertain: BTreeMap<Action, Vec<u64>> = BTreeMap::new();
        for (index, operation) in operations.iter().enumerate() {
            let Operation { action, called, returned, .. } = *operation;
            match returned {
                Some(returned) => search.certain.push(Certain { index, action, called, returned }),
                None if action.changes_nothing() => {}
                None => uncertain.entry(action).or_default().push(called),
            }
        }
        search.certain.sort_by_key(|one| one.called);
        for (index, one) in (0..).zip(&search.certain) {
            if let Action::Set(value) = one.action {
                search.last_set.insert(value, index);
            }
            if let Some(value) = one.action.asks() {
                search.last_asked.insert(value, index);
            }
        }
        for ((action, mut calls), class) in uncertain.into_iter().zip(0..) {
            match action {
                Action::Set(value) => _ = search.setting.insert(value, class),
                Action::Forget(value) => _ = search.forgetting.insert(value, class),
                Action::Clear => search.clearing = Some(class),
                Action::Saw(_) | Action::Lacks(_) => {}
            }
            calls.sort_unstable();
            search.classes.push(Class { action, calls });
        }
        search
    }

    /// Whether nobody asks for a value any more once all certain operations below `base` are placed.
    fn is_nobodys(&self, value: Value, base: u32) -> bool {
        let asked = self.last_asked.get(&value).is_some_and(|last| *last >= base);
        !asked && !self.forgetting.contains_key(&value)
    }

    /// Whether the tag can be made to point to a value again.
    fn may_come(&self, value: Value, base: u32) -> bool {
        let to_come = self.last_set.get(&value).is_some_and(|last| *last >= base);
        to_come || self.setting.contains_key(&value)
    }

    fn run(&self, initial: State) -> Verdict {
        let place = Place { base: 0, beyond: Vec::new(), state: initial };
        let first = Reached { place, used: Used::new() };
        let mut best = first.place.clone();
        let mut seen: HashMap<Place, Vec<Used>> = HashMap::new();
        let mut looked_at = 0;
        let mut open = vec![first];
        while let Some(reached) = open.pop() {
            if reached.place.count() == self.certain.len() {
                return Verdict::Linearizable;
            }
            if reached.place.count() > best.count() {
                best = reached.place.clone();
            }
            for next in self.successors(&reached) {
                let ways = seen.entry(self.canonical_place(&next.place)).or_default();
                if ways.iter().any(|way| is_within(way, &next.used)) {
                    continue;
                }
                ways.retain(|way| !is_within(&next.used, way));
                ways.push(next.used.clone());
                looked_at += 1;
                if looked_at > STATES_MAX {
                    return Verdict::Undecided;
                }
                open.push(next);
            }
        }
        let (candidates, _) = self.candidates(&best);
        let stuck = candidates.into_iter().map(|at| self.certain[at as usize].index).collect();
        Verdict::Violated { state: best.state, stuck }
    }

    /// The one to try first stands last: what needs no operation without outcome before what does,
    /// and of each kind the one that returned first.
    fn successors(&self, reached: &Reached) -> Vec<Reached> {
        let Reached { place, used } = reached;
        let (mut candidates, deadline) = self.candidates(place);
        candidates.sort_by_key(|index| self.certain[*index as usize].returned);
        let reads = candidates.iter().find(|index| {
            let action = self.certain[**index as usize].action;
            action.changes_nothing() && action.step(place.state).is_some()
        });
        if let Some(index) = reads {
            return vec![self.reached(place.with(*index, place.state), used.clone())];
        }
        let mut all = Vec::new();
        for index in candidates.iter().rev() {
            let action = self.certain[*index as usize].action;
            for chain in self.chains(action, reached, deadline) {
                let Some((state, used)) = self.follow(chain, reached, deadline) else {
                    continue;
                };
                if let Some(state) = action.step(state) {
                    all.push(self.reached(place.with(*index, state), used));
                }
            }
        }
        for index in candidates.into_iter().rev() {
            if let Some(state) = self.certain[index as usize].action.step(place.state) {
                all.push(self.reached(place.with(index, state), used.clone()));
            }
        }
        all
    }

    /// Forgets what can make no difference any more: how many deletions of a manifest were used that
    /// the tag will not point to again, and which of the settings that nobody asks for.
    fn reached(&self, place: Place, mut used: Used) -> Reached {
        let mut pooled = 0;
        used.retain(|(class, count)| match self.classes.get(*class as usize).map(|it| it.action) {
            Some(Action::Forget(value)) => {
                place.state == Some(value) || self.may_come(value, place.base)
            }
            Some(Action::Set(value)) if self.is_nobodys(value, place.base) => {
                pooled += count;
                false
            }
            _ => true,
        });
        use_more(&mut used, POOL, pooled);
        Reached { place, used }
    }

    /// The same for all places that differ only in a value that nobody asks for.
    fn canonical_place(&self, place: &Place) -> Place {
        let canonical =
            |value| if self.is_nobodys(value, place.base) { self.nobodys } else { value };
        Place { state: place.state.map(canonical), ..place.clone() }
    }

    /// What may stand right before `action`, without which it cannot happen or ends otherwise.
    fn chains(&self, action: Action, reached: &Reached, deadline: u64) -> Vec<Chain> {
        let Reached { place, .. } = reached;
        let one = |class: u32| [Some(class), None];
        let is_there = |class: u32| self.follow(one(class), reached, deadline).is_some();
        let settings = || {
            let asked = |(value, _): &(&Value, &u32)| !self.is_nobodys(**value, place.base);
            let asked = self.setting.iter().filter(asked).map(|(_, class)| *class);
            asked.chain([POOL])
        };
        match (action, place.state) {
            (Action::Saw(Some(value)), _) => {
                self.setting.get(&value).copied().map(one).into_iter().collect()
            }
            (Action::Saw(None), Some(held)) => {
                let forgetting = self.forgetting.get(&held).copied();
                if let Some(class) = forgetting
                    && !self.may_come(held, place.base)
                    && is_there(class)
                {
                    // It is good for nothing else.
                    return vec![one(class)];
                }
                let both = |(value, class): (&Value, &u32)| {
                    let forgetting = self.forgetting.get(value).filter(|_| *value != held)?;
                    Some([Some(*class), Some(*forgetting)])
                };
                let both = self.setting.iter().filter_map(both);
                both.chain(self.clearing.map(one)).chain(forgetting.map(one)).collect()
            }
            (Action::Lacks(_), Some(held)) => {
                let forgetting = self.forgetting.get(&held).copied();
                settings().chain(self.clearing).chain(forgetting).map(one).collect()
            }
            // What is good for nothing else goes first.
            (Action::Clear, None) if is_there(POOL) => vec![one(POOL)],
            (Action::Clear, None) => settings().map(one).collect(),
            (Action::Forget(value), Some(held)) if held != value => {
                self.setting.get(&value).copied().map(one).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    /// The state after a chain, and what is used then; nothing where none is left that was called
    /// in time.
    fn follow(&self, chain: Chain, reached: &Reached, deadline: u64) -> Option<(State, Used)> {
        let (mut state, mut used) = (reached.place.state, reached.used.clone());
        for number in chain.into_iter().flatten() {
            if used_of(&used, number) >= self.called_by(number, deadline, reached.place.base) {
                return None;
            }
            let action = match self.classes.get(number as usize) {
                Some(class) => class.action,
                None => Action::Set(self.nobodys),
            };
            state = action.step(state)?;
            use_more(&mut used, number, 1);
        }
        Some((state, used))
    }

    /// How many of a class were called by then.
    fn called_by(&self, class: u32, deadline: u64, base: u32) -> u32 {
        let of = |class: &Class| class.calls.partition_point(|called| *called <= deadline) as u32;
        match self.classes.get(class as usize) {
            Some(class) => of(class),
            None => {
                let pooled =
                    self.setting.iter().filter(|(value, _)| self.is_nobodys(**value, base));
                pooled.map(|(_, class)| of(&self.classes[*class as usize])).sum()
            }
        }
    }

    /// Operations that may come next – those called before any that is left had returned – and
    /// when the first that is left had returned.
    fn candidates(&self, place: &Place) -> (Vec<u32>, u64) {
        let (mut found, mut deadline) = (Vec::new(), u64::MAX);
        for index in place.base..self.certain.len() as u32 {
            let one = &self.certain[index as usize];
            if one.called > deadline {
                break;
            }
            if place.beyond.binary_search(&index).is_err() {
                deadline = deadline.min(one.returned);
                found.push(index);
            }
        }
        found.retain(|index| self.certain[*index as usize].called <= deadline);
        (found, deadline)
    }
}

impl Action {
    /// The value that it makes a difference for.
    fn asks(self) -> Option<Value> {
        match self {
            Self::Saw(value) => value,
            Self::Forget(value) | Self::Lacks(value) => Some(value),
            Self::Set(_) | Self::Clear => None,
        }
    }
}

#[cfg(test)]
mod tests;
