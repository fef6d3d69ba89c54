//! Whose turn it is: which of the orders that this host has are carried out at the moment.
//!
//! Of the highest priority that there is, the oldest [`AT_ONCE_MAX`]; all others wait, also those
//! that were under way, and go on where they were.
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
        let turn = self.orders.entry(order).or_insert(Turn { priority, arrival });
        turn.priority = priority;
    }

    pub fn leave(&mut self, order: DeploymentId) {
        self.orders.remove(&order);
    }

    /// Who is to be at work.
    pub fn at_work(&self) -> BTreeSet<DeploymentId> {
        let Some(highest) = self.orders.values().map(|turn| turn.priority).max() else {
            return BTreeSet::new();
        };
        let first = self.orders.iter().filter(|(_, turn)| turn.priority == highest);
        let mut first: Vec<_> = first.map(|(order, turn)| (turn.arrival, *order)).collect();
        first.sort_unstable();
        first.into_iter().take(AT_ONCE_MAX).map(|(_, order)| order).collect()
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
}
