//! Offsets that cannot be mixed up: what the guest sees, and where it lies in the image.
//!
//! Invariant: the only way from one to the other is through a format's tables.
//! Non-goal: arithmetic in general; each operation that exists here has a use.

use std::fmt;

/// Bytes from the start of the disk, as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct GuestOffset(pub u64);

/// Bytes from the start of the image's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct HostOffset(pub u64);

impl HostOffset {
    /// `None` where the sum leaves 64 bits.
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }

    /// Whether it is a multiple of `unit`, which is a power of two.
    pub fn is_aligned(self, unit: u64) -> bool {
        self.0 & (unit - 1) == 0
    }
}

impl fmt::Display for GuestOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for HostOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
