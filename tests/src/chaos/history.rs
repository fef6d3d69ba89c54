//! What the clients saw, on one clock.
//!
//! A tag is one register, a manifest's being there another. A command that touches several is
//! written into each, which is sound: where the whole can be put into an order, each part can.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::linear::{Action, Operation, Value};

/// What a history is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Register {
    Tag { repository: usize, tag: usize },
    Manifest { repository: usize, manifest: Value },
}

/// An image that was pushed.
#[derive(Debug, Clone)]
pub struct Push {
    pub repository: usize,
    pub name: Value,
    pub digest: String,
    pub manifest: Vec<u8>,
}

/// How an operation ended, for the summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    Done,
    /// With this status; 0 is that it was never sent.
    Refused(u16),
    Unknown,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::Refused(0) => f.write_str("not sent"),
            Self::Refused(status) => write!(f, "refused by {status}"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

#[derive(Debug, Default)]
struct Written {
    registers: BTreeMap<Register, Vec<Operation>>,
    names: HashMap<String, Value>,
    acknowledged: Vec<Arc<Push>>,
    doomed: BTreeSet<Value>,
    wrong: Vec<String>,
    endings: BTreeMap<(&'static str, Ending), usize>,
}

/// Shared by all clients.
#[derive(Debug)]
pub struct History {
    began: Instant,
    written: Mutex<Written>,
}

impl Default for History {
    fn default() -> Self {
        Self { began: Instant::now(), written: Mutex::default() }
    }
}

impl History {
    pub fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The history's own name of a manifest; before it is sent for the first time.
    pub fn name(&self, digest: &str) -> Value {
        let mut written = self.written.lock();
        let next = written.names.len() as Value;
        *written.names.entry(digest.to_owned()).or_insert(next)
    }

    /// The name of a manifest that was served: one that nobody pushed is wrong.
    pub fn known(&self, digest: &str) -> Option<Value> {
        let name = self.written.lock().names.get(digest).copied();
        if name.is_none() {
            self.wrong(format!("{digest} was served and never pushed"));
        }
        name
    }

    pub fn add(&self, register: Register, operation: Operation) {
        self.written.lock().registers.entry(register).or_default().push(operation);
    }

    pub fn acknowledge(&self, push: Arc<Push>) {
        self.written.lock().acknowledged.push(push);
    }

    /// From now on, a deletion of the manifest may take effect.
    pub fn doom(&self, name: Value) {
        self.written.lock().doomed.insert(name);
    }

    pub fn is_doomed(&self, name: Value) -> bool {
        self.written.lock().doomed.contains(&name)
    }

    /// Something that no order of events explains.
    pub fn wrong(&self, what: String) {
        self.written.lock().wrong.push(what);
    }

    pub fn count(&self, operation: &'static str, ending: Ending) {
        *self.written.lock().endings.entry((operation, ending)).or_default() += 1;
    }

    /// All operations so far that were done.
    pub fn done(&self) -> usize {
        let written = self.written.lock();
        let done = written.endings.iter().filter(|((_, ending), _)| *ending == Ending::Done);
        done.map(|(_, count)| count).sum()
    }

    pub fn acknowledged(&self) -> Vec<Arc<Push>> {
        self.written.lock().acknowledged.clone()
    }

    /// The digests of all manifests that were sent, whatever became of them.
    pub fn manifests(&self) -> Vec<String> {
        self.written.lock().names.keys().cloned().collect()
    }

    /// One of them, by any number.
    pub fn one_acknowledged(&self, number: usize) -> Option<Arc<Push>> {
        let written = self.written.lock();
        let index = number.checked_rem(written.acknowledged.len())?;
        Some(written.acknowledged[index].clone())
    }

    pub fn registers(&self) -> BTreeMap<Register, Vec<Operation>> {
        self.written.lock().registers.clone()
    }

    pub fn all_wrong(&self) -> Vec<String> {
        self.written.lock().wrong.clone()
    }

    /// `pull: 512 done, 3 refused, 9 unknown`, line by line.
    pub fn summary(&self) -> String {
        let mut lines = BTreeMap::<&str, Vec<String>>::new();
        for ((operation, ending), count) in &self.written.lock().endings {
            lines.entry(operation).or_default().push(format!("{count} {ending}"));
        }
        lines.iter().map(|(name, all)| format!("{name}: {}\n", all.join(", "))).collect()
    }
}

/// An operation between two times; `returned` is missing where the outcome is.
pub fn operation(client: usize, action: Action, called: u64, returned: Option<u64>) -> Operation {
    Operation { client, action, called, returned }
}
