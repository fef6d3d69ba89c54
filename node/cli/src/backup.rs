//! Backs up the metadata through any node, with or without the objects that they name, and
//! verifies a backup that was made.
//!
//! Order: the metadata under a temporary name beside the final one, read again and checked from
//! their beginning to their end; the objects, each compared with what it is named by before it has
//! its name; then the backup is synced and renamed. Invariant: a file with the backup's name is
//! whole, and where objects were asked for they are all there. What ends early – Ctrl-C, too –
//! leaves no part of the file; objects that had come stay, and are not copied again.
//!
//! Objects lie in the folder `objects` beside the file, under their keys, as in a storage folder.

use std::fs::{self, File};
use std::io::{BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use futures::{StreamExt as _, stream};
use serde::Serialize;
use shoal_formats::backup::{BackupError, Check, Flaw, Frame, Head, Needed, Reader, Totals};
use tempfile::NamedTempFile;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::arguments::Backup;
use crate::client::{Client, Request, next_piece};
use crate::error::Error;
use crate::screen::{Screen, bytes};

const OBJECTS: &str = "objects";
/// Objects that are copied at once.
const COPIES_AT_ONCE: usize = 4;
const BUFFER_BYTES: usize = 1 << 20;
/// Objects that a message names; more are counted.
const NAMED_MAX: usize = 20;

/// What was made or verified.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    file: &'a Path,
    #[serde(flatten)]
    head: &'a Head,
    #[serde(flatten)]
    totals: &'a Totals,
    objects_folder: Option<&'a Path>,
    objects_copied: u64,
    bytes_copied: u64,
}

pub async fn backup(wanted: &Backup, client: &Client, screen: Screen) -> Result<(), Error> {
    tokio::select! {
        // First, so that there is no moment in which Ctrl-C would leave a temporary file.
        biased;
        _ = tokio::signal::ctrl_c() => {
            // What was under way is dropped, and its temporary file with it.
            Err(Error::Interrupted("stopped; no backup was written".into()))
        }
        made = make(wanted, client, screen) => made,
    }
}

