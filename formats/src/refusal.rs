//! Why an image is refused. The codes are part of the REST API and never change their meaning.
//!
//! Invariant: each refusal has one code, and a code stands for one thing that the sender of the
//! image can understand and change.
//! Non-goal: failures of the source, which are no fault of the image's.

use std::io;

use thiserror::Error;

use crate::disk::Format;

/// What is unacceptable about an image.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Known, but not read by this program. The code names the format.
    #[error("{} images are not supported yet; convert it to qcow2 or raw first", .0.name())]
    Unsupported(Foreign),
    #[error("the image is {first} and {second} at once; which one is meant cannot be known")]
    Ambiguous { first: &'static str, second: &'static str },
    #[error("the image was declared as {declared}, but it is {found}")]
    FormatMismatch { declared: Format, found: &'static str },
    #[error("the image needs a backing file; flatten it first")]
    BackingFile,
    #[error("the image keeps its data in a second file; convert it to one file first")]
    DataFile,
    #[error("the image is encrypted; decrypt it first")]
    Encrypted,
    #[error("version {0} of the format is not supported")]
    UnknownVersion(u32),
    #[error("the image needs features that are not supported (incompatible bits {0:#x})")]
    UnknownFeature(u64),
    #[error("the image's compression method {0} is not supported")]
    UnknownCompression(u8),
    #[error("the image is marked as corrupt by the program that wrote it; repair it first")]
    MarkedCorrupt,
    #[error("the image's header is malformed: {0}")]
    MalformedHeader(&'static str),
    #[error("the image's tables are corrupt: {0}")]
    CorruptTables(&'static str),
    #[error("the image's tables overlap or loop: {0}")]
    OverlappingTables(&'static str),
    #[error("the image ends before {0}; it is truncated")]
    Truncated(&'static str),
    #[error("the image is too large: {0}")]
    TooLarge(&'static str),
}

impl Refusal {
    /// The stable code.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Unsupported(foreign) => foreign.reason(),
            Self::Ambiguous { .. } => "ambiguous_format",
            Self::FormatMismatch { .. } => "format_mismatch",
            Self::BackingFile => "backing_file",
            Self::DataFile => "data_file",
            Self::Encrypted => "encrypted",
            Self::UnknownVersion(_) => "unknown_version",
            Self::UnknownFeature(_) => "unknown_feature",
            Self::UnknownCompression(_) => "unknown_compression",
            Self::MarkedCorrupt => "marked_corrupt",
            Self::MalformedHeader(_) => "malformed_header",
            Self::CorruptTables(_) => "corrupt_tables",
            Self::OverlappingTables(_) => "overlapping_tables",
            Self::Truncated(_) => "truncated",
            Self::TooLarge(_) => "too_large",
        }
    }
}

/// Formats that are detected so that they are not taken for raw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Foreign {
    Qcow1,
    Vmdk,
    Vhd,
    Vhdx,
    Qed,
    Luks,
    Vdi,
    Parallels,
    Bochs,
    Cloop,
    Dmg,
    Ova,
}

impl Foreign {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qcow1 => "qcow version 1",
            Self::Vmdk => "VMDK",
            Self::Vhd => "VHD",
            Self::Vhdx => "VHDX",
            Self::Qed => "QED",
            Self::Luks => "LUKS-encrypted",
            Self::Vdi => "VDI",
            Self::Parallels => "Parallels",
            Self::Bochs => "Bochs",
            Self::Cloop => "cloop",
            Self::Dmg => "DMG",
            Self::Ova => "OVA",
        }
    }

    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::Qcow1 => "qcow1_not_supported",
            Self::Vmdk => "vmdk_not_supported",
            Self::Vhd => "vhd_not_supported",
            Self::Vhdx => "vhdx_not_supported",
            Self::Qed => "qed_not_supported",
            Self::Luks => "luks_not_supported",
            Self::Vdi => "vdi_not_supported",
            Self::Parallels => "parallels_not_supported",
            Self::Bochs => "bochs_not_supported",
            Self::Cloop => "cloop_not_supported",
            Self::Dmg => "dmg_not_supported",
            Self::Ova => "ova_not_supported",
        }
    }
}

/// Why an image did not open.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The image's own fault; trying again does not help.
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("reading the image's bytes at {at} failed")]
    Source {
        /// Bytes from the image's start.
        at: u64,
        #[source]
        error: io::Error,
    },
}

impl OpenError {
    /// A stable code: [`Refusal::reason`], or `unreadable` where the source failed.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.reason(),
            Self::Source { .. } => "unreadable",
        }
    }

    /// Whether the same call may work later: only where the source failed.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Source { .. })
    }
}
