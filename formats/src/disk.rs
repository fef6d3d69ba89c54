//! What every readable disk format offers: a size, a map, and guest bytes.
//!
//! Invariant: what [`Disk::read`] gives for a range that the map calls [`ExtentKind::Zero`] is
//! zero; the map may call zero bytes data, never the other way round.
//! Non-goals: opening (see `detect`), writing (see `export`).

use std::fmt;
use std::io;
use std::str::FromStr;

use thiserror::Error;

use crate::refusal::Refusal;

/// The disk formats that Shoal knows by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    /// The guest's bytes as they are; an ISO image is raw too.
    Raw,
    Qcow2,
    Vmdk,
    Vhd,
    Vhdx,
    /// An archive with a machine and its disk.
    Ova,
}

impl Format {
    pub const ALL: [Self; 6] =
        [Self::Raw, Self::Qcow2, Self::Vmdk, Self::Vhd, Self::Vhdx, Self::Ova];

    /// As it stands in the REST API and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
            Self::Ova => "ova",
        }
    }
}

/// A text that names no disk format.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a disk format is raw, qcow2, vmdk, vhd, vhdx or ova")]
pub struct FormatError;

impl FromStr for Format {
    type Err = FormatError;

    /// Takes qemu's and VMware's names too: `vpc` is vhd, `img` and `iso` are raw.
    fn from_str(text: &str) -> Result<Self, FormatError> {
        match text.to_ascii_lowercase().as_str() {
            "raw" | "img" | "iso" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            "vmdk" => Ok(Self::Vmdk),
            "vhd" | "vpc" => Ok(Self::Vhd),
            "vhdx" => Ok(Self::Vhdx),
            "ova" => Ok(Self::Ova),
            _ => Err(FormatError),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether the guest's bytes must be read to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExtentKind {
    Data,
    /// Reads as zero, whether or not the image spends room on it.
    Zero,
}

/// A part of the guest's disk that is of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapExtent {
    /// Guest bytes from the disk's start.
    pub offset: u64,
    /// In bytes, at least 1.
    pub length: u64,
    pub kind: ExtentKind,
}

/// What an image spends on guest bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stored {
    /// They read as zero.
    Zero {
        /// Whether the image says so, where it could say nothing of them.
        is_said: bool,
        /// From where on it keeps room for them, whose content does not count.
        kept: Option<u64>,
    },
    /// They stand as they are in the image, from this byte on.
    At(u64),
    /// They have to be decompressed.
    Packed,
}

impl Stored {
    /// The image says nothing of them, and has no room for them.
    pub const NOTHING: Self = Self::Zero { is_said: false, kept: None };

    /// Whether `next`, which begins `bytes` after this, goes on where this ends. What is packed may
    /// be in several pieces.
    pub fn continues(self, bytes: u64, next: Self) -> bool {
        let adjoin = |one: u64, next| one.checked_add(bytes) == Some(next);
        match (self, next) {
            (Self::At(one), Self::At(next)) => adjoin(one, next),
            (
                Self::Zero { is_said, kept: Some(one) },
                Self::Zero { is_said: next_said, kept: Some(next) },
            ) => is_said == next_said && adjoin(one, next),
            (one, next) => one == next,
        }
    }
}

/// Guest bytes that are stored in one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredExtent {
    /// Guest bytes from the disk's start.
    pub offset: u64,
    /// In bytes, at least 1.
    pub length: u64,
    pub stored: Stored,
}

/// What an image says of itself besides its disk's size, for who looks at it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    /// The unit that content is stored in, in bytes, where the format has one.
    pub unit_bytes: Option<u64>,
    /// Whether a program has opened it for writing and did not come to close it.
    pub is_dirty: bool,
    pub qcow2: Option<Qcow2Details>,
}

/// What only a qcow2 says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qcow2Details {
    /// 2 or 3.
    pub version: u32,
    /// `zlib` or `zstd`.
    pub compression: &'static str,
    /// Of one reference count.
    pub refcount_bits: u32,
    pub lazy_refcounts: bool,
    pub extended_l2: bool,
}

/// Why guest bytes could not be read.
#[derive(Debug, Error)]
pub enum ReadError {
    #[error("reading the image's bytes at {at} failed")]
    Source {
        /// Bytes from the image's start.
        at: u64,
        #[source]
        error: io::Error,
    },
    /// The image turned out to be broken, or unacceptable, where the guest's bytes lie.
    #[error("guest bytes at {at} cannot be read: {refusal}")]
    Broken { at: u64, refusal: Refusal },
    #[error("guest bytes {at} to {end} are not all within the disk's {length} bytes")]
    Range { at: u64, end: u64, length: u64 },
}

impl ReadError {
    /// A stable code, as [`Refusal::reason`].
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Source { .. } => "unreadable",
            Self::Broken { refusal, .. } => refusal.reason(),
            Self::Range { .. } => "out_of_range",
        }
    }

    /// Whether the same call may work later: only where the source failed.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Source { .. })
    }
}

/// An opened disk.
pub trait Disk: Send {
    fn format(&self) -> Format;

    /// What the guest sees, in bytes.
    fn virtual_bytes(&self) -> u64;

    /// The extent that starts at guest byte `offset`, which is less than
    /// [`virtual_bytes`](Self::virtual_bytes). It ends at the latest at the disk's end, and may
    /// end earlier than its kind does: work for one call is bounded.
    ///
    /// # Errors
    /// See [`ReadError`].
    fn next_extent(&mut self, offset: u64) -> Result<MapExtent, ReadError>;

    /// How the guest bytes from `offset` on are stored; `offset` and the end are as with
    /// [`next_extent`](Self::next_extent).
    ///
    /// # Errors
    /// See [`ReadError`].
    fn next_stored(&mut self, offset: u64) -> Result<StoredExtent, ReadError>;

    fn details(&self) -> Details;

    /// Fills `buf` with guest bytes from `offset`.
    ///
    /// # Errors
    /// See [`ReadError`]; `buf` is then in an unspecified state.
    fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError>;

    /// Bytes that [`read`](Self::read) has decompressed so far. A block counts whole each time,
    /// however little of it was asked for: reads of a few bytes may cost far more than they give.
    fn unpacked_bytes(&self) -> u64;
}

impl<D: Disk + ?Sized> Disk for Box<D> {
    fn format(&self) -> Format {
        (**self).format()
    }

    fn virtual_bytes(&self) -> u64 {
        (**self).virtual_bytes()
    }

    fn next_extent(&mut self, offset: u64) -> Result<MapExtent, ReadError> {
        (**self).next_extent(offset)
    }

    fn next_stored(&mut self, offset: u64) -> Result<StoredExtent, ReadError> {
        (**self).next_stored(offset)
    }

    fn details(&self) -> Details {
        (**self).details()
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        (**self).read(offset, buf)
    }

    fn unpacked_bytes(&self) -> u64 {
        (**self).unpacked_bytes()
    }
}

/// Refuses what is not within a disk of `length` bytes.
pub(crate) fn check_range(at: u64, count: usize, length: u64) -> Result<(), ReadError> {
    match at.checked_add(count as u64) {
        Some(end) if end <= length => Ok(()),
        end => Err(ReadError::Range { at, end: end.unwrap_or(u64::MAX), length }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_reads_its_own_name_and_foreign_ones() {
        for format in Format::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert_eq!("VPC".parse(), Ok(Format::Vhd));
        assert_eq!("qed".parse::<Format>(), Err(FormatError));
    }
}
