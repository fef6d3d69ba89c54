//! B+trees: those of an allocation group, with short pointers, and those of a file, with long ones.
//!
//! Invariants: the leftmost leaf is reached in at most [`LEVELS_MAX`] steps, each one level lower;
//! leaves are followed to the right, and the caller refuses records that do not ascend.

use super::Super;
use crate::filesystem::Stop;
use crate::filesystem::fields::Big;
use crate::filesystem::volume::Volume;

const LEVELS_MAX: u32 = 9;
const NONE_SHORT: u32 = u32::MAX;
const NONE_LONG: u64 = u64::MAX;

type Visit<'a> = dyn FnMut(&mut Volume<'_>, Big<'_>) -> Result<(), Stop> + 'a;

/// A kind of tree in an allocation group.
#[derive(Debug)]
pub(super) struct Short {
    /// Of versions 4 and 5.
    pub magics: [&'static [u8; 4]; 2],
    /// In bytes.
    pub key: usize,
    /// In bytes.
    pub record: usize,
}

impl Short {
    /// Calls `visit` with each record in order.
    pub fn walk(
        &self,
        volume: &mut Volume<'_>,
        fs: &Super,
        group: u32,
        root: u32,
        levels: u32,
        visit: &mut Visit<'_>,
    ) -> Result<(), Stop> {
        if !(1..=LEVELS_MAX).contains(&levels) {
            return Err(Stop::Malformed);
        }
        let head = if fs.version == 5 { 56 } else { 16 };
        let mut block = root;
        for level in (0..levels).rev() {
            let node = self.node(volume, fs, group, block, level)?;
            if level > 0 {
                let slots = (node.len() - head) / (self.key + 4);
                block = Big(&node).u32(head + slots * self.key)?;
            }
        }
        while block != NONE_SHORT {
            let leaf = self.node(volume, fs, group, block, 0)?;
            let fields = Big(&leaf);
            for slot in 0..usize::from(fields.u16(6)?) {
                visit(volume, Big(fields.bytes(head + slot * self.record, self.record)?))?;
            }
            // An empty leaf would let a loop go on for ever: only a tree without records has one.
            if fields.u16(6)? == 0 {
                return Ok(());
            }
            block = fields.u32(12)?;
        }
        Ok(())
    }

    fn node(
        &self,
        volume: &mut Volume<'_>,
        fs: &Super,
        group: u32,
        block: u32,
        level: u32,
    ) -> Result<Vec<u8>, Stop> {
        let node = volume.read(fs.in_group(group, u64::from(block))?, fs.block as usize)?;
        let known = self.magics.iter().any(|magic| node.starts_with(*magic));
        if !known || u32::from(Big(&node).u16(4)?) != level {
            return Err(Stop::Malformed);
        }
        Ok(node)
    }
}

/// Calls `visit` with each extent record of a file whose tree has its root in `root`.
pub(super) fn walk_file(
    volume: &mut Volume<'_>,
    fs: &Super,
    root: &[u8],
    visit: &mut Visit<'_>,
) -> Result<(), Stop> {
    const RECORD_BYTES: usize = 16;
    let fields = Big(root);
    let (levels, count) = (u32::from(fields.u16(0)?), fields.u16(2)?);
    if !(1..=LEVELS_MAX).contains(&levels) || count == 0 {
        return Err(Stop::Malformed);
    }
    let head = if fs.version == 5 { 72 } else { 24 };
    // In the inode, keys and pointers each take half of the room.
    let mut block = fields.u64(4 + (root.len() - 4) / RECORD_BYTES * 8)?;
    let read = |volume: &mut Volume<'_>, block: u64, level: u32| {
        let node = volume.read(fs.absolute(block)?, fs.block as usize)?;
        let known = node.starts_with(b"BMAP") || node.starts_with(b"BMA3");
        if !known || u32::from(Big(&node).u16(4)?) != level {
            return Err(Stop::Malformed);
        }
        Ok(node)
    };
    for level in (1..levels).rev() {
        let node = read(volume, block, level)?;
        block = Big(&node).u64(head + (node.len() - head) / RECORD_BYTES * 8)?;
    }
    while block != NONE_LONG {
        let leaf = read(volume, block, 0)?;
        let fields = Big(&leaf);
        let count = usize::from(fields.u16(6)?);
        for slot in 0..count {
            visit(volume, Big(fields.bytes(head + slot * RECORD_BYTES, RECORD_BYTES)?))?;
        }
        if count == 0 {
            return Err(Stop::Malformed);
        }
        block = fields.u64(16)?;
    }
    Ok(())
}
