//! Signs that what a file system calls free may still matter to somebody else.
//!
//! A superblock can outlive its file system (mdadm writes its own beside it), and some disks are
//! checked byte by byte, free space included (dm-verity, Android's verified boot, an ISO's
//! checksum). Windows keeps a shadow copy's content in clusters that are free since. Where such a
//! sign is found, nothing is taken for free; files still guide the cuts.
//!
//! Invariant: a sign only ever costs dedup.
//! Non-goal: finding all of them; `keep_free_space` is for the rest.

use super::Stop;
use super::fields::Little;
use super::volume::Volume;

/// Offset from the volume's start, and what stands there.
const AT_START: [(u64, &[u8]); 14] = [
    (0, b"LUKS\xba\xbe"),
    (3, b"-FVE-FS-"),
    (3, b"ReFS\0"),
    (0, b"verity\0\0"),
    // mdadm, versions 1.1 and 1.2.
    (0, &[0xfc, 0x4e, 0x2b, 0xa9]),
    (4096, &[0xfc, 0x4e, 0x2b, 0xa9]),
    // bcache.
    (4096 + 24, &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca]),
    (0, b"hsqs"),
    (1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    (0x8001, b"CD001"),
    (0x8001, b"BEA01"),
    // ZFS' first uberblock.
    (128 * 1024, &[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0]),
    (4096 - 10, b"SWAPSPACE2"),
    // A Windows dynamic disk with an MBR: its private header, in sector 6.
    (6 * 512, b"PRIVHEAD"),
];

/// Offset back from the volume's end, and what stands there.
const AT_END: [(u64, &[u8]); 2] = [(64, b"AVBf"), (8192, &[0xfc, 0x4e, 0x2b, 0xa9])];

/// In the boot file of NTFS: the header of Volume Shadow Copies, and the identifier it starts with
/// (libvshadow, "Volume Shadow Snapshot (VSS) format").
const SHADOW_COPIES_AT: usize = 0x1e00;
const SHADOW_COPIES_HEADER_BYTES: usize = 100;
const SHADOW_COPIES: [u8; 16] = [
    0x6b, 0x87, 0x08, 0x38, 0x76, 0xc1, 0x48, 0x4e, 0xb7, 0xae, 0x04, 0x04, 0x6e, 0x6c, 0xc7, 0x52,
];

/// Whether the volume bears a sign of another user.
pub(super) fn has_another_user(volume: &mut Volume<'_>) -> Result<bool, Stop> {
    let length = volume.length();
    let head = volume.read(0, length.min(64 * 1024) as usize)?;
    if has_shadow_copies(&head)? {
        return Ok(true);
    }
    let mut signs: Vec<(u64, &[u8])> = AT_START.to_vec();
    signs
        .extend(AT_END.iter().filter_map(|(back, sign)| Some((length.checked_sub(*back)?, *sign))));
    // mdadm 0.90: in the last whole 64 KiB but one.
    if length >= 128 * 1024 {
        signs.push(((length & !0xffff) - 0x1_0000, &[0xfc, 0x4e, 0x2b, 0xa9]));
    }
    for (at, sign) in signs {
        let end = at + sign.len() as u64;
        let there = if end <= head.len() as u64 {
            head[at as usize..end as usize] == *sign
        } else {
            end <= length && volume.read(at, sign.len())? == sign
        };
        if there {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The header outlives the last shadow copy; then it names no catalog. One whose copies are kept on
/// another volume may name none either.
fn has_shadow_copies(head: &[u8]) -> Result<bool, Stop> {
    let header = head.get(SHADOW_COPIES_AT..SHADOW_COPIES_AT + SHADOW_COPIES_HEADER_BYTES);
    let Some(header) = header.filter(|header| header.starts_with(&SHADOW_COPIES)) else {
        return Ok(false);
    };
    let fields = Little(header);
    let (catalog, volume, storage) =
        (fields.u64(48)?, fields.bytes(64, 16)?, fields.bytes(80, 16)?);
    let elsewhere = storage != volume && storage.iter().any(|byte| *byte != 0);
    Ok(catalog != 0 || elsewhere)
}
