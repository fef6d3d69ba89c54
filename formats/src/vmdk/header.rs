//! The header of a sparse extent; integers are little-endian, offsets and sizes in sectors.
//! ```text
//!   0 magic "KDMV"        28 descriptor's offset   64 overhead
//!   4 version, 1 to 3     36 descriptor's size     72 not shut down cleanly
//!   8 flags               44 entries of a table    73 "\n \r\n"
//!  12 capacity            48 redundant directory   77 compression, 16 bits
//!  20 grain size          56 grain directory
//! ```
//! Where the directory's offset is [`AT_END`], a second header stands in the last sector but one,
//! between a footer's marker and the end-of-stream marker.
//!
//! Invariant: a [`Header`] has sizes within the limits here.
//! Non-goal: whether the tables lie in the image (see `sparse`).

use super::{SECTOR_BYTES, VIRTUAL_BYTES_MAX};
use crate::bytes::Little;
use crate::pages::read_part;
use crate::refusal::{OpenError, Refusal};
use crate::source::ReadAt;

pub(super) const MAGIC: &[u8; 4] = b"KDMV";
pub(super) const NEWLINES: &[u8; 4] = b"\n \r\n";
pub(super) const AT_END: u64 = u64::MAX;
pub(super) const FLAG_NEWLINES: u32 = 1;
const FLAG_ZERO_GRAINS: u32 = 1 << 2;
pub(super) const FLAG_COMPRESSED: u32 = 1 << 16;
pub(super) const FLAG_MARKERS: u32 = 1 << 17;
/// Flags from here on change how grains are stored.
const FLAGS_LAYOUT: u32 = 0xffff_0000;
pub(super) const DEFLATE: u16 = 1;
pub(super) const MARKER_END: u32 = 0;
pub(super) const MARKER_TABLE: u32 = 1;
pub(super) const MARKER_DIRECTORY: u32 = 2;
pub(super) const MARKER_FOOTER: u32 = 3;
const VERSION_MAX: u32 = 3;
const TABLE_ENTRIES_MAX: u32 = 512;
/// In sectors: 32 MiB, far above the usual 64 KiB.
const GRAIN_SECTORS_MAX: u64 = 65_536;

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// Of this extent, in bytes.
    pub capacity: u64,
    pub grain_bytes: u64,
    pub table_entries: u64,
    /// Bytes from the extent's start.
    pub directory: u64,
    /// Range of the embedded descriptor, in bytes, if there is one.
    pub descriptor: Option<(u64, u64)>,
    pub zero_grains: bool,
    pub compressed: bool,
    pub markers: bool,
}

impl Header {
    /// Of the extent that `source` holds from its start to its end.
    pub fn read(source: &dyn ReadAt) -> Result<Self, OpenError> {
        let sector = read_part(source, 0, SECTOR_BYTES, "the end of its header")?;
        let header = Self::parse(&sector)?;
        if Little(&sector).u64(56) != AT_END {
            return Ok(header);
        }
        let at = source.len().checked_sub(3 * SECTOR_BYTES).filter(|&at| at >= SECTOR_BYTES);
        let at = at.ok_or(Refusal::Truncated("its footer"))?;
        let tail = read_part(source, at, 3 * SECTOR_BYTES, "its footer")?;
        let (marker, rest) = tail.split_at(SECTOR_BYTES as usize);
        let (footer, end) = rest.split_at(SECTOR_BYTES as usize);
        let is_marker =
            |bytes: &[u8], kind| Little(bytes).u32(8) == 0 && Little(bytes).u32(12) == kind;
        let is_end = Little(end).u64(0) == 0 && is_marker(end, MARKER_END);
        if !is_marker(marker, MARKER_FOOTER) || !is_end || !footer.starts_with(MAGIC) {
            return Err(Refusal::Truncated("its footer").into());
        }
        let last = Self::parse(footer)?;
        if Little(footer).u64(56) == AT_END {
            return Err(malformed("the footer points to a footer").into());
        }
        // The descriptor stays where the header at the start says.
        Ok(Self { descriptor: header.descriptor.or(last.descriptor), ..last })
    }

    fn parse(sector: &[u8]) -> Result<Self, Refusal> {
        let fields = Little(sector);
        if !sector.starts_with(MAGIC) {
            return Err(malformed("an extent has no header"));
        }
        let version = fields.u32(4);
        if version == 0 || version > VERSION_MAX {
            return Err(Refusal::UnknownVersion(version));
        }
        let flags = fields.u32(8);
        let unknown = flags & FLAGS_LAYOUT & !(FLAG_COMPRESSED | FLAG_MARKERS);
        if unknown != 0 {
            return Err(Refusal::UnknownFeature(u64::from(unknown)));
        }
        if flags & FLAG_NEWLINES != 0 && &sector[73..77] != NEWLINES {
            return Err(malformed("its line ends were changed, as by a transfer in text mode"));
        }
        let compressed = flags & FLAG_COMPRESSED != 0;
        let method = fields.u16(77);
        if compressed && method != DEFLATE {
            return Err(Refusal::UnknownCompression(method.to_le_bytes()[0]));
        }
        // VMware goes by the flag, QEMU by the method.
        if !compressed && method != 0 {
            return Err(malformed("its compression method and the flag for it disagree"));
        }
        let bytes = |sectors: u64| sectors.checked_mul(SECTOR_BYTES);
        let capacity = bytes(fields.u64(12)).filter(|&capacity| capacity <= VIRTUAL_BYTES_MAX);
        let capacity = capacity.ok_or(Refusal::TooLarge("its virtual size is above 64 TiB"))?;
        let grain = fields.u64(20);
        if !grain.is_power_of_two() || grain > GRAIN_SECTORS_MAX {
            return Err(malformed("the grain size is no power of two up to 32 MiB"));
        }
        let table_entries = fields.u32(44);
        if table_entries == 0 || table_entries > TABLE_ENTRIES_MAX {
            return Err(malformed("a grain table has 1 to 512 entries"));
        }
        let descriptor = match (bytes(fields.u64(28)), bytes(fields.u64(36))) {
            (Some(0), _) | (_, Some(0)) => None,
            (Some(at), Some(length)) => Some((at, length)),
            _ => return Err(malformed("the place of its descriptor")),
        };
        Ok(Self {
            capacity,
            grain_bytes: grain * SECTOR_BYTES,
            table_entries: u64::from(table_entries),
            // The footer's is used where this is [`AT_END`].
            directory: bytes(fields.u64(56)).unwrap_or(u64::MAX),
            descriptor,
            zero_grains: flags & FLAG_ZERO_GRAINS != 0,
            compressed,
            markers: flags & FLAG_MARKERS != 0,
        })
    }

    /// Guest bytes that one grain table maps.
    pub const fn table_span(&self) -> u64 {
        self.grain_bytes * self.table_entries
    }

    pub const fn table_bytes(&self) -> u64 {
        self.table_entries * 4
    }

    /// Entries of the grain directory.
    pub const fn tables(&self) -> u64 {
        self.capacity.div_ceil(self.table_span())
    }
}

pub(super) const fn malformed(what: &'static str) -> Refusal {
    Refusal::MalformedHeader(what)
}
