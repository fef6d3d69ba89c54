//! Whose turn it is: which of the orders that this host has are carried out at the moment.
//!
//! Of the highest priority that there is, the oldest [`AT_ONCE_MAX`]; all others wait, also those
//! that were under way, and go on where they were. One that rests before its next attempt takes
//! nobody's turn: what cannot be done for now, or never, holds up nothing else.
//!
//! Non-goals: carrying out, stopping or reporting anything; see the module above.

use std::collections::{BTreeMap, BTreeSet};

use shoal_content::{DeploymentId, Priority};

/// Orders carried out at once.
pub const AT_ONCE_MAX: usize = 4;

#[derive(Debug, Clone, Copy)]
struct Turn {
    priority: Priority,
    arrival: u64,
    rests: bool,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Turns {
    orders: BTreeMap<DeploymentId, Turn>,
    arrivals: u64,
}

impl Turns {
    /// Puts an order in line, behind those of its priority; one that is there keeps its place.
    pub fn enter(&mut self, order: DeploymentId, priority: Priority) {
        self.arrivals += 1;
        let arrival = self.arrivals;
        let turn = self.orders.entry(order).or_insert(Turn { priority, arrival, rests: false });
        (turn.priority, turn.rests) = (priority, false);
    }

    /// An order at work waits for its next attempt. Afterwards it is behind those of its priority.
    pub fn rest(&mut self, order: DeploymentId, rests: bool) {
        self.arrivals += 1;
        if let Some(turn) = self.orders.get_mut(&order) {
            (turn.rests, turn.arrival) = (rests, self.arrivals);
        }
    }

    pub fn leave(&mut self, order: DeploymentId) {
        self.orders.remove(&order);
    }

    /// Who is to be at work, or may rest.
    pub fn at_work(&self) -> BTreeSet<DeploymentId> {
        let (resting, awake): (Vec<_>, Vec<_>) =
            self.orders.iter().partition(|(_, turn)| turn.rests);
        let highest = awake.iter().map(|(_, turn)| turn.priority).max();
        let first = awake.into_iter().filter(|(_, turn)| Some(turn.priority) == highest);
        let mut first: Vec<_> = first.map(|(order, turn)| (turn.arrival, *order)).collect();
        first.sort_unstable();
        let first = first.into_iter().take(AT_ONCE_MAX).map(|(_, order)| order);
        first.chain(resting.into_iter().map(|(order, _)| *order)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(number: u8) -> DeploymentId {
        DeploymentId::from_bytes([number; 16])
    }

    fn at_work(turns: &Turns) -> Vec<DeploymentId> {
        turns.at_work().into_iter().collect()
    }

    #[test]
    fn the_oldest_few_of_one_priority_are_at_work() {
        let mut turns = Turns::default();
        for number in (1..=6).rev() {
            turns.enter(order(number), Priority::Normal);
        }
        assert_eq!(at_work(&turns), [3, 4, 5, 6].map(order));
        // It comes again with the next stream.
        turns.enter(order(6), Priority::Normal);
        assert_eq!(at_work(&turns), [3, 4, 5, 6].map(order));
        turns.leave(order(4));
        assert_eq!(at_work(&turns), [2, 3, 5, 6].map(order));
    }

    #[test]
    fn all_below_wait_for_what_is_above() {
        let mut turns = Turns::default();
        turns.enter(order(1), Priority::Normal);
        turns.enter(order(2), Priority::Urgent);
        turns.enter(order(3), Priority::Low);
        assert_eq!(at_work(&turns), [order(2)]);
        turns.leave(order(2));
        assert_eq!(at_work(&turns), [order(1)]);
        turns.leave(order(1));
        assert_eq!(at_work(&turns), [order(3)]);
        turns.leave(order(3));
        assert_eq!(at_work(&turns), []);
    }

    #[test]
    fn who_rests_before_its_next_attempt_holds_up_nobody() {
        let mut turns = Turns::default();
        turns.enter(order(9), Priority::Urgent);
        for number in 1..=5 {
            turns.enter(order(number), Priority::Normal);
        }
        assert_eq!(at_work(&turns), [order(9)]);
        turns.rest(order(9), true);
        assert_eq!(at_work(&turns), [1, 2, 3, 4, 9].map(order));
        turns.rest(order(1), true);
        assert_eq!(at_work(&turns), [1, 2, 3, 4, 5, 9].map(order));
        // Its turn is at the end of the line, or it would have rested at another one's cost.
        turns.rest(order(1), false);
        assert_eq!(at_work(&turns), [2, 3, 4, 5, 9].map(order));
        turns.rest(order(9), false);
        assert_eq!(at_work(&turns), [order(9)]);
        turns.rest(order(9), true);
        // It comes as another attempt.
        turns.enter(order(9), Priority::Urgent);
        assert_eq!(at_work(&turns), [order(9)]);
        turns.leave(order(9));
        turns.rest(order(9), true);
        assert_eq!(at_work(&turns), [2, 3, 4, 5].map(order));
    }
}
