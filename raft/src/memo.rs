//! Rows that were read before, for as long as their base stands still.
//!
//! The commands of a batch look at the same few rows again and again: the project, its quota, the
//! cluster's level. Reading them once from RocksDB is enough.
//!
//! Invariant: what is kept is bounded, by [`ROWS_MAX`] rows of at most [`ROW_BYTES_MAX`] bytes.

use std::cell::RefCell;

use rustc_hash::FxHashMap;
use shoal_metadata::{Fault, Read, Rows, Table};

const ROWS_MAX: usize = 1024;
const ROW_BYTES_MAX: usize = 4 * 1024;

/// `None` where there is no such row. Nobody gains by keys that collide: there are few of them.
type Kept = FxHashMap<(Table, Vec<u8>), Option<Vec<u8>>>;

/// See the module's documentation. The base must not change while this lives.
#[derive(Debug)]
pub struct Memo<'a, R> {
    base: &'a R,
    rows: RefCell<Kept>,
}

impl<'a, R> Memo<'a, R> {
    pub fn new(base: &'a R) -> Self {
        Self { base, rows: RefCell::default() }
    }
}

impl<R: Read> Read for Memo<'_, R> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        let key = (table, key.to_vec());
        if let Some(row) = self.rows.borrow().get(&key) {
            return Ok(row.clone());
        }
        let row = self.base.get(table, &key.1)?;
        let mut rows = self.rows.borrow_mut();
        if rows.len() < ROWS_MAX && row.as_ref().is_none_or(|row| row.len() <= ROW_BYTES_MAX) {
            rows.insert(key, row.clone());
        }
        Ok(row)
    }

    fn scan(&self, table: Table, from: &[u8], prefix: &[u8], limit: usize) -> Result<Rows, Fault> {
        self.base.scan(table, from, prefix, limit)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Every row is `length` bytes long.
    struct Counting {
        gets: Cell<usize>,
        length: usize,
    }

    impl Read for Counting {
        fn get(&self, _: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
            self.gets.set(self.gets.get() + 1);
            Ok((key != b"none").then(|| vec![key[0]; self.length]))
        }

        fn scan(&self, _: Table, _: &[u8], _: &[u8], _: usize) -> Result<Rows, Fault> {
            Ok(Rows::new())
        }
    }

    #[test]
    fn a_row_and_its_absence_are_read_once_and_large_ones_are_not_kept() {
        let base = Counting { gets: Cell::new(0), length: 2 };
        let memo = Memo::new(&base);
        for _ in 0..3 {
            assert_eq!(memo.get(Table::Users, b"a").unwrap(), Some(vec![b'a'; 2]));
            assert_eq!(memo.get(Table::Users, b"none").unwrap(), None);
            assert_eq!(memo.get(Table::Images, b"a").unwrap(), Some(vec![b'a'; 2]));
        }
        assert_eq!(base.gets.get(), 3);
        let base = Counting { gets: Cell::new(0), length: ROW_BYTES_MAX + 1 };
        let memo = Memo::new(&base);
        for _ in 0..3 {
            assert_eq!(memo.get(Table::Users, b"a").unwrap().unwrap().len(), ROW_BYTES_MAX + 1);
        }
        assert_eq!((base.gets.get(), memo.rows.borrow().len()), (3, 0));
        let base = Counting { gets: Cell::new(0), length: 2 };
        let memo = Memo::new(&base);
        for n in 0..2 * ROWS_MAX {
            memo.get(Table::Users, &n.to_be_bytes()).unwrap();
        }
        assert_eq!(memo.rows.borrow().len(), ROWS_MAX);
    }
}
