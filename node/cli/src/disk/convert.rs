//! Writes a disk in another format.
//!
//! The target is written beside its place and put there when it is whole, so that what was there
//! stays where this ends early.

use std::collections::HashMap;
use std::fs::File;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use indicatif::ProgressBar;
use serde_json::json;
use shoal_content::{
    Chunk, ChunkId, Encoding, Extent, ObjectKey, PackId, Recipe, RecipeKind, SourceObject,
};
use shoal_formats::{
    CompressError, Compressed, CompressedWriter, Disk, Export, ExportError, ExportProgress, Target,
    flatten, survey, write_file,
};
use tempfile::NamedTempFile;

use super::cut::cut;
use super::options::{Chosen, chosen};
use super::{Stop, bar, open, told, unreadable, usage};
use crate::arguments::{Compression, Convert};
use crate::error::Error;
use crate::screen::{Screen, bytes};

pub(super) fn convert(arguments: &Convert, stop: &Stop, screen: Screen) -> Result<(), Error> {
    let chosen = chosen(arguments)?;
    let compressed = compressed(chosen)?;
    let Chosen { target: to, .. } = chosen;
    let Convert { source, target, format, .. } = arguments;
    let mut disk = open(source, *format)?;
    if target.exists() && !target.is_file() {
        return Err(Error::Disk(format!("{}: it is no regular file", target.display())));
    }
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty());
    let beside = NamedTempFile::new_in(parent.unwrap_or(Path::new(".")));
    let beside = beside.map_err(Error::file("writing beside", target))?;
    let bar = bar(screen, disk.virtual_bytes());
    match compressed {
        Some(how) => compress(how, (source, target), &mut *disk, beside.as_file(), stop, &bar),
        None if to == Target::Raw => {
            bar.set_message("writing");
            let progress = &mut watched(stop, &bar);
            let written = flatten(&mut *disk, beside.as_file(), progress);
            written.map_err(refused((source, target)))
        }
        None => lay_out(to, (source, target), &mut *disk, beside.as_file(), stop, &bar),
    }?;
    bar.finish_and_clear();
    let file = beside.as_file();
    file.sync_all().map_err(Error::file("writing", target))?;
    let length = file.metadata().map_err(Error::file("writing", target))?.len();
    open_to_others(file).map_err(Error::file("writing", target))?;
    let put = beside.persist(target).map_err(|error| error.error);
    put.map_err(Error::file("writing", target))?;
    let shown = json!({ "filename": target, "format": to.as_str(), "bytes": length });
    screen.show(&shown, || format!("{}: {to}, {}", target.display(), bytes(length)))
}

/// What is asked for with `--compress`.
fn compressed(chosen: Chosen) -> Result<Option<Compressed>, Error> {
    if !chosen.compress {
        return Ok(None);
    }
    match (chosen.target, chosen.compression) {
        (Target::Qcow2, Compression::Zlib) => Ok(Some(Compressed::Qcow2Zlib)),
        (Target::Qcow2, Compression::Zstd) => Ok(Some(Compressed::Qcow2Zstd)),
        (Target::VmdkStream, Compression::Zlib) => Ok(Some(Compressed::VmdkStream)),
        (other, _) => Err(usage(format!(
            "{other} is not written compressed so; -O qcow2 is, with zlib or zstd, and -O vmdk-stream"
        ))),
    }
}

/// A file made beside has the rights of a secret; the target has those of any new file.
fn open_to_others(file: &File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mask = umask()?;
    file.set_permissions(std::fs::Permissions::from_mode(0o666 & !mask))
}

/// What this process lets others do with new files, as the kernel says.
fn umask() -> std::io::Result<u32> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    let mask = line.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok());
    Ok(mask.unwrap_or(0o022))
}

fn compress(
    how: Compressed,
    (source, target): (&Path, &Path),
    disk: &mut dyn Disk,
    file: &File,
    stop: &Stop,
    bar: &ProgressBar,
) -> Result<(), Error> {
    match CompressedWriter::new(how).write(disk, file, &mut watched(stop, bar)) {
        Ok(_) => Ok(()),
        Err(CompressError::Cancelled) => Err(Error::Interrupted("interrupted".into())),
        Err(error @ CompressError::Write { .. }) => Err(failed(target, &error)),
        Err(error) => Err(failed(source, &error)),
    }
}

/// Reads the disk twice: where its content lies decides how long the file is and what it is called
/// inside, so that the same disk gives the same file.
fn lay_out(
    to: Target,
    (source, target): (&Path, &Path),
    disk: &mut dyn Disk,
    file: &File,
    stop: &Stop,
    bar: &ProgressBar,
) -> Result<(), Error> {
    bar.set_message("looking");
    let recipe = recipe(source, disk, stop, bar)?;
    let refused = refused((source, target));
    let export = Export::new(to, Arc::new(recipe)).map_err(refused)?;
    bar.set_length(export.len());
    bar.set_message("writing");
    let mut content =
        |guest, buffer: &mut [u8]| disk.read(guest, buffer).map_err(std::io::Error::other);
    write_file(&export, file, &mut content, &mut watched(stop, bar)).map_err(refused)
}

/// Shows how far it is, and stops where that is asked for.
fn watched(stop: &Stop, bar: &ProgressBar) -> impl FnMut(ExportProgress) -> ControlFlow<()> {
    move |state| {
        bar.set_position(state.bytes_done);
        stop.flow()
    }
}

/// Names the file that an error is about.
fn refused((source, target): (&Path, &Path)) -> impl Fn(ExportError) -> Error + Copy {
    move |error| match error {
        ExportError::Cancelled => Error::Interrupted("interrupted".into()),
        error @ ExportError::Write { .. } => failed(target, &error),
        error => failed(source, &error),
    }
}

/// Where the content lies, free space and all; the chunks lie in no storage.
fn recipe(
    path: &Path,
    disk: &mut dyn Disk,
    stop: &Stop,
    bar: &ProgressBar,
) -> Result<Recipe, Error> {
    let plan = survey(disk).map_err(unreadable(path))?.keeping_free_space();
    let length = disk.virtual_bytes();
    let mut known: HashMap<ChunkId, u32> = HashMap::new();
    let (mut chunks, mut extents) = (Vec::new(), Vec::new());
    let mut at = 0;
    cut(path, disk, &plan, stop, &|done| bar.set_position(done), &mut |cut| {
        let id = ChunkId::of(&cut.content);
        let bytes = cut.content.len() as u32;
        let next = chunks.len() as u32;
        let chunk = *known.entry(id).or_insert(next);
        if chunk == next {
            chunks.push(Chunk { id, length: bytes, object: 0, at, encoding: Encoding::Raw });
            at += u64::from(bytes);
        }
        extents.push(Extent { offset: cut.offset, chunk });
        Ok(())
    })?;
    let pack = ObjectKey::Pack(PackId::of(b"no storage"));
    let objects =
        if chunks.is_empty() { vec![] } else { vec![SourceObject { key: pack, length: at }] };
    let recipe = Recipe::new(RecipeKind::Disk, length, objects, chunks, extents);
    recipe.map_err(|error| Error::Disk(error.to_string()))
}

fn failed(path: &Path, error: &dyn std::error::Error) -> Error {
    Error::Disk(told(path, error))
}
