//! The header and its extensions; integers are big-endian.
//! ```text
//!   0 magic "QFI\xfb"        36 L1 entries             72 incompatible features (version 3)
//!   4 version                40 L1 table's offset      80 compatible features
//!   8 backing name's offset  48 refcount table offset  88 autoclear features
//!  16 backing name's length  56 and its clusters       96 refcount order
//!  20 cluster bits           60 snapshots             100 header length
//!  24 virtual size           64 snapshot table offset 104 compression type, if that long
//!  32 encryption method
//! ```
//! Extensions follow: type, length, data padded to 8 bytes, up to type 0 or the cluster's end.
//!
//! Invariant: a [`Header`] describes tables that lie inside the image and within the limits here.
//! Non-goal: what the tables hold (see `check`).

use crate::offset::HostOffset;
use crate::pages::read_source;
use crate::refusal::{Foreign, OpenError, Refusal};
use crate::source::ReadAt;

pub(crate) const MAGIC: &[u8; 4] = b"QFI\xfb";
/// The longest L1 table, as in QEMU (`QCOW_MAX_L1_SIZE`).
pub(super) const L1_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// The longest refcount table, as in QEMU (`QCOW_MAX_REFTABLE_SIZE`).
const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// The largest disk, in bytes. A header of 112 bytes can claim any size: a limit must stand.
const VIRTUAL_BYTES_MAX: u64 = 64 << 40;
/// QEMU counts a disk in sectors, and drops what does not fill one.
pub(super) const SECTOR_BYTES: u64 = 512;
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// A subcluster has at least a sector, and there are 32 of them.
const EXTENDED_CLUSTER_BITS_MIN: u32 = 14;
const V2_HEADER_BYTES: usize = 72;
const V3_HEADER_BYTES_MIN: usize = 104;
const REFCOUNT_ORDER_MAX: u32 = 6;

pub(super) const INCOMPATIBLE_DIRTY: u64 = 1;
pub(super) const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
pub(super) const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
pub(super) const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
pub(super) const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
const COMPATIBLE_LAZY_REFCOUNTS: u64 = 1;
const INCOMPATIBLE_KNOWN: u64 = INCOMPATIBLE_DIRTY
    | INCOMPATIBLE_CORRUPT
    | INCOMPATIBLE_DATA_FILE
    | INCOMPATIBLE_COMPRESSION
    | INCOMPATIBLE_EXTENDED_L2;

const EXTENSION_END: u32 = 0;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;
const EXTENSION_ENCRYPTION: u32 = 0x0537_be77;

/// How compressed clusters are compressed; one method for the whole image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    /// Raw deflate without a zlib header.
    Zlib,
    Zstd,
}

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub version: u32,
    pub cluster_bits: u32,
    pub virtual_bytes: u64,
    pub l1_offset: HostOffset,
    /// Bytes of the L1 table as the header says; the disk may need fewer.
    pub l1_bytes: u64,
    pub refcount_offset: HostOffset,
    pub refcount_bytes: u64,
    pub extended_l2: bool,
    pub compression: Compression,
    pub refcount_bits: u32,
    pub lazy_refcounts: bool,
    pub is_dirty: bool,
}

fn malformed<T>(what: &'static str) -> Result<T, Refusal> {
    Err(Refusal::MalformedHeader(what))
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.0[at..at + 4].try_into().expect("four bytes"))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.0[at..at + 8].try_into().expect("eight bytes"))
    }
}

impl Header {
    pub fn read(source: &dyn ReadAt) -> Result<Self, OpenError> {
        let length = source.len();
        if length < V2_HEADER_BYTES as u64 {
            return Err(Refusal::Truncated("the end of its header").into());
        }
        let mut fixed = vec![0; length.min(V3_HEADER_BYTES_MIN as u64 + 8) as usize];
        read_source(source, HostOffset(0), &mut fixed)?;
        let (header, header_bytes) = Self::parse(&fixed, length)?;
        let area = header.cluster_bytes().min(length) as usize;
        let mut cluster = vec![0; area];
        read_source(source, HostOffset(0), &mut cluster)?;
        check_extensions(&cluster, header_bytes)?;
        Ok(header)
    }

    pub const fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    pub const fn entry_bytes(&self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }

    /// Entries of one L2 table, which fills one cluster.
    pub const fn l2_entries(&self) -> u64 {
        self.cluster_bytes() / self.entry_bytes()
    }

    /// Guest bytes that one L2 table maps.
    pub const fn l2_span(&self) -> u64 {
        self.cluster_bytes() * self.l2_entries()
    }

    /// L1 entries that the disk's size needs.
    pub const fn l1_entries(&self) -> u64 {
        self.virtual_bytes.div_ceil(self.l2_span())
    }

