//! What a file is, and where its disk has data.

use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use comfy_table::Cell;
use serde_json::{Value, json};
use shoal_formats::{
    Details, Disk, FileSystem, Format, Qcow2Details, ReadError, Stored, StoredExtent, survey,
};

use super::{Stop, open, qemus_name, unreadable};
use crate::error::Error;
use crate::screen::{Screen, bytes, table};

/// `stat` counts in these, whatever the file system's blocks are.
const STAT_BLOCK_BYTES: u64 = 512;

/// With `chain`, programs get a list of one.
pub(super) fn info(
    path: &Path,
    format: Option<Format>,
    chain: bool,
    screen: Screen,
) -> Result<(), Error> {
    let mut disk = open(path, format)?;
    let about = path.metadata().map_err(Error::file("looking at", path))?;
    let actual = about.blocks() * STAT_BLOCK_BYTES;
    let plan = survey(&mut *disk).map_err(unreadable(path))?;
    let (found, length) = (disk.format(), disk.virtual_bytes());
    let name = |system: Option<FileSystem>| system.map(FileSystem::as_str);
    let volumes: Vec<_> = plan.volumes().iter().collect();
    let Details { unit_bytes, is_dirty, qcow2 } = disk.details();
    let mut shown = json!({
        "filename": path,
        "format": qemus_name(found),
        "virtual-size": length,
        "actual-size": actual,
        "dirty-flag": is_dirty,
        "volumes": volumes.iter().map(|volume| json!({
            "offset": volume.offset,
            "length": volume.length,
            "file-system": name(volume.file_system),
            "free": volume.free_bytes,
        })).collect::<Vec<_>>(),
    });
    if let Some(unit) = unit_bytes {
        shown["cluster-size"] = unit.into();
    }
    if let Some(qcow2) = &qcow2 {
        shown["format-specific"] = specific(qcow2);
    }
    let shown = if chain { json!([shown]) } else { shown };
    screen.show(&shown, || {
        let mut text = format!(
            "image: {}\nfile format: {}\nvirtual size: {} ({length} bytes)\ndisk size: {}",
            path.display(),
            qemus_name(found),
            bytes(length),
            bytes(actual)
        );
        if let Some(unit) = unit_bytes {
            text += &format!("\ncluster_size: {unit}");
        }
        for volume in volumes {
            let system = name(volume.file_system).unwrap_or("not recognised");
            text += &format!(
                "\nvolume at {}: {}, {system}, {} free",
                bytes(volume.offset),
                bytes(volume.length),
                bytes(volume.free_bytes)
            );
        }
        text
    })
}

/// Of a qcow2, in qemu-img's words. What is marked as corrupt is not opened.
fn specific(qcow2: &Qcow2Details) -> Value {
    let mut data = json!({
        "compat": if qcow2.version < 3 { "0.10" } else { "1.1" },
        "compression-type": qcow2.compression,
        "refcount-bits": qcow2.refcount_bits,
    });
    if qcow2.version > 2 {
        data["lazy-refcounts"] = qcow2.lazy_refcounts.into();
        data["corrupt"] = false.into();
        data["extended-l2"] = qcow2.extended_l2.into();
    }
    json!({ "type": "qcow2", "data": data })
}

/// What of the disk is in `window`.
pub(super) fn map(
    path: &Path,
    format: Option<Format>,
    window: Range<u64>,
    stop: &Stop,
    screen: Screen,
) -> Result<(), Error> {
    let mut disk = open(path, format)?;
    let found = stored(&mut *disk, window, stop, unreadable(path))?;
    // A hole of a raw file has a place, too; and qemu-img knows no holes that a VHD or VHDX would not
    // hold itself.
    let is_raw = disk.format() == Format::Raw;
    let has_all = is_raw || matches!(disk.format(), Format::Vhd | Format::Vhdx);
    let shown: Vec<_> = found
        .iter()
        .map(|extent| {
            let is_zero = matches!(extent.stored, Stored::Zero { .. });
            let is_there = !matches!(extent.stored, Stored::Zero { is_said: false, .. });
            let mut shown = json!({
                "start": extent.offset,
                "length": extent.length,
                "depth": 0,
                "present": has_all || is_there,
                "zero": is_zero,
                "data": !is_zero,
                "compressed": extent.stored == Stored::Packed,
            });
            match extent.stored {
                Stored::At(at) | Stored::Zero { kept: Some(at), .. } => {
                    shown["offset"] = at.into();
                }
                _ if is_raw => shown["offset"] = extent.offset.into(),
                Stored::Zero { kept: None, .. } | Stored::Packed => {}
            }
            shown
        })
        .collect();
    screen.show(&shown, || {
        let mut rows = table(&["OFFSET", "LENGTH", "KIND", "AT"]);
        for extent in &found {
            let (kind, at) = match extent.stored {
                Stored::Zero { kept, .. } => {
                    ("zero", kept.map(|at| format!("{at:#x}")).unwrap_or_default())
                }
                Stored::At(at) => ("data", format!("{at:#x}")),
                Stored::Packed => ("packed", String::new()),
            };
            rows.add_row([
                Cell::new(format!("{:#x}", extent.offset)),
                Cell::new(format!("{:#x}", extent.length)),
                Cell::new(kind),
                Cell::new(at),
            ]);
        }
        rows.to_string()
    })
}

/// All parts of a window of a disk in turn, as one what is stored in one piece.
fn stored(
    disk: &mut dyn Disk,
    window: Range<u64>,
    stop: &Stop,
    failed: impl Fn(ReadError) -> Error,
) -> Result<Vec<StoredExtent>, Error> {
    let mut found: Vec<StoredExtent> = Vec::new();
    let (mut at, end) = (window.start, window.end.min(disk.virtual_bytes()));
    while at < end {
        stop.check()?;
        let mut next = disk.next_stored(at).map_err(&failed)?;
        next.length = next.length.min(end - at);
        at = next.offset + next.length;
        match found.last_mut() {
            Some(last) if last.stored.continues(last.length, next.stored) => {
                last.length += next.length;
            }
            _ => found.push(next),
        }
    }
    Ok(found)
}
