//! The end of the log in memory: what was appended last, written or not.
//!
//! Replication and the state machine nearly always read what was appended a moment ago, so they
//! read it here; and an entry can be read, as openraft wants it, before it is on the disk.
//!
//! Invariants: the entries follow each other. One leaves only once it is in the database, where it
//! is found from then on. What is kept of those is bounded; how much waits to be written is bounded
//! by who appends (see `log`).

use std::collections::VecDeque;

use openraft::EntryPayload;
use openraft::entry::RaftEntry;

use crate::proposal::{Entry, LogId};

/// Written entries that are kept, and their bytes.
const ENTRIES_MAX: usize = 4096;
const BYTES_MAX: usize = 2 * 1024 * 1024;

/// See the module's documentation.
#[derive(Default)]
pub struct Tail {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// The index of the first entry that may not be in the database.
    unwritten: u64,
}

/// The next entry would not follow the last one.
#[derive(Debug, PartialEq, Eq)]
pub struct Hole;

impl Tail {
    /// The index of the first entry; those before it are in the database.
    pub fn first(&self) -> Option<u64> {
        self.entries.front().map(index)
    }

    pub fn last(&self) -> Option<LogId> {
        self.entries.back().map(RaftEntry::log_id)
    }

    pub fn push(&mut self, entry: Entry) -> Result<(), Hole> {
        let follows = |last: &Entry| index(last) + 1 == index(&entry);
        if !self.entries.back().is_none_or(follows) {
            return Err(Hole);
        }
        if self.entries.is_empty() {
            self.unwritten = index(&entry);
        }
        self.bytes += bytes(&entry);
        self.entries.push_back(entry);
        Ok(())
    }

    /// All entries below `end` are in the database.
    pub fn written(&mut self, end: u64) {
        self.unwritten = self.unwritten.max(end);
        while let Some(first) = self.first()
            && first < self.unwritten
            && (self.entries.len() > ENTRIES_MAX || self.bytes > BYTES_MAX)
        {
            self.drop_first();
        }
    }

    /// Drops the entries from `start` on. What was appended before must have been written, or
    /// `written` would be told of it when others stand in its place.
    pub fn truncate(&mut self, start: u64) {
        while self.entries.back().is_some_and(|last| index(last) >= start) {
            if let Some(last) = self.entries.pop_back() {
                self.bytes -= bytes(&last);
            }
        }
        self.unwritten = self.unwritten.min(start);
    }

    /// Drops the entries below `end`, which nobody reads any more.
    pub fn purge(&mut self, end: u64) {
        while self.first().is_some_and(|first| first < end) {
            self.drop_first();
        }
    }

    /// Entries of `start..end`, up to `bytes_max`, at least one where there is one.
    pub fn read(&self, start: u64, end: u64, bytes_max: usize) -> Vec<Entry> {
        let Some(first) = self.first() else { return Vec::new() };
        let skipped = usize::try_from(start.saturating_sub(first)).unwrap_or(usize::MAX);
        let mut total = 0usize;
        let within = |(number, entry): &(usize, &Entry)| {
            total = total.saturating_add(bytes(entry));
            index(entry) < end && (*number == 0 || total <= bytes_max)
        };
        let entries = self.entries.iter().skip(skipped).enumerate().take_while(within);
        entries.map(|(_, entry)| entry.clone()).collect()
    }

    fn drop_first(&mut self) {
        if let Some(first) = self.entries.pop_front() {
            self.bytes -= bytes(&first);
        }
    }
}

fn index(entry: &Entry) -> u64 {
    entry.log_id().index
}

/// About what an entry takes; those of Raft's own are small and rare.
pub fn bytes(entry: &Entry) -> usize {
    const OVERHEAD: usize = 64;
    match &entry.payload {
        EntryPayload::Normal(proposal) => proposal.command.len() + OVERHEAD,
        EntryPayload::Blank | EntryPayload::Membership(_) => OVERHEAD,
    }
}

#[cfg(test)]
mod tests {
    use openraft::vote::RaftLeaderId;
    use shoal_content::Timestamp;

    use super::*;
    use crate::proposal::Proposal;

    type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;

    fn entry(index: u64, bytes: usize) -> Entry {
        let command = vec![0; bytes].into();
        let proposal = Proposal { id: u128::from(index), at: Timestamp::from_millis(0), command };
        let log_id = LogId::new(LeaderId::new(1, 1).to_committed(), index);
        Entry::new(log_id, EntryPayload::Normal(proposal))
    }

    fn indices(entries: &[Entry]) -> Vec<u64> {
        entries.iter().map(index).collect()
    }

    #[test]
    fn keeps_what_is_not_written_and_a_bounded_rest() {
        let mut tail = Tail::default();
        let count = ENTRIES_MAX as u64 + 1000;
        for index in 10..10 + count {
            tail.push(entry(index, 1)).unwrap();
        }
        assert_eq!(tail.first(), Some(10));
        tail.written(500);
        assert_eq!(tail.first(), Some(500), "what is written goes while there is too much");
        tail.written(10 + count);
        assert_eq!(tail.first(), Some(10 + 1000), "and no more of it");
        for index in 10 + count..20 + count {
            tail.push(entry(index, BYTES_MAX)).unwrap();
        }
        tail.written(20 + count);
        assert_eq!(tail.first(), None, "one that is larger than all that is kept");
        assert_eq!(tail.bytes, 0);
        // Behind what was dropped, anything may come.
        tail.push(entry(9000, 1)).unwrap();
        assert_eq!(tail.push(entry(9002, 1)), Err(Hole));
        assert_eq!(tail.push(entry(9000, 1)), Err(Hole));
    }

    #[test]
    fn reads_a_range_up_to_so_many_bytes_and_always_one() {
        let mut tail = Tail::default();
        for index in 5..10 {
            tail.push(entry(index, 100)).unwrap();
        }
        let all = usize::MAX;
        assert_eq!(indices(&tail.read(5, 10, all)), [5, 6, 7, 8, 9]);
        assert_eq!(indices(&tail.read(7, 9, all)), [7, 8]);
        assert_eq!(indices(&tail.read(7, 10, 400)), [7, 8]);
        assert_eq!(indices(&tail.read(7, 10, 1)), [7]);
        assert_eq!(indices(&tail.read(10, 12, all)), [0u64; 0]);
        assert_eq!(indices(&tail.read(6, 6, all)), [0u64; 0]);
    }

    #[test]
    fn what_takes_the_place_of_a_truncated_entry_is_not_taken_for_written() {
        let mut tail = Tail::default();
        for index in 1..=5 {
            tail.push(entry(index, 1)).unwrap();
        }
        tail.written(6);
        tail.truncate(3);
        assert_eq!(tail.last().map(|last| last.index), Some(2));
        for index in 3..=4 {
            tail.push(entry(index, BYTES_MAX)).unwrap();
        }
        tail.written(3);
        assert_eq!(tail.first(), Some(3));
        tail.purge(4);
        assert_eq!(tail.first(), Some(4));
        tail.purge(9);
        assert_eq!((tail.first(), tail.bytes), (None, 0));
    }
}
