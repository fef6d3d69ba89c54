//! Writes what the cache holds to where a hypervisor wants it.
//!
//! Write order: a file beside the output, synced, renamed over it, the folder synced. A crash
//! leaves the old output or the new one, and at worst a file beside, which the next export to that
//! output removes (see `beside`). Holes stay holes, unless all blocks are asked for. A raw disk is
//! copied inside the kernel, which shares the blocks where the file system can.
//!
//! Invariant: nothing is copied whose hash was not compared in this export (see `verification`), nor
//! kept where the entry changed meanwhile: what somebody else found wrong has become a hole.
//! What is wrong is dropped from the cache and the output is not written: fetched again, it will be.
//!
//! Blocks on the disk. The caller holds a lease on the recipe.

mod beside;
pub mod layout;
mod verification;

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use shoal_content::{Recipe, RecipeKind};
use shoal_formats::{Export, ExportError, Target, write_file};
use thiserror::Error;

use crate::cache::{self, Cache, Entry, Loaded};
pub use beside::{Beside, check};
use verification::Verification;

/// One call to the kernel moves no more: a cancel is heard, and the rest is hashed meanwhile.
const COPY_BYTES_MAX: u64 = 16 << 20;

/// How an output has the blocks of its file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Blocks {
    /// Holes have none, and others are shared with the cache where the file system can.
    #[default]
    AsNeeded,
    /// All are there from the beginning and the file's own: whoever writes to it meets no full disk.
    Allocated,
}

/// Why an output was not written.
#[derive(Debug, Error)]
pub enum Error {
    #[error("{doing} {path} failed")]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("the disk cannot be written as {target}")]
    Target { target: Target, source: ExportError },
    #[error("the cached content cannot be read")]
    Cache(#[from] cache::Error),
    #[error("{chunks} chunks in the cache were corrupt and are to be fetched again")]
    Corrupt { chunks: usize },
    #[error("the output {0} has no folder")]
    NoFolder(PathBuf),
    #[error("the output {path} is {what}; give the name of a file, which is made or replaced")]
    NoFile { path: PathBuf, what: &'static str },
    #[error(
        "the output {0} is open in a virtual machine that writes to it; stop that first, or write to another file"
    )]
    InUse(PathBuf),
    #[error("the export was cancelled")]
    Cancelled,
}

/// Writes a complete disk entry as `target` to `output`. `progress` hears the share done, from 0
/// to 1, and may stop it.
///
/// # Errors
/// [`Error::Corrupt`] where cached content was wrong; it is dropped then, and a fetch brings it.
pub fn disk(
    cache: &Cache,
    entry: &Entry,
    target: Target,
    output: &Path,
    progress: &mut dyn FnMut(f64) -> ControlFlow<()>,
) -> Result<(), Error> {
    disk_with(cache, entry, (target, Blocks::AsNeeded), output, progress)
}

/// The same, with its blocks as they are asked for.
///
/// # Errors
/// As above; and where the file system has not so many blocks, or gives none in advance.
pub fn disk_with(
    cache: &Cache,
    entry: &Entry,
    (target, blocks): (Target, Blocks),
    output: &Path,
    progress: &mut dyn FnMut(f64) -> ControlFlow<()>,
) -> Result<(), Error> {
    // Before anything is hashed.
    let changes = entry.watch();
    let loaded = entry.load()?;
    let beside = Beside::create(output)?;
    let (written, corrupt) = verification::verified(&loaded, |verification| {
        write(&loaded, verification, (target, blocks), &beside, progress)
    });
    if !corrupt.is_empty() {
        let chunks = corrupt.len();
        cache.drop_corrupt(entry, corrupt)?;
        return Err(Error::Corrupt { chunks });
    }
    written?;
    // A chunk may have been dropped between its hash and its copy.
    if changes.has_changed().unwrap_or(true) {
        let (held, all) = entry.count();
        return Err(Error::Corrupt { chunks: (all - held).max(1) as usize });
    }
    beside.finish()
}

/// Drops the chunks of an entry whose content is wrong; gives how many.
pub fn drop_corrupt(cache: &Cache, entry: &Entry) -> Result<usize, Error> {
    let loaded = entry.load()?;
    let length = loaded.places.recipe().length();
    // What is wrong comes back from `verified`; waiting only makes it look at all.
    let (_, corrupt) = verification::verified(&loaded, |all| all.wait(0, length));
    let chunks = corrupt.len();
    cache.drop_corrupt(entry, corrupt)?;
    Ok(chunks)
}

