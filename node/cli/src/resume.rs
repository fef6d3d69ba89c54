//! Remembers an upload, so that the same command goes on where it stopped, or sees that it is done.
//!
//! Invariants: a session is resumed only for the same file (path, length, times of change), the
//! same image and the same cluster, and by one call at a time; what parts are safe is the node's
//! word, never this file's.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use shoal_content::{Digest, ImageId, ImageReference, UploadId};

use crate::alone::open_alone;
use crate::config::{make_folder, replace};
use crate::error::Error;

/// Uploads that are remembered, finished ones among them.
const SESSIONS_MAX: usize = 256;
const LOCK_EXTENSION: &str = "lock";

/// A file, or what takes its place, as it was when its upload began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    pub path: PathBuf,
    pub bytes: u64,
    modified_s: i64,
    modified_ns: i64,
    /// When its row in the file system changed, which nobody can set back: builds that can be
    /// repeated give every disk the same length and the same time.
    #[serde(default)]
    changed_s: i64,
    #[serde(default)]
    changed_ns: i64,
}

impl Source {
    pub fn look(path: &Path) -> Result<Self, Error> {
        let path = fs::canonicalize(path).map_err(Error::file("opening", path))?;
        let metadata = fs::metadata(&path).map_err(Error::file("opening", &path))?;
        if !metadata.is_file() {
            return Err(Error::Usage(format!("{} is not a file", path.display())));
        }
        if metadata.len() == 0 {
            return Err(Error::Usage(format!(
                "{} is empty; a disk image has at least one byte",
                path.display()
            )));
        }
        Ok(Self {
            bytes: metadata.len(),
            modified_s: metadata.mtime(),
            modified_ns: metadata.mtime_nsec(),
            changed_s: metadata.ctime(),
            changed_ns: metadata.ctime_nsec(),
            path,
        })
    }

    /// What another cluster gives at `url`: as long as its entity tag stays, so do its bytes.
    pub fn of_download(url: &str, etag: &str, bytes: u64) -> Self {
        let path = format!("{url} {etag}").into();
        Self { path, bytes, modified_s: 0, modified_ns: 0, changed_s: 0, changed_ns: 0 }
    }

    /// Whether nobody has written to the file since. A link or a right that changes says nothing
    /// about its bytes.
    pub fn is_unwritten(&self, now: &Metadata) -> bool {
        (now.len(), now.mtime(), now.mtime_nsec())
            == (self.bytes, self.modified_s, self.modified_ns)
    }
}

/// An upload under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub source: Source,
    pub image: ImageId,
    pub upload: UploadId,
    pub version: String,
    /// A hash of what else was ordered: tags, changelog and the like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<String>,
    /// The version's digest, once there is one: the same upload again has nothing to do then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Digest>,
}

impl Session {
    /// Where it is in the API.
    pub fn path(&self) -> String {
        path_of(self.image, self.upload)
    }
}

/// Where an upload is in the API.
pub fn path_of(image: ImageId, upload: UploadId) -> String {
    format!("api/v1/images/{image}/versions/upload/{upload}")
}

/// Where the session of one upload is kept.
#[derive(Debug)]
pub struct Place(PathBuf);

impl Place {
    /// One place for each cluster, file and image.
    pub fn of(folder: &Path, cluster: &str, source: &Source, reference: &ImageReference) -> Self {
        let key = format!("{cluster}\n{}\n{reference}", source.path.display());
        Self(folder.join(format!("{}.json", &hex::encode(Sha256::digest(key))[..32])))
    }

    /// Keeps other calls out until what this gives is dropped.
    ///
    /// # Errors
    /// Where another call has it.
    pub fn hold(&self) -> Result<Held, Error> {
        if let Some(folder) = self.0.parent() {
            make_folder(folder)?;
        }
        let path = self.0.with_extension(LOCK_EXTENSION);
        match open_alone(&path)? {
            Some(file) => Ok(Held { path, _file: file }),
            None => {
                let reason = "another call sends this file to the same name; let that one end, \
                              or stop it";
                Err(Error::Failed { what: "the upload".into(), reason: reason.into() })
            }
        }
    }

    /// The session kept here, if it is one of `source` as it is now.
    pub fn load(&self, source: &Source) -> Option<Session> {
        self.last().filter(|session| session.source == *source)
    }

    /// The session kept here, whatever has become of its file.
    pub fn last(&self) -> Option<Session> {
        serde_json::from_slice(&fs::read(&self.0).ok()?).ok()
    }

    pub fn save(&self, session: &Session) -> Result<(), Error> {
        if let Some(folder) = self.0.parent() {
            forget_oldest(folder);
        }
        let text = serde_json::to_vec_pretty(session).map_err(|e| Error::Answer(e.to_string()))?;
        replace(&self.0, &text)
    }

    pub fn clear(&self) -> Result<(), Error> {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::file("removing", &self.0)(error))
            }
            _ => Ok(()),
        }
    }
}

/// That no other call works on the same upload.
#[derive(Debug)]
pub struct Held {
    path: PathBuf,
    _file: File,
}

