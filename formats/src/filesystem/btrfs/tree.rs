//! B-trees: every item of a tree in the order of its keys.
//!
//! Invariants: a child is exactly one level below its parent and says itself where it is; keys
//! ascend from leaf to leaf, so that no tree is walked twice, nor for ever.

use super::chunks::Chunks;
use crate::filesystem::Stop;
use crate::filesystem::fields::Little;
use crate::filesystem::volume::Volume;

const LEVEL_MAX: u8 = 7;
const HEADER_BYTES: usize = 101;
const ITEM_BYTES: usize = 25;
const POINTER_BYTES: usize = 33;
pub(super) const KEY_BYTES: usize = 17;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub object: u64,
    pub kind: u8,
    pub offset: u64,
}

impl Key {
    pub fn parse(fields: Little<'_>, at: usize) -> Result<Self, Stop> {
        Ok(Self { object: fields.u64(at)?, kind: fields.u8(at + 8)?, offset: fields.u64(at + 9)? })
    }
}

type Visit<'a> = dyn FnMut(Key, Little<'_>) -> Result<(), Stop> + 'a;

/// Calls `visit` with each item of the tree at `root`, a logical address.
pub(super) fn walk(
    volume: &mut Volume<'_>,
    chunks: &Chunks,
    node_bytes: u64,
    root: u64,
    visit: &mut Visit<'_>,
) -> Result<(), Stop> {
    let mut walk = Walk { volume, chunks, node_bytes, last: None };
    walk.node(root, None, visit)
}

struct Walk<'a, 'v> {
    volume: &'a mut Volume<'v>,
    chunks: &'a Chunks,
    node_bytes: u64,
    last: Option<Key>,
}

impl Walk<'_, '_> {
    fn node(&mut self, at: u64, level: Option<u8>, visit: &mut Visit<'_>) -> Result<(), Stop> {
        let place = self.chunks.places(at, self.node_bytes).next().ok_or(Stop::Malformed)?;
        let node = self.volume.read(place, self.node_bytes as usize)?;
        let fields = Little(&node);
        let (found, count) = (fields.u8(100)?, fields.u32(96)? as usize);
        let expected = level.unwrap_or(found);
        if fields.u64(48)? != at || found != expected || found > LEVEL_MAX || count > node.len() {
            return Err(Stop::Malformed);
        }
        for slot in 0..count {
            if found > 0 {
                let pointer = fields.u64(HEADER_BYTES + slot * POINTER_BYTES + KEY_BYTES)?;
                self.node(pointer, Some(found - 1), visit)?;
                continue;
            }
            let item = HEADER_BYTES + slot * ITEM_BYTES;
            let key = Key::parse(fields, item)?;
            if self.last.is_some_and(|last| last >= key) {
                return Err(Stop::Malformed);
            }
            self.last = Some(key);
            let (offset, length) = (fields.u32(item + 17)? as usize, fields.u32(item + 21)?);
            visit(key, Little(fields.bytes(HEADER_BYTES + offset, length as usize)?))?;
        }
        Ok(())
    }
}
