//! XFS, versions 4 and 5: the free-space trees and the inodes of each allocation group.
//!
//! Invariants: free is what a group's tree by block number says, where the log ends in an unmount
//! record, the tree's sum is the group's own count, and no feature is unknown here.
//! Non-goals: replaying a log; the realtime device; checksums.
//!
//! Layout: "XFS Algorithms & Data Structures", 3rd edition.

mod inodes;
mod log;
mod tree;

use super::Stop;
use super::fields::Big;
use super::map::VolumeMap;
use super::volume::Volume;

const SUPERBLOCK_BYTES: usize = 512;
const GROUPS_MAX: u32 = 65_536;

/// FTYPE, SPINODES, META_UUID, BIGTIME, NEEDSREPAIR, NREXT64, EXCHRANGE, PARENT.
const INCOMPAT_KNOWN: u32 = 0xff;
const INCOMPAT_SPARSE_INODES: u32 = 0x2;
const INCOMPAT_NEEDS_REPAIR: u32 = 0x10;
/// FINOBT, RMAPBT, REFLINK, INOBTCNT.
const RO_KNOWN: u32 = 0xf;

/// What the superblock says, checked.
#[derive(Debug, Clone)]
struct Super {
    /// In bytes.
    block: u64,
    blocks: u64,
    group_blocks: u64,
    groups: u32,
    sector: u64,
    /// In bytes.
    inode: usize,
    inodes_per_block_shift: u32,
    group_blocks_shift: u32,
    version: u16,
    sparse_inodes: bool,
    /// First block and count; `None` where it lies elsewhere.
    log: Option<(u64, u64)>,
    trusted: bool,
}

/// `head` is the volume's first sector or more.
pub(super) fn is_xfs(head: &[u8]) -> bool {
    head.starts_with(b"XFSB")
}

/// Fills `map`; what it holds where this fails is used for cuts only.
pub(super) fn survey(volume: &mut Volume<'_>, map: &mut VolumeMap) -> Result<(), Stop> {
    let superblock = volume.read(0, SUPERBLOCK_BYTES)?;
    let fs = Super::parse(&superblock, volume.length())?;
    if fs.trusted && log::is_clean(volume, &fs)? {
        let mut said = VolumeMap::new(fs.blocks * fs.block);
        for group in 0..fs.groups {
            add_free(volume, &fs, group, &mut said)?;
        }
        for range in said.free {
            map.add_free(range)?;
        }
    }
    for group in 0..fs.groups {
        inodes::add_pieces(volume, &fs, group, map)?;
    }
    Ok(())
}

impl Super {
    fn parse(bytes: &[u8], volume_bytes: u64) -> Result<Self, Stop> {
        let fields = Big(bytes);
        let version = fields.u16(100)? & 0xf;
        let (ro_compat, incompat) = (fields.u32(212)?, fields.u32(216)?);
        let is_new = match version {
            4 => false,
            5 => true,
            _ => return Err(Stop::Malformed),
        };
        if is_new && incompat & !INCOMPAT_KNOWN != 0 {
            return Err(Stop::Malformed);
        }
        let (block, blocks) = (u64::from(fields.u32(4)?), fields.u64(8)?);
        let (group_blocks, groups) = (u64::from(fields.u32(84)?), fields.u32(88)?);
        let (sector, inode) = (u64::from(fields.u16(102)?), usize::from(fields.u16(104)?));
        let inodes_per_block_shift = u32::from(fields.u8(123)?);
        let group_blocks_shift = u32::from(fields.u8(124)?);
        let sound = block.is_power_of_two()
            && (512..=65_536).contains(&block)
            && blocks.checked_mul(block).is_some_and(|bytes| bytes <= volume_bytes)
            && sector.is_power_of_two()
            && (512..=32_768).contains(&sector)
            && inode.is_power_of_two()
            && (256..=2048).contains(&inode)
            && inode as u64 <= block
            && block / inode as u64 == 1u64.checked_shl(inodes_per_block_shift).unwrap_or(0)
            && group_blocks_shift < 32
            && (1..=1 << group_blocks_shift).contains(&group_blocks)
            && (1..=GROUPS_MAX).contains(&groups)
            && blocks.div_ceil(group_blocks) == u64::from(groups);
        if !sound {
            return Err(Stop::Malformed);
        }
        let log_start = fields.u64(48)?;
        let trusted = fields.u8(126)? == 0
            && (!is_new
                || ro_compat & !RO_KNOWN == 0
                    && incompat & INCOMPAT_NEEDS_REPAIR == 0
                    && fields.u32(220)? == 0);
        Ok(Self {
            block,
            blocks,
            group_blocks,
            groups,
            sector,
            inode,
            inodes_per_block_shift,
            group_blocks_shift,
            version,
            sparse_inodes: is_new && incompat & INCOMPAT_SPARSE_INODES != 0,
            log: (log_start != 0).then_some((log_start, u64::from(fields.u32(96)?))),
            trusted,
        })
    }

    /// Blocks of this group.
    fn length_of(&self, group: u32) -> u64 {
        self.group_blocks.min(self.blocks - u64::from(group) * self.group_blocks)
    }

    /// Where a block of a group lies, in bytes of the volume.
    fn in_group(&self, group: u32, block: u64) -> Result<u64, Stop> {
        if group >= self.groups || block >= self.length_of(group) {
            return Err(Stop::Malformed);
        }
        Ok((u64::from(group) * self.group_blocks + block) * self.block)
    }

    /// Where a block that is named by group and number lies, in bytes of the volume.
    fn absolute(&self, block: u64) -> Result<u64, Stop> {
        let group = u32::try_from(block >> self.group_blocks_shift).map_err(|_| Stop::Malformed)?;
        self.in_group(group, block & ((1 << self.group_blocks_shift) - 1))
    }

    /// A group's header in its sector `number`, with its magic checked.
    fn header(
        &self,
        volume: &mut Volume<'_>,
        group: u32,
        number: u64,
        magic: &[u8],
    ) -> Result<Vec<u8>, Stop> {
        let start = self.in_group(group, 0)?;
        let header = volume.read(start + number * self.sector, self.sector as usize)?;
        if !header.starts_with(magic) || Big(&header).u32(8)? != group {
            return Err(Stop::Malformed);
        }
        Ok(header)
    }
}

fn add_free(
    volume: &mut Volume<'_>,
    fs: &Super,
    group: u32,
    map: &mut VolumeMap,
) -> Result<(), Stop> {
    let header = fs.header(volume, group, 1, b"XAGF")?;
    let header = Big(&header);
    let (root, levels, expected) = (header.u32(16)?, header.u32(28)?, header.u32(52)?);
    let tree = tree::Short { magics: [b"ABTB", b"AB3B"], key: 8, record: 8 };
    let (mut end, mut total) = (0, 0);
    tree.walk(volume, fs, group, root, levels, &mut |_, record| {
        let (start, count) = (u64::from(record.u32(0)?), u64::from(record.u32(4)?));
        // Ascending, so that a tree that loops ends.
        if count == 0 || start < end || start + count > fs.length_of(group) {
            return Err(Stop::Malformed);
        }
        end = start + count;
        total += count;
        let start = fs.in_group(group, start)?;
        map.add_free(start..start + count * fs.block)
    })?;
    if total == u64::from(expected) { Ok(()) } else { Err(Stop::Malformed) }
}