impl Drop for Held {
    fn drop(&mut self) {
        // Before the lock goes with the file; one that stays behind keeps nobody out.
        let _ = fs::remove_file(&self.path);
    }
}

/// Keeps the folder within [`SESSIONS_MAX`]; what is forgotten is only uploaded from the start.
fn forget_oldest(folder: &Path) {
    let Ok(found) = fs::read_dir(folder) else { return };
    let files = found.filter_map(|file| {
        let file = file.ok()?;
        Some((file.metadata().ok()?.modified().ok()?, file.path()))
    });
    let mut files: Vec<_> = files.collect();
    files.sort();
    let over = (files.len() + 1).saturating_sub(SESSIONS_MAX);
    for (_, path) in &files[..over] {
        // A lock that a call has is in use, however old it is; one that a killed call left is not.
        let is_lock = path.extension().is_some_and(|end| end == LOCK_EXTENSION);
        let lock = is_lock.then(|| open_alone(path));
        if matches!(lock, Some(Ok(None) | Err(_))) {
            continue;
        }
        // Whoever else removed it had the same in mind.
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    fn session(source: &Source) -> Session {
        Session {
            source: source.clone(),
            image: ImageId::from_uuid(Default::default()),
            upload: UploadId::from_uuid(Default::default()),
            version: "1".into(),
            order: None,
            finished: None,
        }
    }

    fn place(folder: &Path, source: &Source) -> Place {
        let reference: ImageReference = "a/b:c".parse().unwrap();
        Place::of(folder, "https://a/", source, &reference)
    }

    #[test]
    fn a_changed_file_is_not_resumed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("disk");
        fs::write(&file, b"one").unwrap();
        let source = Source::look(&file).unwrap();
        let place = place(folder.path(), &source);
        let session = session(&source);
        assert_eq!(place.load(&source), None);
        place.save(&session).unwrap();
        assert_eq!(place.load(&source), Some(session.clone()));
        fs::write(&file, b"other").unwrap();
        assert_eq!(place.load(&Source::look(&file).unwrap()), None);
        assert_eq!(place.last(), Some(session), "though it is known what to give up");
        place.clear().unwrap();
        place.clear().unwrap();
        assert_eq!(place.load(&source), None);
    }

    #[test]
    fn another_disk_of_the_same_length_and_time_is_not_resumed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("disk");
        fs::write(&file, b"one").unwrap();
        let source = Source::look(&file).unwrap();
        let place = place(folder.path(), &source);
        place.save(&session(&source)).unwrap();
        let modified = fs::metadata(&file).unwrap().modified().unwrap();
        let begun = Instant::now();
        // A file system's clock may stand still for some milliseconds.
        loop {
            fs::write(&file, b"two").unwrap();
            let written = fs::OpenOptions::new().write(true).open(&file).unwrap();
            written.set_modified(modified).unwrap();
            if place.load(&Source::look(&file).unwrap()).is_none() {
                break;
            }
            assert!(begun.elapsed() < DEADLINE, "another content is taken for the same");
        }
        let now = fs::metadata(&file).unwrap();
        assert!(source.is_unwritten(&now), "its length and time are what they were");
        fs::write(&file, b"three").unwrap();
        assert!(!source.is_unwritten(&fs::metadata(&file).unwrap()));
    }

    #[test]
    fn two_calls_do_not_send_one_file_to_one_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("disk");
        fs::write(&file, b"one").unwrap();
        let source = Source::look(&file).unwrap();
        let uploads = folder.path().join("uploads");
        let place = place(&uploads, &source);
        let held = place.hold().unwrap();
        let refused = place.hold().unwrap_err().to_string();
        assert!(refused.contains("another call"), "{refused}");
        let other = Place::of(&uploads, "https://other/", &source, &"a/b:c".parse().unwrap());
        other.hold().unwrap();
        drop(held);
        place.hold().unwrap();
        assert_eq!(fs::read_dir(&uploads).unwrap().count(), 0, "no lock stays behind");
    }

    #[test]
    fn old_sessions_go_and_locks_in_use_stay() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("disk");
        fs::write(&file, b"one").unwrap();
        let source = Source::look(&file).unwrap();
        let uploads = folder.path().join("uploads");
        let place = place(&uploads, &source);
        let held = place.hold().unwrap();
        fs::write(uploads.join("left.lock"), b"").unwrap();
        let long_ago = std::time::SystemTime::UNIX_EPOCH;
        for path in [held.path.clone(), uploads.join("left.lock")] {
            let old = fs::OpenOptions::new().write(true).open(path).unwrap();
            old.set_modified(long_ago).unwrap();
        }
        for number in 0..SESSIONS_MAX {
            fs::write(uploads.join(format!("{number}.json")), b"{}").unwrap();
        }
        place.save(&session(&source)).unwrap();
        assert!(held.path.exists() && !uploads.join("left.lock").exists());
        let count = fs::read_dir(&uploads).unwrap().count();
        assert!(count <= SESSIONS_MAX + 1, "{count} files");
    }
}
