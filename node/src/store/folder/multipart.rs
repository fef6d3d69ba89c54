//! Multipart uploads in a folder.
//!
//! Parts are written at their offsets into a file that becomes the object, so that completing an
//! upload copies nothing. The file `UUID` is made when the upload begins, and the process that began
//! it writes its parts there. Every other one – a node that goes on with the session, or the first
//! node after a restart – writes to `UUID.PROCESS`, and a part's tag says in which file it lies. So
//! what a client sends to one node cannot overwrite what another node has acknowledged, however
//! late it is written. Whoever completes the upload copies what lies in others' files to its own.
//!
//! Invariants: no process writes to a file that another one publishes; `UUID` is there as long as
//! the upload is, and of several that complete it only the one that takes that file away publishes.
//! Crash order: the file is whole and synced, `UUID` is taken away, the file gets its key. A crash
//! between the last two loses an upload that nobody was told to be complete.
//! Non-goal: parts that one process is given twice for one place; requests of a session take turns
//! at a node (see `registry`).

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::SystemTime;

use shoal_content::ObjectKey;
use uuid::Uuid;

use super::super::{Completion, StoreError, StoredPart, direct};
use super::{FolderStore, remove};

/// Between an upload's name and that of the process whose file it is.
const OF: char = '.';
/// As many uploads are known to have begun here; the parts of others get a file of their own.
pub(super) const BEGUN_MAX: u64 = 10_000;

/// Where a part lies, as its tag says it: `OFFSET`, or `OFFSET@PROCESS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    offset: u64,
    process: Option<Uuid>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.process {
            None => write!(f, "{}", self.offset),
            Some(process) => write!(f, "{}@{}", self.offset, process.simple()),
        }
    }
}

impl FromStr for Place {
    type Err = StoreError;

    fn from_str(tag: &str) -> Result<Self, StoreError> {
        let (offset, process) = match tag.split_once('@') {
            None => (tag, None),
            Some((offset, process)) => (offset, Some(parse(process)?)),
        };
        let offset = offset.parse().map_err(|_| StoreError::Multipart)?;
        Ok(Self { offset, process })
    }
}

/// Bytes of the object that lie in one file, where they lie in the object.
#[derive(Debug)]
struct Run {
    process: Option<Uuid>,
    range: Range<u64>,
}

/// # Errors
/// [`StoreError::Multipart`] where the parts do not follow each other without a gap.
fn runs(parts: &[StoredPart]) -> Result<Vec<Run>, StoreError> {
    let mut runs: Vec<Run> = Vec::new();
    let mut start = 0;
    for part in parts {
        let Place { offset, process } = part.tag.parse::<Place>()?;
        if offset != start {
            return Err(StoreError::Multipart);
        }
        let end = start + part.length;
        match runs.last_mut() {
            Some(run) if run.process == process => run.range.end = end,
            _ => runs.push(Run { process, range: start..end }),
        }
        start = end;
    }
    Ok(runs)
}

/// The names come back from the metadata, but a path is never made of unchecked text.
fn parse(name: &str) -> Result<Uuid, StoreError> {
    Uuid::try_parse(name).map_err(|_| StoreError::Multipart)
}

/// The upload that a partial file of this name belongs to.
pub(super) fn upload_of(name: &str) -> &str {
    name.split_once(OF).map_or(name, |(upload, _)| upload)
}

fn missing(error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::NotFound => StoreError::Multipart,
        _ => StoreError::Folder { doing: "opening a multipart upload", error },
    }
}

impl FolderStore {
    fn upload_file(&self, id: Uuid, process: Option<Uuid>) -> PathBuf {
        let id = id.simple();
        self.partial.join(match process {
            None => id.to_string(),
            Some(process) => format!("{id}{OF}{}", process.simple()),
        })
    }

    /// In whose file the parts lie that this process gets.
    fn own(&self, id: Uuid) -> Option<Uuid> {
        (!self.begun.contains_key(&id)).then_some(self.process)
    }

    pub(super) fn begin_now(&self) -> Result<String, StoreError> {
        self.ensure_space(0)?;
        let id = Uuid::new_v4();
        let created = File::create_new(self.upload_file(id, None)).and_then(|file| {
            file.sync_all()?;
            File::open(&self.partial)?.sync_all()
        });
        created.map_err(self.failed("beginning a multipart upload"))?;
        self.begun.insert(id, ());
        Ok(id.simple().to_string())
    }

    pub(super) fn put_part_now(
        &self,
        multipart: &str,
        offset: u64,
        bytes: &[u8],
    ) -> Result<Place, StoreError> {
        self.ensure_space(bytes.len() as u64)?;
        let id = parse(multipart)?;
        let process = self.own(id);
        let path = self.upload_file(id, process);
        let whole = OpenOptions::new().write(true).open(self.upload_file(id, None));
        let whole = whole.map_err(missing)?;
        let failed = self.failed("writing a part");
        let file = match process {
            None => whole,
            Some(_) => {
                // It tells how long ago anything came.
                whole.set_modified(SystemTime::now()).map_err(&failed)?;
                let own = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
                let folder = File::open(&self.partial).and_then(|folder| folder.sync_all());
                folder.map_err(&failed)?;
                own.map_err(&failed)?
            }
        };
        direct::write_at(&path, &file, bytes, offset).map_err(&failed)?;
        // A part is acknowledged to the metadata, so it must be there after a crash.
        file.sync_data().map_err(self.failed("syncing a part"))?;
        Ok(Place { offset, process })
    }

