//! Btrfs on one device: what the extent tree allocates, and where the chunk tree puts it.
//!
//! Invariants: free is what lies in no extent of a file system whose last transaction is whole
//! (there is no log tree to replay), where the extents' sum is the superblock's own; superblocks
//! and the first MiB are never free.
//! Non-goals: several devices, stripes, zones, files: a data extent is a file's piece as it is.
//!
//! Layout: "On-disk Format" in the Btrfs documentation.

mod chunks;
mod tree;

use std::ops::Range;

use self::chunks::Chunks;
use self::tree::Key;
use super::Stop;
use super::fields::Little;
use super::map::{FREE_MAX, Owner, Piece, VolumeMap, join, subtract};
use super::volume::Volume;

const SUPERBLOCK_OFFSET: u64 = 64 * 1024;
const SUPERBLOCK_BYTES: usize = 4096;
const MAGIC: &[u8] = b"_BHRfS_M";
/// The superblock and its copies, and what is kept around each.
const SUPERBLOCKS: [u64; 3] = [SUPERBLOCK_OFFSET, 64 << 20, 256 << 30];
const RESERVED_BYTES: u64 = 1 << 20;

/// Written and relocated: ordinary life. Others are of half-made or special file systems.
const FLAGS_KNOWN: u64 = 0x3;
/// Without zones (0x1000), the second extent tree (0x2000) and the stripe tree (0x4000).
const INCOMPAT_KNOWN: u64 = 0x1_0fff;
/// Free-space tree and its validity, verity, block-group tree.
const RO_KNOWN: u64 = 0xf;

const TREE_EXTENT: u64 = 2;
const ITEM_ROOT: u8 = 132;
const ITEM_EXTENT: u8 = 168;
const ITEM_METADATA: u8 = 169;
const EXTENT_IS_DATA: u64 = 1;

/// What the superblock says, checked.
#[derive(Debug)]
struct Super {
    root: u64,
    chunk_root: u64,
    /// Of this device.
    bytes: u64,
    bytes_used: u64,
    device: u64,
    /// In bytes.
    node: u64,
    trusted: bool,
    system_chunks: Vec<u8>,
}

/// `head` is the volume's first 68 KiB.
pub(super) fn is_btrfs(head: &[u8]) -> bool {
    let at = SUPERBLOCK_OFFSET as usize + 64;
    head.get(at..at + MAGIC.len()) == Some(MAGIC)
}

/// Fills `map`; what it holds where this fails is used for cuts only.
pub(super) fn survey(volume: &mut Volume<'_>, map: &mut VolumeMap) -> Result<(), Stop> {
    let superblock = volume.read(SUPERBLOCK_OFFSET, SUPERBLOCK_BYTES)?;
    let fs = Super::parse(&superblock, volume.length())?;
    let mut chunks = Chunks::default();
    chunks.add_system(&fs.system_chunks, fs.device)?;
    let mut all = Chunks::default();
    tree::walk(volume, &chunks, fs.node, fs.chunk_root, &mut |key, item| {
        all.add(key, item, fs.device)
    })?;
    all.sort()?;
    let chunks = all;
    let mut extents = None;
    tree::walk(volume, &chunks, fs.node, fs.root, &mut |key, item| {
        if key.object == TREE_EXTENT && key.kind == ITEM_ROOT {
            extents = Some(item.u64(176)?);
        }
        Ok(())
    })?;
    let mut taken = Taken::default();
    tree::walk(volume, &chunks, fs.node, extents.ok_or(Stop::Malformed)?, &mut |key, item| {
        let Some(length) = extent_bytes(key, fs.node) else { return Ok(()) };
        let is_data = item.u64(16)? & EXTENT_IS_DATA != 0;
        let mut is_placed = false;
        for (copy, start) in chunks.places(key.object, length).enumerate() {
            taken.add(copy, start..start + length)?;
            if is_data {
                map.add_piece(Piece { owner: Owner::File, start, length, position: 0 })?;
            }
            is_placed = true;
        }
        taken.total = taken.total.checked_add(length).ok_or(Stop::Malformed)?;
        // In no chunk, or across two.
        if is_placed { Ok(()) } else { Err(Stop::Malformed) }
    })?;
    if fs.trusted && taken.total == fs.bytes_used {
        for range in taken.rest(fs.bytes) {
            map.add_free(range)?;
        }
    }
    Ok(())
}

/// What extents take on the device.
#[derive(Debug, Default)]
struct Taken {
    /// Of the first and of the second copy: each mostly ascends.
    ranges: [Vec<Range<u64>>; 2],
    /// Bytes of extents, each counted once.
    total: u64,
}

impl Taken {
    fn add(&mut self, copy: usize, range: Range<u64>) -> Result<(), Stop> {
        let ranges = &mut self.ranges[copy];
        if let Some(last) = ranges.last_mut()
            && last.end == range.start
        {
            last.end = range.end;
            return Ok(());
        }
        if ranges.len() >= FREE_MAX / 2 {
            return Err(Stop::Budget);
        }
        ranges.push(range);
        Ok(())
    }

    /// What is left of a device of `bytes`.
    fn rest(self, bytes: u64) -> Vec<Range<u64>> {
        let mut taken = self.ranges.concat();
        taken.push(0..RESERVED_BYTES);
        taken.extend(SUPERBLOCKS.map(|at| at..at + SUPERBLOCK_OFFSET));
        join(&mut taken);
        subtract(std::slice::from_ref(&(0..bytes)), &taken)
    }
}

fn extent_bytes(key: Key, node: u64) -> Option<u64> {
    match key.kind {
        ITEM_EXTENT => Some(key.offset),
        ITEM_METADATA => Some(node),
        _ => None,
    }
}

impl Super {
    fn parse(bytes: &[u8], volume_bytes: u64) -> Result<Self, Stop> {
        let fields = Little(bytes);
        let node = u64::from(fields.u32(148)?);
        let device_bytes = fields.u64(209)?;
        let chunks = fields.u32(160)? as usize;
        let sound = fields.bytes(64, MAGIC.len())? == MAGIC
            && node.is_power_of_two()
            && (4096..=65_536).contains(&node)
            && device_bytes <= volume_bytes
            && fields.u64(136)? == 1
            && fields.u64(188)? & !INCOMPAT_KNOWN == 0
            && chunks <= 2048;
        if !sound {
            return Err(Stop::Malformed);
        }
        let trusted = fields.u64(56)? & !FLAGS_KNOWN == 0
            && fields.u64(96)? == 0
            && fields.u64(180)? & !RO_KNOWN == 0;
        Ok(Self {
            root: fields.u64(80)?,
            chunk_root: fields.u64(88)?,
            bytes: device_bytes,
            bytes_used: fields.u64(120)?,
            device: fields.u64(201)?,
            node,
            trusted,
            system_chunks: fields.bytes(811, chunks)?.to_vec(),
        })
    }
}
