//! Rows that were read before, so that they are not read again.
//!
//! Commands look at the same few rows again and again: the project, its quota, the cluster's level.
//! Reading them once from RocksDB is enough. What was kept is handed on from batch to batch, brought
//! up to date with what each has written.
//!
//! Invariants: what is kept is what the base has, as long as whoever writes to the base says so
//! ([`Kept::update`]) or drops what was kept. It is bounded, by twice [`ROWS_MAX`] rows of at most
//! [`ROW_BYTES_MAX`] bytes; the rows that nobody asks for any more go.

use std::cell::RefCell;

use rustc_hash::FxHashMap;
use shoal_metadata::{Fault, Read, Rows, Table, Writes};

const ROWS_MAX: usize = 512;
const ROW_BYTES_MAX: usize = 4 * 1024;

/// By table and key; `None` where there is no such row. Nobody gains by keys that collide: there
/// are few of them.
type Generation = FxHashMap<Table, FxHashMap<Vec<u8>, Option<Vec<u8>>>>;

/// The rows themselves. Those that are asked for stay with the young; when these are many, they are
/// the old ones from then on, and the old ones before them go.
#[derive(Debug, Default)]
pub struct Kept {
    young: Generation,
    old: Generation,
    young_rows: usize,
}

impl Kept {
    fn get(&mut self, table: Table, key: &[u8]) -> Option<Option<Vec<u8>>> {
        if let Some(row) = self.young.get(&table).and_then(|rows| rows.get(key)) {
            return Some(row.clone());
        }
        let (key, row) = self.old.get_mut(&table)?.remove_entry(key)?;
        self.insert(table, key, row.clone());
        Some(row)
    }

    fn insert(&mut self, table: Table, key: Vec<u8>, row: Option<Vec<u8>>) {
        if row.as_ref().is_some_and(|row| row.len() > ROW_BYTES_MAX) {
            return;
        }
        if self.young_rows >= ROWS_MAX {
            std::mem::swap(&mut self.young, &mut self.old);
            // The tables keep their room.
            self.young.values_mut().for_each(FxHashMap::clear);
            self.young_rows = 0;
        }
        if self.young.entry(table).or_default().insert(key, row).is_none() {
            self.young_rows += 1;
        }
    }

    /// Takes in what is written to the base.
    pub fn update(&mut self, writes: &Writes) {
        for ((table, key), row) in writes {
            let known = |generation: &mut Generation| {
                generation.get_mut(table).is_some_and(|rows| rows.remove(key).is_some())
            };
            let (young, old) = (known(&mut self.young), known(&mut self.old));
            self.young_rows -= usize::from(young);
            if young || old {
                self.insert(*table, key.clone(), row.clone());
            }
        }
    }
}

/// See the module's documentation. The base must not change while this lives.
#[derive(Debug)]
pub struct Memo<'a, R> {
    base: &'a R,
    rows: RefCell<Kept>,
}

impl<'a, R> Memo<'a, R> {
    /// Over `base`, of which `kept` was read.
    pub fn new(base: &'a R, kept: Kept) -> Self {
        Self { base, rows: RefCell::new(kept) }
    }

    pub fn into_kept(self) -> Kept {
        self.rows.into_inner()
    }
}

impl<R: Read> Read for Memo<'_, R> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        if let Some(row) = self.rows.borrow_mut().get(table, key) {
            return Ok(row);
        }
        let row = self.base.get(table, key)?;
        self.rows.borrow_mut().insert(table, key.to_vec(), row.clone());
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

    fn rows(of: &Generation) -> usize {
        of.values().map(FxHashMap::len).sum()
    }

    #[test]
    fn a_row_and_its_absence_are_read_once_and_large_ones_are_not_kept() {
        let base = Counting { gets: Cell::new(0), length: 2 };
        let mut kept = Kept::default();
        for _ in 0..3 {
            let memo = Memo::new(&base, kept);
            assert_eq!(memo.get(Table::Users, b"a").unwrap(), Some(vec![b'a'; 2]));
            assert_eq!(memo.get(Table::Users, b"none").unwrap(), None);
            assert_eq!(memo.get(Table::Images, b"a").unwrap(), Some(vec![b'a'; 2]));
            kept = memo.into_kept();
        }
        assert_eq!(base.gets.get(), 3);
        let base = Counting { gets: Cell::new(0), length: ROW_BYTES_MAX + 1 };
        let memo = Memo::new(&base, Kept::default());
        for _ in 0..3 {
            assert_eq!(memo.get(Table::Users, b"a").unwrap().unwrap().len(), ROW_BYTES_MAX + 1);
        }
        assert_eq!((base.gets.get(), rows(&memo.into_kept().young)), (3, 0));
    }

    #[test]
    fn what_is_asked_for_stays_and_all_of_it_is_bounded() {
        let base = Counting { gets: Cell::new(0), length: 2 };
        let memo = Memo::new(&base, Kept::default());
        for n in 0..10 * ROWS_MAX {
            memo.get(Table::Users, &n.to_be_bytes()).unwrap();
            memo.get(Table::Images, b"again and again").unwrap();
        }
        assert_eq!(base.gets.get(), 10 * ROWS_MAX + 1);
        let kept = memo.into_kept();
        assert!(rows(&kept.young) <= ROWS_MAX && rows(&kept.old) <= ROWS_MAX);
        assert_eq!(rows(&kept.young), kept.young_rows);
    }

    #[test]
    fn what_was_written_is_what_is_read() {
        let base = Counting { gets: Cell::new(0), length: 2 };
        let memo = Memo::new(&base, Kept::default());
        for key in [&b"a"[..], b"b", b"none"] {
            memo.get(Table::Users, key).unwrap();
        }
        let mut kept = memo.into_kept();
        let written = |key: &[u8], row: Option<&[u8]>| {
            ((Table::Users, key.to_vec()), row.map(<[u8]>::to_vec))
        };
        let writes =
            [written(b"a", Some(b"new")), written(b"b", None), written(b"none", Some(b"there"))];
        kept.update(&Writes::from(writes));
        let memo = Memo::new(&base, kept);
        assert_eq!(memo.get(Table::Users, b"a").unwrap(), Some(b"new".to_vec()));
        assert_eq!(memo.get(Table::Users, b"b").unwrap(), None);
        assert_eq!(memo.get(Table::Users, b"none").unwrap(), Some(b"there".to_vec()));
        assert_eq!(base.gets.get(), 3);
    }
}
