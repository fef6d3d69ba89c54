//! `shoal disk`: images as files on this machine. No cluster, no login, no configuration.
//!
//! Exit codes are those of qemu-img, so that scripts can put one in the other's place. What takes
//! long runs on a thread of its own and ends with Ctrl-C.

mod check;
mod chunks;
mod compare;
mod convert;
mod cut;
mod info;
mod options;

use std::ffi::OsString;
use std::fs::File;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::error::ErrorKind;
use indicatif::ProgressBar;
use shoal_formats::{Disk, Format, MapExtent, ReadError};

use crate::arguments::{DiskCommand, Manner, Output, Shape, Size};
use crate::error::{EXIT_FAILED, Error};
use crate::screen::Screen;

pub async fn disk(command: DiskCommand, screen: Screen) -> Result<(), Error> {
    let shaped = move |output: &Output| Screen {
        json: screen.json || output.output == Shape::Json,
        ..screen
    };
    let hushed = |screen: Screen, manner: &Manner| Screen { quiet: manner.quiet, ..screen };
    let stop = Stop::default();
    let seen = stop.clone();
    let work = tokio::task::spawn_blocking(move || match command {
        DiskCommand::Info { file, format, output, backing_chain, .. } => {
            info::info(&file, format, backing_chain, shaped(&output))
        }
        DiskCommand::Map { file, format, output, start_offset, max_length, .. } => {
            let from = start_offset.map_or(0, |Size(bytes)| bytes);
            let bytes = max_length.map_or(u64::MAX, |Size(bytes)| bytes);
            let window = from..from.saturating_add(bytes);
            info::map(&file, format, window, &seen, shaped(&output))
        }
        DiskCommand::Check { file, format, output, manner } => {
            check::check(&file, format, &seen, hushed(shaped(&output), &manner))
        }
        DiskCommand::Convert(convert) => {
            convert::convert(&convert, &seen, hushed(screen, &convert.manner))
        }
        DiskCommand::Compare { a, b, format, other, strict, manner } => {
            compare::compare((&a, format), (&b, other), strict, &seen, hushed(screen, &manner))
        }
        DiskCommand::Chunks { files, keep_free_space, output } => {
            chunks::chunks(&files, keep_free_space, &seen, shaped(&output))
        }
    });
    let mut work = std::pin::pin!(work);
    let done = tokio::select! {
        done = &mut work => done,
        signal = tokio::signal::ctrl_c() => {
            if signal.is_ok() {
                stop.0.store(true, Ordering::Relaxed);
            }
            work.await
        }
    };
    done.unwrap_or_else(|error| Err(Error::Disk(format!("the work broke off: {error}"))))
}

/// Whether somebody wants an end. Clones are the same.
#[derive(Debug, Clone, Default)]
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn check(&self) -> Result<(), Error> {
        match self.flow() {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Interrupted("interrupted".into())),
        }
    }

    fn flow(&self) -> ControlFlow<()> {
        if self.0.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

/// The disk in a file.
fn open(path: &Path, format: Option<Format>) -> Result<Box<dyn Disk>, Error> {
    let file = File::open(path).map_err(Error::file("opening", path))?;
    let about = file.metadata().map_err(Error::file("opening", path))?;
    if !about.is_file() {
        return Err(Error::Disk(format!("{}: it is no regular file", path.display())));
    }
    let opened = shoal_formats::open(Box::new(file), format);
    opened.map_err(|error| refused(path, error.reason(), &error))
}

/// What qemu-img calls a format; each name is taken, and ours as well.
fn qemus_name(format: Format) -> &'static str {
    match format {
        Format::Vhd => "vpc",
        other => other.as_str(),
    }
}

fn unreadable(path: &Path) -> impl Fn(ReadError) -> Error {
    let path = path.to_owned();
    move |error| refused(&path, error.reason(), &error)
}

/// The image's own fault, by the name that the API has for it.
fn refused(path: &Path, reason: &'static str, error: &dyn std::error::Error) -> Error {
    Error::Judged { code: EXIT_FAILED, word: reason, message: told(path, error) }
}

/// How wrong arguments of `shoal disk` end, which is what `words` are of then: as qemu-img ends, since 2
/// says of a check that the disk is corrupt.
pub fn usage_exit_code(words: &[OsString], kind: ErrorKind) -> Option<u8> {
    let mut said = words.iter().filter_map(|word| word.to_str());
    let mut next = || said.find(|word| !word.starts_with('-'));
    if next() != Some("disk") {
        return None;
    }
    match (next(), kind) {
        // A format that nobody knows is one that cannot be opened.
        (Some("compare"), ErrorKind::InvalidValue | ErrorKind::ValueValidation) => {
            Some(compare::EXIT_NOT_OPENED)
        }
        _ => Some(EXIT_FAILED),
    }
}

/// Something is wanted that is not done.
fn usage(message: String) -> Error {
    Error::Judged { code: EXIT_FAILED, word: "usage", message }
}

/// What went wrong with the file `path`, with all that led to it.
fn told(path: &Path, error: &dyn std::error::Error) -> String {
    let mut text = format!("{}: {error}", path.display());
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

/// All parts of a disk in turn, neighbours of one kind as one.
fn extents(
    disk: &mut dyn Disk,
    stop: &Stop,
    each: &mut dyn FnMut(MapExtent) -> Result<(), Error>,
    failed: impl Fn(ReadError) -> Error,
) -> Result<(), Error> {
    let mut open: Option<MapExtent> = None;
    let (mut at, end) = (0, disk.virtual_bytes());
    while at < end {
        stop.check()?;
        let extent = disk.next_extent(at).map_err(&failed)?;
        at = extent.offset + extent.length;
        match &mut open {
            Some(last) if last.kind == extent.kind => last.length += extent.length,
            _ => {
                if let Some(last) = open.replace(extent) {
                    each(last)?;
                }
            }
        }
    }
    open.map_or(Ok(()), each)
}

fn bar(screen: Screen, total: u64) -> ProgressBar {
    screen.byte_bar("", total)
}
