//! Writes laid over a base that is only read.
//!
//! Invariant: reading through the transaction sees its own writes; the base never changes. Who
//! made it takes the [`Writes`] out and stores them in one piece, or drops them.

use std::collections::BTreeMap;
use std::ops::Bound;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::{decode_row, encode_row};
use crate::table::{Fault, Read, Rows, Table};

/// Rows to store, or to remove where there is `None`; ordered.
pub type Writes = BTreeMap<(Table, Vec<u8>), Option<Vec<u8>>>;

/// See the module's documentation.
#[derive(Debug)]
pub struct Transaction<'a, R: Read> {
    base: &'a R,
    writes: Writes,
}

impl<'a, R: Read> Transaction<'a, R> {
    pub fn new(base: &'a R) -> Self {
        Self { base, writes: Writes::new() }
    }

    /// What was written, to be stored in one piece.
    pub fn into_writes(self) -> Writes {
        self.writes
    }

    /// How many rows were written or removed so far.
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Takes over the writes of a transaction that was laid over this one.
    pub(crate) fn absorb(&mut self, writes: Writes) {
        self.writes.extend(writes);
    }

    pub(crate) fn put_bytes(&mut self, table: Table, key: impl Into<Vec<u8>>, row: Vec<u8>) {
        self.writes.insert((table, key.into()), Some(row));
    }

    pub(crate) fn put<T: Serialize>(&mut self, table: Table, key: impl Into<Vec<u8>>, row: &T) {
        self.put_bytes(table, key, encode_row(row));
    }

    /// An index entry: the key says it all.
    pub(crate) fn mark(&mut self, table: Table, key: impl Into<Vec<u8>>) {
        self.put_bytes(table, key, Vec::new());
    }

    pub(crate) fn remove(&mut self, table: Table, key: impl Into<Vec<u8>>) {
        self.writes.insert((table, key.into()), None);
    }

    pub(crate) fn has(&self, table: Table, key: &[u8]) -> Result<bool, Fault> {
        Ok(self.get(table, key)?.is_some())
    }
}

/// Reads a row and takes it apart.
pub(crate) fn row<T: DeserializeOwned>(
    read: &impl Read,
    table: Table,
    key: &[u8],
) -> Result<Option<T>, Fault> {
    read.get(table, key)?.map(|bytes| decoded(table, &bytes)).transpose()
}

pub(crate) fn decoded<T: DeserializeOwned>(table: Table, bytes: &[u8]) -> Result<T, Fault> {
    decode_row(bytes).map_err(|source| Fault::Row { table, source })
}

impl<R: Read> Read for Transaction<'_, R> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        match self.writes.get(&(table, key.to_vec())) {
            Some(written) => Ok(written.clone()),
            None => self.base.get(table, key),
        }
    }

    fn scan(&self, table: Table, from: &[u8], prefix: &[u8], limit: usize) -> Result<Rows, Fault> {
        let start = (table, from.max(prefix).to_vec());
        let ours: Vec<_> = self
            .writes
            .range((Bound::Included(start), Bound::Unbounded))
            .take_while(|((of, key), _)| *of == table && key.starts_with(prefix))
            .collect();
        let removed = ours.iter().filter(|(_, row)| row.is_none()).count();
        // So many of the base's rows may be gone that a page needs this many of them.
        let base = self.base.scan(table, from, prefix, limit.saturating_add(removed))?;
        let mut merged: BTreeMap<Vec<u8>, Vec<u8>> = base.into_iter().collect();
        for ((_, key), row) in ours {
            match row {
                Some(row) => merged.insert(key.clone(), row.clone()),
                None => merged.remove(key),
            };
        }
        Ok(merged.into_iter().take(limit).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;

    #[test]
    fn a_page_is_full_though_rows_of_the_base_were_removed() {
        let mut base = Memory::default();
        let mut first = Transaction::new(&base);
        for n in 0..6u8 {
            first.mark(Table::Users, vec![b'a', n]);
        }
        let writes = first.into_writes();
        base.commit(writes);
        let mut second = Transaction::new(&base);
        second.remove(Table::Users, vec![b'a', 0]);
        second.remove(Table::Users, vec![b'a', 2]);
        second.mark(Table::Users, vec![b'a', 9]);
        second.mark(Table::Users, vec![b'b']);
        let keys = |limit| -> Vec<u8> {
            let rows = second.scan(Table::Users, b"", b"a", limit).unwrap();
            rows.into_iter().map(|(key, _)| key[1]).collect()
        };
        assert_eq!(keys(3), [1, 3, 4]);
        assert_eq!(keys(10), [1, 3, 4, 5, 9]);
        let writes = second.into_writes();
        base.commit(writes);
        assert_eq!(base.rows().count(), 6);
    }
}
