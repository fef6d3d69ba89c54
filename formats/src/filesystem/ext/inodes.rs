//! Inodes: the extents or block maps of each, in the order of their numbers.
//!
//! Invariants: tables are read a piece at a time; a tree is followed no deeper than the format
//! allows; a broken inode ends the survey, since its neighbours are no better.

use super::Super;
use super::groups::Group;
use crate::filesystem::Stop;
use crate::filesystem::fields::Little;
use crate::filesystem::map::{Owner, Piece, VolumeMap};
use crate::filesystem::volume::Volume;

/// Of an inode table, read at once.
const TABLE_BYTES: usize = 256 * 1024;
const EXTENT_DEPTH_MAX: u16 = 5;
const EXTENT_MAGIC: u16 = 0xf30a;
/// A longer extent is one that was reserved and not written.
const EXTENT_BLOCKS_MAX: u64 = 32_768;
/// Of the mode.
const TYPE_MASK: u16 = 0xf000;
const TYPE_DIRECTORY: u16 = 0x4000;
const FLAG_EXTENTS: u32 = 0x8_0000;
const FLAG_INLINE: u32 = 0x1000_0000;
/// Bad blocks, and the blocks kept for a longer table of descriptors.
const SKIPPED: [u64; 2] = [1, 7];

pub(super) fn add_pieces(
    volume: &mut Volume<'_>,
    fs: &Super,
    groups: &[Group],
    map: &mut VolumeMap,
) -> Result<(), Stop> {
    for (number, group) in (0u64..).zip(groups) {
        let first = number * u64::from(fs.inodes_per_group) + 1;
        let length = group.inodes as usize * fs.inode;
        for from in (0..length).step_by(TABLE_BYTES) {
            let at = group.table * fs.block + from as u64;
            let table = volume.read(at, TABLE_BYTES.min(length - from))?;
            for (slot, inode) in table.chunks_exact(fs.inode).enumerate() {
                let number = first + (from / fs.inode + slot) as u64;
                if !SKIPPED.contains(&number) {
                    Walk { volume, fs, map, owner: Owner::File }.inode(inode)?;
                }
            }
        }
    }
    Ok(())
}

struct Walk<'a, 'v> {
    volume: &'a mut Volume<'v>,
    fs: &'a Super,
    map: &'a mut VolumeMap,
    owner: Owner,
}

impl Walk<'_, '_> {
    fn inode(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let fields = Little(bytes);
        let (mode, links, flags) = (fields.u16(0)?, fields.u16(0x1a)?, fields.u32(0x20)?);
        let kind = mode & TYPE_MASK;
        let has_blocks = match kind {
            0x8000 | TYPE_DIRECTORY => true,
            // A symbolic link of up to 59 bytes stands in the inode itself.
            0xa000 => flags & FLAG_EXTENTS != 0 || fields.u32(0x4)? >= 60,
            _ => false,
        };
        if !has_blocks || links == 0 || flags & FLAG_INLINE != 0 {
            return Ok(());
        }
        if kind == TYPE_DIRECTORY {
            self.owner = Owner::Directory;
        }
        let root = fields.bytes(0x28, 60)?;
        if flags & FLAG_EXTENTS != 0 {
            return self.extents(root, EXTENT_DEPTH_MAX);
        }
        let pointers = Little(root);
        let mut position = 0;
        for slot in 0..12 {
            self.block(pointers.u32(slot * 4)?, position)?;
            position += 1;
        }
        let per_block = self.fs.block / 4;
        for (slot, level) in [(12, 1), (13, 2), (14, 3)] {
            self.indirect(pointers.u32(slot * 4)?, level, position)?;
            position += per_block.pow(level);
        }
        Ok(())
    }

    fn extents(&mut self, node: &[u8], depth_max: u16) -> Result<(), Stop> {
        let fields = Little(node);
        let (entries, depth) = (usize::from(fields.u16(2)?), fields.u16(6)?);
        if fields.u16(0)? != EXTENT_MAGIC || depth > depth_max || (entries + 1) * 12 > node.len() {
            return Err(Stop::Malformed);
        }
        for entry in (1..=entries).map(|slot| slot * 12) {
            if depth == 0 {
                let mut count = u64::from(fields.u16(entry + 4)?);
                if count > EXTENT_BLOCKS_MAX {
                    count -= EXTENT_BLOCKS_MAX;
                }
                let high = u64::from(fields.u16(entry + 6)?) << 32;
                let start = u64::from(fields.u32(entry + 8)?) | high;
                self.run(start, count, u64::from(fields.u32(entry)?))?;
            } else {
                let high = u64::from(fields.u16(entry + 8)?) << 32;
                let child = u64::from(fields.u32(entry + 4)?) | high;
                let child = self.node(child)?;
                // Strictly less deep: a node that points to itself is refused.
                if Little(&child).u16(6)? >= depth {
                    return Err(Stop::Malformed);
                }
                self.extents(&child, depth - 1)?;
            }
        }
        Ok(())
    }

    fn indirect(&mut self, block: u32, level: u32, position: u64) -> Result<(), Stop> {
        if block == 0 {
            return Ok(());
        }
        let node = self.node(u64::from(block))?;
        let step = (self.fs.block / 4).pow(level - 1);
        for slot in 0..node.len() / 4 {
            let (pointer, position) = (Little(&node).u32(slot * 4)?, position + slot as u64 * step);
            if level == 1 {
                self.block(pointer, position)?;
            } else {
                self.indirect(pointer, level - 1, position)?;
            }
        }
        Ok(())
    }

    fn node(&mut self, block: u64) -> Result<Vec<u8>, Stop> {
        let at = block.checked_mul(self.fs.block).ok_or(Stop::Malformed)?;
        self.volume.read(at, self.fs.block as usize)
    }

    fn block(&mut self, block: u32, position: u64) -> Result<(), Stop> {
        if block == 0 { Ok(()) } else { self.run(u64::from(block), 1, position) }
    }

    /// In blocks.
    fn run(&mut self, start: u64, count: u64, position: u64) -> Result<(), Stop> {
        if start.checked_add(count).is_none_or(|end| end > self.fs.blocks) {
            return Err(Stop::Malformed);
        }
        let (block, owner) = (self.fs.block, self.owner);
        let position = position.checked_mul(block).ok_or(Stop::Malformed)?;
        self.map.add_piece(Piece { owner, start: start * block, length: count * block, position })
    }
}
