//! VHD (Microsoft, "Virtual Hard Disk Image Format Specification" 1.0), read and laid out for
//! writing: fixed and dynamic.
//!
//! Invariant: a footer is believed only where its checksum is right.
//! Non-goals: differencing disks, refused by name; the bitmaps of a dynamic disk's blocks. A sector
//! whose bit is not set is taken as it stands, as QEMU does: all known writers keep it zero, and
//! some never set a bit.

mod fixed_layout;
mod footer;
mod layout;
mod reader;

pub(crate) use fixed_layout::FixedLayout;
pub(crate) use footer::COOKIE;
pub(crate) use layout::DynamicLayout;
pub(crate) use reader::open;

pub(crate) const SECTOR_BYTES: u64 = 512;
/// The largest disk, in bytes, as in QEMU and Hyper-V: 2040 GiB.
pub(crate) const VIRTUAL_BYTES_MAX: u64 = 2040 << 30;
