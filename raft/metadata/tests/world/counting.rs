//! What a question costs, in rows that are read for it.

use std::cell::Cell;

use shoal_metadata::*;

/// Rows that count how many of them are read.
pub struct Counting<'a> {
    rows: &'a Memory,
    pub read: Cell<usize>,
}

impl<'a> Counting<'a> {
    pub fn of(rows: &'a Memory) -> Self {
        Self { rows, read: Cell::new(0) }
    }
}

impl Read for Counting<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        self.read.update(|read| read + 1);
        self.rows.get(table, key)
    }

    fn scan(&self, table: Table, from: &[u8], prefix: &[u8], limit: usize) -> Result<Rows, Fault> {
        let rows = self.rows.scan(table, from, prefix, limit)?;
        self.read.update(|read| read + 1 + rows.len());
        Ok(rows)
    }
}
