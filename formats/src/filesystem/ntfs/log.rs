//! Whether $LogFile is at rest.
//!
//! Invariant: anything that is not plainly at rest is taken for a log that must be replayed.
//! Non-goal: replaying it.
//!
//! As `ntfs_is_logfile_clean` of ntfs-3g sees it.

use super::record::fix_up;
use super::{Boot, Run};
use crate::filesystem::Stop;
use crate::filesystem::fields::Little;
use crate::filesystem::map::Piece;
use crate::filesystem::volume::Volume;

/// The restart pages: one at the start, one a page further.
const PAGE_BYTES: usize = 4096;
const NO_CLIENT: u16 = 0xffff;
const VOLUME_IS_CLEAN: u16 = 2;

pub(super) fn is_clean(volume: &mut Volume<'_>, boot: &Boot, runs: &[Run]) -> Result<bool, Stop> {
    let Some(first) = runs.first().filter(|run| run.position == 0) else { return Ok(false) };
    let Piece { start, length, .. } = boot.piece(*first)?;
    if length < 2 * PAGE_BYTES as u64 {
        return Ok(false);
    }
    let pages = volume.read(start, 2 * PAGE_BYTES)?;
    // Emptied on purpose: there is nothing to replay.
    if pages.iter().all(|byte| *byte == 0xff) {
        return Ok(true);
    }
    let mut newest = None;
    for page in pages.chunks_exact(PAGE_BYTES) {
        let mut page = page.to_vec();
        if !page.starts_with(b"RSTR") || !fix_up(&mut page)? {
            continue;
        }
        let fields = Little(&page);
        let area = usize::from(fields.u16(24)?);
        let (sequence, clients) = (fields.u64(area)?, fields.u16(area + 12)?);
        let clean = clients == NO_CLIENT || fields.u16(area + 14)? & VOLUME_IS_CLEAN != 0;
        newest = newest.max(Some((sequence, clean)));
    }
    Ok(newest.is_some_and(|(_, clean)| clean))
}