    pub(super) fn complete_now(
        &self,
        key: ObjectKey,
        multipart: &str,
        parts: &[StoredPart],
    ) -> Result<Completion, StoreError> {
        let id = parse(multipart)?;
        let runs = runs(parts)?;
        let (own, whole) = (self.own(id), self.upload_file(id, None));
        let path = self.upload_file(id, own);
        let failed = self.failed("publishing an object");
        if !whole.try_exists().map_err(&failed)? {
            return self.taken(key, id);
        }
        let file = OpenOptions::new().write(true).create(own.is_some()).truncate(false).open(&path);
        let file = file.map_err(missing)?;
        for run in runs.iter().filter(|run| run.process != own) {
            match self.copy(id, run, &file) {
                // Published by another node, just now.
                Err(StoreError::Multipart) if !whole.try_exists().map_err(&failed)? => {
                    return self.taken(key, id);
                }
                copied => copied?,
            }
        }
        let length = runs.last().map_or(0, |run| run.range.end);
        if file.metadata().map_err(&failed)?.len() < length {
            return Err(StoreError::Multipart);
        }
        // A part that was sent again, shorter, may have left bytes behind the end.
        file.set_len(length).map_err(&failed)?;
        self.settle(&file, key).map_err(&failed)?;
        if own.is_some() && !remove(&whole).map_err(&failed)? {
            return self.taken(key, id);
        }
        match self.publish(&path, &file, key) {
            Err(error) if own.is_none() && error.kind() == io::ErrorKind::NotFound => {
                return self.taken(key, id);
            }
            published => published.map_err(&failed)?,
        }
        self.begun.invalidate(&id);
        for run in runs.iter().filter(|run| run.process != own) {
            // What stays is dropped when it is old.
            let _ = remove(&self.upload_file(id, run.process));
        }
        Ok(Completion::Now)
    }

    /// Somebody else has completed or dropped the upload.
    fn taken(&self, key: ObjectKey, id: Uuid) -> Result<Completion, StoreError> {
        // Looked at before anything goes: parts that were acknowledged may lie there.
        let there = self.path(key).try_exists().map_err(self.failed("looking an object up"))?;
        let _ = remove(&self.upload_file(id, Some(self.process)));
        self.begun.invalidate(&id);
        if there { Ok(Completion::Before) } else { Err(StoreError::Multipart) }
    }

    /// Copies what lies in another process's file.
    fn copy(&self, id: Uuid, run: &Run, mut to: &File) -> Result<(), StoreError> {
        let length = run.range.end - run.range.start;
        self.ensure_space(length)?;
        let failed = self.failed("copying parts");
        let mut from = File::open(self.upload_file(id, run.process)).map_err(missing)?;
        from.seek(SeekFrom::Start(run.range.start)).map_err(&failed)?;
        to.seek(SeekFrom::Start(run.range.start)).map_err(&failed)?;
        let copied = io::copy(&mut from.take(length), &mut to).map_err(&failed)?;
        if copied == length { Ok(()) } else { Err(StoreError::Multipart) }
    }

