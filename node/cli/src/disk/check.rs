//! Reads a whole disk, so that whatever is broken in its file shows, and counts what a qcow2 counts.
//!
//! Invariant: memory grows with nothing but the clusters of a qcow2, as `check_references` bounds it.

use std::fs::File;
use std::path::Path;

use serde_json::json;
use shoal_formats::{
    CheckError, ExtentKind, Format, MapExtent, ReadError, References, check_references,
};

use super::{Stop, bar, extents, open, qemus_name, refused};
use crate::error::Error;
use crate::screen::{Screen, bytes};

/// As qemu-img ends where a format has nothing to be checked.
const EXIT_NO_CHECKS: u8 = 63;
/// As qemu-img ends where it found an image corrupt.
const EXIT_CORRUPT: u8 = 2;
/// As qemu-img ends where an image takes room that nothing refers to, and is sound otherwise.
const EXIT_LEAKS: u8 = 3;
/// Why an image is not opened that is of its format, and damaged.
const DAMAGED: [&str; 4] =
    ["corrupt_tables", "overlapping_tables", "marked_corrupt", "corrupt_log"];
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
    let mut disk = open(path, format).map_err(|error| match error {
        Error::Judged { word, message, .. } if DAMAGED.contains(&word) => {
            Error::Judged { code: EXIT_CORRUPT, word, message }
        }
        error => error,
    })?;
    if disk.format() == Format::Raw {
        return Err(Error::Judged {
            code: EXIT_NO_CHECKS,
            word: "no_checks",
            message: format!("{}: a raw disk has nothing to be checked", path.display()),
        });
    }
    let shown = |error: &ReadError| format!("{}: {error}", path.display());
    let broken = |error: ReadError| match error {
        error @ ReadError::Broken { .. } => corrupt(shown(&error)),
        error => Error::Disk(shown(&error)),
    };
    let mut total = 0;
    let mut add = |extent: MapExtent| {
        total += if extent.kind == ExtentKind::Data { extent.length } else { 0 };
        Ok(())
    };
    extents(&mut *disk, stop, &mut add, broken)?;
    let bar = bar(screen, total);
    let (mut found, mut count) = (Vec::new(), 0u64);
    let mut window = vec![0; WINDOW_BYTES];
    let (mut at, end) = (0, disk.virtual_bytes());
    while at < end {
        stop.check()?;
        let extent = disk.next_extent(at).map_err(broken)?;
        let length = extent.length.min(WINDOW_BYTES as u64);
        if extent.kind == ExtentKind::Zero {
            at += extent.length;
            continue;
        }
        match disk.read(at, &mut window[..length as usize]) {
            Ok(()) => {}
            Err(error @ ReadError::Broken { .. }) => {
                count += 1;
                if found.len() < LISTED_MAX {
                    found.push(error.to_string());
                }
            }
            Err(error) => return Err(Error::Disk(shown(&error))),
        }
        at += length;
        bar.inc(length);
    }
    bar.finish_and_clear();
    let counted = match disk.format() {
        Format::Qcow2 => {
            let file = File::open(path).map_err(Error::file("opening", path))?;
            let counted = check_references(&file, &mut || stop.flow());
            Some(counted.map_err(|error| match error {
                CheckError::Open(error) => refused(path, error.reason(), &error),
                CheckError::Cancelled => Error::Interrupted("interrupted".into()),
            })?)
        }
        _ => None,
    };
    let References { leaks, corruptions, .. } = counted.unwrap_or_default();
    let mut answer = json!({
        "filename": path,
        "format": qemus_name(disk.format()),
        "virtual-size": disk.virtual_bytes(),
        "data-bytes": total,
        "corruptions": count + corruptions,
        "leaks": leaks,
        "found": found,
        "check-errors": 0,
    });
    if let Some(counted) = &counted {
        answer["image-end-offset"] = counted.image_end.into();
        answer["total-clusters"] = counted.total_clusters.into();
        answer["allocated-clusters"] = counted.allocated_clusters.into();
        answer["fragmented-clusters"] = counted.fragmented_clusters.into();
        answer["compressed-clusters"] = counted.compressed_clusters.into();
    }
    screen.show(&answer, || {
        let mut lines = found.clone();
        if corruptions > 0 {
            lines.push(format!(
                "{corruptions} reference counts are wrong, so that content may be lost."
            ));
        }
        if leaks > 0 {
            lines
                .push(format!("{leaks} clusters are counted that nothing refers to: wasted room."));
        }
        if lines.is_empty() {
            lines.push("No errors were found on the image.".to_owned());
        }
        if count == 0 {
            lines.push(format!("{} of data were read.", bytes(total)));
        }
        if let Some(counted) = &counted {
            lines.extend(used(counted));
        }
        lines.join("\n")
    })?;
    let name = path.display();
    match (count, corruptions, leaks) {
        (0, 0, 0) => Ok(()),
        (0, 0, _) => Err(Error::Judged {
            code: EXIT_LEAKS,
            word: "leaks",
            message: format!("{leaks} clusters of {name} are counted that nothing refers to"),
        }),
        (0, ..) => Err(corrupt(format!("{corruptions} reference counts of {name} are wrong"))),
        _ => Err(corrupt(format!("{count} places of {name} cannot be read"))),
    }
}

/// How the clusters of a qcow2 are used, in qemu-img's words.
fn used(counted: &References) -> Vec<String> {
    let (total, allocated) = (counted.total_clusters, counted.allocated_clusters);
    let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
    let mut lines = Vec::new();
    if total > 0 && allocated > 0 {
        lines.push(format!(
            "{allocated}/{total} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters",
            percent(allocated, total),
            percent(counted.fragmented_clusters, allocated),
            percent(counted.compressed_clusters, allocated),
        ));
    }
    lines.push(format!("Image end offset: {}", counted.image_end));
    lines
}

fn corrupt(message: String) -> Error {
    Error::Judged { code: EXIT_CORRUPT, word: "corrupt", message }
}
