//! Whether the log ends in an unmount record.
//!
//! Invariant: anything that is not plainly the end of a clean log is taken for a log that must be
//! replayed.
//! Non-goal: replaying it.
//!
//! As `xlog_find_head` and `xlog_check_unmount_rec` of the Linux kernel see a log at rest.

use super::Super;
use crate::filesystem::Stop;
use crate::filesystem::fields::Big;
use crate::filesystem::volume::Volume;

const BLOCK_BYTES: u64 = 512;
const RECORD_MAGIC: u32 = 0xfeed_babe;
/// Blocks of the longest record, with its headers.
const RECORD_BLOCKS_MAX: u64 = 520;
/// Bytes of a record that one header block describes.
const HEADER_COVERS_BYTES: u32 = 32 * 1024;
const UNMOUNT: u8 = 0x20;

pub(super) fn is_clean(volume: &mut Volume<'_>, fs: &Super) -> Result<bool, Stop> {
    let Some((start, blocks)) = fs.log else { return Ok(false) };
    let start = fs.absolute(start)?;
    let count = blocks.checked_mul(fs.block).ok_or(Stop::Malformed)? / BLOCK_BYTES;
    if count < 2 {
        return Ok(false);
    }
    let mut read = |block: u64| volume.read(start + block * BLOCK_BYTES, BLOCK_BYTES as usize);
    let first = cycle(&read(0)?)?;
    if first == 0 {
        return Ok(false);
    }
    // Blocks before the head have the first block's cycle, those after it an earlier one.
    let (mut low, mut head) = (1, count);
    while low < head {
        let middle = low + (head - low) / 2;
        if cycle(&read(middle)?)? == first {
            low = middle + 1;
        } else {
            head = middle;
        }
    }
    for at in (head.saturating_sub(RECORD_BLOCKS_MAX)..head).rev() {
        let block = read(at)?;
        let fields = Big(&block);
        if fields.u32(0)? != RECORD_MAGIC {
            continue;
        }
        let is_second = fields.u32(8)? & 2 != 0;
        let headers =
            if is_second { fields.u32(320)?.div_ceil(HEADER_COVERS_BYTES).max(1) } else { 1 };
        let data = at + u64::from(headers);
        let end = data + u64::from(fields.u32(12)?).div_ceil(BLOCK_BYTES);
        if end != head || fields.u32(40)? != 1 || data >= head {
            return Ok(false);
        }
        return Ok(Big(&read(data)?).u8(9)? & UNMOUNT != 0);
    }
    Ok(false)
}

fn cycle(block: &[u8]) -> Result<u32, Stop> {
    let fields = Big(block);
    let first = fields.u32(0)?;
    if first == RECORD_MAGIC { fields.u32(4) } else { Ok(first) }
}
