//! The tables in memory, for tests, simulation, and the few rows that a restore looks up.
//!
//! Non-goal: durability; `shoal-raft` has the tables that last.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::table::{Fault, Read, Rows, Table};
use crate::transaction::Writes;

/// All rows, ordered by table and key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    rows: BTreeMap<(Table, Vec<u8>), Vec<u8>>,
}

impl Memory {
    /// Takes over what a transaction wrote.
    pub fn commit(&mut self, writes: Writes) {
        for (key, row) in writes {
            match row {
                Some(row) => self.rows.insert(key, row),
                None => self.rows.remove(&key),
            };
        }
    }

    /// Every row there is, ordered.
    pub fn rows(&self) -> impl Iterator<Item = (Table, &[u8], &[u8])> {
        self.rows.iter().map(|((table, key), row)| (*table, key.as_slice(), row.as_slice()))
    }
}

impl Read for Memory {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        Ok(self.rows.get(&(table, key.to_vec())).cloned())
    }

    fn scan(&self, table: Table, from: &[u8], prefix: &[u8], limit: usize) -> Result<Rows, Fault> {
        let start = (table, from.max(prefix).to_vec());
        let rows = self.rows.range((Bound::Included(start), Bound::Unbounded));
        Ok(rows
            .take_while(|((of, key), _)| *of == table && key.starts_with(prefix))
            .take(limit)
            .map(|((_, key), row)| (key.clone(), row.clone()))
            .collect())
    }
}
