//! Files that are to be changed: shown, written, noted, and put back.
//!
//! Invariants: a link stays one, and what it leads to is changed; a file keeps its owner, its group
//! and its mode.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use similar::TextDiff;

use super::{Engine, Error};
use crate::cache::sync_parent;
use crate::enrolment::{read_json, write_json};

/// Of new files: engines may run as somebody else, and there is no secret in them.
const MODE: u32 = 0o644;

/// What is to become of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Change {
    path: PathBuf,
    /// What was there before the first set-up; `None` for no file.
    before: Option<String>,
    after: String,
    /// In a note, what `after` takes the place of and an earlier set-up wrote: that is what stands
    /// there where a process ended between the note and the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replaced: Option<String>,
}

/// What was changed for one engine, kept in the agent's data folder.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Note {
    changes: Vec<Change>,
    /// Folders that were made for them, parents first.
    folders: Vec<PathBuf>,
}

/// What an engine has to read.
#[derive(Debug)]
pub struct Plan {
    engine: Engine,
    root: PathBuf,
    changes: Vec<Change>,
    /// What whoever asked for it has to do or to know, a sentence each.
    pub advice: Vec<String>,
}

impl Plan {
    pub(super) fn new(engine: Engine, root: &Path) -> Self {
        Self { engine, root: root.to_owned(), changes: Vec::new(), advice: Vec::new() }
    }

    pub(super) fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    /// Adds a file: `after` makes its text out of the one that it has now.
    pub(super) fn write(
        &mut self,
        absolute: &str,
        after: impl FnOnce(Option<&str>) -> Result<String, Error>,
    ) -> Result<(), Error> {
        let path = followed(self.path(absolute))?;
        self.check_inside(&path)?;
        let before = read(&path)?;
        let after = after(before.as_deref())?;
        self.changes.push(Change { path, before, after, replaced: None });
        Ok(())
    }

    /// Of an image that is being prepared, a link can lead to files of this host.
    fn check_inside(&self, path: &Path) -> Result<(), Error> {
        if self.root == Path::new("/") || !self.root.exists() {
            return Ok(());
        }
        let real = |path: &Path| fs::canonicalize(path).map_err(Error::io("looking at", path));
        let there = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(path);
        match real(there)?.starts_with(real(&self.root)?) {
            true => Ok(()),
            false => Err(Error::Outside { path: path.to_owned(), root: self.root.clone() }),
        }
    }

    /// Adds a file that is all ours, as its beginning `made` says. One that somebody else wrote is
    /// left alone, with a word.
    pub(super) fn write_own(
        &mut self,
        absolute: &str,
        made: &str,
        text: String,
    ) -> Result<(), Error> {
        let path = self.path(absolute);
        match read(&path)? {
            Some(before) if !before.starts_with(made) => {
                self.advice.push(format!("{} is yours, and was left as it is", path.display()));
                Ok(())
            }
            _ => self.write(absolute, |_| Ok(text)),
        }
    }

    /// Whether the engine reads all of it already.
    pub fn is_done(&self) -> bool {
        self.changes.iter().all(Change::is_done)
    }

    /// What would change, as a unified diff.
    pub fn diff(&self) -> String {
        let changed = self.changes.iter().filter(|change| !change.is_done());
        changed
            .map(|change| diff(&change.path, change.before.as_deref(), Some(&change.after)))
            .collect()
    }

    /// Writes the files, after a note of what they were in `data_dir`.
    ///
    /// # Errors
    /// Where one cannot be written; what was written can be undone.
    pub fn carry_out(&self, data_dir: &Path) -> Result<(), Error> {
        let note_path = note_path(data_dir, self.engine);
        let mut note: Note = read_json(&note_path)?.unwrap_or_default();
        for change in self.changes.iter().filter(|change| !change.is_done()) {
            match note.changes.iter_mut().find(|noted| noted.path == change.path) {
                // What was there before the first time is what an undo brings back, as long as
                // nobody else has changed it since.
                Some(noted) if noted.wrote(change.before.as_deref()) => {
                    noted.replaced.clone_from(&change.before);
                    noted.after.clone_from(&change.after);
                }
                Some(noted) => noted.clone_from(change),
                None => note.changes.push(change.clone()),
            }
            let mut missing: Vec<_> =
                change.path.ancestors().skip(1).take_while(|folder| !folder.exists()).collect();
            missing.reverse();
            for folder in missing {
                if !note.folders.iter().any(|noted| noted == folder) {
                    note.folders.push(folder.to_owned());
                }
            }
        }
        if let Some(folder) = note_path.parent() {
            fs::create_dir_all(folder).map_err(Error::io("making", folder))?;
        }
        write_json(&note_path, &note)?;
        for change in self.changes.iter().filter(|change| !change.is_done()) {
            write(&change.path, &change.after)?;
        }
        Ok(())
    }
}

