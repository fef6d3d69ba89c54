//! What is to happen, in order of time, and of entry where the time is the same.
//!
//! Most of what is entered is due a few steps later, of tens of thousands at once. So only what is
//! due within a slot's time is kept in order; the rest lies in slots, each a heap once its turn
//! comes.
//!
//! Invariant: all that is due before the horizon is in the heap, and nothing else.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

/// Nanoseconds, entry number, place in `waiting`.
type Entry = (u64, u64, u32);

#[derive(Debug)]
pub struct Queue<T> {
    /// Nanoseconds of one slot.
    width: u64,
    /// Where the first slot that is not in the heap begins, in nanoseconds.
    horizon: u64,
    soon: BinaryHeap<Reverse<Entry>>,
    slots: BTreeMap<u64, Vec<Entry>>,
    waiting: Vec<Option<T>>,
    vacant: Vec<u32>,
    entered: u64,
}

impl<T> Queue<T> {
    /// With slots of this time.
    pub fn new(width: Duration) -> Self {
        Self {
            width: nanoseconds(width).max(1),
            horizon: 0,
            soon: BinaryHeap::new(),
            slots: BTreeMap::new(),
            waiting: Vec::new(),
            vacant: Vec::new(),
            entered: 0,
        }
    }

    pub fn push(&mut self, at: Duration, what: T) {
        let place = self.vacant.pop().unwrap_or_else(|| {
            self.waiting.push(None);
            (self.waiting.len() - 1) as u32
        });
        self.waiting[place as usize] = Some(what);
        self.entered += 1;
        let at = nanoseconds(at);
        let entry = (at, self.entered, place);
        if at < self.horizon {
            self.soon.push(Reverse(entry));
        } else {
            self.slots.entry(at / self.width).or_default().push(entry);
        }
    }

    /// When the first is due.
    pub fn next_due(&mut self) -> Option<Duration> {
        if self.soon.is_empty() {
            self.open_slot(u64::MAX);
        }
        self.soon.peek().map(|&Reverse((at, ..))| Duration::from_nanos(at))
    }

    /// The first of what is due by `end`.
    pub fn pop(&mut self, end: Duration) -> Option<(Duration, T)> {
        let end = nanoseconds(end);
        while self.horizon <= end && self.open_slot(end) {}
        let &Reverse((at, _, place)) = self.soon.peek()?;
        if at > end {
            return None;
        }
        self.soon.pop();
        self.vacant.push(place);
        let what = self.waiting[place as usize].take()?;
        Some((Duration::from_nanos(at), what))
    }

    /// Puts the first slot into the heap, where it begins by `end`; whether there was one.
    fn open_slot(&mut self, end: u64) -> bool {
        let Some(slot) = self.slots.first_entry() else { return false };
        let begins = slot.key().saturating_mul(self.width);
        if begins > end {
            return false;
        }
        self.horizon = begins.saturating_add(self.width);
        self.soon.extend(slot.remove().into_iter().map(Reverse));
        true
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::Draw;

    #[test]
    fn all_comes_in_order_of_time_and_of_entry_also_what_is_entered_meanwhile() {
        let mut queue = Queue::new(Duration::from_nanos(7));
        let mut draw = Draw::new(1);
        let mut expected: Vec<(u64, u64)> = Vec::new();
        let mut number = 0;
        let mut enter = |queue: &mut Queue<u64>, now: u64, expected: &mut Vec<(u64, u64)>| {
            let at = now + [0, 3, 50, 1000][draw.below(4)] * draw.below(9) as u64;
            queue.push(Duration::from_nanos(at), number);
            expected.push((at, number));
            number += 1;
        };
        (0..100).for_each(|_| enter(&mut queue, 0, &mut expected));
        let mut came = Vec::new();
        let mut end = 0;
        while queue.next_due().is_some() {
            end += 11;
            while let Some((at, what)) = queue.pop(Duration::from_nanos(end)) {
                assert!(at <= Duration::from_nanos(end));
                came.push((at.as_nanos() as u64, what));
                if came.len() < 2000 {
                    enter(&mut queue, at.as_nanos() as u64, &mut expected);
                }
            }
        }
        expected.sort_unstable();
        assert!(came == expected && came.len() > 2000);
    }

    #[test]
    fn the_next_is_known_over_a_gap_and_what_comes_before_it_goes_first() {
        let mut queue = Queue::new(Duration::from_micros(1));
        let at = Duration::from_secs;
        queue.push(at(9), 'c');
        assert_eq!(queue.next_due(), Some(at(9)));
        queue.push(at(5), 'b');
        queue.push(at(4), 'a');
        assert_eq!((queue.next_due(), queue.pop(at(3))), (Some(at(4)), None));
        assert_eq!(queue.pop(at(5)), Some((at(4), 'a')));
        assert_eq!(queue.pop(at(5)), Some((at(5), 'b')));
        assert_eq!(queue.pop(at(5)), None);
        assert_eq!(queue.pop(at(9)), Some((at(9), 'c')));
    }
}
