//! Lays a disk out as a fixed VHD: its bytes, and a footer.
//!
//! Invariant: the same size and identity give the same bytes, for ever; see `qcow2::layout`.

use super::SECTOR_BYTES;
use super::footer::{Kind, footer};
use crate::export::layout::{FileLayout, Identity};
use crate::export::part::Part;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct FixedLayout {
    virtual_bytes: u64,
    footer: Vec<u8>,
}

impl FixedLayout {
    pub fn new(virtual_bytes: u64, identity: Identity) -> Self {
        let virtual_bytes = virtual_bytes.next_multiple_of(SECTOR_BYTES);
        Self { virtual_bytes, footer: footer(virtual_bytes, Kind::Fixed, identity) }
    }
}

impl FileLayout for FixedLayout {
    fn len(&self) -> u64 {
        self.virtual_bytes + SECTOR_BYTES
    }

    fn locate(&self, guest: u64) -> Option<(u64, u64)> {
        let left = self.virtual_bytes.checked_sub(guest).filter(|&left| left > 0)?;
        Some((guest, left))
    }

    fn part(&self, at: u64, most: u64) -> Part {
        match self.virtual_bytes.checked_sub(at).filter(|&left| left > 0) {
            Some(left) => Part::Guest { guest: at, length: left.min(most) },
            None => Part::of(self.footer.clone(), at - self.virtual_bytes, SECTOR_BYTES, most),
        }
    }
}
