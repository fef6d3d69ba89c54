//! Reads a whole disk, so that whatever is broken in its file shows.

use std::path::Path;

use serde_json::json;
use shoal_formats::{Disk, ExtentKind, Format, ReadError};

use super::{Stop, bar, extents, open};
use crate::error::Error;
use crate::screen::{Screen, bytes};

/// As qemu-img ends where a format has nothing to be checked.
const EXIT_NO_CHECKS: u8 = 63;
/// As qemu-img ends where it found an image corrupt.
const EXIT_CORRUPT: u8 = 2;
/// Read at once.
const WINDOW_BYTES: usize = 1024 * 1024;
/// Broken places that are listed; more are counted.
const LISTED_MAX: usize = 20;

pub(super) fn check(
    path: &Path,
    format: Option<Format>,
    stop: &Stop,
    screen: Screen,
) -> Result<(), Error> {
    let mut disk = open(path, format)?;
    if disk.format() == Format::Raw {
        return Err(Error::Judged {
            code: EXIT_NO_CHECKS,
            word: "no_checks",
            message: format!("{}: a raw disk has nothing to be checked", path.display()),
        });
    }
    let mut ranges = Vec::new();
    let mut note = |extent| {
        ranges.push(extent);
        Ok(())
    };
    let shown = |error: &ReadError| format!("{}: {error}", path.display());
    let broken = |error: ReadError| match error {
        error @ ReadError::Broken { .. } => corrupt(shown(&error)),
        error => Error::Disk(shown(&error)),
    };
    extents(&mut *disk, stop, &mut note, broken)?;
    let data = ranges.iter().filter(|range| range.kind == ExtentKind::Data);
    let total: u64 = data.clone().map(|range| range.length).sum();
    let bar = bar(screen, total);
    let (mut found, mut count) = (Vec::new(), 0u64);
    let mut window = vec![0; WINDOW_BYTES];
    for range in data {
        let mut at = range.offset;
        let end = range.offset + range.length;
        while at < end {
            stop.check()?;
            let part = (end - at).min(WINDOW_BYTES as u64) as usize;
            match disk.read(at, &mut window[..part]) {
                Ok(()) => {}
                Err(error @ ReadError::Broken { .. }) => {
                    count += 1;
                    if found.len() < LISTED_MAX {
                        found.push(error.to_string());
                    }
                }
                Err(error) => return Err(Error::Disk(shown(&error))),
            }
            at += part as u64;
            bar.inc(part as u64);
        }
    }
    bar.finish_and_clear();
    let answer = json!({
        "filename": path,
        "format": disk.format().as_str(),
        "virtual-size": disk.virtual_bytes(),
        "data-bytes": total,
        "corruptions": count,
        "found": found,
        "check-errors": 0,
    });
    screen.show(&answer, || match count {
        0 => format!("No errors were found on the image.\n{} of data were read.", bytes(total)),
        _ => found.join("\n"),
    })?;
    match count {
        0 => Ok(()),
        _ => Err(corrupt(format!("{count} places of {} cannot be read", path.display()))),
    }
}

fn corrupt(message: String) -> Error {
    Error::Judged { code: EXIT_CORRUPT, word: "corrupt", message }
}
