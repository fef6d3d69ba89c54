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
    #[error("the image is a difference to a parent; merge it with the parent first")]
    Parent,
    #[error("the image keeps its data in a second file; convert it to one file first")]
    DataFile,
    #[error("the image is a text that names other files; put all of them into one tar or OVA")]
    NamesFiles,
    #[error("the image names a path; only bare names of files beside it are looked up")]
    NamesPath,
    #[error("the image is one of several parts of a disk; put all of them into one tar or OVA")]
    DiskPart,
    #[error("a file that the image needs is not in the archive")]
    MissingPart,
    #[error("a name stands in the archive twice")]
    DuplicateName,
    #[error("the archive holds no disk")]
    NoDisk,
    #[error("the archive holds several disks; send each as an image of its own")]
    SeveralDisks,
    #[error("a file of the archive is not listed in its manifest")]
    NotInManifest,
    #[error("a file of the archive does not have the checksum that the manifest says")]
    ChecksumMismatch,
    #[error("the archive is not supported: {0}")]
    Archive(&'static str),
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
    #[error("the image's log cannot be replayed: {0}")]
    CorruptLog(&'static str),
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
            Self::Parent => "parent",
            Self::DataFile => "data_file",
            Self::NamesFiles => "names_files",
            Self::NamesPath => "names_path",
            Self::DiskPart => "disk_part",
            Self::MissingPart => "missing_part",
            Self::DuplicateName => "duplicate_name",
            Self::NoDisk => "no_disk",
            Self::SeveralDisks => "several_disks",
            Self::NotInManifest => "not_in_manifest",
            Self::ChecksumMismatch => "checksum_mismatch",
            Self::Archive(_) => "archive_not_supported",
            Self::Encrypted => "encrypted",
            Self::UnknownVersion(_) => "unknown_version",
            Self::UnknownFeature(_) => "unknown_feature",
            Self::UnknownCompression(_) => "unknown_compression",
            Self::MarkedCorrupt => "marked_corrupt",
            Self::MalformedHeader(_) => "malformed_header",
            Self::CorruptTables(_) => "corrupt_tables",
            Self::CorruptLog(_) => "corrupt_log",
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
    /// VMDK extents of ESXi's snapshots.
    Cowd,
    /// VMDK extents of ESXi's snapshots since 6.5.
    SeSparse,
    Qed,
    Luks,
    Vdi,
    Parallels,
    Bochs,
    Cloop,
    Dmg,
}

impl Foreign {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qcow1 => "qcow version 1",
            Self::Cowd => "ESXi COWD",
            Self::SeSparse => "ESXi seSparse",
            Self::Qed => "QED",
            Self::Luks => "LUKS-encrypted",
            Self::Vdi => "VDI",
            Self::Parallels => "Parallels",
            Self::Bochs => "Bochs",
            Self::Cloop => "cloop",
            Self::Dmg => "DMG",
        }
    }

    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::Qcow1 => "qcow1_not_supported",
            Self::Cowd => "vmdk_cowd_not_supported",
            Self::SeSparse => "vmdk_sesparse_not_supported",
            Self::Qed => "qed_not_supported",
            Self::Luks => "luks_not_supported",
            Self::Vdi => "vdi_not_supported",
            Self::Parallels => "parallels_not_supported",
            Self::Bochs => "bochs_not_supported",
            Self::Cloop => "cloop_not_supported",
            Self::Dmg => "dmg_not_supported",
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
