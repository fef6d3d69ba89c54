//! What a file is, and where its disk has data.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use comfy_table::Cell;
use serde_json::json;
use shoal_formats::{ExtentKind, FileSystem, Format, MapExtent, survey};

use super::{Stop, extents, open, unreadable};
use crate::error::Error;
use crate::screen::{Screen, bytes, table};

/// `stat` counts in these, whatever the file system's blocks are.
const STAT_BLOCK_BYTES: u64 = 512;

pub(super) fn info(path: &Path, format: Option<Format>, screen: Screen) -> Result<(), Error> {
    let mut disk = open(path, format)?;
    let about = path.metadata().map_err(Error::file("looking at", path))?;
    let actual = about.blocks() * STAT_BLOCK_BYTES;
    let plan = survey(&mut *disk).map_err(unreadable(path))?;
    let (found, length) = (disk.format(), disk.virtual_bytes());
    let name = |system: Option<FileSystem>| system.map(FileSystem::as_str);
    let volumes: Vec<_> = plan.volumes().iter().collect();
    let shown = json!({
        "filename": path,
        "format": found.as_str(),
        "virtual-size": length,
        "actual-size": actual,
        "volumes": volumes.iter().map(|volume| json!({
            "offset": volume.offset,
            "length": volume.length,
            "file-system": name(volume.file_system),
            "free": volume.free_bytes,
        })).collect::<Vec<_>>(),
    });
    screen.show(&shown, || {
        let mut text = format!(
            "image: {}\nfile format: {found}\nvirtual size: {} ({length} bytes)\ndisk size: {}",
            path.display(),
            bytes(length),
            bytes(actual)
        );
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

pub(super) fn map(
    path: &Path,
    format: Option<Format>,
    stop: &Stop,
    screen: Screen,
) -> Result<(), Error> {
    let mut disk = open(path, format)?;
    let mut found: Vec<MapExtent> = Vec::new();
    let mut keep = |extent| {
        found.push(extent);
        Ok(())
    };
    extents(&mut *disk, stop, &mut keep, unreadable(path))?;
    let is_zero = |extent: &MapExtent| extent.kind == ExtentKind::Zero;
    let shown: Vec<_> = found
        .iter()
        .map(|extent| {
            json!({
                "start": extent.offset,
                "length": extent.length,
                "depth": 0,
                "present": true,
                "zero": is_zero(extent),
                "data": !is_zero(extent),
            })
        })
        .collect();
    screen.show(&shown, || {
        let mut rows = table(&["OFFSET", "LENGTH", "KIND"]);
        for extent in &found {
            let kind = if is_zero(extent) { "zero" } else { "data" };
            rows.add_row([
                Cell::new(format!("{:#x}", extent.offset)),
                Cell::new(format!("{:#x}", extent.length)),
                Cell::new(kind),
            ]);
        }
        rows.to_string()
    })
}
