//! A frozen state of the tables, for as long as a request needs it.
//!
//! RocksDB's snapshot borrows its database. To own both without unsafe code, the snapshot lives
//! inside a future that owns the database too and answers one question each time it is polled: a
//! coroutine. Nothing else ever runs in it, and it never waits for anything but the next question.
//!
//! Invariant: every answer of a view, and of its clones, comes from the same moment.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use shoal_metadata::{Fault, Query, Read, Rows, Table};

use crate::store::{Frozen, Store};

const SOMETHING_ELSE: &str = "a view answered something else";

/// See the module's documentation. Cloning is cheap; clones show the same moment.
#[derive(Clone)]
pub struct View {
    /// `None` where there was no state to be seen.
    coroutine: Option<Arc<Mutex<Coroutine>>>,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").finish_non_exhaustive()
    }
}

struct Coroutine {
    run: Pin<Box<dyn Future<Output = ()> + Send>>,
    slot: Arc<Mutex<Slot>>,
}

enum Slot {
    Empty,
    Asked(Question),
    Answered(Answer),
}

enum Question {
    Get(Table, Vec<u8>),
    Scan { table: Table, from: Vec<u8>, prefix: Vec<u8>, limit: usize },
    Page { after: Option<(Table, Vec<u8>)>, bytes_max: usize },
    Applied,
}

enum Answer {
    Get(Result<Option<Vec<u8>>, Fault>),
    Scan(Result<Rows, Fault>),
    Page(Result<Vec<StoredRow>, Fault>),
    Applied(Result<u64, Fault>),
}

/// A row as it is stored, whatever table it is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRow {
    pub table: Table,
    pub key: Vec<u8>,
    pub row: Vec<u8>,
}

impl View {
    /// The state of `store` now.
    pub(crate) fn new(store: Arc<Store>) -> Self {
        let slot = Arc::new(Mutex::new(Slot::Empty));
        let mut run: Pin<Box<dyn Future<Output = ()> + Send>> =
            Box::pin(answer_questions(store, slot.clone()));
        // The first poll takes the snapshot: from here on the view stands still.
        let _pending = run.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        Self { coroutine: Some(Arc::new(Mutex::new(Coroutine { run, slot }))) }
    }

    /// Answers everything with a fault: the databases are closed.
    pub(crate) fn closed() -> Self {
        Self { coroutine: None }
    }

    /// What can be asked.
    pub fn query(&self) -> Query<'_, Self> {
        Query::new(self)
    }

    /// Rows of all tables in their order, of those after `after`: about `bytes_max` bytes of them,
    /// and one at least where there is one. For whoever wants everything, piece by piece.
    ///
    /// # Errors
    /// [`Fault::Storage`] where the storage fails.
    pub fn page(
        &self,
        after: Option<(Table, Vec<u8>)>,
        bytes_max: usize,
    ) -> Result<Vec<StoredRow>, Fault> {
        match self.ask(Question::Page { after, bytes_max })? {
            Answer::Page(answer) => answer,
            _ => Err(Fault::Storage(SOMETHING_ELSE.into())),
        }
    }

    /// Index of the last entry that this state has.
    ///
    /// # Errors
    /// [`Fault::Storage`] where the storage fails.
    pub fn applied_index(&self) -> Result<u64, Fault> {
        match self.ask(Question::Applied)? {
            Answer::Applied(answer) => answer,
            _ => Err(Fault::Storage(SOMETHING_ELSE.into())),
        }
    }

    fn ask(&self, question: Question) -> Result<Answer, Fault> {
        let closed = || Fault::Storage("the databases are closed".into());
        let mut coroutine = self.coroutine.as_ref().ok_or_else(closed)?.lock();
        *coroutine.slot.lock() = Slot::Asked(question);
        let _pending = coroutine.run.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        match std::mem::replace(&mut *coroutine.slot.lock(), Slot::Empty) {
            Slot::Answered(answer) => Ok(answer),
            Slot::Empty | Slot::Asked(_) => Err(Fault::Storage("a view did not answer".into())),
        }
    }
}

async fn answer_questions(store: Arc<Store>, slot: Arc<Mutex<Slot>>) {
    let frozen = Frozen(store.db().snapshot());
    poll_fn(|_| {
        let mut slot = slot.lock();
        if let Slot::Asked(question) = &*slot {
            let answer = match question {
                Question::Get(table, key) => Answer::Get(frozen.get(*table, key)),
                Question::Scan { table, from, prefix, limit } => {
                    Answer::Scan(frozen.scan(*table, from, prefix, *limit))
                }
                Question::Page { after, bytes_max } => {
                    Answer::Page(frozen.page(after.as_ref(), *bytes_max))
                }
                Question::Applied => Answer::Applied(frozen.applied_index()),
            };
            *slot = Slot::Answered(answer);
        }
        // Never done: it ends when the view is dropped.
        Poll::<()>::Pending
    })
    .await;
}

impl Read for View {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        match self.ask(Question::Get(table, key.to_vec()))? {
            Answer::Get(answer) => answer,
            _ => Err(Fault::Storage(SOMETHING_ELSE.into())),
        }
    }

    fn scan(&self, table: Table, from: &[u8], prefix: &[u8], limit: usize) -> Result<Rows, Fault> {
        let question =
            Question::Scan { table, from: from.to_vec(), prefix: prefix.to_vec(), limit };
        match self.ask(question)? {
            Answer::Scan(answer) => answer,
            _ => Err(Fault::Storage(SOMETHING_ELSE.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use rocksdb::WriteBatch;

    use super::*;

    #[test]
    fn stands_still_while_the_state_moves_and_may_outlive_its_scope() {
        fn takes_anywhere<T: Send + Sync + 'static>(value: T) -> T {
            value
        }
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(folder.path()).unwrap());
        let put = |key: &[u8], row: &[u8]| {
            let mut batch = WriteBatch::default();
            batch.put([&[Table::Users.number()], key].concat(), row);
            store.db().write(batch).unwrap();
        };
        put(b"a", b"1");
        let view = takes_anywhere(View::new(store.clone()));
        put(b"a", b"2");
        put(b"b", b"2");
        assert_eq!(view.get(Table::Users, b"a").unwrap(), Some(b"1".to_vec()));
        let clone = view.clone();
        let rows = std::thread::spawn(move || clone.scan(Table::Users, b"", b"", 9).unwrap());
        assert_eq!(rows.join().unwrap(), [(b"a".to_vec(), b"1".to_vec())]);
        // Page by page, all rows of all tables and nothing of Raft's own.
        let mut batch = WriteBatch::default();
        batch.put([&[0], b"applied".as_slice()].concat(), b"x");
        batch.put([&[Table::Agents.number()], b"z".as_slice()].concat(), vec![0; 100]);
        store.db().write(batch).unwrap();
        let (all, mut after, mut keys) = (View::new(store.clone()), None, Vec::new());
        loop {
            let page = all.page(after, 1).unwrap();
            let Some(last) = page.last() else { break };
            assert_eq!(page.len(), 1, "a page has what it may and no more");
            keys.push((last.table, last.key.clone(), last.row.len()));
            after = Some((last.table, last.key.clone()));
        }
        let row = |table, key: &[u8], bytes| (table, key.to_vec(), bytes);
        let expected =
            [row(Table::Users, b"a", 1), row(Table::Users, b"b", 1), row(Table::Agents, b"z", 100)];
        assert_eq!(keys, expected);
        assert_eq!(all.page(None, 1 << 20).unwrap().len(), 3);
        assert_eq!(View::new(store).scan(Table::Users, b"b", b"", 9).unwrap().len(), 1);
    }
}
