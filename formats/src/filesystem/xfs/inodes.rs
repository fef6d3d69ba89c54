//! Inodes: the extents of each, in the order of their numbers.
//!
//! Invariant: a tree whose records do not ascend is refused, so that none is followed for ever.

use super::{Super, tree};
use crate::filesystem::Stop;
use crate::filesystem::fields::Big;
use crate::filesystem::map::{Owner, Piece, VolumeMap};
use crate::filesystem::volume::Volume;

const INODES_PER_RECORD: u32 = 64;
/// Inodes that one bit of a record's hole mask stands for.
const INODES_PER_HOLE: u32 = 4;
const TYPE_DIRECTORY: u16 = 0x4000;
const FORMAT_EXTENTS: u8 = 2;
const FORMAT_TREE: u8 = 3;
const FLAG_REALTIME: u16 = 1;
const FLAG_MANY_EXTENTS: u64 = 1 << 4;
const EXTENT_BYTES: usize = 16;

pub(super) fn add_pieces(
    volume: &mut Volume<'_>,
    fs: &Super,
    group: u32,
    map: &mut VolumeMap,
) -> Result<(), Stop> {
    let header = fs.header(volume, group, 2, b"XAGI")?;
    let header = Big(&header);
    let (root, levels) = (header.u32(20)?, header.u32(24)?);
    let kind = tree::Short { magics: [b"IABT", b"IAB3"], key: 4, record: 16 };
    let mut next = 0;
    kind.walk(volume, fs, group, root, levels, &mut |volume, record| {
        let (first, free) = (record.u32(0)?, record.u64(8)?);
        let holes = if fs.sparse_inodes { record.u16(4)? } else { 0 };
        if u64::from(first) < next {
            return Err(Stop::Malformed);
        }
        next = u64::from(first) + u64::from(INODES_PER_RECORD);
        let used = |slot: u32| free >> slot & 1 == 0 && holes >> (slot / INODES_PER_HOLE) & 1 == 0;
        // The first and the last that are there: what a hole stands for may be anybody's.
        let Some(from) = (0..INODES_PER_RECORD).find(|slot| used(*slot)) else { return Ok(()) };
        let to = (from..INODES_PER_RECORD).rfind(|slot| used(*slot)).unwrap_or(from);
        let place = |inode: u32| -> Result<u64, Stop> {
            let block = u64::from(inode >> fs.inodes_per_block_shift);
            let slot = u64::from(inode & ((1 << fs.inodes_per_block_shift) - 1));
            Ok(fs.in_group(group, block)? + slot * fs.inode as u64)
        };
        let first_used = first.checked_add(from).ok_or(Stop::Malformed)?;
        let bytes = volume.read(place(first_used)?, (to - from + 1) as usize * fs.inode)?;
        for (slot, inode) in (from..).zip(bytes.chunks_exact(fs.inode)) {
            if used(slot) {
                add_inode(volume, fs, inode, map)?;
            }
        }
        Ok(())
    })
}

fn add_inode(
    volume: &mut Volume<'_>,
    fs: &Super,
    inode: &[u8],
    map: &mut VolumeMap,
) -> Result<(), Stop> {
    let fields = Big(inode);
    if !inode.starts_with(b"IN") {
        return Err(Stop::Malformed);
    }
    let is_third = fields.u8(4)? >= 3;
    let core = if is_third { 176 } else { 100 };
    let kind = fields.u16(2)? & 0xf000;
    let has_blocks = matches!(kind, 0x8000 | TYPE_DIRECTORY | 0xa000);
    let owner = if kind == TYPE_DIRECTORY { Owner::Directory } else { Owner::File };
    if !has_blocks || fields.u16(90)? & FLAG_REALTIME != 0 {
        return Ok(());
    }
    let fork = match usize::from(fields.u8(82)?) * 8 {
        0 => fields.bytes(core, fs.inode - core)?,
        length => fields.bytes(core, length)?,
    };
    let mut end = 0;
    let mut add = |_: &mut Volume<'_>, record: Big<'_>| {
        let (high, low) = (record.u64(0)?, record.u64(8)?);
        // 1 bit of state, 54 of position, 52 of place, 21 of count.
        let position = high >> 9 & ((1 << 54) - 1);
        let start = (high & 0x1ff) << 43 | low >> 21;
        let count = low & ((1 << 21) - 1);
        if count == 0 || position < end {
            return Err(Stop::Malformed);
        }
        end = position + count;
        // A run stays within its group.
        fs.absolute(start.checked_add(count - 1).ok_or(Stop::Malformed)?)?;
        let position = position.checked_mul(fs.block).ok_or(Stop::Malformed)?;
        let (start, length) = (fs.absolute(start)?, count * fs.block);
        map.add_piece(Piece { owner, start, length, position })
    };
    match fields.u8(5)? {
        FORMAT_EXTENTS => {
            let many = is_third && fields.u64(120)? & FLAG_MANY_EXTENTS != 0;
            let count = if many { fields.u64(24)? } else { u64::from(fields.u32(76)?) };
            if count > (fork.len() / EXTENT_BYTES) as u64 {
                return Err(Stop::Malformed);
            }
            for record in fork.chunks_exact(EXTENT_BYTES).take(count as usize) {
                add(volume, Big(record))?;
            }
            Ok(())
        }
        FORMAT_TREE => tree::walk_file(volume, fs, fork, &mut add),
        _ => Ok(()),
    }
}
