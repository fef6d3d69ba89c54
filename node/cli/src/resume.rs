//! Remembers an upload, so that the same command goes on where it stopped, or sees that it is done.
//!
//! Invariant: a session is resumed only for the same file (path, length, time of change), the same
//! image and the same cluster; what parts are safe is the node's word, never this file's.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use shoal_content::{Digest, ImageId, ImageReference, UploadId};

use crate::config::replace;
use crate::error::Error;

/// Uploads that are remembered, finished ones among them.
const SESSIONS_MAX: usize = 256;

/// A file, or what takes its place, as it was when its upload began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    pub path: PathBuf,
    pub bytes: u64,
    modified_s: i64,
    modified_ns: i64,
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
            path,
        })
    }

    /// What another cluster gives at `url`: as long as its entity tag stays, so do its bytes.
    pub fn of_download(url: &str, etag: &str, bytes: u64) -> Self {
        Self { path: format!("{url} {etag}").into(), bytes, modified_s: 0, modified_ns: 0 }
    }
}

/// An upload under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub source: Source,
    pub image: ImageId,
    pub upload: UploadId,
    pub version: String,
    /// The version's digest, once there is one: the same upload again has nothing to do then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Digest>,
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

    /// The session kept here, if it is one of `source` as it is now.
    pub fn load(&self, source: &Source) -> Option<Session> {
        let session: Session = serde_json::from_slice(&fs::read(&self.0).ok()?).ok()?;
        (session.source == *source).then_some(session)
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
        // Whoever else removed it had the same in mind.
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_not_resumed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("disk");
        fs::write(&file, b"one").unwrap();
        let source = Source::look(&file).unwrap();
        let reference: ImageReference = "a/b:c".parse().unwrap();
        let place = Place::of(folder.path(), "https://a/", &source, &reference);
        let session = Session {
            source: source.clone(),
            image: ImageId::from_uuid(Default::default()),
            upload: UploadId::from_uuid(Default::default()),
            version: "1".into(),
            finished: None,
        };
        assert_eq!(place.load(&source), None);
        place.save(&session).unwrap();
        assert_eq!(place.load(&source), Some(session));
        fs::write(&file, b"other").unwrap();
        assert_eq!(place.load(&Source::look(&file).unwrap()), None);
        place.clear().unwrap();
        place.clear().unwrap();
        assert_eq!(place.load(&source), None);
    }
}
