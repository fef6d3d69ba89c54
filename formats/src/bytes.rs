//! Integers at fixed places of a header.
//!
//! Invariant: the caller has made sure that the header is there; a place outside it is a bug.
//! Non-goal: parsing that can fail.

/// A header whose integers are little-endian: VMDK, VHDX.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Little<'a>(pub &'a [u8]);

/// A header whose integers are big-endian: VHD.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Big<'a>(pub &'a [u8]);

pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the range has that length")
}

impl Little<'_> {
    pub fn u16(self, at: usize) -> u16 {
        u16::from_le_bytes(array(self.0, at))
    }

    pub fn u32(self, at: usize) -> u32 {
        u32::from_le_bytes(array(self.0, at))
    }

    pub fn u64(self, at: usize) -> u64 {
        u64::from_le_bytes(array(self.0, at))
    }
}

impl Big<'_> {
    pub fn u16(self, at: usize) -> u16 {
        u16::from_be_bytes(array(self.0, at))
    }

    pub fn u32(self, at: usize) -> u32 {
        u32::from_be_bytes(array(self.0, at))
    }

    pub fn u64(self, at: usize) -> u64 {
        u64::from_be_bytes(array(self.0, at))
    }
}