impl Change {
    fn is_done(&self) -> bool {
        self.before.as_ref() == Some(&self.after)
    }

    /// Whether a set-up wrote what is there now.
    fn wrote(&self, now: Option<&str>) -> bool {
        now.is_some() && (now == Some(self.after.as_str()) || now == self.replaced.as_deref())
    }
}

/// What takes a set-up back.
#[derive(Debug)]
pub struct Undo {
    note_path: PathBuf,
    /// Each file that is not as it was, with what it holds now.
    changes: Vec<Change>,
    folders: Vec<PathBuf>,
}

impl Undo {
    /// `None` where nothing was set up.
    ///
    /// # Errors
    /// [`Error::Changed`] for a file that holds something else by now.
    pub fn read(data_dir: &Path, engine: Engine) -> Result<Option<Self>, Error> {
        let note_path = note_path(data_dir, engine);
        let Some(note) = read_json::<Note>(&note_path)? else { return Ok(None) };
        let mut changes = Vec::new();
        for change in note.changes {
            let now = read(&change.path)?;
            if now == change.before {
                continue; // It was never written, or is put back already.
            }
            match now.filter(|now| change.wrote(Some(now.as_str()))) {
                Some(now) => changes.push(Change { after: now, ..change }),
                None => return Err(Error::Changed(change.path)),
            }
        }
        Ok(Some(Self { note_path, changes, folders: note.folders }))
    }

    pub fn diff(&self) -> String {
        let back =
            |change: &Change| diff(&change.path, Some(&change.after), change.before.as_deref());
        self.changes.iter().map(back).collect()
    }

    /// Puts back what was there.
    ///
    /// # Errors
    /// Where a file cannot be written or removed; it can be tried again.
    pub fn carry_out(&self) -> Result<(), Error> {
        for change in &self.changes {
            match &change.before {
                Some(before) => write(&change.path, before)?,
                None => {
                    fs::remove_file(&change.path).map_err(Error::io("removing", &change.path))?;
                }
            }
        }
        for folder in self.folders.iter().rev() {
            // One with somebody else's files in it stays.
            let _ = fs::remove_dir(folder);
        }
        fs::remove_file(&self.note_path).map_err(Error::io("removing", &self.note_path))
    }
}

fn note_path(data_dir: &Path, engine: Engine) -> PathBuf {
    data_dir.join("setup").join(format!("{}.json", engine.as_str()))
}

/// The file itself, where `path` is a link to it. One that leads nowhere is refused: nobody says where
/// what is written should be.
fn followed(path: PathBuf) -> Result<PathBuf, Error> {
    match fs::symlink_metadata(&path) {
        Ok(found) if found.is_symlink() => {
            fs::canonicalize(&path).map_err(Error::io("following the link", &path))
        }
        _ => Ok(path),
    }
}

fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read(path) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(Error::NoText(path.to_owned())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("reading", path)(error)),
    }
}

/// Beside, synced, and renamed, with the owner and the rights that the file had.
fn write(path: &Path, text: &str) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(Error::io("making", folder))?;
    let put = || -> io::Result<()> {
        let found = fs::metadata(path).ok();
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(text.as_bytes())?;
        if let Some(found) = &found {
            fchown(file.as_file(), Some(found.uid()), Some(found.gid()))?;
        }
        // Last, since another owner can cost a file some of its mode.
        let mode = found.map_or(MODE, |found| found.permissions().mode());
        file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        sync_parent(path)
    };
    put().map_err(Error::io("writing", path))
}

fn diff(path: &Path, before: Option<&str>, after: Option<&str>) -> String {
    let name = |text: Option<&str>| match text {
        Some(_) => path.display().to_string(),
        None => "/dev/null".to_owned(),
    };
    TextDiff::from_lines(before.unwrap_or_default(), after.unwrap_or_default())
        .unified_diff()
        .header(&name(before), &name(after))
        .to_string()
}