async fn make(wanted: &Backup, client: &Client, screen: Screen) -> Result<(), Error> {
    let path = wanted.path.as_deref().unwrap_or(Path::new("."));
    let inside = path.is_dir();
    let folder = match path.parent() {
        _ if inside => path,
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !inside && path.exists() {
        let text = format!("{} is there already; choose another name", path.display());
        return Err(Error::Usage(text));
    }
    let (part, head, totals) = fetch(folder, client, screen).await?;
    let objects_folder = wanted.objects.then(|| folder.join(OBJECTS));
    let copied = match &objects_folder {
        Some(folder) => copy_objects(part.path(), folder, &totals, client, screen).await?,
        None => Copied::default(),
    };
    let target = if inside { path.join(name_of(&head)) } else { path.to_owned() };
    publish(part, &target, folder)?;
    let shown = Shown {
        file: &target,
        head: &head,
        totals: &totals,
        objects_folder: objects_folder.as_deref(),
        objects_copied: copied.objects.load(Ordering::Relaxed),
        bytes_copied: copied.bytes.load(Ordering::Relaxed),
    };
    screen.show(&shown, || {
        let mut text = format!("{}\n{}", target.display(), about(&head, &totals));
        if let Some(folder) = &objects_folder {
            text.push_str(&format!(
                "\n{} objects are in {}, {} of them new ({}).",
                totals.objects,
                folder.display(),
                shown.objects_copied,
                bytes(shown.bytes_copied)
            ));
        }
        text + "\nIt holds the cluster's keys and the hashes of its passwords: keep it as you keep those."
    })
}

/// `shoal-20261121T074502Z-7012.backup`: names that sort by time.
fn name_of(head: &Head) -> String {
    let seconds = i64::try_from(head.made_at.as_millis() / 1000).unwrap_or(0);
    let made = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let form = format_description!("[year][month][day]T[hour][minute][second]Z");
    format!("shoal-{}-{}.backup", made.format(form).unwrap_or_default(), head.index)
}

fn about(head: &Head, totals: &Totals) -> String {
    format!(
        "{} at entry {} of its log, level {}, written by version {}: {} rows, {}; {} objects are named",
        head.cluster,
        head.index,
        head.level,
        head.program,
        totals.rows,
        bytes(totals.row_bytes),
        totals.objects
    )
}

/// Gets the metadata into a temporary file that only its owner reads, and checks all of it.
async fn fetch(
    folder: &Path,
    client: &Client,
    screen: Screen,
) -> Result<(NamedTempFile, Head, Totals), Error> {
    let mut part = tempfile::Builder::new()
        .prefix(".shoal-backup-")
        .suffix(".part")
        .tempfile_in(folder)
        .map_err(Error::file("writing into", folder))?;
    let path = part.path().to_owned();
    let spinner = screen.spinner("asking for the metadata");
    let mut response = client.send(&Request::get("api/v1/backup")).await?;
    let mut received = 0;
    while let Some(piece) = next_piece(&mut response).await? {
        part.write_all(&piece).map_err(Error::file("writing", &path))?;
        received += piece.len() as u64;
        spinner.set_message(format!("metadata: {}", bytes(received)));
    }
    let (head, totals) = read_through(&path, |_| Ok(()))?;
    spinner.finish_and_clear();
    Ok((part, head, totals))
}

/// Reads a backup to its end, and shows each piece of its list of objects to `see`.
fn read_through(
    path: &Path,
    mut see: impl FnMut(Vec<Needed>) -> Result<(), Error>,
) -> Result<(Head, Totals), Error> {
    let unsound = |error: BackupError| match error {
        BackupError::Io(source) => Error::file("reading", path)(source),
        error => {
            Error::Failed { what: format!("reading {}", path.display()), reason: error.to_string() }
        }
    };
    let mut reader = open(path).and_then(|file| Reader::new(file).map_err(unsound))?;
    let head = reader.head().clone();
    loop {
        match reader.next_frame().map_err(unsound)? {
            Some(Frame::Rows(_)) => {}
            Some(Frame::Objects(objects)) => see(objects)?,
            Some(Frame::End(totals)) => return Ok((head, totals)),
            None => return Err(unsound(BackupError::Malformed("it has no end"))),
        }
    }
}

fn open(path: &Path) -> Result<BufReader<File>, Error> {
    let file = File::open(path).map_err(Error::file("opening", path))?;
    Ok(BufReader::with_capacity(BUFFER_BYTES, file))
}

/// Sync, rename, sync the folder. A file that has come there since is not replaced.
fn publish(part: NamedTempFile, target: &Path, folder: &Path) -> Result<(), Error> {
    part.as_file().sync_all().map_err(Error::file("syncing", part.path()))?;
    part.persist_noclobber(target)
        .map_err(|failed| Error::file("writing", target)(failed.error))?;
    sync_folder(folder)
}

fn sync_folder(folder: &Path) -> Result<(), Error> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(Error::file("syncing", folder))
}

#[derive(Debug, Default)]
struct Copied {
    objects: AtomicU64,
    bytes: AtomicU64,
}

/// Copies what the folder does not have yet.
async fn copy_objects(
    backup: &Path,
    folder: &Path,
    totals: &Totals,
    client: &Client,
    screen: Screen,
) -> Result<Copied, Error> {
    fs::create_dir_all(folder).map_err(Error::file("making", folder))?;
    let mut missing = Missing::default();
    let (copied, seen) = (Copied::default(), AtomicU64::new(0));
    let spinner = screen.spinner("objects");
    // The list is of the file's size at most; what is copied is chosen while it is read.
    let mut wanted = Vec::new();
    read_through(backup, |objects| {
        for needed in objects {
            if look(folder, &needed, false)?.is_ok() {
                seen.fetch_add(1, Ordering::Relaxed);
            } else {
                wanted.push(needed);
            }
        }
        Ok(())
    })?;
    let copies = wanted.into_iter().map(|needed| {
        let (copied, seen, spinner) = (&copied, &seen, &spinner);
        async move {
            let done = copy_object(&needed, folder, client, copied).await?;
            let seen = seen.fetch_add(1, Ordering::Relaxed) + 1;
            let all = bytes(copied.bytes.load(Ordering::Relaxed));
            spinner.set_message(format!("objects: {seen} of {}, {all} copied", totals.objects));
            Ok::<_, Error>((needed, done))
        }
    });
    let mut copies = stream::iter(copies).buffer_unordered(COPIES_AT_ONCE);
    while let Some(done) = copies.next().await {
        if let (needed, Err(flaw)) = done? {
            missing.add(&needed, &flaw);
        }
    }
    drop(copies);
    spinner.finish_and_clear();
    missing.result("copying the objects")?;
    Ok(copied)
}

