//! ext2, ext3 and ext4: the free-block bitmaps, and the blocks of every inode.
//!
//! Invariants: free is what a bitmap says, in a file system that was unmounted cleanly and has no
//! feature unknown here, less all that the layout gives to metadata; a group whose bitmap differs
//! from its own count costs the whole volume its trust.
//! Non-goals: checksums (the counts and the files' blocks are compared instead), names.
//!
//! Layout: Documentation/filesystems/ext4 of the Linux kernel.

mod groups;
mod inodes;

use super::Stop;
use super::fields::Little;
use super::map::VolumeMap;
use super::volume::Volume;

const SUPERBLOCK_OFFSET: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 1024;
const MAGIC: u16 = 0xef53;

const STATE_CLEAN: u16 = 1;
const STATE_ERRORS: u16 = 2;

const COMPAT_SPARSE_SUPER2: u32 = 0x200;
const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;
/// FILETYPE, RECOVER, META_BG, EXTENTS, 64BIT, MMP, FLEX_BG, EA_INODE, CSUM_SEED, LARGEDIR,
/// INLINE_DATA, ENCRYPT, CASEFOLD.
const INCOMPAT_KNOWN: u32 = 0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x3_e000;
const RO_SPARSE_SUPER: u32 = 0x1;
const RO_BIGALLOC: u32 = 0x200;
/// GDT_CSUM or METADATA_CSUM: the groups' flags mean something.
const RO_GROUP_FLAGS: u32 = 0x10 | 0x400;
/// SPARSE_SUPER, LARGE_FILE, BTREE_DIR, HUGE_FILE, GDT_CSUM, DIR_NLINK, EXTRA_ISIZE, QUOTA,
/// BIGALLOC, METADATA_CSUM, READONLY, PROJECT, SHARED_BLOCKS, VERITY, ORPHAN_PRESENT.
const RO_KNOWN: u32 = 0x7f | 0x100 | 0x200 | 0x400 | 0x1000 | 0x2000 | 0x4000 | 0x8000 | 0x1_0000;

/// What the superblock says, checked.
#[derive(Debug, Clone)]
struct Super {
    /// In bytes, a power of two from 1024 to 65,536.
    block: u64,
    /// Blocks of one bit in the bitmaps; 1 without bigalloc.
    cluster_blocks: u64,
    blocks: u64,
    first_block: u64,
    blocks_per_group: u64,
    inodes_per_group: u32,
    /// In bytes.
    inode: usize,
    groups: u64,
    descriptor: usize,
    compat: u32,
    incompat: u32,
    ro_compat: u32,
    first_meta_group: u64,
    reserved_descriptor_blocks: u64,
    backup_groups: [u32; 2],
    clean: bool,
}

/// Whether the volume starts with an ext superblock. `head` is its first 2 KiB or less.
pub(super) fn is_ext(head: &[u8]) -> bool {
    Little(head).u16(SUPERBLOCK_OFFSET as usize + 0x38).is_ok_and(|magic| magic == MAGIC)
}

/// Fills `map`; what it holds where this fails is used for cuts only.
pub(super) fn survey(volume: &mut Volume<'_>, map: &mut VolumeMap) -> Result<(), Stop> {
    let superblock = volume.read(SUPERBLOCK_OFFSET, SUPERBLOCK_BYTES)?;
    let superblock = Super::parse(&superblock, volume.length())?;
    let groups = groups::read(volume, &superblock)?;
    if superblock.clean {
        groups::add_free(volume, &superblock, &groups, map)?;
    }
    inodes::add_pieces(volume, &superblock, &groups, map)
}

impl Super {
    fn parse(bytes: &[u8], volume_bytes: u64) -> Result<Self, Stop> {
        let fields = Little(bytes);
        if fields.u16(0x38)? != MAGIC {
            return Err(Stop::Malformed);
        }
        let dynamic = fields.u32(0x4c)? >= 1;
        let feature = |at| if dynamic { fields.u32(at) } else { Ok(0) };
        let (compat, incompat, ro_compat) = (feature(0x5c)?, feature(0x60)?, feature(0x64)?);
        if incompat & !INCOMPAT_KNOWN != 0 {
            return Err(Stop::Malformed);
        }
        let (block_shift, cluster_shift) = (fields.u32(0x18)?, fields.u32(0x1c)?);
        if block_shift > 6 {
            return Err(Stop::Malformed);
        }
        let cluster_shift = if ro_compat & RO_BIGALLOC == 0 { block_shift } else { cluster_shift };
        if cluster_shift < block_shift || cluster_shift > 20 {
            return Err(Stop::Malformed);
        }
        let wide = incompat & INCOMPAT_64BIT != 0;
        let high = if wide { u64::from(fields.u32(0x150)?) << 32 } else { 0 };
        let (block, blocks) = (1024 << block_shift, u64::from(fields.u32(0x4)?) | high);
        let descriptor = if wide { usize::from(fields.u16(0xfe)?) } else { 32 };
        let inode = if dynamic { usize::from(fields.u16(0x58)?) } else { 128 };
        let first_block = u64::from(fields.u32(0x14)?);
        let blocks_per_group = u64::from(fields.u32(0x20)?);
        let inodes_per_group = fields.u32(0x28)?;
        let cluster_blocks = 1 << (cluster_shift - block_shift);
        let sound = blocks.checked_mul(block).is_some_and(|bytes| bytes <= volume_bytes)
            && first_block < blocks
            && blocks_per_group > 0
            && blocks_per_group.is_multiple_of(cluster_blocks)
            && blocks_per_group / cluster_blocks <= block * 8
            && u64::from(inodes_per_group) <= block * 8
            && inode.is_power_of_two()
            && (128..=block as usize).contains(&inode)
            && descriptor.is_power_of_two()
            && (32..=1024).contains(&descriptor);
        if !sound {
            return Err(Stop::Malformed);
        }
        let state = fields.u16(0x3a)?;
        Ok(Self {
            block,
            cluster_blocks,
            blocks,
            first_block,
            blocks_per_group,
            inodes_per_group,
            inode,
            groups: (blocks - first_block).div_ceil(blocks_per_group),
            descriptor,
            compat,
            incompat,
            ro_compat,
            first_meta_group: u64::from(fields.u32(0x104)?),
            reserved_descriptor_blocks: u64::from(fields.u16(0xce)?),
            backup_groups: [fields.u32(0x24c)?, fields.u32(0x250)?],
            clean: state & STATE_CLEAN != 0
                && state & STATE_ERRORS == 0
                && incompat & INCOMPAT_RECOVER == 0
                && ro_compat & !RO_KNOWN == 0,
        })
    }

    fn group_start(&self, group: u64) -> u64 {
        self.first_block + group * self.blocks_per_group
    }

    fn group_blocks(&self, group: u64) -> u64 {
        self.blocks_per_group.min(self.blocks - self.group_start(group))
    }

    /// Blocks of one group's inode table.
    fn table_blocks(&self) -> u64 {
        (u64::from(self.inodes_per_group) * self.inode as u64).div_ceil(self.block)
    }

    fn has_superblock(&self, group: u64) -> bool {
        if self.compat & COMPAT_SPARSE_SUPER2 != 0 {
            return group == 0 || self.backup_groups.iter().any(|g| u64::from(*g) == group);
        }
        let is_power_of = |base: u64| {
            let mut power = base;
            while power < group {
                power *= base;
            }
            power == group
        };
        group <= 1
            || self.ro_compat & RO_SPARSE_SUPER == 0
            || [3, 5, 7].into_iter().any(is_power_of)
    }
}