    /// Also returns the header's length. `fixed` holds the first 112 bytes, or the whole image.
    fn parse(fixed: &[u8], length: u64) -> Result<(Self, usize), Refusal> {
        let fields = Fields(fixed);
        let version = fields.u32(4);
        match version {
            1 => return Err(Refusal::Unsupported(Foreign::Qcow1)),
            2 | 3 => {}
            other => return Err(Refusal::UnknownVersion(other)),
        }
        if version == 3 && fixed.len() < V3_HEADER_BYTES_MIN {
            return Err(Refusal::Truncated("the end of its header"));
        }
        let header_bytes = if version == 2 { V2_HEADER_BYTES } else { fields.u32(100) as usize };
        let (compression, extended_l2) = match version {
            2 => (Compression::Zlib, false),
            _ => features(&fields, header_bytes, length)?,
        };
        // The length alone means nothing, as in QEMU.
        if fields.u64(8) != 0 {
            return Err(Refusal::BackingFile);
        }
        if fields.u32(32) != 0 {
            return Err(Refusal::Encrypted);
        }
        let cluster_bits = fields.u32(20);
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return malformed("the cluster size is not between 512 bytes and 2 MiB");
        }
        if extended_l2 && cluster_bits < EXTENDED_CLUSTER_BITS_MIN {
            return malformed("clusters are too small for extended L2 entries");
        }
        if header_bytes as u64 > 1 << cluster_bits {
            return malformed("the header is longer than a cluster");
        }
        let header = Self {
            version,
            cluster_bits,
            virtual_bytes: fields.u64(24) & !(SECTOR_BYTES - 1),
            l1_offset: HostOffset(fields.u64(40)),
            l1_bytes: u64::from(fields.u32(36)) * 8,
            refcount_offset: HostOffset(fields.u64(48)),
            refcount_bytes: u64::from(fields.u32(56)) << cluster_bits,
            extended_l2,
            compression,
            refcount_bits: if version == 2 { 16 } else { 1 << fields.u32(96) },
            lazy_refcounts: version > 2 && fields.u64(80) & COMPATIBLE_LAZY_REFCOUNTS != 0,
            is_dirty: version > 2 && fields.u64(72) & INCOMPATIBLE_DIRTY != 0,
        };
        header.check_tables(length)?;
        Ok((header, header_bytes))
    }

    fn check_tables(&self, length: u64) -> Result<(), Refusal> {
        if self.virtual_bytes > VIRTUAL_BYTES_MAX {
            return Err(Refusal::TooLarge("its virtual size is above 64 TiB"));
        }
        if self.l1_bytes > L1_BYTES_MAX {
            return Err(Refusal::TooLarge("its L1 table is above 32 MiB"));
        }
        if self.l1_entries() * 8 > L1_BYTES_MAX {
            return Err(Refusal::TooLarge("its virtual size needs an L1 table above 32 MiB"));
        }
        if self.l1_entries() * 8 > self.l1_bytes {
            return malformed("the L1 table is too short for the disk's size");
        }
        if self.refcount_bytes == 0 {
            return malformed("there is no refcount table");
        }
        if self.refcount_bytes > REFCOUNT_TABLE_BYTES_MAX {
            return Err(Refusal::TooLarge("its refcount table is above 8 MiB"));
        }
        let cluster = self.cluster_bytes();
        if !self.l1_offset.is_aligned(cluster) || !self.refcount_offset.is_aligned(cluster) {
            return malformed("a table does not start at a cluster");
        }
        let l1_end = self.l1_offset.checked_add(self.l1_bytes);
        if l1_end.is_none_or(|end| end.0 > length) {
            return Err(Refusal::Truncated("the end of its L1 table"));
        }
        if self.refcount_offset.0 >= length {
            return Err(Refusal::Truncated("its refcount table"));
        }
        Ok(())
    }
}

/// The features of version 3, where this reader knows all that matter.
fn features(
    fields: &Fields<'_>,
    header_bytes: usize,
    length: u64,
) -> Result<(Compression, bool), Refusal> {
    if header_bytes < V3_HEADER_BYTES_MIN || !header_bytes.is_multiple_of(8) {
        return malformed("the header's length");
    }
    if header_bytes as u64 > length {
        return Err(Refusal::Truncated("the end of its header"));
    }
    let incompatible = fields.u64(72);
    if incompatible & !INCOMPATIBLE_KNOWN != 0 {
        return Err(Refusal::UnknownFeature(incompatible & !INCOMPATIBLE_KNOWN));
    }
    if incompatible & INCOMPATIBLE_DATA_FILE != 0 {
        return Err(Refusal::DataFile);
    }
    if incompatible & INCOMPATIBLE_CORRUPT != 0 {
        return Err(Refusal::MarkedCorrupt);
    }
    if fields.u32(96) > REFCOUNT_ORDER_MAX {
        return malformed("the width of reference counts");
    }
    let method = if header_bytes > V3_HEADER_BYTES_MIN { fields.0[104] } else { 0 };
    let compression = match method {
        0 => Compression::Zlib,
        1 => Compression::Zstd,
        other => return Err(Refusal::UnknownCompression(other)),
    };
    let says_other = incompatible & INCOMPATIBLE_COMPRESSION != 0;
    if says_other != (compression != Compression::Zlib) {
        return malformed("the compression type and its feature bit disagree");
    }
    Ok((compression, incompatible & INCOMPATIBLE_EXTENDED_L2 != 0))
}

/// Refuses extensions that make the image more than one file or encrypt it, whatever the feature
/// bits say. `cluster` is the first cluster, or what there is of it.
fn check_extensions(cluster: &[u8], header_bytes: usize) -> Result<(), Refusal> {
    let mut rest = cluster.get(header_bytes..).unwrap_or_default();
    while let Some((head, data)) = rest.split_at_checked(8) {
        let fields = Fields(head);
        let padded = (fields.u32(4) as usize).next_multiple_of(8);
        match fields.u32(0) {
            EXTENSION_END => break,
            EXTENSION_DATA_FILE => return Err(Refusal::DataFile),
            EXTENSION_ENCRYPTION => return Err(Refusal::Encrypted),
            _ => {}
        }
        let Some(next) = data.get(padded..) else {
            return malformed("a header extension is longer than the first cluster");
        };
        rest = next;
    }
    Ok(())
}
