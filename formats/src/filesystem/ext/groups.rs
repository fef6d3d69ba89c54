//! Block groups: where their bitmaps and inode tables lie, and what they hold free.
//!
//! Invariant: all of a group's metadata, and every place where a superblock or descriptors may
//! have a copy, is never free, whatever a bitmap says.

use std::ops::Range;

use super::{INCOMPAT_META_BG, RO_GROUP_FLAGS, SUPERBLOCK_OFFSET, Super};
use crate::filesystem::Stop;
use crate::filesystem::fields::Little;
use crate::filesystem::map::{VolumeMap, join, subtract};
use crate::filesystem::volume::Volume;

/// Groups of 128 MiB for 16 TiB, or of 8 MiB for 1 TiB.
const GROUPS_MAX: u64 = 131_072;
const INODES_UNUSED: u16 = 1;
const BLOCKS_UNUSED: u16 = 2;

/// One group's descriptor. Places are block numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group {
    bitmap: u64,
    inode_bitmap: u64,
    pub table: u64,
    /// In clusters.
    free: u64,
    /// Inodes from the table's start that may be in use.
    pub inodes: u32,
    /// No bitmap was written: only metadata are in use.
    unused: bool,
}

pub(super) fn read(volume: &mut Volume<'_>, fs: &Super) -> Result<Vec<Group>, Stop> {
    if fs.groups > GROUPS_MAX {
        return Err(Stop::Budget);
    }
    let per_block = fs.block / fs.descriptor as u64;
    let mut groups = Vec::with_capacity(fs.groups as usize);
    for number in 0..fs.groups.div_ceil(per_block) {
        let at = descriptor_block(fs, number, per_block);
        let block =
            volume.read(at.checked_mul(fs.block).ok_or(Stop::Malformed)?, fs.block as usize)?;
        for bytes in block.chunks_exact(fs.descriptor) {
            if (groups.len() as u64) < fs.groups {
                groups.push(parse(fs, bytes)?);
            }
        }
    }
    Ok(groups)
}

/// Where block `number` of the descriptors lies.
fn descriptor_block(fs: &Super, number: u64, per_block: u64) -> u64 {
    if fs.incompat & INCOMPAT_META_BG == 0 || number < fs.first_meta_group {
        // In blocks of 1 KiB the superblock is block 1, in larger ones it is within block 0.
        return SUPERBLOCK_OFFSET / fs.block + 1 + number;
    }
    let group = number * per_block;
    fs.group_start(group) + u64::from(fs.has_superblock(group))
}

fn parse(fs: &Super, bytes: &[u8]) -> Result<Group, Stop> {
    let fields = Little(bytes);
    let wide = bytes.len() >= 64;
    let place = |low, high| -> Result<u64, Stop> {
        let high = if wide { u64::from(fields.u32(high)?) << 32 } else { 0 };
        Ok(u64::from(fields.u32(low)?) | high)
    };
    let count = |low, high| -> Result<u32, Stop> {
        let high = if wide { u32::from(fields.u16(high)?) << 16 } else { 0 };
        Ok(u32::from(fields.u16(low)?) | high)
    };
    let flags = if fs.ro_compat & RO_GROUP_FLAGS == 0 { 0 } else { fields.u16(0x12)? };
    let unused_inodes = if fs.ro_compat & RO_GROUP_FLAGS == 0 { 0 } else { count(0x1c, 0x32)? };
    let inodes = if flags & INODES_UNUSED == 0 {
        fs.inodes_per_group.saturating_sub(unused_inodes)
    } else {
        0
    };
    let group = Group {
        bitmap: place(0x0, 0x20)?,
        inode_bitmap: place(0x4, 0x24)?,
        table: place(0x8, 0x28)?,
        free: u64::from(count(0xc, 0x2c)?),
        inodes,
        unused: flags & BLOCKS_UNUSED != 0,
    };
    let table_end = group.table.checked_add(fs.table_blocks()).ok_or(Stop::Malformed)?;
    if group.bitmap >= fs.blocks || group.inode_bitmap >= fs.blocks || table_end > fs.blocks {
        return Err(Stop::Malformed);
    }
    Ok(group)
}

/// Notes what is free, of all groups or of none.
pub(super) fn add_free(
    volume: &mut Volume<'_>,
    fs: &Super,
    groups: &[Group],
    map: &mut VolumeMap,
) -> Result<(), Stop> {
    let mut said = VolumeMap::new(fs.blocks * fs.block);
    let cluster = fs.cluster_blocks * fs.block;
    for (number, group) in (0u64..).zip(groups) {
        let start = fs.group_start(number) * fs.block;
        let blocks = fs.group_blocks(number);
        if group.unused {
            said.add_free(start..start + blocks * fs.block)?;
            continue;
        }
        let bitmap = volume.read(group.bitmap * fs.block, fs.block as usize)?;
        // A last cluster that is not whole counts, and is left out.
        let whole = said.add_bitmap(&bitmap, start, cluster, blocks / fs.cluster_blocks)?;
        let part = !blocks.is_multiple_of(fs.cluster_blocks)
            && bitmap
                .get((blocks / fs.cluster_blocks / 8) as usize)
                .is_some_and(|byte| byte >> (blocks / fs.cluster_blocks % 8) & 1 == 0);
        if whole + u64::from(part) != group.free {
            return Err(Stop::Malformed);
        }
    }
    let metadata = metadata(fs, groups);
    for range in subtract(&said.free, &metadata) {
        map.add_free(range)?;
    }
    Ok(())
}

/// In bytes, sorted and disjoint.
fn metadata(fs: &Super, groups: &[Group]) -> Vec<Range<u64>> {
    let per_block = fs.block / fs.descriptor as u64;
    let descriptors = fs.groups.div_ceil(per_block) + fs.reserved_descriptor_blocks;
    let mut ranges = Vec::with_capacity(groups.len() * 4);
    let mut add = |first: u64, count: u64| {
        ranges.push(first * fs.block..(first + count).min(fs.blocks) * fs.block);
    };
    for (number, group) in (0u64..).zip(groups) {
        add(group.bitmap, 1);
        add(group.inode_bitmap, 1);
        add(group.table, fs.table_blocks());
        let start = fs.group_start(number);
        if fs.has_superblock(number) {
            // The first group's superblock may be its second block.
            let before = (SUPERBLOCK_OFFSET / fs.block).saturating_sub(fs.first_block);
            add(start, descriptors + 1 + if number == 0 { before } else { 0 });
        } else if fs.incompat & INCOMPAT_META_BG != 0 {
            add(start, 2);
        }
    }
    join(&mut ranges);
    ranges
}