    pub(super) fn abort_now(&self, multipart: &str) -> Result<(), StoreError> {
        let id = parse(multipart)?;
        let failed = self.failed("aborting a multipart upload");
        // Without it, no other file is begun.
        remove(&self.upload_file(id, None)).map_err(&failed)?;
        let name = id.simple().to_string();
        for entry in fs::read_dir(&self.partial).map_err(&failed)? {
            let entry = entry.map_err(&failed)?;
            if upload_of(&entry.file_name().to_string_lossy()) == name {
                remove(&entry.path()).map_err(&failed)?;
            }
        }
        self.begun.invalidate(&id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;
    use std::time::Duration;

    use bytes::Bytes;
    use shoal_content::{Timestamp, UploadId};
    use shoal_metadata::KeyOwner;

    use super::*;
    use crate::store::{BlobStore, read};

    const UNDER: KeyOwner = KeyOwner::Cluster;
    const PART: u64 = 300_000;

    fn open(folder: &Path) -> FolderStore {
        FolderStore::open(folder, 0).unwrap()
    }

    fn part(seed: u8) -> Bytes {
        Bytes::from(vec![seed; PART as usize])
    }

    fn key() -> ObjectKey {
        ObjectKey::Blob(UploadId::from_uuid(Uuid::new_v4()))
    }

    fn partial(folder: &Path) -> usize {
        fs::read_dir(folder.join("partial")).unwrap().count()
    }

    #[tokio::test]
    async fn what_another_node_is_sent_for_the_same_place_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        for at_the_other in [false, true] {
            let (here, there, key) = (open(folder.path()), open(folder.path()), key());
            let id = here.begin(key, &UNDER).await.unwrap();
            let first = here.put_part(key, &id, 1, 0, part(1)).await.unwrap();
            let late = there.put_part(key, &id, 1, 0, part(2)).await.unwrap();
            assert_ne!(first.tag, late.tag);
            let by = if at_the_other { &there } else { &here };
            let completed = by.complete(key, &id, &[first]).await.unwrap();
            assert_eq!(completed, Completion::Now);
            assert!(read(&here, key, 0..PART).await.unwrap() == part(1));
            let later = there.put_part(key, &id, 1, 0, part(2)).await;
            assert!(matches!(later, Err(StoreError::Multipart)), "{later:?}");
            assert!(read(&here, key, 0..PART).await.unwrap() == part(1));
        }
    }

    #[tokio::test]
    async fn an_upload_goes_on_at_other_nodes_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let nodes = [(); 3].map(|()| open(folder.path()));
        for last in &nodes {
            let key = key();
            let id = nodes[0].begin(key, &UNDER).await.unwrap();
            let mut parts = Vec::new();
            for (number, node) in [0, 0, 1, 1, 2, 0].into_iter().enumerate() {
                let (at, bytes) = (number as u64 * PART, part(number as u8));
                let put = nodes[node].put_part(key, &id, number as u32 + 1, at, bytes);
                parts.push(put.await.unwrap());
            }
            // One is missing, then they are out of order, then all is well.
            assert!(last.complete(key, &id, &parts[1..]).await.is_err());
            parts.swap(1, 2);
            assert!(last.complete(key, &id, &parts).await.is_err());
            parts.swap(1, 2);
            assert_eq!(last.complete(key, &id, &parts).await.unwrap(), Completion::Now);
            let whole: Vec<u8> = (0..6).flat_map(|number| part(number).to_vec()).collect();
            assert!(read(last, key, 0..6 * PART).await.unwrap() == whole);
            assert_eq!(partial(folder.path()), 0);
            for node in &nodes {
                let again = node.complete(key, &id, &parts).await.unwrap();
                assert_eq!(again, Completion::Before);
            }
        }
    }

    #[tokio::test]
    async fn of_two_that_complete_an_upload_with_different_ends_one_does() {
        let folder = tempfile::tempdir().unwrap();
        for quicker in 0..2 {
            let (nodes, key) = ([(); 2].map(|()| open(folder.path())), key());
            let id = nodes[0].begin(key, &UNDER).await.unwrap();
            let first = nodes[0].put_part(key, &id, 1, 0, part(1)).await.unwrap();
            let mut ends = Vec::new();
            for (node, seed) in nodes.iter().zip([2, 3]) {
                let end = node.put_part(key, &id, 2, PART, part(seed)).await.unwrap();
                ends.push([first.clone(), end]);
            }
            for (node, expected) in [(quicker, Completion::Now), (1 - quicker, Completion::Before)]
            {
                let completed = nodes[node].complete(key, &id, &ends[node]).await.unwrap();
                assert_eq!(completed, expected);
            }
            let end = read(&nodes[0], key, PART..2 * PART).await.unwrap();
            assert!(end == part(quicker as u8 + 2));
            assert_eq!(partial(folder.path()), 0);
        }
    }

    #[tokio::test]
    async fn what_is_dropped_goes_with_all_its_files_and_what_goes_on_stays() {
        let folder = tempfile::tempdir().unwrap();
        let [here, there, later] = [(); 3].map(|()| open(folder.path()));
        let key = key();
        let begun = async || {
            let id = here.begin(key, &UNDER).await.unwrap();
            there.put_part(key, &id, 1, 0, part(1)).await.unwrap();
            id
        };
        let id = begun().await;
        assert_eq!(partial(folder.path()), 2);
        here.abort(key, &id).await.unwrap();
        assert_eq!(partial(folder.path()), 0);

        let (left, named) = (begun().await, begun().await);
        let before = Timestamp::from_millis(u64::MAX);
        let dropped = here.abort_stale(before, &BTreeSet::from([named.clone()])).await.unwrap();
        assert_eq!((dropped, partial(folder.path())), (2, 2));
        assert!(there.put_part(key, &left, 1, 0, part(1)).await.is_err());
        // Old files of an upload that goes on elsewhere are none that a crash left.
        let old = SystemTime::now() - Duration::from_secs(90 * 3600);
        for entry in fs::read_dir(folder.path().join("partial")).unwrap() {
            let file = OpenOptions::new().write(true).open(entry.unwrap().path()).unwrap();
            file.set_modified(old).unwrap();
        }
        later.put_part(key, &named, 2, PART, part(2)).await.unwrap();
        drop(open(folder.path()));
        assert_eq!(partial(folder.path()), 3);
    }
}