/// Copies one object; it has its name once it is compared and synced.
async fn copy_object(
    needed: &Needed,
    folder: &Path,
    client: &Client,
    copied: &Copied,
) -> Result<Result<(), Flaw>, Error> {
    let path = folder.join(needed.key.to_string());
    let below = path.parent().unwrap_or(folder);
    fs::create_dir_all(below).map_err(Error::file("making", below))?;
    let request = Request::get(format!("api/v1/backup/objects/{}", needed.key));
    let mut response = match client.send(&request).await {
        Err(Error::Refused { status: 404, .. }) => return Ok(Err(Flaw::Missing)),
        response => response?,
    };
    let part = tempfile::Builder::new().prefix(".part-").tempfile_in(below);
    let mut part = part.map_err(Error::file("writing into", below))?;
    let mut check = Check::new(needed);
    while let Some(piece) = next_piece(&mut response).await? {
        check.update(&piece);
        part.write_all(&piece).map_err(Error::file("writing", part.path()))?;
        copied.bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
    }
    if let Err(flaw) = check.finish() {
        return Ok(Err(flaw));
    }
    part.as_file().sync_all().map_err(Error::file("syncing", part.path()))?;
    part.persist(&path).map_err(|failed| Error::file("writing", &path)(failed.error))?;
    sync_folder(below)?;
    copied.objects.fetch_add(1, Ordering::Relaxed);
    Ok(Ok(()))
}

/// What is wrong with an object in a folder.
fn look(folder: &Path, needed: &Needed, read: bool) -> Result<Result<(), Flaw>, Error> {
    let path = folder.join(needed.key.to_string());
    let found = match fs::metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Err(Flaw::Missing));
        }
        found => found.map_err(Error::file("looking at", &path))?,
    };
    if let Err(flaw) = needed.check_size(found.len()) {
        return Ok(Err(flaw));
    }
    if !read {
        return Ok(Ok(()));
    }
    let (mut file, mut check) = (open(&path)?, Check::new(needed));
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match file.read(&mut buffer).map_err(Error::file("reading", &path))? {
            0 => return Ok(check.finish()),
            got => check.update(&buffer[..got]),
        }
    }
}

/// Objects that are not as they should be.
#[derive(Debug, Default)]
struct Missing {
    count: u64,
    named: Vec<String>,
}

impl Missing {
    fn add(&mut self, needed: &Needed, flaw: &Flaw) {
        self.count += 1;
        if self.named.len() < NAMED_MAX {
            let digest = needed.digest.as_ref().map(|digest| format!(" ({digest})"));
            self.named.push(format!("{}{}: {flaw}", needed.key, digest.unwrap_or_default()));
        }
    }

    fn result(self, what: &str) -> Result<(), Error> {
        if self.count == 0 {
            return Ok(());
        }
        let reason = format!(
            "{} objects that the metadata name are not as they should be:\n  {}",
            self.count,
            self.named.join("\n  ")
        );
        Err(Error::Failed { what: what.into(), reason })
    }
}

/// Reads a backup, and looks for its objects where a folder is given.
pub fn verify(
    file: &Path,
    objects: Option<&Path>,
    read: bool,
    screen: Screen,
) -> Result<(), Error> {
    let spinner = screen.spinner("reading the backup");
    let (mut missing, mut seen) = (Missing::default(), 0u64);
    let folder: Option<PathBuf> = objects.map(Path::to_owned);
    let (head, totals) = read_through(file, |needed| {
        let Some(folder) = &folder else { return Ok(()) };
        for needed in needed {
            if let Err(flaw) = look(folder, &needed, read)? {
                missing.add(&needed, &flaw);
            }
            seen += 1;
            spinner.set_message(format!("objects: {seen}"));
        }
        Ok(())
    })?;
    spinner.finish_and_clear();
    missing.result("verifying the objects")?;
    let shown = Shown {
        file,
        head: &head,
        totals: &totals,
        objects_folder: objects,
        objects_copied: 0,
        bytes_copied: 0,
    };
    screen.show(&shown, || {
        let mut text = format!("The backup is sound: {}.", about(&head, &totals));
        if objects.is_some() {
            let how = if read { "there, and what it is named by" } else { "there" };
            text.push_str(&format!("\nEvery object is {how}."));
        }
        text
    })
}

#[cfg(test)]
mod tests;
