//! Chunks: from the file system's own addresses to places on the device.
//!
//! Invariants: chunks do not overlap; only such as lie whole on this device, once or twice, give
//! places.
//! Non-goal: stripes over devices.

use super::tree::{KEY_BYTES, Key};
use crate::filesystem::Stop;
use crate::filesystem::fields::Little;

const ITEM_CHUNK: u8 = 228;
const CHUNK_BYTES: usize = 48;
const STRIPE_BYTES: usize = 32;
/// Data, system and metadata; and two copies on one device.
const KINDS_KNOWN: u64 = 0x7 | 0x20;
const CHUNKS_MAX: usize = 65_536;

#[derive(Debug, Clone, Copy)]
struct Chunk {
    start: u64,
    length: u64,
    places: [Option<u64>; 2],
}

/// See the module's documentation. Sorted by their start.
#[derive(Debug, Default)]
pub(super) struct Chunks(Vec<Chunk>);

impl Chunks {
    /// Those that the superblock lists: enough to read the chunk tree.
    pub fn add_system(&mut self, list: &[u8], device: u64) -> Result<(), Stop> {
        let mut at = 0;
        while at < list.len() {
            let key = Key::parse(Little(list), at)?;
            let item = Little(&list[(at + KEY_BYTES).min(list.len())..]);
            at += KEY_BYTES + CHUNK_BYTES + usize::from(item.u16(44)?) * STRIPE_BYTES;
            self.add(key, item, device)?;
        }
        self.sort()
    }

    /// Takes an item of the chunk tree.
    pub fn add(&mut self, key: Key, item: Little<'_>, device: u64) -> Result<(), Stop> {
        if key.kind != ITEM_CHUNK {
            return Ok(());
        }
        let stripes = usize::from(item.u16(44)?);
        let plain = item.u64(24)? & !KINDS_KNOWN == 0;
        if !plain || !(1..=2).contains(&stripes) || self.0.len() >= CHUNKS_MAX {
            return Err(Stop::Malformed);
        }
        let mut places = [None; 2];
        for (stripe, place) in places.iter_mut().enumerate().take(stripes) {
            let at = CHUNK_BYTES + stripe * STRIPE_BYTES;
            if item.u64(at)? != device {
                return Err(Stop::Malformed);
            }
            *place = Some(item.u64(at + 8)?);
        }
        self.0.push(Chunk { start: key.offset, length: item.u64(0)?, places });
        Ok(())
    }

    pub fn sort(&mut self) -> Result<(), Stop> {
        self.0.sort_unstable_by_key(|chunk| chunk.start);
        let mut end = 0;
        for chunk in &self.0 {
            if chunk.start < end {
                return Err(Stop::Malformed);
            }
            end = chunk.start.checked_add(chunk.length).ok_or(Stop::Malformed)?;
            for place in chunk.places.iter().flatten() {
                place.checked_add(chunk.length).ok_or(Stop::Malformed)?;
            }
        }
        Ok(())
    }

    fn find(&self, start: u64) -> Option<&Chunk> {
        let after = self.0.partition_point(|chunk| chunk.start <= start);
        let chunk = self.0.get(after.checked_sub(1)?)?;
        (start - chunk.start < chunk.length).then_some(chunk)
    }

    /// Where `length` bytes at `start` lie on the device; nothing where they are in no one chunk.
    pub fn places(&self, start: u64, length: u64) -> impl Iterator<Item = u64> + use<> {
        let chunk = self.find(start).filter(|chunk| length <= chunk.length - (start - chunk.start));
        let places = chunk.map_or([None; 2], |chunk| {
            chunk.places.map(|place| place.map(|place| place + (start - chunk.start)))
        });
        places.into_iter().flatten()
    }
}
