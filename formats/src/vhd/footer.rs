//! The footer, and the header of dynamic disks; integers are big-endian.
//! ```text
//!   0 "conectix"          36 creator's host   64 checksum        0 "cxsparse"
//!   8 features            40 original size    68 unique id      16 table's offset
//!  12 version 1.0         48 current size     84 saved state    24 version 1.0
//!  16 header's offset     56 cylinders, 16 b                    28 table's entries
//!  24 seconds since 2000  58 heads, 8 bits                      32 block size
//!  28 creator             59 sectors, 8 bits                    36 checksum
//!  32 creator's version   60 type
//! ```
//! A checksum is the complement of the sum of all other bytes.
//!
//! Invariant: [`Footer::parse`] gives none but sizes within the format's limits.

use super::{SECTOR_BYTES, VIRTUAL_BYTES_MAX};
use crate::bytes::{Big, array};
use crate::export::layout::Identity;
use crate::refusal::Refusal;

pub(crate) const COOKIE: &[u8; 8] = b"conectix";
pub(super) const HEADER_COOKIE: &[u8; 8] = b"cxsparse";
/// Old programs wrote a footer a byte short.
pub(super) const FOOTER_BYTES_MIN: usize = 511;
const CHECKSUM_AT: usize = 64;
pub(super) const HEADER_CHECKSUM_AT: usize = 36;
const VERSION: u32 = 0x0001_0000;
const TYPE_FIXED: u32 = 2;
const TYPE_DYNAMIC: u32 = 3;
const TYPE_DIFFERENCING: u32 = 4;
/// The most sectors that cylinders, heads and sectors can say; such a disk's size is the other one.
const GEOMETRY_MAX: u64 = 65_535 * 16 * 255;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Fixed,
    /// With the offset of the dynamic header.
    Dynamic(u64),
}

/// See the module's documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Footer {
    pub virtual_bytes: u64,
    pub kind: Kind,
    pub id: [u8; 16],
}

impl Footer {
    /// `bytes` has 511 or 512 bytes that start with the cookie. `None` where the checksum is wrong:
    /// then nothing that stands there counts.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, Refusal> {
        let fields = Big(bytes);
        if fields.u32(CHECKSUM_AT) != checksum(bytes, CHECKSUM_AT) {
            return Ok(None);
        }
        let version = fields.u32(12);
        if version != VERSION {
            return Err(Refusal::UnknownVersion(version));
        }
        let kind = match fields.u32(60) {
            TYPE_FIXED => Kind::Fixed,
            TYPE_DYNAMIC => Kind::Dynamic(fields.u64(16)),
            TYPE_DIFFERENCING => return Err(Refusal::Parent),
            _ => return Err(Refusal::MalformedHeader("an unknown type of disk")),
        };
        let current = fields.u64(48) / SECTOR_BYTES;
        let [heads, per_track] = array::<2>(bytes, 58).map(u64::from);
        let geometry = u64::from(fields.u16(56)) * heads * per_track;
        // Virtual PC and early QEMU go by the geometry, whoever else by the size: so does QEMU from
        // 10.0 on, where versions before it had a list of those that go by the size, and took the
        // geometry of anybody else's (Azure's `wa`, for one) for the length: too short.
        let by_geometry = matches!(&bytes[28..32], b"vpc " | b"qemu") && geometry != GEOMETRY_MAX;
        if by_geometry && geometry == 0 && current > 0 {
            return Err(Refusal::MalformedHeader("its geometry is empty, its size is not"));
        }
        let sectors = if by_geometry { geometry } else { current };
        let virtual_bytes = sectors.checked_mul(SECTOR_BYTES);
        let virtual_bytes = virtual_bytes.filter(|&bytes| bytes <= VIRTUAL_BYTES_MAX);
        let virtual_bytes =
            virtual_bytes.ok_or(Refusal::TooLarge("its virtual size is above 2040 GiB"))?;
        Ok(Some(Self { virtual_bytes, kind, id: array(bytes, 68) }))
    }
}

