//! The folders of the state: which one is current, and how another takes its place.
//!
//! ```text
//! directory/
//!   log/             the log's database
//!   state.current    the name of the current state folder
//!   state-N/         a state database
//!   snapshots/N/     checkpoints of the state, to be sent
//!   incoming/N/      a snapshot that is being received
//! ```
//! Crash order of a switch: the new folder is complete and synced under `incoming`; it is renamed
//! to `state-N`; the directory is synced; `state.current` is replaced by rename; the directory is
//! synced; only then is the old folder removed. Whatever `state.current` does not name at the
//! start is rubbish of an interrupted switch and is removed, as are `snapshots` and `incoming`.
//!
//! Invariant: no number is given out twice while the process runs, also where the folder is opened
//! again: whoever still holds a folder of before removes that one in the end, and nobody else's.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tracing::warn;

use crate::error::Error;

const CURRENT: &str = "state.current";
const LOG: &str = "log";
const STATE_PREFIX: &str = "state-";
const SNAPSHOTS: &str = "snapshots";
const INCOMING: &str = "incoming";

/// The number of the next folder, of whatever kind. The first state has number 1.
static NEXT: AtomicU64 = AtomicU64::new(2);

/// The folder that all of a member's databases are in.
#[derive(Debug)]
pub struct Home {
    directory: PathBuf,
}

impl Home {
    /// Opens or makes the folder, and clears away what an interrupted switch left.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let make = |path: &Path| fs::create_dir_all(path).map_err(files("create", path));
        make(directory)?;
        for rubbish in [SNAPSHOTS, INCOMING] {
            let path = directory.join(rubbish);
            if path.exists() {
                fs::remove_dir_all(&path).map_err(files("remove", &path))?;
            }
            make(&path)?;
        }
        let home = Self { directory: directory.to_owned() };
        home.settle_state()?;
        Ok(home)
    }

    fn settle_state(&self) -> Result<(), Error> {
        let read = |path: &Path| fs::read_dir(path).map_err(files("read", path));
        let pointer = self.directory.join(CURRENT);
        let current = match fs::read_to_string(&pointer) {
            Ok(name) => Some(name.trim().to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(files("read", &pointer)(source)),
        };
        let current = current.unwrap_or_else(|| format!("{STATE_PREFIX}1"));
        for entry in read(&self.directory)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(number) = name.strip_prefix(STATE_PREFIX) {
                if name != current {
                    let path = entry.path();
                    fs::remove_dir_all(&path).map_err(files("remove", &path))?;
                } else if let Ok(number) = number.parse::<u64>() {
                    NEXT.fetch_max(number + 1, Ordering::Relaxed);
                }
            }
        }
        self.publish(&current).map_err(files("write", &pointer))
    }

    fn publish(&self, name: &str) -> io::Result<()> {
        let new = self.directory.join(format!("{CURRENT}.new"));
        let mut file = File::create(&new)?;
        file.write_all(name.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, self.directory.join(CURRENT))?;
        sync_folder(&self.directory)
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn log(&self) -> PathBuf {
        self.directory.join(LOG)
    }

    /// The folder of the state, as `state.current` names it.
    pub fn state(&self) -> io::Result<PathBuf> {
        let name = fs::read_to_string(self.directory.join(CURRENT))?;
        Ok(self.directory.join(name.trim()))
    }

    fn next() -> u64 {
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    /// A path for a checkpoint, which is not there yet.
    pub fn new_snapshot(&self) -> PathBuf {
        self.directory.join(SNAPSHOTS).join(Self::next().to_string())
    }

    /// A path for a snapshot to come, which is not there yet.
    pub fn new_incoming(&self) -> PathBuf {
        self.directory.join(INCOMING).join(Self::next().to_string())
    }

    /// Makes a complete, synced folder the current state; answers where it is now.
    pub fn switch_to(&self, incoming: &Path) -> io::Result<PathBuf> {
        let name = format!("{STATE_PREFIX}{}", Self::next());
        let path = self.directory.join(&name);
        fs::rename(incoming, &path)?;
        sync_folder(&self.directory)?;
        self.publish(&name)?;
        Ok(path)
    }
}

/// Whether a member's databases are in `directory`.
pub fn has_databases(directory: &Path) -> bool {
    [CURRENT, LOG].iter().all(|name| directory.join(name).exists())
}

/// Makes the names in a folder last.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn files(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Files { doing, path, source }
}

/// A folder that is removed when nobody uses it any more, unless it was kept.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    kept: AtomicBool,
}

impl Scratch {
    pub fn new(path: PathBuf) -> Self {
        Self { path, kept: AtomicBool::new(false) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// From now on the folder belongs to someone else.
    pub fn keep(&self) {
        self.kept.store(true, Ordering::Release);
    }

    /// The folder is not wanted any more: it goes when the last user does.
    pub fn retire(&self) {
        self.kept.store(false, Ordering::Release);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.kept.load(Ordering::Acquire)
            && let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(path = %self.path.display(), %error, "cannot remove a folder");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_that_was_interrupted_leaves_the_old_state() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        let first = home.state().unwrap();
        fs::create_dir_all(&first).unwrap();
        // Killed after the rename and before the new name was published.
        fs::create_dir_all(root.path().join("state-9")).unwrap();
        let half = home.new_incoming();
        fs::create_dir_all(&half).unwrap();
        drop(home);

        let home = Home::open(root.path()).unwrap();
        assert_eq!(home.state().unwrap(), first);
        assert!(first.exists());
        assert!(!root.path().join("state-9").exists());
        assert!(!half.exists());
    }

    #[test]
    fn what_is_held_of_an_earlier_opening_removes_nothing_of_a_later_one() {
        let root = tempfile::tempdir().unwrap();
        let make = || {
            let home = Home::open(root.path()).unwrap();
            let scratch = Scratch::new(home.new_snapshot());
            fs::create_dir_all(scratch.path()).unwrap();
            scratch
        };
        let held = make();
        let new = make();
        drop(held);
        assert!(new.path().exists());
    }

    #[test]
    fn a_switch_takes_effect_and_lasts() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::open(root.path()).unwrap();
        let old = home.state().unwrap();
        fs::create_dir_all(&old).unwrap();
        let incoming = home.new_incoming();
        fs::create_dir_all(&incoming).unwrap();
        let new = home.switch_to(&incoming).unwrap();
        assert_eq!(home.state().unwrap(), new);
        drop(home);

        let home = Home::open(root.path()).unwrap();
        assert_eq!(home.state().unwrap(), new);
        assert!(!old.exists());
        assert_ne!(home.new_incoming(), new);
    }
}
