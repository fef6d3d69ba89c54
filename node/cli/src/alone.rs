//! Keeps two calls from working on one file at once: each holds a lock on it.
//!
//! Invariant: who holds the lock holds that of the file at the path, although whoever has it may
//! rename or remove that file. The kernel takes back what a killed call held.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::Error;

/// How often a file may be taken away between its opening and its lock.
const TRIES_MAX: u32 = 16;

/// Opens a file for appending, made where it is not there, and locks it until it is closed; none
/// where another call has it. A file system that knows no locks keeps nobody out.
pub fn open_alone(path: &Path) -> Result<Option<File>, Error> {
    for _ in 0..TRIES_MAX {
        let mut options = OpenOptions::new();
        options.create(true).append(true);
        let file = options.open(path).map_err(Error::file("opening", path))?;
        match file.try_lock() {
            Ok(()) if is_at(&file, path) => return Ok(Some(file)),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(_)) => return Ok(Some(file)),
        }
    }
    Ok(None)
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_one_calls_alone_until_it_is_closed_or_moved_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = open_alone(&path).unwrap();
        assert!(first.is_some());
        assert!(open_alone(&path).unwrap().is_none());
        drop(first);
        let second = open_alone(&path).unwrap();
        assert!(second.is_some());
        fs::rename(&path, folder.path().join("done")).unwrap();
        assert!(open_alone(&path).unwrap().is_some(), "another file stands there");
        drop(second);
    }
}