/// Of a footer or a header whose own checksum stands at `at`.
pub(super) fn checksum(bytes: &[u8], at: usize) -> u32 {
    let own = at..at + 4;
    let others = bytes.iter().enumerate().filter(|(place, _)| !own.contains(place));
    !others.map(|(_, &byte)| u32::from(byte)).fold(0, u32::wrapping_add)
}

/// The footer of a disk that is written.
pub(super) fn footer(virtual_bytes: u64, kind: Kind, identity: Identity) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SECTOR_BYTES as usize);
    let (header, number) = match kind {
        Kind::Fixed => (u64::MAX, TYPE_FIXED),
        Kind::Dynamic(header) => (header, TYPE_DYNAMIC),
    };
    let (cylinders, heads, per_track) = geometry(virtual_bytes / SECTOR_BYTES);
    bytes.extend_from_slice(COOKIE);
    bytes.extend_from_slice(&2u32.to_be_bytes()); // a bit that is always set
    bytes.extend_from_slice(&VERSION.to_be_bytes());
    bytes.extend_from_slice(&header.to_be_bytes());
    bytes.extend_from_slice(&0u32.to_be_bytes()); // the same disk, the same bytes: no time
    // Programs look here for how to read the size; these mean "as it says, not by the geometry".
    bytes.extend_from_slice(b"win ");
    bytes.extend_from_slice(&0x000a_0000_u32.to_be_bytes());
    bytes.extend_from_slice(b"Wi2k");
    bytes.extend_from_slice(&virtual_bytes.to_be_bytes());
    bytes.extend_from_slice(&virtual_bytes.to_be_bytes());
    bytes.extend_from_slice(&cylinders.to_be_bytes());
    bytes.extend_from_slice(&[heads, per_track]);
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.extend_from_slice(&0u32.to_be_bytes());
    bytes.extend_from_slice(&identity.uuid("vhd"));
    bytes.resize(SECTOR_BYTES as usize, 0);
    let sum = checksum(&bytes, CHECKSUM_AT);
    bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// Cylinders, heads and sectors per track for a disk (specification, appendix).
fn geometry(sectors: u64) -> (u16, u8, u8) {
    let sectors = sectors.min(GEOMETRY_MAX);
    let (heads, per_track) = if sectors >= 65_535 * 16 * 63 {
        (16, 255)
    } else {
        let tracks = sectors / 17;
        let heads = tracks.div_ceil(1024).max(4);
        if tracks < heads * 1024 && heads <= 16 {
            (heads, 17)
        } else if sectors / 31 < 16 * 1024 {
            (16, 31)
        } else {
            (16, 63)
        }
    };
    // Each fits: the sectors were cut to what they can say.
    ((sectors / per_track / heads) as u16, heads as u8, per_track as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for bytes in [0, 512, 4 << 30, 127 << 30, VIRTUAL_BYTES_MAX] {
            for kind in [Kind::Fixed, Kind::Dynamic(512)] {
                let footer = footer(bytes, kind, Identity([7; 16]));
                assert_eq!(footer.len(), 512);
                let read = Footer::parse(&footer).unwrap().unwrap();
                assert_eq!((read.virtual_bytes, read.kind), (bytes, kind));
            }
        }
    }

    #[test]
    fn virtual_pc_goes_by_the_geometry() {
        let mut footer = footer((1 << 30) + 512, Kind::Fixed, Identity([7; 16]));
        footer[28..32].copy_from_slice(b"vpc ");
        let sum = checksum(&footer, CHECKSUM_AT);
        footer[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_be_bytes());
        let (cylinders, heads, per_track) = geometry((1 << 21) + 1);
        let expected = u64::from(cylinders) * u64::from(heads) * u64::from(per_track) * 512;
        assert_eq!(Footer::parse(&footer).unwrap().unwrap().virtual_bytes, expected);
        footer[100] = 1;
        assert_eq!(Footer::parse(&footer).unwrap(), None);
    }
}