fn write(
    loaded: &Loaded,
    verification: &Verification<'_>,
    (target, blocks): (Target, Blocks),
    beside: &Beside,
    progress: &mut dyn FnMut(f64) -> ControlFlow<()>,
) -> Result<(), Error> {
    let recipe = loaded.places.recipe();
    if target == Target::Raw && recipe.kind() == RecipeKind::Disk {
        beside.file().set_len(recipe.length()).map_err(beside.error("sizing"))?;
        // Before anything is copied: where there is no room, that is known at once.
        let shares = blocks == Blocks::AsNeeded;
        if !shares {
            allocate(beside.file()).map_err(beside.error("allocating"))?;
        }
        let failed = beside.error("writing");
        return copy_runs((loaded, verification), (beside.file(), shares), progress, &failed);
    }
    let refused = |source| match source {
        ExportError::Cancelled => Error::Cancelled,
        ExportError::Write { error, .. } => beside.error("writing")(error),
        source => Error::Target { target, source },
    };
    let export = Export::new(target, recipe.clone()).map_err(refused)?;
    let mut content = |offset, buffer: &mut [u8]| {
        verification.wait(offset, buffer.len() as u64)?;
        loaded.content.read_exact_at(buffer, offset)
    };
    write_file(&export, beside.file(), &mut content, &mut |step| {
        progress(step.bytes_done as f64 / step.bytes_total.max(1) as f64)
    })
    .map_err(refused)?;
    match blocks {
        Blocks::AsNeeded => Ok(()),
        Blocks::Allocated => allocate(beside.file()).map_err(beside.error("allocating")),
    }
}

/// Gives a file all of its blocks; what is written stays.
fn allocate(file: &File) -> io::Result<()> {
    let length = file.metadata()?.len();
    if length > 0 {
        fallocate(file, FallocateFlags::empty(), 0, length.cast_signed())?;
    }
    Ok(())
}

/// The runs of extents without a hole: offset and length, in bytes.
fn runs(recipe: &Recipe) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for extent in recipe.extents() {
        let length = u64::from(recipe.chunks()[extent.chunk as usize].length);
        match runs.last_mut() {
            Some((start, run)) if *start + *run == extent.offset => *run += length,
            _ => runs.push((extent.offset, length)),
        }
    }
    runs
}

/// Copies every run of extents to the same place of another file, which may share their blocks.
fn copy_runs(
    (loaded, verification): (&Loaded, &Verification<'_>),
    (to, shares): (&File, bool),
    progress: &mut dyn FnMut(f64) -> ControlFlow<()>,
    failed: &dyn Fn(io::Error) -> Error,
) -> Result<(), Error> {
    let runs = runs(loaded.places.recipe());
    let total: u64 = runs.iter().map(|(_, length)| length).sum();
    let mut done = 0u64;
    let mut in_kernel = shares;
    for (start, length) in runs {
        let mut at = start;
        while at < start + length {
            let step = (start + length - at).min(COPY_BYTES_MAX);
            verification.wait(at, step).map_err(|refused| failed(refused.into()))?;
            let moved = copy_step(&loaded.content, to, at, step, &mut in_kernel).map_err(failed)?;
            at += moved;
            done += moved;
            if progress(done as f64 / total.max(1) as f64).is_break() {
                return Err(Error::Cancelled);
            }
        }
    }
    Ok(())
}

/// Moves up to `length` bytes at `at`; at least one.
fn copy_step(
    from: &File,
    to: &File,
    at: u64,
    length: u64,
    in_kernel: &mut bool,
) -> io::Result<u64> {
    if *in_kernel {
        let (mut source, mut target) = (at.cast_signed(), at.cast_signed());
        let copied = nix::fcntl::copy_file_range(
            from,
            Some(&mut source),
            to,
            Some(&mut target),
            length as usize,
        );
        match copied {
            // Some file systems say so where they cannot, too; the read below knows the end.
            Ok(0) => *in_kernel = false,
            Ok(moved) => return Ok(moved as u64),
            // Between file systems, or one that cannot: bytes then pass through here.
            Err(Errno::EXDEV | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
                *in_kernel = false;
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    let mut buffer = vec![0; length.min(1 << 20) as usize];
    from.read_exact_at(&mut buffer, at)?;
    to.write_all_at(&buffer, at)?;
    Ok(buffer.len() as u64)
}
