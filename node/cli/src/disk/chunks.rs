//! What disks have in common.

use std::collections::HashSet;
use std::path::PathBuf;

use comfy_table::Cell;
use serde::Serialize;
use shoal_content::ChunkId;
use shoal_formats::survey;

use super::cut::cut;
use super::{Stop, bar, open, unreadable};
use crate::error::Error;
use crate::screen::{Screen, bytes, table};

/// Of one disk.
#[derive(Debug, Default, Serialize)]
struct Counted {
    file: PathBuf,
    /// What the guest sees.
    virtual_bytes: u64,
    /// What a file system calls free, counted as zero.
    free_bytes: u64,
    chunks: u64,
    content_bytes: u64,
    /// Chunks that neither this disk before them nor a disk before it has.
    new_chunks: u64,
    new_bytes: u64,
}

pub(super) fn chunks(
    files: &[PathBuf],
    keep_free_space: bool,
    stop: &Stop,
    screen: Screen,
) -> Result<(), Error> {
    let mut known: HashSet<ChunkId> = HashSet::new();
    let mut all = Vec::new();
    for file in files {
        let mut disk = open(file, None)?;
        let mut plan = survey(&mut *disk).map_err(unreadable(file))?;
        if keep_free_space {
            plan = plan.keeping_free_space();
        }
        let free_bytes = plan.free().iter().map(|range| range.end - range.start).sum();
        let virtual_bytes = disk.virtual_bytes();
        let mut counted =
            Counted { file: file.clone(), virtual_bytes, free_bytes, ..Counted::default() };
        let bar = bar(screen, virtual_bytes);
        cut(file, &mut *disk, &plan, stop, &|at| bar.set_position(at), &mut |cut| {
            let length = cut.content.len() as u64;
            counted.chunks += 1;
            counted.content_bytes += length;
            if known.insert(ChunkId::of(&cut.content)) {
                counted.new_chunks += 1;
                counted.new_bytes += length;
            }
            Ok(())
        })?;
        bar.finish_and_clear();
        all.push(counted);
    }
    screen.show(&all, || {
        let mut rows = table(&["FILE", "DISK", "FREE", "CHUNKS", "CONTENT", "NEW", "NEW BYTES"]);
        for one in &all {
            rows.add_row([
                Cell::new(one.file.display()),
                Cell::new(bytes(one.virtual_bytes)),
                Cell::new(bytes(one.free_bytes)),
                Cell::new(one.chunks),
                Cell::new(bytes(one.content_bytes)),
                Cell::new(one.new_chunks),
                Cell::new(bytes(one.new_bytes)),
            ]);
        }
        rows.to_string()
    })
}
