//! Which parts of an image are in use already, so that nothing is used twice.
//!
//! Invariant: no two of the blocks that were taken start in the same unit. Blocks of at least a
//! unit's size then read each byte of the image at most twice, and a table that leads to itself or
//! to another's place is found: the work for a whole disk is bounded by the image's real length.
//! Non-goal: blocks that overlap by less than a unit, which give wrong bytes to their author only.

use crate::offset::HostOffset;
use crate::refusal::Refusal;

/// One bit for each unit is at most 32 MiB.
const UNITS_MAX: u64 = 256 << 20;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Occupied {
    bits: Vec<u64>,
    unit_bytes: u64,
}

impl Occupied {
    /// For an image of `length` bytes in units of `unit_bytes`, at least 1.
    pub fn new(length: u64, unit_bytes: u64) -> Result<Self, Refusal> {
        let units = length.div_ceil(unit_bytes);
        if units > UNITS_MAX {
            return Err(Refusal::TooLarge("it has more than 256 Mi units; use larger ones"));
        }
        Ok(Self { bits: vec![0; units.div_ceil(64) as usize], unit_bytes })
    }

    /// Takes the unit where `what` starts.
    pub fn take(&mut self, at: HostOffset, what: &'static str) -> Result<(), Refusal> {
        let unit = at.0 / self.unit_bytes;
        let word = self.bits.get_mut((unit / 64) as usize).ok_or(Refusal::Truncated(what))?;
        if *word & 1 << (unit % 64) != 0 {
            return Err(Refusal::OverlappingTables(what));
        }
        *word |= 1 << (unit % 64);
        Ok(())
    }
}

/// Whether `a` and `b` have a byte in common.
pub(crate) const fn meets(a: &std::ops::Range<u64>, b: &std::ops::Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}
